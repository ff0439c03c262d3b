"""DeepLab v3: atrous convolution in parallel (ASPP with image-level features) and in cascade.

Chen, Papandreou, Schroff & Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, arXiv:1706.05587; what the
paper leaves open (order, names, first weights) from the authors' tensorflow/models, research/deeplab, names with `_` for `/`.
"""

from collections.abc import Mapping, Sequence

import keras

from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import (
    accepts,
    batch_norm,
    conv,
    image_input,
    network,
    preprocess,
    scaled_width,
    whole_numbers,
    with_weights,
)
from kerasseg.backbones.table import Backbone
from kerasseg.errors import KerassegError
from kerasseg.layers import AlignedResizeLike, Conv2D, Dropout, MinimumSize, RateCheck

# §3.3: at output stride 16; in pixels they are the same at every other.
_RATES, _RATES_STRIDE = (6, 12, 18), 16
# Table 5.
_MULTI_GRID = (1, 2, 4)
_WIDTH = 256


@network()
def deeplab_v3(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="backbone",
    weights=None,
    width_multiplier: float = 1.0,
    backbone: str = "resnet101",
    output_stride: int = 16,
    multi_grid: Sequence[int] | str | None = "paper",
    atrous_rates: Sequence[int] | None = None,
    image_pooling: bool = True,
    upsample_logits: bool = True,
    dropout_rate: float = 0.1,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 1e-5,
) -> keras.Model:
    """Builds DeepLab v3: a dense backbone, atrous spatial pyramid pooling with image-level features, and logits resized bilinearly.

    The weights do not depend on `output_stride`: train at 16, then `model8.set_weights(model16.get_weights())`.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, C)`, `None` where any size shall do.
        preprocessing: `"backbone"` for what the backbone's ImageNet weights expect, a preset of `kerasseg.layers.PREPROCESSING`,
            a mapping, or `None` for input already as the backbone expects it.
        weights: `None`, `"imagenet"` (the backbone's), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the logits.
        backbone: A key of `kerasseg.backbones.BACKBONES`.
        output_stride: Pixels per cell of the map that ASPP works on: 4, 8, 16 or 32, as far as the backbone has them.
        multi_grid: Unit rates of the backbone's last block; `"paper"`: (1, 2, 4) where the backbone has such units; `None`: none.
        atrous_rates: Rates of ASPP's 3×3 convolutions, in cells; `None`: (6, 12, 18) · 16 / output_stride.
        image_pooling: Whether the mean over the whole map is a branch of ASPP.
        upsample_logits: Whether the logits have the image's size (the paper) or the map's (for labels subsampled likewise).
        dropout_rate: Share of the last features dropped in training.
        batch_norm_momentum: Share of the moving statistics that a step keeps, the backbone's included; the paper's decay.
        batch_norm_epsilon: Added to the variance; backbones of keras.applications keep theirs, which their weights expect.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, any size (from the backbone's `minimum_size` on), to float32
        logits `(B, H, W, num_classes)`, or of the map's size. That is `⌈H / output_stride⌉ × ⌈W / output_stride⌉` for the ResNets
        named after their depth alone, `_beta` and `_torchvision`, and for all of `kerasseg.backbones.resnet` where H and W are a
        multiple of output_stride plus 1; a backbone of keras.applications leaves as many cells as its own padding does, e.g.
        vgg16 ⌊H / 32⌋ at 32.
    Raises:
        KerassegError: If an argument has no meaning for this backbone, or the weights do not fit.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.3, Figure 5, Tables 5, 6, 8 and 10; the authors' model.py.
    """
    trunk = BACKBONES[backbone]
    if isinstance(multi_grid, str) and multi_grid == "paper":
        multi_grid = _MULTI_GRID if trunk.supports_multi_grid else None
    options = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    image = image_input(input_shape)
    arguments = {"output_stride": output_stride, "width_multiplier": width_multiplier, "multi_grid": multi_grid}
    x = _features(image, trunk, preprocessing, options, **arguments)
    if atrous_rates is None:
        atrous_rates = tuple(rate * _RATES_STRIDE // output_stride for rate in _RATES)
    rates = whole_numbers("atrous_rates", atrous_rates, _RATES)
    x = RateCheck(rates, int(output_stride), name="aspp_rate_check")(x)
    width = scaled_width(_WIDTH, width_multiplier)
    x = _pyramid(x, width, rates, image_pooling, options)
    x = _conv_bn_relu(x, width, 1, "concat_projection", options)
    x = Dropout(dropout_rate, name="concat_projection_dropout")(x)
    model = keras.Model(image, _logits(x, image, num_classes, upsample_logits), name="deeplab_v3")
    return with_weights(model, weights, trunk.load_imagenet)


@network()
def deeplab_v3_cascade(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="backbone",
    weights=None,
    width_multiplier: float = 1.0,
    backbone: str = "resnet101",
    output_stride: int = 16,
    last_block: int = 7,
    multi_grid: Sequence[int] | None = (1, 2, 1),
    upsample_logits: bool = True,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 1e-5,
) -> keras.Model:
    """Builds DeepLab v3's cascade: a ResNet with copies of block4 behind it, at doubling strides or rates, and 1×1 logits.

    The weights do not depend on `output_stride`.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, C)`, `None` where any size shall do.
        preprocessing: As in `deeplab_v3`.
        weights: `None`, `"imagenet"` (as far as block4), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the logits.
        backbone: `"resnet50"`, `"resnet101"`, `"resnet152"`, or one of these with `_beta`.
        output_stride: Pixels per cell of the last map: 4, 8, 16, 32, and twice that for every block behind block4, to 256.
        last_block: 4, 5, 6 or 7.
        multi_grid: Unit rates of the three units of block4 and each block behind it; `None`: (1, 1, 1).
        upsample_logits: Whether the logits have the image's size (the paper) or the map's.
        batch_norm_momentum: Share of the moving statistics that a step keeps; the paper's decay.
        batch_norm_epsilon: Added to the variance.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, any size, to float32 logits `(B, H, W, num_classes)`, or of the
        map's size as in `deeplab_v3`.
    Raises:
        KerassegError: If an argument has no meaning for this backbone, or the weights do not fit.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.2, Figure 3, Tables 1 to 4. The authors' code has no cascade.
    """
    trunk = BACKBONES[backbone]
    if not accepts(trunk.build, "last_block"):
        raise KerassegError(f"backbone='{backbone}' has no blocks to copy: expected a ResNet, e.g. backbone='resnet101'")
    options = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    image = image_input(input_shape)
    arguments = {"output_stride": output_stride, "width_multiplier": width_multiplier, "multi_grid": multi_grid}
    x = _features(image, trunk, preprocessing, options, last_block=last_block, **arguments)
    model = keras.Model(image, _logits(x, image, num_classes, upsample_logits), name="deeplab_v3_cascade")
    return with_weights(model, weights, trunk.load_imagenet)


def _features(image, trunk: Backbone, preprocessing, options: Mapping, *, output_stride: int, **arguments):
    """The backbone's map at the output stride."""
    if isinstance(preprocessing, str) and preprocessing == "backbone":
        preprocessing = trunk.preprocessing
    if trunk.minimum_size > 1:
        # float32 as the image, whatever the precision policy.
        image = MinimumSize(trunk.minimum_size, dtype="float32", name="minimum_size")(image)
    x = preprocess(image, preprocessing)
    return trunk.build(x, output_stride=output_stride, batch_norm=options, **arguments)[output_stride]


def _pyramid(x, width: int, rates: Sequence[int], image_pooling: bool, options: Mapping):
    """Atrous spatial pyramid pooling, its branches in the authors' order."""
    branches = [_conv_bn_relu(x, width, 1, "aspp0", options)]
    branches += [_conv_bn_relu(x, width, 3, f"aspp{index}", options, rate) for index, rate in enumerate(rates, start=1)]
    if image_pooling:
        pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="image_pooling_mean")(x)
        pooled = _conv_bn_relu(pooled, width, 1, "image_pooling", options)
        branches.insert(0, AlignedResizeLike(name="image_pooling_resize")([pooled, x]))
    return keras.layers.Concatenate(name="aspp_concat")(branches)


def _conv_bn_relu(x, width: int, kernel: int, name: str, options: Mapping, rate: int = 1):
    """A convolution without bias, batch normalisation and ReLU; Glorot's first weights, slim's default."""
    plain = {"activation": None, "use_bias": False, "kernel_initializer": "glorot_uniform"}
    x = conv(x, width, kernel, name, dilation_rate=rate, **plain)
    return keras.layers.Activation("relu", name=f"{name}_relu")(batch_norm(x, f"{name}_BatchNorm", **options))


def _logits(x, image, num_classes: int, upsample: bool):
    initializer = keras.initializers.TruncatedNormal(stddev=0.01)
    x = Conv2D(num_classes, 1, kernel_initializer=initializer, name="logits_semantic")(x)
    if upsample:
        return AlignedResizeLike(dtype="float32", name="logits")([x, image])
    return keras.layers.Activation("linear", dtype="float32", name="logits")(x)
