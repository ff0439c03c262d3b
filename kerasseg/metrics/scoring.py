"""The four scores of semantic segmentation, all from one confusion matrix, or from the three counts of each class that they need.

Everything here takes the counts of one image as well as those of a data set, whose counts are the sum of its images'.
"""

from collections.abc import Sequence

import numpy as np

from kerasseg.errors import KerassegError

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def scores(matrix, *, exclude: Sequence[int] = ()) -> dict:
    """Computes the four scores, and the two of each class, from a confusion matrix.

    A class that the truth lacks has no accuracy; one that the prediction lacks as well has no IoU. Such NaN are left out of
    the means. A class that is predicted but never true has IoU 0, which counts, unless it is excluded.

    Args:
        matrix: Shape `(C, C)`, counts of pixels; row: truth, column: prediction.
        exclude: Classes to leave out of the means over classes, whatever they score: SIFT Flow's three that its test images
            lack; class 0 for means without the background.
    Returns:
        `pixel_accuracy`, `mean_accuracy`, `mean_iou`, `frequency_weighted_iou`: floats in 0–1, NaN where nothing was counted;
        `per_class_iou`, `per_class_accuracy`: float64 arrays of shape `(C,)`, NaN for absent classes. Of these,
        `mean_accuracy` and `mean_iou` alone depend on `exclude`: the pixels of an excluded class stay pixels.
    Raises:
        KerassegError: If the matrix is not square or not of counts, or `exclude` names no class or all of them.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §5 "Metrics", with absent classes as in its authors' score.py; its Table 8 and
        its SIFT Flow rows leave classes out.
    """
    found = scores_of_counts(class_counts(matrix), exclude=exclude)
    return {name: float(value) if name in SCORES else value for name, value in found.items()}


def class_counts(matrix) -> np.ndarray:
    """Reduces a confusion matrix to what the scores need of it.

    Args:
        matrix: Shape `(C, C)`, whole counts of pixels; row: truth, column: prediction.
    Returns:
        Shape `(3, C)`, int64, for each class: pixels that are right, pixels of this true class, pixels predicted so. Those of
        several images add up.
    Raises:
        KerassegError: If the matrix is not square or not of counts.
    """
    matrix = _checked(matrix)
    return np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def scores_of_counts(counts, *, exclude: Sequence[int] = ()) -> dict:
    """Computes the scores from the counts of each class, of many images or samples at once.

    Args:
        counts: Shape `(…, 3, C)`, as `class_counts` gives them.
        exclude: As for `scores`.
    Returns:
        As for `scores`, but the four as arrays of shape `(…)`, those of each class of shape `(…, C)`; all float64.
    Raises:
        KerassegError: If the shape is another, or `exclude` names no class or all of them.
    """
    counts = np.asarray(counts)
    if counts.ndim < 2 or counts.shape[-2] != 3:
        raise KerassegError(f"class counts have shape {counts.shape}: expected (…, 3, C), as class_counts gives them")
    kept = np.ones(counts.shape[-1], bool)
    kept[check_excluded(exclude, counts.shape[-1])] = False
    # Sums stay integers, so that counts beyond 2**53 lose nothing before the division.
    hits, truth, predicted = (counts[..., row, :] for row in range(3))
    iou = _ratio(hits, truth + predicted - hits)
    accuracy = _ratio(hits, truth)
    weighted = np.where(truth > 0, truth * iou, 0.0).sum(-1)
    return {
        "pixel_accuracy": _ratio(hits.sum(-1), truth.sum(-1)),
        "mean_accuracy": _mean(accuracy, kept),
        "mean_iou": _mean(iou, kept),
        "frequency_weighted_iou": _ratio(weighted, truth.sum(-1)),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
    }


def grouped(matrix, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Merges classes of a confusion matrix, so that a class taken for another of its group is right.

    Args:
        matrix: Shape `(C, C)`, whole counts of pixels; row: truth, column: prediction.
        groups: The classes of each of G groups; every class is in one of them.
    Returns:
        Shape `(G, G)`, int64. No pixel is lost: `scores` of it are those of the groups.
    Raises:
        KerassegError: If the matrix is not square or not of counts, or a class is in no group, in two, or unknown.
    Example:
        >>> grouped([[4, 1, 0], [2, 3, 0], [0, 1, 1]], [[0, 1], [2]]).tolist()
        [[10, 0], [1, 1]]
    """
    matrix = _checked(matrix)
    members = [int(member) for group in groups for member in group]
    if sorted(members) != list(range(len(matrix))):
        raise KerassegError(f"groups hold the classes {members}: expected each of 0 to {len(matrix) - 1} in one group")
    belongs = np.zeros((len(matrix), len(groups)), np.int64)
    for number, group in enumerate(groups):
        belongs[list(group), number] = 1
    return belongs.T @ matrix @ belongs


def check_excluded(exclude: Sequence[int], num_classes: int) -> list[int]:
    """Refuses classes to leave out that do not exist, and leaving out all.

    Raises:
        KerassegError: If a number is no class, or no class would be left.
    """
    excluded = sorted({int(number) for number in exclude})
    for number in excluded:
        if not 0 <= number < num_classes:
            raise KerassegError(f"class {number} to exclude: expected one of 0 to {num_classes - 1}")
    if len(excluded) == num_classes:
        raise KerassegError(f"all {num_classes} classes are excluded: leave at least one to score")
    return excluded


def _checked(matrix) -> np.ndarray:
    """The matrix as int64."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise KerassegError(f"confusion matrix has shape {matrix.shape}: expected (C, C)")
    with np.errstate(invalid="ignore"):
        counts = matrix.astype(np.int64)
    if not np.array_equal(counts, matrix) or counts.min(initial=0) < 0:
        raise KerassegError("confusion matrix holds other than whole numbers from 0: expected counts of pixels, not shares")
    return counts


def _ratio(part, whole):
    """The quotient; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values, kept):
    """The mean over the last axis of what is kept and not NaN; NaN (and no warning) if that is nothing."""
    known = kept & ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))
