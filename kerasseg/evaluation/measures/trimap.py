"""Bands around the true boundaries, of several widths."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kerasseg.evaluation.measures.base import Measure, Result, finite, percent
from kerasseg.metrics import scores, trimap_matrices, trimap_widths


@dataclasses.dataclass(frozen=True)
class Trimap(Result):
    """How well an evaluation's predictions follow the boundaries.

    Args:
        widths: Of the bands, in pixels, as `kerasseg.metrics.trimap_matrices` measures them.
        boundary: What the boundary is, one of `kerasseg.metrics.TRIMAP_BOUNDARIES`.
        matrices: A confusion matrix for each width, over all images, `(widths, C, C)` int64; row: truth, column: prediction.
        exclude: Classes that the means leave out.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, Fig. 5.
    """

    key: ClassVar[str] = "trimap"
    widths: tuple[float, ...]
    boundary: str
    matrices: np.ndarray
    exclude: tuple[int, ...] = ()

    def rows(self) -> list[dict]:
        """What is known of each band: `width`, `num_pixels`, `mean_iou` and `pixel_accuracy` (0–1, NaN of no pixels)."""
        found = []
        for width, matrix in zip(self.widths, self.matrices, strict=True):
            result = scores(matrix, exclude=self.exclude)
            rates = {name: result[name] for name in ("mean_iou", "pixel_accuracy")}
            found.append({"width": width, "num_pixels": int(matrix.sum()), **rates})
        return found

    def table(self) -> list[str]:
        """A head and one line for each width, in percent."""
        lines = [f"{f'trimap ({self.boundary}), px':<20}  {'pixels':>12}  {'mean IoU %':>10}  {'accuracy %':>10}"]
        for row in self.rows():
            rates = (percent(row[name]) for name in ("mean_iou", "pixel_accuracy"))
            lines.append(f"{row['width']:<20g}  {row['num_pixels']:>12}  " + "  ".join(f"{rate:>10}" for rate in rates))
        return lines

    def to_json(self) -> dict:
        """All of it as JSON can hold it; the matrices, which would be many, are left out."""
        rows = [{**row, **{name: finite(row[name]) for name in ("mean_iou", "pixel_accuracy")}} for row in self.rows()]
        return {"boundary": self.boundary, "bands": rows}


class TrimapCounts(Measure):
    """Counts the pixels of each band.

    Args:
        widths: In pixels, each at least 1, ascending.
        boundary: What the boundaries are, one of `kerasseg.metrics.TRIMAP_BOUNDARIES`.
        num_classes: C.
        exclude: Classes that the means leave out.
    Raises:
        KerassegError: If the widths are wrong.
    """

    def __init__(self, widths: Sequence[float], boundary: str, num_classes: int, exclude: tuple[int, ...] = ()):
        self._widths, self._boundary, self._exclude = trimap_widths(widths), boundary, exclude
        self._matrices = np.zeros((len(self._widths), num_classes, num_classes), np.int64)

    def add(self, label, prediction, confidence):
        """See `Measure`."""
        self._matrices += trimap_matrices(label, prediction, self._widths, self._matrices.shape[-1], boundary=self._boundary)

    def result(self) -> Trimap:
        """See `Measure`."""
        return Trimap(self._widths, self._boundary, self._matrices, self._exclude)
