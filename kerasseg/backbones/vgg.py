"""VGG16 with its fully connected layers as convolutions."""

from typing import NamedTuple

import keras
import numpy as np

from kerasseg.backbones.building import conv, download, scaled_width
from kerasseg.errors import KerassegError
from kerasseg.layers import CeilMaxPooling2D, Dropout, Preprocessing

# Convolutions in each block and their width.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Fc6(NamedTuple):
    """How DeepLab reads fc6 from a map of stride 8.

    Args:
        kernel_size: Side of the kernel.
        dilation_rate: Cells between two of its weights.
        width: Channels of fc6 and fc7.
    """

    kernel_size: int
    dilation_rate: int
    width: int


# Window, stride and border of pool1 … pool5 in the DeepLab files. With windows of 3, cell i of a map of stride s lies exactly on
# pixel s · i of the image; with windows of 2, between two pixels before it.
ATROUS_POOLS = {
    "2x2": ((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, 1), (3, 1, 1)),
    "2x2_train": ((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, 0), (3, 1, 1)),
    "3x3": ((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)),
}


# The border of 100 zeros in the FCN papers' files, or none: the weights are the same.
_BORDERS = {
    "authors": {"first_padding": 100, "fc6_padding": "valid"},
    "same": {"first_padding": 1, "fc6_padding": "same"},
}
PADDINGS = tuple(_BORDERS)


def trunk_padding(padding: str) -> dict:
    """Gives the arguments of `vgg16` for one of `PADDINGS`.

    Raises:
        KerassegError: If it is none of them.
    """
    if padding not in _BORDERS:
        raise KerassegError(f"padding='{padding}': expected one of {', '.join(map(repr, PADDINGS))}")
    return _BORDERS[padding]


def _convolutions(
    x, block: int, width_multiplier: float, *, suffix: str = "", dilation_rate: int = 1, padding: str = "same", first=None
):
    """Applies one block's convolutions; `first` is name and padding of the first one, where they are not as the others'."""
    count, width = _BLOCKS[block - 1]
    for index in range(1, count + 1):
        name, border = first if first and index == 1 else (f"conv{block}_{index}", padding)
        x = conv(x, scaled_width(width, width_multiplier), 3, name + suffix, padding=border, dilation_rate=dilation_rate)
    return x


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
    first = first_name, "same" if first_padding == 1 else first_padding
    for block in range(1, 6):
        x = _convolutions(x, block, width_multiplier, suffix=suffix, first=first if block == 1 else None)
        x = levels[f"pool{block}"] = CeilMaxPooling2D(2, 2, name=f"pool{block}{suffix}")(x)
        if last == f"pool{block}":
            return levels
    for name, kernel, padding in (("fc6", 7, fc6_padding), ("fc7", 1, "valid")):
        x = conv(x, scaled_width(4096, width_multiplier), kernel, name + suffix, padding=padding)
        levels[name] = x
        x = Dropout(dropout_rate, name=name.replace("fc", "drop") + suffix)(x)
    return {**levels, "fc7": x}


def vgg16_atrous(x, *, pools: str = "3x3", width_multiplier: float = 1.0) -> dict:
    """Builds the trunk of DeepLab: VGG16 to pool5, at stride 8 instead of 32.

    pool4 and pool5 no longer step, and the convolutions of block 5 have holes instead: the same weights see the same
    distances in the image.

    Args:
        x: Preprocessed image, shape `(B, H, W, 3)`.
        pools: `"3x3"` (LargeFOV, all multi-scale nets, v2); `"2x2"` (v1's net with the 4×4 kernel, test file), one cell larger
            than `"2x2_train"` (its training file) because pool4 has a border.
        width_multiplier: Scales every width.
    Returns:
        `pool1` … `pool5`, by the authors' names.
    Reference:
        Chen et al. 2015, §3.1; the prototxt files of DeepLab, DeepLab-LargeFOV, DeepLab-MSc and deeplab_v2_vgg16.
    """
    levels = {}
    for block, window in enumerate(ATROUS_POOLS[pools], start=1):
        x = _convolutions(x, block, width_multiplier, dilation_rate=2 if block == 5 else 1)
        x = levels[f"pool{block}"] = CeilMaxPooling2D(*window, name=f"pool{block}")(x)
    return levels


