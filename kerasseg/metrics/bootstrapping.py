"""How sure a score is, and whether two models differ: images drawn again and again from those that were scored."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.metrics.scoring import SCORES, scores_of_counts

# Images drawn in one go, all replicates together: tens of megabytes, whatever the number of images.
_DRAWN_AT_ONCE = 1 << 21


class Interval(NamedTuple):
    """Between which two values a score lies, 0–1; both NaN if it could never be computed."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much one model scores above another.

    Args:
        difference: Score of the first less score of the second, over all images, −1 to 1.
        low: Lower end of its interval.
        high: Upper end.
        p_value: Two-sided: how often drawn images would say that the sign is another if it were so, at most 1.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap(counts, *, exclude: Sequence[int] = (), replicates: int = 1000, level: float = 0.95, seed: int = 0) -> dict:
    """Confidence intervals of the scores, from how they vary over the images.

    As many images as there are, are drawn from them with replacement, and scored together; many times over. The interval is the
    middle part of what was found (percentile method). It says how much another draw of test images of the same kind would
    change the score, not how much another training would.

    Args:
        counts: Shape `(N, 3, C)`, `class_counts` of each image.
        exclude: Classes left out of the means, as for `scores`.
        replicates: How many draws.
        level: Share of the draws inside the interval, between 0 and 1.
        seed: The same seed gives the same intervals.
    Returns:
        Each of `SCORES` → `Interval`; `"per_class_iou"` → float64 array `(C, 2)`, low and high. A draw that lacks a class says
        nothing of it, so the interval of a rare class is over the draws that have it; NaN if none has.
    Raises:
        KerassegError: If there are fewer than two images, or an argument is out of range.
    Reference:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, §13.3.
    """
    counts = _checked(counts, replicates, level)
    names = (*SCORES, "per_class_iou")
    draws = [scores_of_counts(drawn, exclude=exclude) for (drawn,) in _draws((counts,), replicates, seed)]
    ends = {name: _percentiles(np.concatenate([draw[name] for draw in draws]), level) for name in names}
    return {**{name: Interval(*map(float, ends[name])) for name in SCORES}, "per_class_iou": ends["per_class_iou"].T}


def paired_bootstrap(
    counts_a, counts_b, *, exclude: Sequence[int] = (), replicates: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """Whether two models score differently on the same images.

    Each draw takes the same images for both: what makes an image hard for either cancels out, so that the interval of the
    difference is narrower than those of the two scores would suggest.

    Args:
        counts_a: Shape `(N, 3, C)`, `class_counts` of each image by the first model.
        counts_b: The same of the second, the images in the same order.
        exclude: Classes left out of the means, as for `scores`.
        replicates: How many draws.
        level: Share of the draws inside the interval, between 0 and 1.
        seed: The same seed gives the same answer.
    Returns:
        Each of `SCORES` → `Difference`. With R draws of which k say "not above 0" or "not below 0", whichever are fewer, the
        p-value is 2 · (k + 1) / (R + 1), at most 1: equal models have 1, and none less than 2 / (R + 1).
    Raises:
        KerassegError: If the shapes differ, the true classes of an image do (so that the images cannot be the same), there are
            fewer than two images, or an argument is out of range.
    Reference:
        Davison & Hinkley 1997, Bootstrap Methods and their Application, §4.2 and §5.4: the p-value is that of the percentile
        interval which just touches 0.
    """
    a, b = _checked(counts_a, replicates, level), _checked(counts_b, replicates, level)
    if a.shape != b.shape:
        raise KerassegError(f"class counts of shapes {a.shape} and {b.shape}: expected the same images and classes for both models")
    other = np.flatnonzero((a[:, 1] != b[:, 1]).any(-1))
    if other.size:
        raise KerassegError(f"image {other[0]} has other true classes for one model than for the other: expected the same images")
    whole = [scores_of_counts(counts.sum(0), exclude=exclude) for counts in (a, b)]
    draws = []
    for drawn in _draws((a, b), replicates, seed):
        first, second = (scores_of_counts(counts, exclude=exclude) for counts in drawn)
        draws.append({name: first[name] - second[name] for name in SCORES})
    found = {}
    for name in SCORES:
        values = np.concatenate([draw[name] for draw in draws])
        low, high = _percentiles(values, level)
        found[name] = Difference(float(whole[0][name] - whole[1][name]), float(low), float(high), _p_value(values))
    return found


def _checked(counts, replicates: int, level: float) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 3 or counts.shape[1] != 3 or counts.dtype.kind not in "iu":
        raise KerassegError(f"class counts have shape {counts.shape}, {counts.dtype}: expected integers (N, 3, C), one per image")
    if len(counts) < 2:
        raise KerassegError(f"{len(counts)} image(s): expected at least 2, since intervals come from how images differ")
    if replicates < 1:
        raise KerassegError(f"replicates {replicates}: expected at least 1, such as 1000")
    if not 0 < level < 1:
        raise KerassegError(f"level {level}: expected between 0 and 1, such as 0.95")
    return counts.astype(np.int64)


def _draws(parts: Sequence[np.ndarray], replicates: int, seed: int) -> Iterator[list[np.ndarray]]:
    """The summed counts of the drawn images, `(some replicates, 3, C)` for each part, until there are enough."""
    images = len(parts[0])
    generator, block = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        # How often each image was drawn: the multinomial distribution.
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        # Sums of counts, exact up to 2**53 pixels and to their sixteenth digit beyond: integers would take many times longer.
        yield [np.tensordot(times.astype(np.float64), part.astype(np.float64), 1) for part in parts]


def _percentiles(values, level: float) -> np.ndarray:
    """The two ends, `(2, …)`, of the middle part of the draws that are known; NaN where none is."""
    ends = np.full((2, *values.shape[1:]), np.nan)
    known = ~np.isnan(values).all(0)
    ends[:, known] = np.nanquantile(values[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends


def _p_value(differences) -> float:
    known = differences[~np.isnan(differences)]
    if not known.size:
        return float("nan")
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, float(2 * (rarer + 1) / (known.size + 1)))
