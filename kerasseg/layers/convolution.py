"""Convolution as every network here uses it."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasseg")
class Conv2D(keras.layers.Conv2D):
    """Keras' Conv2D whose groups run, train and export everywhere.

    Keras hands a grouped convolution to XLA, which compiles it anew for every image size and which TFLite cannot convert. Here
    the groups are ordinary convolutions side by side. Arguments, configuration, weights and numbers are Keras'.

    Reference:
        Krizhevsky et al. 2012, §3.5: AlexNet's conv2, conv4 and conv5 have two groups.
    """

    def convolution_op(self, inputs, kernel):
        """Applies the kernel group by group.

        Args:
            inputs: Shape `(B, H, W, in)`.
            kernel: Shape `(kh, kw, in / groups, out)`.
        Returns:
            Shape `(B, h, w, out)`, without bias and activation.
        """
        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        pairs = zip(tf.split(inputs, self.groups, axis=-1), tf.split(kernel, self.groups, axis=-1), strict=True)
        return tf.concat([super(Conv2D, self).convolution_op(part, weights) for part, weights in pairs], axis=-1)
