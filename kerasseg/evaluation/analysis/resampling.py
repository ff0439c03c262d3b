"""Matrices that shrink and enlarge one axis of a map, by the ways in which programs do it.

They are sparse: a dense product of so little takes longer, and where the machine is busy its threads wait for each other.
"""

from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

DOWN = ("nearest", "box", "sampled", "triangle", "cubic")
"""Values of cells: the pixel nearest to the centre; the average over the cell; linear interpolation between the two pixels at its
centre; averages that triangles or cubic kernels, wider by the factor, weigh (antialiased bilinear, bicubic; as PIL and MATLAB)."""

UP = ("nearest", "linear", "cubic")
"""Values of pixels from those of cells; beyond the outermost centres the outermost cells go on."""

GRIDS = (
    "blocks",
    "blocks, rounded",
    "blocks, whole",
    "centred",
    "edges",
    "edges, whole",
    "stretched",
    "stretched, rounded",
    "stretched, whole",
    "corners",
    "top left",
    "first",
)
"""Where n/f cells of f pixels lie along n pixels, rounded up unless they are `rounded` or `whole`, which is rounded down: `blocks`
from the first pixel on; `centred` in the image; `edges`, one more, with their centres on the edges of the blocks, as a convolution
padded by f has them; `stretched` to fill the image; `corners` with the centres of the outermost on the outermost pixels; `top left`
with their centres on every f-th pixel, from the first on; `first` likewise, but placed as blocks afterwards, as `x[::f].repeat(f)`
does."""

BORDERS = ("zero", "renormalized", "mirrored", "background")
"""What kernels see beyond the image: pixels of no class; no pixels, so that weights sum to one; its mirror image; or background."""

# Axes of photographs repeat themselves; of 500 pixels a matrix is some 10 kB.
_CACHED = 2048
# A narrow kernel may lie outside the image altogether: such a cell has nothing of any class.
_LEAST = 1e-6


@lru_cache(maxsize=_CACHED)
def down_matrix(size: int, factor: int, kind: str, grid: str, border: str) -> csr_array:
    """Makes the matrix that shrinks an axis.

    Args:
        size: Pixels along the axis, 1 or more.
        factor: Pixels per cell, 1 or more.
        kind: One of `DOWN`.
        grid: One of `GRIDS`.
        border: One of `BORDERS`; `background` leaves out what is beyond, as `zero` does, for the caller to add.
    Returns:
        Shape `(cells, size)`, float32, sparse; rows sum to 1, with `zero` and `background` to what of a kernel is in the image.
    """
    centres, _, spacing = _cells(size, factor, grid)
    if kind == "nearest":
        pixels = np.clip(np.floor(centres + 0.5).astype(int), 0, size - 1)
        return csr_array(np.eye(size, dtype=np.float32)[pixels])
    if kind == "sampled":
        # A program that reads pixels stays inside the image.
        centres = np.clip(centres, 0, size - 1)
    reach = int(np.ceil(2 * spacing)) + factor
    pixels = np.arange(-reach, size + reach)
    weights = _KERNELS[kind](pixels - centres[:, np.newaxis], spacing)
    weights /= weights.sum(1, keepdims=True)
    if border == "mirrored":
        pixels = pixels % (2 * size)
        return _gathered(weights, np.minimum(pixels, 2 * size - 1 - pixels), size)
    weights = weights[:, reach : reach + size]
    if border == "renormalized":
        weights = weights / np.maximum(weights.sum(1, keepdims=True), _LEAST)
    return csr_array(weights.astype(np.float32))


@lru_cache(maxsize=_CACHED)
def up_matrix(size: int, factor: int, kind: str, grid: str) -> csr_array:
    """Makes the matrix that enlarges an axis.

    Args:
        size: Pixels along the axis, 1 or more.
        factor: Pixels per cell, 1 or more.
        kind: One of `UP`.
        grid: One of `GRIDS`.
    Returns:
        Shape `(size, cells)`, float32, sparse; rows sum to 1.
    """
    _, centres, spacing = _cells(size, factor, grid)
    count = len(centres)
    place = (np.arange(size) - centres[0]) / spacing
    if kind == "nearest":
        return csr_array(np.eye(count, dtype=np.float32)[np.clip(np.floor(place + 0.5).astype(int), 0, count - 1)])
    if kind == "linear":
        place = np.clip(place, 0, count - 1)
    cells = np.arange(-3, count + 3)
    weights = _KERNELS["sampled" if kind == "linear" else "cubic"](cells - place[:, np.newaxis], 1.0)
    return _gathered(weights / weights.sum(1, keepdims=True), np.clip(cells, 0, count - 1), count)


def _cells(size: int, factor: int, grid: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Where the centres of cells are taken from and put to, in pixels from the centre of the first, and how far apart they are."""
    kind, _, rounding = grid.partition(", ")
    count = {"": -(-size // factor), "rounded": (2 * size + factor) // (2 * factor), "whole": size // factor}[rounding]
    index = np.arange(max(count, 1), dtype=np.float64)
    blocks = (index + 0.5) * factor - 0.5
    if kind == "stretched":
        spacing = size / len(index)
        return *[(index + 0.5) * spacing - 0.5] * 2, spacing
    if kind == "corners" and len(index) > 1:
        spacing = (size - 1) / (len(index) - 1)
        return *[index * spacing] * 2, spacing
    if kind in ("centred", "corners"):
        return *[(size - 1) / 2 + (index - (len(index) - 1) / 2) * factor] * 2, factor
    if kind == "edges":
        return *[np.arange(len(index) + 1.0) * factor - 0.5] * 2, factor
    if kind in ("top left", "first"):
        return index * factor, index * factor if kind == "top left" else blocks, factor
    return blocks, blocks, factor


def _box(distance: np.ndarray, width: float) -> np.ndarray:
    """How much of each pixel is in a cell."""
    return np.clip(np.minimum(distance + 0.5, width / 2) - np.maximum(distance - 0.5, -width / 2), 0, None)


def _cubic(distance: np.ndarray, width: float) -> np.ndarray:
    """Keys 1981, a = −½."""
    x = np.abs(distance / width)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


_KERNELS = {
    "box": _box,
    "sampled": lambda distance, width: np.maximum(0, 1 - np.abs(distance)),
    "triangle": lambda distance, width: np.maximum(0, 1 - np.abs(distance) / width),
    "cubic": _cubic,
}


def _gathered(weights: np.ndarray, places: np.ndarray, count: int) -> csr_array:
    """Adds up the columns that stand for the same place."""
    rows, columns = np.nonzero(weights)
    # What has the same row and column is added up.
    return csr_array((weights[rows, columns].astype(np.float32), (rows, places[columns])), shape=(len(weights), count))
