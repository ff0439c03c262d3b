"""KITTI: the frames of its visual odometry sequences that Ros et al. labelled, eleven classes."""

import dataclasses
from pathlib import Path

from kerasseg.data.layouts.folder import pair_files
from kerasseg.data.layouts.shared import check_split, find_root
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

# Sequences 00 and 07. What the release calls validation is what is tested on.
_FOLDERS = {"train": "Training_00", "val": "Validation_07", "test": "Validation_07"}
_LAYOUT = "Training_00/{RGB,GT}/*.png and Validation_07/{RGB,GT}/*.png, or images/<split>/ and masks/<split>/"
# The mean that the Dilation network subtracts, there as BGR.
_MEAN = (91.34692262, 95.55136972, 96.19429688)


class Kitti(FileDataSet):
    """The semantic subset of KITTI by Ros et al., in the classes' order of the Dilation network.

    The masks are read by their colours (folder `GT`). Those of `GT_ind`, which number the classes, are not looked at: programs
    that read them do not agree on what their numbers mean. A frame is called `Training_00_000015`.

    Args:
        data_dir: The folder with `Training_00` and `Validation_07`, or the one around it; or a folder with `images/<split>/` and
            `masks/<split>/*.png`, colours or labels in the order of the table.
        split: `"train"`, or `"val"`, which `"test"` is another name of.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or an image lacks its mask or a mask its image.
    Reference:
        Ros et al. 2015, "Vision-based offline-online perception paradigm for autonomous driving", WACV; order, colours and mean
        of github.com/fyu/dilation.
    Example:
        >>> Kitti("data/KITTI_SEMANTIC", "train").labels.classes[0]  # doctest: +SKIP
        'building'
    """

    # In the release `test` is another name of `val`.
    splits = ("train", "val")

    def __init__(self, data_dir=None, split: str = "train"):
        folder = check_folder(data_dir, "kitti", _LAYOUT)
        check_split("kitti", split, _FOLDERS)
        super().__init__(LABELS["kitti"], _records(folder, split), _MEAN)


def _records(folder: Path, split: str) -> list[Record]:
    root = find_root(folder, set(_FOLDERS.values()), ("KITTI_SEMANTIC", "kitti"))
    if root is not None:
        part = root / _FOLDERS[split]
        if (part / "GT_ind").is_dir() and not (part / "GT").is_dir():
            raise KerassegError(f"{part} has GT_ind but no GT: expected the masks in colours, {part / 'GT'}/*.png")
        # Frames of both sequences have the same numbers.
        return [dataclasses.replace(each, id=f"{part.name}_{each.id}") for each in pair_files(part / "RGB", part / "GT")]
    if (folder / "images" / split).is_dir():
        return pair_files(folder / "images" / split, folder / "masks" / split)
    raise KerassegError(f"'{folder}' does not hold split '{split}' of data set 'kitti': expected {_LAYOUT}")
