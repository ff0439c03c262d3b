"""Masks that someone drew: read in whatever coding they have, and written back in the same."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kerasseg.data.decode import any_size
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE
from kerasseg.runs import atomic_path

_INDICES = ("1", "L", "P", "I", "I;16")
_COLORS = ("RGB", "RGBA")
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
# More are no drawing: a photograph, or a drawing with soft edges.
_MOST = 256


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A drawn mask, and how its file codes it.

    Args:
        labels: Shape `(H, W)`, int32: −1 where it is unknown, else the number of the class in the order of `codes`.
        codes: Shape `(C,)` or `(C, 3)`: the value of each class in the file, an index or RGB.
        unknown: The value of unknown pixels, an index or RGB; `"transparent"` where none of that colour is; `None`: no pixel is
            unknown.
        file: The picture as it was.
    """

    labels: np.ndarray
    codes: np.ndarray
    unknown: int | tuple[int, int, int] | str | None
    file: Image.Image

    def write(self, labels, path) -> None:
        """Writes a mask in the same coding, as a PNG that appears whole or not at all. What was unknown becomes opaque.

        Args:
            labels: Shape `(H, W)`, numbers of classes.
            path: The file.
        """
        values = self.codes[np.asarray(labels)]
        if self.file.mode in _COLORS:
            picture = Image.fromarray(values.astype(np.uint8))
            if self.file.mode == "RGBA":
                alpha = np.where(self.labels < 0, 255, np.asarray(self.file.getchannel("A")))
                picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        elif self.file.mode == "1":
            picture = Image.fromarray(values.astype(bool))
        else:
            # PIL writes both of the wide modes as 16 bits.
            picture = Image.fromarray(values.astype(np.uint8 if self.file.mode in ("L", "P") else np.uint16))
            if self.file.mode == "P":
                picture.putpalette(self.file.getpalette())
        if "transparency" in self.file.info and picture.mode != "RGBA":
            picture.info["transparency"] = self.file.info["transparency"]
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")


def read_annotation(path, unknown="auto") -> Annotation:
    """Reads a drawn mask: an index file (grey, palette) or one of colours. What the classes are called does not matter.

    Args:
        path: A lossless file.
        unknown: Which pixels can be anything: an index, or RGB; `"none"`; or `"auto"`: those of index 255, if there are any in an
            index file; else those that are black in a file of colours or with a palette, as pydensecrf's example has it. But for
            `"none"`, pixels of a file of colours that are wholly transparent are so too, whatever colour lies below.
    Raises:
        KerassegError: If the file cannot be read, is not lossless, holds no class or more than 256, or `unknown` does not fit it.
    """
    picture = _open(Path(path))
    if picture.mode not in (*_INDICES, *_COLORS):
        raise KerassegError(f"mask {path} has mode {picture.mode}: expected indices (grey or palette) or colours, saved as PNG")
    values = np.asarray(picture)
    transparent = (values[..., 3] == 0) & (unknown != "none") if picture.mode == "RGBA" else np.zeros(values.shape[:2], bool)
    values = values[..., :3].astype(np.int64) if picture.mode in _COLORS else values.astype(np.int64)
    unknown = _unknown(unknown, picture, values, path)
    is_unknown = transparent if unknown is None else transparent | _equal(values, unknown)
    if unknown is not None and not (is_unknown & ~transparent).any():
        unknown = "transparent"
    codes, found = np.unique(values[~is_unknown], axis=0, return_inverse=True)
    if not 1 <= len(codes) <= _MOST:
        what = "nothing but unknown pixels" if not len(codes) else f"{len(codes)} values"
        raise KerassegError(f"mask {path} holds {what}: expected 1 to {_MOST} classes, drawn without soft edges and saved as PNG")
    labels = np.full(is_unknown.shape, -1, np.int32)
    labels[~is_unknown] = found.ravel()
    return Annotation(labels, codes, unknown if is_unknown.any() else None, picture)


def _open(path: Path) -> Image.Image:
    try:
        with any_size(), Image.open(path) as file:
            file.load()
            kind, picture = file.format, ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise KerassegError(f"no such mask: {path}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise KerassegError(f"cannot decode mask {path} ({' '.join(str(error).split())}): expected a whole PNG") from error
    if kind not in _LOSSLESS:
        raise KerassegError(f"mask {path} is a {kind} file, which does not keep values exactly: save it as PNG")
    return picture


def _equal(values: np.ndarray, value) -> np.ndarray:
    """Which pixels have a value, an index or RGB."""
    return (values == np.asarray(value)).reshape(*values.shape[:2], -1).all(-1)


def _unknown(received, picture: Image.Image, values: np.ndarray, path):
    """The value of unknown pixels in the file's own coding; `None`: there are none."""
    in_colors = picture.mode in _COLORS
    if received == "none":
        return None
    if received == "auto":
        if in_colors:
            return (0, 0, 0)
        if picture.mode != "1" and (values == IGNORE).any():
            return IGNORE
        return _index_of((0, 0, 0), picture) if picture.mode == "P" else None
    if isinstance(received, tuple):
        index = received if in_colors else _index_of(received, picture) if picture.mode == "P" else None
        if index is None or not _equal(values, index).any():
            raise KerassegError(
                f"unknown colour {received}: mask {path} has no such colour; expected one that occurs, an index or none"
            )
        return index
    if in_colors:
        raise KerassegError(f"unknown index {received}: mask {path} is one of colours; expected a colour, such as 0,0,0, or none")
    if not (values == received).any():
        raise KerassegError(f"unknown index {received}: mask {path} has no such index; expected one that occurs, auto or none")
    return received


def _index_of(color: tuple[int, int, int], picture: Image.Image) -> int | None:
    """The index of a colour in the palette: of several the first that occurs."""
    palette = np.array(picture.getpalette("RGB")).reshape(-1, 3)
    used = [index for _, index in picture.getcolors()]
    return next((index for index in sorted(used) if index < len(palette) and tuple(palette[index]) == color), None)
