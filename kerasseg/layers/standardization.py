"""Keras' normalisation by given statistics, computed with the weights that it has."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasseg")
class Normalization(keras.layers.Normalization):
    """Keras' Normalization that reads mean and variance in every call.

    Keras' own computes with a copy that only `adapt` and a file's loading renew: after `set_weights` or `assign` its numbers
    would still be those of the old weights. Arguments, configuration and weights are the same.

    Input shape:
        `(B, H, W, C)`.
    Output shape:
        The same.
    """

    def finalize_state(self):
        """Keras' copy, which is not made."""

    def call(self, inputs):
        if self.input_mean is not None:
            return super().call(inputs)
        inputs = tf.cast(inputs, self.compute_dtype)
        weights = (tf.reshape(weight, self._broadcast_shape) for weight in (self.adapt_mean, self.adapt_variance))
        mean, variance = (tf.cast(weight, self.compute_dtype) for weight in weights)
        deviation = tf.maximum(tf.sqrt(variance), keras.backend.epsilon())
        return inputs * deviation + mean if self.invert else (inputs - mean) / deviation

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0
