"""Convolution as every network here uses it."""

import functools

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasseg")
class Conv2D(keras.layers.Conv2D):
    """Keras' Conv2D whose dilations are native, and whose groups run, train and export everywhere.

    Keras rearranges the image for a dilated convolution (SpaceToBatchND), which costs time, more so in bfloat16 and at large
    rates, and at unknown sizes stays in exported files. Here the kernel itself is dilated, wherever this process can train so.
    Keras hands a grouped convolution to XLA, which compiles it anew for every image size and which TFLite cannot convert. Here
    the groups are ordinary convolutions side by side. Arguments, configuration, weights and numbers are Keras'.

    Reference:
        Chen et al. 2015, §3.1 (the hole algorithm); Krizhevsky et al. 2012, §3.5: AlexNet's conv2, conv4 and conv5 have two
        groups.
    """

    def convolution_op(self, inputs, kernel):
        """Applies the kernel, group by group.

        Args:
            inputs: Shape `(B, H, W, in)`.
            kernel: Shape `(kh, kw, in / groups, out)`.
        Returns:
            Shape `(B, h, w, out)`, without bias and activation.
        """
        if self.groups == 1 or self.data_format != "channels_last":
            return self._convolve(inputs, kernel)
        pairs = zip(tf.split(inputs, self.groups, axis=-1), tf.split(kernel, self.groups, axis=-1), strict=True)
        return tf.concat([self._convolve(part, weights) for part, weights in pairs], axis=-1)

    def _convolve(self, inputs, kernel):
        plain = max(self.dilation_rate) == 1 or self.data_format != "channels_last" or len(inputs.shape) != 4
        if plain or not has_native_dilation(inputs.dtype.name):
            return super().convolution_op(inputs, kernel)
        return tf.nn.conv2d(inputs, kernel, strides=1, padding=self.padding.upper(), dilations=self.dilation_rate)


@functools.cache
def has_native_dilation(dtype: str) -> bool:
    """Tells, by trying once, whether this process can compute the gradients of a dilated convolution natively.

    GPUs can, and CPUs with oneDNN in float32 and, where the processor has instructions for it, in bfloat16 and float16. Other
    CPU kernels raise. On a TPU both answers give the same program: there Keras does not rearrange either.

    Args:
        dtype: Type of the image and the kernel: `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`.
    Returns:
        Whether the gradients for image and kernel exist and are right, on the device that TensorFlow prefers.
    """
    # Outside any graph that is being traced: a question to the machine, not to the network.
    with tf.init_scope():
        image, kernel = tf.ones((1, 5, 5, 1), dtype), tf.ones((3, 3, 1, 1), dtype)
        call = {"out_backprop": image, "strides": [1] * 4, "padding": "SAME", "dilations": [1, 2, 2, 1]}
        try:
            to_image = tf.raw_ops.Conv2DBackpropInput(input_sizes=image.shape, filter=kernel, **call)
            to_kernel = tf.raw_ops.Conv2DBackpropFilter(input=image, filter_sizes=kernel.shape, **call)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.NotFoundError):
            return False
        # In how many windows each pixel lies, and how many pixels each weight meets, along one side.
        pairs = ((to_image, [2, 2, 3, 2, 2]), (to_kernel, [3, 5, 3]))
        return all(np.array_equal(np.squeeze(got), np.outer(side, side)) for got, side in pairs)
