"""A background class that is not learned."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasseg")
class NullBackground(keras.layers.Layer):
    """Puts a class that scores zero everywhere before all others.

    Input shape:
        `(B, H, W, C - 1)`.
    Output shape:
        `(B, H, W, C)`; channel 0 is zero.
    Reference:
        Shelhamer et al. 2017, §6.1, "Background modeling".
    """

    def call(self, x):
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [1, 0]])

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], input_shape[3] + 1)

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0
