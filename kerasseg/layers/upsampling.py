"""Bilinear upsampling as a transposed convolution, fixed or as the start of a learned one."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.ops import bilinear_kernel, upsample_bilinear


@keras.saving.register_keras_serializable("kerasseg")
class BilinearInitializer(keras.initializers.Initializer):
    """Fills the kernel of a `Conv2DTranspose` so that it interpolates each channel bilinearly and mixes none.

    Raises:
        ValueError: If the kernel is not square or its channel counts differ.
    Reference:
        Shelhamer et al. 2017, §4.3; the authors' surgery.interp.
    """

    def __call__(self, shape, dtype=None):
        height, width, outputs, inputs = shape
        if height != width or outputs != inputs:
            raise ValueError(f"received kernel shape {tuple(shape)}; bilinear upsampling needs (k, k, C, C)")
        kernel = bilinear_kernel(height)[:, :, None, None] * np.eye(outputs, dtype="float32")
        return keras.ops.cast(keras.ops.convert_to_tensor(kernel), dtype or "float32")

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable("kerasseg")
class BilinearUpsampling(keras.layers.Layer):
    """Upsamples each channel by a fixed bilinear kernel; has no weights.

    Equals a transposed convolution with a bilinear kernel on the diagonal and no padding, whose border fades to zero; the
    networks crop that border away.

    Args:
        kernel_size: `2 * strides` (strides even) or `2 * strides - 1`.
        strides: Output pixels per input cell.
    Input shape:
        `(B, h, w, C)`.
    Output shape:
        `(B, (h - 1) * strides + kernel_size, (w - 1) * strides + kernel_size, C)`.
    Reference:
        Shelhamer et al. 2017, §3.3 and §4.4 "Dense Prediction": the final upsampling stays fixed.
    """

    def __init__(self, kernel_size: int, strides: int, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size, self.strides = kernel_size, strides

    def call(self, x):
        # The interpolation itself always returns float32.
        return tf.cast(upsample_bilinear(x, self.kernel_size, self.strides), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        def size(n):
            return None if n is None else (n - 1) * self.strides + self.kernel_size

        return (input_shape[0], size(input_shape[1]), size(input_shape[2]), input_shape[3])

    def coordinate_map(self):
        """Input position = (output position − (kernel_size − 1) / 2) / strides."""
        return 1 / self.strides, -(self.kernel_size - 1) / (2 * self.strides)

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size, "strides": self.strides}
