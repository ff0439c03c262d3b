"""How well a prediction follows the boundaries of objects: the pixels near them, counted apart."""

from collections.abc import Sequence

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.metrics.counting import confusion_matrix

# Pixels up to which a boundary is found by moving the label over itself, whose cost grows with the distance squared.
_NEAR = 16

# Pixels of some rows, few enough to stay in the processor's cache.
_CELLS_AT_ONCE = 1 << 15

# Pixels up to which distances are found by moving rows over themselves, whose cost grows with the distance.
_FAR_TO_SHIFT = 128

# The square of a distance that no two pixels have.
_FAR = np.iinfo(np.int64).max


def boundary_region(label, distance: float = 7, *, ignore_label: int = 255, ignored_is_boundary: bool = True) -> np.ndarray:
    """Finds the pixels close to the boundary of objects.

    A pixel's distance is Euclidean, from its centre to the centre of the nearest pixel of another label: the two pixels on
    either side of a boundary are at distance 1 from it. The image's edge is no boundary.

    Args:
        label: Shape `(H, W)`, integer.
        distance: In pixels, at least 1; a pixel at just this distance belongs to the region.
        ignore_label: Label of pixels to ignore. They never belong to the region.
        ignored_is_boundary: Whether ignored pixels are "another label" for those beside them. In PASCAL VOC, where objects are
            outlined by a band of them, they are the boundary. `False`: distances are to the nearest pixel of another class.
    Returns:
        Shape `(H, W)`, bool. The internal region is what is neither in it nor ignored.
    Raises:
        KerassegError: If the label is not `(H, W)`, or the distance below 1.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, §4.1.1 (3), Table 5, which gives the distance, 7, and not how it is measured.
    """
    label = np.asarray(label)
    if label.ndim != 2:
        raise KerassegError(f"label has shape {label.shape}: expected (H, W), one image")
    check_boundary_distance(distance)
    if label.size and label.min() >= 0 and label.max() <= 255:
        # A quarter of the memory to go through.
        label = label.astype(np.uint8)
    valid = label != ignore_label
    # No two pixels are farther from each other.
    distance = min(distance, sum(label.shape))
    find = _region_by_shifts if distance <= _NEAR else _region_by_distances
    return find(label, valid, distance, ignored_is_boundary) & valid


def _region_by_shifts(label, valid, distance, ignored_is_boundary: bool) -> np.ndarray:
    region, reach = np.zeros(label.shape, bool), min(int(distance), max(label.shape))
    for down in range(reach + 1):
        for right in range(-reach, reach + 1):
            # Each pair of pixels once, from the upper one.
            if (down or right > 0) and down**2 + right**2 <= distance**2:
                upper = np.s_[: max(0, len(label) - down), max(0, -right) : max(0, label.shape[1] - right)]
                lower = np.s_[down:, max(0, right) : max(0, label.shape[1] + right)]
                differ = label[upper] != label[lower]
                if not ignored_is_boundary:
                    differ &= valid[upper] & valid[lower]
                region[upper] |= differ
                region[lower] |= differ
    return region


def _region_by_distances(label, valid, distance, ignored_is_boundary: bool) -> np.ndarray:
    return _squared_distances(label, valid, int(distance), ignored_is_boundary) <= distance**2


def _squared_distances(label, valid, reach: int, ignored_is_boundary: bool) -> np.ndarray:
    """Squared distance of each pixel to the nearest of another label; right up to `reach` pixels, some larger number beyond."""
    if ignored_is_boundary and reach <= _FAR_TO_SHIFT:
        return _by_columns_then_rows(label, reach)
    return _by_label(label, valid, reach, ignored_is_boundary)