def vgg16_valid(x, *, width_multiplier: float = 1.0, dropout_rate: float = 0.5):
    """Builds the trunk of the Dilation networks: VGG16 to fc7, at stride 8, without pool4, pool5 and any padding.

    What comes behind a pool that is gone has twice its holes: the same weights see the same distances in the image. 186 pixels on
    each side are eaten: n pixels give ⌈(n − 372) / 8⌉ cells, and cell i lies in the middle of pixels 186 + 8i … 186 + 8i + 7.

    Args:
        x: Preprocessed image with its margin, shape `(B, H, W, 3)`, from 373 pixels.
        width_multiplier: Scales every width, fc6 and fc7 included.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
    Returns:
        fc7 behind its dropout, shape `(B, h, w, 4096)`.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §4; fyu/dilation, network.py.
    """
    for block in range(1, 6):
        x = _convolutions(x, block, width_multiplier, dilation_rate=2 if block == 5 else 1, padding="valid")
        if block < 4:
            x = CeilMaxPooling2D(2, 2, name=f"pool{block}")(x)
    width = scaled_width(4096, width_multiplier)
    for name, kernel_size, rate in (("fc6", 7, 4), ("fc7", 1, 1)):
        x = conv(x, width, kernel_size, name, padding="valid", dilation_rate=rate)
        x = Dropout(dropout_rate, name=name.replace("fc", "drop"))(x)
    return x


def fully_connected_atrous(x, fc6: Fc6, *, width_multiplier: float = 1.0, dropout_rate: float = 0.5, suffix: str = ""):
    """Builds fc6 with holes and fc7 on a map of stride 8, whose size they keep.

    Args:
        x: pool5, shape `(B, h, w, C)`.
        fc6: Kernel, rate and width.
        width_multiplier: Scales the width.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
        suffix: Appended to every layer name, where a network has several such branches.
    Returns:
        fc7 behind its dropout, shape `(B, h, w, fc6.width)`.
    Reference:
        Chen et al. 2015, §3.1 and §4.1; Chen et al. 2018, §3.2 (several rates side by side).
    """
    width = scaled_width(fc6.width, width_multiplier)
    for name, kernel_size, rate in (("fc6", fc6.kernel_size, fc6.dilation_rate), ("fc7", 1, 1)):
        x = conv(x, width, kernel_size, name + suffix, dilation_rate=rate)
        x = Dropout(dropout_rate, name=name.replace("fc", "drop") + suffix)(x)
    return x


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
        check_vgg16_weights_fit(model, f"fc6{suffix}", 4096)
    classifier = classifier or download_vgg16()
    for suffix in trunks:
        copy_vgg16_convolutions(model, classifier, suffix)
        copy_vgg16_fully_connected(model, classifier, suffix)


def copy_vgg16_fully_connected(model: keras.Model, classifier: keras.Model, suffix: str = "") -> None:
    """Copies fc1 and fc2 of Keras' VGG16 into fc6 and fc7 of one trunk of a network; arguments as `copy_vgg16_convolutions`."""
    for source, target in (("fc1", "fc6"), ("fc2", "fc7")):
        kernel, bias = classifier.get_layer(source).get_weights()
        layer = model.get_layer(target + suffix)
        # Keras flattens (7, 7, 512) in this order, so a plain reshape restores it.
        layer.set_weights([kernel.reshape(layer.kernel.shape), bias])


def check_vgg16_weights_fit(model: keras.Model, layer: str, width: int) -> None:
    """Refuses a network that the ImageNet weights of VGG16 were not made for.

    Args:
        model: A network on VGG16.
        layer: Name of a layer whose width tells the network's.
        width: Channels of that layer at full width.
    Raises:
        KerassegError: If the width or the preprocessing is another.
    """
    received = model.get_layer(layer).filters
    if received != width:
        raise KerassegError(
            f"weights='imagenet' are for width_multiplier=1; {model.name} has {received} channels in {layer} instead of {width}"
        )
    for other in model.layers:
        if isinstance(other, Preprocessing) and set(other.scale) != {1.0}:
            raise KerassegError("weights='imagenet' of VGG16 expect unscaled BGR minus the mean: pass preprocessing='caffe'")


def download_vgg16() -> keras.Model:
    """Gives Keras' VGG16 classifier with its ImageNet weights, or raises a KerassegError of one line."""
    return download(keras.applications.VGG16)


def copy_vgg16_convolutions(model: keras.Model, classifier: keras.Model, suffix: str = "") -> None:
    """Copies conv1_1 … conv5_3 of Keras' VGG16 into one trunk of a network.

    Args:
        model: A network on VGG16 at full width.
        classifier: `keras.applications.VGG16`.
        suffix: What follows the layer names of that trunk.
    """
    names = {layer.name for layer in model.layers}
    for block, (convolutions, _) in enumerate(_BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            target = f"conv{block}_{index}{suffix}"
            # conv1_1_bgrd: the first convolution of early fusion.
            layer = model.get_layer(target if target in names else "conv1_1_bgrd")
            kernel, bias = classifier.get_layer(f"block{block}_conv{index}").get_weights()
            layer.set_weights([_add_inputs(kernel, layer.kernel.shape[2]), bias])


def _add_inputs(kernel: np.ndarray, inputs: int) -> np.ndarray:
    """Gives a kernel over colours the further inputs that early fusion has."""
    extra = inputs - kernel.shape[2]
    return np.concatenate([kernel, np.repeat(kernel.mean(axis=2, keepdims=True), extra, axis=2)], axis=2)
