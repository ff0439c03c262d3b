"""Pictures of what a network does: activations of its stages, and proposals adding up."""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import PIL.Image
import PIL.ImageDraw
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.methods import allowed_size
from kerasseg.evaluation.report import text_height
from kerasseg.evaluation.running import reflected, resized, run_outputs
from kerasseg.layers import Geometry
from kerasseg.runs import atomic_path
from kerasseg.tables import did_you_mean

DECONVNET_STAGES = ("derelu5_3", "unpool4", "derelu4_3", "unpool3", "derelu3_3", "unpool2", "derelu2_2", "unpool1", "derelu1_2")
"""What Figure 4 of the DeconvNet paper shows, (b) to (j): the last deconvolution of each size, after its ReLU, and unpoolings."""

# A multiple of every network's stride.
_STEP = 64
_HALF = Fraction(1, 2)
_GAP = 8
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)
_BOX = (255, 40, 40)
# From nothing to the largest value.
_COLORS = np.array([(0, 0, 60), (0, 90, 200), (0, 190, 160), (250, 220, 60), (220, 30, 20)], np.float64)


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
    names = stage_layers(model, allowed) if layers is None else list(layers)
    tensors, geometry = [_map_of(model, name) for name in names], Geometry()
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


def _map_of(model, name: str):
    names = [layer.name for layer in model.layers]
    if name not in names:
        raise KerassegError(f"{model.name} has no layer '{name}': {did_you_mean(name, names)}")
    layer = model.get_layer(name)
    if not _is_map(layer):
        raise KerassegError(f"layer '{name}' of {model.name} has no single map to show: name another, such as {names[-1]}")
    return layer.output


def heat(values: np.ndarray) -> np.ndarray:
    """Colours a map from its smallest value, dark blue, to its largest, red.

    Args:
        values: Shape `(h, w)`.
    Returns:
        Shape `(h, w, 3)`, uint8; all dark blue where the map is constant.
    """
    low, high = float(values.min()), float(values.max())
    place = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.rint(np.interp(place, stops, _COLORS[:, channel])) for channel in range(3)], axis=-1).astype(np.uint8)


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
    shown = [("image", _picture(image))]
    for layer, channel, values in found:
        title = f"{layer} #{channel}, {values.shape[0]}x{values.shape[1]}, {values.min():.3g} to {values.max():.3g}"
        drawn = PIL.Image.fromarray(heat(values)).resize(shown[0][1].size, PIL.Image.Resampling.NEAREST)
        shown.append((title, drawn))
    return picture_grid([shown[first : first + columns] for first in range(0, len(shown), columns)], path)


def proposal_picture(image, boxes, counts: Sequence[int], pictures: Sequence, path=None) -> PIL.Image.Image:
    """Draws an image with the first boxes outlined, and below what the network made of them, for each count.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        boxes: Shape `(N, 4)`, in the order in which they were added.
        counts: How many boxes each column has.
        pictures: What the network made of so many boxes, one array `(H, W, 3)` uint8 per count.
        path: Where to write the picture as PNG as well; `None`: nowhere.
    Returns:
        The picture, RGB.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, Figure 6.
    """
    outlined = []
    for count in counts:
        drawn = _picture(image)
        draw = PIL.ImageDraw.Draw(drawn)
        for left, top, right, bottom in np.asarray(boxes)[:count].tolist():
            draw.rectangle((left, top, right - 1, bottom - 1), outline=_BOX)
        outlined.append((f"{count} box{'es' if count > 1 else ''}", drawn))
    return picture_grid([outlined, [("", PIL.Image.fromarray(np.asarray(picture))) for picture in pictures]], path)


def picture_grid(rows: Sequence[Sequence[tuple[str, PIL.Image.Image]]], path=None) -> PIL.Image.Image:
    """Puts pictures in rows, each below its title.

    Args:
        rows: Pairs of title and picture; all pictures are of one size, rows may be shorter than the first.
        path: Where to write the result as PNG as well; `None`: nowhere.
    Returns:
        The picture, RGB.
    """
    draw = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1)))
    width, height = rows[0][0][1].size
    # A title may be wider than a small picture.
    cell = max([width, *(math.ceil(draw.textlength(title)) for row in rows for title, _ in row)])
    pitch = height + text_height() + 2 * _GAP
    canvas = PIL.Image.new("RGB", (len(rows[0]) * (cell + _GAP) + _GAP, len(rows) * pitch + _GAP), _PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    for line, row in enumerate(rows):
        for column, (title, picture) in enumerate(row):
            left, top = _GAP + column * (cell + _GAP), _GAP + line * pitch
            draw.text((left, top), title, fill=_INK)
            canvas.paste(picture, (left, top + text_height() + _GAP // 2))
    if path is not None:
        with atomic_path(Path(path)) as temporary:
            canvas.save(temporary, format="PNG")
    return canvas


def _picture(image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.clip(np.rint(np.asarray(image)), 0, 255).astype(np.uint8))


def scaled_image(image, scale: float) -> np.ndarray:
    """Resizes a photograph as inference does.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        scale: Factor of both sides.
    Returns:
        Shape `(h, w, 3)`, float32.
    """
    image = tf.constant(image, tf.float32)
    return resized(image, [max(1, round(side * scale)) for side in image.shape[:2]], antialias=True).numpy()
