"""What takes the place of a strided layer where a network is made denser than it was trained: see `kerasseg.backbones.atrous`."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.ops import spatial_shape


def _at_least(value, least: int):
    return max(value, least) if isinstance(value, int) else tf.maximum(value, least)


def _at_most(value, most: int):
    return min(value, most) if isinstance(value, int) else tf.minimum(value, most)


def _border(cells, size: int, stride: int, rate: int, padding: str, spare: int) -> tuple:
    """Counts the cells to put before and after one side of `cells`, a number or a scalar tensor."""
    coarse = -(-cells // rate)
    if padding == "same":
        # TensorFlow's SAME on the coarse map: where the stride leaves a remainder, the first window starts elsewhere.
        missing = _at_least((-(-coarse // stride) - 1) * stride + size - coarse, 0)
        before = missing // 2 * rate
        return before, (size - 1) * rate - before
    windows = -(-(coarse - size + 1) // stride)
    missing = windows * stride * rate - (cells - (size - 1) * rate)
    return 0, _at_least(_at_most(missing, spare * rate), 0)


class _Window(keras.layers.Layer):
    """The arguments of a window that was strided on a coarse map, and where it now looks on a map `rate` times as dense."""

    def __init__(self, size, strides: int = 1, rate: int = 1, padding: str = "same", spare=(0, 0), **kwargs):
        super().__init__(**kwargs)
        if padding not in ("same", "valid"):
            raise ValueError(f"received padding='{padding}': expected 'same' or 'valid'")
        self.size, self.strides, self.rate, self.padding, self.spare = tuple(size), strides, rate, padding, tuple(spare)

    def _borders(self, height, width) -> list:
        sides = zip((height, width), self.size, self.spare, strict=True)
        return [_border(cells, size, self.strides, self.rate, self.padding, spare) for cells, size, spare in sides]

    def cells_before(self, axis: int, cells: int | None) -> int:
        """Counts the cells put before a map of so many cells along an axis, 0 for the height; for `coordinate_map`.

        Raises:
            ValueError: If that depends on a size that is not known.
        """
        if cells is None and self.padding == "same" and self.strides > 1:
            raise ValueError(f"{self.name}: its border depends on sizes that are not known; give the input a fixed size")
        return _border(cells or 1, self.size[axis], self.strides, self.rate, self.padding, self.spare[axis])[0]

    def _padded(self, x, value):
        borders = self._borders(*spatial_shape(x))
        if all(isinstance(cells, int) and cells == 0 for border in borders for cells in border):
            return x
        padded = tf.pad(x, [[0, 0], *map(list, borders), [0, 0]], constant_values=value)
        # Where the border is a tensor, TensorFlow would not even know the number of channels.
        padded.set_shape((x.shape[0], *self._padded_sizes(x.shape), x.shape[3]))
        return padded

    def _padded_sizes(self, shape) -> list:
        sizes = []
        for axis in (0, 1):
            cells = shape[axis + 1]
            arguments = (self.size[axis], self.strides, self.rate, self.padding, self.spare[axis])
            sizes.append(None if cells is None else cells + sum(_border(cells, *arguments)))
        return sizes

    def get_config(self):
        own = {name: getattr(self, name) for name in ("size", "strides", "rate", "padding", "spare")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasseg")
class AtrousPadding2D(_Window):
    """Puts zeros around a map so that a VALID convolution of stride 1, dilated by `rate`, gives what a strided one gave.

    Let a convolution of kernel `size`, stride `strides` and this padding stand on a coarse map, and let every `rate`-th cell of
    the dense map given here be a cell of that coarse map. Then every (`rate` · `strides`)-th cell of the result is a cell of the
    coarse result, and there are as many of them. With `"same"` the first window depends on whether the stride divides the size,
    which is therefore asked of each map; the result is as large as the map. With `"valid"` zeros come only after the map,
    at most `spare` · `rate`, as many as the coarse result has room for: no cell on the coarse grid sees them.

    Args:
        size: Height and width of the kernel in cells, before dilation.
        strides: Stride that the convolution had.
        rate: Cells of the map per cell of the coarse map; the convolution's dilation.
        padding: `"same"` or `"valid"`, that of the convolution.
        spare: For `"valid"`: by how many coarse cells the result would be lower and narrower than what it was made from.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, H + (size[0] - 1) · rate, W + (size[1] - 1) · rate, C)` for `"same"`; at most `spare · rate` more than H, W for
        `"valid"`.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.1; the padding is tf.nn.convolution's SAME.
    """

    def call(self, x):
        return self._padded(x, 0)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self._padded_sizes(input_shape), input_shape[3])


@keras.saving.register_keras_serializable("kerasseg")
class AtrousPooling2D(_Window):
    """Pools with stride 1 and holes so that every (`rate` · `strides`)-th cell is what strided pooling of the coarse map gave.

    Cells outside the map count neither for the maximum nor for the average, as in Keras' pooling. The other arguments and the
    sizes are those of `AtrousPadding2D` followed by the window.

    Args:
        size: Height and width of the window in cells, before dilation.
        strides: Stride that the pooling had.
        rate: Cells of the map per cell of the coarse map.
        padding: `"same"` or `"valid"`, that of the pooling.
        spare: As in `AtrousPadding2D`.
        kind: `"max"` or `"average"`.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, H, W, C)` for `"same"`, at most that for `"valid"`.
    """

    def __init__(self, size, strides: int = 1, rate: int = 1, padding: str = "same", spare=(0, 0), kind: str = "max", **kwargs):
        super().__init__(size, strides, rate, padding, spare, **kwargs)
        if kind not in ("max", "average"):
            raise ValueError(f"received kind='{kind}': expected 'max' or 'average'")
        self.kind = kind

    def call(self, x):
        largest = self.kind == "max"
        padded = self._padded(x, x.dtype.min if largest else 0)
        if largest and self.rate == 1:
            return tf.nn.max_pool2d(padded, self.size, 1, "VALID")
        pooled = padded
        for axis in (1, 2):
            pooled = self._along(pooled, axis, tf.maximum if largest else tf.add)
        return pooled if largest else pooled / self._counts(x)

    def _along(self, x, axis: int, combine):
        """Combines the cells of each window along one axis: slices, since TensorFlow would rearrange the map for the holes."""
        length = self.size[axis - 1]
        sizes = list(spatial_shape(x))
        sizes[axis - 1] = sizes[axis - 1] - (length - 1) * self.rate
        result = None
        for tap in range(length):
            begin = [0] * 4
            begin[axis] = tap * self.rate
            part = tf.slice(x, begin, [-1, *sizes, -1])
            part.set_shape((x.shape[0], *(n if isinstance(n, int) else None for n in sizes), x.shape[3]))
            result = part if result is None else combine(result, part)
        return result

    def _counts(self, x):
        """Counts the cells of each window that lie on the map."""
        sides = []
        for cells, size, (before, after) in zip(spatial_shape(x), self.size, self._borders(*spatial_shape(x)), strict=True):
            windows = cells + before + after - (size - 1) * self.rate
            # NumPy where the size is known, so that an exported file holds a constant.
            library = np if isinstance(windows, int) else tf
            positions = library.range(windows) if library is tf else np.arange(windows)
            taps = positions[:, None] - before + self.rate * np.arange(size, dtype="int32")
            on_map = (taps >= 0) & (taps < cells)
            sides.append(tf.reduce_sum(tf.cast(on_map, x.dtype), axis=1))
        return sides[0][None, :, None, None] * sides[1][None, None, :, None]

    def compute_output_shape(self, input_shape):
        padded = zip(self._padded_sizes(input_shape), self.size, strict=True)
        sizes = [None if cells is None else cells - (size - 1) * self.rate for cells, size in padded]
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable("kerasseg")
class Subsampling2D(keras.layers.Layer):
    """Keeps every `rate`-th row and column, from the first on: the coarse map within a dense one.

    Args:
        rate: Cells of the map per cell of the coarse map.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, ⌈H / rate⌉, ⌈W / rate⌉, C)`.
    """

    def __init__(self, rate: int, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x):
        return x[:, :: self.rate, :: self.rate]

    def compute_output_shape(self, input_shape):
        sizes = (None if cells is None else -(-cells // self.rate) for cells in input_shape[1:3])
        return (input_shape[0], *sizes, input_shape[3])

    def coordinate_map(self):
        """Input position = rate · output position."""
        return self.rate, 0

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("kerasseg")
class ScaledAdd(keras.layers.Layer):
    """Adds a scaled branch to a shortcut: called on `[shortcut, branch]`, gives shortcut + scale · branch.

    Args:
        scale: Factor of the branch.
    Input shape:
        `(B, H, W, C)` twice.
    Output shape:
        `(B, H, W, C)`.
    Reference:
        Szegedy et al. 2017, arXiv:1602.07261, §3.3.
    """

    def __init__(self, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        shortcut, branch = inputs
        return shortcut + branch * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
