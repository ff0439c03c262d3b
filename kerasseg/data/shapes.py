"""The built-in data set: drawn pictures of shapes, for first runs and tests. Needs no file."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kerasseg.data.layouts.shared import check_split
from kerasseg.data.records import DataSet, Example
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LABELS

_LENGTHS = {"train": 1024, "val": 128, "test": 128}
_SIDES = {"circle": 0, "square": 4, "triangle": 3}
_GOLDEN_HUE = 0.125
_BORDER = 1.0


class Shapes(DataSet):
    """Shapes that overlap on a textured ground, each with a border to ignore, as VOC's objects have.

    No single cue solves it. Circles, squares and triangles have any hue but gold, so that only their outline tells them apart;
    `striped` and `golden` objects have any of the three outlines, so that only texture and colour tell. The ground is of any
    hue, gold included, and sometimes faintly striped itself.

    Each image is a pure function of the seed, the split and the index, whatever `length` is; splits share none.

    Args:
        data_dir: Must be `None`: nothing is read.
        split: `"train"`, `"val"` or `"test"`.
        size: `(height, width)` in pixels, 16 at least.
        length: Number of images; `None` is 1024 for `train`, else 128.
        seed: 0 or more; another one is another data set.
    Raises:
        KerassegError: If an argument is out of range.
    Example:
        >>> example = Shapes(split="val")[3]
        >>> example.image.shape, example.label.dtype, example.id
        ((96, 128, 3), dtype('int32'), 'val_00003')
    """

    def __init__(
        self, data_dir=None, split: str = "train", size: Sequence[int] = (96, 128), length: int | None = None, seed: int = 0
    ):
        if data_dir is not None:
            raise KerassegError(
                f"data set 'shapes' is drawn but received data_dir '{data_dir}': leave it out; your own images are 'folder'"
            )
        check_split("shapes", split, _LENGTHS)
        if len(tuple(size)) != 2 or min(size) < 16:
            raise KerassegError(f"data set 'shapes' received size {size}: expected (height, width) of at least 16, e.g. (96, 128)")
        length = _LENGTHS[split] if length is None else length
        if length < 1 or seed < 0:
            raise KerassegError(f"data set 'shapes' received length={length}, seed={seed}: expected length ≥ 1 and seed ≥ 0")
        super().__init__(LABELS["shapes"], (f"{split}_{index:05d}" for index in range(length)))
        self.size = (int(size[0]), int(size[1]))
        self._stream = (seed, list(_LENGTHS).index(split))

    def read(self, index: int) -> Example:
        """Draws one image.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The example; its path is `None`.
        """
        rng = np.random.default_rng((*self._stream, index))
        canvas = _ground(rng, self.size)
        label = np.zeros(self.size, np.int32)
        for _ in range(rng.integers(3, 7)):
            _draw(rng, canvas, label)
        canvas += np.float32(rng.uniform(2, 7)) * rng.standard_normal(self.size, np.float32)[..., None]
        return Example(np.clip(canvas, 0, 255).astype(np.uint8), label, self.ids[index], None)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) * 255


def _any_hue_but_gold(rng: np.random.Generator) -> float:
    return _GOLDEN_HUE + rng.uniform(0.09, 0.91)


def _waves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Stripes of a random direction, −1 to 1, with edges of about a pixel."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    wave = np.sin((u * np.cos(angle) + v * np.sin(angle)) * np.float32(2 * np.pi / period) + np.float32(phase))
    return np.clip(wave * np.float32(period / 4), -1, 1)


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Clouds of two hues, now and then with faint stripes."""
    height, width = size
    hue = rng.random()
    dark, light = (
        _color(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.75), value) for value in rng.uniform((0.2, 0.5), (0.5, 0.9))
    )
    cloud = np.zeros(size, np.float32)
    for cells, weight in ((3, 0.6), (9, 0.4)):
        coarse = rng.random((cells, cells * width // height + 1), np.float32)
        cloud += weight * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    if rng.random() < 0.35:
        rows, columns = np.ogrid[:height, :width]
        cloud += 0.12 * _waves(rng, columns.astype(np.float32), rows.astype(np.float32), rng.uniform(0.06, 0.15) * height)
    return dark + (light - dark) * cloud[..., None]


@dataclass(frozen=True)
class _Outline:
    """A disc (0 sides) or a regular polygon."""

    sides: int
    row: float
    column: float
    radius: float
    angle: float

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Pixels to the outline, negative inside, at offsets from the centre."""
        if not self.sides:
            return np.hypot(u, v) - np.float32(self.radius)
        normals = self.angle + 2 * np.pi * np.arange(self.sides) / self.sides
        reach = [u * np.float32(np.cos(normal)) + v * np.float32(np.sin(normal)) for normal in normals]
        return np.maximum.reduce(reach) - np.float32(self.radius * np.cos(np.pi / self.sides))


def _draw(rng: np.random.Generator, canvas: np.ndarray, label: np.ndarray) -> None:
    """Draws one object over what is there, and its label with the border."""
    height, width = label.shape
    kind = LABELS["shapes"].classes[rng.integers(1, 6)]
    sides = _SIDES[kind] if kind in _SIDES else (0, 3, 4)[rng.integers(3)]
    radius = rng.uniform(0.13, 0.3) * min(height, width) * (1.2 if sides == 3 else 1)
    centre = rng.uniform(0.08, 0.92, 2) * (height, width)
    outline = _Outline(sides, *centre, radius, rng.uniform(0, 2 * np.pi))
    reach = radius + 8
    rows = slice(max(0, int(outline.row - reach)), min(height, int(outline.row + reach) + 1))
    columns = slice(max(0, int(outline.column - reach)), min(width, int(outline.column + reach) + 1))
    v = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(outline.row)
    u = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(outline.column)
    distance = outline.distance(u, v)

    view = canvas[rows, columns]
    # A soft shadow around the object parts it from what lies behind.
    view *= (1 - 0.45 * np.exp(-np.maximum(distance, 0) / 3))[..., None]
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    view += cover * (_paint(rng, kind, u, v, radius) - view)
    where = label[rows, columns]
    where[distance < 0] = LABELS["shapes"].classes.index(kind)
    where[np.abs(distance) <= _BORDER] = IGNORE


def _paint(rng: np.random.Generator, kind: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """What covers an object, lit from above left."""
    if kind == "golden":
        color = _color(_GOLDEN_HUE + rng.uniform(-0.02, 0.02), rng.uniform(0.75, 0.95), rng.uniform(0.8, 0.95))
    else:
        color = _color(_any_hue_but_gold(rng), rng.uniform(0.35, 0.95), rng.uniform(0.45, 0.95))
    light = (1 - 0.22 * (u + v) / np.float32(radius))[..., None]
    if kind != "striped":
        return color * light
    other = _color(_any_hue_but_gold(rng), rng.uniform(0.0, 0.6), 0.95 if color.mean() < 130 else 0.25)
    share = (_waves(rng, u, v, max(4.0, radius * rng.uniform(0.3, 0.5))) + 1)[..., None] / 2
    return (color + (other - color) * share) * light
