"""The pixels close to the boundaries of objects, scored apart from the rest."""

import dataclasses
from typing import ClassVar

import numpy as np

from kerasseg.evaluation.measures.base import Measure, Result, finite, percent
from kerasseg.labels import IGNORE
from kerasseg.metrics import boundary_region, check_boundary_distance, confusion_matrix, scores


@dataclasses.dataclass(frozen=True)
class Regions(Result):
    """The pixels of an evaluation in two parts: close to the boundary of objects, and the rest.

    Args:
        distance: Up to how many pixels from a boundary is close, as `kerasseg.metrics.boundary_region` measures it.
        boundary: Confusion matrix of the close pixels, `(C, C)` int64; row: truth, column: prediction.
        internal: That of the others. The two add up to the matrix of all.
        exclude: Classes that the means leave out.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, §4.1.1 (3), Table 5.
    """

    key: ClassVar[str] = "boundary"
    distance: float
    boundary: np.ndarray
    internal: np.ndarray
    exclude: tuple[int, ...] = ()

    def scores(self) -> dict[str, dict]:
        """What `kerasseg.metrics.scores` makes of each part, by the name of the part."""
        return {name: scores(getattr(self, name), exclude=self.exclude) for name in ("boundary", "internal")}

    def to_json(self) -> dict:
        """See `Result`."""
        found = {"distance": self.distance}
        for name, part in self.scores().items():
            matrix = getattr(self, name)
            rates = {key: finite(part[key]) for key in ("pixel_accuracy", "mean_iou", "per_class_iou")}
            found[name] = {"num_pixels": int(matrix.sum()), **rates, "confusion_matrix": matrix.tolist()}
        return found

    def table(self) -> list[str]:
        """See `Result`."""
        head = f"up to {self.distance:g} px from a boundary"
        lines = [f"{head}  {'mean IoU %':>10}  {'accuracy %':>10}"]
        for name, part in self.scores().items():
            lines.append(f"{name:<{len(head)}}  {percent(part['mean_iou']):>10}  {percent(part['pixel_accuracy']):>10}")
        return lines


class RegionCounts(Measure):
    """Counts the two parts.

    Args:
        distance: In pixels, at least 1.
        num_classes: C.
        exclude: Classes that the means leave out.
    Raises:
        KerassegError: If the distance is below 1 or infinite.
    """

    def __init__(self, distance: float, num_classes: int, exclude: tuple[int, ...] = ()):
        check_boundary_distance(distance)
        self._distance, self._classes, self._exclude = distance, num_classes, exclude
        self._close, self._all = np.zeros((2, num_classes, num_classes), np.int64)

    def add(self, label, prediction, confidence):
        """See `Measure`."""
        close = np.where(boundary_region(label, self._distance), label, IGNORE)
        self._close += confusion_matrix(close, prediction, self._classes)
        self._all += confusion_matrix(label, prediction, self._classes)

    def result(self) -> Regions:
        """See `Measure`."""
        return Regions(self._distance, self._close, self._all - self._close, self._exclude)
