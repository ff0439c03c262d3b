"""Keras' ImageNet weights for our ResNets."""

import re

import keras

from kerasseg.backbones.building import download
from kerasseg.backbones.resnet_forms import FORMS, UNITS
from kerasseg.errors import KerassegError
from kerasseg.layers import Preprocessing

# Where the forms that Keras' weights fit begin, and what orders of colours their files expect.
_FORMS = {"res2a_branch2a": "caffe", "block1_unit_1_bottleneck_v1_conv1": "slim"}
_ORDERS = {"caffe": (2, 1, 0), "slim": (0, 1, 2)}
_BLOCK4 = re.compile(r"res4[a-z]\d*_branch2a|block3_unit_\d+_bottleneck_v1_conv1")
_DEPTHS = {6: 50, 23: 101, 36: 152}


def load_resnet_imagenet(model: keras.Model, classifier: keras.Model | None = None) -> None:
    """Copies the weights of Keras' ResNet classifier into a network built on `resnet` of the same depth.

    Keras' network is MSRA's, trained on BGR minus the mean; the input channels of conv1 are put in the order that the network's
    preprocessing gives. What Keras keeps beyond ours (biases under a batch norm, a slightly larger ε) moves into the moving
    mean and variance, so that the function stays exactly the same. Blocks behind block4 keep their first weights.

    Args:
        model: A network at width 1 on the form `"caffe"`, `"msra"` or `"slim"` with the plain root.
        classifier: `keras.applications.ResNet50`, 101 or 152; `None` downloads the ImageNet one.
    Raises:
        KerassegError: If Keras publishes no such weights, the download fails, or the network has another width or
            preprocessing.
    """
    names = [layer.name for layer in model.layers]
    form = next((form for first, form in _FORMS.items() if first in names), None)
    depth = _DEPTHS.get(sum(_BLOCK4.fullmatch(name) is not None for name in names))
    if form is None or depth is None or "conv1" not in names:
        raise KerassegError(
            f"weights='imagenet': Keras publishes none for {model.name} with a torchvision or beta ResNet, or a ResNet50-GCN; "
            "pass weights=None, a file's path, or a backbone such as 'resnet101' or 'resnet101_caffe'"
        )
    conv1 = model.get_layer("conv1")
    if tuple(conv1.kernel.shape) != (7, 7, 3, 64):
        raise KerassegError(
            f"weights='imagenet' are for three colours and width_multiplier=1; conv1 of {model.name} has a kernel of shape "
            f"{tuple(conv1.kernel.shape)} instead of (7, 7, 3, 64)"
        )
    order = _colour_order(model, form)
    classifier = classifier or download(getattr(keras.applications, f"ResNet{depth}"), include_top=False)
    for block, unit, part, layer, norm in _layers(model, depth, form):
        prefix = "conv1" if block == 0 else f"conv{block + 1}_block{unit}_{part}"
        kernel, bias = classifier.get_layer(f"{prefix}_conv").get_weights()
        source = classifier.get_layer(f"{prefix}_bn")
        gamma, beta, mean, variance = source.get_weights()
        if block == 0:
            # The classifier's channel i is RGB's 2 − i.
            kernel = kernel[:, :, [2 - colour for colour in order]]
        layer.set_weights([kernel])
        norm.set_weights([gamma, beta, mean - bias, variance + (source.epsilon - norm.epsilon)])


def _layers(model: keras.Model, depth: int, form: str):
    """Gives every convolution that the classifier has, with its batch norm; `part` 0 is the shortcut."""
    yield 0, 0, 0, model.get_layer("conv1"), model.get_layer(FORMS[form].batch_norm("conv1"))
    for block, units in enumerate(UNITS[depth], start=1):
        for unit in range(1, units + 1):
            _, parts = FORMS[form].names(depth, block, unit)
            for part, key in enumerate(("shortcut", "conv1", "conv2", "conv3")):
                if part or unit == 1:
                    yield block, unit, part, *(model.get_layer(name) for name in parts[key])


def _colour_order(model: keras.Model, form: str) -> tuple[int, ...]:
    layers = [layer for layer in model.layers if isinstance(layer, Preprocessing)]
    for layer in layers:
        if set(layer.scale) != {1.0}:
            raise KerassegError(
                f"weights='imagenet' of ResNet expect unscaled colours minus the mean, but preprocessing scales by {layer.scale}; "
                "pass preprocessing='caffe' or {'mean': (123.15, 115.90, 103.06)}"
            )
    return layers[0].order if layers else _ORDERS[form]
