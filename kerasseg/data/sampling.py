"""Which example stands at a position of the endless training sequence, and which random numbers it gets.

Both are pure functions of the position and the seed, so that training can start anywhere in the sequence, on any number of
devices, and see the same. Philox is a counter-based generator: key and counter are its whole state.
"""

from functools import lru_cache

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

SAMPLINGS = ("shuffle", "replacement")
"""`"shuffle"`: every example once an epoch, in a fresh order; `"replacement"`: an independent draw each time."""

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


def example_index(position: int, length: int, seed: int, sampling: str = "shuffle") -> int:
    """Which example stands at a position of the training sequence.

    Args:
        position: Counts examples from the very beginning of training, 0, 1, ….
        length: Number of examples in the data set.
        seed: 0 to 2⁶⁴ − 1.
        sampling: `"shuffle"` or `"replacement"`.
    Returns:
        0 to `length` − 1.
    Raises:
        KerassegError: If the sampling is unknown or a number out of range.
    Example:
        >>> sorted(example_index(position, 3, seed=7) for position in (3, 4, 5))
        [0, 1, 2]
    """
    check_sampling(seed, sampling)
    if length < 1 or position < 0:
        raise KerassegError(f"no example at position {position} of a data set of {length}: expected position ≥ 0 and length ≥ 1")
    if sampling == "replacement":
        return int(_philox(seed, position, _REPLACEMENT).integers(length))
    epoch, offset = divmod(position, length)
    return int(_permutation(seed, epoch, length)[offset])


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers by which the example at a position is transformed.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        position: Counts examples from the very beginning of training.
    Returns:
        A fresh generator, independent of the draw of the example.
    """
    return _philox(seed, position, _AUGMENTATION)
