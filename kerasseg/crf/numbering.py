"""Numbers for the cells of a lattice's key space that are occupied, without a sort and without a hash table."""

import numpy as np
import tensorflow as tf


class Numbering:
    """Numbers 1, 2, … for the distinct ones among positions, in ascending order; 0 for all others.

    Args:
        positions: Shape `(E,)`, int32, at least 0.
        size: More than the largest position, as an integer or a scalar tensor.
    """

    def __init__(self, positions, size):
        # A scatter, which moves its values one by one, takes ten times as long.
        present = tf.raw_ops.DenseBincount(input=positions, size=size, weights=tf.constant([], tf.int32), binary_output=True)
        self._numbers = tf.cumsum(present) * present
        self._present = present
        self.count = tf.reduce_sum(present)

    def __getitem__(self, positions):
        return tf.gather(self._numbers, positions)

    def positions(self):
        """Those that are numbered, ascending, int32."""
        return tf.cast(tf.where(self._present)[:, 0], tf.int32)


class StaticNumbering:
    """The same for XLA, where there are no arrays of unknown size and sums over long ones are dear.

    A table of bytes, eight of them read as one integer, whose population counts are summed.

    Args:
        positions: As for `Numbering`.
        size: More than the largest position, an integer.
    """

    def __init__(self, positions, size: int):
        words = -(-size // 8)
        ones = tf.ones(positions.shape, tf.uint8)
        table = tf.tensor_scatter_nd_update(tf.zeros([words * 8], tf.uint8), positions[:, np.newaxis], ones)
        self._words = tf.bitcast(tf.reshape(table, [words, 8]), tf.uint64)
        counts = _ones_in(self._words)
        self._before = tf.cumsum(counts, exclusive=True)
        self.count = self._before[-1] + counts[-1]
        self._given = positions

    def __getitem__(self, positions):
        word = tf.gather(self._words, tf.bitwise.right_shift(positions, 3))
        one = tf.bitwise.left_shift(
            tf.ones(positions.shape, tf.uint64), tf.cast(8 * tf.bitwise.bitwise_and(positions, 7), tf.uint64)
        )
        number = 1 + tf.gather(self._before, tf.bitwise.right_shift(positions, 3)) + _ones_in(tf.bitwise.bitwise_and(word, one - 1))
        return tf.where(tf.bitwise.bitwise_and(word, one) > 0, number, 0)

    def positions(self):
        """Those that are numbered, ascending, int32, and then zeros, as many in all as were given."""
        count = self._given.shape[0]
        return tf.tensor_scatter_nd_update(tf.zeros([count], tf.int32), self[self._given][:, np.newaxis] - 1, self._given)


def _ones_in(words):
    return tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int32)
