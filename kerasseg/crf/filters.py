"""Filtering maps with kernels: by lattices, with sparse matrices or with gathers and scatters for XLA, or by dense matrices."""

import dataclasses

import tensorflow as tf

from kerasseg.crf import exact
from kerasseg.crf.lattice import Lattice, kernel_sums
from kerasseg.crf.products import product, sparse_matrix, transposed

# The blur of the static form handles this share of all rows at once, and stops where no vertices are left.
_CHUNKS = 24


def filter_of(lattice: Lattice, normalization: str = "none"):
    """Makes the filter of a lattice.

    Args:
        lattice: The lattice.
        normalization: One of `kerasseg.crf.parameters.NORMALIZATIONS`.
    Returns:
        Object with `apply(values)`, from `(N, C)` float32 to as many, and `transposed()`, the filter of the transposed kernel.
    """
    # Of a kernel that is not normalized its sums are not worked out.
    sums = None if normalization == "none" else kernel_sums(lattice)
    before, after = exact.normalizers(sums, normalization)
    return StaticFilter(lattice, before, after) if lattice.static else SparseFilter(lattice, before, after)


def weighted_sum(filters, weights):
    """Makes the function that sums what several filters make of the same values.

    Args:
        filters: As `filter_of` and `ExactFilter.of` make them.
        weights: Of each filter a scalar.
    Returns:
        Function from `(N, C)` float32 to as many.
    """
    if all(isinstance(each, SparseFilter) for each in filters):
        return _SparseProduct(filters, weights)
    return lambda values: tf.add_n([each.apply(values) * weight for each, weight in zip(filters, weights, strict=True)])


class SparseFilter:
    """A filter by products with matrices in compressed form, which TensorFlow spreads over its threads.

    Args:
        lattice: The lattice.
        before: What values are multiplied by before filtering, `(N, 1)`, or `None`.
        after: What they are multiplied by after it, likewise.
        reverse: Whether to blur in the reverse order of axes.
    """

    def __init__(self, lattice: Lattice, before=None, after=None, reverse: bool = False):
        self.lattice, self.before, self.after, self.reverse = lattice, before, after, reverse
        self._product = None

    def apply(self, values):
        """Filters maps."""
        if self._product is None:
            self._product = _SparseProduct([self], [1.0])
        return self._product(values)

    def transposed(self):
        """The filter of the transposed kernel."""
        return SparseFilter(self.lattice, self.after, self.before, not self.reverse)


class _SparseProduct:
    """Several filters at once, whose lattices stand side by side as one: a splat, the blurs, and a slice that sums."""

    def __init__(self, filters, weights):
        lattices = [each.lattice for each in filters]
        sizes = [tf.size(lattice.neighbours[0][0]) for lattice in lattices]
        # Row 0 of each lattice stays its own row of zeros.
        starts = tf.unstack(tf.cumsum(tf.stack(sizes), exclusive=True))
        corners = tf.concat([lattice.corners + start for lattice, start in zip(lattices, starts, strict=True)], 1)
        points = tf.broadcast_to(tf.range(tf.shape(corners)[0])[:, tf.newaxis], tf.shape(corners))
        shape = (tf.shape(corners)[0], sum(sizes))
        self._slice = sparse_matrix(points, corners, _side_by_side(lattices, [each.after for each in filters]), shape)
        splat = self._slice
        if any(each.before is not each.after for each in filters):
            splat = sparse_matrix(points, corners, _side_by_side(lattices, [each.before for each in filters]), shape)
        self._splat = transposed(splat)
        self._blurs = _blurs(filters, weights, sizes, starts)

    def __call__(self, values):
        for matrix in (self._splat, *self._blurs, self._slice):
            values = product(matrix, values)
        return values


def _side_by_side(lattices, factors):
    weights = zip(lattices, factors, strict=True)
    return tf.concat([each.weights if factor is None else each.weights * factor for each, factor in weights], 1)


