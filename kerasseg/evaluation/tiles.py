"""Dilation's test: tiles of the reflected image, probabilities at an eighth of its size, zoomed."""

import dataclasses
import weakref
from typing import ClassVar

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.methods import Method, checked_count, checked_size
from kerasseg.evaluation.running import reflected, resized, run_network

TILE_SIZES = {"voc": (900, 900), "camvid": (900, 1100), "kitti": (852, 1640), "cityscapes": (1396, 1396)}
"""The authors' tiles by data set, height and width in pixels."""

ZOOMS = ("authors", "bilinear")
# Image pixels between two cells of every Dilation network, before what upsampling it has.
_STRIDE = 8
# What runs on tiles, by the network it was made of; made once, since a new one would be traced anew for every image.
_NATIVE: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Tiles(Method):
    """Runs a Dilation network on tiles, as its authors test it.

    The image is continued by reflection about its outermost pixels, by `margin` on all sides. Tiles of `size` begin at multiples
    of what a tile has left within its margin, `size - 2 · margin`; where the image ends before a tile, the tile is continued
    by reflection at the bottom and right. The tiles' probabilities are put side by side and, where the network leaves them at
    an eighth of the image, zoomed.

    Args:
        size: Height and width of a tile with its margin, in pixels; the authors' are in `TILE_SIZES`.
        margin: Pixels that the network eats on every side.
        zoom: `"authors"`: cells stand on the top left pixel of their 8 × 8, pixels between are weighted by distance; beyond the
            last cell, where the authors' code reads past its array, the last cell counts. `"bilinear"`: cells stand in the
            middle of their pixels.
    Raises:
        KerassegError: If the size leaves nothing within the margin, or the zoom is unknown; when run, if the network is no Dilation
            network, or tiles beside each other would not stay on its grid (`size - 2 · margin` no multiple of 8).
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122; the protocol is that of its authors' predict.py.
    """

    kind: ClassVar[str] = "probabilities"
    name: ClassVar[str] = "tiles"
    size: tuple[int, int] = (900, 900)
    margin: int = 186
    zoom: str = "authors"

    def __post_init__(self):
        object.__setattr__(self, "size", checked_size(self.size, "tiles"))
        checked_count(self.margin, "margin of tiles", 186, least=0)
        if self.zoom not in ZOOMS:
            raise KerassegError(f"zoom '{self.zoom}' of tiles: expected one of {', '.join(ZOOMS)}")
        if min(self.size) <= 2 * self.margin:
            raise KerassegError(
                f"tiles of {self.size[0]}x{self.size[1]} pixels with a margin of {self.margin}: expected height and width above "
                f"{2 * self.margin}, such as --tiles 900x900"
            )

    def scores(self, model, view):
        """See `Method`."""
        network, factor = _native_network(model)
        rows, columns = (reflected(side, -self.margin, side + self.margin) for side in view.size)
        image = tf.gather(tf.gather(view.image, rows, axis=0), columns, axis=1)
        inner = [side - 2 * self.margin for side in self.size]
        maps = [
            np.concatenate([self._tile(network, image, top, left) for left in range(0, view.size[1], inner[1])], axis=1)
            for top in range(0, view.size[0], inner[0])
        ]
        found = np.concatenate(maps)
        if factor == 1:
            return tf.constant(found[: view.size[0], : view.size[1]])
        if self.zoom == "authors":
            return tf.constant(zoomed(found, factor, view.size))
        return resized(found, [factor * side for side in found.shape[:2]])[: view.size[0], : view.size[1]]

    def _tile(self, network, image, top, left) -> np.ndarray:
        """The probabilities of the tile that begins there."""
        tile = image[top : top + self.size[0], left : left + self.size[1]]
        for axis in range(2):
            tile = tf.gather(tile, reflected(tile.shape[axis], 0, self.size[axis]), axis=axis)
        return tf.nn.softmax(run_network(network, tile[tf.newaxis], " (a tile)"))[0].numpy()

    def check_size(self, size):
        """See `Method`."""
        for side, tile in zip(size, self.size, strict=True):
            inner = tile - 2 * self.margin
            if inner % _STRIDE and side > inner:
                raise KerassegError(
                    f"tiles of {self.size[0]}x{self.size[1]} pixels on an image of {size[0]}x{size[1]}: {tile} - {2 * self.margin} "
                    f"is no multiple of {_STRIDE}, so that a second tile would not stay on the network's grid; expected e.g. "
                    f"{tile - inner % _STRIDE + _STRIDE} instead of {tile}"
                )


def zoomed(maps: np.ndarray, factor: int, size) -> np.ndarray:
    """Enlarges a map so that its cells stand on the top left pixel of their squares.

    Args:
        maps: Shape `(h, w, C)`.
        factor: Pixels per cell.
        size: `(height, width)` of the result, each at most `factor` times the map's.
    Returns:
        Shape `(height, width, C)`; the last cell counts beyond itself.
    Reference:
        `interp_map` in the authors' util.py.
    """
    for axis, length in enumerate(size):
        position = np.arange(length)
        cell = position // factor
        after = np.minimum(cell + 1, maps.shape[axis] - 1)
        weight = (position % factor / factor).astype(maps.dtype).reshape([-1 if axis == place else 1 for place in range(3)])
        maps = np.take(maps, cell, axis) * (1 - weight) + np.take(maps, after, axis) * weight
    return maps


def _native_network(model):
    """The network that runs on tiles, of the model's own layers, and pixels per cell of its output."""
    if model not in _NATIVE:
        from kerasseg.models.dilation import native_network

        _NATIVE[model] = native_network(model)
    return _NATIVE[model]
