"""High-dimensional Gaussian filtering by the permutohedral lattice, in TensorFlow operations.

A lattice is built of the pixels' features once, then filters any number of maps: each pixel's value is splatted onto the d + 1
corners of its simplex, the corners are blurred along d + 1 axes, and each pixel reads its corners back. There are two forms.
Where XLA compiles, sizes are static and filtering is made of gathers and scatters. Elsewhere arrays have just the size that the
image needs, and filtering is made of products with sparse matrices, on a CPU several times as fast.
"""

import dataclasses
import math

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from kerasseg.crf.embedding import LARGEST_KEY, embed, key_ranges, shift
from kerasseg.crf.numbering import Numbering, StaticNumbering
from kerasseg.errors import KerassegError

MOST_FEATURES = 6
"""Most features that a lattice is built of."""

TOO_MANY_CELLS = (
    "a CRF lattice of over 2^28 pages of cells: expected larger standard deviations (theta), a smaller image or batch, or features "
    "no farther apart, such as colours of 0-255 with theta_beta=3.0"
)
TOO_MANY_PAGES = "a CRF lattice of over 2^25 pages of cells that are in use: expected fewer pixels at once"
"""What the errors say."""

# Neighbours of a vertex differ from it by up to two in each sheared key.
_MARGIN = 2
# Cells in use are numbered in int32, and a table has an entry for each page, used or not.
_MOST_CELLS = 2**31 - 1
_MOST_PAGES = 2**28


def compiled_by_xla() -> bool:
    """Whether the operations made now are to be compiled by XLA: in a `tf.function` with `jit_compile`, or on a TPU."""
    return control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph())


def barrier(*tensors):
    """Returns the tensors, which XLA then computes once.

    XLA fuses what is computed into each of its consumers, and so computes it anew in each; through a conditional it does not.
    """
    if not compiled_by_xla():
        return tensors
    probe = tf.reshape(tensors[0], [-1])[0]
    return tf.cond(probe == probe, lambda: tensors, lambda: tuple(tf.zeros_like(each) for each in tensors))


