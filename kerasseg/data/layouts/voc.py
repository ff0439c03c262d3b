"""PASCAL VOC 2011 and 2012, alone and augmented by SBD."""

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import find_year, read_ids
from kerasseg.data.layouts.sbd import LAYOUT as SBD_LAYOUT
from kerasseg.data.layouts.sbd import find_sbd, read_sbd_mask, sbd_ids, sbd_mask
from kerasseg.data.layouts.shared import check_split, files_in
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_LAYOUT = "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/"
_YEARS = (2012, 2011)
# For some the PNGs that people make of SBD do: all they need to know of SBD is which images it has beside VOC's.
_AUGMENTED = ("trainaug", "trainvalaug")
_OF_SBD = ("sbd_train", "sbd_and_train", "val_without_sbd")
# Images of VOC 2012's train and val, and of what they are augmented to.
_OFFICIAL, _AUGMENTED_TO = (1464, 1449), {"trainaug": 10582, "trainvalaug": 12031}


class Voc(FileDataSet):
    """PASCAL VOC's segmentation challenge: twenty classes and background, the border between objects to be ignored.

    | split | images | what |
    |---|---|---|
    | `train`, `val`, `trainval`, `test` | 1,464, 1,449, 2,913, 1,456 | VOC 2012's own; `test` comes without masks |
    | `trainaug`, `trainvalaug` | 10,582, 12,031 | VOC's train and all of SBD, less VOC's val, or with it |
    | `sbd_train` | 8,498 | SBD's train, with its masks only: what FCN trains on |
    | `seg11valid` | 736 | VOC 2011's val less SBD's train: what FCN is validated on |
    | `seg11train` | 1,112 | VOC 2011's train |
    | `sbd_and_train`, `val_without_sbd` | 11,685, 346 | VOC's train and all of SBD; VOC's val less SBD: CRF-RNN |

    Where both have labelled an image, VOC's mask is taken in VOC's own splits, `trainaug` and `trainvalaug`, in `sbd_and_train` for
    VOC's train; SBD's for the rest of that, and for all of `sbd_train`. SBD's have no pixels to ignore. Photographs are VOC's.

    Args:
        data_dir: The folder of the year, `VOCdevkit`, or the folder that it is in.
        split: One of the above. Lists `seg11train.txt`, `seg11valid.txt`, `trainaug.txt` and `trainvalaug.txt` in
            `ImageSets/Segmentation` go before what it says.
        year: 2011 or 2012; `None` is the newest that is there, and for `seg11train` 2011.
        sbd_dir: SBD, or, for `trainaug` and `trainvalaug`, a folder of its masks as PNG. By default `SegmentationClassAug/` in the
            year's folder, or SBD's own `benchmark_RELEASE/dataset` in it or in one of the two above it.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, SBD or a list is missing, masks of SBD as PNG are not all
            there, or there is no such split.
    Reference:
        Everingham et al. 2015, IJCV 111(1); Hariharan et al. 2011, ICCV. The splits: Shelhamer et al. 2017, arXiv:1605.06211, §4;
        Zheng et al. 2015, arXiv:1502.03240, §6.
    Example:
        >>> len(Voc("VOCdevkit", "trainaug"))  # doctest: +SKIP
        10582
    """

    splits = ("train", "val", "trainval", "test", *_AUGMENTED, *_OF_SBD, "seg11train", "seg11valid")
    places = ("sbd_dir",)
    photographs_of = "voc"

    def __init__(self, data_dir=None, split: str = "train", year: int | None = None, sbd_dir: str | os.PathLike | None = None):
        root = check_folder(data_dir, "voc", _LAYOUT)
        check_split("voc", split, self.splits)
        home = _home(root, split, year)
        if split in _AUGMENTED:
            masks = _augmented(home, split, *_find_sbd(root, home, split, sbd_dir))
        elif split in _OF_SBD:
            masks = _with_sbd(home, split, _find_sbd(root, home, split, sbd_dir)[1])
        else:
            names = _listed(home, split, year)
            masks = dict.fromkeys(names) if split == "test" else _own_masks(home, names)
        super().__init__(LABELS["voc"], (Record(name, home / "JPEGImages" / f"{name}.jpg", mask) for name, mask in masks.items()))

    def read_mask(self, path: Path) -> np.ndarray:
        """Reads a mask of VOC's, a PNG, or of SBD's, a .mat file: `(H, W)`, int32, 255 = ignore."""
        return read_sbd_mask(path, self.labels) if path.suffix == ".mat" else super().read_mask(path)


