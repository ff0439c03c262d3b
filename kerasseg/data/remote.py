"""Paths beyond `scheme://`, read by TensorFlow: Google's cloud storage, and what else it has a file system for."""

import errno
import fnmatch
import functools
import io
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import tensorflow as tf

from kerasseg.errors import KerassegError


def _as_os_errors(function):
    """Turns what TensorFlow says of a file into what Python says, which the callers know."""

    @functools.wraps(function)
    def call(path, *arguments, **options):
        try:
            return function(path, *arguments, **options)
        except tf.errors.NotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, _line(error), str(path)) from error
        except tf.errors.UnimplementedError:
            raise KerassegError(
                f"TensorFlow has no file system for '{path.url.split('://')[0]}://', received {path}: copy the data to a disk or "
                "to gs://, and name that folder"
            ) from None
        except tf.errors.OpError as error:
            raise OSError(errno.EIO, _line(error), str(path)) from error

    return call


def _line(error: tf.errors.OpError) -> str:
    return " ".join(str(error.message).split())


class RemotePath:
    """A place beyond `scheme://`, with those methods of `pathlib.Path` that reading data needs.

    It compares, sorts and hashes by its text. It is no `os.PathLike`: what takes names of local files shall not take it.

    Args:
        url: The place, `gs://bucket/folder/file`.
    Example:
        >>> path = RemotePath("gs://bucket/images/a.jpg")
        >>> path.stem, str(path.parent / "b.jpg")
        ('a', 'gs://bucket/images/b.jpg')
    """

    __slots__ = ("url",)

    def __init__(self, url: str):
        scheme, _, place = str(url).partition("://")
        # pathlib folds doubled and trailing slashes.
        object.__setattr__(self, "url", f"{scheme}://{str(PurePosixPath('/', place))[1:]}")

    def __setattr__(self, name, value):
        raise AttributeError(f"a path does not change, received {name}={value!r}")

    def __reduce__(self):
        return type(self), (self.url,)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath('{self.url}')"

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __lt__(self, other) -> bool:
        return self.url < other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name) -> "RemotePath":
        return RemotePath(name if "://" in str(name) else f"{self.url}/{name}")

    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.url.partition("://")[2])

    @property
    def parts(self) -> tuple[str, ...]:
        """`scheme://bucket` and the names below it."""
        first, *rest = self._pure().parts
        return (f"{self.url.partition('://')[0]}://{first}", *rest)

    @property
    def name(self) -> str:
        """The last part."""
        return self._pure().name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._pure().stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with the dot."""
        return self._pure().suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder around; of a bucket itself."""
        return self if len(self._pure().parts) < 2 else RemotePath(self.url.rpartition("/")[0])

    @property
    def parents(self) -> tuple["RemotePath", ...]:
        """All folders around, from the nearest on."""
        around, path = [], self
        while path.parent != path:
            path = path.parent
            around.append(path)
        return tuple(around)

    def with_name(self, name: str) -> "RemotePath":
        """The file of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The file of another suffix beside this one."""
        return self.parent / (self.stem + suffix)

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        """The way from a folder around to here."""
        return self._pure().relative_to(other._pure())

    def expanduser(self) -> "RemotePath":
        """The same: there is no own folder."""
        return self

    resolve = absolute = expanduser

    @_as_os_errors
    def exists(self) -> bool:
        """Tells whether there is a file or a folder."""
        return tf.io.gfile.exists(self.url)

    @_as_os_errors
    def is_dir(self) -> bool:
        """Tells whether there is a folder."""
        try:
            # gfile.isdir takes all errors for a no.
            return tf.io.gfile.stat(self.url).is_directory
        except tf.errors.NotFoundError:
            return False

    @_as_os_errors
    def is_file(self) -> bool:
        """Tells whether there is a file."""
        try:
            return not tf.io.gfile.stat(self.url).is_directory
        except tf.errors.NotFoundError:
            return False

    @_as_os_errors
    def stat(self) -> os.stat_result:
        """Size in bytes and time of the last change, as `os.stat` has them; other fields are 0."""
        found = tf.io.gfile.stat(self.url)
        seconds = found.mtime_nsec / 1e9
        times = {"st_atime_ns": 0, "st_mtime_ns": found.mtime_nsec, "st_ctime_ns": 0}
        return os.stat_result((0, 0, 0, 0, 0, 0, found.length, 0, int(seconds), 0), times)

    @_as_os_errors
    def _names(self) -> list[str]:
        # Folders of a bucket come with a slash behind.
        return sorted({name.rstrip("/") for name in tf.io.gfile.listdir(self.url)} - {""})

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies in this folder, sorted."""
        return iter([self / name for name in self._names()])

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """What lies below and fits a pattern, in which `*` and `?` stop at slashes, and `**` is any folders, none included."""
        return iter(sorted(set(_matches(self, tuple(PurePosixPath(pattern).parts)))))

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        """What lies anywhere below and fits a pattern."""
        return self.glob(f"**/{pattern}")

    def open(self, mode: str = "r", encoding: str | None = None):
        """Opens the file for reading, buffered; it can be sought in."""
        if mode not in ("r", "rt", "rb"):
            raise KerassegError(f"{self} cannot be opened with mode '{mode}': data are only read, 'r' or 'rb'")
        if not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        binary = io.BufferedReader(_Raw(self), 1 << 20)
        return binary if mode == "rb" else io.TextIOWrapper(binary, encoding or "utf-8")

    @_as_os_errors
    def read_bytes(self) -> bytes:
        """Reads the whole file."""
        with tf.io.gfile.GFile(self.url, "rb") as file:
            return file.read()

    def read_text(self, encoding: str | None = None) -> str:
        """Reads the whole file as text, with all ends of lines as one character."""
        return io.IncrementalNewlineDecoder(None, True).decode(self.read_bytes().decode(encoding or "utf-8"), True)


def _matches(folder: RemotePath, pattern: tuple[str, ...]) -> Iterator[RemotePath]:
    if not pattern:
        yield folder
    elif not any(sign in pattern[0] for sign in "*?["):
        below = folder / pattern[0]
        if below.exists():
            yield from _matches(below, pattern[1:])
    elif folder.is_dir():
        if pattern[0] == "**":
            yield from _matches(folder, pattern[1:])
        for path in folder.iterdir():
            if pattern[0] == "**":
                yield from _matches(path, pattern) if path.is_dir() else ()
            elif fnmatch.fnmatchcase(path.name, pattern[0]):
                yield from _matches(path, pattern[1:])


class _Raw(io.RawIOBase):
    """A remote file as Python's own buffers read it."""

    def __init__(self, path: RemotePath):
        self._path, self._place, self._size = path, 0, path.stat().st_size
        self._file = tf.io.gfile.GFile(path.url, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer) -> int:
        left = min(len(buffer), max(0, self._size - self._place))
        # TensorFlow refuses to go beyond the end.
        content = _read(self._path, self._file, self._place, left) if left else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@_as_os_errors
def _read(path: RemotePath, file: tf.io.gfile.GFile, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)
