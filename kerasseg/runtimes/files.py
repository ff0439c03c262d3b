"""What every exported file offers, whatever its format."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasseg.errors import KerassegError, first_line

SUFFIXES = {".tflite": "tflite", ".onnx": "onnx"}
"""Ending of a file → its format; a SavedModel is a folder."""

# Pixels of the image as the network takes it.
_RANGE = (0, 255)
LABEL_RESULTS = ("labels", "nearest_labels", "coarse_labels")
"""Meanings (in a description) of outputs that are numbers of classes."""


class Slot(NamedTuple):
    """An input or output of a file.

    Args:
        name: What the file calls it.
        shape: `None` where any size goes.
        dtype: Of NumPy.
        scale: Of a quantised one, the value that is scale · (integer − zero); 0 of one that is not quantised.
        zero: See there.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    scale: float = 0.0
    zero: int = 0

    def quantised(self, values: np.ndarray) -> np.ndarray:
        """Brings values into the slot's own type; between two integers the nearer one counts, beyond its range the last."""
        if self.scale:
            values = np.round(values / np.float32(self.scale)) + self.zero
        elif self.dtype.kind in "iu":
            values = np.round(values)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            values = np.clip(values, limits.min, limits.max)
        return np.ascontiguousarray(values, self.dtype)

    def value(self, stored: np.ndarray) -> np.ndarray:
        """The opposite: float32 of a quantised slot, else what is stored; half precision is widened."""
        if self.scale:
            return (stored.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)
        return stored.astype(np.float32) if stored.dtype.kind == "f" else stored


