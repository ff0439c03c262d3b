"""Scaling, cropping and mirroring at once, which touches only the pixels that the crop keeps."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kerasseg.data.transforms.resizing import Window, place_into, placed, resized_image, resized_label


class Piece(NamedTuple):
    """What of an image a crop shows, and where in the crop it lies; all else is padding."""

    image: np.ndarray
    label: np.ndarray
    left: int


@dataclass(frozen=True)
class ScaledCrop:
    """`RandomScale` or `Resize`, then `RandomCrop`, then `Flip`, with the same draws in the same order.

    Args:
        scale: A transform with `new_size`; `None` is none.
        crop: A `RandomCrop`.
        flip: A `Flip`; `None` is none.
    """

    scale: Any
    crop: Any
    flip: Any

    def _piece(self, image: np.ndarray, label: np.ndarray, rng) -> Piece:
        size = label.shape[:2] if self.scale is None else self.scale.new_size(label, rng)
        top, left = self.crop.corner(size, rng)
        mirrored = self.flip is not None and self.flip.draw(rng)
        height, width = self.crop.size
        window = Window(top, left, min(height, size[0] - top), min(width, size[1] - left))
        label = resized_label(label, size, window)
        return Piece(
            resized_image(image, size, window, mirrored),
            label[:, ::-1] if mirrored else label,
            width - window.width if mirrored else 0,
        )

    def __call__(self, image, label, rng):
        """Returns the pair at the size of the crop."""
        piece = self._piece(image, label, rng)
        size = tuple(self.crop.size)
        if piece.label.shape[:2] == size:
            return piece.image, piece.label
        return placed(piece.image, piece.label, size, 0, piece.left, self.crop.mean)

    def write(self, image, label, rng, canvas: np.ndarray, blank: np.ndarray) -> None:
        """Writes the pair where it is wanted, which spares a copy.

        Args:
            image: As the transforms take it.
            label: As the transforms take it.
            rng: Where all chance comes from.
            canvas: Shape `(height, width, C)`, float32; written to.
            blank: Shape `(height, width)` or `(height, width, heads)`, integer; written to.
        """
        piece = self._piece(image, label, rng)
        place_into(canvas, blank, piece.image, piece.label, 0, piece.left, self.crop.mean)
