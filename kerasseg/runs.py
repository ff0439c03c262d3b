"""Reading and writing run directories. Whatever is written appears whole or not at all."""

import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import shlex
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable

_UNFINISHED = ".unfinished-"
_STATE = re.compile(r"step-(\d+)\.npz")
# A state ends in its step and score, their CRC-32, and the SHA-256 of the whole file with zeros in its place: to ZIP, a comment.
_ABOUT, _CHECK, _DIGEST = 56, 8, 64
_log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: str | Path):
    """Gives a temporary path beside the final one, and moves it there when the block ends well.

    Args:
        path: The final file; its folder is made if it is missing.
    Yields:
        Path of a temporary file with the same suffixes. After an exception it is removed and the final file is untouched.
    Raises:
        OSError: If the disk does not take it; `filename` is then the final path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    with _naming(path):
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
def _naming(path: Path):
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


def _sweep(folder: Path) -> None:
    """Removes the temporary files that a killed process left in a folder; nobody else may be writing there."""
    for stray in folder.glob(f"{_UNFINISHED}*"):
        stray.unlink(missing_ok=True)


def write_json(path: str | Path, values: Any) -> None:
    """Writes a JSON file atomically, indented."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


class Checkpoints:
    """The numbered states of a run: the last few and the best. Each can be checked alone; index.json only tells what is missing.

    Args:
        directory: Where they lie; made at the first write.
        keep: How many of the last to keep; the best stays in any case.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory, self.keep = Path(directory), keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], score: float | None = None) -> Path:
        """Writes one state, then forgets those that are neither among the last nor the best.

        Args:
            step: Optimiser steps done.
            arrays: Name → value.
            score: Validation score, larger is better; `None` if there was none.
        Returns:
            The file; `np.load` reads it, too.
        Raises:
            OSError: If the disk does not take it; the earlier states are then as they were.
        """
        score = None if score is None or not math.isfinite(score) else float(score)
        # Before writing: a killed process may have left as much as the disk now lacks.
        _sweep(self.directory)
        path = self.directory / f"step-{step:08d}.npz"
        with atomic_path(path) as temporary:
            _write_state(temporary, arrays, {"step": step, "score": score})
        earlier = [file for file in self._files() if _step_of(file) < step and _about(file) is not None]
        kept = [path, *earlier[: self.keep - 1]]
        kept += [best for best in self._by_score([path, *earlier])[:1] if best not in kept]
        write_json(self.directory / "index.json", sorted(file.name for file in kept))
        for file in set(self._files()) - set(kept):
            file.unlink(missing_ok=True)
        return path

    def last_step(self) -> int:
        """Tells how many optimiser steps the newest state has done, by its end alone; 0 if there is none."""
        return next((_step_of(file) for file in self._files() if _about(file) is not None), 0)

    def last(self, report: Callable[[str], None] = _log.warning) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the newest state that is whole; a damaged or missing one is passed over.

        Args:
            report: Called with one line where a state was passed over; by default a warning is logged.
        Returns:
            `(step, arrays)`, or `None` if there is none.
        Raises:
            KerassegError: If there are states but all of them are damaged.
        """
        return self._first_whole(sorted({*self._files(), *self._indexed()}, key=_step_of, reverse=True), report)

    def best(self, report: Callable[[str], None] = _log.warning) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the state with the highest score, or the newest where none has a score; otherwise like `last`."""
        files = self._files()
        # Those whose score cannot be read may have been the best.
        damaged = [file for file in files if _about(file) is None]
        return self._first_whole(dict.fromkeys([*damaged, *self._by_score(files), *files]), report)

    def _files(self) -> list[Path]:
        """Every state, newest first."""
        files = [file for file in self.directory.glob("step-*.npz") if _STATE.fullmatch(file.name)]
        return sorted(files, key=_step_of, reverse=True)

    def _indexed(self) -> list[Path]:
        """The states that there should be, as far as the index can be read."""
        try:
            text = (self.directory / "index.json").read_text()
            return [self.directory / name for name in json.loads(text) if _STATE.fullmatch(name)]
        except (FileNotFoundError, ValueError, TypeError):
            return []

    @staticmethod
    def _by_score(files: Iterable[Path]) -> list[Path]:
        """Those that have a score, the highest first; of equal ones the older."""
        scores = {file: (_about(file) or {}).get("score") for file in files}
        return sorted((f for f in scores if scores[f] is not None), key=lambda f: (-scores[f], _step_of(f)))

    def _first_whole(self, files: Iterable[Path], report) -> tuple[int, dict[str, np.ndarray]] | None:
        damaged = []
        for file in files:
            if _is_whole(file):
                if damaged:
                    report(f"{self.directory}: {', '.join(damaged)}; taking {file.name}")
                with np.load(file) as arrays:
                    return _step_of(file), dict(arrays)
            damaged.append(f"{file.name} is {'damaged' if file.exists() else 'missing'}")
        if damaged:
            raise KerassegError(f"{self.directory}: all {len(damaged)} checkpoints are damaged; train again in another --run-dir")
        return None


class _HashingFile:
    """A file to write to, forwards only, that hashes what passes: a gigabyte need not be read again for that."""

    def __init__(self, file):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write_state(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        hashing = _HashingFile(file)
        with zipfile.ZipFile(hashing, "w") as archive:
            for name, value in arrays.items():
                value = np.asarray(value, order="C")
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(value))
                    # In one piece: np.save would copy it block by block.
                    member.write(value.reshape(-1).view(np.uint8))
            text = json.dumps(about).encode().ljust(_ABOUT)
            archive.comment = text + _crc(text) + b"0" * _DIGEST
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(hashing.digest.hexdigest().encode())


def _step_of(path: Path) -> int:
    return int(_STATE.fullmatch(path.name)[1])


def _crc(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _about(path: Path) -> dict | None:
    """What a state's end says of it; `None` if the end is damaged."""
    try:
        with open(path, "rb") as file:
            file.seek(-_ABOUT - _CHECK - _DIGEST, os.SEEK_END)
            text, check = file.read(_ABOUT), file.read(_CHECK)
    except OSError:
        return None
    return json.loads(text) if check == _crc(text) else None


