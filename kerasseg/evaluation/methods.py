"""How a network is run on one picture: whole, or in windows. Tiles and proposals have files of their own."""

import dataclasses
import math
import numbers
import operator
import weakref
from collections.abc import Sequence
from typing import ClassVar

import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.running import check_shape, reflected, resized, run_network
from kerasseg.layers import MinimumSize, coordinate_map

# Networks → pixels of the input before the first that is scored, where they are many.
_COVERING: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class View:
    """A photograph as the network shall see it: scaled, and possibly mirrored.

    Args:
        image: Shape `(h, w, 3)`, float32 tensor, RGB 0–255.
        photograph: The same before scaling and mirroring, `(H, W, 3)`.
        scale: Factor that it was scaled by.
        mirrored: Whether left and right were then exchanged.
        name: The photograph's name, under which boxes are looked up; `None` if it has none.
    """

    image: tf.Tensor
    photograph: tf.Tensor
    scale: float = 1.0
    mirrored: bool = False
    name: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return tuple(self.image.shape[:2])

    @property
    def photograph_size(self) -> tuple[int, int]:
        """Height and width of the photograph."""
        return tuple(self.photograph.shape[:2])


def scaled_size(size, scale: float) -> tuple[int, int]:
    """Height and width in pixels of an image of that size once it is scaled.

    Raises:
        KerassegError: If nothing is left of it.
    """
    found = tuple(round(side * scale) for side in size)
    if min(found) < 1:
        raise KerassegError(
            f"scale {scale:g} leaves {found[0]}x{found[1]} pixels of an image of {size[0]}x{size[1]}: expected one that leaves at "
            f"least one pixel, such as --scales {math.ceil(100 / min(size)) / 100:g}"
        )
    return found


# Not compared by its fields, which would make all methods of a kind without them equal.
@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A way to turn one view into one map of scores. Scaling, mirroring and averaging are done around it.

    What a method's maps are, `kind` says: `"logits"`, averaged over views as the probabilities that softmax makes of them;
    `"probabilities"`; or `"scores"`, averaged as they are.
    """

    kind: ClassVar[str] = "logits"
    name: ClassVar[str]
    # Whether views of one size are run together.
    takes_batches: ClassVar[bool] = False

    def scores(self, model, view: View) -> tf.Tensor:
        """Runs the network.

        Args:
            model: The network.
            view: What to run it on.
        Returns:
            Shape `(h, w, C)`, float32, covering the view's image, at its size or coarser.
        Raises:
            KerassegError: If the network cannot be run so on that view.
        """
        raise NotImplementedError

    def scores_of(self, model, views: Sequence[View]) -> list[tf.Tensor]:
        """Runs the network on several views of one size.

        Args:
            model: The network.
            views: What to run it on.
        Returns:
            What `scores` gives for each.
        Raises:
            KerassegError: As `scores`.
        """
        return [self.scores(model, view) for view in views]

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuses, before anything is run, a picture on which the method is impossible.

        Args:
            size: Height and width in pixels, scaled.
        Raises:
            KerassegError: If that is so.
        """

    def check_names(self, names: Sequence[str]) -> None:
        """Refuses, before anything is run, photographs for which the method lacks something.

        Args:
            names: What the photographs are called.
        Raises:
            KerassegError: If that is so.
        """

    def to_json(self) -> dict:
        """Name and options as JSON can hold them."""
        fields = dataclasses.asdict(self).items()
        return {"name": self.name, **{key: list(value) if isinstance(value, tuple) else value for key, value in fields}}

    def __str__(self):
        """The same, to be read."""
        options = ", ".join(
            f"{key} {_plain(value)}" for key, value in self.to_json().items() if key != "name" and value is not None
        )
        return self.name.replace("_", " ") + (f" ({options})" if options else "")


