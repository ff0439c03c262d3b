"""Scoring a network on a data set, image by image, at the photographs' own size."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.inference import Inference, predict_with_classes
from kerasseg.evaluation.trimap import Trimap
from kerasseg.labels import IGNORE
from kerasseg.metrics import (
    SCORES,
    boundary_region,
    check_boundary_distance,
    confusion_matrix,
    scores,
    trimap_matrices,
    trimap_widths,
)


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """How well one image came out.

    Args:
        id: The example's name.
        mean_iou: Mean IoU over the classes that its truth or prediction has, 0–1; NaN if no pixel is labelled.
        pixel_accuracy: Share of labelled pixels that are right, 0–1; NaN likewise.
    """

    id: str
    mean_iou: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True)
class Regions:
    """The pixels of an evaluation in two parts: close to the boundary of objects, and the rest.

    Args:
        distance: Up to how many pixels from a boundary is close, as `kerasseg.metrics.boundary_region` measures it.
        boundary: Confusion matrix of the close pixels, `(C, C)` int64; row: truth, column: prediction.
        internal: That of the others. The two add up to the matrix of all.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, §4.1.1 (3), Table 5.
    """

    distance: float
    boundary: np.ndarray
    internal: np.ndarray

    def scores(self) -> dict[str, dict]:
        """What `kerasseg.metrics.scores` makes of each part, by the name of the part."""
        return {"boundary": scores(self.boundary), "internal": scores(self.internal)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        matrix: Confusion matrix over all images, `(C, C)` int64; row: truth, column: prediction.
        labels: The data set's label table: `name` and `classes` are used.
        scores: What `kerasseg.metrics.scores` makes of the matrix.
        images: One score per image, in the order of the data.
        inference: How the network was run.
        regions: The same in two parts, if that was asked for.
        trimap: The same in bands around the boundaries, if that was asked for.
    """

    matrix: np.ndarray
    labels: object
    scores: dict
    images: list[ImageScore]
    inference: Inference = Inference()
    regions: Regions | None = None
    trimap: Trimap | None = None

    def table(self) -> str:
        """One line per class and one per score, all in percent; `-` for classes that do not occur."""
        names = [*self.labels.classes, *SCORES]
        width = max(len(name) for name in (*names, "class"))
        rows = zip(self.labels.classes, self.scores["per_class_iou"], self.scores["per_class_accuracy"], strict=True)
        lines = [f"{'class':<{width}}  {'IoU %':>8}  {'accuracy %':>10}"]
        lines += [f"{name:<{width}}  {_percent(iou):>8}  {_percent(accuracy):>10}" for name, iou, accuracy in rows]
        lines += ["", *(f"{name:<{width}}  {_percent(self.scores[name]):>8}" for name in SCORES)]
        if self.regions:
            lines += [
                "",
                f"{f'up to {self.regions.distance:g} px from a boundary':<{width}}  {'mean IoU %':>10}  {'accuracy %':>10}",
            ]
            for name, part in self.regions.scores().items():
                lines.append(f"{name:<{width}}  {_percent(part['mean_iou']):>10}  {_percent(part['pixel_accuracy']):>10}")
        if self.trimap:
            lines += ["", *self.trimap.table()]
        return "\n".join(lines)

    def summary(self) -> dict[str, float]:
        """The four scores of the paper, 0–1."""
        return {name: float(self.scores[name]) for name in SCORES}

    def to_json(self) -> dict:
        """Everything as plain numbers, lists and strings; `None` for NaN, which JSON does not have."""
        return {
            "data": self.labels.name,
            "inference": self.inference.to_json(),
            "num_images": len(self.images),
            "num_pixels": int(self.matrix.sum()),
            **{name: _finite(self.scores[name]) for name in SCORES},
            "classes": list(self.labels.classes),
            "per_class_iou": [_finite(value) for value in self.scores["per_class_iou"]],
            "per_class_accuracy": [_finite(value) for value in self.scores["per_class_accuracy"]],
            "confusion_matrix": self.matrix.tolist(),
            "images": [{key: _finite(value) for key, value in dataclasses.asdict(image).items()} for image in self.images],
            **({"boundary": self._regions_json()} if self.regions else {}),
            **({"trimap": self.trimap.to_json()} if self.trimap else {}),
        }

    def _regions_json(self) -> dict:
        found = {"distance": self.regions.distance}
        for name, part in self.regions.scores().items():
            matrix = getattr(self.regions, name)
            found[name] = {
                "num_pixels": int(matrix.sum()),
                "pixel_accuracy": _finite(part["pixel_accuracy"]),
                "mean_iou": _finite(part["mean_iou"]),
                "per_class_iou": [_finite(value) for value in part["per_class_iou"]],
                "confusion_matrix": matrix.tolist(),
            }
        return found


