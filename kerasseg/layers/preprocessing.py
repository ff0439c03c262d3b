"""From an RGB image of 0–255 to what a network's first convolution expects."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

# Order picks input channels; mean and scale apply to the channels so picked: y = (x[order] - mean) * scale.
# Means: "caffe" is the authors' VOC mean; "nyud_rgbd" and "hha" their NYUDv2 means (fcn.berkeleyvision.org, nyud-fcn32s-*), the
# fourth channel being the natural logarithm of depth; "torch" is torchvision's ImageNet mean and deviation, times 255; "dilation_…"
# are the means of fyu/dilation for its data sets.
PREPROCESSING = {
    "caffe": {"order": (2, 1, 0), "mean": (104.00699, 116.66877, 122.67892), "scale": (1.0, 1.0, 1.0)},
    "tf": {"order": (0, 1, 2), "mean": (127.5, 127.5, 127.5), "scale": (1 / 127.5, 1 / 127.5, 1 / 127.5)},
    "torch": {"order": (0, 1, 2), "mean": (123.675, 116.28, 103.53), "scale": (1 / 58.395, 1 / 57.12, 1 / 57.375)},
    "hha": {"order": (0, 1, 2), "mean": (132.431, 94.076, 118.477), "scale": (1.0, 1.0, 1.0)},
    "nyud": {"order": (2, 1, 0), "mean": (116.190, 97.203, 92.318), "scale": (1.0, 1.0, 1.0)},
    "nyud_rgbd": {"order": (2, 1, 0, 3), "mean": (116.190, 97.203, 92.318, 7.844), "scale": (1.0, 1.0, 1.0, 1.0)},
    "dilation_voc": {"order": (2, 1, 0), "mean": (102.93, 111.36, 116.52), "scale": (1.0, 1.0, 1.0)},
    "dilation_camvid": {"order": (2, 1, 0), "mean": (110.70313, 108.77809, 105.41213), "scale": (1.0, 1.0, 1.0)},
    "dilation_kitti": {"order": (2, 1, 0), "mean": (96.19430, 95.55137, 91.34692), "scale": (1.0, 1.0, 1.0)},
    "dilation_cityscapes": {"order": (2, 1, 0), "mean": (72.39, 82.91, 73.16), "scale": (1.0, 1.0, 1.0)},
}


@keras.saving.register_keras_serializable("kerasseg")
class Preprocessing(keras.layers.Layer):
    """Reorders, centres and scales the channels of an image, in float32.

    Args:
        order: Input channel that each output channel is taken from; (2, 1, 0) turns RGB into BGR.
        mean: Subtracted from each output channel, in the image's own unit.
        scale: Factor for each output channel after that.
    Input shape:
        `(B, H, W, C)`, any number type.
    Output shape:
        `(B, H, W, len(order))`, float32.
    """

    def __init__(self, order, mean, scale, **kwargs):
        # Means of 123.675 do not survive bfloat16: float32 whatever the policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.order, self.mean, self.scale = tuple(order), tuple(mean), tuple(scale)

    @classmethod
    def of(cls, spec: str | Mapping, *, name: str = "preprocessing") -> "Preprocessing":
        """Makes the layer from a preset's name or a mapping.

        Args:
            spec: A key of `PREPROCESSING`, or a mapping with `mean` and optionally `order` (default: as they come) and `scale`
                (a number or one per channel, default 1).
            name: Name of the layer.
        Raises:
            KerassegError: If the preset is unknown or the lengths differ.
        """
        if isinstance(spec, str):
            if spec not in PREPROCESSING:
                raise KerassegError(f"unknown preprocessing '{spec}': {did_you_mean(spec, PREPROCESSING)}")
            spec = PREPROCESSING[spec]
        unknown = set(spec) - {"order", "mean", "scale"}
        if unknown or "mean" not in spec:
            raise KerassegError(f"preprocessing has keys {sorted(spec)}; expected mean, and optionally order and scale")
        mean = tuple(spec["mean"])
        order = tuple(spec.get("order", range(len(mean))))
        scale = spec.get("scale", 1.0)
        scale = (float(scale),) * len(mean) if isinstance(scale, (int, float)) else tuple(scale)
        if not len(order) == len(mean) == len(scale):
            raise KerassegError(f"preprocessing has {len(order)} channels in order, {len(mean)} in mean, {len(scale)} in scale")
        return cls(order, mean, scale, name=name)

    def call(self, x):
        x = tf.cast(x, "float32")
        if self.order != tuple(range(x.shape[-1])):
            # Not gathered: accelerators of phones, which take slices, would leave all that is behind to the CPU.
            x = tf.concat([x[..., channel : channel + 1] for channel in self.order], axis=-1)
        return (x - tf.constant(self.mean, "float32")) * tf.constant(self.scale, "float32")

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], len(self.order))

    def coordinate_map(self):
        """Cell for cell."""
        return 1, 0

    def get_config(self):
        return {**super().get_config(), "order": self.order, "mean": self.mean, "scale": self.scale}
