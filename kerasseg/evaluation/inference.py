"""Running a network on one image: any size, several scales, mirrored, a CRF behind it."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.crf import crf_logits, crf_parameters, described, marginals
from kerasseg.evaluation.exported import check_has_scores
from kerasseg.evaluation.fitted import usual_method
from kerasseg.evaluation.images import image_array, name_of
from kerasseg.evaluation.methods import Method, View, WholeImage, as_probabilities, scaled_size
from kerasseg.evaluation.running import resized, selected_output
from kerasseg.evaluation.windows import Windows, write_labels

TTA_FACTORS = (0.75, 1.0, 1.25)
"""What test-time augmentation multiplies every scale by, beside mirroring."""


FUSIONS = ("mean", "max")
"""How the maps of several scales and mirrored copies become one."""


@dataclasses.dataclass(frozen=True)
class Inference:
    """How to run a network on an image.

    Args:
        scales: Factors by which the image is resized before the network, each positive. A network trained at half resolution
            has `(0.5,)`.
        flip: Whether to run every scale mirrored left to right as well.
        method: How the network is run on each of these pictures. `predict` and the evaluator choose one that suits the network
            where none is given.
        crf: Parameters of a dense CRF behind all that, on the photograph at its own size: name in `kerasseg.crf.PARAMETERS`,
            `kerasseg.crf.Parameters`, or a file of `tools/tune_crf.py`; `None`: no CRF. It starts from the scores of a network that
            saw one picture, or from the largest of several; else from −log of the averaged probabilities.
        fusion: How the maps of several pictures become one. `"mean"`: the mean, of logits that of their probabilities. `"max"`: for
            each pixel and class the largest, of what the method gives (`Method.kind`): logits or scores as they are; the largest
            probabilities are divided by their sum over the classes.
        output: Key of the output that counts, of a network with several; `None`: the first.
    Raises:
        KerassegError: If one of them cannot be.
    Reference:
        Means of probabilities: Chen et al. 2017, arXiv:1706.05587, §4.2. Maxima: Chen et al. 2018, arXiv:1606.00915, §3.2.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    method: Method = WholeImage()
    crf: Any = None
    fusion: str = "mean"
    output: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "scales", _checked_scales(self.scales))
        if not isinstance(self.flip, (bool, np.bool_)):
            raise KerassegError(f"flip {self.flip!r}: expected True or False")
        object.__setattr__(self, "flip", bool(self.flip))
        if not isinstance(self.method, Method):
            raise KerassegError(f"method {self.method!r}: expected one that is made, such as kerasseg.evaluation.Tiles((900, 900))")
        if self.crf is not None:
            object.__setattr__(self, "crf", crf_parameters(self.crf))
        if self.fusion not in FUSIONS:
            raise KerassegError(f"fusion {self.fusion!r}: expected one of {', '.join(FUSIONS)}")
        if not isinstance(self.output, (str, type(None))):
            raise KerassegError(
                f"output {self.output!r}: expected the name of an output, such as 'semantic', or None for the first"
            )

    def with_tta(self) -> "Inference":
        """The same with test-time augmentation: every scale times `TTA_FACTORS`, and mirrored copies."""
        scales = tuple(scale * factor for scale in self.scales for factor in TTA_FACTORS)
        return dataclasses.replace(self, scales=scales, flip=True)

    @property
    def is_single(self) -> bool:
        """Whether the network sees one picture only, so that nothing is fused."""
        return len(self.scales) == 1 and not self.flip

    @property
    def is_plain(self) -> bool:
        """Whether the network sees the image alone, at its own size, and no CRF comes behind."""
        return self.is_single and self.scales == (1.0,) and self.crf is None

    def to_json(self) -> dict:
        """All of it as JSON can hold it; of a CRF, of maxima and of the chosen output nothing where there is none."""
        crf = {} if self.crf is None else {"crf": dataclasses.asdict(self.crf)}
        fusion = {} if self.fusion == "mean" else {"fusion": self.fusion}
        output = {} if self.output is None else {"output": self.output}
        return {"scales": list(self.scales), "flip": self.flip, "method": self.method.to_json(), **crf, **fusion, **output}

    def __str__(self):
        """All of it on one line, to be read; nothing of the method where it is the whole image, nor of what is not there."""
        scales = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}{', mirrored too' if self.flip else ''}"
        fusion = "" if self.fusion == "mean" else ", the largest of all"
        method = "" if self.method == WholeImage() else f"; {self.method}"
        crf = "" if self.crf is None else f"; {described(self.crf)}"
        output = "" if self.output is None else f"; output {self.output}"
        return f"{scales}{fusion}{method}{crf}{output}"


