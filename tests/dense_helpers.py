"""Classifiers with weights worth comparing, and the comparison of their dense forms with them."""

import keras
import numpy as np
from helpers import images

from kerasseg.backbones.atrous import atrous


def randomized(net, image, seed=0):
    """Gives a classifier random weights under which its features neither die nor saturate on an image.

    Every normalisation takes the image's own statistics, as in a trained network, and its offset is mostly positive: a random
    network that loses half its values in every layer multiplies a rounding error by ten thousand, trained or dense alike.
    """
    generator = np.random.default_rng(seed)
    for layer in net.layers:
        layer.set_weights([_value(weight, generator) for weight in layer.weights])
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    normalizations = [layer for layer in net.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0
    net(image, training=True)
    for layer in normalizations:
        layer.momentum = 0.99
    return net


def _value(weight, generator):
    shape, kind = tuple(weight.shape), weight.path.rsplit("/")[-1]
    if len(shape) > 1:
        inputs = shape[:2] if "depthwise" in kind or "depthwise" in weight.path and kind == "kernel" else shape[:-1]
        value = generator.standard_normal(shape, "float32") * float(np.sqrt(2 / np.prod(inputs)))
    elif kind in ("bias", "beta", "mean", "moving_mean"):
        value = generator.normal(1.5, 0.5, shape)
    else:
        value = generator.uniform(0.5, 1.5, shape)
    return value.astype(weight.dtype)


def picture(size, *, rescales=False):
    """An image as a classifier expects it: −1 … 1, or 0 … 255 where it `rescales` itself."""
    image = images((size, size) if isinstance(size, int) else size, batch=1).astype("float32")
    return image if rescales else image / 127.5 - 1


def rescales(net) -> bool:
    return any(isinstance(layer, keras.layers.Rescaling) for layer in net.layers)


def features(model, image):
    """The last map, float64."""
    result = model(image)
    if isinstance(result, dict):
        result = result[str(max(map(int, result)))]
    return np.asarray(result, "float64")


def difference(received, expected) -> float:
    """Largest deviation relative to the largest expected value; infinite where the maps are not of one size."""
    if received.shape != expected.shape:
        return np.inf
    return float(np.abs(received - expected).max() / np.abs(expected).max())


def inconsistency(net, output_stride: int, image) -> float:
    """Compares every (32 / output_stride)-th cell of the dense form with the classifier."""
    step = 32 // output_stride
    return difference(features(atrous(net, output_stride), image)[:, ::step, ::step], features(net, image))
