"""Where points lie in the permutohedral lattice: the corners of the enclosing simplex, by integer keys, and their weights."""

import math

import numpy as np
import tensorflow as tf

LARGEST_KEY = 2**18
"""Keys of the lattice are exact up to this magnitude."""


def embed(features, barrier):
    """Finds the simplex of the lattice that holds each point.

    In the order of float32 operations of the C++ implementation that the field compares with, so that points on the edge of two
    simplices fall into the same one.

    Args:
        features: Shape `(d, N)`, float32: the points, in units of the kernel's standard deviation.
        barrier: Function of tensors that returns them; XLA does not fuse operations across it.
    Returns:
        `(keys, weights)`: of the d + 1 corners of each point's simplex, remainder 0 first, the sheared keys, d tensors
        `(N, d + 1)` int32, and the barycentric weights, `(N, d + 1)` float32.
    Reference:
        Adams, Baek & Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", §3.
    """
    d = features.shape[0]
    sides = d + 1
    elevated = _elevate(tf.unstack(barrier(features)[0]), barrier)
    rounded = [tf.round(each * np.float32(1.0 / sides)) for each in elevated]
    rank = _ranks([each - whole * np.float32(sides) for each, whole in zip(elevated, rounded, strict=True)])
    total = tf.add_n(rounded)
    corner, ranks, within = [], [], []
    for each, whole, place in zip(elevated, rounded, rank, strict=True):
        place += total
        wrapped = tf.cast(place < 0, tf.float32) - tf.cast(place > d, tf.float32)
        multiple = np.float32(sides) * wrapped
        ranks.append(place + multiple)
        corner.append(whole + wrapped)
        within.append((each - (whole * np.float32(sides) + multiple)) * np.float32(1.0 / sides))
    parts = barrier(*corner, *ranks, *within)
    corner, ranks, within = parts[:sides], parts[sides : 2 * sides], parts[2 * sides :]
    return _corner_keys(corner, ranks), _barycentric(within)


def _elevate(features, barrier):
    """Onto the hyperplane of d + 1 coordinates that sum to 0, scaled so that the lattice's blur has standard deviation 1."""
    d = len(features)
    # Rounded twice, as there.
    scale = float(np.float32(np.sqrt(2.0 / 3.0) * (d + 1)))
    values = barrier(*(features[j] * np.float32(1.0 / np.sqrt((j + 2) * (j + 1)) * scale) for j in range(d)))
    elevated, total = [None] * (d + 1), tf.zeros_like(features[0])
    for j in range(d, 0, -1):
        value = values[j - 1]
        # Not the plain product: two factors that are constant would be made one, which rounds otherwise.
        elevated[j] = total - tf.math.multiply_no_nan(value, np.float32(j))
        total += value
    elevated[0] = total
    return elevated


def _ranks(values):
    """How many of the values are larger, of equal ones the earlier: list of tensors float32."""
    count = len(values)
    less = {(i, j): tf.cast(values[i] < values[j], tf.float32) for j in range(count) for i in range(j)}
    ranks = []
    for i in range(count):
        rank = tf.fill(tf.shape(values[i]), float(i))
        if i < count - 1:
            rank += tf.add_n([less[i, j] for j in range(i + 1, count)])
        if i > 0:
            rank -= tf.add_n([less[j, i] for j in range(i)])
        ranks.append(rank)
    return ranks


def _barycentric(within):
    """Differences of the coordinates in descending order, which a sorting network finds without a sort."""
    values, d = list(within), len(within) - 1
    for end in range(d, 0, -1):
        for i in range(end):
            values[i], values[i + 1] = tf.maximum(values[i], values[i + 1]), tf.minimum(values[i], values[i + 1])
    return tf.transpose(tf.stack([1.0 + values[d] - values[0]] + [values[d - k] - values[d + 1 - k] for k in range(1, d + 1)]))


def _corner_keys(corner, ranks):
    """Keys of the corners.

    Corner r of a simplex has one less than corner 0 in the coordinates of the r largest remainders. The differences
    `t_j = q_{j−1} − q_j` map the lattice one to one onto the integer vectors of length d; sheared, the lattice's points near a
    box of features fill a box.
    """
    d = len(corner) - 1
    keys = []
    for j in range(1, d + 1):
        key = [corner[j - 1] - corner[j]]
        for r in range(1, d + 1):
            above = [tf.cast(ranks[i] > d - r, tf.float32) for i in (j - 1, j)]
            key.append(key[0] + (above[1] - above[0]))
        keys.append(tf.stack(key))
    # Points first, so that what belongs to one pixel lies together.
    return [tf.cast(tf.transpose(key), tf.int32) for key in shear(keys)]


def shear(keys):
    """`a_1 = t_1`, `a_j = t_j + ⌊(j − 1) a_{j−1} / j⌋`: list of d tensors of whole numbers in float32 in, list of as many out."""
    sheared = [keys[0]]
    for j in range(2, len(keys) + 1):
        sheared.append(keys[j - 1] + shift(sheared[-1], j))
    return sheared


def shift(value, j: int):
    """`⌊(j − 1) value / j⌋` of whole numbers up to `LARGEST_KEY` in float32, where it is exact and faster than in integers."""
    return tf.floor((value * np.float32(j - 1) + 0.5) * np.float32(1.0 / j))


def key_ranges(spans) -> list[int]:
    """How many values each sheared key can take.

    Args:
        spans: Largest minus smallest of each of the d features.
    Returns:
        List of d numbers.
    """
    return [math.ceil(math.sqrt(2.0 / 3.0 * (j + 1) / j) * span) + 3 for j, span in enumerate(spans, 1)]
