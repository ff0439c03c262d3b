"""The frames of NYUDv2 in the official release: one big file of MATLAB's, and two small ones beside it."""

from bisect import bisect_right
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import read_mat
from kerasseg.data.layouts.nyud_files import CROPPED, FRAME, LEFT, TOP, Frames
from kerasseg.data.layouts.values import label_from_values
from kerasseg.errors import KerassegError, first_line
from kerasseg.labels import LABELS

LABELED, OFFICIAL_SPLITS, CLASS_MAP = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"

# Frame 1 of the labelled file is img_5001 of the tree.
_FIRST = 5000
# Of the 795 training frames Gupta et al. tune on 414. In the order of their numbers, these are the first ones of a run of frames to
# train on, then to validate on, then again to train on … (train.txt and val.txt of fcn.berkeleyvision.org; test frames between).
_TURNS = (
    3, 10, 19, 22, 44, 48, 58, 64, 80, 92, 120, 130, 135, 138, 156, 170, 177, 203, 213, 223, 251, 265, 274, 286, 303, 313, 318, 336,
    353, 365, 391, 398, 415, 436, 449, 467, 478, 514, 527, 534, 540, 552, 572, 584, 595, 608, 614, 622, 639, 646, 652, 659, 665,
    674, 682, 691, 695, 700, 714, 719, 729, 735, 745, 788, 805, 815, 824, 847, 853, 863, 872, 909, 920, 929, 936, 948, 963, 968,
    978, 996, 1005, 1013, 1024, 1035, 1040, 1050, 1054, 1059, 1085, 1097, 1105, 1110, 1120, 1132, 1137, 1159, 1168, 1172, 1177,
    1185, 1197, 1213, 1221, 1231, 1236, 1251, 1266, 1281, 1296, 1300, 1309, 1316, 1333, 1341, 1350, 1357, 1366, 1370, 1392, 1402,
    1415, 1425,
)  # fmt: skip


class LabeledFrames(Frames):
    """The official file `nyu_depth_v2_labeled.mat` (HDF5), `splits.mat` and the map from 894 names to 40 classes beside it.

    Args:
        folder: Holds the three.
        split: One of `SPLITS`.
        crop: Whether frames of 640×480 are cut to the 560×425 of Gupta et al.
    Raises:
        KerassegError: If a file is missing or damaged, or the split names frames that are not there.
    """

    def __init__(self, folder, split: str, crop: bool):
        self._path, self._crop = folder / LABELED, crop
        self._classes = _class_map(folder)
        self._arrays = _open_hdf5(self._path, ("images", "depths", "labels", "rawDepths"))
        count = len(self._arrays["images"])
        numbers = _official_numbers(folder, split)
        if min(numbers) < 1 or max(numbers) > count:
            raise KerassegError(
                f"{folder / OFFICIAL_SPLITS} names frames {min(numbers)} to {max(numbers)}, {self._path} has {count}: expected the "
                "two files of one download"
            )
        self._places = {f"img_{_FIRST + number}": number - 1 for number in numbers}
        self.names = tuple(self._places)

    def _read(self, variable: str, name: str) -> np.ndarray:
        try:
            # MATLAB writes columns first.
            values = self._arrays[variable][self._places[name]].T
        except (OSError, RuntimeError, ValueError) as error:
            raise KerassegError(
                f"cannot read '{variable}' of frame {name} from {self._path} ({first_line(error)}): copy the file again"
            ) from error
        if self._crop and values.shape[:2] == FRAME:
            values = values[TOP : TOP + CROPPED[0], LEFT : LEFT + CROPPED[1]]
        return np.ascontiguousarray(values)

    def place(self, name: str) -> Path:
        """See `Frames`."""
        return self._path

    def image(self, name: str) -> np.ndarray:
        """See `Frames`."""
        return self._read("images", name).astype(np.uint8)

    def depth(self, name: str) -> np.ndarray:
        """See `Frames`; the file has metres, the holes filled by the toolbox's colourization."""
        return np.rint(np.clip(np.nan_to_num(self._read("depths", name).astype(np.float64)) * 1000, 0, 65535)).astype(np.uint16)

    def measured(self, name: str) -> np.ndarray | None:
        """See `Frames`."""
        return self._read("rawDepths", name) > 0

    def label(self, name: str) -> np.ndarray:
        """See `Frames`."""
        values, where = self._read("labels", name), f"frame {name} of {self._path}"
        if values.max(initial=0) >= len(self._classes):
            raise KerassegError(
                f"{where} has the label {values.max()}, {CLASS_MAP} maps {len(self._classes) - 1} names: expected the map of 894"
            )
        return label_from_values(self._classes[values], where, LABELS["nyud"])


def _open_hdf5(path, variables: tuple[str, ...]) -> dict:
    """Variables of a file of version 7.3, one frame for each row; they are read when they are asked for."""
    import h5py

    try:
        # A file that TensorFlow opens is slower than one that HDF5 opens.
        file = h5py.File(str(path), "r") if isinstance(path, Path) else h5py.File(path.open("rb"), "r")
    except OSError as error:
        raise KerassegError(
            f"cannot open {path} ({first_line(error)}): expected the labelled file of NYUDv2 (2.8 GB, HDF5); download it again"
        ) from error
    lost = [name for name in variables if name not in file]
    if lost:
        raise KerassegError(f"{path} holds {', '.join(file)} but not {', '.join(lost)}: expected the labelled file of NYUDv2")
    counts = {name: len(file[name]) for name in variables}
    if len(set(counts.values())) > 1:
        raise KerassegError(f"{path} holds {counts} frames: expected as many of each")
    return {name: file[name] for name in variables}


def _official_numbers(folder, split: str) -> list[int]:
    """The numbers of the frames of a split, from 1."""
    path = folder / OFFICIAL_SPLITS
    if not path.is_file():
        raise KerassegError(
            f"{folder} has {LABELED} but no {OFFICIAL_SPLITS}, which says what is for training: get it from the page of NYUDv2 "
            "(indoor_seg_sup/splits.mat) and put it beside"
        )
    numbers = read_mat(path, "testNdxs" if split == "test" else "trainNdxs", lambda values: values.ravel().astype(int).tolist())
    if split in ("train", "val"):
        numbers = [number for number in numbers if bisect_right(_TURNS, number) % 2 == (split == "train")]
    if not numbers:
        raise KerassegError(f"{path} names no frame of split '{split}': expected 795 for training and 654 for testing")
    return numbers


def _class_map(folder) -> np.ndarray:
    """Number of a name, 0 = unlabelled → number of a class, 1 to 40, 0 = none."""
    path = folder / CLASS_MAP
    if not path.is_file():
        raise KerassegError(
            f"{folder} has {LABELED} but no {CLASS_MAP}, which maps its 894 names to the 40 classes of Gupta et al.: it is in "
            "their CVPR 2013 data (benchmarkData/metadata) and in ankurhanda/nyuv2-meta-data; put it beside"
        )
    return read_mat(path, "mapClass", lambda values: np.concatenate([[0], values.ravel()]).astype(np.int64))