def _plain(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


@dataclasses.dataclass(frozen=True)
class WholeImage(Method):
    """The whole image at once.

    A network that takes only multiples of some divisor (a `MinimumSize` layer in it says so) gets the image continued by
    reflection at the bottom and right, up to the next size that it takes, and its logits are cropped back.
    """

    name: ClassVar[str] = "whole_image"
    takes_batches: ClassVar[bool] = True

    def scores(self, model, view):
        """See `Method`."""
        return self.scores_of(model, [view])[0]

    def scores_of(self, model, views):
        """See `Method`."""
        view = views[0]
        what = f"image of {'x'.join(map(str, view.photograph_size))} at scale {view.scale:g}"
        check_shape(model, (*allowed_size(model, view.size), view.image.shape[2]), what)
        return list(run_whole(model, tf.stack([each.image for each in views]), f" (scale {view.scale:g})"))


def run_whole(model, images, where: str = "") -> tf.Tensor:
    """Runs a network on whole pictures, continued by reflection where it takes only multiples of some divisor.

    Args:
        model: The network.
        images: Shape `(B, h, w, 3)`, RGB 0–255.
        where: As for `run_network`.
    Returns:
        Shape `(B, h, w, C)`, or coarser from a network whose output is.
    Raises:
        KerassegError: As `run_network`, or if the network scores only the middle of its image.
    """
    check_covers(model)
    size, allowed = tuple(images.shape[1:3]), allowed_size(model, images.shape[1:3])
    if allowed == size:
        return run_network(model, images, where)
    for axis in range(2):
        images = tf.gather(images, reflected(size[axis], 0, allowed[axis]), axis=axis + 1)
    scores = run_network(model, images, f" (continued from {size[0]}x{size[1]})")
    return resized(scores, allowed)[:, : size[0], : size[1]]


def check_covers(model) -> None:
    """Refuses a network whose input carries a margin: stretched over the photograph, its scores would lie elsewhere."""
    if model not in _COVERING:
        try:
            scale, shift = coordinate_map(model.outputs[0])
            # The first cell's place; strides and crops leave less than a cell beside it.
            _COVERING[model] = int(shift) if shift > 2 * scale else 0
        except ValueError:
            # Not known, as of networks that resize to the image: these cover it.
            _COVERING[model] = 0
    if _COVERING[model]:
        raise KerassegError(
            f"{model.name} gives no scores for the outer {_COVERING[model]} pixels of its input, which must carry a margin: build "
            "it with margin='reflect', which takes the same weights"
        )


def allowed_size(model, size) -> tuple[int, int]:
    """Finds the smallest size, not below the given one, that a network says it takes.

    Args:
        model: The network; its `MinimumSize` layer is asked, if it has one with a divisor.
        size: Height and width in pixels.
    Returns:
        `(height, width)`; the size itself for a network without a divisor, even if it is too small, and for one of another, fixed
        size.
    """
    size = tuple(int(side) for side in size)
    found = size
    for layer in model.layers:
        if isinstance(layer, MinimumSize) and layer.divisor > 1:
            found = tuple(map(layer.fitting, found))
    fixed = model.inputs[0].shape[1:3]
    return found if all(own in (None, side) for own, side in zip(fixed, found, strict=True)) else size


def as_probabilities(scores: tf.Tensor, kind: str) -> tf.Tensor:
    """Scores of a kind of `Method.kind` as probabilities, `(…, C)`."""
    return scores if kind == "probabilities" else tf.nn.softmax(scores)


def checked_size(size, what: str) -> tuple[int, int]:
    """Makes a pair of positive integers of what should be one.

    Raises:
        KerassegError: If it is none.
    """
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError) as error:
        raise KerassegError(f"size {size} of {what}: expected two whole numbers, height and width in pixels") from error
    if height < 1 or width < 1:
        raise KerassegError(f"size {height}x{width} of {what}: expected height and width of at least 1 pixel")
    return height, width


def checked_count(value, what: str, example: int, least: int = 1) -> int:
    """Makes a whole number of what should be one.

    Args:
        value: What was received.
        what: How the message calls it.
        example: A value that the message names.
        least: The smallest that is allowed.
    Raises:
        KerassegError: If it is none, or below the smallest.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise KerassegError(f"{what} {value!r}: expected a whole number of at least {least}, such as {example}")
    return int(value)
