"""Pure tensor functions that the layers are made of."""

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError


def bilinear_kernel(size: int) -> np.ndarray:
    """Computes the square kernel with which a strided transposed convolution interpolates bilinearly.

    Args:
        size: Side of the kernel in pixels; `2 * stride`, or `2 * stride - 1` where the output shall fall on the input's cells.
    Returns:
        Shape `(size, size)`, float32. For `size = 2 * stride` it sums to `stride ** 2`.
    Reference:
        Shelhamer, Long & Darrell 2017, §3.3; the authors' surgery.upsample_filt.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(size) - centre) / factor
    return np.outer(line, line).astype("float32")


def spatial_shape(x: tf.Tensor) -> tuple:
    """Gives height and width, as numbers where they are known and as scalar tensors where they are not.

    Args:
        x: Shape `(B, H, W, C)`.
    Returns:
        `(H, W)`.
    """
    dynamic = tf.shape(x)
    return tuple(dynamic[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2))


def crop(x: tf.Tensor, begin: int, height, width) -> tf.Tensor:
    """Cuts a window out of an image or map.

    Not by x[:, a:b, c:d], whose gradient is written by one thread: eleven times the time on two cores.

    Args:
        x: Shape `(B, H, W, C)`.
        begin: First row and first column of the window.
        height: Rows of the window, a number or a scalar tensor.
        width: Columns, likewise.
    Returns:
        Shape `(B, height, width, C)`.
    """
    window = tf.slice(x, [0, begin, begin, 0], [-1, height, width, -1])
    # Where the size is a tensor, TensorFlow would not even know the number of channels.
    size = [n if isinstance(n, int) else None for n in (height, width)]
    window.set_shape((x.shape[0], *size, x.shape[3]))
    return window


def upsample_bilinear(x: tf.Tensor, kernel_size: int, stride: int) -> tf.Tensor:
    """Upsamples every channel as a transposed convolution with a fixed bilinear kernel does.

    The result equals `Conv2DTranspose(kernel_size, stride, padding="valid")` with `bilinear_kernel` on the diagonal, border
    fading to zero included, but costs one interpolation for each value instead of a dense convolution over the channels.

    Args:
        x: Shape `(B, h, w, C)`.
        kernel_size: `2 * stride` with an even stride, or `2 * stride - 1`.
        stride: Output pixels per input cell.
    Returns:
        Shape `(B, (h - 1) * stride + kernel_size, (w - 1) * stride + kernel_size, C)`, float32.
    Raises:
        ValueError: For any other kernel size, which is not bilinear interpolation.
    """
    aligned = kernel_size == 2 * stride - 1
    if not aligned and (kernel_size != 2 * stride or stride % 2):
        raise ValueError(
            f"kernel_size {kernel_size} with stride {stride} is not bilinear interpolation: "
            f"use kernel_size={2 * stride - 1}" + ("" if stride % 2 else f" or {2 * stride}")
        )
    height, width = spatial_shape(x)
    # A transposed convolution sees zeros beyond the border: one ring of them suffices for a triangle of width two cells.
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    if aligned:
        size, begin = [(n + 1) * stride + 1 for n in (height, width)], 1
    else:
        size, begin = [(n + 2) * stride for n in (height, width)], stride // 2
    if aligned:
        x = resize_aligned(x, *size)
    else:
        x = tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=False, half_pixel_centers=True)
    return crop(x, begin, *(n - 2 * begin for n in size))


def resize_aligned(x: tf.Tensor, height, width) -> tf.Tensor:
    """Resizes bilinearly with aligned corners: the first and last cells of both maps coincide.

    TensorFlow's own operation does it where both sides are known to grow by a power of two, or to stay; elsewhere a product with
    one matrix a side. That is the slower, by less than a hundredth of what a network takes, but right when XLA compiles it, also
    long after it was traced: XLA's form of the operation gives wrong values for many other factors, such as 4 → 64 or 33 → 97.

    Args:
        x: Shape `(B, h, w, C)`.
        height: Rows of the result, a number or a scalar tensor.
        width: Columns, likewise.
    Returns:
        Shape `(B, height, width, C)`, float32.
    Reference:
        Caffe's Interp layer in the DeepLab releases: the ratio of positions is (h − 1) / (height − 1).
    """
    sides = list(zip(spatial_shape(x), (height, width), strict=True))
    if x.shape[1:3] == (1, 1):
        # One cell is the same everywhere.
        resized = tf.broadcast_to(tf.cast(x, "float32"), [tf.shape(x)[0], height, width, x.shape[3]])
    elif all(_grows_by_a_power_of_two(*side) for side in sides):
        # The raw operation: tf.image.resize has no aligned corners.
        resized = tf.raw_ops.ResizeBilinear(images=x, size=[height, width], align_corners=True, half_pixel_centers=False)
    else:
        rows, columns = (_aligned_weights(*side) for side in sides)
        resized = tf.einsum("xw,bywc->byxc", columns, tf.einsum("yh,bhwc->bywc", rows, tf.cast(x, "float32")))
    resized.set_shape((x.shape[0], *(n if isinstance(n, int) else None for n in (height, width)), x.shape[3]))
    return resized


def _grows_by_a_power_of_two(size, new_size) -> bool:
    if not isinstance(size, int) or not isinstance(new_size, int):
        return False
    factor, rest = divmod(new_size - 1, max(size - 1, 1))
    return size == new_size or (size > 1 and rest == 0 and factor.bit_count() == 1)


def _aligned_weights(size, new_size):
    """Shape `(new_size, size)`: how much of each cell is in each new one."""
    last, new_last = (tf.cast(n - 1, "float64") for n in (size, new_size))
    position = tf.range(new_size, dtype="float64") * (last / tf.maximum(new_last, 1.0))
    distance = tf.abs(position[:, None] - tf.range(size, dtype="float64")[None])
    return tf.cast(tf.nn.relu(1.0 - distance), "float32")


def _cells(x: tf.Tensor) -> list[tf.Tensor]:
    """The upper left, upper right, lower left and lower right cells of all windows of 2×2."""
    return [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]


def max_pool_with_mask(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes the maxima of windows of 2×2 and notes where they stood.

    It equals `tf.nn.max_pool_with_argmax`, ties included, and is made of operations that XLA compiles and TFLite has.

    Args:
        x: Shape `(B, H, W, C)`, H and W even.
    Returns:
        The maxima, shape `(B, H/2, W/2, C)`; and the mask, shape `(B, H/2, W/2, 4·C)`, boolean: for each channel of the first
        C whether the first maximum of the window, row by row, is its upper left cell, then likewise upper right, lower left and
        lower right. Exactly one of the four is true.
    Raises:
        KerassegError: If a side is known to be odd; one that shows only in a running graph ends it.
    Reference:
        Noh, Hong & Han 2015, §3.2 (switch variables); the pooling layer of HyeonwooNoh/caffe.
    """
    if any(side is not None and side % 2 for side in x.shape[1:3]):
        raise KerassegError(f"received a map of {x.shape[1]}x{x.shape[2]} cells: windows of 2x2 need even sides; pad or crop it")
    first, *others = _cells(tf.stop_gradient(x))
    pooled, larger = first, []
    for cell in others:
        # Not ≥: of equal cells, the first one stays. Running, and not against the maximum, so that −0 and 0 are told apart too.
        larger.append(cell > pooled)
        pooled = tf.where(larger[-1], cell, pooled)
    second, third, fourth = larger
    positions = [~(second | third | fourth), second & ~(third | fourth), third & ~fourth, fourth]
    mask = tf.concat(positions, axis=-1)
    if None in x.shape[1:3]:
        # Slices of odd sides differ by one, and where that is one against two, they would be spread out silently.
        size = [side // 2 for side in spatial_shape(x)]
        pooled, mask = (tf.reshape(y, [tf.shape(x)[0], *size, y.shape[-1]]) for y in (pooled, mask))

    @tf.custom_gradient
    def maxima(x):
        # What TensorFlow derives goes through slices, whose gradients one thread writes.
        return tf.identity(pooled), lambda upstream: max_unpool(upstream, mask)

    return maxima(x), mask


def max_unpool(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Puts every value back to where the maximum of its window stood, among zeros.

    Args:
        x: Shape `(B, h, w, C)`.
        mask: From `max_pool_with_mask`, shape `(B, h, w, 4·C)`, boolean.
    Returns:
        Shape `(B, 2·h, 2·w, C)`, the type of x.
    Reference:
        Noh, Hong & Han 2015, §3.2 and Figure 3.
    """

    @tf.custom_gradient
    def unpool(x):
        spread = tf.where(mask, tf.concat([x] * 4, axis=-1), tf.zeros((), x.dtype))

        def gradient(upstream):
            here = tf.where(mask, tf.concat(_cells(upstream), axis=-1), tf.zeros((), x.dtype))
            return tf.add_n(tf.split(here, 4, axis=-1))

        return tf.nn.depth_to_space(spread, 2), gradient

    return unpool(x)
