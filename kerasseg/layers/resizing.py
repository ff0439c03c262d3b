"""Bilinear resizing with aligned corners, as every DeepLab does it."""

from fractions import Fraction

import keras
import tensorflow as tf

from kerasseg.ops import resize_aligned, spatial_shape


@keras.saving.register_keras_serializable("kerasseg")
class AlignedResize(keras.layers.Layer):
    """Resizes bilinearly by a factor, the corner cells of both maps coinciding: Caffe's Interp.

    The size is first shrunk to ⌊(n − 1) / shrink⌋ + 1, then zoomed to (n − 1) · zoom + 1; the map is resampled once, straight to
    that size. Where it was larger than a multiple of `shrink` plus 1, the corners still coincide and the factor is not exact.

    Args:
        zoom: Cells of the result per cell of the map (or of the shrunk map), less the last.
        shrink: Divisor.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        `(B, h, w, C)`.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, §4.1 (scores zoomed by 8); the Interp layer of the authors' Caffe.
    """

    def __init__(self, zoom: int = 1, shrink: int = 1, **kwargs):
        super().__init__(**kwargs)
        if zoom < 1 or shrink < 1:
            raise ValueError(f"received zoom={zoom}, shrink={shrink}: expected whole numbers from 1, e.g. AlignedResize(zoom=8)")
        self.zoom, self.shrink = zoom, shrink

    def _size(self, n):
        return None if n is None else (n - 1) // self.shrink * self.zoom + 1

    def call(self, x):
        return tf.cast(resize_aligned(x, *map(self._size, spatial_shape(x))), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self._size(input_shape[1]), self._size(input_shape[2]), input_shape[3])

    def coordinate_map(self):
        """Input position = shrink / zoom · output position, exact for sizes of a multiple of `shrink` plus 1."""
        return Fraction(self.shrink, self.zoom), 0

    def get_config(self):
        return {**super().get_config(), "zoom": self.zoom, "shrink": self.shrink}


@keras.saving.register_keras_serializable("kerasseg")
class AlignedResizeLike(keras.layers.Layer):
    """Resizes a map bilinearly to the height and width of another, the corner cells coinciding.

    Call:
        `AlignedResizeLike()([x, reference])`.
    Input shape:
        `(B, h, w, C)` and `(B, H, W, D)`.
    Output shape:
        `(B, H, W, C)`.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.3 and §4.1 (image-level features and logits are upsampled bilinearly); the
        authors' code aligns corners.
    """

    def call(self, inputs):
        x, reference = inputs
        return tf.cast(resize_aligned(x, *spatial_shape(reference)), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        map_shape, reference_shape = input_shape
        return (map_shape[0], reference_shape[1], reference_shape[2], map_shape[3])
