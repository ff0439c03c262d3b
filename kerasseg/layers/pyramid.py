"""A watch on atrous rates that are too large for their map."""

import warnings
from collections.abc import Sequence

import keras

from kerasseg.errors import DegenerateRateWarning


@keras.saving.register_keras_serializable("kerasseg")
class RateCheck(keras.layers.Layer):
    """Hands a map on as it is, and warns once if it is too small for every atrous rate that shall be applied to it.

    At a rate as large as the map, all weights of a 3×3 convolution but the one in the centre meet padding: it is a 1×1 convolution
    then. Only sizes that are known while a graph is built can be seen; the graph itself stays empty.

    Args:
        rates: Atrous rates of the 3×3 convolutions behind, in cells.
        output_stride: Pixels of the image per cell, for what the warning advises.
    Input shape:
        `(B, h, w, C)`.
    Output shape:
        The same.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.3 and Figure 4.
    """

    def __init__(self, rates: Sequence[int], output_stride: int, **kwargs):
        super().__init__(**kwargs)
        self.rates, self.output_stride = tuple(rates), output_stride
        self._has_warned = False

    def build(self, input_shape):
        # Keras does not run a layer that tells its shape while it builds a network.
        self._look(*input_shape[1:3])
        super().build(input_shape)

    def call(self, x):
        self._look(*x.shape[1:3])
        return x

    def _look(self, height: int | None, width: int | None):
        if None in (height, width) or self._has_warned or min(self.rates) < max(height, width):
            return
        self._has_warned = True
        warnings.warn(
            f"{self.name}: on a map of {height}×{width} cells the atrous rates {', '.join(map(str, self.rates))} reach nothing but "
            "padding, every 3×3 convolution of the pyramid is a 1×1: use images of more than "
            f"{min(self.rates) * self.output_stride} pixels, or smaller atrous_rates",
            DegenerateRateWarning,
            stacklevel=2,
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "rates": self.rates, "output_stride": self.output_stride}