def _home(root: Path, split: str, year: int | None) -> Path:
    if year is not None and year not in _YEARS:
        raise KerassegError(f"data set 'voc' received year={year}: expected 2011 or 2012, or None for the newest that is there")
    years = _YEARS if year is None else (year,)
    # The year that this split is of, before the newest.
    home = (find_year(root, (2011,)) if split == "seg11train" and year is None else None) or find_year(root, years)
    if home is None:
        raise KerassegError(f"'{root}' does not hold VOC {' or '.join(map(str, years))} of data set 'voc': expected {_LAYOUT}")
    return home


def _listed(home: Path, split: str, year: int | None = None) -> list[str]:
    path = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    if split == "seg11valid" and not path.is_file():
        val = set(_listed(home, "val"))
        names = read_ids(resources.files("kerasseg.data.layouts") / "lists" / "seg11valid.txt")
        # All, unless somebody keeps a part of VOC.
        return [name for name in names if name in val]
    if split == "seg11train" and not path.is_file():
        if home.name != "VOC2011" and year != 2011:
            raise KerassegError(
                f"split 'seg11train' of data set 'voc' is VOC 2011's train, and {home} is not known to be of that year: put "
                f"VOC2011 beside it, or VOC 2011's ImageSets/Segmentation/train.txt at {path}"
            )
        return _listed(home, "train")
    return read_ids(path)


def _own_masks(home: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: home / "SegmentationClass" / f"{name}.png" for name in names}


def _find_sbd(root: Path, home: Path, split: str, sbd_dir) -> tuple[dict[str, Path], Path | None]:
    """SBD's masks as PNG by name, and SBD's own `dataset` folder; one of the two where the split can be made of either."""
    if sbd_dir is None:
        folder, around = home / "SegmentationClassAug", (home, home.parent, home.parent.parent, root)
    else:
        folder = check_folder(sbd_dir, "sbd", SBD_LAYOUT)
        around = (folder,)
    found = next(filter(None, map(find_sbd, around)), None)
    pngs = {path.stem: path for path in files_in(folder, (".png",))} if split in _AUGMENTED and folder.is_dir() else {}
    if found is None and not pngs:
        instead = f", or {home / 'SegmentationClassAug'} with its masks as PNG" if split in _AUGMENTED else ""
        raise KerassegError(
            f"split '{split}' of data set 'voc' needs SBD, which is not in {around[0]}{' or above it' if sbd_dir is None else ''}: "
            f"expected {SBD_LAYOUT}{instead}; open_data('voc', '{root}', '{split}', sbd_dir=FOLDER) or "
            "--data-arguments sbd_dir=FOLDER"
        )
    return pngs, found


def _augmented(home: Path, split: str, pngs: Mapping[str, Path], sbd: Path | None) -> dict[str, Path]:
    """Name → mask in `trainaug` or `trainvalaug`: VOC's own of its train, or train and val, else SBD's."""
    train, val = (_listed(home, part) for part in ("train", "val"))
    own = _own_masks(home, train if split == "trainaug" else train + val)
    path = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    if path.is_file():
        # Whatever it names; a mask that is missing is told when it is read.
        return {name: own.get(name) or _other_mask(name, pngs, sbd) for name in read_ids(path)}
    others = dict(pngs) if sbd is None else {name: sbd_mask(sbd, name) for name in sbd_ids(sbd, "trainval")}
    # Pictures are quicker to read, but only all of them are SBD.
    if others.keys() <= {*pngs, *train, *val}:
        others = {name: pngs.get(name, mask) for name, mask in others.items()}
    names = sorted(others.keys() - set(val) | own.keys())
    if sbd is None and (len(train), len(val)) == _OFFICIAL and len(names) != _AUGMENTED_TO[split]:
        raise KerassegError(
            f"split '{split}' of data set 'voc' has {len(names)} images by the {len(pngs)} masks in "
            f"{next(iter(pngs.values())).parent}: expected {_AUGMENTED_TO[split]}; copy it again, or list the names to use "
            f"in {path}"
        )
    return {name: own.get(name) or others[name] for name in names}


def _other_mask(name: str, pngs: Mapping[str, Path], sbd: Path | None) -> Path:
    if name in pngs:
        return pngs[name]
    return next(iter(pngs.values())).parent / f"{name}.png" if sbd is None else sbd_mask(sbd, name)


def _with_sbd(home: Path, split: str, sbd: Path) -> dict[str, Path]:
    """Name → mask in a split by SBD's own lists."""
    if split == "sbd_train":
        return {name: sbd_mask(sbd, name) for name in sbd_ids(sbd, "train")}
    masks = {name: sbd_mask(sbd, name) for name in sbd_ids(sbd, "trainval")}
    if split == "val_without_sbd":
        return _own_masks(home, (name for name in _listed(home, "val") if name not in masks))
    # VOC's masks go before SBD's.
    return dict(sorted((masks | _own_masks(home, _listed(home, "train"))).items()))
