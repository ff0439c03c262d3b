"""Finds damaged examples before anything is trained on them: stricter than reading, which takes whatever can be decoded.

What a decoder cannot know stays unseen: two in three flipped bits inside the picture data of a JPEG give another valid picture. A
prepared folder (`kerasseg.data.preparation.prepared`) keeps a checksum of every file, by which any later change is noticed.
"""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from kerasseg.data.decode import decode_label
from kerasseg.data.layouts.folder import IMAGE_SUFFIXES
from kerasseg.data.preparation.survey import Row, survey_example
from kerasseg.data.records import DataSet, Example, FileDataSet, source_of
from kerasseg.data.views.subset import Subset
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_AGAIN = "copy the file again, or leave it out by --skip-broken"
# Some cameras leave a few bytes after the last block; every decoder passes over them.
_HARMLESS = re.compile(r"\b[1-8] extraneous bytes before marker 0xd9")
_THREADS = 8


@dataclass(frozen=True)
class Broken:
    """An example that cannot be used.

    Args:
        index: Its place in the data set.
        id: Its name.
        path: Its image; `None` if it has no file.
        reason: Which file, and what is wrong with it, in one line.
    """

    index: int
    id: str
    path: str | None
    reason: str


def check_example(data: DataSet, index: int) -> Example:
    """Checks one example: its files as strictly as their formats allow, then what was decoded of them.

    Args:
        data: The data set.
        index: 0 to `len(data)` − 1.
    Returns:
        The example.
    Raises:
        KerassegError: If a file is missing, cannot be read, is damaged or of a wrong kind; names the file and the reason.
    """
    files = files_of(data, index)
    try:
        for path in files:
            check_file(path)
        example = data[index]
        _check_image(data, example)
        if example.label is not None:
            _check_label(data, example)
        if files:
            _check_photograph(data, files, example)
        origin, place = source_of(data, index)
        origin.check(place, example)
        return example
    except KerassegError:
        raise
    except Exception as error:
        # A damaged .mat or HDF5 file makes its reader raise anything.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        where = " and ".join(map(str, files)) or f"data set '{data.labels.name}'"
        raise KerassegError(f"cannot read example '{data.ids[index]}' of {where} ({reason}): {_AGAIN}") from error


def files_of(data: DataSet, index: int) -> tuple:
    """Tells which files an example is read from, through unions and subsets.

    Args:
        data: The data set.
        index: 0 to `len(data)` − 1.
    Returns:
        The files, the image first; none where there are none, or those of a prepared folder, which are compared with their
        checksums when they are read.
    """
    data, index = source_of(data, index)
    return data.files(index) if isinstance(data, FileDataSet) and data.prepared is None else ()


def check_file(path) -> None:
    """Checks a picture file against its own checksums and by a decoder that does not mend.

    Of PNG the CRC of every chunk is compared; of JPEG whatever libjpeg warns of is an error, but a few bytes after the last block.
    Any other file only needs to be there.

    Args:
        path: The file.
    Raises:
        KerassegError: If it is missing, unreadable or damaged.
    """
    try:
        with path.open("rb") as file:
            content = file.read(len(_PNG))
            # A .mat may hold a whole data set.
            if content.startswith((_JPEG, _PNG)):
                content += file.read()
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; check the data folder and the list that names it") from None
    except OSError as error:
        raise KerassegError(f"cannot read {path} ({error.strerror or error}): {_AGAIN}") from error
    if not content:
        raise KerassegError(f"{path} is empty: {_AGAIN}")
    reason = None
    if content.startswith(_JPEG):
        reason = _wrong_in_jpeg(content)
    elif content.startswith(_PNG):
        reason = _wrong_in_png(content)
    if reason:
        raise KerassegError(f"{path} is damaged ({' '.join(reason.split())}): {_AGAIN}")


