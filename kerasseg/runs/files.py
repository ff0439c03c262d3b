"""Files that appear whole or not at all."""

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DIRECTORY_SUFFIX = ".directory"
"""What the names of temporary directories end in."""

_UNFINISHED = ".unfinished-"
# What this process is writing at present: another thread of it may be sweeping the same folder.
_writing: set[str] = set()


@contextmanager
def atomic_path(path: str | Path):
    """Gives a temporary path beside the final one, and moves it there when the block ends well.

    Args:
        path: The final file; its folder is made if it is missing.
    Yields:
        Path of a temporary file with the same suffixes. After an exception it is removed and the final file is untouched.
    Raises:
        OSError: If the disk does not take it, or a folder is there; `filename` is then the final path.
    """
    path = Path(path)
    if path.is_dir():
        # Else it would show only at the end.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    with naming(path):
        try:
            suffix = "." + path.name.split(".", 1)[-1]
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(), suffix=suffix)
            os.close(handle)
            _writing.add(Path(temporary).name)
            yield Path(temporary)
            _sync(temporary, os.O_RDWR)
            # mkstemp makes files that only their owner can read.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _sync(path.parent, os.O_RDONLY)
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
                _writing.discard(Path(temporary).name)


def atomic_link(source: str | Path, path: str | Path) -> None:
    """Makes a file available under another name, too; what is there before is replaced at one stroke.

    Args:
        source: The file. Its mode stays as it is, since both names have one.
        path: The other name; its folder is made if it is missing.
    Raises:
        OSError: If there can be no link; `filename` is then the other name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_prefix()}{uuid.uuid4().hex}{path.suffix}")
    _writing.add(temporary.name)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        # Replacing a name by another one of the same file leaves both.
        temporary.unlink(missing_ok=True)
        _writing.discard(temporary.name)


@contextmanager
def atomic_directory(path: str | Path):
    """Gives a temporary directory beside the final one, and moves it there when the block ends well.

    Args:
        path: The final directory; what is there before is replaced.
    Yields:
        An empty directory. After an exception it is removed and the final one is untouched.
    Raises:
        OSError: If a file is there, or the disk does not take it.
    """
    path = Path(path)
    if path.is_file():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(), suffix=DIRECTORY_SUFFIX))
    _writing.add(room.name)
    try:
        made = room / "new"
        made.mkdir()
        yield made
        if path.exists():
            # A directory that holds something cannot be replaced at one stroke.
            path.rename(room / "old")
        made.rename(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)
        _writing.discard(room.name)


def _prefix() -> str:
    return f"{_UNFINISHED}{os.getpid()}-"


@contextmanager
def naming(path: Path):
    """Lets errors tell the final path: a failing write names no file, and nobody knows the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno and (error.filename is None or _UNFINISHED in str(error.filename)):
            error.filename = str(path)
        raise


def _sync(path: str | Path, flags: int) -> None:
    """Waits until the disk holds a file, or a folder's list of names."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot do it for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sweep(folder: Path, suffix: str = "") -> None:
    """Removes the temporary files and directories (of a suffix) that killed processes left, not what is being written."""
    for stray in folder.glob(f"{_UNFINISHED}*{suffix}"):
        if _is_being_written(stray.name):
            continue
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def _is_being_written(name: str) -> bool:
    writer = re.match(rf"{re.escape(_UNFINISHED)}(\d+)-", name)
    if writer is None:
        return False
    # After a restart, a killed process may have had the number of this one.
    if int(writer[1]) == os.getpid():
        return name in _writing
    try:
        os.kill(int(writer[1]), 0)
    except PermissionError:
        # Somebody else's.
        return True
    except (OSError, OverflowError):
        return False
    return True


def write_json(path: str | Path, values: Any) -> None:
    """Writes a JSON file atomically, indented."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