def _checked_scales(scales) -> tuple[float, ...]:
    # Text is gone through letter by letter, of which none is a number.
    found = tuple(scales) if isinstance(scales, Iterable) else ()
    if not found or not all(isinstance(scale, numbers.Real) and scale > 0 and math.isfinite(scale) for scale in found):
        raise KerassegError(f"scales {scales!r}: expected at least one positive number, such as (1.0,)")
    return tuple(map(float, found))


class Prediction(NamedTuple):
    """What a network says of one image.

    Args:
        classes: Shape `(H, W)`, int32, 0 to `num_classes` − 1.
        num_classes: How many classes the network tells apart.
        confidence: The largest probability of the final map, `(H, W)`, float32, 0–1: behind a CRF of its marginals; `None` if it
            was not asked for.
    """

    classes: np.ndarray
    num_classes: int
    confidence: np.ndarray | None = None


def probabilities(
    model,
    image,
    *,
    scales=(1.0,),
    flip: bool = False,
    method: Method | None = None,
    crf=None,
    name=None,
    fusion: str = "mean",
    output: str | None = None,
) -> np.ndarray:
    """Class probabilities at the image's own size, fused over scales and mirrored copies; with a CRF its marginals.

    The logits, not their probabilities, are resized back: bilinear, half-pixel centres. Scores that are no logits of one network,
    as those of `Proposals`, are fused as they are, and the softmax taken of the result; so it is of the largest logits.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which one entry counts.
        image: As for `predict`.
        scales: As in `Inference`.
        flip: As in `Inference`.
        method: As for `predict`.
        crf: As in `Inference`.
        name: As for `predict`.
        fusion: As in `Inference`.
        output: As in `Inference`.
    Returns:
        Shape `(H, W, C)`, float32, sums to 1 over the classes.
    Raises:
        KerassegError: As `predict`.
    """
    inference = Inference(scales, flip, usual_method(model) if method is None else method, crf, fusion, output)
    (total,), kind = combined(model, [image_array(image)], inference, [name_of(image, name)])
    return as_probabilities(total, kind).numpy()


def predict(
    model,
    image,
    *,
    scales=(1.0,),
    flip: bool = False,
    method: Method | None = None,
    crf=None,
    name=None,
    fusion: str = "mean",
    output: str | None = None,
) -> np.ndarray:
    """The class of every pixel, at the photograph's own size.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which one entry counts.
        image: Array `(H, W, 3)`, RGB 0–255, integer or float; a PIL image; or the path of an image file. Networks of more
            channels (RGB-D) take arrays of as many, the colours first.
        scales: As in `Inference`.
        flip: As in `Inference`.
        method: As in `Inference`; `None`: the whole image, `Fitted` into a network that takes one size only.
        crf: As in `Inference`.
        name: What the image is called in a file of boxes; `None`: the file's name without its suffix, if `image` is a path.
        fusion: As in `Inference`.
        output: As in `Inference`.
    Returns:
        Shape `(H, W)`, int32, 0 to C − 1. With scale 1 alone, and no CRF, exactly the argmax of `model(image)`.
    Raises:
        KerassegError: If the image is not RGB 0–255, a scale leaves nothing of it, or the network cannot take one of that size.
    Example:
        >>> kerasseg.colorize(kerasseg.predict(model, "photo.jpg"))
    """
    inference = Inference(scales, flip, usual_method(model) if method is None else method, crf, fusion, output)
    return predict_with_classes(model, image_array(image), inference, name_of(image, name)).classes


def predict_with_classes(
    model, image: np.ndarray, inference: Inference, name: str | None = None, *, confidence: bool = False
) -> Prediction:
    """What `predict` and the evaluator share.

    Args:
        model: As for `predict`.
        image: Shape `(H, W, 3)`, RGB 0–255.
        inference: How to run the network.
        name: The image's name, under which boxes are looked up.
        confidence: Whether to say how sure the network is as well.
    Raises:
        KerassegError: As `predict`.
    """
    return predict_batch(model, [image], inference, [name], confidence=confidence)[0]


def predict_batch(
    model,
    images: Sequence[np.ndarray],
    inference: Inference,
    names: Sequence[str | None] | None = None,
    *,
    confidence: bool = False,
) -> list[Prediction]:
    """As `predict_with_classes` for several images, of which those of the same size go through the network together.

    Nothing is padded, so that every image gets what it would get alone; sizes may differ without the network being traced anew.
    Methods that cut images into pieces get the images one by one.

    Args:
        model: As for `predict`.
        images: Each `(H, W, 3)`, RGB 0–255. All of a size are in memory at once, with their maps of scores.
        inference: How to run the network.
        names: The images' names; `None`: they have none.
        confidence: As for `predict_with_classes`.
    Returns:
        One prediction per image, in their order.
    Raises:
        KerassegError: As `predict`.
    """
    if isinstance(inference.method, Windows) and inference.is_plain:
        return [_streamed(model, image, inference, confidence) for image in images]
    names, groups = names or [None] * len(images), {}
    for place, image in enumerate(images):
        groups.setdefault(image.shape if inference.method.takes_batches else place, []).append(place)
    found = {}
    for places in groups.values():
        maps, kind = combined(model, [images[place] for place in places], inference, [names[place] for place in places])
        found.update((place, _prediction(each, kind, confidence)) for place, each in zip(places, maps, strict=True))
    return [found[place] for place in range(len(images))]