def _blurs(filters, weights, sizes, starts):
    """The matrices of the blurs, axis by axis; what the filters are multiplied by is in the first."""
    rows = [tf.range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    scales = [each.lattice.scale * weight for each, weight in zip(filters, weights, strict=True)]
    matrices = []
    for axis in range(max(len(each.lattice.neighbours) for each in filters)):
        places, columns, values = [], [], []
        for each, own, start, scale in zip(filters, rows, starts, scales, strict=True):
            neighbours = each.lattice.neighbours[::-1] if each.reverse else each.lattice.neighbours
            # A lattice of fewer axes stays as it is.
            pair = [near + start for near in neighbours[axis]] if axis < len(neighbours) else []
            places.append(tf.repeat(own, 1 + len(pair)))
            columns.append(tf.reshape(tf.stack([own, *pair], 1), [-1]))
            factors = tf.constant([1.0, 0.5, 0.5][: 1 + len(pair)]) * (scale if axis == 0 else 1.0)
            values.append(tf.tile(factors, tf.shape(own)))
        entries = (tf.concat(each, 0) for each in (places, columns, values))
        matrices.append(sparse_matrix(*entries, (sum(sizes), sum(sizes))))
    return matrices


class StaticFilter:
    """A filter by scatters and gathers of rows, at the size that the lattice can have at most; time goes with the size it has.

    Args:
        lattice: The lattice.
        before: What values are multiplied by before filtering, `(N, 1)`, or `None`.
        after: What they are multiplied by after it, likewise.
    """

    def __init__(self, lattice: Lattice, before=None, after=None):
        self._lattice, self._before, self._after = lattice, before, after
        spare = -lattice.neighbours[0][0].shape[0] % _CHUNKS
        self._neighbours = [[tf.pad(each, [[0, spare]]) for each in pair] for pair in lattice.neighbours]

    def apply(self, values):
        """Filters maps."""
        corners, weights = self._lattice.corners, self._lattice.weights
        values = values if self._before is None else values * self._before
        rows = tf.zeros([self._neighbours[0][0].shape[0], values.shape[1]])
        for corner in range(corners.shape[1]):
            rows = tf.tensor_scatter_nd_add(rows, corners[:, corner, tf.newaxis], weights[:, corner, tf.newaxis] * values)
        for up, down in self._neighbours:
            rows = self._blurred(rows, up, down)
        filtered = tf.add_n(
            [weights[:, corner, tf.newaxis] * tf.gather(rows, corners[:, corner]) for corner in range(corners.shape[1])]
        )
        filtered *= self._lattice.scale
        return filtered if self._after is None else filtered * self._after

    def _blurred(self, rows, up, down):
        chunks = [tf.reshape(each, [_CHUNKS, -1]) for each in (up, down)]
        size = chunks[0].shape[1]
        whole = tf.reshape(rows, [_CHUNKS, size, -1])

        def step(index, blurred):
            above, below = (tf.gather(rows, each[index]) for each in chunks)
            part = whole[index] + 0.5 * (above + below)
            return index + 1, tf.tensor_scatter_nd_update(blurred, [[index]], part[tf.newaxis])

        # Row 0 is none of the count.
        _, blurred = tf.while_loop(lambda index, _: index * size <= self._lattice.count, step, (0, tf.zeros_like(whole)))
        return tf.reshape(blurred, tf.shape(rows))

    def transposed(self):
        """The filter of the transposed kernel."""
        lattice = dataclasses.replace(self._lattice, neighbours=self._lattice.neighbours[::-1])
        return StaticFilter(lattice, self._after, self._before)


class ExactFilter:
    """A filter by products with dense matrices.

    Args:
        matrices: Shape `(B, N, N)`, one image each: kernels, normalized.
        transposes: Whether to apply their transposes.
    """

    def __init__(self, matrices, transposes: bool = False):
        self._matrices, self._transposes = matrices, transposes

    @classmethod
    def of(cls, features, batch, normalization: str, weights):
        """Makes the filter of features `(d, B·N)` of B images; pixels whose weight `(B·N,)` is 0 take no part."""
        features = tf.reshape(features, [features.shape[0], batch, -1])
        weights = tf.reshape(weights, tf.shape(features[0]))
        matrices = exact.kernel(features) * weights[:, tf.newaxis] * weights[..., tf.newaxis]
        return cls(exact.normalized(matrices, normalization))

    def apply(self, values):
        """Filters maps `(B·N, C)`."""
        shape = tf.shape(self._matrices)
        filtered = tf.matmul(self._matrices, tf.reshape(values, [shape[0], shape[1], -1]), transpose_a=self._transposes)
        return tf.reshape(filtered, tf.shape(values))

    def transposed(self):
        """The filter of the transposed kernel."""
        return ExactFilter(self._matrices, not self._transposes)
