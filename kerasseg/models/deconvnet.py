"""DeconvNet: VGG16, and behind it its mirror image of unpooling and deconvolution.

Noh, Hong & Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015, arXiv:1505.04366; layer table, names and
first weights from HyeonwooNoh/DeconvNet and the layers of HyeonwooNoh/caffe.
"""

from collections.abc import Mapping

import keras

from kerasseg.backbones.building import batch_norm, conv, image_input, network, preprocess, scaled_width, with_weights
from kerasseg.backbones.vgg import (
    check_vgg16_weights_fit,
    copy_vgg16_convolutions,
    copy_vgg16_fully_connected,
    download_vgg16,
)
from kerasseg.layers import Conv2D, MaxPoolingWithMask2D, MaxUnpooling2D, MinimumSize

# Widths of block 1 … 5, and of what mirrors them, 5 … 1: the last deconvolution of a block has the width of the next one.
_ENCODER = {1: (64, 64), 2: (128, 128), 3: (256, 256, 256), 4: (512, 512, 512), 5: (512, 512, 512)}
_DECODER = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
_FULLY_CONNECTED = 4096
# The published file's score layer is that of the inference net; the training nets call it by its data set.
ALIASES = {"seg-score": "seg-score-voc"}


@network(minimum_size=224, divisor=32, aliases=ALIASES)
def deconvnet(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    batch_norm_momentum: float = 0.99,
    batch_norm_epsilon: float = 1e-9,
) -> keras.Model:
    """Builds DeconvNet, which segments one object proposal, or a whole image, in full detail.

    Every convolution and deconvolution but the score is followed by batch normalization and ReLU. Unpooling puts values back
    where pooling had found its maxima. The authors train by the statistics of each batch and make those for testing afterwards:
    `tools/recompute_batch_norm.py`.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, C)`, `None` where any size shall do; else at least 224 and multiples of 32.
        preprocessing: A preset of `kerasseg.layers.PREPROCESSING`, a mapping, or `None` for BGR with the mean subtracted.
        weights: `None`, `"imagenet"` (conv1_1 to conv5_3, fc6 and fc7), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the score.
        batch_norm_momentum: Share of the moving statistics that a step keeps.
        batch_norm_epsilon: Added to the variance. The authors' is so small that a channel that is constant over a batch multiplies
            gradients by 31,623.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, to float32 logits `(B, H, W, num_classes)`. H and W are at least
        224 (where fc6 has one cell left) and multiples of 32; other sizes are one line.
    Raises:
        KerassegError: If `input_shape` has another size, or the weights do not fit.
    Reference:
        Noh et al. 2015, §3 and Figure 2; stage_2_train.prototxt.
    """
    options = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    image = image_input(input_shape)
    # float32 as the image, whatever the precision policy.
    x = MinimumSize(deconvnet.minimum_size, deconvnet.divisor, dtype="float32", name="minimum_size")(image)
    x, masks = _encoder(preprocess(x, preprocessing), width_multiplier, options)
    for name, kernel in (("fc6", 7), ("fc7", 1)):
        number = name.removeprefix("fc")
        x = _convolution(x, scaled_width(_FULLY_CONNECTED, width_multiplier), kernel, name, "valid")
        x = _bn_relu(x, f"bn{name}", f"relu{number}", options)
    x = _deconvolution(x, scaled_width(512, width_multiplier), 7, "fc6-deconv", "valid")
    x = _bn_relu(x, "fc6-deconv-bn", "fc6-deconv-relu", options)
    x = _decoder(x, masks, width_multiplier, options)
    logits = Conv2D(num_classes, 1, kernel_initializer=_gaussian(), dtype="float32", name="seg-score-voc")(x)
    return with_weights(keras.Model(image, logits, name="deconvnet"), weights, load_imagenet)


def load_imagenet(model: keras.Model, classifier: keras.Model | None = None) -> None:
    """Copies the weights of Keras' VGG16 into the first half, fc6 and fc7 included.

    Args:
        model: `deconvnet` at width 1.
        classifier: `keras.applications.VGG16` with its top; `None` downloads the ImageNet one.
    Raises:
        KerassegError: If the download fails or the network has another width or preprocessing.
    Reference:
        Noh et al. 2015, §5.1: the convolution network begins with the weights of VGG16.
    """
    check_vgg16_weights_fit(model, "fc6", _FULLY_CONNECTED)
    classifier = classifier or download_vgg16()
    copy_vgg16_convolutions(model, classifier)
    copy_vgg16_fully_connected(model, classifier)


def _encoder(x, width_multiplier: float, options: Mapping):
    """VGG16 to pool5, and the masks of its pools by their block."""
    masks = {}
    for block, widths in _ENCODER.items():
        for index, width in enumerate(widths, start=1):
            place = f"{block}_{index}"
            x = _convolution(x, scaled_width(width, width_multiplier), 3, f"conv{place}", "same")
            x = _bn_relu(x, f"bn{place}", f"relu{place}", options)
        x, masks[block] = MaxPoolingWithMask2D(name=f"pool{block}")(x)
    return x, masks


def _decoder(x, masks: Mapping, width_multiplier: float, options: Mapping):
    """Unpooling and deconvolutions, from pool5's size to the image's."""
    for block, widths in _DECODER.items():
        x = MaxUnpooling2D(name=f"unpool{block}")([x, masks[block]])
        for index, width in enumerate(widths, start=1):
            place = f"{block}_{index}"
            x = _deconvolution(x, scaled_width(width, width_multiplier), 3, f"deconv{place}", "same")
            x = _bn_relu(x, f"debn{place}", f"derelu{place}", options)
    return x


def _convolution(x, width: int, kernel: int, name: str, padding: str):
    return conv(x, width, kernel, name, padding=padding, activation=None)


def _deconvolution(x, width: int, kernel: int, name: str, padding: str):
    """A transposed convolution that keeps the size (3×3), or undoes a valid one (7×7)."""
    return keras.layers.Conv2DTranspose(width, kernel, padding=padding, kernel_initializer=_gaussian(), name=name)(x)


def _gaussian():
    # A new one each time: an initializer with a seed gives the same numbers to layers of one shape.
    return keras.initializers.RandomNormal(stddev=0.01)


def _bn_relu(x, name: str, relu: str, options: Mapping):
    # Just off zero: the shift filler of the authors' files.
    x = batch_norm(x, name, beta_initializer=keras.initializers.Constant(0.001), **options)
    return keras.layers.Activation("relu", name=relu)(x)
