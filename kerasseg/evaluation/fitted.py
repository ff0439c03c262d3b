"""Pictures of any size, fitted into a network that takes one size only, as most exported files do."""

import dataclasses
from typing import ClassVar

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.methods import Method, WholeImage, check_covers, checked_size, scaled_size
from kerasseg.evaluation.running import check_shape, reflected, resized, run_network


@dataclasses.dataclass(frozen=True)
class Fitted(Method):
    """The whole image in a network of one fixed input size.

    An image that is larger is shrunk, both sides by one factor, until it fits; it is never enlarged. What is then left of the
    network's input at the bottom and right is the image continued by reflection; its scores are cut off. Of an image of the
    network's own size that is exactly `WholeImage`.

    Scales above what fits give no more detail, since what they enlarge is shrunk again.

    Raises:
        KerassegError: When run, if the network takes images of any size.
    """

    name: ClassVar[str] = "fitted"
    takes_batches: ClassVar[bool] = True

    def scores(self, model, view):
        """See `Method`."""
        return self.scores_of(model, [view])[0]

    def scores_of(self, model, views):
        """See `Method`."""
        size, view = fixed_size(model), views[0]
        if size is None:
            raise KerassegError(f"{model.name} takes images of any size: expected WholeImage() instead of Fitted()")
        check_covers(model)
        check_shape(model, (*size, view.image.shape[2]), "image")
        pictures, inner = _fitted(tf.stack([each.image for each in views]), size)
        scores = run_network(model, pictures, f" (scale {view.scale:g}, fitted into {size[0]}x{size[1]})")
        if inner == size:
            return list(scores)
        return list(resized(scores, size)[:, : inner[0], : inner[1]])


def fixed_size(model) -> tuple[int, int] | None:
    """Gives the only size of images that a network takes; `None` if it takes others, too.

    Args:
        model: The network.
    Returns:
        Height and width in pixels.
    """
    shape = tuple(model.inputs[0].shape) if len(model.inputs) == 1 else ()
    return shape[1:3] if len(shape) == 4 and None not in shape[1:3] else None


def usual_method(model) -> Method:
    """The way in which a network is run on a picture where nobody asks for another: fitted, if it takes one size only."""
    return WholeImage() if fixed_size(model) is None else Fitted()


def fit_image(image: np.ndarray, size, scale: float = 1.0) -> np.ndarray:
    """Gives what `Fitted` shows a network of a photograph, for calibration and for comparisons.

    Args:
        image: Shape `(h, w, C)`, 0–255.
        size: Height and width of the network's input in pixels.
        scale: What the photograph is resized by first, as in `Inference`.
    Returns:
        Shape `(*size, C)`, float32.
    Raises:
        KerassegError: If it is no image, nothing is left of it at that scale, or the size is none.
    """
    image, size = np.asarray(image), checked_size(size, "the network's input")
    if image.ndim != 3 or not image.size or image.dtype.kind not in "uif":
        raise KerassegError(f"image has shape {image.shape}, {image.dtype}: expected (height, width, channels), 0-255")
    scaled = resized(tf.constant(image, tf.float32), scaled_size(image.shape[:2], scale), antialias=True)
    return _fitted(scaled[tf.newaxis], size)[0][0].numpy()


def _fitted(pictures: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tuple[int, int]]:
    """Pictures of one size brought to another, and how much of that, from the top left, they fill."""
    given = tuple(pictures.shape[1:3])
    factor = min(1.0, *(whole / side for whole, side in zip(size, given, strict=True)))
    inner = tuple(min(whole, max(1, round(side * factor))) for whole, side in zip(size, given, strict=True))
    if inner != given:
        # Antialiased, as every shrinking is before a network here.
        pictures = resized(pictures, inner, antialias=True)
    for axis, (side, whole) in enumerate(zip(inner, size, strict=True), start=1):
        if side != whole:
            pictures = tf.gather(pictures, reflected(side, 0, whole), axis=axis)
    return pictures, inner
