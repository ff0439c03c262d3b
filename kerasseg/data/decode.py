"""Files → arrays: uint8 RGB images and int32 label maps."""

import io
import threading
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

from kerasseg.data.paths import data_path, is_remote
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LabelTable

# Index files hold 8 or 16 bits; Cityscapes' -1 is the only value below.
_FIRST_VALUE, _LAST_VALUE = -1, 65535
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
# Pillow's limit is one for all threads. What it was is first here; of the others that decode at the same time there are Nones.
_LIMITS, _LOCK = [], threading.Lock()


@contextmanager
def any_size():
    """Lifts Pillow's limit to the pixels of a file, against bombs of strangers: these are the user's own."""
    with _LOCK:
        _LIMITS.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _LOCK:
            Image.MAX_IMAGE_PIXELS = _LIMITS.pop()


def _opened(path) -> Image.Image:
    # A remote path opens itself; by its name Pillow sees that a file is not there before it looks into it.
    return Image.open(io.BytesIO(data_path(path).read_bytes()) if is_remote(path) else path)


def _open(path) -> Image.Image:
    """Decodes a file as a whole and turns it upright."""
    try:
        with any_size(), _opened(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
            return upright
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; check the data folder and the list that names it") from None
    except (OSError, SyntaxError, ValueError) as error:
        # PIL reports broken chunks as SyntaxError and some broken headers as ValueError.
        reason = " ".join(str(error).split())
        raise KerassegError(f"cannot decode {path} ({reason}): expected a whole JPEG or PNG; copy the file again") from error


def decode_image(path) -> np.ndarray:
    """Reads a photograph.

    The orientation in its EXIF data is applied. Grey becomes three equal channels, CMYK is converted, an alpha channel is
    dropped, 16 bits are scaled to 8.

    Args:
        path: A JPEG or PNG file.
    Returns:
        Shape `(H, W, 3)`, uint8 RGB.
    Raises:
        KerassegError: If the file is missing, truncated or no image.
    """
    image = _open(path)
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "P":
        # Straight to RGB, PIL would warn of palettes with transparency.
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_label(path, labels: LabelTable) -> np.ndarray:
    """Reads a mask, whichever of the usual ways it was written in.

    Grey (8 or 16 bits), 1-bit and palette files hold indices, which go through `labels.file_to_label`; the colours of a palette
    are not looked at, unless all of them are classes and contradict the indices. RGB and RGBA files hold the colours of
    `labels.palette`; alpha is not looked at.

    Args:
        path: A lossless file, usually PNG.
        labels: The table to read by.
    Returns:
        Shape `(H, W)`, int32, 0 to classes − 1, 255 = ignore.
    Raises:
        KerassegError: If the file cannot be decoded, is a JPEG, holds a colour or value that is no class, or contradicts itself.
    """
    mask = _open(path)
    if mask.format not in _LOSSLESS:
        raise KerassegError(f"mask {path} is a {mask.format} file, which does not keep labels exactly: save masks as PNG")
    if mask.mode in ("RGB", "RGBA"):
        return _from_colors(np.asarray(mask)[..., :3], path, labels)
    if mask.mode == "LA":
        mask = mask.getchannel("L")
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise KerassegError(
            f"mask {path} has mode {mask.mode}: expected indices (grey or palette) or colours (RGB); save it as an 8-bit PNG"
        )
    label = _from_indices(np.asarray(mask), path, labels)
    if mask.mode == "P" and not labels.file_to_label:
        _check_palette(mask, path, labels)
    return label


def _check_palette(mask: Image.Image, path, labels: LabelTable) -> None:
    """Refuses a palette file whose colours are all classes, but other ones than its indices say (an editor sorts palettes)."""
    other, unknown = _palette_meaning(mask.palette.tobytes(), mask.palette.mode, labels)
    # Of most files no index can mean another class: which ones they hold need not be counted.
    if not (other & ~unknown).any():
        return
    held = np.array(mask.histogram())
    count = int(held[other].sum())
    if count and not unknown[held > 0].any():
        raise KerassegError(
            f"mask {path} is a palette file whose colours and indices name different classes of '{labels.name}' ({count} pixels): "
            "save it as RGB if the colours are right, as grey if the indices are"
        )


@lru_cache(maxsize=64)
def _palette_meaning(palette: bytes, mode: str, labels: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """For each index whether its colour means another class, and whether it means none. The files of a data set share a palette."""
    ramp = Image.frombytes("P", (256, 1), bytes(range(256)))
    ramp.putpalette(palette, mode)
    meaning, unknown = (part[0] for part in _meanings(_pack(np.asarray(ramp.convert("RGB"))), labels))
    return meaning != _index_lookup(labels)[np.arange(256) - _FIRST_VALUE], unknown


@lru_cache(maxsize=16)
def _index_lookup(labels: LabelTable) -> np.ndarray:
    """Value in a file − `_FIRST_VALUE` → label, −1 where there is none."""
    lookup = np.full(_LAST_VALUE - _FIRST_VALUE + 1, -1, np.int32)
    lookup[-_FIRST_VALUE : labels.num_classes - _FIRST_VALUE] = np.arange(labels.num_classes)
    lookup[IGNORE - _FIRST_VALUE] = IGNORE
    for value, label in labels.file_to_label.items():
        lookup[value - _FIRST_VALUE] = label
    return lookup


def _from_indices(values: np.ndarray, path, labels: LabelTable) -> np.ndarray:
    lookup = _index_lookup(labels)
    if values.dtype in (np.uint8, bool):
        label = lookup[-_FIRST_VALUE : 256 - _FIRST_VALUE].take(values)
    else:
        values = values.astype(np.int64)
        inside = (values >= _FIRST_VALUE) & (values <= _LAST_VALUE)
        label = np.where(inside, lookup[np.where(inside, values, 0) - _FIRST_VALUE], np.int32(-1))
    if label.min(initial=0) < 0:
        row, column = np.argwhere(label < 0)[0]
        value = values[row, column]
        raise KerassegError(
            f"mask {path} holds the value {value} ({int((values == value).sum())} pixels, first at row {row}, column {column}): "
            f"'{labels.name}' has {labels.num_classes} classes, expected {_expected_values(labels)}; correct the mask or "
            "complete the list of classes"
        )
    return label


def _expected_values(labels: LabelTable) -> str:
    # A file numbering of its own is contiguous in every table: its ends say it.
    first, last = (0, labels.num_classes - 1)
    if labels.file_to_label:
        first, last = min(0, *labels.file_to_label), max(last, *labels.file_to_label)
    return f"{first} to {last} or {IGNORE} = ignore"


@lru_cache(maxsize=16)
def _color_lookup(labels: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """Colours as sorted 24-bit numbers, and the label of each."""
    colors = np.array([*labels.palette, *labels.ignore_colors], np.int32)
    numbers = _pack(colors)
    meanings = np.array([*range(labels.num_classes), *[IGNORE] * len(labels.ignore_colors)], np.int32)
    order = np.argsort(numbers)
    return numbers[order], meanings[order]


def _pack(colors: np.ndarray) -> np.ndarray:
    colors = colors.astype(np.int32)
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def _meanings(packed: np.ndarray, labels: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """The label of each colour, and where a colour is none of the table's, so that its label means nothing."""
    numbers, meanings = _color_lookup(labels)
    position = np.minimum(np.searchsorted(numbers, packed), len(numbers) - 1)
    return meanings[position], numbers[position] != packed


def _from_colors(colors: np.ndarray, path, labels: LabelTable) -> np.ndarray:
    packed = _pack(colors)
    label, bad = _meanings(packed, labels)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        color = tuple(int(channel) for channel in colors[row, column])
        count = int((packed == packed[row, column]).sum())
        raise KerassegError(
            f"mask {path} holds the colour {color} ({count} pixels, first at row {row}, column {column}): no class of "
            f"'{labels.name}' has it; give the colours of the classes in its label table (classes.txt: `name r g b`) or save "
            "the mask as an index PNG"
        )
    return label
