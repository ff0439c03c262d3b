"""What `prepare_data` does with one example: checks it, counts it, and keeps its files."""

import errno
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kerasseg.data.checking import check_example
from kerasseg.data.preparation.listing import Relative
from kerasseg.data.preparation.prepared import CONVERTED, ORIGINAL
from kerasseg.data.preparation.survey import Row, survey_example
from kerasseg.data.records import DataSet, FileDataSet
from kerasseg.data.table import DATA_SETS
from kerasseg.errors import KerassegError
from kerasseg.runs.files import atomic_link, atomic_path

# What links cannot be made for: another disk, a file system without them, too many of them.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES)


@dataclass(frozen=True)
class Unit:
    """An example to prepare, which may stand in several splits.

    Args:
        key: What it is made of, in text: its name and the files, relative to the folder.
        name: Name of the files that are kept of it.
        split: One that has it.
        index: Its place there.
    """

    key: str
    name: str
    split: str
    index: int


@dataclass
class Converter:
    """Prepares the examples of a data set, in this process or another.

    Args:
        folder: Where files are kept.
        data: Name of the data set.
        data_dir: Its folder.
        options: What else it takes.
        copy: Whether all files are kept in the folder, for it to be used alone; else those that can be read as they are stay.
        opened: Split → data set, as far as they are open.
    """

    folder: Path
    data: str
    data_dir: Any
    options: Mapping[str, Any]
    copy: bool
    opened: dict[str, DataSet] = field(default_factory=dict)

    def __post_init__(self):
        self.relative = Relative(self.folder)

    def __call__(self, unit: Unit) -> Row:
        """Prepares one.

        Args:
            unit: Which.
        Returns:
            A row of `survey_example`, with its `key`, `name`, `files` (part → path relative to the folder, size, CRC-32, SHA-256),
            `sources` (see `stamps`) and the `sha256` of its image; or, of one that cannot be used, `key`, `id` and the reason as
            `error`.
        """
        data = self.open(unit.split)
        try:
            # Before the work: what changes while it goes on is noticed the next time.
            seen = self.stamps(data, unit.index)
            sources = self._sources(data, unit.index)
            row = survey_example(data, check_example(data, unit.index))
            files = {role: self._keep(role, unit.name, source) for role, source in sources.items()}
        except KerassegError as error:
            return {"key": unit.key, "id": data.ids[unit.index], "error": " ".join(str(error).split())}
        return row | {"key": unit.key, "name": unit.name, "files": files, "sources": seen, "sha256": files["image"][3]}

    def open(self, split: str) -> DataSet:
        """Opens a split once."""
        if split not in self.opened:
            self.opened[split] = DATA_SETS[self.data](self.data_dir, split, **self.options)
        return self.opened[split]

    def stamps(self, data: DataSet, index: int) -> list[list]:
        """Tells by what a change of an example's files is noticed: of each the path from the folder, size and time of change."""
        if not isinstance(data, FileDataSet):
            return []
        return [self._stamp(path) for path in data.files(index)]

    def _stamp(self, path: Path) -> list:
        try:
            found = path.stat()
        except OSError:
            return [self.relative(path), None, None]
        return [self.relative(path), found.st_size, found.st_mtime_ns]

    def _sources(self, data: DataSet, index: int) -> Mapping[str, Path | np.ndarray]:
        try:
            return data.sources(index)
        except KerassegError:
            raise
        except Exception as error:
            # What is wrong, the check tells better.
            check_example(data, index)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise KerassegError(f"the files of example '{data.ids[index]}' cannot be read ({reason})") from error

    def _keep(self, role: str, name: str, source: Path | np.ndarray) -> list:
        """Keeps a file: its path relative to the folder, size, CRC-32 and SHA-256."""
        if isinstance(source, np.ndarray):
            path = self.folder / CONVERTED / role / f"{name}.png"
            _write_picture(path, source)
            content = path.read_bytes()
        else:
            path, content = source, _content(source)
            if self.copy:
                path = self.folder / ORIGINAL / role / f"{name}{source.suffix.lower()}"
                _link_or_copy(source, content, path)
        return [self.relative(path), len(content), f"{zlib.crc32(content):08x}", hashlib.sha256(content).hexdigest()]


def _write_picture(path: Path, values: np.ndarray) -> None:
    kind = np.uint16 if values.dtype == np.uint16 else np.uint8
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) > np.iinfo(kind).max:
        span = f"{values.dtype} from {values.min()} to {values.max()}"
        raise KerassegError(f"{path} cannot hold {span}: expected 0 to 255, or uint16")
    with atomic_path(path) as temporary:
        Image.fromarray(values.astype(kind)).save(temporary, format="PNG")


def _content(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise KerassegError(f"cannot read {source} ({error.strerror or error}): copy the file again") from error


def _link_or_copy(source: Path, content: bytes, path: Path) -> None:
    try:
        atomic_link(os.path.realpath(source), path)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
