"""Padding whose amount depends on the size of the image."""

import keras
import tensorflow as tf

from kerasseg.ops import spatial_shape


@keras.saving.register_keras_serializable("kerasseg")
class PadToGrid(keras.layers.Layer):
    """Adds zeros at the bottom and right until the last cell of a map of this stride lies beyond the image.

    The size becomes a multiple of `stride` plus 1, unless no more than `slack` pixels are missing to it.

    Args:
        stride: Pixels between two cells.
        slack: Pixels that may be missing, because the layers that follow round sizes up.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, h, w, C)`.
    Reference:
        The data layer of the DeepLab releases, which pads images with their mean (zero, once it is subtracted) to 513 pixels.
    """

    def __init__(self, stride: int, slack: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.stride, self.slack = stride, slack

    def _missing(self, size):
        missing = (1 - size) % self.stride
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
        return {**super().get_config(), "stride": self.stride, "slack": self.slack}
