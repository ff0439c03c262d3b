"""Continuing an image beyond its border by its mirror image."""

import keras
import tensorflow as tf

from kerasseg.ops import spatial_shape


@keras.saving.register_keras_serializable("kerasseg")
class ReflectionPadding2D(keras.layers.Layer):
    """Continues an image on all four sides by reflection; the outermost pixels are not repeated.

    An image smaller than the margin is reflected again and again, one of a single pixel is continued by that pixel: NumPy's
    `pad(mode="reflect")` and OpenCV's `BORDER_REFLECT_101`, whereas TensorFlow's own operation ends with the first reflection.

    Args:
        margin: Pixels on each side.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, H + 2 * margin, W + 2 * margin, C)`.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §4 ("we use reflection padding"); fyu/dilation's predict.py.
    """

    def __init__(self, margin: int, **kwargs):
        super().__init__(**kwargs)
        if margin < 0:
            raise ValueError(f"received margin={margin}: expected 0 pixels or more")
        self.margin = margin

    def call(self, x):
        for axis, size in enumerate(spatial_shape(x), start=1):
            x = tf.gather(x, self._sources(size), axis=axis)
        return x

    def _sources(self, size):
        """The row of the image that each row of the result is: … 2 1 0 1 2 … n−2 n−1 n−2 …, of period 2(n − 1)."""
        period = tf.maximum(2 * (size - 1), 1)
        places = tf.math.floormod(tf.range(-self.margin, size + self.margin), period)
        return tf.minimum(places, period - places)

    def compute_output_shape(self, input_shape):
        height, width = (None if n is None else n + 2 * self.margin for n in input_shape[1:3])
        return (input_shape[0], height, width, input_shape[3])

    def coordinate_map(self):
        """Input position = output position − margin, inside the image."""
        return 1, -self.margin

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