class ExportedNetwork:
    """A file that was exported, ready to run.

    Made by `open_file`. Preprocessing is inside the file: it takes images as cameras give them.

    Attributes:
        path: The file, or the folder of a SavedModel.
        format: `"tflite"`, `"onnx"` or `"saved_model"`.
        input_shape: `(B, H, W, C)`; `None` where any size goes.
        input_dtype: What the file itself takes; `run` takes floats whatever it is.
        description: What `model.json` beside the file says of it; `None` if there is none.
        output_names: What `run` gives.
    """

    format: str

    def __init__(self, path: Path, given: Slot, results: Mapping[str, Slot], description=None):
        self.path, self.description = path, description
        if description is not None and results.keys() == description.outputs.keys():
            # In the network's own order, of which the first counts; files have their names sorted.
            results = {name: results[name] for name in description.outputs}
        self._given, self._results, self._lock = given, dict(results), threading.Lock()
        self.input_shape, self.input_dtype = given.shape, given.dtype
        self.output_names = tuple(self._results)

    def run(self, images) -> dict[str, np.ndarray]:
        """Runs the network.

        Args:
            images: Shape `(N, H, W, C)`, RGB 0–255, float or integer. Any N: a file of a fixed batch is run as often as that takes,
                the last batch filled up. Height and width as `input_shape` says.
        Returns:
            Output name → array of N maps: float32 of logits and probabilities, also where the file is quantised; integers of
            labels.
        Raises:
            KerassegError: If the images have another shape, or the file cannot be run on them.
        """
        images = self._checked(np.asarray(images))
        total, batch = len(images), self.input_shape[0] or len(images)
        parts = []
        for first in range(0, total, batch):
            part = images[first : first + batch]
            missing = batch - len(part)
            # Images do not see each other in a network that is not being trained.
            part = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
            with self._lock:
                # The runtimes of some formats take one call at a time.
                found = self._invoke(self._given.quantised(part))
            parts.append({name: self._value(name, found[name])[: batch - missing] for name in self.output_names})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.output_names}

    def operations(self) -> dict[str, int]:
        """Counts the file's operations by their names, the most frequent first."""
        counts = {}
        for name in self._operations():
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def meaning(self, name: str | None = None) -> str:
        """Says what an output holds, one of `kerasseg.export.RESULTS`.

        Args:
            name: The output; `None`: the first.
        Returns:
            What the description says; without one labels if they are integers of three dimensions, else logits.
        """
        name = self.output_names[0] if name is None else name
        if self.description is not None and name in self.description.outputs:
            return self.description.outputs[name].get("meaning", "logits")
        slot = self._results[name]
        return "labels" if slot.dtype.kind in "iu" and not slot.scale and len(slot.shape) == 3 else "logits"

    def output_shape(self, name: str | None = None) -> tuple[int | None, ...]:
        """Gives the shape of an output, by default the first; `None` where it follows the image or is not known."""
        return self._results[self.output_names[0] if name is None else name].shape

    def _checked(self, images: np.ndarray) -> np.ndarray:
        wanted = self.input_shape[1:]
        fits = images.ndim == 4 and all(own in (None, side) for own, side in zip(wanted, images.shape[1:], strict=True))
        if not fits or not images.size or images.dtype.kind not in "fiu":
            shown = ", ".join("any" if side is None else str(side) for side in wanted)
            raise KerassegError(f"{self.path.name} takes images of shape (N, {shown}), received {images.shape} of {images.dtype}")
        return images.astype(np.float32, copy=False)

    def _value(self, name: str, stored: np.ndarray) -> np.ndarray:
        value = self._results[name].value(stored)
        return np.round(value).astype(np.int32) if value.dtype.kind == "f" and self.meaning(name) in LABEL_RESULTS else value

    def _invoke(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file on images of its own type."""
        raise NotImplementedError

    def _operations(self) -> list[str]:
        raise NotImplementedError


def is_exported(path: str | Path) -> bool:
    """Says whether a path is one that `open_file` is for, by its name or by what the folder holds."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES or (path / "saved_model.pb").is_file()


def open_file(path: str | Path, *, threads: int | None = None, check: bool = True) -> ExportedNetwork:
    """Opens an exported file for running.

    A `.tflite` file needs ai-edge-litert, an `.onnx` file onnxruntime, a SavedModel TensorFlow. A `.tflite` file with operations of
    TensorFlow's own (`select_tf_ops`) can be run on devices only: no package for Python has them since TensorFlow 2.20.

    Args:
        path: `.tflite`, `.onnx`, or the folder of a SavedModel.
        threads: How many to compute with; `None`: as many as there are cores that this process may use. TensorFlow keeps
            its own number, for a SavedModel.
        check: Whether to compare the file with the SHA-256 in the description beside it, if there is one; else whether it takes
            pixels, as far as it says so.
    Returns:
        The network.
    Raises:
        KerassegError: If there is no such file, it is none of these, damaged, or not the one that was described, if it takes
            anything but one image of pixels or holds operations that cannot be run here, or a package is missing.
    Example:
        >>> network = open_file("model.tflite")
        >>> network.run(photograph[None])["logits"].argmax(-1)
    """
    path, threads = Path(path), default_threads() if threads is None else threads
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise KerassegError(f"threads {threads!r}: expected a whole number of at least 1, or None for all cores")
    if not path.exists():
        raise KerassegError(f"no exported file at '{path}': expected a .tflite or .onnx file, or the folder of a SavedModel")
    if not is_exported(path) or (path.suffix.lower() in SUFFIXES and not path.is_file()):
        raise KerassegError(f"'{path}' is no exported file: expected a .tflite or .onnx file, or a folder with saved_model.pb")
    network = _opened(path, _described(path, check), threads)
    _, height, _, channels = network.input_shape
    # Of a file of ours, it is known; of any other, a height of 1 or 3 will be channels that come first.
    if check and network.description is None and height in (1, 3) and channels not in (1, 3):
        raise _no_images(path, network.input_shape)
    if check and network.description is None:
        _check_pixels(path, network._given)
    return network


def _check_pixels(path: Path, given: Slot) -> None:
    """Refuses a quantised file of unknown origin that was calibrated on something else than pixels, all of which it would clip."""
    if not given.scale:
        return
    limits = np.iinfo(given.dtype)
    low, high = ((limit - given.zero) * given.scale for limit in (limits.min, limits.max))
    # Ranges as calibration finds them may end a little inside.
    if low > 1 or high < 254:
        raise KerassegError(
            f"'{path}' takes values of {low:g} to {high:g}, not pixels of 0 to 255: expected a file with its preprocessing inside, "
            "as tools/export.py writes it"
        )


def _opened(path: Path, description, threads: int) -> ExportedNetwork:
    if path.is_dir():
        from kerasseg.runtimes.saved_model import open_saved_model

        return open_saved_model(path, description)
    if not path.stat().st_size:
        raise KerassegError(f"'{path}' is empty: export it again")
    if path.suffix.lower() == ".onnx":
        from kerasseg.runtimes.onnx import open_onnx

        return open_onnx(path, description, threads)
    from kerasseg.runtimes.litert import open_litert

    return open_litert(path, description, threads)


def default_threads() -> int:
    """Counts the cores that this process may use."""
    # Not known on every system; containers hold it below the machine's number.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_slot(path: Path, slots: list[Slot]) -> Slot:
    """Finds the one input, an image with its channels last.

    Raises:
        KerassegError: If the file takes something else.
    """
    if len(slots) != 1:
        raise KerassegError(f"'{path}' has {len(slots)} inputs ({', '.join(slot.name for slot in slots)}): expected one, an image")
    shape = slots[0].shape
    if len(shape) != 4 or shape[3] is None:
        raise _no_images(path, shape)
    if slots[0].dtype.kind not in "fiu":
        raise KerassegError(f"'{path}' takes input of type {slots[0].dtype}: expected numbers")
    return slots[0]


def _no_images(path: Path, shape) -> KerassegError:
    return KerassegError(f"'{path}' takes input of shape {shape}: expected images (batch, height, width, channels)")


def damaged(path: Path, kind: str, error: Exception) -> KerassegError:
    """Says that a file is not what its name says."""
    with path.open("rb") as file:
        start = file.read(4)
    what = "it is a .keras file or another zip archive" if start == b"PK\x03\x04" else first_line(error)
    return KerassegError(f"'{path}' is no {kind} file, or a damaged one ({what}): export it again with tools/export.py")


def _described(path: Path, check: bool):
    from kerasseg.runtimes import description

    found = description.read(path)
    format = SUFFIXES.get(path.suffix.lower(), "saved_model")
    if found is not None and found.format != format:
        beside = description.description_path(path).name
        shown = description.TITLES.get(found.format, found.format)
        raise KerassegError(f"'{path}' is a {description.TITLES[format]}, {beside} describes another, {shown}: export it again")
    if found is not None and check:
        found.check(path)
    return found
