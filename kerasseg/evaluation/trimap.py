"""Scores inside bands around the true boundaries, of several widths: their table, and their curve."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from kerasseg.metrics import scores
from kerasseg.runs import atomic_path


@dataclasses.dataclass(frozen=True)
class Trimap:
    """How well an evaluation's predictions follow the boundaries.

    Args:
        widths: Of the bands, in pixels, as `kerasseg.metrics.trimap_matrices` measures them.
        boundary: What the boundary is, one of `kerasseg.metrics.TRIMAP_BOUNDARIES`.
        matrices: A confusion matrix for each width, over all images, `(widths, C, C)` int64; row: truth, column: prediction.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, Fig. 5.
    """

    widths: tuple[float, ...]
    boundary: str
    matrices: np.ndarray

    def rows(self) -> list[dict]:
        """What is known of each band: `width`, `num_pixels`, `mean_iou` and `pixel_accuracy` (0–1, NaN of no pixels)."""
        found = []
        for width, matrix in zip(self.widths, self.matrices, strict=True):
            result = scores(matrix)
            rates = {name: result[name] for name in ("mean_iou", "pixel_accuracy")}
            found.append({"width": width, "num_pixels": int(matrix.sum()), **rates})
        return found

    def table(self) -> list[str]:
        """A head and one line for each width, in percent."""
        lines = [f"{f'trimap ({self.boundary}), px':<20}  {'pixels':>12}  {'mean IoU %':>10}  {'accuracy %':>10}"]
        for row in self.rows():
            rates = (_percent(row[name]) for name in ("mean_iou", "pixel_accuracy"))
            lines.append(f"{row['width']:<20g}  {row['num_pixels']:>12}  " + "  ".join(f"{rate:>10}" for rate in rates))
        return lines

    def to_json(self) -> dict:
        """All of it as JSON can hold it; the matrices, which would be many, are left out."""
        bands = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in self.rows()]
        return {"boundary": self.boundary, "bands": bands}


def draw_trimaps(trimaps: dict[str, Trimap], path) -> None:
    """Draws mean IoU and pixel accuracy over the width of the band, as a PNG that appears whole or not at all. Needs matplotlib.

    Args:
        trimaps: Name for the legend → what was found.
        path: The picture.
    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    # Without pyplot: no figure of the process's own, no window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, title in zip(axes, ("mean_iou", "pixel_accuracy"), ("mean IoU", "pixel accuracy"), strict=True):
        for label, trimap in trimaps.items():
            rows = trimap.rows()
            axis.plot([row["width"] for row in rows], [100 * row[name] for row in rows], "o-", markersize=3, label=label)
        axis.set(xlabel="width of the band, pixels", ylabel=f"{title} in the band, %")
        axis.grid(alpha=0.3)
    axes[0].legend()
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
