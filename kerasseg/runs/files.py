"""Files that appear whole or not at all."""

import errno
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished-"


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
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_UNFINISHED, suffix="." + path.name.split(".", 1)[-1])
            os.close(handle)
            yield Path(temporary)
            _sync(temporary, os.O_RDWR)
            # mkstemp makes files that only their owner can read.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _sync(path.parent, os.O_RDONLY)
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)


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
    """Removes the temporary files that a killed process left in a folder; nobody else may be writing (files of a suffix) there."""
    for stray in folder.glob(f"{_UNFINISHED}*{suffix}"):
        stray.unlink(missing_ok=True)


def write_json(path: str | Path, values: Any) -> None:
    """Writes a JSON file atomically, indented."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
