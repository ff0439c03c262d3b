"""What a network gives for the images of a search, stored once, and scored behind one CRF after another."""

import dataclasses
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kerasseg.crf import Parameters
from kerasseg.errors import KerassegError
from kerasseg.evaluation.crf import marginals
from kerasseg.evaluation.exported import exported_network
from kerasseg.evaluation.inference import Inference, logits_for_crf
from kerasseg.metrics import confusion_matrix, scores
from kerasseg.runs import atomic_path, write_json
from kerasseg.runs.files import sweep
from kerasseg.runtimes.description import digest


def draw_images(total: int, count: int, seed: int) -> list[int]:
    """Draws the images of a search.

    Args:
        total: Images of the data set.
        count: How many to draw; all, where there are fewer.
        seed: What decides which.
    Returns:
        Indices, ascending.
    """
    return sorted(np.random.default_rng(seed).choice(total, min(count, total), replace=False).tolist())


def store_logits(model, data, indices: Sequence[int], inference: Inference, folder, about: Mapping, progress=None) -> list[Path]:
    """Runs the network on the images of a search, and stores what a CRF needs of each; what is stored already is kept.

    Args:
        model: As for `kerasseg.evaluation.predict`.
        data: Data set with labels.
        indices: Which of its images.
        inference: How to run the network; its CRF is not.
        folder: Where to; `settings.json` in it says what for.
        about: What else decides the scores (data, split), plain values for JSON; other settings need another folder.
        progress: Called with (images done, images in all).
    Returns:
        The files, each with `image`, `label` and `logits`.
    Raises:
        KerassegError: If the folder is that of another search, an image has no label, or the network not the data set's classes.
    """
    folder = Path(folder)
    plain = dataclasses.replace(inference, crf=None)
    settings = {**about, "weights": _checksum(model), "images": list(indices), "inference": plain.to_json()}
    _claim(folder, settings)
    files = []
    for done, index in enumerate(indices, start=1):
        files.append(folder / "logits" / f"{index:06d}.npz")
        if not files[-1].is_file() or not zipfile.is_zipfile(files[-1]):
            _store(model, data[index], data.labels, plain, files[-1])
        if progress:
            progress(done, len(indices))
    return files


def _store(model, example, labels, inference, path: Path) -> None:
    if example.label is None:
        raise KerassegError(f"image '{example.id}' has no label: search on a split whose labels are public")
    logits = logits_for_crf(model, example.image, inference, example.id)
    if logits.shape[-1] != labels.num_classes:
        raise KerassegError(
            f"the network has {logits.shape[-1]} classes, data set '{labels.name}' has {labels.num_classes}: expected as many; "
            "search on the data it was trained for"
        )
    with atomic_path(path) as temporary:
        np.savez(temporary, image=np.asarray(example.image)[..., :3], label=example.label, logits=logits)


def _checksum(model) -> int:
    """Tells weights from others of the same network; those of an exported file are in the file."""
    exported = exported_network(model)
    if exported is not None:
        return zlib.crc32(digest(exported.path).encode())
    total = 0
    for weight in model.get_weights():
        total = zlib.crc32(np.ascontiguousarray(weight).tobytes(), total)
    return total


def check_weights(folder, model) -> None:
    """Refuses a network whose scores the search in a folder was not made with.

    Args:
        folder: That of the search.
        model: The network.
    Raises:
        KerassegError: If its weights are others, or the folder does not say which it was.
    """
    folder, weights = Path(folder), _checksum(model)
    _check_settings(folder, lambda before: [] if before.get("weights") == weights else ["weights"])


def _check_settings(folder: Path, differing: Callable[[Mapping], list[str]]) -> None:
    """Refuses a folder of which a function of its settings names some that differ."""
    try:
        other = differing(json.loads((folder / "settings.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        other = ["settings"]
    if other:
        raise KerassegError(
            f"{folder} holds a search with other {', '.join(other)}: name another folder (--out of tools/tune_crf.py), or remove "
            "this one"
        )


def _claim(folder: Path, settings: Mapping) -> None:
    """Makes the folder one of this search, unless it is that of another."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        _check_settings(folder, lambda old: sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key)))
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / "logits"):
        sweep(each)
    write_json(path, settings)


@dataclasses.dataclass(frozen=True)
class Tried:
    """What one set of parameters gives.

    Args:
        parameters: The set; `None`: no CRF.
        mean_iou: Over all images of the search, 0–1.
        pixel_accuracy: Likewise.
    """

    parameters: Parameters | None
    mean_iou: float
    pixel_accuracy: float


def score_parameters(files: Iterable[Path], num_classes: int, parameters: Parameters | None) -> Tried:
    """Scores one set of parameters on stored images.

    Args:
        files: What `store_logits` gave.
        num_classes: C.
        parameters: The set; `None`: no CRF.
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for file in files:
        with np.load(file) as stored:
            image, label, logits = (stored[name] for name in ("image", "label", "logits"))
        refined = logits if parameters is None else marginals(image, logits, parameters)
        matrix += confusion_matrix(label, refined.argmax(-1), num_classes)
    found = scores(matrix)
    if math.isnan(found["mean_iou"]):
        raise KerassegError("no image of the search has a labelled pixel: draw more of them (--images), or others (--seed)")
    return Tried(parameters, found["mean_iou"], found["pixel_accuracy"])
