"""DeconvNet's test: the network on windows around likely objects, the largest score of each class and pixel."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data.boxes import (
    boxes_of,
    by_size,
    check_boxes,
    cut_box,
    dense_windows,
    inside_of,
    key_of,
    read_boxes,
    selective_search,
)
from kerasseg.errors import KerassegError
from kerasseg.evaluation.images import image_array, name_of
from kerasseg.evaluation.methods import Method, View, checked_count, checked_size, run_whole, scaled_size
from kerasseg.evaluation.running import resized, run_network
from kerasseg.layers import MinimumSize

GENERATORS = ("dense", "selective_search")
# Crops per run of the network: 50 at once would need ten gigabytes at full width.
_BATCH = 8


class _File(dict):
    """The boxes of a file, which know where they come from also in a method that was made of another one."""

    source = ""


# An array or a mapping of such can be neither compared nor hashed: two of these are equal if they are one.
@dataclasses.dataclass(frozen=True, eq=False)
class Proposals(Method):
    """Runs a network on boxes of the photograph, each resized to the network's size, and takes the maximum of each class.

    Boxes are taken in their order: those with a side below `minimum_side` are skipped, and the first `maximum` of the others
    count; of `"dense"` windows the whole photograph always counts. The scores are raw, no softmax; the maximum starts from 0, so
    that pixels without a box, and those where no class scores above 0, are of class 0. At another scale the boxes that count go
    with the image. Where a box leaves the image, its crop is black. Resizing is bilinear and, as MATLAB's imresize, widens its
    filter where it shrinks, in both directions.

    Args:
        boxes: File of boxes (JSON or CSV, see `kerasseg.data.boxes.read_boxes`); a mapping of image names to arrays `(N, 4)`;
            one such array, for one image; `"dense"` (windows of several sizes all over the image, also `None`); or
            `"selective_search"`. A box is left, top, right, bottom in pixels of the photograph, right and bottom exclusive.
        maximum: How many boxes of an image count.
        minimum_side: Pixels of the photograph that both sides of a box must have, at whatever scale it is then used.
        size: Height and width in pixels at which the network sees a box.
        ensemble: A second network, with whose scores for the whole image, those below 0 taken as 0, the maxima are multiplied; in
            EDeconvNet FCN-8s.
        ensemble_scale: The scale at which the second network sees the photograph, as a factor of the first one's.
        ensemble_path: Where the second network comes from, to be told in reports; `None`: its name is.
    Raises:
        KerassegError: If an option is out of range or the file is not one of boxes; when run, if an image has no boxes in it,
            or none that counts, they are not of this image, the two networks have different classes, or the network does not take
            boxes of that size.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, §5 (inference); order, limits and ensemble are those of its authors'
        generate_EDeconvNet_CRF_results.m, whose map is one pixel off to the top left by mistake, which this one is not.
    """

    kind: ClassVar[str] = "scores"
    name: ClassVar[str] = "proposals"
    boxes: Any = None
    maximum: int = 50
    minimum_side: int = 112
    size: tuple[int, int] = (224, 224)
    ensemble: Any = None
    ensemble_scale: float = 1.0
    ensemble_path: Any = None

    def __post_init__(self):
        object.__setattr__(self, "size", checked_size(self.size, "proposals"))
        checked_count(self.maximum, "maximum of proposals", 50)
        checked_count(self.minimum_side, "smallest side of proposals", 112)
        if not isinstance(self.ensemble, (keras.Model, type(None))):
            raise KerassegError(
                f"ensemble {self.ensemble!r} of proposals: expected a network, such as kerasseg.load_model('fcn8s.keras')"
            )
        if not (isinstance(self.ensemble_scale, (int, float)) and 0 < self.ensemble_scale < math.inf):
            raise KerassegError(f"ensemble_scale {self.ensemble_scale!r} of proposals: expected a positive number, such as 1.0")
        object.__setattr__(self, "boxes", "dense" if self.boxes is None else self.boxes)
        if isinstance(self.boxes, (str, Path)) and self.boxes not in GENERATORS:
            listed = _File(read_boxes(self.boxes))
            listed.source = str(self.boxes)
            object.__setattr__(self, "boxes", listed)

    def to_json(self) -> dict:
        """Name and options as JSON can hold them: of boxes and the second network where they come from."""
        return {
            "name": self.name,
            "boxes": self._source,
            "maximum": self.maximum,
            "minimum_side": self.minimum_side,
            "size": list(self.size),
            "ensemble": self.ensemble and str(self.ensemble_path or self.ensemble.name),
            "ensemble_scale": self.ensemble and self.ensemble_scale,
        }

    def scores(self, model, view):
        """See `Method`."""
        classes = [_num_classes(each) for each in (model, self.ensemble or model)]
        if classes[0] != classes[1]:
            raise KerassegError(
                f"the network of --ensemble has {classes[1]} classes, that of the proposals {classes[0]}: expected as many"
            )
        *_, total = self.maxima(model, view, self.boxes_of(view))
        return tf.constant(total if self.ensemble is None else total * self._second(view))

    def check_names(self, names):
        """See `Method`."""
        if not isinstance(self.boxes, Mapping):
            return
        owners = {}
        for name in names:
            self._counting(check_boxes(self._listed(name), None, _of(name)), name)
            key = key_of(self.boxes, name)
            if owners.setdefault(key, name) != name:
                raise KerassegError(
                    f"boxes of {self._source} for '{key}' would be those of both '{owners[key]}' and '{name}': list them under "
                    "these names"
                )

    def boxes_of(self, view: View) -> np.ndarray:
        """Finds or generates the boxes that count for a photograph.

        Args:
            view: The picture.
        Returns:
            Shape `(N, 4)`, in pixels of the photograph, in their order; at least one.
        Raises:
            KerassegError: If it has no boxes, none counts, or they are not of this image.
        """
        if not isinstance(self.boxes, str):
            boxes = check_boxes(self._listed(view.name), view.photograph_size, _of(view.name))
        elif self.boxes == "dense":
            boxes = dense_windows(view.photograph_size)
        else:
            boxes = selective_search(np.rint(np.asarray(view.photograph)[..., :3]).astype(np.uint8))
        return self._counting(boxes, view.name)

    def _listed(self, name: str | None):
        """The boxes that were given for a photograph of that name."""
        if not isinstance(self.boxes, Mapping):
            return self.boxes
        if name is None:
            raise KerassegError(f"boxes of {self._source} go by the images' names: pass name=, or the path of the image")
        return boxes_of(self.boxes, name, self._source)

    def _counting(self, boxes: np.ndarray, name: str | None) -> np.ndarray:
        """The first of the boxes whose sides are long enough."""
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
        counts = sides >= self.minimum_side
        # The whole photograph, which is the first.
        counts[0] |= isinstance(self.boxes, str) and self.boxes == "dense"
        if not counts.any():
            raise KerassegError(
                f"none of {len(boxes)} boxes{_of(name)} has both sides of {self.minimum_side} pixels or more: use a larger "
                f"photograph, or --min-side {sides.max()} or less"
            )
        return boxes[counts][: self.maximum]

    def maxima(self, model, view: View, boxes: np.ndarray) -> Iterator[np.ndarray]:
        """Adds up boxes.

        Args:
            model: The network.
            view: The picture.
            boxes: Shape `(N, 4)`, in pixels of its photograph.
        Yields:
            After each box the largest scores so far, `(h, w, C)` float32 at the view's size: the same array, which changes.
        """
        total = None
        for box, scores in self.run_boxes(model, view.image, _in_view(boxes, view)):
            total = np.zeros((*view.size, scores.shape[-1]), np.float32) if total is None else total
            keep_maximum(total, box, scores)
            yield total

    def run_boxes(self, model, image, boxes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Runs the network on boxes, a few at a time.

        Args:
            model: The network.
            image: Shape `(H, W, 3)`, RGB 0–255.
            boxes: Shape `(N, 4)`, in pixels of the image.
        Yields:
            Each box with its scores, `(height, width, C)` float32 at the size of the box.
        """
        self._check_network(model)
        image = np.asarray(image, np.float32)
        for first in range(0, len(boxes), _BATCH):
            some = boxes[first : first + _BATCH]
            crops = [resized(cut_box(image, box), self.size, antialias=True) for box in some]
            scored = run_network(model, tf.stack(crops), f" (a proposal, at size={self.size})")
            for box, scores in zip(some, scored, strict=True):
                left, top, right, bottom = box
                yield box, resized(scores, (bottom - top, right - left), antialias=True).numpy()

    def _check_network(self, model) -> None:
        """Refuses a size that the network says it does not take."""
        fitting = self.size
        for layer in model.layers:
            if isinstance(layer, MinimumSize):
                fitting = tuple(map(layer.fitting, fitting))
        fitting = tuple(fixed or side for fixed, side in zip(model.inputs[0].shape[1:3], fitting, strict=True))
        if fitting != self.size:
            raise KerassegError(f"proposals of size={self.size}: {model.name} does not take it; expected e.g. size={fitting}")

    def _second(self, view: View) -> np.ndarray:
        """The second network's scores, at the view's size."""
        image, scale = view.image, view.scale * self.ensemble_scale
        if self.ensemble_scale != 1:
            # Of the photograph itself, since the view may be a coarse one.
            image = resized(view.photograph, scaled_size(view.photograph_size, scale), antialias=True)
            image = tf.reverse(image, [1]) if view.mirrored else image
        return np.maximum(resized(run_whole(self.ensemble, image[tf.newaxis], f" (scale {scale:g})")[0], view.size).numpy(), 0)

    @property
    def _source(self) -> str:
        if isinstance(self.boxes, (str, _File)):
            return getattr(self.boxes, "source", self.boxes)
        return "a mapping" if isinstance(self.boxes, Mapping) else "an array"