def evaluate(
    model,
    data,
    inference: Inference | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    boundary: float | None = None,
    trimap: Sequence[float] | None = None,
    trimap_boundary: str = "labels",
) -> Evaluation:
    """Scores a network on a data set.

    Memory does not grow with the data: one image at a time, one confusion matrix for all.

    Args:
        model: As for `predict`.
        data: Data set with labels: `len`, indexing to examples, and `labels`, its label table.
        inference: How to run the network; `None`: as it is, at scale 1.
        progress: Called with (images done, images in all) after each image.
        limit: Only so many images, the first ones.
        boundary: Up to how many pixels from the boundary of objects to score apart from the rest; `None`: not.
        trimap: Widths of bands around the boundaries to score, in pixels, ascending, such as `range(1, 41)`; `None`: none.
        trimap_boundary: What the boundaries are, one of `kerasseg.metrics.TRIMAP_BOUNDARIES`.
    Returns:
        Scores at the labels' own size, pixels with label 255 left out.
    Raises:
        KerassegError: If there are no images, an image has no label or one of another size, a label is out of range, the
            network's number of classes is not the data set's, or there is no photograph for the CRF.
    """
    inference = inference or Inference()
    total = _check_request(data, inference, limit, boundary)
    classes = data.labels.num_classes
    matrix, close, images = *np.zeros((2, classes, classes), np.int64), []
    bands = None if trimap is None else Trimap(trimap_widths(trimap), trimap_boundary, 0)
    for index in range(total):
        example = data[index]
        prediction = _prediction(model, example, data.labels, inference)
        one = _image_matrix(example, example.label, prediction, data.labels)
        matrix += one
        if boundary is not None:
            label = np.where(boundary_region(example.label, boundary), example.label, IGNORE)
            close += _image_matrix(example, label, prediction, data.labels)
        if bands is not None:
            found = trimap_matrices(example.label, prediction, bands.widths, classes, boundary=trimap_boundary)
            bands = dataclasses.replace(bands, matrices=bands.matrices + found)
        result = scores(one)
        images.append(ImageScore(example.id, result["mean_iou"], result["pixel_accuracy"]))
        if progress:
            progress(index + 1, total)
    regions = None if boundary is None else Regions(boundary, close, matrix - close)
    return Evaluation(matrix, data.labels, scores(matrix), images, inference, regions, bands)


def _check_request(data, inference: Inference, limit: int | None, boundary: float | None) -> int:
    """Refuses, not after hours of work, what cannot be done; counts the images."""
    if limit is not None and limit < 1:
        raise KerassegError(f"limit {limit}: expected at least 1 image, or None for all")
    total = len(data) if limit is None else min(limit, len(data))
    if not total:
        raise KerassegError(f"nothing to evaluate: data set '{data.labels.name}' has no images in this split")
    if boundary is not None:
        check_boundary_distance(boundary)
    if inference.crf is not None and not getattr(data, "photographs", True):
        raise KerassegError(f"data set '{data.labels.name}' holds maps of a network, no photographs: expected no CRF (--crf none)")
    inference.method.check_names(getattr(data, "ids", ())[:total])
    return total


def _prediction(model, example, labels, inference) -> np.ndarray:
    """The classes of one image's pixels, once it is known that they can be scored."""
    if example.label is None:
        raise KerassegError(f"image '{example.id}' has no label: evaluate on a split whose labels are public")
    if example.label.shape != example.image.shape[:2]:
        raise KerassegError(
            f"label of '{example.id}' is {example.label.shape}, its image {example.image.shape[:2]}: expected the same"
        )
    prediction, num_classes = predict_with_classes(model, example.image, inference, example.id)
    if num_classes != labels.num_classes:
        raise KerassegError(
            f"the network has {num_classes} classes, data set '{labels.name}' has {labels.num_classes}: expected as many; "
            "evaluate on the data it was trained for, or start a training from it with --init"
        )
    return prediction.numpy()


def _image_matrix(example, label, prediction, labels) -> np.ndarray:
    """The confusion matrix of one image."""
    try:
        return confusion_matrix(label, prediction, labels.num_classes)
    except KerassegError as error:
        raise KerassegError(f"image '{example.id}': {error}") from error


def _percent(value):
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _finite(value):
    """A string as it is; a number as JSON can hold it."""
    if isinstance(value, str):
        return value
    return None if math.isnan(value) else float(value)
