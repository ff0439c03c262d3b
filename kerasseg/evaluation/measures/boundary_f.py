"""How well the contours of each class agree: the boundary F measure, image by image."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.measures.base import Measure, Result, finite, percent
from kerasseg.metrics import boundary_f


@dataclasses.dataclass(frozen=True)
class BoundaryF(Result):
    """The boundary F measure of every image and class.

    Args:
        tolerance: How far a contour may lie from the true one, in pixels; `None`: 0.75 % of each image's diagonal.
        values: Shape `(N, C)`, 0–1; NaN where an image has the class neither in truth nor in prediction.
        exclude: Classes that the mean leaves out.
    Reference:
        Csurka et al. 2013, BMVC, "What is a good evaluation measure for semantic segmentation?": one value for each image and
        class. The mean over images is taken first, then that over classes, so that rare classes count as much as frequent ones.
    """

    key: ClassVar[str] = "boundary_f"
    column: ClassVar[str | None] = "boundary F %"
    tolerance: float | None
    values: np.ndarray
    exclude: tuple[int, ...] = ()

    def per_class(self) -> np.ndarray:
        """The mean over the images that have the class; NaN for a class that none has."""
        known = ~np.isnan(self.values)
        count = known.sum(0)
        total = np.where(known, self.values, 0.0).sum(0)
        return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)

    @property
    def mean(self) -> float:
        """The mean over the classes that occur and are not excluded; NaN if there is none."""
        known = np.delete(self.per_class(), list(self.exclude))
        known = known[~np.isnan(known)]
        return float(known.mean()) if known.size else math.nan

    def to_json(self) -> dict:
        """See `Result`."""
        rates = {"mean": finite(self.mean), "per_class": finite(self.per_class())}
        return {"tolerance": self.tolerance, **rates, "num_images": len(self.values)}

    def table(self) -> list[str]:
        """See `Result`."""
        tolerance = "0.75 % of the diagonal" if self.tolerance is None else f"{self.tolerance:g} px"
        return [f"boundary F within {tolerance}, mean of the classes: {percent(self.mean)} %"]


class BoundaryFValues(Measure):
    """Keeps the values of each image.

    Args:
        tolerance: As in `BoundaryF`.
        num_classes: C.
        exclude: Classes that the mean leaves out.
    Raises:
        KerassegError: If the tolerance is no positive number.
    """

    def __init__(self, tolerance: float | None, num_classes: int, exclude: tuple[int, ...] = ()):
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise KerassegError(
                f"boundary F tolerance {tolerance}: expected pixels above 0, such as 3, or None for 0.75 % of the diagonal"
            )
        self._tolerance, self._classes, self._exclude = tolerance, num_classes, exclude
        self._values = []

    def add(self, label, prediction, confidence):
        """See `Measure`."""
        self._values.append(boundary_f(label, prediction, self._classes, self._tolerance))

    def result(self) -> BoundaryF:
        """See `Measure`."""
        return BoundaryF(self._tolerance, np.reshape(self._values, (-1, self._classes)), self._exclude)
