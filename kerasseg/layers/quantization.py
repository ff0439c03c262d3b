"""Arithmetic of 8 bits, simulated in floating point, so that a network can learn to live with it."""

import keras
import tensorflow as tf

from kerasseg.layers.convolution import Conv2D

# Of a signed 8-bit number without −128, so that zero lies in the middle.
_LARGEST = 127
# Below, a range is one: what is zero everywhere stays zero, instead of 0/0.
_SMALLEST = 1e-12


@tf.custom_gradient
def _rounded(x):
    return tf.round(x), lambda gradient: gradient


def fake_quantize_kernel(kernel, axes: tuple[int, ...]):
    """Rounds a kernel to what an int8 file holds: symmetric around zero, with a scale for each output channel.

    A factor for each channel commutes with it: the kernel may be rounded before batch normalisation is folded into it.

    Args:
        kernel: Float32, any shape.
        axes: Axes over which a scale is shared: all but those of the output channels.
    Returns:
        The same shape: multiples, from −127 to 127, of each channel's largest absolute weight divided by 127. Gradients pass as
        if nothing were rounded.
    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.1; Krishnamoorthi 2018, arXiv:1806.08342, §2.4 and §3.1; the LiteRT 8-bit
        quantization specification (per-axis weights from −127 to 127, zero point 0).
    """
    kernel = tf.convert_to_tensor(kernel)
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), axes, keepdims=True))
    step = tf.maximum(largest, _SMALLEST) / _LARGEST
    return _rounded(kernel / step) * step


def fake_quantize_map(x):
    """Rounds a map to 256 values, evenly spaced over the range of the values that it has, zero among them.

    Args:
        x: Any shape, float.
    Returns:
        The same shape and type, computed in float32. A gradient passes where the value lies in the range, whose ends move by up to
        half a step so that zero is one of the values.
    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.1; `tf.quantization.fake_quant_with_min_max_vars`, whose range is here that of the
        batch.
    """
    values = tf.cast(x, "float32")
    given = tf.stop_gradient(values)
    smallest = tf.minimum(tf.reduce_min(given), 0.0)
    largest = tf.maximum(tf.reduce_max(given), smallest + _SMALLEST)
    # XLA leaves NaN out of a maximum, and the operation below would clip it: what is not finite shall show in the loss.
    largest += 0.0 * tf.reduce_sum(given)
    return tf.cast(tf.quantization.fake_quant_with_min_max_vars(values, smallest, largest), x.dtype)


@keras.saving.register_keras_serializable("kerasseg")
class FakeQuantization(keras.layers.Layer):
    """Hands a map on as an int8 file holds it: `fake_quantize_map`, in training and outside; has no weights.

    Input shape:
        Any.
    Output shape:
        The same.
    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.
    """

    def call(self, x):
        return fake_quantize_map(x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0


class _Kernel:
    """An attribute that is given a variable, and read as an int8 file holds it."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = axes

    def __set_name__(self, owner, name: str):
        self.place = f"_float_{name}"

    def __set__(self, layer, variable):
        setattr(layer, self.place, variable)

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        return tf.cast(fake_quantize_kernel(getattr(layer, self.place), self.axes), layer.compute_dtype)


class _FloatKernels:
    """Keeps kernels in float32 under every policy until they are rounded: bfloat16 would round them first, to other places."""

    def add_weight(self, *args, name: str | None = None, **arguments):
        if name is not None and name.endswith("kernel"):
            arguments["autocast"] = False
        return super().add_weight(*args, name=name, **arguments)


@keras.saving.register_keras_serializable("kerasseg")
class Int8Conv2D(_FloatKernels, Conv2D):
    """`kerasseg.layers.Conv2D` with its kernel rounded as in an int8 file; arguments and weights are the same.

    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.
    """

    def convolution_op(self, inputs, kernel):
        """Applies the rounded kernel; shapes as in `Conv2D`."""
        return super().convolution_op(inputs, tf.cast(fake_quantize_kernel(kernel, (0, 1, 2)), inputs.dtype))


@keras.saving.register_keras_serializable("kerasseg")
class Int8Conv2DTranspose(_FloatKernels, keras.layers.Conv2DTranspose):
    """Keras' Conv2DTranspose with its kernel rounded as in an int8 file; arguments and weights are the same.

    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.
    """

    kernel = _Kernel((0, 1, 3))


@keras.saving.register_keras_serializable("kerasseg")
class Int8DepthwiseConv2D(_FloatKernels, keras.layers.DepthwiseConv2D):
    """Keras' DepthwiseConv2D with its kernel rounded as in an int8 file; arguments and weights are the same.

    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.
    """

    kernel = _Kernel((0, 1))


@keras.saving.register_keras_serializable("kerasseg")
class Int8SeparableConv2D(_FloatKernels, keras.layers.SeparableConv2D):
    """Keras' SeparableConv2D with both kernels rounded as in an int8 file; arguments and weights are the same.

    The map between the two kernels, which such a file rounds too, stays as it is.

    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3.
    """

    depthwise_kernel = _Kernel((0, 1))
    pointwise_kernel = _Kernel((0, 1, 2))
