"""Whether a network is right as often as it is sure."""

import dataclasses
import math
import operator
from typing import ClassVar

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.measures.base import Measure, Result, finite, percent
from kerasseg.metrics import calibration_counts, calibration_error

BINS = 15
"""How many there are unless told otherwise, as in the paper."""


@dataclasses.dataclass(frozen=True)
class Calibration(Result):
    """The pixels of an evaluation by how sure the network was of them.

    Args:
        counts: Shape `(bins, 3)`: pixels, right pixels, and sum of confidences of each bin of equal width, from 0 to 1.
    Reference:
        Guo et al. 2017, arXiv:1706.04599, §2: expected calibration error, reliability diagram.
    """

    key: ClassVar[str] = "calibration"
    counts: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, 0–1."""
        return calibration_error(self.counts)

    @property
    def mean_confidence(self) -> float:
        """The mean over all pixels, 0–1; NaN of no pixels."""
        return _share(self.counts[:, 2].sum(), self.counts[:, 0].sum())

    def to_json(self) -> dict:
        """See `Result`."""
        edges = np.linspace(0, 1, len(self.counts) + 1)
        bins = [
            {
                "low": float(low),
                "high": float(high),
                "num_pixels": int(pixels),
                "accuracy": finite(_share(right, pixels)),
                "confidence": finite(_share(total, pixels)),
            }
            for low, high, (pixels, right, total) in zip(edges, edges[1:], self.counts, strict=False)
        ]
        return {"error": finite(self.error), "mean_confidence": finite(self.mean_confidence), "bins": bins}

    def table(self) -> list[str]:
        """See `Result`."""
        rates = f"{percent(self.error)} %, mean confidence {percent(self.mean_confidence)} %"
        return [f"expected calibration error ({len(self.counts)} bins): {rates}"]


class CalibrationCounts(Measure):
    """Counts the bins.

    Args:
        bins: How many, from 0 to 1.
    Raises:
        KerassegError: If that is no such whole number.
    """

    needs_confidence: ClassVar[bool] = True

    def __init__(self, bins: int = BINS):
        try:
            count = operator.index(bins)
        except TypeError:
            count = 0
        if not 1 <= count <= 1000:
            raise KerassegError(f"calibration bins {bins}: expected 1 to 1000, a whole number, such as {BINS}")
        self._counts = np.zeros((count, 3))

    def add(self, label, prediction, confidence):
        """See `Measure`."""
        self._counts += calibration_counts(label, confidence, prediction, len(self._counts))

    def result(self) -> Calibration:
        """See `Measure`."""
        return Calibration(self._counts)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
