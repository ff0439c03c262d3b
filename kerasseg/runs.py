"""Reading and writing run directories. Whatever is written appears whole or not at all."""

import hashlib
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable


@contextmanager
def atomic_path(path: str | Path):
    """Gives a temporary path beside the final one, and moves it there when the block ends well.

    Args:
        path: The final file; its folder is made if it is missing.
    Yields:
        Path of a temporary file with the same suffixes. After an exception it is removed and the final file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="." + path.name.split(".", 1)[-1])
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: str | Path, values: Any) -> None:
    """Writes a JSON file atomically, indented."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


class Checkpoints:
    """The numbered states of a run: the last few and the best, each with its checksum.

    Args:
        directory: Where they lie; made at the first write.
        keep: How many of the last to keep; the best stays in any case.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory, self.keep = Path(directory), keep

    def _index(self) -> list[dict]:
        path = self.directory / "index.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def save(self, step: int, arrays: Mapping[str, np.ndarray], score: float | None = None) -> Path:
        """Writes one state, then forgets those that are neither among the last nor the best.

        Args:
            step: Optimiser steps done.
            arrays: Name → value.
            score: Validation score, larger is better; `None` if there was none.
        Returns:
            The file.
        """
        path = self.directory / f"step-{step:08d}.npz"
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
            entry = {"step": step, "file": path.name, "sha256": _sha256(temporary), "score": score}
        entries = [e for e in self._index() if e["step"] < step] + [entry]
        best = self._best(entries)
        kept = [e for e in entries if e in entries[-self.keep :] or e is best]
        write_json(self.directory / "index.json", kept)
        # What the index does not name was replaced, or a killed process left it half-written.
        for stray in {*self.directory.glob("*.npz"), *self.directory.glob(".*.npz")}:
            if stray.name not in {entry["file"] for entry in kept}:
                stray.unlink(missing_ok=True)
        return path

    def last_step(self) -> int:
        """Tells how many optimiser steps the newest state has done; 0 if there is none."""
        return max((entry["step"] for entry in self._index()), default=0)

    def last(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the newest state that is whole; a damaged one is passed over.

        Returns:
            `(step, arrays)`, or `None` if there is none.
        Raises:
            KerassegError: If there are states but all of them are damaged.
        """
        entries = self._index()
        for entry in reversed(entries):
            arrays = self._read(entry)
            if arrays is not None:
                return entry["step"], arrays
        if entries:
            raise KerassegError(f"{self.directory}: all {len(entries)} checkpoints are damaged; train again in another --run-dir")
        return None

    def best(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the state with the highest score, or the newest where none has a score."""
        entry = self._best(self._index())
        arrays = entry and self._read(entry)
        return (entry["step"], arrays) if arrays else self.last()

    @staticmethod
    def _best(entries: list[dict]) -> dict | None:
        scored = [e for e in entries if e["score"] is not None]
        return max(scored, key=lambda e: e["score"]) if scored else None

    def _read(self, entry: Mapping) -> dict[str, np.ndarray] | None:
        path = self.directory / entry["file"]
        if not path.is_file() or _sha256(path) != entry["sha256"]:
            return None
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (ValueError, zipfile.BadZipFile):
            return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """A run directory: recipe.json, labels.json, environment.json, log.jsonl, checkpoints/, model.keras, report/.

    Args:
        path: The directory; need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.model_path = self.path / "model.keras"
        self.log_path = self.path / "log.jsonl"
        self.report_path = self.path / "report"
        self.tensorboard_path = self.path / "tensorboard"
        self.recipe_path = self.path / "recipe.json"
        self.labels_path = self.path / "labels.json"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe_path.is_file()

    def begin(self, recipe: Mapping[str, Any], labels: LabelTable) -> None:
        """Writes the environment, what the classes are called and how they are painted, and the resolved recipe."""
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
        with open(self.log_path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Reads log.jsonl; a last line that a crash cut short is left out."""
        if not self.log_path.is_file():
            return []
        records = []
        for line in self.log_path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind_log(self, step: int) -> None:
        """Drops records of steps after the one that training resumes from."""
        records = [r for r in self.read_log() if r.get("step", 0) <= step]
        with atomic_path(self.log_path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records))

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Writes model.keras atomically by `save(path)`."""
        with atomic_path(self.model_path) as temporary:
            save(temporary)


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
