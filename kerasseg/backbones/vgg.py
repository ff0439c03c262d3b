"""VGG16 with its fully connected layers as convolutions."""

import keras
import numpy as np

from kerasseg.backbones.building import conv, scaled_width
from kerasseg.errors import KerassegError
from kerasseg.layers import CeilMaxPooling2D, Dropout, Preprocessing

# Convolutions in each block and their width.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def vgg16(
    x,
    *,
    width_multiplier: float = 1.0,
    first_padding: int = 1,
    fc6_padding: str = "valid",
    dropout_rate: float = 0.5,
    suffix: str = "",
    first_name: str = "conv1_1",
    last: str = "fc7",
) -> dict:
    """Builds the trunk of the FCN papers: VGG16 to fc7, at stride 32, with Caffe's rounding of pooled sizes.

    Args:
        x: Preprocessed image, shape `(B, H, W, C)`.
        width_multiplier: Scales every width, fc6 and fc7 included.
        first_padding: Zeros around the image; 100 in the papers, so that small images still give a score.
        fc6_padding: `"valid"` as in the papers, or `"same"`.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
        suffix: Appended to every layer name, where a network has several trunks.
        first_name: Name of the first convolution, where its input is not an RGB image.
        last: The level to end with: `"fc7"`, or a pool.
    Returns:
        `pool1` … `pool5` and `fc7`, by the authors' names without suffix, as far as `last`.
    Reference:
        Simonyan & Zisserman 2015, configuration D; Shelhamer et al. 2017, §4.1; fcn.berkeleyvision.org, net.py.
    """
    levels = {}
    for block, (convolutions, width) in enumerate(_BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            first = block == index == 1
            name = (first_name if first else f"conv{block}_{index}") + suffix
            padding = first_padding if first and first_padding != 1 else "same"
            x = conv(x, scaled_width(width, width_multiplier), 3, name, padding=padding)
        x = levels[f"pool{block}"] = CeilMaxPooling2D(2, 2, name=f"pool{block}{suffix}")(x)
        if last == f"pool{block}":
            return levels
    for name, kernel, padding in (("fc6", 7, fc6_padding), ("fc7", 1, "valid")):
        x = conv(x, scaled_width(4096, width_multiplier), kernel, name + suffix, padding=padding)
        levels[name] = x
        x = Dropout(dropout_rate, name=name.replace("fc", "drop") + suffix)(x)
    return {**levels, "fc7": x}


def load_vgg16_classifier(model: keras.Model, classifier: keras.Model | None = None) -> None:
    """Copies the weights of Keras' VGG16 classifier into every trunk of a network.

    fc1 and fc2 become the convolutions fc6 and fc7; the class scores are dropped. A first convolution over more than three
    channels (RGB-D) gets the mean over the colour channels for each further one, as the authors' NYUDv2 net does. Keras'
    weights expect BGR minus the mean, as the preset `"caffe"` gives it.

    Args:
        model: A network built on `vgg16` at width 1.
        classifier: `keras.applications.VGG16` with its top; `None` downloads the ImageNet one.
    Raises:
        KerassegError: If the download fails or the network has another width.
    """
    trunks = [layer.name.removeprefix("fc6") for layer in model.layers if layer.name.startswith("fc6")]
    for suffix in trunks:
        width = model.get_layer(f"fc6{suffix}").filters
        if width != 4096:
            raise KerassegError(
                f"weights='imagenet' are for width_multiplier=1; {model.name} has {width} channels in fc6 instead of 4096"
            )
    for layer in model.layers:
        if isinstance(layer, Preprocessing) and set(layer.scale) != {1.0}:
            raise KerassegError("weights='imagenet' of VGG16 expect unscaled BGR minus the mean: pass preprocessing='caffe'")
    classifier = classifier or _download()
    names = [layer.name for layer in model.layers]
    for suffix in trunks:
        for source, target in _classifier_names(names, suffix):
            kernel, bias = classifier.get_layer(source).get_weights()
            layer = model.get_layer(target)
            layer.set_weights([_fit_kernel(kernel, layer.kernel.shape), bias])


def _download() -> keras.Model:
    try:
        return keras.applications.VGG16(weights="imagenet")
    except Exception as error:  # Keras raises bare Exception when a download fails.
        reason = str(error).strip().splitlines()[0]
        raise KerassegError(f"weights='imagenet' could not be downloaded ({reason}); pass weights=None or a file's path") from error


def _classifier_names(names: list[str], suffix: str):
    for block, (convolutions, _) in enumerate(_BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            target = f"conv{block}_{index}{suffix}"
            # conv1_1_bgrd: the first convolution of early fusion.
            yield f"block{block}_conv{index}", target if target in names else "conv1_1_bgrd"
    yield "fc1", f"fc6{suffix}"
    yield "fc2", f"fc7{suffix}"


def _fit_kernel(kernel: np.ndarray, shape) -> np.ndarray:
    if kernel.ndim == 2:
        # Keras flattens (7, 7, 512) in this order, so a plain reshape restores it.
        return kernel.reshape(shape)
    extra = shape[2] - kernel.shape[2]
    return np.concatenate([kernel, np.repeat(kernel.mean(axis=2, keepdims=True), extra, axis=2)], axis=2)
