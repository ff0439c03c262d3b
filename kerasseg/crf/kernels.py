"""The kernels of a CRF over images: features of the pixels, and the filters made of them."""

import dataclasses

import tensorflow as tf

from kerasseg.crf.filters import ExactFilter, filter_of
from kerasseg.crf.lattice import build, compiled_by_xla
from kerasseg.errors import KerassegError

METHODS = ("lattice", "exact")
"""How kernels are applied: by the permutohedral lattice, or as dense matrices, for small images."""

_COLOR_RANGE = 255.0


def positions(batch, height, width, theta: float) -> list:
    """Column and row of every pixel in units of a standard deviation: two tensors `(batch · height · width,)`, float32."""
    columns, rows = (_quotient(tf.cast(tf.range(size), tf.float32), theta) for size in (width, height))
    return [tf.tile(columns, [batch * height]), tf.tile(tf.repeat(rows, width), [batch])]


def bilateral_filter(image, theta_alpha: float, theta_beta: float, normalization: str, method: str = "lattice", mask=None):
    """The kernel over positions and colours.

    Args:
        image: Shape `(B, H, W, K)`, float32, values no more than 255 apart where XLA compiles.
        theta_alpha: Standard deviation of positions in pixels.
        theta_beta: Standard deviation of colours.
        normalization: One of `kerasseg.crf.parameters.NORMALIZATIONS`.
        method: One of `METHODS`.
        mask: Shape `(B, H, W)`, true where there is an image; `None`: everywhere.
    Returns:
        Filter of maps `(B·H·W, C)`, as `filter_of` makes it.
    """
    sizes = _sizes(image)
    spans = (*_spans(sizes, theta_alpha), *[_COLOR_RANGE / theta_beta] * image.shape[-1])
    theta_alpha, theta_beta = (_at_run_time(theta, image) for theta in (theta_alpha, theta_beta))
    colors = tf.unstack(_quotient(tf.reshape(image, [-1, image.shape[-1]]), theta_beta), axis=1)
    return _filter([*positions(*sizes, theta_alpha), *colors], sizes[0], spans, normalization, method, mask)


def spatial_filter(image, theta_gamma: float, normalization: str, method: str = "lattice", mask=None):
    """The kernel over positions alone; arguments and result as of `bilateral_filter`, of the image only the size counts."""
    sizes = _sizes(image)
    features = positions(*sizes, _at_run_time(theta_gamma, image))
    return _filter(features, sizes[0], _spans(sizes, theta_gamma), normalization, method, mask)


def _at_run_time(theta, image):
    """Hides from XLA that it is a constant: by such it does not divide, and what depends on sizes alone it works out beforehand."""
    if not compiled_by_xla():
        return theta
    first = tf.reshape(image, [-1])[0]
    return theta + 0.0 * tf.where(tf.math.is_finite(first), first, 0.0)


def _quotient(values, theta):
    # A division by a constant is made a multiplication by its reciprocal, whose rounding moves some pixels to other vertices.
    return tf.math.divide_no_nan(values, tf.convert_to_tensor(theta, tf.float32))


def _filter(features, batch, spans, normalization, method, mask):
    if method not in METHODS:
        raise KerassegError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    features = tf.stack(features)
    # What is no number has no place in the lattice, and is told by results that are none.
    finite = tf.reduce_all(tf.math.is_finite(features), 0)
    features = tf.where(finite, features, 0.0)
    weights = tf.where(finite, 1.0, float("nan"))
    if mask is not None:
        mask = tf.reshape(mask, [batch, -1])
        features = _without(features, mask, batch)
        weights = tf.where(tf.reshape(mask, [-1]), weights, 0.0)
    if method == "exact":
        return ExactFilter.of(features, batch, normalization, weights)
    lattice = build(features, batch, spans)
    return filter_of(dataclasses.replace(lattice, weights=lattice.weights * weights[:, tf.newaxis]), normalization)


def _without(features, mask, batch):
    """Puts pixels that are none where there is one, so that they make no vertices."""
    grouped = tf.reshape(features, [features.shape[0], batch, -1])
    first = tf.argmax(mask, axis=1, output_type=tf.int32)
    there = tf.stack([tf.gather(each, first, batch_dims=1) for each in tf.unstack(grouped)])
    return tf.reshape(tf.where(mask, grouped, there[..., tf.newaxis]), tf.shape(features))


def _sizes(image):
    known, sizes = image.shape[:3], tf.shape(image)
    return [sizes[axis] if known[axis] is None else known[axis] for axis in range(3)]


def _spans(sizes, theta):
    """How far apart columns and rows are; of sizes that are not known, nothing that counts."""
    return tuple((sizes[axis] - 1) / theta if isinstance(sizes[axis], int) else 0.0 for axis in (2, 1))
