"""Pictures of valid receptive fields: photograph and outline, and the influence of every pixel."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image

from kerasseg.evaluation.analysis.pictures import heat, picture_grid, picture_of
from kerasseg.evaluation.analysis.valid_fields import Influence, mean_influence, valid_field

_LINE, _MARK = (255, 230, 0), (255, 40, 40)
# What is left of the light outside the field, and how much of the heat is seen through the photograph.
_OUTSIDE, _HEAT = 0.4, 0.65
# Single pixels of a gradient are many times as large as all others.
_RED = 0.995
# Smaller photographs are enlarged; then come the lines, and the cross with its arms.
_SHORTER_SIDE, _ARM = 300, 7


def field_picture(
    images: Sequence, found: Sequence[Influence], titles: Sequence[str], path=None, *, threshold: float | None = None
) -> PIL.Image.Image:
    """Draws each photograph with its valid receptive field outlined and the rest darkened, and beside it each pixel's influence.

    Of several photographs the last row is the mean, their places in one point.

    Args:
        images: Shape `(H, W, 3)` each, RGB 0–255.
        found: The influence in each.
        titles: What to write over each photograph, and over the mean.
        path: Where to write the picture as PNG as well; `None`: nowhere.
        threshold: As in `valid_field`.
    Returns:
        The picture, RGB.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, Figure 3.
    """
    images, found = [np.asarray(image, np.float32) for image in images], list(found)
    if len(found) > 1:
        found.append(mean_influence(found))
        images.append(np.full((*found[-1].values.shape, 3), 255, np.float32))
    # One factor for all, so that sizes can be compared.
    factor = math.ceil(_SHORTER_SIDE / min(min(each.values.shape) for each in found))
    rows = [_row(*each, threshold, factor) for each in zip(images, found, titles, strict=True)]
    size = [max(picture.size[axis] for row in rows for _, picture in row) for axis in (0, 1)]
    return picture_grid([[(title, _on_white(picture, size)) for title, picture in row] for row in rows], path)


def _row(image, found: Influence, title: str, threshold: float | None, factor: int):
    image, values, region = (
        each.repeat(factor, 0).repeat(factor, 1) for each in (image, found.values, valid_field(found, threshold).region)
    )
    shown, red = np.where(region[..., np.newaxis], image, image * _OUTSIDE), float(np.quantile(values, _RED)) or values.max()
    shown[_edge(region)] = _LINE
    blended = (1 - _HEAT) * image.mean(-1, keepdims=True) + _HEAT * heat(values, 0.0, red)
    for each in (shown, blended):
        _cross(each, [place * factor + factor // 2 for place in found.at])
    return [(title, picture_of(shown)), (f"influence, 0 to {red:.3g} (at most {values.max():.3g})", picture_of(blended))]


def _edge(region: np.ndarray) -> np.ndarray:
    """Pixels of a region with a neighbour that is not of it; the image's own edge is none."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _cross(picture, at) -> None:
    row, column = at
    picture[max(0, row - _ARM) : row + _ARM + 1, column : column + 2] = _MARK
    picture[row : row + 2, max(0, column - _ARM) : column + _ARM + 1] = _MARK


def _on_white(picture: PIL.Image.Image, size) -> PIL.Image.Image:
    canvas = PIL.Image.new("RGB", tuple(size), (255, 255, 255))
    canvas.paste(picture, (0, 0))
    return canvas
