"""Whose a prepared folder is: one data set's, and one run's at a time."""

import fcntl
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerasseg.data.preparation.prepared import CONVERTED, EXAMPLES, HEADER, ORIGINAL
from kerasseg.errors import KerassegError
from kerasseg.runs.files import sweep, write_json

BEGUN = "unfinished.json"
"""Whose files they are before `prepared.json` is there, and while they are being written."""

IDENTITY = ("format", "data", "options", "copy", "labels", "heads", "inputs", "channels", "photographs", "mean")
"""What says whose files lie in the folder: others than these must not be mixed."""

_LOCK, _CLEARING = ".lock", "clearing"


def check_is_ours(folder: Path) -> None:
    """Refuses a folder in which something else lies.

    Args:
        folder: Where files are to be kept; need not exist.
    Raises:
        KerassegError: If it has files, and they are not what was prepared.
    """
    if _begun(folder) is None and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise KerassegError(f"{folder} is not empty, and not what was prepared before: name another folder by --out, or empty it")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps others out of a folder.

    Args:
        folder: It is made if it is missing.
    Raises:
        KerassegError: If another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not truncated: its time of change says nothing.
    with open(folder / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KerassegError(f"another prepare_data is at work in {folder}: wait for it") from None
        except OSError:
            # Some network file systems have no locks.
            pass
        yield


def claim(folder: Path, identity: Mapping[str, Any], inside: bool) -> dict[str, Any] | None:
    """Makes a folder ready.

    Args:
        folder: The folder, `locked`.
        identity: Whose files it shall hold: the values of `IDENTITY`.
        inside: Whether it is the one beside the files of the data set, which is cleared of what was prepared otherwise; one that
            was named may hold what somebody needs.
    Returns:
        The header that is there from before; `None` if there is none.
    Raises:
        KerassegError: If it holds what was prepared of another data set, or otherwise.
    """
    check_is_ours(folder)
    begun = _begun(folder)
    if begun is not None and (begun.get(_CLEARING) or any(begun.get(name) != identity[name] for name in IDENTITY)):
        if not inside:
            raise others(folder, begun)
        _clear(folder, identity)
        begun = None
    if (folder / BEGUN).is_file():
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sweep(place)
    if begun is None:
        mark(folder, identity)
    return _read_json(folder / HEADER)


def others(folder: Path, begun: Mapping[str, Any]) -> KerassegError:
    """The error of a folder that holds what was prepared of other data."""
    options = ", ".join(f"{name}={json.dumps(value)}" for name, value in (begun.get("options") or {}).items())
    return KerassegError(
        f"{folder} holds data set '{begun.get('data')}' prepared with {options or 'no options'}, of other examples or classes than "
        "these: name another folder by --out, or remove it"
    )


def mark(folder: Path, identity: Mapping[str, Any]) -> None:
    """Notes that files are being written, and whose."""
    write_json(folder / BEGUN, {name: identity[name] for name in IDENTITY})


def unmark(folder: Path, header: Mapping[str, Any], earlier: Collection[str]) -> None:
    """Notes that all is written, and removes lists of splits that are no longer there.

    Args:
        folder: The prepared folder.
        header: What `prepared.json` holds.
        earlier: Splits that it had before.
    """
    for split in set(earlier) - set(header["splits"]):
        (folder / f"{split}.txt").unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)


def _clear(folder: Path, identity: Mapping[str, Any]) -> None:
    # Nobody shall read a mixture of both: killed on the way, the next run clears what is left.
    write_json(folder / BEGUN, {**{name: identity[name] for name in IDENTITY}, _CLEARING: True})
    for name in (HEADER, EXAMPLES):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*.txt"):
        path.unlink()
    for name in (CONVERTED, ORIGINAL):
        shutil.rmtree(folder / name, ignore_errors=True)


def _begun(folder: Path) -> dict[str, Any] | None:
    return _read_json(folder / HEADER) or _read_json(folder / BEGUN)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
