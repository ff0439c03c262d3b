"""A watch on images whose size their network cannot take."""

import keras
import tensorflow as tf

from kerasseg.errors import KerassegError


@keras.saving.register_keras_serializable("kerasseg")
class MinimumSize(keras.layers.Layer):
    """Hands an image on as it is, and refuses one of which some layer behind would have nothing left, or half a window.

    TensorFlow ends such a run with errors about that layer or, with some convolutions, with the process. Where the size is known
    while a graph is built, so is the answer, and the graph stays empty; elsewhere nothing behind runs before the size is seen.

    Args:
        minimum: Smallest height and width in pixels.
        divisor: Height and width must be a multiple of this.
    Input shape:
        `(B, H, W, C)`.
    Output shape:
        The same.
    """

    def __init__(self, minimum: int, divisor: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.minimum, self.divisor = minimum, divisor

    def build(self, input_shape):
        # Keras does not run a layer that tells its shape while it builds a network.
        self._look(input_shape)
        super().build(input_shape)

    def call(self, x):
        self._look(x.shape)
        if None not in x.shape[1:3]:
            return x
        size = tf.shape(x)[1:3]
        enough = tf.reduce_all((size >= self.minimum) & (size % self.divisor == 0))
        # Under XLA, which knows all sizes when it compiles, the assertion is left out.
        with tf.control_dependencies([tf.debugging.Assert(enough, [self._expected()])]):
            return tf.identity(x)

    def _look(self, shape):
        if any(side is not None and (side < self.minimum or side % self.divisor) for side in shape[1:3]):
            received = "x".join("?" if side is None else str(side) for side in shape[1:3])
            fitting = (self.minimum if side is None else self.fitting(side) for side in shape[1:3])
            advice = "use larger ones, or another network or backbone (resnet101 takes any)"
            if self.divisor > 1:
                advice = f"resize, pad or crop them, e.g. to {'x'.join(map(str, fitting))}"
            error = KerassegError(f"received images of {received} pixels: {self._expected()}; {advice}")
            # Keras would add the arguments of every call on the way, a line each.
            error._keras_call_info_injected = True
            raise error

    def _expected(self) -> str:
        multiples = f", multiples of {self.divisor}" if self.divisor > 1 else ""
        return f"expected height and width of at least {self.minimum}{multiples}"

    def fitting(self, side: int) -> int:
        """Finds the smallest side, not below the given one, that is taken; in pixels."""
        return -(-max(side, self.minimum) // self.divisor) * self.divisor

    def compute_output_shape(self, input_shape):
        self._look(input_shape)
        return input_shape

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "minimum": self.minimum, "divisor": self.divisor}
