"""Cityscapes: streets of fifty cities, nineteen classes; fine labels of 5,000 images and coarse ones of 20,000 more."""

from pathlib import Path

import numpy as np

from kerasseg.data.layouts.cityscapes_labels import read_label_file
from kerasseg.data.layouts.shared import check_split, files_in, find_root
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_IMAGES, _KINDS = "leftImg8bit", {"fine": "gtFine", "coarse": "gtCoarse"}
_PHOTO = "_leftImg8bit.png"
# Split → its folders, each with the labels that it is read with; `None`: those that are asked for.
_PARTS = {
    "train": (("train", None),),
    "val": (("val", None),),
    "test": (("test", None),),
    "train_extra": (("train_extra", "coarse"),),
    "trainval": (("train", None), ("val", None)),
    "train_coarse": (("train", None), ("train_extra", "coarse")),
    "trainval_coarse": (("train", None), ("val", None), ("train_extra", "coarse")),
}
# How the files of one image's labels end, the first that is there being read.
_ENDINGS = ("labelIds.png", "labelTrainIds.png", "polygons.json")
_LAYOUT = f"{_IMAGES}/<split>/<city>/*{_PHOTO} and gtFine/<split>/<city>/*_gtFine_labelIds.png (or gtCoarse)"
# The mean that the Dilation network subtracts, there as BGR.
_MEAN = (73.16, 82.91, 72.39)


class Cityscapes(FileDataSet):
    """Cityscapes with its nineteen train classes; all other ids are ignored.

    Of an image the ids (`*_labelIds.png`) are read, else the train ids (`*_labelTrainIds.png`), else the polygons
    (`*_polygons.json`) are drawn as `json2labelImg` draws them. Files whose values cannot be what their name says are refused:
    ids that are taken for train ids score 0.004.

    Args:
        data_dir: The folder with `leftImg8bit`, and `gtFine` or `gtCoarse`, or the one around it.
        split: `"train"` (2,975 images), `"val"` (500), `"test"` (1,525, whose labels are not public: none), `"trainval"`,
            `"train_extra"` (19,998, coarse), `"train_coarse"`, which is train and train_extra (22,973), or `"trainval_coarse"`.
        labels: `"fine"` or `"coarse"`: of train and val; train_extra has coarse ones only.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or an image lacks its labels.
    Reference:
        Cordts et al. 2016, arXiv:1604.01685; train ids of cityscapesScripts' `labels.py`.
    Example:
        >>> len(Cityscapes("data/cityscapes", "train_coarse"))  # doctest: +SKIP
        22973
    """

    splits = tuple(_PARTS)

    def __init__(self, data_dir=None, split: str = "train", labels: str = "fine"):
        folder = check_folder(data_dir, "cityscapes", _LAYOUT)
        check_split("cityscapes", split, self.splits)
        if labels not in _KINDS:
            raise KerassegError(f"data set 'cityscapes' received labels='{labels}': expected 'fine' or 'coarse'")
        root = find_root(folder, (_IMAGES,), ("cityscapes", "Cityscapes"))
        if root is None:
            raise KerassegError(f"'{data_dir}' does not hold data set 'cityscapes': expected {_LAYOUT}")
        records = (_records(root, part, None if part == "test" else kind or labels) for part, kind in _PARTS[split])
        super().__init__(LABELS["cityscapes"], sum(records, []), _MEAN)

    def read_mask(self, path: Path) -> np.ndarray:
        """Reads ids, train ids or polygons; see `FileDataSet`."""
        return read_label_file(path)

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what to keep of an example; see `FileDataSet`. Train ids are no files that the table reads as they are."""
        mask = self.records[index].mask
        if mask is None or mask.name.endswith(_ENDINGS[0]):
            return super().sources(index)
        return {"image": self.records[index].image, "mask": self.read_mask(mask)}


def _records(root: Path, part: str, labels: str | None) -> list[Record]:
    """The images of one folder with their labels, by city and name."""
    folder, kind = root / _IMAGES / part, labels and _KINDS[labels]
    if not folder.is_dir():
        raise KerassegError(f"there is no folder {folder}: expected {_LAYOUT}; unpack {_archive(part)} into {root}")
    records, alone = [], []
    for city in sorted(place for place in folder.iterdir() if place.is_dir()):
        truths = root / kind / part / city.name if kind else None
        there = {path.name for path in truths.iterdir()} if truths and truths.is_dir() else set()
        for photo in (path.name for path in files_in(city, (".png",)) if path.name.endswith(_PHOTO)):
            name = photo.removesuffix(_PHOTO)
            mask = next((mask for ending in _ENDINGS if (mask := f"{name}_{kind}_{ending}") in there), None)
            if kind and not mask:
                alone.append((city / photo, truths / f"{name}_{kind}_{_ENDINGS[0]}"))
            records.append(Record(name, city / photo, truths / mask if mask else None))
    if alone:
        photo, expected = alone[0]
        raise KerassegError(
            f"image {photo} has no labels ({len(alone)} of {len(records)} images have none): expected {expected}, or "
            f"{' or '.join('*_' + ending for ending in _ENDINGS[1:])} there; unpack {kind}'s archive into {root}"
        )
    if not records:
        raise KerassegError(f"{folder} holds no image: expected <city>/*{_PHOTO}; unpack {_archive(part)} into {root}")
    return records


def _archive(part: str) -> str:
    return "leftImg8bit_trainextra.zip" if part == "train_extra" else "leftImg8bit_trainvaltest.zip"
