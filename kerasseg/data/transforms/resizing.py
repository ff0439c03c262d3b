"""Resizing and placing pictures and label maps; of a resized picture only the window that is wanted is computed."""

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
from PIL import Image

from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

_BILINEAR = Image.Resampling.BILINEAR
# Windows are widened by fewer pixels than this.
_PERIOD = 64


class Window(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resized_image(image: np.ndarray, size: tuple[int, int], window: Window | None = None, mirrored: bool = False) -> np.ndarray:
    """Resizes a picture, bilinear, each channel alone; smaller ones by averaging over what falls into a pixel.

    Args:
        image: Shape `(H, W, C)`; uint8, or any other type, which becomes float32.
        size: `(height, width)` of the resized picture.
        window: The part of it that is wanted; all by default. As cut out afterwards, but for the last bit of a few values.
        mirrored: Whether to mirror that left and right.
    Returns:
        Shape `(height, width, C)`, uint8 or float32.
    """
    whole = size == image.shape[:2]
    if whole and not mirrored:
        return image if window is None else _cut(image, window)
    if whole and window is not None:
        image, window = _cut(image, window), None
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    return _joined([_picture(part, None if whole else size, window, mirrored) for part in _parts(image)], image.shape[2])


def _cut(array: np.ndarray, window: Window) -> np.ndarray:
    return array[window.top : window.top + window.height, window.left : window.left + window.width]


def _parts(image: np.ndarray):
    """What Pillow takes as one: three channels of bytes, else a channel. It would multiply four by the last as by an alpha."""
    step = 3 if image.dtype == np.uint8 and image.shape[2] % 3 == 0 else 1
    for first in range(0, image.shape[2], step):
        yield image[..., first] if step == 1 else image[..., first : first + step]


def _picture(part: np.ndarray, size, window: Window | None, mirrored: bool) -> np.ndarray:
    if size is None:
        return np.asarray(_mirrored(Image.fromarray(part), mirrored))
    place = window or Window(0, 0, *size)
    top, bottom, rows = _widened(place.top, place.height, part.shape[0], size[0])
    left, right, columns = _widened(place.left, place.width, part.shape[1], size[1])
    down, across = part.shape[0] / size[0], part.shape[1] / size[1]
    # The rows that have a part in the window.
    reach = max(down, 1) + 1
    first, last = max(int(top * down - reach), 0), min(int(bottom * down + reach) + 1, part.shape[0])
    # Always across before down: Pillow alone takes the order that is faster for a size, and rounds after each.
    width, height = right - left, last - first
    ends, edges = min(right * across, part.shape[1]), (top * down - first, min(bottom * down - first, height))
    picture = Image.fromarray(part[first:last]).resize((width, height), _BILINEAR, box=(left * across, 0, ends, height))
    picture = picture.resize((width, bottom - top), _BILINEAR, box=(0, edges[0], width, edges[1]))
    if mirrored:
        columns = slice(width - columns.stop, width - columns.start)
    return np.asarray(_mirrored(picture, mirrored))[rows, columns]


def _mirrored(picture: Image.Image, mirrored: bool) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def _widened(start: int, count: int, have: int, want: int) -> tuple[int, int, slice]:
    """Moves the ends of a window to where they are whole pixels of the picture before, if such places are near.

    To Pillow the edges are float32 numbers. Where the ratio of the sizes is simple, as in 4 to 7, many values lie half-way between
    two whole ones, and the last bit of an edge would decide to which they are rounded.

    Returns:
        Start and end, and what of it was wanted.
    """
    period = want // gcd(have, want)
    first, last = start, start + count
    if period <= _PERIOD:
        first, last = start // period * period, min(-(-last // period) * period, want)
    return first, last, slice(start - first, start - first + count)


def _joined(parts: list[np.ndarray], channels: int) -> np.ndarray:
    if len(parts) == 1:
        return parts[0].reshape(*parts[0].shape[:2], channels)
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


@lru_cache(maxsize=64)
def _nearest(have: int, want: int) -> np.ndarray:
    """For each pixel of a resized line the nearest of the line before: added up as Pillow does it, to the last bit."""
    step = have / want
    return np.minimum(np.cumsum([step * 0.5, *[step] * (want - 1)]).astype(np.int64), have - 1)


def resized_label(label: np.ndarray, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Resizes a label map by nearest neighbour, which mixes nothing.

    Args:
        label: Shape `(H, W)` or `(H, W, heads)`.
        size: `(height, width)` of the resized map.
        window: The part of it that is wanted; all by default.
    Returns:
        Shape `(height, width)` or `(height, width, heads)`, of the same type.
    """
    if size == label.shape[:2]:
        return label if window is None else _cut(label, window)
    rows, columns = (_nearest(have, want) for have, want in zip(label.shape, size, strict=False))
    if window is not None:
        rows, columns = rows[window.top : window.top + window.height], columns[window.left : window.left + window.width]
    return label.take(rows, axis=0).take(columns, axis=1)


def check_shapes(canvas: np.ndarray, blank: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
    """Checks that a pair has the channels of the batch that it is for, which NumPy would else repeat.

    Args:
        canvas: Shape `(height, width, C)`.
        blank: Shape `(height, width)` or `(height, width, heads)`.
        image: Of any size.
        label: Of any size.
    Raises:
        KerassegError: If channels or heads are others.
    """
    if (image.shape[2:], label.shape[2:]) != (canvas.shape[2:], blank.shape[2:]):
        raise KerassegError(
            f"an example has image and label of shapes {image.shape} and {label.shape}, but its data set says {canvas.shape[2]} "
            f"channels and {blank.shape[2] if blank.ndim == 3 else 'no'} heads: set `channels` and `heads` of the data set"
        )


def place_into(canvas: np.ndarray, blank: np.ndarray, image: np.ndarray, label: np.ndarray, top: int, left: int, mean) -> None:
    """Lays a pair on a canvas, its corner at (top, left), which may lie outside; the rest becomes the mean and 255.

    Args:
        canvas: Shape `(height, width, C)`, float32; written to.
        blank: Shape `(height, width)` or `(height, width, heads)`, integer; written to.
        image: Shape `(H, W, C)`.
        label: Shape `(H, W)` or `(H, W, heads)`.
        top: Row of the canvas where the image begins.
        left: Column of the canvas where the image begins.
        mean: One value for each channel.
    Raises:
        KerassegError: If that is not what there is.
    """
    check_shapes(canvas, blank, image, label)
    if len(mean) != image.shape[2]:
        raise KerassegError(
            f"padding received {len(mean)} values, {tuple(mean)}, for images of {image.shape[2]} channels: expected one for each, "
            "such as the data set's mean"
        )
    (height, width), (have_rows, have_columns) = canvas.shape[:2], label.shape[:2]
    first, last = max(min(top, height), 0), max(min(top + have_rows, height), 0)
    start, stop = max(min(left, width), 0), max(min(left + have_columns, width), 0)
    if last <= first or stop <= start:
        first = last = start = stop = 0
    if (first, last, start, stop) != (0, height, 0, width):
        # A row at a time: broadcasting three values to each pixel is ten times slower.
        row = np.tile(np.asarray(mean, np.float32), (width, 1))
        for part in (np.s_[:first], np.s_[last:], np.s_[first:last, :start], np.s_[first:last, stop:]):
            blank[part] = IGNORE
            canvas[part] = row[: canvas[part].shape[1]]
    source = np.s_[first - top : last - top, start - left : stop - left]
    if last > first:
        canvas[first:last, start:stop] = image[source]
        blank[first:last, start:stop] = label[source]


def placed(image: np.ndarray, label: np.ndarray, size: tuple[int, int], top: int, left: int, mean):
    """Lays a pair on a new canvas; see `place_into`.

    Args:
        image: Shape `(H, W, C)`.
        label: Shape `(H, W)` or `(H, W, heads)`.
        size: `(height, width)` of the canvas.
        top: Row of the canvas where the image begins.
        left: Column of the canvas where the image begins.
        mean: One value for each channel.
    Returns:
        The pair at `size`, float32 and int32.
    """
    canvas = np.empty((*size, image.shape[2]), np.float32)
    blank = np.empty((*size, *label.shape[2:]), np.int32)
    place_into(canvas, blank, image, label, top, left, mean)
    return canvas, blank
