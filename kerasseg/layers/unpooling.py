"""Max pooling that remembers where its maxima stood, and unpooling that puts values back there."""

import keras

from kerasseg.errors import KerassegError
from kerasseg.ops import max_pool_with_mask, max_unpool


@keras.saving.register_keras_serializable("kerasseg")
class MaxPoolingWithMask2D(keras.layers.Layer):
    """Takes the maxima of windows of 2×2 that do not overlap, and notes where they stood.

    Of equal cells the first one counts, row by row, as for `tf.nn.max_pool_with_argmax`; but XLA and TFLite take this layer.

    Input shape:
        `(B, H, W, C)`, H and W even.
    Output shape:
        A pair: the maxima, `(B, H/2, W/2, C)`, and the mask for `MaxUnpooling2D`, `(B, H/2, W/2, 4·C)`, boolean.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, §3.2 (switch variables).
    Example:
        >>> pooled, mask = MaxPoolingWithMask2D()(np.float32([[[[1], [3]], [[3], [2]]]]))
        >>> MaxUnpooling2D()([10 * pooled, mask])[0, ..., 0].numpy().tolist()
        [[0.0, 30.0], [0.0, 0.0]]
    """

    # For receptive_field: it sees both cells, half a cell to either side.
    pool_size = 2

    def call(self, x):
        return max_pool_with_mask(x)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        if any(side is not None and side % 2 for side in (height, width)):
            raise KerassegError(
                f"{self.name} received a map of {height}x{width} cells: windows of 2x2 need even sides; pad or crop it"
            )
        height, width = (None if side is None else side // 2 for side in (height, width))
        return (batch, height, width, channels), (batch, height, width, 4 * channels)

    def compute_output_spec(self, x):
        pooled, mask = self.compute_output_shape(x.shape)
        return keras.KerasTensor(pooled, dtype=self.compute_dtype), keras.KerasTensor(mask, dtype="bool")

    def coordinate_map(self):
        """Input position = 2 · output position + 1/2."""
        return 2, 0.5


@keras.saving.register_keras_serializable("kerasseg")
class MaxUnpooling2D(keras.layers.Layer):
    """Puts every value to where the maximum of its window of 2×2 stood, and zeros elsewhere.

    Input shape:
        A pair: values, `(B, h, w, C)`, and the mask of a `MaxPoolingWithMask2D`, `(B, h, w, 4·C)`.
    Output shape:
        `(B, 2·h, 2·w, C)`.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, §3.2 and Figure 3.
    """

    # For receptive_field: one cell makes two, whose centres lie a quarter of it away.
    reach = 0.25

    def build(self, input_shape):
        self._check(input_shape)
        super().build(input_shape)

    def call(self, inputs):
        x, mask = inputs
        return max_unpool(x, keras.ops.cast(mask, "bool"))

    def compute_output_shape(self, input_shape):
        self._check(input_shape)
        batch, height, width, channels = input_shape[0]
        return (batch, *(None if side is None else 2 * side for side in (height, width)), channels)

    def _check(self, shapes):
        pair = len(shapes) == 2 and all(isinstance(shape, tuple | list) for shape in shapes)
        if not pair or shapes[1][-1] != 4 * shapes[0][-1]:
            raise KerassegError(
                f"{self.name} received shapes {shapes}: expected values (B, h, w, C) and the mask (B, h, w, 4*C) of "
                "MaxPoolingWithMask2D, e.g. MaxUnpooling2D()([x, mask])"
            )

    def coordinate_map(self):
        """Input position = output position / 2 − 1/4."""
        return 0.5, -0.25
