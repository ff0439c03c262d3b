"""What can be measured over the images of an evaluation beside its confusion matrix: one file each, all with one interface."""

from collections.abc import Sequence

import numpy as np

from kerasseg.evaluation.measures.base import Measure as Measure
from kerasseg.evaluation.measures.base import Result as Result
from kerasseg.evaluation.measures.boundary_f import BoundaryF as BoundaryF
from kerasseg.evaluation.measures.boundary_f import BoundaryFValues
from kerasseg.evaluation.measures.calibration import BINS, CalibrationCounts
from kerasseg.evaluation.measures.calibration import Calibration as Calibration
from kerasseg.evaluation.measures.regions import RegionCounts
from kerasseg.evaluation.measures.regions import Regions as Regions
from kerasseg.evaluation.measures.trimap import Trimap as Trimap
from kerasseg.evaluation.measures.trimap import TrimapCounts


def requested(
    num_classes: int,
    exclude: tuple[int, ...],
    *,
    boundary: float | None,
    trimap: Sequence[float] | None,
    trimap_boundary: str,
    boundary_f: bool | float | None,
    calibration: bool | int | None,
) -> list[Measure]:
    """Makes the measures that `evaluate` is asked for.

    Args:
        num_classes: C.
        exclude: Classes that means leave out.
        boundary: As for `evaluate`, and so the others.
        trimap: See above.
        trimap_boundary: See above.
        boundary_f: See above.
        calibration: See above.
    Raises:
        KerassegError: If one of them cannot be measured so.
    """
    tolerance = None if _is(boundary_f, True) else boundary_f
    bins = BINS if _is(calibration, True) else calibration
    wanted = (
        None if boundary is None else RegionCounts(boundary, num_classes, exclude),
        None if trimap is None else TrimapCounts(trimap, trimap_boundary, num_classes, exclude),
        None if boundary_f is None or _is(boundary_f, False) else BoundaryFValues(tolerance, num_classes, exclude),
        None if bins is None or _is(bins, False) else CalibrationCounts(bins),
    )
    return [measure for measure in wanted if measure is not None]


def _is(value, truth: bool) -> bool:
    """Whether it is `True` or `False` itself, Python's or NumPy's: equal to 1 or 0, but no number here."""
    return isinstance(value, bool | np.bool_) and bool(value) is truth
