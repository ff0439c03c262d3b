"""Cropping one map to the size of another."""

import keras

from kerasseg.ops import crop, spatial_shape


@keras.saving.register_keras_serializable("kerasseg")
class CropLike(keras.layers.Layer):
    """Cuts from the first map, at a fixed offset, a window of the second map's height and width.

    Called on `[x, reference]`; only the reference's size is used. The first map must reach at least `offset` plus the
    reference's size.

    Args:
        offset: First row and first column that are kept, in cells of `x`.
    Input shape:
        `(B, H, W, C)` and `(B, h, w, any)`.
    Output shape:
        `(B, h, w, C)`.
    Reference:
        Caffe's Crop layer with axis 2; Shelhamer et al. 2017, §4.3.
    """

    # For coordinate_map: the second input gives only its size.
    aligned_inputs = 1

    def __init__(self, offset: int, **kwargs):
        super().__init__(**kwargs)
        if offset < 0:
            raise ValueError(f"received offset={offset}; a crop starts at 0 or later: crop the other map instead")
        self.offset = offset

    def call(self, inputs):
        x, reference = inputs
        height, width = spatial_shape(reference)
        return crop(x, self.offset, height, width)

    def compute_output_shape(self, input_shape):
        x, reference = input_shape
        return (x[0], reference[1], reference[2], x[3])

    def coordinate_map(self):
        """Input position = 1 · output position + offset."""
        return 1, self.offset

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
