"""What the stages of a network answer to a photograph: the strongest channel of each."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import keras
import numpy as np
import PIL.Image

from kerasseg.errors import KerassegError
from kerasseg.evaluation.analysis.pictures import heat, picture_grid, picture_of
from kerasseg.evaluation.methods import allowed_size
from kerasseg.evaluation.running import check_shape, reflected, run_outputs
from kerasseg.layers import Geometry
from kerasseg.tables import did_you_mean

DECONVNET_STAGES = ("derelu5_3", "unpool4", "derelu4_3", "unpool3", "derelu3_3", "unpool2", "derelu2_2", "unpool1", "derelu1_2")
"""What Figure 4 of the DeconvNet paper shows, (b) to (j): the last deconvolution of each size, after its ReLU, and unpoolings."""

# A multiple of every network's stride.
_STEP = 64
_HALF = Fraction(1, 2)


class Activation(NamedTuple):
    """One channel of one layer's output: the layer's name, the channel's number, and its values, `(h, w)` float32."""

    layer: str
    channel: int
    values: np.ndarray


def activations(model: keras.Model, image, layers: Sequence[str] | None = None) -> list[Activation]:
    """Picks the most representative channel of several layers: the one that holds the largest value of the layer.

    Args:
        model: Network of one RGB image; it gets the image continued to a size that it takes. Of what it continues the image by,
            and pads inside, the maps are freed: cells count, and are given, that lie in the image at least in part. (Of maps
            that are not aligned with the image, only what continues it is cut off, in proportion.)
        image: Shape `(H, W, 3)`, RGB 0–255.
        layers: Names of layers with maps; `None`: those of `stage_layers`.
    Returns:
        One channel per layer, in the order of the names.
    Raises:
        KerassegError: If there is no such layer, or it has no map.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, Figure 4, which does not say how it chooses.
    """
    image = np.asarray(image, np.float32)
    size, allowed = image.shape[:2], allowed_size(model, image.shape[:2])
    check_shape(model, (*allowed, image.shape[2]), "image")
    names = stage_layers(model, allowed) if layers is None else list(layers)
    tensors, geometry = [layer_map(model, name) for name in names], Geometry()
    network = keras.Model(model.input, tensors)
    image = image[reflected(size[0], 0, allowed[0])][:, reflected(size[1], 0, allowed[1])]
    found = []
    for name, tensor, output in zip(names, tensors, run_outputs(network, image[np.newaxis]), strict=True):
        maps = output[0].numpy().astype(np.float32)
        rows, columns = _cells_inside(geometry, tensor, maps.shape[:2], size, allowed)
        maps = maps[rows, columns]
        channel = int(maps.max((0, 1)).argmax())
        found.append(Activation(name, channel, maps[..., channel]))
    return found


def _cells_inside(geometry: Geometry, tensor, cells, size, allowed) -> tuple[slice, slice]:
    """The cells of a map, down and across, that lie in an image of that size at least in part."""
    try:
        scale, shift = geometry.coordinate_map(tensor)
    except ValueError:
        return tuple(slice(math.ceil(n * own / all_)) for n, own, all_ in zip(cells, size, allowed, strict=True))
    # Cell i covers half a stride on either side of its centre, scale · i + shift; pixel p what is within half a pixel of p.
    first = max(0, math.floor((-_HALF - shift) / scale - _HALF) + 1)
    stops = (math.ceil((own - _HALF - shift) / scale + _HALF) for own in size)
    # One cell is always left.
    return tuple(slice(min(first, n - 1), max(stop, first + 1)) for n, stop in zip(cells, stops, strict=True))


def stage_layers(model: keras.Model, size: tuple[int, int]) -> list[str]:
    """Names the layers that show a network's stages.

    Args:
        model: The network.
        size: Height and width of its image.
    Returns:
        Of DeconvNet those of Figure 4; of any other network the last layer of each resolution (a power of two of image pixels per
        cell), in the order of the network.
    """
    if all(any(layer.name == name for layer in model.layers) for name in DECONVNET_STAGES):
        return list(DECONVNET_STAGES)
    layers = [layer for layer in model.layers if _is_map(layer) and not isinstance(layer, keras.layers.InputLayer)]
    maps = keras.Model(model.inputs, [layer.output for layer in layers])
    last = {}
    for layer, stride in zip(layers, _strides(maps, allowed_size(model, size)), strict=True):
        if stride:
            level = round(math.log2(stride))
            last.pop(level, None)
            last[level] = layer.name
    return list(last.values())


def _strides(maps: keras.Model, size: tuple[int, int]) -> list[float]:
    """How many image rows are between two rows of each map; 0 for a map that does not grow with the image."""

    def rows(height, width):
        image = keras.KerasTensor((1, height, width, maps.inputs[0].shape[-1]), maps.inputs[0].dtype)
        return [spec.shape[1] for spec in maps.compute_output_spec([image])]

    fixed = maps.inputs[0].shape[1] is not None
    # From the difference of two sizes, since some networks pad the image by much.
    larger = allowed_size(maps, [side + _STEP for side in size])
    few, many = ([0] * len(maps.outputs) if fixed else rows(*size)), rows(*(size if fixed else larger))
    grown = size[0] if fixed else larger[0] - size[0]
    return [grown / (after - before) if after > before else 0 for before, after in zip(few, many, strict=True)]


def _is_map(layer) -> bool:
    try:
        output = layer.output
    except (AttributeError, ValueError):
        return False
    return isinstance(output, keras.KerasTensor) and len(output.shape) == 4


def layer_map(model, name: str):
    """Gives the map that a layer makes.

    Args:
        model: The network.
        name: The layer's name.
    Returns:
        The symbolic output, `(B, h, w, C)`.
    Raises:
        KerassegError: If there is no such layer, or it has no map, or several.
    """
    names = [layer.name for layer in model.layers]
    if name not in names:
        raise KerassegError(f"{model.name} has no layer '{name}': {did_you_mean(name, names)}")
    layer = model.get_layer(name)
    if not _is_map(layer):
        raise KerassegError(f"layer '{name}' of {model.name} has no single map to show: name another, such as {names[-1]}")
    return layer.output


def activation_picture(image, found: Sequence[Activation], path=None, *, columns: int = 5) -> PIL.Image.Image:
    """Draws the image and the activations of its stages, all stretched to the image's size, cells as rectangles.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        found: What `activations` picked.
        path: Where to write the picture as PNG as well; `None`: nowhere.
        columns: Pictures in a row.
    Returns:
        The picture, RGB.
    """
    shown = [("image", picture_of(image))]
    for layer, channel, values in found:
        title = f"{layer} #{channel}, {values.shape[0]}x{values.shape[1]}, {values.min():.3g} to {values.max():.3g}"
        drawn = PIL.Image.fromarray(heat(values)).resize(shown[0][1].size, PIL.Image.Resampling.NEAREST)
        shown.append((title, drawn))
    return picture_grid([shown[first : first + columns] for first in range(0, len(shown), columns)], path)
