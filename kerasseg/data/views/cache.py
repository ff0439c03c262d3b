"""Decoded examples, kept in memory or in a folder."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.records import DataSet, Example
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE
from kerasseg.runs.files import atomic_path

MEMORY = "memory"

# Examples that are read to tell how large all will be, and the part of the free memory that they may fill.
_SAMPLE, _SHARE = 16, 0.8
_GIGABYTE = 2**30


class Cached(Derived):
    """A data set that decodes each example once: the same examples, sooner.

    Kept are the images as they are, uint8 as a rule, and the labels in a byte a pixel. In memory 10,000 images of VOC take 7 GB;
    making the data set reads a few examples, and refuses at once what will not fit. In a folder they take as much of the disk,
    and stay for the next run: several processes may use one at once, and an example is read anew when a file that it was read
    from has another size or time of change.

    Args:
        data: What is read.
        where: `"memory"`, or a folder on a disk, which is made where it is missing.
    Raises:
        KerassegError: If memory will not do, or the folder cannot be written.
    Example:
        >>> from kerasseg.data import open_data
        >>> len(Cached(open_data("shapes", length=8), "memory"))
        8
    """

    def __init__(self, data: DataSet, where: str | os.PathLike):
        super().__init__(data, data.ids)
        self._data = data
        self._store = _Memory(data) if str(where) == MEMORY else _Folder(data, where)

    @property
    def bytes(self) -> int:
        """How many bytes of memory the kept examples take; 0 where they are in a folder."""
        return getattr(self._store, "bytes", 0)

    def read(self, index: int) -> Example:
        """Reads an example from where it is kept, or else from its files, and keeps it."""
        kept = self._store.read(index) or self._store.keep(index, self._data.read(index))
        label = None if kept.label is None else kept.label.astype(np.int32)
        return Example(kept.image, label, self.ids[index], kept.path)

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads a label map from where it is kept, or else from its file."""
        kept = self._store.read(index)
        if kept is None:
            return self._data.read_label(index)
        return None if kept.label is None else kept.label.astype(np.int32)


class _Kept(NamedTuple):
    """An example with a label of one byte a pixel."""

    image: np.ndarray
    label: np.ndarray | None
    path: str | None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + (0 if self.label is None else self.label.nbytes)


def _small(example: Example) -> _Kept:
    image, label = example.image, example.label
    if label is not None and label.min(initial=0) >= 0 and label.max(initial=0) <= IGNORE:
        label = label.astype(np.uint8)
    # A small part of a large array would keep all of it; and who changed an array in place would change it for all epochs.
    image = image.copy() if image.base is not None else image.view()
    image.flags.writeable = False
    return _Kept(image, label, example.path)


