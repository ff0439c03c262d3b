"""What `tools/prepare_data.py` leaves: a checked data set, with lists, counts and a checksum of every file."""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.data.decode import decode_image, decode_label
from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.preparation.listing import Relative, keys_of, sum_of
from kerasseg.data.preparation.stored import default_options, plain_json, table_from_json
from kerasseg.data.records import DataSet, FileDataSet, Record, mask_roles
from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable
from kerasseg.tables import did_you_mean

FORMAT = 1
"""Of the folder; one of a later number is refused."""

HEADER, FILES, EXAMPLES = "prepared.json", "checksums.txt", "examples.jsonl"
CONVERTED, ORIGINAL = "converted", "original"
"""Where files lie in the folder that were made from others (masks with plain labels), and those that are as they were."""


class OtherOptions(KerassegError):
    """The folder was prepared with other options than it is asked for with."""


@dataclass(frozen=True)
class Row:
    """Where the files of an example lie.

    Args:
        id: Name of the example.
        files: The part that a file plays, such as `image` or `mask` → the file.
    """

    id: str
    files: Mapping[str, Path]


class Prepared:
    """A prepared folder.

    `prepared.json` says of which data set it is, with which options and label table, and counts its splits; `<split>.txt` has a
    line for each example, its name and its files, whose first line names their parts; `checksums.txt` has size, CRC-32 and
    SHA-256 of each file.

    Args:
        folder: The folder that holds `prepared.json`.
    Raises:
        KerassegError: If there is none, or it cannot be read.
    Example:
        >>> Prepared("data/camvid/kerasseg-camvid").rows("val")[0].id  # doctest: +SKIP
        '0016E5_07959'
    """

    def __init__(self, folder):
        self.folder = _without_dots(data_path(folder))
        self.header = self._read_header()
        self.data: str = self.header["data"]
        self.options: dict[str, Any] = self.header["options"]
        self.splits = tuple(self.header["splits"])
        self.mean = tuple(self.header["mean"])
        self.heads = self.header["heads"] and {name: table_from_json(table) for name, table in self.header["heads"].items()}
        self.labels = table_from_json(self.header["labels"])

    def _read_header(self) -> dict[str, Any]:
        path = self.folder / HEADER
        again = "prepare it again by tools/prepare_data.py"
        try:
            header = json.loads(path.read_text("utf-8"))
            number = header["format"]
        except FileNotFoundError:
            raise KerassegError(f"{self.folder} has no {HEADER}: expected a folder that tools/prepare_data.py has made") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KerassegError(f"{path} cannot be read ({type(error).__name__}: {error}): {again}") from error
        if number != FORMAT:
            raise KerassegError(f"{path} is of format {number}, expected {FORMAT}: {again}, or use the kerasseg that did it")
        lost = [name for name in ("data", "options", "splits", "mean", "heads", "inputs", "labels") if name not in header]
        if lost:
            raise KerassegError(f"{path} lacks {', '.join(lost)}: {again}")
        return header

    def rows(self, split: str) -> list[Row]:
        """Reads the list of a split.

        Args:
            split: Its name.
        Returns:
            The examples in their order.
        Raises:
            KerassegError: If there is no such split, or the list is damaged.
        """
        if split not in self.splits:
            raise KerassegError(f"{self.folder} was prepared without split '{split}': {did_you_mean(str(split), self.splits)}")
        path = self.folder / f"{split}.txt"
        (first, *roles), *lines = _table(path)
        count = self.header["splits"][split]["images"]
        if first != "id" or len(lines) != count or any(len(line) != len(roles) + 1 for line in lines):
            raise KerassegError(
                f"{path} is damaged ({len(lines)} lines, expected {count}): prepare it again by tools/prepare_data.py"
            )
        return [
            Row(name, {role: self.file(place) for role, place in zip(roles, places, strict=True) if place})
            for name, *places in lines
        ]

    def file(self, place: str) -> Path:
        """Gives a file by its path relative to the folder, without `..` in it."""
        if isinstance(self.folder, Path):
            return Path(os.path.normpath(self.folder / place))
        folder, parts = self.folder, place.split("/")
        while parts[0] == "..":
            folder, parts = folder.parent, parts[1:]
        return folder / "/".join(parts)

    @cached_property
    def sums(self) -> dict[str, tuple[int, int]]:
        """Path of a file → its size in bytes and its CRC-32."""
        _, *lines = _table(self.folder / FILES)
        return {str(self.file(place)): (int(size), int(crc, 16)) for place, size, crc, _ in lines}

    def check_options(self, data_set, options: Mapping[str, Any]) -> None:
        """Refuses options other than those of the preparation, but for its `places` and `choices`.

        Args:
            data_set: The class of the data set, whose signature has the options and their defaults.
            options: What it is opened with.
        Raises:
            KerassegError: If one differs.
        """
        for name, default in default_options(data_set).items():
            if name in (*data_set.places, *data_set.choices):
                continue
            made, asked = (plain_json(values.get(name, default)) for values in (self.options, options))
            if made != asked:
                raise OtherOptions(
                    f"{self.folder} was prepared with {name}={json.dumps(made)}, received {name}={json.dumps(asked)}: pass what "
                    "it was prepared with, or prepare it again with --data-arguments"
                )

    def check_file(self, path: Path) -> None:
        """Compares a file with the size and the CRC-32 that are kept of it. What lies in a cloud is taken as it is.

        Args:
            path: One of the files of `rows`.
        Raises:
            KerassegError: If it is missing or has changed.
        """
        if not isinstance(path, Path):
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KerassegError(f"cannot read {path} ({error.strerror}), which {self.folder / HEADER} refers to") from error
        size, crc = self.sums.get(str(path), (None, None))
        if len(content) != size or zlib.crc32(content) != crc:
            raise KerassegError(
                f"{path} is not the file that was prepared ({len(content)} bytes, expected {size}, or another CRC-32): copy it "
                "again, or prepare the data set again by tools/prepare_data.py if the change is meant"
            )

    def read_image(self, path: Path) -> np.ndarray:
        """Decodes a photograph as `decode_image` does, after `check_file`."""
        self.check_file(path)
        return decode_image(path)

    def read_label(self, path: Path, labels: LabelTable) -> np.ndarray:
        """Decodes a mask as `decode_label` does, after `check_file`; one that was converted holds plain labels."""
        self.check_file(path)
        converted = str(path).startswith(f"{self.file(CONVERTED)}/")
        return decode_label(path, _plain(labels) if converted else labels)


