"""How well the outlines of a prediction match the true ones, class by class: the boundary F-score."""

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.metrics.counting import confusion_matrix

# Csurka et al.'s tolerance, as a share of the image's diagonal.
_DIAGONAL_SHARE = 0.0075


def boundary_f(
    label,
    prediction,
    num_classes: int,
    tolerance: float | None = None,
    *,
    ignore_label: int = 255,
    ignored_is_boundary: bool = True,
) -> np.ndarray:
    """Compares the outlines of each class in one image.

    A pixel is on the outline of its class if one of its four neighbours is of another; the image's edge makes no outline.
    Precision is the share of predicted outline that lies within the tolerance of the class's true outline, recall the share
    of true outline within the tolerance of the predicted one, F their harmonic mean. An outline that has no pixels has none
    that are wrong: its share is 1.

    Ignored pixels are on no outline, and predicted outline on them is not counted in the precision, though true outline may
    be matched by it. Hence any prediction that is right wherever there is a label has precision 1; its recall depends on where
    in the ignored pixels it puts the boundary.

    Args:
        label: True classes, shape `(H, W)`, integer.
        prediction: Predicted classes, the same shape.
        num_classes: C.
        tolerance: In pixels from centre to centre, Euclidean, at least 0; a pixel at just this distance matches. `None`: 0.75 %
            of the image's diagonal.
        ignore_label: Label of the pixels to ignore.
        ignored_is_boundary: Whether ignored pixels are "another class" for the labelled ones beside them, so that these are on
            the true outline. In PASCAL VOC, where objects are outlined by a band of them, they are the boundary. `False`, for
            data that ignore whole objects: only two labelled neighbours make outline that is counted, true or predicted.
    Returns:
        Shape `(C,)`, float64, 0–1; 0 where only one of the two maps has the class, NaN where neither does (on pixels not
        ignored). For a data set, the mean over the images where it is not NaN.
    Raises:
        KerassegError: If the shapes differ, a label or prediction is out of range, or the tolerance is negative.
    Reference:
        Csurka, Larlus & Perronnin 2013, "What is a good evaluation measure for semantic segmentation?", BMVC, §2.2. What an
        outline is at ignored pixels and at the image's edge, it does not say.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.ndim != 2 or label.shape != prediction.shape:
        raise KerassegError(f"label has shape {label.shape}, prediction {prediction.shape}: expected (H, W), both the same")
    tolerance = _checked_tolerance(tolerance, label.shape)
    # Says what is out of range; and which classes there are.
    matrix = confusion_matrix(label, prediction, num_classes, ignore_label)
    valid = label != ignore_label
    pairs = None if ignored_is_boundary else valid
    true, predicted = _outline(label, pairs) & valid, _outline(prediction)
    counted = _outline(prediction, pairs) & valid
    precision = _matched(counted, true, prediction, label, tolerance, num_classes)
    recall = _matched(true, predicted, label, prediction, tolerance, num_classes)
    both = precision + recall
    found = np.divide(2 * precision * recall, both, out=np.zeros(num_classes), where=both > 0)
    in_label, in_prediction = matrix.any(1), matrix.any(0)
    found[in_label != in_prediction] = 0
    found[~in_label & ~in_prediction] = np.nan
    return found


def _checked_tolerance(tolerance: float | None, shape: tuple[int, int]) -> float:
    if tolerance is None:
        return _DIAGONAL_SHARE * float(np.hypot(*shape))
    if not 0 <= tolerance < float("inf"):
        raise KerassegError(f"boundary tolerance {tolerance}: expected pixels, at least 0, or None for 0.75 % of the diagonal")
    # No two pixels are farther from each other.
    return float(min(tolerance, sum(shape)))


def _outline(classes, valid=None) -> np.ndarray:
    """Where a pixel differs from one of its four neighbours; of pairs that are both valid, if that is given."""
    found = np.zeros(classes.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = classes[first] != classes[second]
        if valid is not None:
            differ &= valid[first] & valid[second]
        found[first] |= differ
        found[second] |= differ
    return found


def _matched(these, those, classes_of_these, classes_of_those, tolerance: float, num_classes: int) -> np.ndarray:
    """For each class, the share of these pixels that has one of those of the same class within the tolerance; 1 of none."""
    from scipy.spatial import cKDTree

    reach = tolerance + 1
    # The class as a third dimension, in which even neighbours are out of reach: one search for all classes.
    places, targets = (
        np.column_stack([*np.nonzero(mask), classes[mask].astype(np.float64) * 2 * reach])
        for mask, classes in ((these, classes_of_these), (those, classes_of_those))
    )
    near = cKDTree(targets).query(places, distance_upper_bound=reach)[0] <= tolerance
    index = classes_of_these[these].astype(np.int64)
    sizes = np.bincount(index, minlength=num_classes)
    return np.divide(np.bincount(index, near, minlength=num_classes), sizes, out=np.ones(num_classes), where=sizes > 0)
