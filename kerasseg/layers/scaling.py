"""Constant scaling of feature streams."""

import keras


@keras.saving.register_keras_serializable("kerasseg")
class ChannelScale(keras.layers.Layer):
    """Multiplies each channel by a constant that is stored with the weights but never trained.

    Args:
        value: The constant that every channel starts with.
    Reference:
        Shelhamer et al. 2017, §4.3: streams scaled so that all of them train at once; Caffe's Scale layer without bias, lr 0.
    """

    def __init__(self, value: float, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.value)
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer=initializer, trainable=False, name="scale")

    def call(self, x):
        return x * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "value": self.value}
