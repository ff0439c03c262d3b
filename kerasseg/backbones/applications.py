"""The networks of keras.applications as trunks: Keras' graph and weights, made dense by `kerasseg.backbones.atrous`.

Their names in `BACKBONES` are Keras' in snake case. `resnet50`, `resnet101` and `resnet152` are those of
`kerasseg.backbones.resnet`; Keras' own are `keras_resnet50` and so on. ConvNeXt has no exact dense form, and Keras'
NASNet does not run at sizes unknown when it is built: they are not here.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import keras
import numpy as np

from kerasseg.backbones.atrous import extend
from kerasseg.backbones.building import check_width, download
from kerasseg.backbones.table import Backbone
from kerasseg.errors import KerassegError
from kerasseg.layers import Preprocessing

# Smallest height and width that leave the last map a cell, by the beginning of a function's name: found by building every family
# at each output stride for all sizes to 99, and running it at the first that fits. The output stride makes no difference, since a
# dense map has its classifier's cells among its own. Families that are not here pad enough to take one pixel.
_MINIMUM_SIZES = {
    "VGG": 32,
    "MobileNet": 31,
    "EfficientNetB": 32,
    "DenseNet": 29,
    "Xception": 7,
    "Inception": 75,
}
# How far a mean may lie from the one that weights were trained with: the preset's mean of red is 122.68, Keras' 123.68.
_MEAN_TOLERANCE = 1.5

# The names that Keras numbers by itself, through the whole process: a second InceptionV3 has other ones than the first.
_NUMBERED = re.compile(
    "(activation|add|average_pooling2d|batch_normalization|concatenate|conv2d|cropping2d|custom_scale_layer|dropout"
    "|global_average_pooling2d|max_pooling2d|multiply|normalization|re_lu|rescaling|reshape|separable_conv2d|zero_padding2d)"
    r"(?:_(\d+))?"
)


def stable_names(names) -> dict[str, str]:
    """Numbers a network's unnamed layers as if it were the first of its process, so that weights move by name.

    Args:
        names: Layer names of one network of keras.applications.
    Returns:
        Name → name; those that the network chose stay.
    """
    result, counted = {name: name for name in names}, {}
    for name in result:
        match = _NUMBERED.fullmatch(name)
        if match:
            counted.setdefault(match[1], []).append((int(match[2] or 0), name))
    for prefix, numbered in counted.items():
        for rank, (_, name) in enumerate(sorted(numbered)):
            result[name] = f"{prefix}_{rank}" if rank else prefix
    return result


def _without_head(function: Callable, channels: int, weights: str | None = None, **options) -> keras.Model:
    with warnings.catch_warnings():
        # MobileNet remarks that its weights were trained on 224 × 224.
        warnings.filterwarnings("ignore", "`input_shape` is undefined or")
        return function(include_top=False, weights=weights, input_shape=(None, None, channels), **options)


def _backbone(function: Callable, preprocessing: str | None, *, has_width: bool = False) -> Backbone:
    """Makes the trunk of one function of keras.applications; `has_width` where it takes `alpha`."""
    name = function.__name__

    def build(
        x, *, output_stride: int, width_multiplier: float = 1.0, multi_grid=None, batch_norm: Mapping | None = None, **options
    ) -> dict:
        check_width(width_multiplier)
        if multi_grid is not None:
            raise KerassegError(f"received multi_grid={multi_grid} for {name}, which has no blocks of units: pass multi_grid=None")
        if has_width:
            options["alpha"] = width_multiplier
        elif width_multiplier != 1:
            raise KerassegError(
                f"received width_multiplier={width_multiplier:g}, but keras.applications.{name} has one width: pass "
                "width_multiplier=1, or a backbone such as mobilenet_v2 or resnet50"
            )
        net = _without_head(function, x.shape[-1], **options)
        for layer in net.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # As in every network here: what it computes shall not depend on the number of replicas.
                layer.synchronized = True
                # Of these arguments the momentum alone: the weights were trained with the classifier's own ε.
                layer.momentum = (batch_norm or {}).get("momentum", layer.momentum)
        return extend(net, x, output_stride, stable_names(op.name for op in net.operations).__getitem__)

    def load_imagenet(model: keras.Model) -> None:
        _check_preprocessing(model, name, preprocessing)
        _copy_weights(download(partial(_without_head, function, 3)), model)

    minimum_size = next((size for family, size in _MINIMUM_SIZES.items() if name.startswith(family)), 1)
    return Backbone(build, preprocessing, load_imagenet, minimum_size=minimum_size)


def _check_preprocessing(model: keras.Model, name: str, preset: str | None) -> None:
    expected = preset and Preprocessing.of(preset)
    for layer in model.layers:
        if isinstance(layer, Preprocessing) and not (expected and _is_like(layer, expected)):
            kind = f"colours as preprocessing='{preset}' gives them" if preset else "the image as it is, 0 to 255"
            raise KerassegError(
                f"weights='imagenet' of {name} expect {kind}, but preprocessing has order={layer.order}, mean={layer.mean} and "
                f"scale={layer.scale}; pass preprocessing='backbone'"
            )


def _is_like(layer: Preprocessing, other: Preprocessing) -> bool:
    if layer.order != other.order:
        return False
    return np.allclose(layer.scale, other.scale, rtol=0.01) and np.allclose(layer.mean, other.mean, rtol=0, atol=_MEAN_TOLERANCE)


def _copy_weights(net: keras.Model, model: keras.Model) -> None:
    names = stable_names(layer.name for layer in net.layers)
    known = {layer.name: layer for layer in model.layers}
    for layer in net.layers:
        if not layer.weights:
            continue
        target, values = known.get(names[layer.name]), layer.get_weights()
        expected = [value.shape for value in values]
        if target is None or [tuple(weight.shape) for weight in target.weights] != expected:
            received = "no such layer" if target is None else [tuple(weight.shape) for weight in target.weights]
            raise KerassegError(
                f"weights='imagenet' of {net.name} have {expected} in layer {names[layer.name]}, {model.name} has {received}; "
                "they are for width_multiplier=1 and RGB"
            )
        if isinstance(layer, keras.layers.Normalization):
            values = _with_rescaling(values, net)
        target.set_weights(values)


def _with_rescaling(values: list, net: keras.Model) -> list:
    """EfficientNet has one more layer if it is built with ImageNet's weights, a factor per channel after this normalisation."""
    mean, variance, *rest = values
    for layer in net.layers:
        if isinstance(layer, keras.layers.Rescaling) and np.ndim(layer.scale) > 0:
            variance = variance / np.square(np.asarray(layer.scale, variance.dtype))
    return [mean, variance, *rest]