class _Cells:
    """The box of keys: pages of neighbouring cells, and the cells of a page.

    Args:
        low: Least key of each coordinate.
        ranges: How many keys each can have; integers, or scalar tensors.
        bits: Each page's side, as a power of two.
    """

    def __init__(self, low, ranges, bits):
        self.low, self.bits, self.page_bits = low, bits, sum(bits)
        self.strides, stride = [], 1
        for extent, bit in zip(reversed(ranges), reversed(bits), strict=True):
            self.strides.insert(0, stride)
            stride = stride * ((extent + ((1 << bit) - 1)) // (1 << bit))
        self.pages = stride

    def parts(self, keys):
        """Page, and cell in the page, of each key."""
        pages, cells, below = [], [], self.page_bits
        for key, low, stride, bit in zip(keys, self.low, self.strides, self.bits, strict=True):
            place = key - low
            below -= bit
            if bit:
                within = tf.bitwise.bitwise_and(place, (1 << bit) - 1)
                cells.append(tf.bitwise.left_shift(within, below))
                place = tf.bitwise.right_shift(place, bit)
            pages.append(place * stride)
        return tf.add_n(pages), tf.add_n(cells)

    def keys(self, page, cell):
        """The inverse of `parts`."""
        keys, below = [], self.page_bits
        for low, stride, bit in zip(self.low, self.strides, self.bits, strict=True):
            place = _quotient(page, stride)
            page = page - place * stride
            below -= bit
            if bit:
                within = tf.bitwise.bitwise_and(tf.bitwise.right_shift(cell, below), (1 << bit) - 1)
                place = tf.bitwise.left_shift(place, bit) + within
            keys.append(place + low)
        return keys


def _quotient(value, divisor):
    """`value // divisor` of integers of at least 0, by way of float64, where it is exact and several times as fast."""
    halfway = tf.cast(value, tf.float64) + 0.5
    return tf.cast(tf.floor(halfway / tf.cast(divisor, tf.float64)), tf.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """A permutohedral lattice of points; `build` makes one.

    Args:
        corners: Shape `(N, d + 1)`, int32: rows of each point's vertices, from 1. Row 0 stands for none, and holds zeros.
        weights: Shape `(N, d + 1)`, float32: barycentric weights.
        neighbours: Of every row the rows one up and one down each of the d + 1 axes, 0 where there is none: list of pairs of
            shape `(M,)`, int32.
        count: Number of vertices, below M, scalar.
        static: Whether filtering is made for XLA.
    """

    corners: tf.Tensor
    weights: tf.Tensor
    neighbours: list
    count: tf.Tensor
    static: bool

    @property
    def scale(self) -> float:
        """What makes the kernel 1 at its centre where a point has a vertex for itself."""
        return 1.0 / (1.0 + 2.0 ** (1 - len(self.neighbours)))


def build(features, batch: int | tf.Tensor = 1, spans=None) -> Lattice:
    """Builds the lattice of points.

    Args:
        features: Shape `(d, N)`, float32, d from 1 to 6: positions and colours, each divided by the kernel's standard deviation.
        batch: Number of images that the N points belong to, one after the other and each with as many; they share no vertices.
        spans: Of the d features the largest minus the smallest value at most; wanted where XLA compiles, else not used.
    Returns:
        The lattice.
    Raises:
        KerassegError: If there are too many features, or the lattice's key space is too large since the standard
            deviations are too small; in a graph, where that is only known when it runs, `tf.errors.InvalidArgumentError`.
    Reference:
        Adams, Baek & Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice".
    """
    d = features.shape[0]
    if not 1 <= d <= MOST_FEATURES:
        raise KerassegError(f"{d} features: expected 1 to {MOST_FEATURES}, such as 2 coordinates and 3 colours")
    static = compiled_by_xla()
    if static and (features.shape[1] is None or not isinstance(batch, int)):
        raise KerassegError(
            "images of unknown size or number: XLA (jit_compile) wants them static, such as batch(…, drop_remainder=True)"
        )
    keys, weights = embed(features, barrier)
    shape = tf.shape(weights)
    low = [tf.reduce_min(key) - _MARGIN for key in keys]
    if static:
        ranges, numbering = [extent + 2 * _MARGIN for extent in key_ranges(spans)], StaticNumbering
        # Features farther apart than was said have no cell: told by results that are no numbers.
        inside = [key - least < extent - _MARGIN for key, least, extent in zip(keys, low, ranges, strict=True)]
        weights = tf.where(tf.reduce_all(tf.stack(inside)), weights, float("nan"))
        keys = [tf.minimum(key, least + extent - 1) for key, least, extent in zip(keys, low, ranges, strict=True)]
    else:
        ranges = [tf.reduce_max(key) - least + 1 + _MARGIN for key, least in zip(keys, low, strict=True)]
        numbering = Numbering
    # Pages of 4 x 4 x 4 cells; smaller ones where all that there can be would be too many to number.
    side = 1 if static and keys[0].shape.num_elements() * 64 > _MOST_CELLS else 2
    bits = ([0] * d + [side] * 3)[-d:]
    cells = _Cells(low, _checked(ranges, bits, features, batch), bits)
    page, cell = cells.parts(keys)
    if not (isinstance(batch, int) and batch == 1):
        page += tf.repeat(tf.range(batch), shape[0] // batch)[:, tf.newaxis] * cells.pages
    page, cell = barrier(*(tf.reshape(each, [-1]) for each in (page, cell)))
    pages = numbering(page, cells.pages * batch)
    place = tf.bitwise.left_shift(pages[page], cells.page_bits) + cell
    if static:
        size = (page.shape[0] + 1) << cells.page_bits
    else:
        most = _MOST_CELLS // 2**cells.page_bits
        (size,) = _if(pages.count < most, [(pages.count + 1) * 2**cells.page_bits], TOO_MANY_PAGES)
    vertices = numbering(place, size)
    corners = vertices[place]
    neighbours = _neighbours(cells, pages, vertices)
    return Lattice(tf.reshape(corners, shape), weights, neighbours, vertices.count, static)


def _neighbours(cells, pages, vertices):
    """Rows of the neighbours of every row."""
    at = vertices.positions()
    page = tf.gather(pages.positions(), tf.maximum(tf.bitwise.right_shift(at, cells.page_bits) - 1, 0))
    # That of the first image is left to be decoded.
    first = page - page % cells.pages
    keys = cells.keys(page - first, tf.bitwise.bitwise_and(at, (1 << cells.page_bits) - 1))
    shifts = [_shift(key, j) for j, key in enumerate(keys[:-1], 2)]
    rows, neighbours = tf.range(1, tf.size(at) + 1), []
    exists = rows <= vertices.count
    for axis in range(len(keys) + 1):
        new_page, new_cell = cells.parts(_moved(keys, shifts, axis))
        found = pages[new_page + first]
        up = vertices[tf.bitwise.left_shift(found, cells.page_bits) + new_cell]
        up = tf.where(exists & (found > 0), up, 0)
        # What lies above lies below in turn.
        down = tf.math.unsorted_segment_sum(rows, up, tf.size(at) + 1)[1:]
        neighbours.append(tuple(tf.pad(tf.where(exists, each, 0), [[1, 0]]) for each in (up, down)))
    return neighbours


def _shift(key, j):
    return tf.cast(shift(tf.cast(key, tf.float32), j), tf.int32)


def _moved(keys, shifts, axis):
    """Sheared keys one step up an axis, whereby `t_axis` falls by one and `t_(axis + 1)` rises by one."""
    moved = list(keys)
    for j in range(max(axis, 1), len(keys) + 1):
        change = (j == axis + 1) - (j == axis)
        if j > max(axis, 1):
            change = change + _shift(moved[j - 2], j) - shifts[j - 2]
        moved[j - 1] = keys[j - 1] + change
    return moved


def _checked(ranges, bits, features, batch):
    """Gives the ranges back, but refuses key spaces of too many pages; of static ones before they run."""
    sides = [2**bit for bit in bits]
    if all(isinstance(each, int) for each in (*ranges, batch)):
        if math.prod(-(-extent // side) for extent, side in zip(ranges, sides, strict=True)) * batch > _MOST_PAGES:
            raise KerassegError(TOO_MANY_CELLS)
        return ranges
    pages = tf.reduce_prod(tf.math.ceil(tf.cast(tf.stack(ranges), tf.float64) / sides)) * tf.cast(batch, tf.float64)
    # No key is farther from 0 than d times the largest feature.
    exact = tf.reduce_max(tf.abs(features)) * features.shape[0] <= LARGEST_KEY
    return _if((pages <= _MOST_PAGES) & exact, ranges, TOO_MANY_CELLS)


def _if(condition, values, message: str):
    """Gives the values back if the condition holds."""
    if tf.executing_eagerly():
        if not condition:
            raise KerassegError(message)
        return values
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return [tf.identity(each) for each in values]


def kernel_sums(lattice: Lattice) -> tf.Tensor:
    """The kernel applied to a map of ones, `K 1`: shape `(N, 1)`."""
    rows = tf.math.unsorted_segment_sum(lattice.weights, lattice.corners, tf.size(lattice.neighbours[0][0]))
    for up, down in lattice.neighbours:
        rows += 0.5 * (tf.gather(rows, up) + tf.gather(rows, down))
    return lattice.scale * tf.reduce_sum(lattice.weights * tf.gather(rows, lattice.corners), 1, keepdims=True)
