"""Running a network on one image: any size, several scales, mirrored."""

import dataclasses
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf

from kerasseg.errors import KerassegError

TTA_FACTORS = (0.75, 1.0, 1.25)
"""What test-time augmentation multiplies every scale by, beside mirroring."""


@dataclasses.dataclass(frozen=True)
class Inference:
    """How to run a network on an image.

    Args:
        scales: Factors by which the image is resized before the network, each positive. A network trained at half resolution
            has `(0.5,)`.
        flip: Whether to run every scale mirrored left to right as well.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self):
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise KerassegError(f"scales {self.scales}: expected at least one positive number, such as (1.0,)")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))

    def with_tta(self) -> "Inference":
        """The same with test-time augmentation: every scale times `TTA_FACTORS`, and mirrored copies."""
        return Inference(tuple(scale * factor for scale in self.scales for factor in TTA_FACTORS), flip=True)


def probabilities(model, image, *, scales=(1.0,), flip: bool = False) -> np.ndarray:
    """Class probabilities at the image's own size, averaged over scales and mirrored copies.

    The logits, not their probabilities, are resized back: bilinear, half-pixel centres.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which the first entry counts.
        image: As for `predict`.
        scales: As in `Inference`.
        flip: As in `Inference`.
    Returns:
        Shape `(H, W, C)`, float32, sums to 1 over the classes.
    Raises:
        KerassegError: As `predict`.
    """
    return _mean_probabilities(_views(model, _image_array(image), Inference(tuple(scales), flip))).numpy()


def predict(model, image, *, scales=(1.0,), flip: bool = False) -> np.ndarray:
    """The class of every pixel, at the photograph's own size.

    Args:
        model: Network from `(B, H, W, 3)` RGB 0–255 to logits `(B, H, W, C)`, or to a dict of which the first entry counts.
        image: Array `(H, W, 3)`, RGB 0–255, integer or float; a PIL image; or the path of an image file. Networks of more
            channels (RGB-D) take arrays of as many, the colours first.
        scales: As in `Inference`.
        flip: As in `Inference`.
    Returns:
        Shape `(H, W)`, int32, 0 to C − 1. With scale 1 alone exactly the argmax of `model(image)`.
    Raises:
        KerassegError: If the image is not RGB 0–255, or the network cannot take one image of that size.
    Example:
        >>> kerasseg.colorize(kerasseg.predict(model, "photo.jpg"))
    """
    return predict_with_classes(model, _image_array(image), Inference(tuple(scales), flip))[0].numpy()


def predict_with_classes(model, image: np.ndarray, inference: Inference):
    """What `predict` and the evaluator share.

    Args:
        model: As for `predict`.
        image: Shape `(H, W, 3)`, RGB 0–255.
        inference: How to run the network.
    Returns:
        The classes as a tensor `(H, W)` int32, and the network's number of classes.
    """
    views = _views(model, image, inference)
    # A single view not by way of the softmax: its rounding makes ties of logits that differ.
    is_single = len(inference.scales) == 1 and not inference.flip
    total = next(views) if is_single else _mean_probabilities(views)
    return tf.argmax(total, axis=-1, output_type=tf.int32), total.shape[-1]


def _mean_probabilities(views):
    """Streams, since one float32 map of 150 classes can take a gigabyte."""
    count, total = 1, tf.nn.softmax(next(views))
    for logits in views:
        count, total = count + 1, total + tf.nn.softmax(logits)
    return total / count


def _views(model, image, inference) -> Iterator[tf.Tensor]:
    """Logits (H, W, C) of every scale, then its mirrored copy, each brought back onto the image."""
    _check_fits(model, image, inference)
    run = _runner(model)
    batch = tf.constant(image[np.newaxis], tf.float32)
    height, width = image.shape[:2]
    for scale in inference.scales:
        size = tf.constant([max(1, round(height * scale)), max(1, round(width * scale))], tf.int32)
        for mirrored in (False, True)[: 1 + inference.flip]:
            try:
                yield run(batch, size, tf.constant(mirrored))
            except (tf.errors.InvalidArgumentError, tf.errors.AbortedError) as error:
                # Which networks are too deep for so small an image shows in some layer inside.
                raise KerassegError(
                    f"{model.name} cannot take an image of {'x'.join(map(str, size.numpy()))} pixels (scale {scale:g}): "
                    f"{_reason(error)}; use larger images or scales"
                ) from error


def _reason(error: tf.errors.OpError) -> str:
    """What the operation said; TensorFlow puts a traceback before it."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Detected at", "Graph execution", "File", "<"))), lines[0])[:200]


# A function holds its traces, and through them much memory: it must go when its model goes.
_RUNNERS: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def _runner(model):
    """The one tf.function of a model; its signature leaves sizes open, so that no image size traces it again."""
    if model not in _RUNNERS:
        _RUNNERS[model] = _make_runner(model)
    return _RUNNERS[model]


def _make_runner(model):
    # A weak reference: a cache value that held its own key would keep both for ever.
    reference = weakref.ref(model)

    @tf.function(
        input_signature=[
            tf.TensorSpec((1, None, None, model.inputs[0].shape[-1]), tf.float32),
            tf.TensorSpec((2,), tf.int32),
            tf.TensorSpec((), tf.bool),
        ],
        # Autograph would bury the one line of an error in a traceback of another type.
        autograph=False,
    )
    def run(batch, size, mirrored):
        network = reference()
        full_size = tf.shape(batch)[1:3]
        # Antialiased where it shrinks, as the training transforms are.
        batch = tf.image.resize(batch, size, method="bilinear", antialias=True)
        batch = tf.where(mirrored, tf.reverse(batch, [2]), batch)
        dtype = tf.as_dtype(network.inputs[0].dtype)
        logits = network(tf.cast(tf.round(batch) if dtype.is_integer else batch, dtype), training=False)
        if isinstance(logits, dict):
            logits = logits[next(iter(logits))]
        logits = tf.where(mirrored, tf.reverse(logits, [2]), logits)
        return tf.image.resize(logits, full_size, method="bilinear", antialias=False)[0]

    return run


def _check_fits(model, image, inference):
    """Refuses what would otherwise end in an error of TensorFlow's about some layer inside."""
    if len(model.inputs) != 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise KerassegError(f"the network has {len(model.inputs)} inputs ({names}): expected one, an RGB image")
    expected = tuple(model.inputs[0].shape[1:])
    if len(expected) != 3 or expected[2] not in (image.shape[2], None):
        raise KerassegError(f"the network takes input of shape {expected}, received an image of shape {image.shape}")
    for scale in inference.scales:
        size = tuple(max(1, round(extent * scale)) for extent in image.shape[:2])
        if any(fixed not in (None, given) for fixed, given in zip(expected[:2], size, strict=True)):
            raise KerassegError(
                f"image of {image.shape[0]}x{image.shape[1]} at scale {scale:g} is {size[0]}x{size[1]}, but the network takes only "
                f"{expected[0]}x{expected[1]}: resize the image, or build the network with input_shape=(None, None, 3)"
            )


def _image_array(image) -> np.ndarray:
    """An RGB array (H, W, 3) from whatever `predict` accepts."""
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
