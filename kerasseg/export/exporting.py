"""Writing a network as a file, and the gate: a file that computes something else than Keras does is not left."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.export.describing import describe
from kerasseg.export.forms import QUANTIZATIONS, SUFFIXES, Target
from kerasseg.export.graph import Plan, input_shape, plan, trace_plan
from kerasseg.export.parity import TOLERANCES, Parity, Tolerance, measure_parity
from kerasseg.export.saved_model import write_plan
from kerasseg.export.timing import measure_latency as time_file
from kerasseg.labels import LabelTable
from kerasseg.runs import atomic_path, write_json
from kerasseg.runs.files import DIRECTORY_SUFFIX, atomic_directory, sweep
from kerasseg.runtimes import ExportedNetwork, description, open_file
from kerasseg.runtimes.description import TITLES, Description
from kerasseg.runtimes.notices import without_notices

# What may lie in the folder of a SavedModel, which is replaced as a whole.
_INSIDE = {"saved_model.pb", "variables", "assets", "fingerprint.pb", "keras_metadata.pb", "model.json"}


class Exported(NamedTuple):
    """A file that was written, and what stands in the JSON beside it."""

    path: Path
    description: Description


def export_model(
    model: keras.Model,
    path: str | Path,
    target: Target,
    *,
    labels: LabelTable | None = None,
    recipe: Mapping[str, Any] | None = None,
    images: Sequence[np.ndarray] = (),
    calibration: Sequence[np.ndarray] = (),
    calibrated_on: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
    left_out: str | None = None,
    measure_latency: bool = True,
) -> Exported:
    """Writes a network as a file, if the file computes what the network does.

    The file takes images of 0–255 as the network does; preprocessing is inside. Beside it (inside a SavedModel) lies a JSON file
    with classes, palette, input, the figures of the comparison, operations and latency: `kerasseg.runtimes.description`.

    A CRF at the end of the network that the format cannot hold stays outside (`cut_for` says which): the file gives the logits
    that it would refine, is compared with the network up to there, and the JSON says so under `left_out`.

    Args:
        model: The trained network, one input and any number of outputs, all logits.
        path: The file, ending as the format does, or the directory of a SavedModel.
        target: What to write.
        labels: Names and colours for the JSON.
        recipe: What the network was trained by, a `Recipe` or its `to_json()`, for the JSON.
        images: Photographs to compare on beside random images, `(H, W, C)` of the file's size, 0–255.
        calibration: Photographs by which int8 finds its ranges, as `images`.
        calibrated_on: `data`, `images` and `seed` of those, for the JSON.
        tolerance: What the comparison must find; `TOLERANCES` of the quantization by default.
        left_out: What else is not in the file, of which the network knows nothing, for the JSON.
        measure_latency: Whether to time the file.
    Returns:
        Path and description.
    Raises:
        KerassegError: If the network cannot be converted so, a package is missing, or the file disagrees; nothing is left under
            `path` that was not there before.
    Example:
        >>> export_model(model, "model.tflite", Target(input_size=(513, 513)))
    """
    path = Path(path)
    _check_path(path, target)
    made = plan(model, target)
    tolerance = tolerance or TOLERANCES[target.quantize]
    details = {"labels": labels, "recipe": recipe, "calibration": calibrated_on, "left_out": left_out}
    with _room(path, target) as temporary:
        kept_float = _write(made, temporary, calibration, target)
        exported = _opened(temporary, path)
        parity = _passed(exported, made, images, tolerance)
        latency = time_file(temporary, made) if measure_latency else None
        found = describe(made, exported, path.name, parity, tolerance, kept_float=kept_float, latency=latency, **details)
        # Before the file: a description whose file never came is told by its SHA-256, a file without any is not.
        where = temporary / "model.json" if target.format == "saved_model" else description.description_path(path)
        write_json(where, found.to_json())
    return Exported(path, found)


def check_file(
    path: str | Path, model: keras.Model, *, images: Sequence[np.ndarray] = (), tolerance: Tolerance | None = None
) -> Parity:
    """Compares a file that is there with the network that it is said to be.

    Args:
        path: What `export_model` wrote; a file without a description is taken for what its shapes say, in float32.
        model: The network.
        images: Photographs, `(H, W, C)` of the file's size, 0–255.
        tolerance: See `export_model`; by default, what the file had to pass when it was exported.
    Returns:
        The figures of the comparison.
    Raises:
        KerassegError: If the file is not the one that was described, or disagrees with Keras.
    """
    exported = open_file(path)
    target = target_of(exported)
    made = plan(model, target)
    if input_shape(made)[-1] != exported.input_shape[-1]:
        raise KerassegError(
            f"'{path}' takes images of {exported.input_shape[-1]} channels, {model.name} of {input_shape(made)[-1]}: it is another "
            "network's file"
        )
    return _passed(exported, made, images, tolerance or tolerance_of(exported), written=True)


def target_of(exported: ExportedNetwork) -> Target:
    """Finds out as what a file was exported.

    Args:
        exported: The file; of one without a description, what its shapes and names say.
    """
    batch, *size, _ = exported.input_shape
    known = exported.description
    if known is None:
        result = next((name for name in ("probabilities", "labels") if name in exported.output_names), "logits")
        quantize = "int8" if exported.format == "tflite" and exported.input_dtype != np.float32 else "none"
        return Target(exported.format, quantize, None if None in size else tuple(size), batch, result, select_tf_ops=False)
    output = next(iter(known.outputs.values()))
    return Target(
        known.format,
        known.quantization if known.quantization in QUANTIZATIONS else "none",
        None if None in size else tuple(size),
        batch,
        output.get("asked", output["meaning"]),
        output.get("head"),
    )


def tolerance_of(exported: ExportedNetwork) -> Tolerance:
    """Finds out what a file had to pass.

    Args:
        exported: The file; of one without a description, what is usual for its quantization.
    """
    if exported.description is None:
        return TOLERANCES[target_of(exported).quantize]
    return Tolerance(*(exported.description.tolerance.get(name) for name in Tolerance._fields))


def _check_path(path: Path, target: Target) -> None:
    suffix = SUFFIXES[target.format]
    if suffix and path.suffix != suffix:
        raise KerassegError(f"received '{path}', expected a file name that ends in {suffix}")
    if not suffix and path.suffix in SUFFIXES.values() and path.suffix:
        raise KerassegError(f"received '{path}', expected the name of a directory, such as '{path.with_suffix('')}'")
    inside = {each.name for each in path.iterdir()} if not suffix and path.is_dir() else set()
    if inside and ("saved_model.pb" not in inside or inside - _INSIDE):
        raise KerassegError(f"'{path}' is a folder with something else in it: name another, such as '{path / 'saved_model'}'")
    beside = description.description_path(path)
    if suffix and beside.is_file():
        _check_beside(beside, path)


def _check_beside(beside: Path, path: Path) -> None:
    """Refuses to overwrite a JSON file that is not this file's own."""
    try:
        values = json.loads(beside.read_text())
    except ValueError:
        # Beside a file of that name, or empty, it is what is left of a description.
        values = {"file": path.name} if path.exists() or not beside.stat().st_size else None
    described = values.get("file") if isinstance(values, dict) else None
    if not isinstance(described, str):
        raise KerassegError(f"'{beside}' is there and describes no exported file: name another file, its JSON would overwrite it")
    if described != path.name and (beside.parent / described).exists():
        raise KerassegError(f"'{beside}' describes {described}: name another file, or put it into another folder")