class _Memory:
    """Examples in memory, up to what was free of it at the beginning."""

    def __init__(self, data: DataSet):
        self._kept: dict[int, _Kept] = {}
        self.bytes, self._limit = 0, int(_SHARE * free_memory())
        length = len(data)
        sample = sorted({length * k // min(_SAMPLE, length) for k in range(min(_SAMPLE, length))})
        read = sum(self.keep(index, data.read(index)).nbytes for index in sample)
        expected = read * length // max(1, len(sample))
        if expected > self._limit:
            raise KerassegError(
                f"cache 'memory': {length} examples will take about {expected / _GIGABYTE:.1f} GB, but only "
                f"{self._limit / _GIGABYTE:.1f} GB of memory may be filled: name a folder as cache, or leave it out"
            )

    def read(self, index: int) -> _Kept | None:
        return self._kept.get(index)

    def keep(self, index: int, example: Example) -> _Kept:
        kept = _small(example)
        # Should they be larger than those looked at, the last ones are read each time.
        if index not in self._kept and self.bytes + kept.nbytes <= max(self._limit, 0):
            self._kept[index] = kept
            self.bytes += kept.nbytes
        return kept


class _Folder:
    """Examples in files of a folder, each named by what it was read from."""

    def __init__(self, data: DataSet, where):
        if is_remote(where):
            raise KerassegError(f"cache '{where}': a cache spares the way to remote files, so name a folder on a disk, or 'memory'")
        self._data, self._folder = data, data_path(where)
        self._told: dict[int, bytes] = {}
        with _telling(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def _file(self, index: int) -> Path | None:
        data, place = source(self._data, index)
        if id(data) not in self._told:
            self._told[id(data)] = _about(data)
        told = hashlib.sha256(self._told[id(data)])
        told.update(data.ids[place].encode())
        for path in source_files(data, place):
            try:
                found = path.stat()
            except OSError:
                # Reading tells what is the matter with it.
                return None
            told.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode())
        name = told.hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.npy"

    def read(self, index: int) -> _Kept | None:
        file = self._file(index)
        try:
            with open(file, "rb") as stream:
                image, label, path = (np.load(stream, allow_pickle=False) for _ in range(3))
        except (OSError, ValueError, EOFError, TypeError):
            return None
        return _Kept(image, label if label.ndim else None, str(path) or None)

    def keep(self, index: int, example: Example) -> _Kept:
        kept, file = _small(example), self._file(index)
        if example.path is not None and not source_files(*source(self._data, index)):
            raise KerassegError(
                f"cache '{self._folder}': {type(self._data).__name__} does not tell of which files example '{example.id}' is made, "
                "so that no change would be seen; put the cache around the data set as it is opened, or use cache 'memory'"
            )
        if file is not None:
            with _telling(self._folder), atomic_path(file) as temporary, open(temporary, "wb") as stream:
                for array in (kept.image, np.uint8(0) if kept.label is None else kept.label, np.str_(kept.path or "")):
                    np.save(stream, array, allow_pickle=False)
        return kept


@contextmanager
def _telling(folder):
    """Says in one line what the disk does not take."""
    try:
        yield
    except OSError as error:
        raise KerassegError(
            f"cache '{folder}' cannot be written ({error.strerror}): free the disk, name another folder, or leave it out"
        ) from error


def source(data: DataSet, index: int) -> tuple[DataSet, int]:
    """Finds the data set that reads an example itself, behind unions and parts of it.

    Args:
        data: A data set.
        index: 0 to `len(data)` − 1.
    Returns:
        That data set, and the index in it.
    """
    while hasattr(data, "place"):
        data, index = data.place(index)
    return data, index


def source_files(data: DataSet, index: int) -> list[Path]:
    """Names the files that an example is read from, as far as its record tells.

    Args:
        data: A data set.
        index: 0 to `len(data)` − 1.
    Returns:
        The paths; none for a data set without files.
    """
    if hasattr(data, "rows"):
        return list(data.rows[index].files.values())
    records = getattr(data, "records", None)
    return [value for value in vars(records[index]).values() if hasattr(value, "read_bytes")] if records else []


def _about(data: DataSet) -> bytes:
    """What else decides how an example looks: the kind of the data set, its tables, and its options, which it has as attributes."""
    values = {name: _told(value) for name, value in sorted(vars(data).items()) if name not in ("ids", "records", "rows", "mean")}
    options = {name: value for name, value in values.items() if value is not None}
    behind = [_about(value) for value in vars(data).values() if isinstance(value, DataSet)]
    tables = data.labels, data.labels.file_to_label, data.heads, data.inputs
    return repr((type(data).__module__, type(data).__name__, tables, options, behind)).encode()


def _told(value) -> str | None:
    """A setting in short; None of what is none, such as a list of all files."""
    if isinstance(value, dict):
        value = tuple(sorted(value.items())) if all(isinstance(name, str) for name in value) else None
    if isinstance(value, np.ndarray):
        value = value.dtype.str, value.shape, value.tobytes()
    return hashlib.sha256(repr(value).encode()).hexdigest() if _is_plain(value) else None


def _is_plain(value) -> bool:
    return isinstance(value, (str, bytes, int, float, bool)) or (type(value) is tuple and all(map(_is_plain, value)))


def free_memory() -> int:
    """Tells how many bytes of memory a program may still take.

    Returns:
        Of a container what its limit leaves; else of the machine what is free, or can be made free at once; bytes.
    """
    left = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    lines = _lines("/proc/meminfo")
    # What the system keeps of files does not count as free to sysconf.
    left = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")] or left
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdecimal():
        left.append(max(0, int(limit[0]) - int(used[0])))
    return min(left)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