def _is_whole(path: Path) -> bool:
    if _about(path) is None:
        return False
    digest, left = hashlib.sha256(), path.stat().st_size - _DIGEST
    with open(path, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        digest.update(b"0" * _DIGEST)
        return file.read() == digest.hexdigest().encode()


class Run:
    """A run directory: recipe.json, labels.json, environment.json, log.jsonl, checkpoints/, model.keras, report/.

    A run in several stages has one such directory for each of them, `stages/<n>-<name>/`.

    Args:
        path: The directory; need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = self.resume_path = Path(path)
        self.model_path = self.path / "model.keras"
        self.log_path = self.path / "log.jsonl"
        self.report_path = self.path / "report"
        self.tensorboard_path = self.path / "tensorboard"
        self.recipe_path = self.path / "recipe.json"
        self.labels_path = self.path / "labels.json"

    def stage(self, number: int, name: str) -> "Run":
        """Gives the run of one stage, counted from 1. What a person resumes is still the whole."""
        run = Run(self.path / "stages" / f"{number}-{name}")
        run.resume_path = self.resume_path
        return run

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run, or with the run whose stage this is."""
        return f"python train.py --run-dir {shlex.quote(str(self.resume_path))}"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe_path.is_file()

    def begin(self, recipe: Mapping[str, Any], labels: LabelTable) -> None:
        """Writes the environment, names and colours of the classes, and last the recipe: before it is there, nothing was begun."""
        _sweep(self.path)
        write_json(self.path / "environment.json", environment())
        write_json(self.labels_path, {"name": labels.name, "classes": labels.classes, "palette": labels.palette})
        write_json(self.recipe_path, recipe)

    def update(self, recipe: Mapping[str, Any]) -> None:
        """Records what a resumed run changes of its recipe."""
        write_json(self.recipe_path, recipe)

    def labels(self) -> LabelTable | None:
        """Reads the classes that the run was trained on; `None` if the run does not say."""
        if not self.labels_path.is_file():
            return None
        values = json.loads(self.labels_path.read_text())
        return LabelTable(values["name"], tuple(values["classes"]), tuple(map(tuple, values["palette"])), ())

    def recipe(self) -> dict[str, Any]:
        """Reads the resolved recipe.

        Raises:
            KerassegError: If this is no run directory.
        """
        if not self.exists:
            raise KerassegError(f"{self.path} is not a run directory: it has no recipe.json; name one that train.py made")
        try:
            return json.loads(self.recipe_path.read_text())
        except json.JSONDecodeError as error:
            raise KerassegError(f"{self.recipe_path} is not JSON ({error}); name another run directory") from error

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """Gives the run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", keep)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to log.jsonl."""
        with _naming(self.log_path), open(self.log_path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Reads log.jsonl; a last line that a crash cut short is left out."""
        if not self.log_path.is_file():
            return []
        records = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind_log(self, step: int) -> None:
        """Drops what a killed process left: records of steps after the one that training resumes from, temporary files."""
        _sweep(self.path)
        _sweep(self.path / "checkpoints")
        records = [r for r in self.read_log() if r.get("step", 0) <= step]
        with atomic_path(self.log_path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records))

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Writes model.keras atomically by `save(path)`."""
        with atomic_path(self.model_path) as temporary:
            save(temporary)


class Preempted(Exception):
    """Training of a run was asked to stop, and did so after a step whose state is saved."""

    def __init__(self, run: Run, step: int):
        super().__init__(f"stopped by SIGTERM, saved after step {step}; to go on: {run.resume_command}")


def environment() -> dict[str, Any]:
    """Describes what a run was made with: versions, machine, date."""
    versions = {}
    for package in ("kerasseg", "tensorflow", "tensorflow-cpu", "keras", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def new_run_path(name: str, root: str | Path = "runs") -> Path:
    """Names a run directory that does not exist yet: `<root>/<name>-<date>-<time>`."""
    stem = Path(root) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return path


def newest_run(root: str | Path = "runs") -> Run:
    """Finds the run that was begun last.

    Raises:
        KerassegError: If there is none.
    """
    recipes = sorted(Path(root).glob("*/recipe.json"), key=lambda path: path.stat().st_mtime)
    if not recipes:
        raise KerassegError(f"no run under {root}/: train one with `python train.py --arch fcn8s`, or name a run directory")
    return Run(recipes[-1].parent)
