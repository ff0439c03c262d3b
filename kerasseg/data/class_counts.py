"""How often each class occurs, and weights that make up for it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from kerasseg.data.records import DataSet, each_label
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """How many pixels each class has.

    Args:
        pixels: Shape `(C,)`, int64: pixels of the class.
        around: Shape `(C,)`, int64: all pixels, ignored ones included, of the images in which the class is present.
        ignored: Pixels labelled 255.
        images: Label maps counted.
    """

    pixels: np.ndarray
    around: np.ndarray
    ignored: int
    images: int

    def median_frequency_weights(self) -> np.ndarray:
        """Weighs each class by the median class frequency over its own: median frequency balancing.

        The frequency of a class is its share of all pixels of those images in which it is present; the median is taken over the
        classes that occur at all.

        Returns:
            Shape `(C,)`, float64; 0 for a class that never occurs, which so is never weighed.
        Raises:
            KerassegError: If no class occurs.
        Reference:
            Eigen & Fergus 2015, arXiv:1411.4734, §6.3.2.
        """
        present = self.pixels > 0
        if not present.any():
            raise KerassegError(f"no pixel of {self.images} label maps has a class: expected labels from 0 on, {IGNORE} = ignore")
        frequency = self.pixels[present] / self.around[present]
        weights = np.zeros(len(self.pixels))
        weights[present] = np.median(frequency) / frequency
        return weights


def count_classes(labels: Iterable[np.ndarray], num_classes: int) -> ClassCounts:
    """Counts the pixels of each class.

    Args:
        labels: Label maps of any shape, integer, 0 to `num_classes` − 1, 255 = ignore.
        num_classes: Number of classes.
    Returns:
        The counts.
    Raises:
        KerassegError: If a label is out of range.
    """
    pixels, around = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    ignored = images = 0
    for label in map(np.asarray, labels):
        bad = label[((label < 0) | (label >= num_classes)) & (label != IGNORE)]
        if bad.size:
            raise KerassegError(f"label map {images} holds {bad[0]}: expected 0 to {num_classes - 1}, or {IGNORE} = ignore")
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        ignored, images = ignored + int(counts[IGNORE]), images + 1
        pixels += counts[:num_classes]
        around += np.where(counts[:num_classes] > 0, label.size, 0)
    return ClassCounts(pixels, around, ignored, images)


def median_frequency_weights(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """Computes median-frequency class weights from label maps, whether there are images or not.

    Args:
        labels: As in `count_classes`.
        num_classes: Number of classes.
    Returns:
        As `ClassCounts.median_frequency_weights`.
    Raises:
        KerassegError: If a label is out of range or no class occurs.
    Example:
        >>> median_frequency_weights([np.array([[0, 0, 0, 1]])], 3).tolist()
        [0.6666666666666666, 2.0, 0.0]
    """
    return count_classes(labels, num_classes).median_frequency_weights()


def class_weights(data: DataSet, report: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Computes median-frequency class weights of a data set; every label is read once.

    Args:
        data: Examples with labels.
        report: Called with the number of labels read and of all of them, after each.
    Returns:
        As `ClassCounts.median_frequency_weights`; `tuple(weights)` is the argument of a loss.
    Raises:
        KerassegError: If an example has no label, it has several label maps, or no class occurs.
    """
    check_one_map(data)
    return median_frequency_weights(each_label(data, report), data.labels.num_classes)


def check_one_map(data: DataSet) -> None:
    """Refuses a data set of several label maps, whose classes cannot be counted together.

    Raises:
        KerassegError: If that is so.
    """
    if data.heads is not None:
        raise KerassegError(
            f"data set '{data.labels.name}' has several label maps ({', '.join(data.heads)}): expected one, open it with "
            f"head='{next(iter(data.heads))}' (--data-arguments head={next(iter(data.heads))})"
        )
