"""The Semantic Boundaries Dataset: 11,355 images of PASCAL VOC 2011, labelled by others, as MATLAB files."""

from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import read_ids, read_mat
from kerasseg.data.layouts.shared import below, check_split, first_folder
from kerasseg.data.layouts.values import label_from_values
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, LabelTable

LAYOUT = "benchmark_RELEASE/dataset with img/, cls/, train.txt and val.txt"
_RELEASE = ("benchmark_RELEASE", "dataset")
_NAMES = ("sbd", "SBD", "sbdd", "benchmark")
_PLACES = ((), ("dataset",), _RELEASE, *((name, *rest) for name in _NAMES for rest in ((), _RELEASE)))


class Sbd(FileDataSet):
    """SBD with the twenty classes of VOC and background: 8,498 and 2,857 images.

    Its masks have no pixels to ignore. Its split is not VOC's: `train` holds images of VOC's val.

    Args:
        data_dir: `benchmark_RELEASE/dataset` with `img/<id>.jpg`, `cls/<id>.mat`, `train.txt` and `val.txt`, or a folder above it.
        split: `"train"`, `"val"` or `"trainval"`, which is both.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or there is no such split.
    Reference:
        Hariharan et al. 2011, "Semantic contours from inverse detectors", ICCV.
    Example:
        >>> len(Sbd("benchmark_RELEASE", "train"))  # doctest: +SKIP
        8498
    """

    splits = ("train", "val", "trainval")
    photographs_of = "voc"

    def __init__(self, data_dir=None, split: str = "train"):
        root = check_folder(data_dir, "sbd", LAYOUT)
        check_split("sbd", split, self.splits)
        home = find_sbd(root)
        if home is None:
            raise KerassegError(f"'{root}' does not hold data set 'sbd': expected {LAYOUT}")
        super().__init__(
            LABELS["voc"], (Record(name, home / "img" / f"{name}.jpg", sbd_mask(home, name)) for name in sbd_ids(home, split))
        )

    def read_mask(self, path: Path) -> np.ndarray:
        """Reads the classes of a .mat file, `(H, W)`, int32."""
        return read_sbd_mask(path, self.labels)


def find_sbd(root: Path) -> Path | None:
    """Finds SBD's `dataset` folder.

    Args:
        root: It, or a folder above it.
    Returns:
        The folder with `cls/`, or `None`.
    """
    return first_folder(below(root, *_PLACES), "cls")


def sbd_ids(home: Path, split: str) -> list[str]:
    """Reads the names of a split.

    Args:
        home: SBD's `dataset` folder.
        split: `"train"`, `"val"`, or `"trainval"`, which is both, one after the other.
    Returns:
        The names.
    Raises:
        KerassegError: If a list is missing.
    """
    return [name for part in (("train", "val") if split == "trainval" else (split,)) for name in read_ids(home / f"{part}.txt")]


def sbd_mask(home: Path, name: str) -> Path:
    """Tells where the mask of an example is.

    Args:
        home: SBD's `dataset` folder.
        name: Of the example.
    Returns:
        The file.
    """
    return home / "cls" / f"{name}.mat"


def read_sbd_mask(path: Path, labels: LabelTable) -> np.ndarray:
    """Reads the classes of a file in `cls/`.

    Args:
        path: The file.
        labels: The table with VOC's classes.
    Returns:
        Shape `(H, W)`, int32, 0 to classes − 1.
    Raises:
        KerassegError: If the file is missing, damaged, or holds something else.
    """
    return label_from_values(read_mat(path, "GTcls", lambda struct: struct["Segmentation"][0, 0]), path, labels)