@contextmanager
def _room(path: Path, target: Target):
    """Where to write, until it is what it should be; what a killed process left there before is removed."""
    suffix = SUFFIXES[target.format]
    sweep(path.parent, suffix or DIRECTORY_SUFFIX)
    with (atomic_path if suffix else atomic_directory)(path) as temporary:
        yield temporary


def _write(made: Plan, path: Path, calibration, target: Target) -> Sequence[str]:
    """Converts, and gives what int8 left in float."""
    if target.format == "saved_model":
        write_plan(made, path)
        return ()
    function = trace_plan(made)
    try:
        with without_notices():
            content, kept_float = _converted(function, calibration, target)
    except KerassegError as error:
        raise KerassegError(_explained(error, function, made)) from error
    path.write_bytes(content)
    return kept_float


def _converted(function, calibration, target: Target) -> tuple[bytes, Sequence[str]]:
    if target.format == "onnx":
        from kerasseg.export.onnx import convert_onnx

        return convert_onnx(function), ()
    from kerasseg.export.tflite import convert_tflite

    return convert_tflite(function, quantize=target.quantize, calibration=calibration, select_tf_ops=target.select_tf_ops)


def _explained(error: KerassegError, function, made: Plan) -> str:
    """A converter's complaint, with the layer whose operation it does not know, if it names one."""
    text = f"{error.__cause__ or ''} {error}"
    missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", text)))
    if not missing:
        return str(error) if made.model.name in str(error) else f"{made.model.name}: {error}"
    layers = {layer.name: type(layer).__name__ for layer in made.model.layers}
    # Operations are named after the layers that made them, with a number behind.
    nodes = [node.name for node in function.graph.as_graph_def().node if node.op in missing]
    users = [name for node in nodes for part in node.split("/") for name in (part, re.sub(r"_\d+$", "", part))]
    parts = [f"{name} ({layers[name]})" for name in dict.fromkeys(users) if name in layers]
    where = f", which {', '.join(parts)} {'uses' if len(parts) == 1 else 'use'}" if parts else ""
    # Some of them a device may be given (--select-tf-ops); no package for Python has them, so that no such file can be proved.
    advice = "leave it out, or use the format onnx or saved_model (--format saved_model)"
    return f"{made.model.name} cannot be converted: TFLite has no operation {', '.join(missing)}{where}; {advice}"


def _opened(temporary: Path, path: Path) -> ExportedNetwork:
    """Opens what was written, which is where operations show that nothing here can run: what cannot be compared is not left."""
    try:
        return open_file(temporary, check=False)
    except KerassegError as error:
        reason = str(error).replace(str(temporary), path.name)
        raise KerassegError(f"what was converted cannot be run, and so not be compared with Keras: {reason}") from error


def _passed(exported: ExportedNetwork, made: Plan, images, tolerance: Tolerance, *, written: bool = False) -> Parity:
    """The gate."""
    parity = measure_parity(exported.run, made, images)
    if complaint := tolerance.complaint(parity):
        end = f"'{exported.path}' is not what Keras computes" if written else "no file was written"
        raise KerassegError(f"the {TITLES[made.target.format]} disagrees with Keras: {complaint}; {end}")
    return parity
