"""Running a network on one image: any size, several scales, mirrored, a CRF behind it."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.crf import crf_logits, crf_parameters, described, marginals
from kerasseg.evaluation.methods import Method, View, WholeImage, scaled_size
from kerasseg.evaluation.running import resized

TTA_FACTORS = (0.75, 1.0, 1.25)
"""What test-time augmentation multiplies every scale by, beside mirroring."""


@dataclasses.dataclass(frozen=True)
class Inference:
    """How to run a network on an image.

    Args:
        scales: Factors by which the image is resized before the network, each positive. A network trained at half resolution
            has `(0.5,)`.
        flip: Whether to run every scale mirrored left to right as well.
        method: How the network is run on each of these pictures.
        crf: Parameters of a dense CRF behind all that, on the photograph at its own size: name in `kerasseg.crf.PARAMETERS`,
            `kerasseg.crf.Parameters`, or a file of `tools/tune_crf.py`; `None`: no CRF. It starts from the scores of a network that
            saw one picture, else from −log of the averaged probabilities.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    method: Method = WholeImage()
    crf: Any = None

    def __post_init__(self):
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise KerassegError(f"scales {self.scales}: expected at least one positive number, such as (1.0,)")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not isinstance(self.method, Method):
            raise KerassegError(f"method {self.method!r}: expected one that is made, such as kerasseg.evaluation.Tiles((900, 900))")
        if self.crf is not None:
            object.__setattr__(self, "crf", crf_parameters(self.crf))

    def with_tta(self) -> "Inference":
        """The same with test-time augmentation: every scale times `TTA_FACTORS`, and mirrored copies."""
        scales = tuple(scale * factor for scale in self.scales for factor in TTA_FACTORS)
        return dataclasses.replace(self, scales=scales, flip=True)

    @property
    def is_single(self) -> bool:
        """Whether the network sees one picture only, so that nothing is averaged."""
        return len(self.scales) == 1 and not self.flip

    def to_json(self) -> dict:
        """All of it as JSON can hold it."""
        crf = {} if self.crf is None else {"crf": dataclasses.asdict(self.crf)}
        return {"scales": list(self.scales), "flip": self.flip, "method": self.method.to_json(), **crf}

    def __str__(self):
        """All of it on one line, to be read; nothing of the method where it is the whole image, nor of a CRF that is not there."""
        scales = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        method = "" if self.method == WholeImage() else f"; {self.method}"
        crf = "" if self.crf is None else f"; {described(self.crf)}"
        return f"{scales}{', mirrored too' if self.flip else ''}{method}{crf}"


def probabilities(
    model, image, *, scales=(1.0,), flip: bool = False, method: Method | None = None, crf=None, name=None
) -> np.ndarray:
    """Class probabilities at the image's own size, averaged over scales and mirrored copies; with a CRF its marginals.

    The logits, not their probabilities, are resized back: bilinear, half-pixel centres. Scores that are no logits of one network,
    as those of `Proposals`, are averaged as they are, and the softmax taken of the mean.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which the first entry counts.
        image: As for `predict`.
        scales: As in `Inference`.
        flip: As in `Inference`.
        method: As in `Inference`; `None`: the whole image.
        crf: As in `Inference`.
        name: As for `predict`.
    Returns:
        Shape `(H, W, C)`, float32, sums to 1 over the classes.
    Raises:
        KerassegError: As `predict`.
    """
    inference = Inference(tuple(scales), flip, WholeImage() if method is None else method, crf)
    total, kind = _combined(model, image_array(image), inference, name_of(image, name))
    return (total if kind == "probabilities" else tf.nn.softmax(total)).numpy()


