"""GoogLeNet (Inception v1) without its classifier and its two auxiliary ones."""

import keras

from kerasseg.backbones.building import conv, scaled_width
from kerasseg.layers import CeilMaxPooling2D, Dropout, LocalResponseNormalization

# 1×1 | 3×3 reduce, 3×3 | 5×5 reduce, 5×5 | projection behind the pool.
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The pool behind each module that ends a stage.
_POOLS = {"3b": "pool3_3x3_s2", "4e": "pool4_3x3_s2"}


def googlenet(x, *, width_multiplier: float = 1.0, first_padding: int = 3, dropout_rate: float = 0.4) -> dict:
    """Builds GoogLeNet to its last inception module, at stride 32; the 7×7 average pool behind it is discarded.

    Args:
        x: Preprocessed image, shape `(B, H, W, 3)`.
        width_multiplier: Scales every width.
        first_padding: Zeros around the image; 3 in the classifier, 100 in the manner of the FCN paper.
        dropout_rate: Share of the last module's outputs dropped in training.
    Returns:
        `inception_3a` … `inception_5b`, by the authors' names, and `pool5`: the last of them behind its dropout.
    Reference:
        Szegedy et al. 2015, Table 1; layer names of BVLC's bvlc_googlenet; Shelhamer et al. 2017, §4.1.
    """

    def width(channels):
        return scaled_width(channels, width_multiplier)

    x = conv(x, width(64), 7, "conv1_7x7_s2", strides=2, padding=first_padding)
    x = LocalResponseNormalization(name="pool1_norm1")(CeilMaxPooling2D(3, 2, name="pool1_3x3_s2")(x))
    x = conv(conv(x, width(64), 1, "conv2_3x3_reduce"), width(192), 3, "conv2_3x3")
    x = CeilMaxPooling2D(3, 2, name="pool2_3x3_s2")(LocalResponseNormalization(name="conv2_norm2")(x))
    levels = {}
    for module, widths in _MODULES.items():
        x = levels[f"inception_{module}"] = _inception(x, f"inception_{module}", *map(width, widths))
        if module in _POOLS:
            x = CeilMaxPooling2D(3, 2, name=_POOLS[module])(x)
    return {**levels, "pool5": Dropout(dropout_rate, name="pool5_drop_7x7_s1")(x)}


def _inception(x, name: str, plain: int, reduce3: int, wide3: int, reduce5: int, wide5: int, projected: int):
    """One module: the same map seen through windows of 1×1, 3×3 and 5×5 and through a pool, side by side."""
    branches = [
        conv(x, plain, 1, f"{name}_1x1"),
        conv(conv(x, reduce3, 1, f"{name}_3x3_reduce"), wide3, 3, f"{name}_3x3"),
        conv(conv(x, reduce5, 1, f"{name}_5x5_reduce"), wide5, 5, f"{name}_5x5"),
        conv(CeilMaxPooling2D(3, 1, padding=1, name=f"{name}_pool")(x), projected, 1, f"{name}_pool_proj"),
    ]
    return keras.layers.Concatenate(name=f"{name}_output")(branches)
