"""Which example stands at a position of the endless training sequence, and which random numbers it gets.

Both are pure functions of the position and the seed, so that training can start anywhere in the sequence, on any number of
devices, and see the same. Philox is a counter-based generator: key and counter are its whole state.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from kerasseg.data.records import DataSet, each_label
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE
from kerasseg.tables import did_you_mean

SAMPLINGS = ("shuffle", "replacement", "balanced")
"""`"shuffle"`: every example once an epoch, in a fresh order; `"replacement"`: an independent draw each time, by weight where there
are weights; `"balanced"`: a draw of a class among those that occur, and then of an example that holds it."""

# The top word of the counter keeps the three uses of one key apart.
_SHUFFLE, _REPLACEMENT, _AUGMENTATION = range(3)


def _philox(seed: int, position: int, use: int) -> np.random.Generator:
    key = np.array([seed, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, use], np.uint64)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    # Batches of two epochs are prepared at once where one ends: the cache holds a few.
    return _philox(seed, epoch, _SHUFFLE).permutation(length)


def check_sampling(seed: int, sampling: str) -> None:
    """Checks the two settings of the sequence.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        sampling: One of `SAMPLINGS`.
    Raises:
        KerassegError: If either is not.
    """
    if sampling not in SAMPLINGS:
        raise KerassegError(f"unknown sampling '{sampling}': {did_you_mean(str(sampling), SAMPLINGS)}")
    if not 0 <= seed < 2**64:
        raise KerassegError(f"seed {seed} is out of range: expected a whole number from 0 to 2**64 - 1")


class Sampler:
    """Which example stands at a position of the training sequence.

    Args:
        length: Number of examples in the data set.
        seed: 0 to 2⁶⁴ − 1.
        sampling: One of `SAMPLINGS`.
        weights: Shape `(length,)`: with `"replacement"` how often each example is drawn, relative to the others, 0 being never;
            with `"balanced"` what `class_balance` gives.
    Raises:
        KerassegError: If the sampling is unknown, a number out of range, or weights are missing or not wanted.
    Example:
        >>> sampler = Sampler(3, seed=7)
        >>> sorted(sampler(position) for position in (3, 4, 5))
        [0, 1, 2]
    """

    def __init__(self, length: int, seed: int, sampling: str = "shuffle", weights: np.ndarray | None = None):
        check_sampling(seed, sampling)
        if length < 1:
            raise KerassegError(f"no example in a data set of {length}: expected length ≥ 1")
        if weights is not None and sampling == "shuffle":
            raise KerassegError("sampling 'shuffle' received weights: it draws each example once an epoch; use 'replacement'")
        if weights is None and sampling == "balanced":
            raise KerassegError("sampling 'balanced' received no weights: pass weights=kerasseg.data.sampling.class_balance(data)")
        self.length, self.seed, self.sampling = length, seed, sampling
        self._ends = None if weights is None else _ends(weights, length)

    def __call__(self, position: int) -> int:
        """Tells the index of the example at a position, which counts from the very beginning of training."""
        if position < 0:
            raise KerassegError(f"no example at position {position}: expected position ≥ 0")
        if self.sampling == "shuffle":
            epoch, offset = divmod(position, self.length)
            return int(_permutation(self.seed, epoch, self.length)[offset])
        draws = _philox(self.seed, position, _REPLACEMENT)
        if self._ends is None:
            return int(draws.integers(self.length))
        # Below the whole, though rounded.
        place = min(draws.random() * self._ends[-1], np.nextafter(self._ends[-1], 0))
        return int(np.searchsorted(self._ends, place, side="right"))


def _ends(weights, length: int) -> np.ndarray:
    """Where the part of each example ends on a line, in the order of the examples."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (length,):
        raise KerassegError(f"weights of shape {weights.shape} for {length} examples: expected one number for each")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise KerassegError("weights must be finite, 0 or more, and not all 0: they tell how often each example is drawn")
    return np.cumsum(weights)


def class_balance(data: DataSet, report: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Weighs examples so that a draw by weight is the draw of a class, and then of an example that holds it.

    Classes that no example holds are not drawn, nor are examples that hold none. Every label is read once; of several heads the
    first counts.

    Args:
        data: Examples with labels.
        report: Called with the number of labels read and of all of them, after each.
    Returns:
        Shape `(len(data),)`, float64: the probability of each example. One that holds several classes has the sum.
    Raises:
        KerassegError: If an example has no label, or none holds a class.
    Example:
        >>> from kerasseg.data import open_data
        >>> class_balance(open_data("shapes", length=8)).sum().round(6)
        np.float64(1.0)
    """
    count = data.labels.num_classes
    held = np.zeros((len(data), count), bool)
    for index, label in enumerate(each_label(data, report)):
        first = label if label.ndim == 2 else label[..., 0]
        found = np.flatnonzero(np.bincount(first.ravel(), minlength=IGNORE + 1))
        held[index, found[found < count]] = True
    images = held.sum(axis=0)
    if not images.any():
        raise KerassegError(f"no label map of data set '{data.labels.name}' holds a class: nothing to balance")
    shares = np.divide(1, images, out=np.zeros(count), where=images > 0)
    return held @ shares / np.count_nonzero(images)


def example_index(position: int, length: int, seed: int, sampling: str = "shuffle", weights: np.ndarray | None = None) -> int:
    """Which example stands at a position of the training sequence; `Sampler` tells many.

    Args:
        position: Counts examples from the very beginning of training, 0, 1, ….
        length: Number of examples in the data set.
        seed: 0 to 2⁶⁴ − 1.
        sampling: One of `SAMPLINGS`.
        weights: As in `Sampler`.
    Returns:
        0 to `length` − 1.
    Raises:
        KerassegError: As `Sampler`, or if the position is negative.
    Example:
        >>> sorted(example_index(position, 3, seed=7) for position in (3, 4, 5))
        [0, 1, 2]
    """
    return Sampler(length, seed, sampling, weights)(position)


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers by which the example at a position is transformed.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        position: Counts examples from the very beginning of training.
    Returns:
        A fresh generator, independent of the draw of the example.
    """
    return _philox(seed, position, _AUGMENTATION)
