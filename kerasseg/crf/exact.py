"""Gaussian kernels as dense matrices: exact, for small images, and what the lattice is measured against."""

import tensorflow as tf

from kerasseg.crf.parameters import NORMALIZATIONS
from kerasseg.errors import KerassegError

MAXIMUM_PIXELS = 20_000
"""Pixels from which on no dense matrix is made: at 20,000 one holds 1.6 GB."""

# As in the authors' programs: a row sum of 0 gives a large number instead of infinity.
_TINY = 1e-20


def kernel(features) -> tf.Tensor:
    """The matrix of a Gaussian kernel: exp(−½ |f_i − f_j|²) for every pair of pixels, each pixel with itself included.

    Plain operations throughout, so that gradients reach the features, too.

    Args:
        features: Shape `(d, N)`, or `(d, B, N)` for B images, float32 or float64: d numbers of each of N pixels, each divided by
            its standard deviation θ.
    Returns:
        Shape `(N, N)` or `(B, N, N)`, of the features' type, 0 to 1, symmetric, 1 on its diagonal.
    Raises:
        KerassegError: If there are more than `MAXIMUM_PIXELS` pixels.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, Eqs. (2) and (3).
    """
    features = tf.convert_to_tensor(features)
    pixels = features.shape[-1]
    if pixels is not None and pixels > MAXIMUM_PIXELS:
        raise KerassegError(too_large(pixels))
    if pixels is None:
        pixels = tf.shape(features)[-1]
        # Not under XLA, which ignores assertions; but there sizes are static, and were checked above.
        with tf.control_dependencies([tf.debugging.Assert(pixels <= MAXIMUM_PIXELS, [too_large("this many"), pixels])]):
            features = tf.identity(features)
    squares = 0.0
    # Differences first: of squared lengths, whose differences are small, float32 would keep three digits.
    for index in range(features.shape[0]):
        feature = features[index]
        squares += tf.square(feature[..., :, None] - feature[..., None, :])
    return tf.exp(-0.5 * squares)


def normalized(matrix: tf.Tensor, normalization: str = "symmetric") -> tf.Tensor:
    """Scales a kernel by its row sums n = K·1.

    Args:
        matrix: Shape `(N, N)` or `(B, N, N)`, from `kernel`.
        normalization: "symmetric": n^-½ from both sides; "after": 1/n on the rows, so that what is filtered is averaged;
            "before": 1/n on the columns; "none": as it is.
    Returns:
        The same shape.
    Raises:
        KerassegError: If the normalization is unknown.
    Reference:
        Krähenbühl & Koltun 2013, "Parameter Learning and Convergent Inference for Dense Random Fields" (symmetric); 2011 (after).
    """
    if normalization not in NORMALIZATIONS:
        raise KerassegError(f"CRF normalization {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}")
    before, after = normalizers(tf.reduce_sum(matrix, axis=-1), normalization)
    matrix = matrix if after is None else after[..., :, None] * matrix
    return matrix if before is None else matrix * before[..., None, :]


def normalizers(sums, normalization: str) -> tuple:
    """What values are multiplied by before and after filtering.

    Args:
        sums: The kernel's row sums n = K·1, of any shape.
        normalization: As for `normalized`.
    Returns:
        Two tensors like `sums`; `None` is 1.
    """
    if normalization == "none":
        return None, None
    if normalization == "symmetric":
        inverse = tf.math.rsqrt(sums + _TINY)
        return inverse, inverse
    inverse = 1.0 / (sums + _TINY)
    return (None, inverse) if normalization == "after" else (inverse, None)


def filtered(features, values, normalization: str = "none") -> tf.Tensor:
    """Filters values by a Gaussian kernel, exactly.

    Args:
        features: Shape `(d, N)`, as for `kernel`.
        values: Shape `(N, C)`, of the same type.
        normalization: As for `normalized`.
    Returns:
        Shape `(N, C)`.
    Raises:
        KerassegError: As `kernel` and `normalized`.
    """
    return tf.matmul(normalized(kernel(features), normalization), values)


def too_large(pixels) -> str:
    """Says, in one line, that an image is too large for the exact method."""
    return (
        f"{pixels} pixels are too many for method='exact', whose matrices hold pixels² numbers: expected at most "
        f"{MAXIMUM_PIXELS:,}, or method='lattice'"
    )