def _in_view(boxes: np.ndarray, view: View) -> np.ndarray:
    """Boxes of a photograph in pixels of its view, each of one pixel at least."""
    width = view.size[1]
    factors = np.array([own / whole for own, whole in zip(view.size[::-1], view.photograph_size[::-1], strict=True)] * 2)
    boxes = np.rint(boxes * factors).astype(np.int32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1) if view.mirrored else boxes


def _of(name: str | None) -> str:
    return f" of image '{name}'" if name else ""


def _num_classes(model) -> int:
    output = model.output
    return (next(iter(output.values())) if isinstance(output, dict) else output).shape[-1]


def keep_maximum(total: np.ndarray, box, scores: np.ndarray) -> None:
    """Raises a map, in place, to the scores of a box where those are larger.

    Args:
        total: Shape `(H, W, C)`.
        box: Left, top, right, bottom in pixels, right and bottom exclusive; it may leave the map.
        scores: Shape `(bottom - top, right - left, C)`.
    """
    inside, within = inside_of(total.shape, box)
    np.maximum(total[inside], scores[within], out=total[inside])


def progressive(
    model, image, boxes, counts: Sequence[int], method: Proposals | None = None, *, scale: float = 1.0, name: str | None = None
) -> list[np.ndarray]:
    """Labels an image from more and more boxes, the largest first.

    Args:
        model: As for `predict`.
        image: As for `predict`.
        boxes: As for `Proposals`; of equal area, the earlier comes first.
        counts: After how many boxes to look, ascending, each 1 to the number of boxes that count.
        method: Its `minimum_side`, `maximum` and `size` count: boxes are skipped and limited first, then put in order.
        scale: Factor by which the image is resized before the network.
        name: As for `predict`.
    Returns:
        One array `(H, W)` int32 of classes per count, at the image's own size.
    Raises:
        KerassegError: If the counts do not ascend, or exceed the number of boxes that count; or as `predict` with `Proposals`.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, Figure 6.
    """
    method = dataclasses.replace(method or Proposals(), boxes=boxes)
    name, photograph = name_of(image, name), tf.constant(image_array(image), tf.float32)
    size = tuple(photograph.shape[:2])
    view = View(resized(photograph, scaled_size(size, scale), antialias=True), photograph, scale, name=name)
    used, counts = by_size(method.boxes_of(view)), list(counts)
    if not counts or counts[0] < 1 or counts != sorted(set(counts)) or counts[-1] > len(used):
        raise KerassegError(f"counts {counts}: expected ascending numbers from 1 to {len(used)}, the number of boxes that are used")
    found = []
    for done, total in enumerate(method.maxima(model, view, used[: counts[-1]]), start=1):
        if done in counts:
            found.append(resized(total, size).numpy().argmax(-1).astype(np.int32))
    return found
