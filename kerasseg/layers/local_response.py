"""Normalisation over neighbouring channels."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasseg")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each value by a power of the energy of its neighbouring channels, as Caffe's LRN does.

    y = x / (bias + alpha / size · Σ x²)^beta, the sum over `size` channels around each. TensorFlow's operation of the same name
    does not divide alpha by the size.

    Args:
        size: Channels in the window, odd.
        alpha: Weight of the energy.
        beta: Exponent.
        bias: Constant under the power.
    Reference:
        Krizhevsky et al. 2012, §3.3, with CaffeNet's constants.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.size, self.alpha, self.beta, self.bias = size, alpha, beta, bias

    def call(self, x):
        radius = (self.size - 1) // 2
        normalized = tf.nn.local_response_normalization(
            tf.cast(x, "float32"), depth_radius=radius, bias=self.bias, alpha=self.alpha / self.size, beta=self.beta
        )
        return tf.cast(normalized, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "size": self.size, "alpha": self.alpha, "beta": self.beta, "bias": self.bias}
