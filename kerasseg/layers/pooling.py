"""Pooling with Caffe's output sizes."""

import keras
import tensorflow as tf

from kerasseg.ops import spatial_shape


def _caffe_pooled_size(size, pool_size: int, stride: int, padding: int):
    """Counts the windows in one dimension of `size` cells, a number or a scalar tensor."""
    count = -((pool_size - size - 2 * padding) // stride) + 1
    if padding == 0:
        # Caffe has no window for a map smaller than it by a stride or more.
        return max(count, 1) if isinstance(count, int) else tf.maximum(count, 1)
    in_padding = (count - 1) * stride >= size + padding
    if isinstance(count, int):
        return count - int(in_padding)
    return count - tf.cast(in_padding, count.dtype)


@keras.saving.register_keras_serializable("kerasseg")
class CeilMaxPooling2D(keras.layers.Layer):
    """Max pooling that rounds its output size up, so that no row or column of the input is dropped.

    Output size is ceil((n + 2·padding − pool_size) / strides) + 1, less one if the last window would start in the padding, and
    at least 1: a map smaller than the window is one window. Cells outside the map count as −∞.

    Args:
        pool_size: Side of the window in cells.
        strides: Step of the window in cells.
        padding: Cells of −∞ on each side.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, h, w, C)`.
    Reference:
        Caffe's Pooling layer.
    """

    def __init__(self, pool_size: int = 2, strides: int = 2, padding: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.pool_size, self.strides, self.padding = pool_size, strides, padding

    def call(self, x):
        halves = self.padding == 0 and self.pool_size == self.strides == 2
        if halves or (self.strides == 1 and self.pool_size == 2 * self.padding + 1):
            # The same thing in one operation; these are the common cases, and export as one.
            return tf.nn.max_pool2d(x, self.pool_size, self.strides, "SAME")
        pads = [[0, 0], *(self._pads(n) for n in spatial_shape(x)), [0, 0]]
        x = tf.pad(x, pads, constant_values=x.dtype.min)
        return tf.nn.max_pool2d(x, self.pool_size, self.strides, "VALID")

    def _pads(self, size):
        count = _caffe_pooled_size(size, self.pool_size, self.strides, self.padding)
        after = (count - 1) * self.strides + self.pool_size - size - self.padding
        # A negative pad: the floor in VALID drops those cells by itself.
        return [self.padding, max(after, 0) if isinstance(after, int) else tf.maximum(after, 0)]

    def compute_output_shape(self, input_shape):
        def count(n):
            return None if n is None else _caffe_pooled_size(n, self.pool_size, self.strides, self.padding)

        return (input_shape[0], count(input_shape[1]), count(input_shape[2]), input_shape[3])

    def coordinate_map(self):
        """Input position = strides · output position + (pool_size − 1) / 2 − padding."""
        return self.strides, (self.pool_size - 1) / 2 - self.padding

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides, "padding": self.padding}