class PreparedFiles(FileDataSet):
    """A split of a prepared folder: images and masks, checked against their checksums when they are read.

    Args:
        prepared: The folder.
        split: One of its splits.
    Raises:
        KerassegError: If there is no such split.
    """

    def __init__(self, prepared: Prepared, split: str):
        self.prepared, self.rows = prepared, prepared.rows(split)
        self.heads, self.inputs = prepared.heads, prepared.header["inputs"]
        self.channels, self.photographs = prepared.header.get("channels", 3), prepared.header.get("photographs", True)
        records = (Record(row.id, row.files["image"], row.files.get("mask")) for row in self.rows)
        super().__init__(prepared.labels, records, prepared.mean)

    def read_image(self, index: int) -> np.ndarray:
        """Decodes the photograph of one example; see `FileDataSet`."""
        return self.prepared.read_image(self.rows[index].files["image"])

    def read_label(self, index: int) -> np.ndarray | None:
        """Decodes the label map of one example, or of several heads theirs; see `FileDataSet`."""
        files = self.rows[index].files
        if "mask" not in files:
            return None
        if self.heads is None:
            return self.prepared.read_label(files["mask"], self.labels)
        tables = zip(mask_roles(self.heads), self.heads.values(), strict=True)
        maps = [self.prepared.read_label(files[role], table) for role, table in tables]
        if len({label.shape for label in maps}) > 1:
            sizes = ", ".join(f"{label.shape[1]}×{label.shape[0]}" for label in maps)
            raise KerassegError(f"the label maps of example '{self.ids[index]}' ({files['mask']} …) are {sizes}: expected one size")
        return np.stack(maps, axis=-1)

    def files(self, index: int) -> tuple[Path, ...]:
        """Tells the files, those of all parts; see `FileDataSet`."""
        return tuple(self.rows[index].files.values())

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells the files; see `FileDataSet`."""
        return dict(self.rows[index].files)


def find_prepared(data_dir, name: str, family: str | None = None) -> Path | None:
    """Looks for a prepared folder.

    Args:
        data_dir: The prepared folder, the folder of the data set, or a list in it; `None` is none.
        name: Name of the data set.
        family: Name under which it is prepared, where that is another one.
    Returns:
        The folder that holds `prepared.json`; `None` if there is none.
    Raises:
        KerassegError: If `data_dir` is what was prepared of another data set.
    """
    if data_dir is None:
        return None
    family, folder = family or name, data_path(data_dir)
    inside = folder_inside(folder, family)
    if (inside / HEADER).is_file():
        return inside
    if not (folder / HEADER).is_file():
        return None
    there = Prepared(folder).data
    if there != family:
        raise KerassegError(f"{folder} is what was prepared of data set '{there}', received '{name}': pass --data {there}")
    return folder


def folder_inside(source, family: str):
    """Tells where a data set is prepared if nothing else is said: beside its files, and of a list of them by its name.

    Args:
        source: The folder of the data set, or the list.
        family: Name under which it is prepared.
    Returns:
        The folder; need not exist.
    """
    return source.parent / f"kerasseg-{family}-{source.stem}" if source.is_file() else source / f"kerasseg-{family}"


def open_prepared(name: str, data_set: type[DataSet], data_dir, split: str, options: Mapping[str, Any]) -> DataSet | None:
    """Opens the prepared form of a data set, where there is one.

    Args:
        name: Name of the data set.
        data_set: Its class.
        data_dir: As for `find_prepared`.
        split: Which part.
        options: What else it is opened with.
    Returns:
        The data set; `None` if its folder itself must be read: nothing was prepared in it, not this split, with other options, or
        before lists or classes were edited.
    Raises:
        KerassegError: If `data_dir` is a prepared folder without this split, or prepared with other options.
    """
    folder = find_prepared(data_dir, name, data_set.family)
    if folder is None:
        return None
    prepared = Prepared(folder)
    itself = folder == data_path(data_dir)
    if itself:
        return _opened(prepared, data_set, split, options)
    if split not in prepared.splits:
        return None
    try:
        data = _opened(prepared, data_set, split, options)
    except OtherOptions:
        return None
    quick = not data_set.slow_to_open and not is_remote(data_dir)
    return None if quick and _lists_others(prepared, folder, data_set, data_dir, split, options) else data


def _opened(prepared: Prepared, data_set, split: str, options) -> DataSet:
    data = data_set.from_prepared(prepared, split, **options)
    data.prepared = prepared
    return data


def _lists_others(prepared: Prepared, folder, data_set, data_dir, split: str, options) -> bool:
    """Whether the folder itself lists other examples now, or other classes."""
    try:
        plain = data_set(data_dir, split, **{name: value for name, value in options.items() if name not in data_set.choices})
    except KerassegError:
        # Not there today, which is what preparing is for.
        return False
    if (plain.labels, plain.heads) != (prepared.labels, prepared.heads):
        return True
    keys = keys_of(plain, split, Relative(os.path.abspath(folder)))
    return sum_of(keys) != prepared.header["splits"][split].get("listed")


def _without_dots(folder):
    """A folder on a disk from the root on and without `..`, as the paths of its files are made."""
    if not isinstance(folder, Path):
        return folder
    # Behind a link, `..` is not what stands before it.
    return Path(os.path.realpath(folder) if ".." in folder.parts else os.path.abspath(folder))


def _plain(table: LabelTable) -> LabelTable:
    return dataclasses.replace(table, file_to_label={})


def _table(path: Path) -> list[list[str]]:
    """The lines of a table, split at tabs."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KerassegError(f"cannot read {path} ({error}): prepare the data set again by tools/prepare_data.py") from error
    return [line.split("\t") for line in text.split("\n") if line]
