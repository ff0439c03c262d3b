"""Decoded examples, kept in memory or in a folder."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.records import DataSet, Example, source_of
from kerasseg.data.views.bootstrap import Bootstrapped
from kerasseg.data.views.derived import Derived
from kerasseg.data.views.fingerprint import about
from kerasseg.data.views.subset import Subset
from kerasseg.data.views.union import Union
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

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example is from.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The data set, and the index in it.
        """
        return self._data, index

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
    """Examples in memory, up to what was free of it at the beginning, and will be when other such stores are full."""

    _stores: WeakSet["_Memory"] = WeakSet()

    def __init__(self, data: DataSet):
        self._kept: dict[int, _Kept] = {}
        still_to_come = sum(max(0, other._expected - other.bytes) for other in self._stores)
        self.bytes, self._limit = 0, int(_SHARE * free_memory()) - still_to_come
        length = len(data)
        sample = sorted({length * k // min(_SAMPLE, length) for k in range(min(_SAMPLE, length))})
        read = sum(self.keep(index, data.read(index)).nbytes for index in sample)
        expected = read * length // max(1, len(sample))
        if expected > self._limit:
            raise KerassegError(
                f"cache 'memory': {length} examples will take about {expected / _GIGABYTE:.1f} GB, but only "
                f"{max(0, self._limit) / _GIGABYTE:.1f} GB of memory may be filled: name a folder as cache, or leave it out"
            )
        self._expected = expected
        self._stores.add(self)

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
        self._remote: dict[int, Path] = {}
        with _telling(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def _file(self, index: int) -> Path | None:
        if index in self._remote:
            return self._remote[index]
        data, place, told = self._data, index, hashlib.sha256()
        while hasattr(data, "place"):
            # Those show the examples as they are.
            if not isinstance(data, (Bootstrapped, Cached, Subset, Union)):
                told.update(self._about(data))
            data, place = data.place(place)
        told.update(self._about(data))
        told.update(data.ids[place].encode())
        paths = source_files(data, place)
        try:
            told.update(repr([(str(path), *_stamp(path)) for path in paths]).encode())
        except OSError:
            return None
        name = told.hexdigest()[:32]
        file = self._folder / name[:2] / f"{name}.npy"
        if any(map(is_remote, paths)):
            # To ask again takes a call each; while a run goes on they stay as they are.
            self._remote[index] = file
        return file

    def _about(self, data: DataSet) -> bytes:
        if id(data) not in self._told:
            self._told[id(data)] = about(data).encode()
        return self._told[id(data)]

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
        if example.path is not None and not source_files(*source_of(self._data, index)):
            raise KerassegError(
                f"cache '{self._folder}': {type(self._data).__name__} does not tell of which files example '{example.id}' is made, "
                "so that no change would be seen; put the cache around the data set as it is opened, or use cache 'memory'"
            )
        if file is not None:
            with _telling(self._folder), atomic_path(file) as temporary, open(temporary, "wb") as stream:
                for array in (kept.image, np.uint8(0) if kept.label is None else kept.label, np.str_(kept.path or "")):
                    np.save(stream, array, allow_pickle=False)
        return kept


def _stamp(path) -> tuple[int, ...]:
    """By what a change of a file is noticed: size and time."""
    try:
        found = path.stat()
    except FileNotFoundError:
        # Of one that it needs reading tells, and nothing is kept.
        return ()
    return found.st_size, found.st_mtime_ns


@contextmanager
def _telling(folder):
    """Says in one line what the disk does not take."""
    try:
        yield
    except OSError as error:
        raise KerassegError(
            f"cache '{folder}' cannot be written ({error.strerror}): free the disk, name another folder, or leave it out"
        ) from error


def source_files(data: DataSet, index: int) -> list[Path]:
    """Names the files that an example is read from, as far as it tells.

    Args:
        data: A data set.
        index: 0 to `len(data)` − 1.
    Returns:
        The paths; none for a data set without files.
    """
    return list(data.files(index)) if hasattr(data, "files") else []


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
