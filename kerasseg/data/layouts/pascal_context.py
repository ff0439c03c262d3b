"""PASCAL-Context: VOC 2010's photographs with every pixel labelled, reduced to the 59 classes that are scored."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import find_year, read_ids, read_mat
from kerasseg.data.layouts.shared import below, check_split, first_folder
from kerasseg.data.layouts.values import label_from_values
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LABELS, LabelTable
from kerasseg.tables import did_you_mean

_LAYOUT = "trainval/*.mat and labels.txt of PASCAL-Context, and VOC2010 in or beside it"
_PNG, _PNG_LISTS = "SegmentationClassContext", "SegmentationContext"
_FOLDERS = ("pascal-context", "PASCAL-Context", "pascal_context", "PascalContext", "context", "Context")
# How the three classes are called in the full list whose names in the list of the 59 are others.
_RAW_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
# As the FCN authors' layer has it; RGB.
_MEAN = (122.679, 116.669, 104.007)


class PascalContext(FileDataSet):
    """PASCAL-Context with 59 classes and background: 4,998 and 5,105 images.

    Background is everything that is none of the 59, of 459 raw labels; the papers train and score it as a class.

    Args:
        data_dir: A folder with `trainval/<id>.mat` and `labels.txt`, and with VOC 2010 (`VOC2010`, `VOCdevkit/VOC2010`) in it or
            beside it; or VOC 2010 with that folder in it. `VOC2010/SegmentationClassContext/*.png`, the 60 labels in the order of
            the raw ones, as MMSegmentation converts them, with their lists in `ImageSets/SegmentationContext`, is read, too.
        split: `"train"`, `"val"` or `"trainval"` of VOC 2010's `ImageSets/Main`.
        background: `"evaluate"` for 60 classes; `"ignore"` for 59, pixels of none of them being 255.
        voc_dir: Where VOC 2010 is, if elsewhere.
    Raises:
        KerassegError: If a folder is missing or laid out otherwise, or there is no such split.
    Reference:
        Mottaghi et al. 2014, "The role of context for object detection and semantic segmentation in the wild", CVPR.
    Example:
        >>> PascalContext("pascal-context", "val", voc_dir="VOCdevkit").num_classes  # doctest: +SKIP
        60
    """

    splits = ("train", "val", "trainval")
    places = ("voc_dir",)

    def __init__(self, data_dir=None, split: str = "train", background: str = "evaluate", voc_dir: str | os.PathLike | None = None):
        root = check_folder(data_dir, "pascal_context", _LAYOUT)
        check_split("pascal_context", split, self.splits)
        labels = context_table(background)
        home = find_voc2010(root, voc_dir, "pascal_context")
        context = first_folder(_places(root, home), "trainval")
        if context is not None:
            ids, masks, suffix = read_ids(home / "ImageSets" / "Main" / f"{split}.txt"), context / "trainval", ".mat"
            self._raw = _raw_values(context / "labels.txt", labels)
        elif (home / _PNG).is_dir():
            # Of both together there is no list.
            parts = ("train", "val") if split == "trainval" else (split,)
            ids = [name for part in parts for name in read_ids(home / "ImageSets" / _PNG_LISTS / f"{part}.txt")]
            masks, suffix = home / _PNG, ".png"
            labels = dataclasses.replace(labels, file_to_label=_png_values(background))
        else:
            raise KerassegError(f"'{root}' does not hold data set 'pascal_context': expected {_LAYOUT}")
        images = home / "JPEGImages"
        super().__init__(labels, (Record(name, images / f"{name}.jpg", masks / f"{name}{suffix}") for name in ids), _MEAN)

    def read_mask(self, path: Path) -> np.ndarray:
        """Reads the labels of a .mat file, by name, or of a PNG: `(H, W)`, int32, 255 = ignore."""
        if path.suffix != ".mat":
            return super().read_mask(path)
        table = dataclasses.replace(self.labels, file_to_label=dict(enumerate(self._raw)))
        return label_from_values(read_mat(path, "LabelMap", np.asarray), path, table)


def context_table(background: str = "evaluate") -> LabelTable:
    """Gives the label table.

    Args:
        background: `"evaluate"`: with background as class 0; `"ignore"`: without it.
    Returns:
        The table of 60 or 59 classes, each in the same colour.
    Raises:
        KerassegError: If it is neither.
    """
    full = LABELS["pascal_context"]
    if background == "evaluate":
        return full
    if background != "ignore":
        raise KerassegError(
            f"data set 'pascal_context' received background='{background}': {did_you_mean(str(background), ('evaluate', 'ignore'))}"
        )
    unscored = (full.palette[0], *full.ignore_colors)
    return dataclasses.replace(full, classes=full.classes[1:], palette=full.palette[1:], ignore_colors=unscored)


def find_voc2010(root: Path, voc_dir, name: str, years: Sequence[int] = (2010,)) -> Path:
    """Finds VOC 2010, which annotations of others come without.

    Args:
        root: The folder of the data set, in which or beside which it may be.
        voc_dir: Where it is; `None` is there.
        name: Of the data set, for messages.
        years: Which do, the first that is found; later ones have its photographs, too.
    Returns:
        The folder with `JPEGImages/`.
    Raises:
        KerassegError: If it is not there.
    """
    places = (root, root.parent, root.parent.parent) if voc_dir is None else (check_folder(voc_dir, "voc", "VOC2010"),)
    found = next(filter(None, (find_year(place, (year,)) for year in years for place in places)), None)
    if found is None:
        raise KerassegError(
            f"data set '{name}' needs VOC 2010, which is not in {places[0]}{'' if voc_dir else ' or beside it'}: expected "
            f"VOC2010 or VOCdevkit/VOC2010 with JPEGImages/ and ImageSets/Main/; open_data('{name}', '{root}', voc_dir=FOLDER) "
            "or --data-arguments voc_dir=FOLDER"
        )
    return found


def _places(root: Path, home: Path) -> list[Path]:
    """Where the labels may be: beside `labels.txt`, since other data sets, too, unpack to `trainval`."""
    paths = [(), *((name,) for name in _FOLDERS)]
    places = [place for base in (root, home, home.parent, home.parent.parent) for place in below(base, *paths)]
    return [place for place in places if (place / "labels.txt").is_file()]


def _raw_names(labels: LabelTable) -> list[str]:
    return [_RAW_NAMES.get(name, name) for name in labels.classes]


def _png_values(background: str) -> dict[int, int]:
    # The raw labels are in the order of the alphabet, and so are those of the files.
    order = sorted(_raw_names(context_table("ignore")))
    raw = _raw_names(context_table(background))
    return {0: 0 if background == "evaluate" else IGNORE, **{value: raw.index(name) for value, name in enumerate(order, 1)}}


def _raw_values(path: Path, labels: LabelTable) -> tuple[int, ...]:
    """The label of each raw one, from 0 on."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KerassegError(f"cannot read {path} ({error}): expected the raw labels, one `number: name` a line") from error
    entries = [re.fullmatch(r"\s*(\d{1,4})\s*:\s*(.*?)\s*", line) for line in lines]
    # Names that are two words in one list are one in another.
    numbers = {entry[2].replace(" ", ""): int(entry[1]) for entry in entries if entry}
    scored = {number: name for number, name in enumerate(_raw_names(labels)) if name != "background"}
    lost = [name for name in scored.values() if name not in numbers]
    if lost:
        raise KerassegError(
            f"{path} lacks {len(lost)} of the 59 classes, first '{lost[0]}': expected the full list of PASCAL-Context, 459 lines "
            "`number: name`; download labels.txt again"
        )
    rest = 0 if labels.classes[0] == "background" else IGNORE
    meaning = {numbers[name]: number for number, name in scored.items()}
    return tuple(meaning.get(number, rest) for number in range(max(numbers.values()) + 1))