def predict(model, image, *, scales=(1.0,), flip: bool = False, method: Method | None = None, crf=None, name=None) -> np.ndarray:
    """The class of every pixel, at the photograph's own size.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which the first entry counts.
        image: Array `(H, W, 3)`, RGB 0–255, integer or float; a PIL image; or the path of an image file. Networks of more
            channels (RGB-D) take arrays of as many, the colours first.
        scales: As in `Inference`.
        flip: As in `Inference`.
        method: As in `Inference`; `None`: the whole image.
        crf: As in `Inference`.
        name: What the image is called in a file of boxes; `None`: the file's name without its suffix, if `image` is a path.
    Returns:
        Shape `(H, W)`, int32, 0 to C − 1. With scale 1 alone, and no CRF, exactly the argmax of `model(image)`.
    Raises:
        KerassegError: If the image is not RGB 0–255, or the network cannot take one image of that size.
    Example:
        >>> kerasseg.colorize(kerasseg.predict(model, "photo.jpg"))
    """
    inference = Inference(tuple(scales), flip, WholeImage() if method is None else method, crf)
    return predict_with_classes(model, image_array(image), inference, name_of(image, name))[0].numpy()


def name_of(image, name: str | None) -> str | None:
    """What a photograph is called: as it is said, else, of a path, the file's name without its suffix."""
    return Path(image).stem if name is None and isinstance(image, (str, Path)) else name


def predict_with_classes(model, image: np.ndarray, inference: Inference, name: str | None = None):
    """What `predict` and the evaluator share.

    Args:
        model: As for `predict`.
        image: Shape `(H, W, 3)`, RGB 0–255.
        inference: How to run the network.
        name: The image's name, under which boxes are looked up.
    Returns:
        The classes as a tensor `(H, W)` int32, and the network's number of classes.
    """
    total, _ = _combined(model, image, inference, name)
    return tf.argmax(total, axis=-1, output_type=tf.int32), total.shape[-1]


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
    return crf_logits(*_combined(model, image, dataclasses.replace(inference, crf=None), name))


def _combined(model, image, inference, name):
    """One map of scores (H, W, C) from all views and the CRF, and what it holds, as `Method.kind` says it."""
    views, kind = _views(model, image, inference, name), inference.method.kind
    if inference.is_single:
        # Not by way of the softmax: its rounding makes ties of logits that differ.
        total = next(views)
    else:
        total, kind = _mean(views, kind), "probabilities" if kind == "logits" else kind
    if inference.crf is None:
        return total, kind
    return tf.constant(marginals(image, crf_logits(total, kind), inference.crf)), "probabilities"


def _mean(views, kind):
    """Streams, since one float32 map of 150 classes can take a gigabyte."""
    averaged = tf.nn.softmax if kind == "logits" else tf.identity
    count, total = 1, averaged(next(views))
    for scores in views:
        count, total = count + 1, total + averaged(scores)
    return total / count


def _views(model, image, inference, name) -> Iterator[tf.Tensor]:
    """Scores (H, W, C) of every scale, then its mirrored copy, each brought back onto the image."""
    size = image.shape[:2]
    photograph = tf.constant(image, tf.float32)
    sizes = [scaled_size(size, scale) for scale in inference.scales]
    for each in sizes:
        inference.method.check_size(each)
    for scale, each in zip(inference.scales, sizes, strict=True):
        # Antialiased where it shrinks, as the training transforms are.
        scaled = resized(photograph, each, antialias=True)
        for mirrored in (False, True)[: 1 + inference.flip]:
            view = View(tf.reverse(scaled, [1]) if mirrored else scaled, photograph, scale, mirrored, name)
            scores = inference.method.scores(model, view)
            yield resized(tf.reverse(scores, [1]) if mirrored else scores, size)


def image_array(image) -> np.ndarray:
    """An RGB array (H, W, 3) from whatever `predict` accepts.

    Raises:
        KerassegError: If it is no RGB image of 0–255.
    """
    if isinstance(image, (str, Path)):
        from kerasseg.data.decode import decode_image

        image = decode_image(image)
    elif isinstance(image, PIL.Image.Image):
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] < 3 or 0 in array.shape:
        raise KerassegError(
            f"image has shape {array.shape}: expected (height, width, 3), one RGB image; of a grey one np.stack([grey] * 3, -1)"
        )
    if array.dtype.kind not in "uif":
        raise KerassegError(f"image has dtype {array.dtype}: expected uint8 or float32, RGB 0-255")
    colors = array[..., :3]
    if not (colors.min() >= 0 and colors.max() <= 255):
        raise KerassegError(f"image has values {colors.min()} to {colors.max()}: expected RGB 0-255, neither centred nor 16 bits")
    return array