VGG16 = _backbone(keras.applications.VGG16, "caffe")
VGG19 = _backbone(keras.applications.VGG19, "caffe")
KERAS_RESNET50 = _backbone(keras.applications.ResNet50, "caffe")
KERAS_RESNET101 = _backbone(keras.applications.ResNet101, "caffe")
KERAS_RESNET152 = _backbone(keras.applications.ResNet152, "caffe")
RESNET50_V2 = _backbone(keras.applications.ResNet50V2, "tf")
RESNET101_V2 = _backbone(keras.applications.ResNet101V2, "tf")
RESNET152_V2 = _backbone(keras.applications.ResNet152V2, "tf")
MOBILENET = _backbone(keras.applications.MobileNet, "tf", has_width=True)
MOBILENET_V2 = _backbone(keras.applications.MobileNetV2, "tf", has_width=True)
MOBILENET_V3_SMALL = _backbone(keras.applications.MobileNetV3Small, None, has_width=True)
MOBILENET_V3_LARGE = _backbone(keras.applications.MobileNetV3Large, None, has_width=True)
EFFICIENTNET_B0 = _backbone(keras.applications.EfficientNetB0, None)
EFFICIENTNET_B1 = _backbone(keras.applications.EfficientNetB1, None)
EFFICIENTNET_B2 = _backbone(keras.applications.EfficientNetB2, None)
EFFICIENTNET_B3 = _backbone(keras.applications.EfficientNetB3, None)
EFFICIENTNET_B4 = _backbone(keras.applications.EfficientNetB4, None)
EFFICIENTNET_B5 = _backbone(keras.applications.EfficientNetB5, None)
EFFICIENTNET_B6 = _backbone(keras.applications.EfficientNetB6, None)
EFFICIENTNET_B7 = _backbone(keras.applications.EfficientNetB7, None)
EFFICIENTNET_V2_B0 = _backbone(keras.applications.EfficientNetV2B0, None)
EFFICIENTNET_V2_B1 = _backbone(keras.applications.EfficientNetV2B1, None)
EFFICIENTNET_V2_B2 = _backbone(keras.applications.EfficientNetV2B2, None)
EFFICIENTNET_V2_B3 = _backbone(keras.applications.EfficientNetV2B3, None)
EFFICIENTNET_V2_S = _backbone(keras.applications.EfficientNetV2S, None)
EFFICIENTNET_V2_M = _backbone(keras.applications.EfficientNetV2M, None)
EFFICIENTNET_V2_L = _backbone(keras.applications.EfficientNetV2L, None)
DENSENET121 = _backbone(keras.applications.DenseNet121, "torch")
DENSENET169 = _backbone(keras.applications.DenseNet169, "torch")
DENSENET201 = _backbone(keras.applications.DenseNet201, "torch")
XCEPTION = _backbone(keras.applications.Xception, "tf")
INCEPTION_V3 = _backbone(keras.applications.InceptionV3, "tf")
INCEPTION_RESNET_V2 = _backbone(keras.applications.InceptionResNetV2, "tf")
