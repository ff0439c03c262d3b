"""Pictures of analyses: maps in colours, and pictures side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import tensorflow as tf

from kerasseg.evaluation.report import text_height
from kerasseg.evaluation.running import resized
from kerasseg.runs import atomic_path

_GAP = 8
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)
_BOX = (255, 40, 40)
# From nothing to the largest value.
_COLORS = np.array([(0, 0, 60), (0, 90, 200), (0, 190, 160), (250, 220, 60), (220, 30, 20)], np.float64)


def heat(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colours a map from its smallest value, dark blue, to its largest, red.

    Args:
        values: Shape `(h, w)`.
        low: What is dark blue, and all below; `None`: the smallest value.
        high: What is red, and all above; `None`: the largest value.
    Returns:
        Shape `(h, w, 3)`, uint8; all dark blue where the map is constant.
    """
    low, high = float(values.min() if low is None else low), float(values.max() if high is None else high)
    place = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.rint(np.interp(place, stops, _COLORS[:, channel])) for channel in range(3)], axis=-1).astype(np.uint8)


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
        drawn = picture_of(image)
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


def picture_of(image) -> PIL.Image.Image:
    """Makes a picture of an array.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255; values beyond are cut off.
    """
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