def _by_columns_then_rows(label, reach: int) -> np.ndarray:
    """The same where every label counts, in a time that does not grow with their number.

    Seen from a pixel, the nearest of another label in some column is beside it in its row, if that one is of another label; else it
    is of the same, and has the same nearest one in its column.
    """
    rows = np.arange(len(label), dtype=np.int32)[:, np.newaxis]
    changes = label[1:] != label[:-1]
    far = np.int32(reach + 1)
    above, below = np.full((2, *label.shape), far, np.int32)
    last = np.maximum.accumulate(np.where(changes, rows[:-1], -far), axis=0)
    above[1:] = rows[1:] - last
    following = np.minimum.accumulate(np.where(changes, rows[1:], len(label) + far)[::-1], axis=0)[::-1]
    below[:-1] = following - rows[:-1]
    in_column = np.minimum(np.minimum(above, below), far) ** 2
    squared, band = in_column.copy(), max(1, _CELLS_AT_ONCE // max(1, label.shape[1]))
    for top in range(0, len(label), band):
        some = np.s_[top : top + band]
        _along_rows(label[some], in_column[some], squared[some], reach)
    return squared


def _along_rows(label, in_column, squared, reach: int) -> None:
    """Lowers squared distances to what the columns beside a pixel give."""
    for step in range(1, min(reach, label.shape[1] - 1) + 1):
        left, right = np.s_[:, :-step], np.s_[:, step:]
        same = label[left] == label[right]
        for here, there in ((left, right), (right, left)):
            found = in_column[there] * same
            found += step * step
            np.minimum(squared[here], found, out=squared[here])


def _by_label(label, valid, reach: int, ignored_is_boundary: bool) -> np.ndarray:
    """The same by a distance transform of each label, which takes the same time however far."""
    from scipy import ndimage

    squared = np.full(label.shape, _FAR)
    # From 1, since 0 is nothing to SciPy.
    numbers = np.unique(label, return_inverse=True)[1].reshape(label.shape) + 1
    for number, around in enumerate(ndimage.find_objects(numbers), start=1):
        place = tuple(slice(max(0, span.start - reach), span.stop + reach) for span in around)
        own = numbers[place] == number
        others = ~own if ignored_is_boundary else ~own & valid[place]
        if others.any():
            # Squares are whole numbers, their roots are not.
            found = np.rint(ndimage.distance_transform_edt(~others) ** 2)
            squared[place][own] = found[own].astype(np.int64)
    return squared


def check_boundary_distance(distance: float) -> None:
    """Refuses a distance at which no pixel would be close to a boundary.

    Raises:
        KerassegError: If it is below 1, or infinite.
    """
    if not 1 <= distance < float("inf"):
        raise KerassegError(f"boundary distance {distance}: expected at least 1 pixel, such as 7")


TRIMAP_BOUNDARIES = ("labels", "classes", "void")
"""Where a trimap's band begins; see `trimap_matrices`."""


def trimap_matrices(
    label, prediction, widths: Sequence[float], num_classes: int, *, ignore_label: int = 255, boundary: str = "labels"
) -> np.ndarray:
    """Counts the pixels in bands around the true boundaries, of all widths at once.

    A band of width w holds the pixels up to w pixels from a boundary, on either side of it; a wide band holds the narrow ones.
    Only the truth says where it lies. Ignored pixels are in no band. What the boundary is, the papers say differently:

    - `"labels"`: as for `boundary_region`, the distance is Euclidean, to the centre of the nearest pixel of another label, where
      "ignore" is another label too: the two pixels on either side of a boundary are at distance 1 from it.
    - `"classes"`: the same, but ignored pixels are no boundary; for data that ignore whole objects.
    - `"void"`: around ignored pixels alone, by squares: a pixel is in the band if an ignored one is within w rows and w columns.
      For PASCAL VOC, where ignored pixels outline the objects.

    Args:
        label: True classes, shape `(H, W)`, integer.
        prediction: Predicted classes, the same shape.
        widths: In pixels, each at least 1, ascending, such as `range(1, 41)`.
        num_classes: C.
        ignore_label: Label of the pixels to ignore.
        boundary: One of `TRIMAP_BOUNDARIES`.
    Returns:
        Shape `(len(widths), C, C)`, int64: a confusion matrix for each width; row: truth, column: prediction. Those of several
        images add up; `scores` of one gives the mean IoU and the pixel accuracy inside the band.
    Raises:
        KerassegError: If a width is below 1 or the widths do not ascend, the shapes differ, or a label or prediction is out of
            range.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, evaluation on MSRC-21 (after Kohli, Ladický & Torr 2009): a narrow band around
        the actual object boundaries. `"void"` is Chen et al. 2015, arXiv:1412.7062, Fig. 5, whose authors' script dilates the
        void pixels by a square of 2w + 1. How else a distance is measured, none of them says.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.ndim != 2 or label.shape != prediction.shape:
        raise KerassegError(f"label has shape {label.shape}, prediction {prediction.shape}: expected (H, W), both the same")
    if boundary not in TRIMAP_BOUNDARIES:
        raise KerassegError(f"trimap boundary '{boundary}': expected one of {', '.join(TRIMAP_BOUNDARIES)}")
    # No two pixels are farther from each other, and the square of more might be infinite.
    widths = np.minimum(trimap_widths(widths), sum(label.shape))
    # Says what is out of range.
    confusion_matrix(label, prediction, num_classes, ignore_label)
    valid = label != ignore_label
    if boundary == "void":
        squared = _squares_from_void(valid)
    else:
        squared = _squared_distances(label, valid, int(widths[-1]), boundary == "labels")
    # The narrowest band that a pixel is in; the wider ones hold it as well.
    band = np.searchsorted(widths**2, squared)
    counted = valid & (band < len(widths))
    index = (band[counted] * num_classes + label[counted].astype(np.int64)) * num_classes + prediction[counted].astype(np.int64)
    counts = np.bincount(index, minlength=len(widths) * num_classes**2)
    return counts.reshape(len(widths), num_classes, num_classes).cumsum(0)


def _squares_from_void(valid) -> np.ndarray:
    """The square of how many rows or columns, whichever are more, each pixel is from an ignored one."""
    from scipy import ndimage

    if valid.all():
        return np.full(valid.shape, _FAR)
    return ndimage.distance_transform_cdt(valid, metric="chessboard").astype(np.int64) ** 2


def trimap_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Checks the widths of a trimap's bands.

    Raises:
        KerassegError: If there is none, one is below 1 or infinite, or they do not ascend.
    """
    checked = tuple(float(width) for width in widths)
    if not checked or not all(1 <= width < float("inf") for width in checked) or list(checked) != sorted(set(checked)):
        received = ", ".join(f"{width:g}" for width in checked) or "none"
        raise KerassegError(f"trimap widths {received}: expected pixels from 1, ascending, such as 1, 2, 4, 8")
    return checked