def _streamed(model, image, inference, confidence) -> Prediction:
    """The same for windows on the image as it is, whose scores are never held all at once."""
    model, windows, size = selected_output(model, inference.output), inference.method, image.shape[:2]
    sure = np.empty(size, np.float32) if confidence else None
    return Prediction(*write_labels(windows.blocks(model, image), windows.kind, lambda _: np.empty(size, np.int32), sure), sure)


def _prediction(scores: tf.Tensor, kind: str, confidence: bool) -> Prediction:
    classes = tf.argmax(scores, axis=-1, output_type=tf.int32).numpy()
    sure = tf.reduce_max(as_probabilities(scores, kind), axis=-1).numpy() if confidence else None
    return Prediction(classes, scores.shape[-1], sure)


def logits_for_crf(model, image: np.ndarray, inference: Inference, name: str | None = None) -> np.ndarray:
    """What a CRF behind that inference starts from; whether the inference has one makes no difference.

    Args:
        model: As for `predict`.
        image: Shape `(H, W, 3)`, RGB 0–255.
        inference: How to run the network.
        name: The image's name, under which boxes are looked up.
    Returns:
        Shape `(H, W, C)`, float32: the negative of the unary energy.
    """
    check_has_scores(model, inference, crf=True)
    (total,), kind = combined(model, [image], dataclasses.replace(inference, crf=None), [name])
    return crf_logits(total, kind)


def combined(model, images, inference, names):
    """Runs the network on images of one size, at all scales, mirrored or not, with the CRF behind.

    Args:
        model: As for `predict`.
        images: Each `(H, W, 3)`, RGB 0–255.
        inference: How to run the network.
        names: The images' names, or `None`.
    Returns:
        A map `(H, W, C)` for each; and what they hold, as `Method.kind` says it.
    Raises:
        KerassegError: As `predict`.
    """
    check_has_scores(model, inference)
    model = selected_output(model, inference.output)
    views, kind = _views(model, images, inference, names), inference.method.kind
    if inference.is_single:
        # Not by way of the softmax: its rounding makes ties of logits that differ.
        maps = next(views)
    elif inference.fusion == "max":
        maps = _maxima(views, kind)
    else:
        maps, kind = _means(views, kind), "probabilities" if kind == "logits" else kind
    if inference.crf is None:
        return maps, kind
    pairs = zip(images, maps, strict=True)
    return [tf.constant(marginals(image, crf_logits(each, kind), inference.crf)) for image, each in pairs], "probabilities"


def _means(views, kind):
    """Streams, since one float32 map of 150 classes can take a gigabyte."""
    averaged = tf.nn.softmax if kind == "logits" else tf.identity
    count, totals = 1, [averaged(scores) for scores in next(views)]
    for maps in views:
        count, totals = count + 1, [total + averaged(scores) for total, scores in zip(totals, maps, strict=True)]
    return [total / count for total in totals]


def _maxima(views, kind):
    totals = next(views)
    for maps in views:
        totals = [tf.maximum(total, scores) for total, scores in zip(totals, maps, strict=True)]
    if kind != "probabilities":
        return totals
    return [total / tf.reduce_sum(total, axis=-1, keepdims=True) for total in totals]


def _views(model, images, inference, names) -> Iterator[list[tf.Tensor]]:
    """Scores (H, W, C) of every image at every scale, then of their mirrored copies, each brought back onto its image."""
    size = images[0].shape[:2]
    photographs = [tf.constant(image, tf.float32) for image in images]
    sizes = [scaled_size(size, scale) for scale in inference.scales]
    for each in sizes:
        inference.method.check_size(each)
    for scale, each in zip(inference.scales, sizes, strict=True):
        # Antialiased where it shrinks, as the training transforms are.
        scaled = [resized(photograph, each, antialias=True) for photograph in photographs]
        for mirrored in (False, True)[: 1 + inference.flip]:
            views = [
                View(tf.reverse(picture, [1]) if mirrored else picture, photograph, scale, mirrored, name)
                for picture, photograph, name in zip(scaled, photographs, names, strict=True)
            ]
            maps = inference.method.scores_of(model, views)
            yield [resized(tf.reverse(scores, [1]) if mirrored else scores, size) for scores in maps]
