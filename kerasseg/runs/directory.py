"""Run directories: what lies in them, and where they are."""

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable
from kerasseg.runs.checkpoints import Checkpoints
from kerasseg.runs.files import atomic_path, naming, sweep, write_json


class Run:
    """A run directory: recipe.json, labels.json, data.json, environment.json, log.jsonl, checkpoints/, model.keras, report/.

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
        self.data_path = self.path / "data.json"

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

    def begin(
        self,
        recipe: Mapping[str, Any],
        labels: LabelTable,
        heads: Mapping[str, LabelTable] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Writes the environment, names and colours of the classes, and last the recipe: before it is there, nothing was begun.

        Args:
            recipe: JSON-ready values.
            labels: The classes; of a network of several heads those of the first.
            heads: Head → its classes, of such a network.
            ids: Names of the examples that it trains on, which `check_ids` compares; `None` where a run has none of its own.
        """
        sweep(self.path)
        write_json(self.path / "environment.json", environment())
        each = {"heads": {name: _table_json(table) for name, table in heads.items()}} if heads else {}
        write_json(self.labels_path, {**_table_json(labels), **each})
        if ids is not None:
            write_json(self.data_path, _ids_json(ids))
        write_json(self.recipe_path, recipe)

    def check_ids(self, ids: Sequence[str], name: str) -> None:
        """Refuses to go on with other examples: each later position of the training sequence would name another one.

        Args:
            ids: Names of the examples that it would train on.
            name: What the data set is called.
        Raises:
            KerassegError: If they are not those that the run was begun on. Runs of releases that did not keep them go on.
        """
        if not self.data_path.is_file():
            return
        now, way_on = _ids_json(ids), "restore the data, or choose a new --run-dir"
        try:
            before = json.loads(self.data_path.read_text())
            same, count = before == now, int(before["examples"])
        except (ValueError, TypeError, KeyError) as error:
            raise KerassegError(f"{self.data_path} is damaged ({type(error).__name__}: {error}): choose a new --run-dir") from error
        if count != len(ids):
            raise KerassegError(f"{self.path} was begun on {count} images, data set '{name}' now has {len(ids)}: {way_on}")
        if not same:
            raise KerassegError(f"{self.path} was begun on {count} images of other names than data set '{name}' now has: {way_on}")

    def update(self, recipe: Mapping[str, Any]) -> None:
        """Records what a resumed run changes of its recipe."""
        write_json(self.recipe_path, recipe)

    def labels(self) -> LabelTable | None:
        """Reads the classes that the run was trained on; `None` if the run does not say. Of several heads, the first's.

        Raises:
            KerassegError: If the file is damaged.
        """
        return self._read_labels(_table)

    def heads(self) -> dict[str, LabelTable] | None:
        """Reads the classes of each head of the network that trains; `None` if it has one head.

        Raises:
            KerassegError: If the file is damaged.
        """
        return self._read_labels(lambda values: {name: _table(each) for name, each in values.get("heads", {}).items()} or None)

    def num_classes(self) -> int | dict[str, int] | None:
        """Counts the classes that the run was trained on, as a network's builder takes them; `None` if the run does not say.

        Raises:
            KerassegError: If the file is damaged.
        """
        labels, heads = self.labels(), self.heads()
        return {name: table.num_classes for name, table in heads.items()} if heads else labels and labels.num_classes

    def _read_labels(self, read: Callable):
        if not self.labels_path.is_file():
            return None
        try:
            return read(json.loads(self.labels_path.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise KerassegError(
                f"{self.labels_path} is damaged ({type(error).__name__}: {error}); name another run directory, or its "
                "model.keras alone"
            ) from error

    def recipe(self) -> dict[str, Any]:
        """Reads the resolved recipe.

        Raises:
            KerassegError: If this is no run directory, or the file is damaged.
        """
        if not self.exists:
            raise KerassegError(f"{self.path} is not a run directory: it has no recipe.json; name one that train.py made")
        try:
            recipe = json.loads(self.recipe_path.read_text())
        except ValueError as error:
            raise KerassegError(f"{self.recipe_path} is not JSON ({error}); name another run directory") from error
        if not isinstance(recipe, dict) or not isinstance(recipe.get("name"), str):
            raise KerassegError(f"{self.recipe_path} holds no recipe with a name; name another run directory")
        return recipe

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """Gives the run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", keep)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to log.jsonl."""
        with naming(self.log_path), open(self.log_path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Reads log.jsonl; a last line that a crash cut short, and whatever else is no record of a step, is left out."""
        if not self.log_path.is_file():
            return []
        records = map(_record, self.log_path.read_text(errors="replace").splitlines())
        return [record for record in records if record is not None]

    def rewind_log(self, step: int) -> None:
        """Drops what a killed process left: records of steps after the one that training resumes from, temporary files."""
        sweep(self.path)
        sweep(self.path / "checkpoints")
        records = [r for r in self.read_log() if r["step"] <= step]
        with atomic_path(self.log_path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records))

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Writes model.keras atomically by `save(path)`."""
        with atomic_path(self.model_path) as temporary:
            save(temporary)


def _ids_json(ids: Sequence[str]) -> dict[str, Any]:
    return {"examples": len(ids), "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()}


def _table_json(table: LabelTable) -> dict[str, Any]:
    return {"name": table.name, "classes": table.classes, "palette": table.palette}


def _table(values: Mapping[str, Any]) -> LabelTable:
    return LabelTable(values["name"], tuple(values["classes"]), tuple(map(tuple, values["palette"])), ())


def _record(line: str) -> dict[str, Any] | None:
    """What a line of a log says; `None` if that is nothing of a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


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
