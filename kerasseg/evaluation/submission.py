"""Label maps as the servers of the benchmarks want them."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, LabelTable, voc_palette
from kerasseg.runs import atomic_path
from kerasseg.tables import did_you_mean

# city, sequence and frame, as in berlin_000000_000019_leftImg8bit.png.
_CITYSCAPES_NAME = re.compile(r"([A-Za-z-]+_\d{6}_\d{6})(_|$)")


@dataclasses.dataclass(frozen=True)
class Submission:
    """How one benchmark wants its results.

    Args:
        table: Key of `kerasseg.labels.LABELS`: its classes, in its order, are what the network must have.
        folder: Where the files lie within what is sent.
        name: From a photograph's name to its file's, without `.png`.
        palette: Colours of the file, RGB, 0–255; `None`: it is grey.
        reference: Where that is said.
    """

    table: str
    folder: str
    name: Callable[[str], str]
    palette: tuple | None
    reference: str


def _plain_name(name: str) -> str:
    return name


def _cityscapes_name(name: str) -> str:
    found = _CITYSCAPES_NAME.match(name)
    if not found:
        raise KerassegError(
            f"photograph '{name}': the Cityscapes server goes by city, sequence and frame, expected a name such as "
            "berlin_000000_000019_leftImg8bit.png"
        )
    return f"{found[1]}_labelIds"


def _voc(competition: str) -> Submission:
    return Submission(
        "voc",
        f"results/VOC2012/Segmentation/{competition}_test_cls",
        _plain_name,
        voc_palette(256),
        "VOC2012 development kit, §5.3",
    )


SUBMISSIONS: dict[str, Submission] = {
    "voc": _voc("comp5"),
    "voc_comp6": _voc("comp6"),
    "cityscapes": Submission("cityscapes", "", _cityscapes_name, None, "cityscapesScripts, evalPixelLevelSemanticLabeling.py"),
    "ade20k": Submission("ade20k", "", _plain_name, None, "CSAILVision/sceneparsing, README.md"),
}
"""Benchmark → how it wants its results. `voc`: trained on VOC's own train and val alone; `voc_comp6`: on any other data as well."""


def find_submission(name: str) -> Submission:
    """Finds a benchmark.

    Args:
        name: Key of `SUBMISSIONS`.
    Raises:
        KerassegError: If there is none of that name.
    """
    if name not in SUBMISSIONS:
        raise KerassegError(f"--submission {name}: {did_you_mean(name, SUBMISSIONS)}")
    return SUBMISSIONS[name]


def check_submission(name: str, labels: LabelTable, photographs: Sequence[str]) -> None:
    """Refuses, before anything is run, what a server would not take.

    Args:
        name: Key of `SUBMISSIONS`.
        labels: The network's classes; a table without names (`folder`, `class 0`, …) counts as the benchmark's if it is as long.
        photographs: The photographs' names, without folder and suffix.
    Raises:
        KerassegError: If the classes are not the benchmark's, or photographs are not named as its.
    """
    wanted = LABELS[find_submission(name).table]
    if labels.num_classes != wanted.num_classes:
        raise KerassegError(
            f"--submission {name} is of {wanted.num_classes} classes, the network has {labels.num_classes}: expected one trained "
            f"on data set '{wanted.name}'"
        )
    unnamed = all(each == f"class {index}" for index, each in enumerate(labels.classes))
    if not unnamed and labels.classes != wanted.classes:
        one, other = next(pair for pair in zip(labels.classes, wanted.classes, strict=True) if pair[0] != pair[1])
        raise KerassegError(
            f"--submission {name}: the network's class '{one}' stands where '{wanted.name}' has '{other}'; expected the classes of "
            f"'{wanted.name}' in their order"
        )
    owners = {}
    for photograph in photographs:
        written = find_submission(name).name(photograph)
        if owners.setdefault(written, photograph) != photograph:
            raise KerassegError(f"photographs '{owners[written]}' and '{photograph}' would both be sent as {written}.png")


def submission_path(out, name: str, photograph: str) -> Path:
    """Gives the path of the file that a benchmark's server is sent of a photograph.

    Args:
        out: As for `write_submission`.
        name: As for `write_submission`.
        photograph: As for `write_submission`.
    Raises:
        KerassegError: If the photograph is not named as the benchmark's.
    """
    submission = find_submission(name)
    return Path(out) / submission.folder / f"{submission.name(photograph)}.png"


def write_submission(out, name: str, photograph: str, label: np.ndarray) -> Path:
    """Writes one label map as the server wants it.

    Args:
        out: Folder of what is sent; VOC's lie in `results/VOC2012/…` within.
        name: Key of `SUBMISSIONS`.
        photograph: The photograph's name, without folder and suffix.
        label: Shape `(H, W)`, integer, at the photograph's own size, 0 to classes − 1.
    Returns:
        The file: an 8-bit PNG of the benchmark's own numbers: VOC's 0–20 with its palette, Cityscapes' ids 7–33, ADE20K's 1–150.
    Raises:
        KerassegError: If there is a label that the benchmark has not, or the photograph is not named as its.
    """
    submission = find_submission(name)
    table = LABELS[submission.table]
    label = np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in "iu" or label.min() < 0 or label.max() >= table.num_classes:
        raise KerassegError(
            f"label map of '{photograph}' has shape {label.shape}, {label.dtype}, values {label.min()} to {label.max()}: expected "
            f"(H, W), integers 0 to {table.num_classes - 1}"
        )
    path = submission_path(out, name, photograph)
    picture = PIL.Image.fromarray(_file_values(table)[label])
    if submission.palette:
        picture.putpalette([channel for color in submission.palette for channel in color])
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def _file_values(table: LabelTable) -> np.ndarray:
    """The number that stands in the benchmark's files for each label."""
    values = {label: value for value, label in table.file_to_label.items()}
    return np.array([values.get(label, label) for label in range(table.num_classes)], np.uint8)
