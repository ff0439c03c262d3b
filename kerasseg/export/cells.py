"""Where the cells of scores lie in the image that they are resized to."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import keras
import numpy as np

from kerasseg.backbones.grafting import repeat

# Positions are told apart to this fraction of a cell; float32 holds them better.
_STEP = 1 << 12


@dataclass(frozen=True)
class Cells:
    """The cells of scores before they are resized.

    Args:
        rows, columns: `(scale, shift)`: cell i has its centre at pixel scale · i + shift; `None` where there is one cell alone.
        nearest_rows, nearest_columns: Of every pixel along a side, the cell that is nearest, int32; of two that are equally near,
            the later. `None` of images of any size.
        whole: Whether the cells are pixels: nothing is enlarged.
    """

    rows: tuple[Fraction, Fraction] | None
    columns: tuple[Fraction, Fraction] | None
    nearest_rows: np.ndarray | None = None
    nearest_columns: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        """Whether a cell is as large as a pixel: scores that are only cropped."""
        return all(axis is not None and axis[0] == 1 for axis in (self.rows, self.columns))

    def to_json(self) -> dict:
        """Gives the places as JSON-ready values."""
        return {
            name: None if axis is None else {"scale": float(axis[0]), "shift": float(axis[1])}
            for name, axis in (("rows", self.rows), ("columns", self.columns))
        }


def find_cells_of_any_size(image, scores, tail: list, sizes: Sequence[tuple[int, int]]) -> Cells | None:
    """Finds where cells lie whatever the size of the image is.

    Args:
        image: See `find_cells`.
        scores: See there.
        tail: See there.
        sizes: To try, heights and widths.
    Returns:
        The places, without the cells of every pixel; `None` where they are not the same at all sizes, or not known at one.
    """
    found = [find_cells(image, scores, tail, size) for size in sizes]
    places = {axis for cells in found for axis in (cells.rows, cells.columns)}
    return None if len(places) > 1 or None in places else Cells(found[0].rows, found[0].columns)


def find_cells(image, scores, tail: list, size: tuple[int, int]) -> Cells:
    """Finds where cells lie.

    What brings the scores to the image is asked itself: of cells that hold their own number, it makes an image of the positions.
    So a network's own alignment is kept, whatever it is, also where it depends on the size.

    Args:
        image: The network's symbolic input.
        scores: Its symbolic scores before they are resized.
        tail: The tensors behind, see `kerasseg.backbones.grafting.split_tail`.
        size: Height and width of the images.
    Returns:
        The places.
    Reference:
        Shelhamer et al. 2017, §4.3, and Chen et al. 2017, arXiv:1706.05587, §4.1: the two alignments in use.
    """
    cells = keras.Input((None, None, 3))
    network = keras.Model([image, cells], [scores, repeat(cells, tail)])
    blank = np.zeros((1, *size, image.shape[-1]), np.float32)
    height, width = network.compute_output_shape([blank.shape, (1, None, None, 3)])[0][1:3]
    if height is None:
        height, width = keras.Model(image, scores)(blank, training=False).shape[1:3]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    numbered = np.stack([rows, columns, np.ones_like(rows)], -1)[np.newaxis].astype(np.float32)
    found = np.asarray(keras.Model([image, cells], network.outputs[1])([blank, numbered], training=False), np.float64)[0]
    # Where nothing but the border is near, weights sum to less than one; where nothing is, there is nothing.
    down, across = (found[..., axis].sum(1 - axis) / found[..., 2].sum(1 - axis) for axis in (0, 1))
    return Cells(_line(down), _line(across), _nearest(down, height), _nearest(across, width))


def _nearest(positions: np.ndarray, count: int) -> np.ndarray:
    steps = np.round(positions * _STEP).astype(np.int64)
    return np.clip((steps + _STEP // 2) // _STEP, 0, count - 1).astype(np.int32)


def _line(positions: np.ndarray) -> tuple[Fraction, Fraction] | None:
    """Scale and shift of cells whose positions at every pixel are given, constant beyond the first and the last."""
    inner = np.flatnonzero((positions > positions[0]) & (positions < positions[-1]))
    if len(inner) < 2 or positions[inner[-1]] == positions[inner[0]]:
        return None
    first, last = inner[0], inner[-1]
    scale = Fraction((last - first) / (positions[last] - positions[first])).limit_denominator(_STEP)
    return scale, Fraction(float(first - positions[first] * float(scale))).limit_denominator(_STEP)
