"""Padding whose amount depends on the size of the image."""

import keras
import tensorflow as tf

from kerasseg.ops import crop, spatial_shape


@keras.saving.register_keras_serializable("kerasseg")
class PadToGrid(keras.layers.Layer):
    """Adds zeros at the bottom and right until the last cell of a map of this stride lies beyond the image.

    The size becomes a multiple of `stride` plus `remainder`, unless no more than `slack` pixels are missing to it.

    Args:
        stride: Pixels between two cells.
        slack: Pixels that may be missing, because the layers that follow round sizes up.
        remainder: 1 where the first and the last cell lie on the first and the last pixel (DeepLab); 0 where cells are blocks of
            `stride` pixels.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, h, w, C)`.
    Reference:
        The data layer of the DeepLab releases, which pads images with their mean (zero, once it is subtracted) to 513 pixels;
        Peng et al. 2017, §4.1, which pads them to 512.
    """

    def __init__(self, stride: int, slack: int = 0, remainder: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.stride, self.slack, self.remainder = stride, slack, remainder

    def _missing(self, size):
        missing = (self.remainder - size) % self.stride
        if isinstance(size, int):
            return missing if missing > self.slack else 0
        return tf.where(missing > self.slack, missing, 0)

    def call(self, x):
        missing = [self._missing(n) for n in spatial_shape(x)]
        if all(isinstance(n, int) and n == 0 for n in missing):
            return x
        return tf.pad(x, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])

    def compute_output_shape(self, input_shape):
        height, width = (None if n is None else n + self._missing(n) for n in input_shape[1:3])
        return (input_shape[0], height, width, input_shape[3])

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "stride": self.stride, "slack": self.slack, "remainder": self.remainder}


@keras.saving.register_keras_serializable("kerasseg")
class FitLike(keras.layers.Layer):
    """Brings the first map to the second's height and width at the bottom and right: cuts off, or repeats the last row or column.

    For maps whose first cells coincide, but whose sizes were rounded differently on the way. Called on `[x, reference]`; only
    the reference's size is used.

    Input shape:
        `(B, H, W, C)` and `(B, h, w, any)`.
    Output shape:
        `(B, h, w, C)`.
    """

    # For coordinate_map: the second input gives only its size.
    aligned_inputs = 1

    def call(self, inputs):
        x, reference = inputs
        sizes = list(zip(spatial_shape(x), spatial_shape(reference), strict=True))
        if all(isinstance(have, int) and have == want for have, want in sizes):
            return x
        known = all(isinstance(n, int) for pair in sizes for n in pair)
        if not known or any(want > have for have, want in sizes):
            for axis, (have, want) in enumerate(sizes, start=1):
                x = self._extended(x, axis, have, want)
        return crop(x, 0, *(want for _, want in sizes))

    @staticmethod
    def _extended(x, axis: int, have, want):
        """Repeats the last cells until there are at least as many as wanted."""
        missing = tf.maximum(want - have, 0)
        last = tf.gather(x, [have - 1], axis=axis)
        shape = [1, 1, 1, 1]
        shape[axis] = missing
        return tf.concat([x, tf.tile(last, shape)], axis)

    def compute_output_shape(self, input_shape):
        x, reference = input_shape
        return (x[0], reference[1], reference[2], x[3])

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0
