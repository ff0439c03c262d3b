"""AlexNet in its CaffeNet form, with its fully connected layers as convolutions."""

from kerasseg.backbones.building import conv, scaled_width
from kerasseg.layers import CeilMaxPooling2D, Dropout, LocalResponseNormalization


def caffenet(
    x,
    *,
    width_multiplier: float = 1.0,
    first_padding: int = 0,
    pool_padding: int = 0,
    fc6_padding: str = "valid",
    dropout_rate: float = 0.5,
) -> dict:
    """Builds CaffeNet to fc7, at stride 32: pooling before normalisation, two groups in conv2, conv4 and conv5.

    Args:
        x: Preprocessed image, shape `(B, H, W, 3)`.
        width_multiplier: Scales every width, fc6 and fc7 included.
        first_padding: Zeros around the image; 100 in the FCN paper, 0 in the classifier.
        pool_padding: Border of the pooling layers; 0 by the authors, 1 keeps windows centred for small images.
        fc6_padding: `"valid"` by the authors, or `"same"`.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
    Returns:
        `pool1`, `pool2`, `pool5`, `fc6` and `fc7`, by the authors' names.
    Reference:
        Krizhevsky et al. 2012; Shelhamer et al. 2017, §4.1; fcn.berkeleyvision.org, voc-fcn-alexnet.
    """
    levels = {}

    def pool(x, index):
        levels[f"pool{index}"] = CeilMaxPooling2D(3, 2, pool_padding, name=f"pool{index}")(x)
        return levels[f"pool{index}"]

    def width(channels, groups=1):
        return scaled_width(channels, width_multiplier, groups)

    x = conv(x, width(96, 2), 11, "conv1", strides=4, padding=first_padding)
    x = LocalResponseNormalization(name="norm1")(pool(x, 1))
    x = conv(x, width(256, 2), 5, "conv2", groups=2)
    x = LocalResponseNormalization(name="norm2")(pool(x, 2))
    x = conv(x, width(384, 2), 3, "conv3")
    x = conv(x, width(384, 2), 3, "conv4", groups=2)
    x = pool(conv(x, width(256, 2), 3, "conv5", groups=2), 5)
    for name, kernel, padding in (("fc6", 6, fc6_padding), ("fc7", 1, "valid")):
        x = levels[name] = conv(x, width(4096), kernel, name, padding=padding)
        x = Dropout(dropout_rate, name=name.replace("fc", "drop"))(x)
    return {**levels, "fc7": x}
