"""Boxes in images: proposals of where an object may be, from a file or made of the image.

A box is `(left, top, right, bottom)` in pixels; right and bottom lie one beyond the last column and row, so that its width is
right − left.
"""

import csv
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.tables import import_lazily

COLUMNS = ("image", "left", "top", "right", "bottom")
_EXAMPLE = '{"2007_000033": [[10, 20, 180, 240]]} or a CSV file that begins with `image,left,top,right,bottom`'
# Sides of the windows as shares of the image's. DeconvNet looks at the first 50 boxes whose sides have 112 pixels or more: of VOC's
# usual 375×500 these windows are 39, the smallest of 125×167.
_SCALES = (1.0, 2 / 3, 1 / 2, 1 / 3)
# Windows side by side overlap by half: whatever has up to half a window's sides lies in one of them whole.
_OVERLAP = 0.5


def read_boxes(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of boxes, which are left in their order.

    Args:
        path: `*.json`: `{"id": [[left, top, right, bottom], …], …}`; or `*.csv`: a header `image,left,top,right,bottom` and a line
            for each box. Numbers are whole.
    Returns:
        Image's id → its boxes, shape `(N, 4)`, int32.
    Raises:
        KerassegError: If the file is missing, empty or malformed, or a box is without area or begins outside the image.
    """
    path = Path(path)
    readers = {".json": _from_json, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise KerassegError(f"boxes '{path}': expected a .json or .csv file, e.g. {_EXAMPLE}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read as text"
        raise KerassegError(f"boxes '{path}': {reason}; expected {_EXAMPLE}") from None
    if not text.strip():
        raise KerassegError(f"boxes '{path}' is empty: expected {_EXAMPLE}")
    listed = readers[path.suffix.lower()](text, path)
    if not listed:
        raise KerassegError(f"boxes '{path}' names no image: expected {_EXAMPLE}")
    return {name: check_boxes(boxes, None, f" of image '{name}' in '{path}'") for name, boxes in listed.items()}


def _from_json(text: str, path: Path) -> dict[str, list]:
    try:
        listed = json.loads(text)
    # Also of a number of thousands of digits, or thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise KerassegError(f"boxes '{path}' is no JSON ({error}): expected {_EXAMPLE}") from None
    if not isinstance(listed, dict):
        raise KerassegError(f"boxes '{path}' holds a {type(listed).__name__}, expected a mapping, e.g. {_EXAMPLE}")
    return listed


def _from_csv(text: str, path: Path) -> dict[str, list]:
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    try:
        (_, head), *rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise KerassegError(f"boxes '{path}' is no CSV (line {reader.line_num}: {error}): expected {_EXAMPLE}") from None
    if tuple(name.strip() for name in head) != COLUMNS:
        raise KerassegError(f"boxes '{path}' has the columns {_shortened(','.join(head))}: expected {','.join(COLUMNS)}")
    listed = {}
    for number, row in rows:
        try:
            name, *sides = row
            left, top, right, bottom = map(int, sides)
        except ValueError:
            raise KerassegError(
                f"boxes '{path}', line {number} is {_shortened(','.join(row))}: expected an image and four whole numbers, e.g. "
                "2007_000033,10,20,180,240"
            ) from None
        listed.setdefault(name.strip(), []).append([left, top, right, bottom])
    return listed


def check_boxes(boxes, size: tuple[int, int] | None, where: str = "") -> np.ndarray:
    """Checks the boxes of one image.

    Args:
        boxes: N times `(left, top, right, bottom)`, whole numbers.
        size: Height and width of the image in pixels; `None`: only that a box does not begin outside of it is checked.
        where: Whose they are, for the message, e.g. `" of image 'a'"`.
    Returns:
        Shape `(N, 4)`, int32, N at least 1, in the same order.
    Raises:
        KerassegError: If there is none, they are no such numbers, or one is without area or not inside the image.
    """
    try:
        array = np.asarray(boxes)
    except ValueError:
        array = np.zeros((1, 0))
    if array.size == 0 and array.ndim <= 2 and len(array) == 0:
        raise KerassegError(f"no boxes{where}: expected one or more [left, top, right, bottom], e.g. [[10, 20, 180, 240]]")
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and np.isfinite(array).all() and (array % 1 == 0).all())
    largest = np.iinfo(np.int32).max
    if array.ndim != 2 or array.shape[1] != 4 or not whole or array.max() > largest or array.min() < -largest:
        raise KerassegError(
            f"boxes{where} are {_shortened(boxes)}: expected a list of [left, top, right, bottom] in whole pixels, e.g. "
            "[[10, 20, 180, 240]]"
        )
    array = array.astype(np.int32)
    left, top, right, bottom = array.T
    _refuse(array, (right <= left) | (bottom <= top), where, "has no area", "expected left < right and top < bottom")
    if size is None:
        _refuse(array, (left < 0) | (top < 0), where, "lies outside the image", "expected left and top of 0 or more")
    else:
        beyond = (left < 0) | (top < 0) | (right > size[1]) | (bottom > size[0])
        expected = f"expected 0 <= left < right <= {size[1]} and 0 <= top < bottom <= {size[0]}"
        _refuse(array, beyond, where, f"lies outside the image of {size[0]}x{size[1]} pixels (height x width)", expected)
    return array


def _refuse(boxes: np.ndarray, bad: np.ndarray, where: str, what: str, expected: str) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        raise KerassegError(f"box {first} {boxes[first].tolist()}{where} {what} ({int(bad.sum())} of {len(boxes)}): {expected}")


def _shortened(value) -> str:
    # Of a few levels and entries: the rest may be too deep or too long to be written at all.
    text = (f"'{value}'" if isinstance(value, str) else reprlib.repr(value)).replace("\n", " ")
    return text if len(text) <= 80 else text[:80] + "…"


def boxes_of(boxes: Mapping[str, np.ndarray], name: str, where: str = "the file of boxes") -> np.ndarray:
    """Looks up the boxes of one image.

    Args:
        boxes: From `read_boxes`.
        name: The image's id; where it is not listed, its file name without folder and suffix is tried, too.
        where: What the boxes were read from, for the message.
    Returns:
        Shape `(N, 4)`, int32.
    Raises:
        KerassegError: If the image is not listed.
    """
    return boxes[key_of(boxes, name, where)]


def key_of(boxes: Mapping[str, np.ndarray], name: str, where: str = "the file of boxes") -> str:
    """Finds the name under which the boxes of one image are listed; arguments and errors as `boxes_of`."""
    for key in (name, Path(name).name, Path(name).stem):
        if key in boxes:
            return key
    raise KerassegError(f"{where} has no boxes for image '{name}': it lists {len(boxes)} images, e.g. '{next(iter(boxes), '')}'")


def cut_box(array: np.ndarray, box, fill: int = 0) -> np.ndarray:
    """Cuts a box out of an image or a label map.

    Args:
        array: Shape `(H, W, …)`.
        box: `(left, top, right, bottom)`; it may leave the image.
        fill: What stands outside the image.
    Returns:
        Shape `(bottom - top, right - left, …)`.
    """
    left, top, right, bottom = box
    cut = np.full((bottom - top, right - left, *array.shape[2:]), fill, array.dtype)
    inside, within = inside_of(array.shape, box)
    cut[within] = array[inside]
    return cut


def inside_of(shape: Sequence[int], box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Finds the part of a box that is in an image.

    Args:
        shape: Of the image, height and width first.
        box: `(left, top, right, bottom)`.
    Returns:
        That part as slices of the image, and as slices of the box.
    """
    left, top, right, bottom = (int(edge) for edge in box)
    spans = [(max(0, top), max(0, min(shape[0], bottom))), (max(0, left), max(0, min(shape[1], right)))]
    inside = tuple(slice(*span) for span in spans)
    return inside, tuple(slice(begin - first, end - first) for (begin, end), first in zip(spans, (top, left), strict=True))


def by_size(boxes: np.ndarray) -> np.ndarray:
    """Sorts boxes from the largest area to the smallest; those of equal area stay in their order.

    Args:
        boxes: Shape `(N, 4)`.
    Returns:
        The same in another order.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, Figure 6: proposals are aggregated in decreasing order of their sizes.
    """
    boxes = np.asarray(boxes)
    width, height = (boxes[:, 2:].astype(np.int64) - boxes[:, :2]).T
    return boxes[np.argsort(-(width * height), kind="stable")]


def dense_windows(size: tuple[int, int], scales: Sequence[float] = _SCALES, overlap: float = _OVERLAP) -> np.ndarray:
    """Covers an image with windows of its own shape: the whole, then ever smaller ones, evenly spread, row by row.

    Where no proposals are at hand. The default of 1, 2/3, 1/2 and 1/3 of the sides, overlapping by half, gives 1, 4, 9 and 25
    windows.

    Args:
        size: Height and width of the image in pixels.
        scales: Sides of the windows as shares of the image's, above 0 to 1, from the largest on.
        overlap: Share of a window that the next one also shows, at least; 0 to less than 1.
    Returns:
        Shape `(N, 4)`, int32, coarse to fine, the same for every image of this size; no box twice. Every pixel lies in a window of
        every scale.
    Raises:
        KerassegError: If an argument is out of range.
    """
    if not scales or not all(0 < scale <= 1 for scale in scales) or not 0 <= overlap < 1 or min(size) < 1:
        raise KerassegError(
            f"dense_windows received size={size}, scales={tuple(scales)}, overlap={overlap}: expected pixels from 1, scales above "
            "0 to 1 and an overlap from 0 to less than 1, e.g. dense_windows((375, 500), (1.0, 0.5), 0.5)"
        )
    found = {}
    for scale in sorted(scales, reverse=True):
        sides = [max(1, round(side * scale)) for side in size]
        tops, lefts = (_starts(length, side, overlap) for length, side in zip(size, sides, strict=True))
        # Keys of a dictionary: in order, once each.
        found.update({(left, top, left + sides[1], top + sides[0]): None for top in tops for left in lefts})
    return np.array(list(found), np.int32)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """First pixels of the fewest windows that cover a length and overlap by as much as asked for."""
    # Rounding of the sides must not add a window.
    gaps = int(np.ceil(round((length - side) / (side * (1 - overlap)), 2)))
    return [round(index * (length - side) / max(gaps, 1)) for index in range(gaps + 1)]


def selective_search(image: np.ndarray, *, fast: bool = True) -> np.ndarray:
    """Proposes boxes by selective search, as opencv-contrib has it.

    Args:
        image: Shape `(H, W, 3)`, uint8 RGB.
        fast: OpenCV's fast setting, or else the one of higher recall, which takes several times as long.
    Returns:
        Shape `(N, 4)`, int32, in OpenCV's order, best first.
    Raises:
        KerassegError: If opencv-contrib is not installed, or it proposes nothing.
    Reference:
        Uijlings et al., "Selective Search for Object Recognition", IJCV 2013.
    """
    try:
        segmentation = import_lazily("cv2").ximgproc.segmentation
    except (ModuleNotFoundError, AttributeError):
        raise KerassegError(
            "selective search needs opencv-contrib: run `pip install opencv-contrib-python-headless`; or use dense windows or a "
            "file of boxes"
        ) from None
    search = segmentation.createSelectiveSearchSegmentation()
    # OpenCV's order of colours.
    search.setBaseImage(np.ascontiguousarray(np.asarray(image, np.uint8)[..., ::-1]))
    (search.switchToSelectiveSearchFast if fast else search.switchToSelectiveSearchQuality)()
    found = np.array(search.process(), np.int32).reshape(-1, 4)
    # Left, top, width, height.
    found[:, 2:] += found[:, :2]
    return check_boxes(found, np.shape(image)[:2], " of selective search")