def _wrong_in_jpeg(content: bytes) -> str | None:
    try:
        import simplejpeg
    except ModuleNotFoundError:
        # Pillow, which decodes the file later, sees at least that it ends too early.
        return None
    try:
        # Every code is read, whatever the size of the picture that is made of them.
        simplejpeg.decode_jpeg(content, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        return None if _HARMLESS.search(str(error)) else str(error)
    return None


def _wrong_in_png(content: bytes) -> str | None:
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        if place + 12 > len(content):
            return "it ends within a chunk, or before the last one"
        (length,), kind = struct.unpack_from(">I", content, place), content[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(content):
            return f"its chunk {kind.decode('latin-1')} at byte {place} is longer than the file"
        if zlib.crc32(content[place + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
            return f"the CRC of its chunk {kind.decode('latin-1')} at byte {place} is wrong"
        place = end + 4
    return None


def _check_image(data: DataSet, example: Example) -> None:
    image = example.image
    if image.ndim != 3 or image.shape[2] != data.channels or 0 in image.shape:
        raise KerassegError(f"{example.path} has shape {image.shape}: expected (height, width, {data.channels})")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise KerassegError(f"{example.path} holds {int((~np.isfinite(image)).sum())} values that are no number: {_AGAIN}")


def _check_label(data: DataSet, example: Example) -> None:
    tables = tuple(data.heads.values()) if data.heads else (data.labels,)
    label = example.label if data.heads else example.label[..., None]
    if label.shape != (*example.image.shape[:2], len(tables)):
        raise KerassegError(
            f"the label of example '{example.id}' has shape {example.label.shape}, its image {example.path} "
            f"{example.image.shape}: expected one height and width"
        )
    for place, table in enumerate(tables):
        one = label[..., place]
        bad = ((one < 0) | (one >= table.num_classes)) & (one != IGNORE)
        if bad.any():
            raise KerassegError(
                f"the label of example '{example.id}' ({example.path}) holds {one[bad][0]} ({int(bad.sum())} pixels): "
                f"'{table.name}' has {table.num_classes} classes, expected 0 to {table.num_classes - 1} or {IGNORE}"
            )


def _check_photograph(data: DataSet, files: Sequence, example: Example) -> None:
    """Refuses what decodes as a picture but is none: numbers without a white, and the mask in the image's place."""
    path, *others = files
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return
    with path.open("rb") as file, Image.open(file) as image:
        mode = image.mode
    if mode == "F":
        raise KerassegError(f"image {path} holds floating-point numbers, of which nobody knows which is white: save it with 8 bits")
    indices = mode in ("1", "L", "P") and example.label is not None and not data.heads
    if not any(_is_same(path, other) for other in others) and not (indices and _is_mask(path, data, example)):
        return
    raise KerassegError(f"image {path} is the mask of the same example: expected the photograph; copy the file again")


def _is_same(path, other) -> bool:
    """Whether two files have the same content, such as a mask in colours that was copied in the place of the image."""
    return path.stat().st_size == other.stat().st_size and path.read_bytes() == other.read_bytes()


def _is_mask(path, data: DataSet, example: Example) -> bool:
    try:
        # One without labels says nothing.
        return bool((example.label != IGNORE).any()) and np.array_equal(decode_label(path, data.labels), example.label)
    except KerassegError:
        return False


def find_broken(data: DataSet, report: Callable[[int, int], None] | None = None) -> list[Broken]:
    """Checks every example.

    Args:
        data: The data set.
        report: Called with the number of examples checked and of all of them, after each.
    Returns:
        Those that cannot be used, in their order.
    """
    return [found for found in _each(data, _checked, report) if found is not None]


def examine(data: DataSet, report: Callable[[int, int], None] | None = None) -> tuple[list[Row], list[Broken]]:
    """Checks and counts every example.

    Args:
        data: The data set.
        report: As for `find_broken`.
    Returns:
        Rows of `survey_example`, with the `sha256` of the image where it is a file, of those that can be used; and the others.
    """
    rows, broken = [], []
    for found in _each(data, _surveyed, report):
        (broken if isinstance(found, Broken) else rows).append(found)
    return rows, broken


def _each(data: DataSet, work: Callable[[DataSet, int], Any], report) -> Iterator:
    """What there is to say of each example; of one that cannot be used it is `Broken`."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for index, found in enumerate(threads.map(partial(_attempt, data, work), range(len(data)))):
            if report is not None:
                report(index + 1, len(data))
            yield found


def _attempt(data: DataSet, work: Callable[[DataSet, int], Any], index: int):
    try:
        return work(data, index)
    except KerassegError as error:
        files = files_of(data, index)
        return Broken(index, data.ids[index], str(files[0]) if files else None, " ".join(str(error).split()))


def _checked(data: DataSet, index: int) -> None:
    check_example(data, index)


def _surveyed(data: DataSet, index: int) -> Row:
    row, files = survey_example(data, check_example(data, index)), files_of(data, index)
    if files and files[0].suffix.lower() in IMAGE_SUFFIXES:
        row["sha256"] = hashlib.sha256(files[0].read_bytes()).hexdigest()
    return row


def without_broken(data: DataSet, report: Callable[[int, int], None] | None = None) -> tuple[DataSet, list[Broken]]:
    """Leaves out what cannot be used.

    Args:
        data: The data set.
        report: As for `find_broken`.
    Returns:
        The data set itself if all of it is whole, else a `Subset`; and what was left out.
    Raises:
        KerassegError: If nothing is left.
    Example:
        >>> data, broken = without_broken(open_data("voc", "VOCdevkit", "train"))  # doctest: +SKIP
        >>> len(data), [one.id for one in broken]  # doctest: +SKIP
        (1463, ['2007_000032'])
    """
    broken = find_broken(data, report)
    if not broken:
        return data, []
    lost = {one.index for one in broken}
    if len(lost) == len(data):
        raise KerassegError(f"all {len(data)} examples of data set '{data.labels.name}' are broken; the first: {broken[0].reason}")
    return Subset(data, [index for index in range(len(data)) if index not in lost]), broken
