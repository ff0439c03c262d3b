"""The JSON beside an exported network: what it takes, what it gives, and the proof that it works."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kerasseg.errors import KerassegError

TITLES = {"tflite": "TFLite file", "onnx": "ONNX file", "saved_model": "SavedModel"}
"""What files of a format are called."""

_INSIDE = "model.json"


@dataclass(frozen=True)
class Description:
    """What is known about an exported network. Every field but the first is as it stands in the JSON.

    Args:
        version: Of the library that wrote it; `kerasseg` in the JSON.
        network: Name of the Keras network.
        file: Name of the file, or of the SavedModel's directory.
        bytes: Its size.
        sha256: Of its bytes, see `digest`.
        format: One of `kerasseg.export.FORMATS`.
        quantization: One of `kerasseg.export.QUANTIZATIONS`.
        input: `name`, `shape` (`None`: any), `type`, `range`, `channels`, `preprocessing`.
        outputs: By name: `shape`, `type`, `meaning` (one of `kerasseg.export.RESULTS`), and of coarse labels `cells`: cell i of
            `rows` or `columns` has its centre at image pixel scale · i + shift.
        parity: The figures of the comparison with Keras.
        tolerance: What they had to be.
        operations: How often each operation is used.
        left_out: What of the network is not in the file.
        classes: Their names.
        palette: Their colours, RGB.
        label_table: Key of `kerasseg.labels.LABELS`, or another name.
        recipe: What the network was trained by, as `Recipe.to_json`, without `data_dir`.
        calibration: `data`, `images`, `seed` of int8.
        kept_float: What of int8 stayed in float32.
        latency: `milliseconds` (median), `input` (the shape of what it was timed on), `runs`, `threads` (`None`: TensorFlow's own
            choice), `processor`.
    """

    version: str
    network: str
    file: str
    bytes: int
    sha256: str
    format: str
    quantization: str
    input: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]]
    parity: Mapping[str, Any]
    tolerance: Mapping[str, Any]
    operations: Mapping[str, int] = field(default_factory=dict)
    left_out: str | None = None
    classes: Sequence[str] | None = None
    palette: Sequence[Sequence[int]] | None = None
    label_table: str | None = None
    recipe: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    kept_float: Sequence[str] = ()
    latency: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Gives the fields as JSON-ready values."""
        values = asdict(self)
        return {"kerasseg": values.pop("version"), **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Description":
        """Reads what `to_json` gave; what it does not know, it leaves aside.

        Raises:
            KerassegError: If something is missing, or of another type.
        """
        values = {"version": values.get("kerasseg"), **values}
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        try:
            found = cls(**known)
        except TypeError as error:
            raise _refusal(error) from error
        for problem in found._problems():
            raise _refusal(problem)
        return found

    def _problems(self):
        """Says of what is relied upon which is of another type."""
        for name in ("file", "format", "quantization", "sha256"):
            if not isinstance(getattr(self, name), str):
                yield f"'{name}' is no text"
        for name in ("input", "outputs", "parity", "tolerance", "operations"):
            if not isinstance(getattr(self, name), Mapping):
                yield f"'{name}' has no names"
        if not self.outputs:
            yield "it has no outputs"
        for name, output in self.outputs.items():
            if not isinstance(output, Mapping) or not isinstance(output.get("meaning"), str):
                yield f"it does not say what '{name}' means"
            elif not all(isinstance(output.get(key), str | None) for key in ("asked", "head")):
                yield f"it does not say what '{name}' is of"
        for name, limit in self.tolerance.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float | None):
                yield f"tolerance of '{name}' is no number"

    def check(self, path: str | Path) -> None:
        """Compares a file with the SHA-256 that is written here.

        Raises:
            KerassegError: If the file is another one than was exported.
        """
        if digest(path) != self.sha256:
            raise KerassegError(
                f"'{path}' is not the file that {description_path(path).name} describes (its SHA-256 differs): one of them was "
                "changed, or the export was interrupted; export it again"
            )


def _refusal(reason) -> KerassegError:
    return KerassegError(f"it is no description of an exported network ({reason}): export it again")


def description_path(path: str | Path) -> Path:
    """Where the JSON of a file is: beside it, of the same stem; of a SavedModel, inside."""
    path = Path(path)
    return path / _INSIDE if path.is_dir() else path.with_suffix(".json")


def read(path: str | Path) -> Description | None:
    """Reads the description of an exported network.

    Args:
        path: The file itself, or the SavedModel's directory.
    Returns:
        The description; `None` if there is none, or the JSON of that name is another file's or something else.
    Raises:
        KerassegError: If it is damaged.
    """
    where = description_path(path)
    if not where.is_file():
        return None
    try:
        values = json.loads(where.read_text())
    except ValueError as error:
        raise KerassegError(f"'{where}' is damaged: export it again") from error
    if not isinstance(values, dict) or "kerasseg" not in values or "sha256" not in values:
        return None
    named = values.get("file")
    named = named if isinstance(named, str) else None
    if named != Path(path).name and named and where.parent != Path(path) and (where.parent / named).exists():
        return None
    return Description.from_json(values)


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a SavedModel, of its graph and its variables, in the order of their names."""
    path, found = Path(path), hashlib.sha256()
    for part in parts(path):
        if part != path:
            # Else bytes could move from the end of one file to the beginning of the next.
            found.update(f"{part.relative_to(path).as_posix()}:{part.stat().st_size}\n".encode())
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def parts(path: str | Path) -> list[Path]:
    """The files of an exported network: itself, or a SavedModel's graph and variables."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    return [part for part in (path / "saved_model.pb", *sorted((path / "variables").glob("*"))) if part.is_file()]
