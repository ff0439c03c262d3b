"""First weights with which a convolution hands its maps on."""

import keras
import numpy as np


@keras.saving.register_keras_serializable("kerasseg")
class IdentityInitializer(keras.initializers.Initializer):
    """Fills a kernel so that the layer passes each of C groups of maps on as it is, but for noise.

    The channels in front and behind fall into C groups in their order. Between channels a and b of one group, that is where
    ⌊a C / c_in⌋ = ⌊b C / c_out⌋, the centre of the kernel is C / c_out; every other weight is noise of deviation `stddev`.
    With as many channels as groups, on both sides and without noise, the layer is the identity.

    Without noise, if each of a group's c_in / C maps holds the share C / c_in of some x, their sum is x and each of the c_out / C
    maps behind holds C / c_out of x: a chain of such layers that begins and ends with C channels gives x back. Where C / c_out is
    a power of two, as in every published network, shares are exact in floating point; sums of three maps of a group and more
    are, where x leaves room for them in its last bits, and else round.

    Args:
        groups: C, the number of classes.
        stddev: Deviation of the noise, which breaks ties between maps of one group; much smaller than C / c_out.
        seed: Of the noise.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §3, Eq. 4 (c_in = c_out = C, no noise) and Eq. 5; the identity filler of
        fyu/caffe-dilation.
    """

    def __init__(self, groups: int, stddev: float = 0.01, seed: int | None = None):
        self.groups, self.stddev, self.seed = groups, stddev, seed

    def __call__(self, shape, dtype=None):
        height, width, inputs, outputs = shape
        mine, theirs = (np.arange(n) * self.groups // n for n in (inputs, outputs))
        passes = np.zeros(shape, bool)
        passes[height // 2, width // 2] = mine[:, None] == theirs[None]
        noise = keras.initializers.RandomNormal(0.0, self.stddev, self.seed)(shape, dtype)
        return keras.ops.where(passes, keras.ops.cast(self.groups / outputs, noise.dtype), noise)

    def get_config(self):
        return {"groups": self.groups, "stddev": self.stddev, "seed": self.seed}
