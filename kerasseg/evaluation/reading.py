"""Reports read back from their folders, as far as comparisons need them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.metrics import SCORES, class_counts

# Whatever a damaged file makes np.load raise.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def read_scores(path: Path) -> dict[str, Any]:
    """Reads `scores.json`.

    Args:
        path: The file.
    Returns:
        What it holds; all that comparisons show is there, or is one of the parts that a report may lack, and of its kind.
    Raises:
        KerassegError: If it is damaged, or from before reports could be compared.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise KerassegError(f"cannot read {path}: {error}; evaluate again") from error
    if not isinstance(found, dict):
        found = {}
    # Written before classes could be left out.
    found.setdefault("excluded", [])
    wrong = [name for name, fits in _PARTS.items() if name not in found or not fits(found[name])]
    wrong += [name for name, fits in _PARTS_AT_WILL.items() if name in found and not fits(found[name])]
    wrong += [] if wrong else _other_classes(found)
    if wrong:
        raise KerassegError(f"{path} is not what evaluate.py writes ({', '.join(wrong)}): evaluate again")
    return found


def read_counts(path: Path, found: dict[str, Any]) -> np.ndarray:
    """Reads `counts.npz`.

    Args:
        path: The file.
        found: What `scores.json` beside it holds.
    Returns:
        Counts of each image of `found`, `(N, 3, C)` int64.
    Raises:
        KerassegError: If it is damaged, or of another evaluation: one that was stopped between the two files.
    """
    try:
        with np.load(path) as file:
            ids, counts = file["ids"], file["counts"]
    except _DAMAGED as error:
        raise KerassegError(f"cannot read {path}: {type(error).__name__}: {error}; evaluate again") from error
    num_classes = len(found["classes"])
    if ids.ndim != 1 or counts.shape != (len(ids), 3, num_classes) or counts.dtype.kind not in "iu":
        raise KerassegError(f"{path} holds counts of shape {counts.shape}: expected ({len(ids)}, 3, {num_classes}); evaluate again")
    matrix = np.reshape(np.array(found["confusion_matrix"], np.int64), (num_classes, num_classes))
    same_images = [str(each) for each in ids] == [image["id"] for image in found["images"]]
    if not same_images or not np.array_equal(counts.sum(0), class_counts(matrix)):
        raise KerassegError(f"{path} is of another evaluation than scores.json beside it: evaluate again")
    return counts


def _other_classes(found: dict) -> list[str]:
    """Parts that are not of the classes that there are."""
    classes = len(found["classes"])
    parts = {name: found[name] for name in ("per_class_iou", "confusion_matrix")}
    parts |= {"palette": found["palette"]} if "palette" in found else {}
    parts |= {"intervals": found["intervals"]["per_class_iou"]} if "intervals" in found else {}
    wrong = [name for name, part in parts.items() if len(part) != classes]
    wrong += [] if set(found["excluded"]) <= set(found["classes"]) else ["excluded"]
    return wrong or ([] if all(len(row) == classes for row in found["confusion_matrix"]) else ["confusion_matrix"])


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value) -> bool:
    return isinstance(value, float) or _whole(value)


def _rate(value) -> bool:
    return value is None or _number(value)


def _text(value) -> bool:
    return isinstance(value, str)


def _ends(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_rate, value))


def _list(fits: Callable) -> Callable:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _or_none(fits: Callable) -> Callable:
    return lambda value: value is None or fits(value)


def _record(**parts: Callable) -> Callable:
    return lambda value: isinstance(value, dict) and all(name in value and fits(value[name]) for name, fits in parts.items())


_PARTS = {
    "classes": _list(_text),
    "excluded": _list(_text),
    "per_class_iou": _list(_rate),
    "images": _list(_record(id=_text)),
    **dict.fromkeys(SCORES, _rate),
    "data": _text,
    "num_images": _whole,
    "confusion_matrix": _list(_list(_whole)),
}
_PARTS_AT_WILL = {
    "split": _or_none(_text),
    "inference": _or_none(_record(scales=_list(_number))),
    "palette": _list(_list(_whole)),
    "intervals": _record(
        level=_number, replicates=_whole, per_class_iou=_list(_or_none(_ends)), **dict.fromkeys(SCORES, _or_none(_ends))
    ),
    "trimap": _record(bands=_list(_record(width=_number, mean_iou=_rate, pixel_accuracy=_rate))),
    "calibration": _record(
        error=_rate, bins=_list(_record(low=_number, high=_number, num_pixels=_whole, accuracy=_rate, confidence=_rate))
    ),
    "boundary_f": _record(mean=_rate),
    "timing": _record(images_per_second=_rate),
}
