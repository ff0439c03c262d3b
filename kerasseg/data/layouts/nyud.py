"""NYUDv2: 1,449 frames of rooms with depth, 40 classes; colour, HHA, or both, as the networks take them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kerasseg.data.hha import fill_depth, hha
from kerasseg.data.layouts.nyud_files import SPLITS, Frames, PreparedFrames, TreeFrames, camera_of
from kerasseg.data.layouts.nyud_labeled import LABELED, LabeledFrames
from kerasseg.data.layouts.shared import check_split
from kerasseg.data.paths import check_folder, data_path
from kerasseg.data.records import Example, FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_LAYOUT = f"{LABELED}, splits.mat and classMapping40.mat, or data/images/, segmentation/ and train.txt, val.txt, test.txt"
# FCN's nyud_layers.py, whose BGR is RGB here.
_MEANS = {"color": (92.318, 97.203, 116.190), "depth": (7.844,), "hha": (132.431, 94.076, 118.477)}


class Nyud(FileDataSet):
    """NYUDv2 in colour: the 40 classes of Gupta et al., file value 0 = ignore; 795 frames to train on, 654 to test on.

    The 795 are parted into 381 (`train`) and 414 (`val`) as Gupta et al. do. A frame is called `img_5001` whichever way it lies on
    disk. Its other forms are `NyudHHA`, `NyudColorD` and `NyudColorHHA`.

    Args:
        data_dir: A folder with the official `nyu_depth_v2_labeled.mat`, `splits.mat` and Gupta's `classMapping40.mat`; or the tree
            that FCN reads, `data/images/img_5001.png`, `data/depth/` (16 bits, millimetres), `data/hha/`, `segmentation/*.mat`,
            `train.txt`, `val.txt`, `test.txt`; or a folder around either.
        split: `"train"`, `"val"`, `"trainval"` or `"test"`.
        crop: Whether frames of the official file are cut from 640×480 to the 560×425 of the tree, on which the papers trained and
            were scored: columns 40 to 599, rows 45 to 469, without the white rim.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or a file is missing or damaged.
    Reference:
        Silberman, Hoiem, Kohli & Fergus, ECCV 2012; 40 classes and the parted training frames: Gupta, Arbeláez & Malik, CVPR 2013;
        means: shelhamer/fcn.berkeleyvision.org, `nyud_layers.py`.
    Example:
        >>> Nyud("data/nyud", "test")[0].id  # doctest: +SKIP
        'img_5001'
    """

    family, splits = "nyud", SPLITS
    # The maps that a pixel is made of, in their order.
    _maps: tuple[str, ...] = ("color",)

    def __init__(self, data_dir=None, split: str = "train", crop: bool = True):
        check_split("nyud", split, SPLITS)
        self._of(_frames(data_dir, split, crop))

    def _of(self, frames: Frames) -> None:
        self._frames = frames
        records = (Record(name, frames.place(name), frames.mask(name)) for name in frames.names)
        super().__init__(LABELS["nyud"], records, tuple(value for kind in self._maps for value in _MEANS[kind]))

    @classmethod
    def from_prepared(cls, prepared, split: str, **options) -> "Nyud":
        """Opens what `prepare_data` made; see `DataSet`."""
        prepared.check_options(cls, options)
        data = cls.__new__(cls)
        data._of(PreparedFrames(prepared, split))
        return data

    def read(self, index: int) -> Example:
        """Reads the maps of a frame and its labels, and compares their sizes.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The example.
        Raises:
            KerassegError: If a file is missing or damaged, or the sizes differ.
        """
        name, image, label = self.ids[index], self.read_image(index), self.read_label(index)
        self._check_sizes(name, {"image": image, "label": label})
        return Example(image, label, name, str(self.records[index].image))

    def read_image(self, index: int) -> np.ndarray:
        """Reads the maps of one frame.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Shape `(H, W, channels)`: uint8 of colour or HHA alone, else float32.
        Raises:
            KerassegError: As `read`.
        """
        name = self.ids[index]
        maps = {kind: self._map(kind, name) for kind in self._maps}
        self._check_sizes(name, maps)
        return next(iter(maps.values())) if len(maps) == 1 else np.concatenate(list(maps.values()), axis=-1, dtype=np.float32)

    def _check_sizes(self, name: str, maps: Mapping[str, np.ndarray]) -> None:
        sizes = {kind: values.shape[:2] for kind, values in maps.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{kind} {width}×{height}" for kind, (height, width) in sizes.items())
            raise KerassegError(
                f"the parts of frame {name} ({self._frames.place(name)}) differ in size, width×height: {told}; expected one size, "
                "take them from one copy of the data set"
            )

    def files(self, index: int) -> tuple[Path, ...]:
        """Tells the image, the labels, and depth and HHA as far as they are files; see `FileDataSet`."""
        more = (self._frames.file(role, self.ids[index]) for role in ("depth", "hha"))
        return (*super().files(index), *(path for path in more if path is not None))

    def check(self, index: int, example: Example) -> None:
        """Checks depth and stored HHA, also where this form has no use for them: they are prepared for all; see `DataSet`."""
        name, maps = self.ids[index], {"image": example.image}
        if self._frames.has_depth(name):
            maps["depth"] = self._depth(name)
        if self._frames.file("hha", name) is not None:
            maps["hha"] = self._frames.hha(name)
        self._check_sizes(name, maps)

    def read_label(self, index: int) -> np.ndarray:
        """Reads the label map of one frame alone; see `DataSet`."""
        return self._frames.label(self.ids[index])

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what `prepare_data` keeps: the same for every form of the data set, so that one preparation serves all.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            `image` and `mask`; `depth` (uint16 millimetres) and `hha` (uint8), as far as they are there or can be computed.
        Raises:
            KerassegError: As `read`.
        """
        name, frames = self.ids[index], self._frames
        found = {role: frames.file(role, name) for role in ("image", "mask", "depth", "hha")}
        made = {"image": frames.image, "mask": frames.label}
        if found["depth"] is None and frames.has_depth(name):
            made["depth"] = frames.depth
        if found["hha"] is None and frames.has_depth(name) and camera_of(frames.image(name).shape) is not None:
            made["hha"] = self._hha
        found |= {role: make(name) for role, make in made.items() if found[role] is None}
        return {role: source for role, source in found.items() if source is not None}

    def _map(self, kind: str, name: str) -> np.ndarray:
        """One map of a frame, `(H, W, channels)`."""
        if kind == "color":
            return self._frames.image(name)
        if kind == "hha":
            return self._hha(name)
        # The logarithm of 0 would be −∞.
        return np.log(fill_depth(self._depth(name)).astype(np.float32))[..., np.newaxis]

    def _hha(self, name: str) -> np.ndarray:
        stored = self._frames.hha(name)
        if stored is not None:
            return stored
        depth, measured = self._depth(name), self._frames.measured(name)
        if measured is not None:
            self._check_sizes(name, {"depth": depth, "raw depth": measured})
        camera = camera_of(depth.shape)
        if camera is None:
            raise KerassegError(
                f"depth of frame {name} is {depth.shape[1]}×{depth.shape[0]}: HHA is computed of 640×480 or 560×425, whose camera "
                "is known; use frames of their own size, or put your own HHA pictures into data/hha/"
            )
        return hha(depth / 1000, camera, measured)

    def _depth(self, name: str) -> np.ndarray:
        depth = self._frames.depth(name)
        if not depth.any():
            raise KerassegError(f"the depth map of frame {name} ({self._frames.place(name)}) is 0 everywhere: copy the file again")
        return depth


class NyudHHA(Nyud):
    """NYUDv2 as HHA: disparity, height above ground and angle with gravity in place of red, green and blue.

    The pictures of `data/hha/` where there is that folder, else computed of depth by `kerasseg.data.hha`: less than a second a
    frame, which `prepare_data` spends once.

    Args:
        data_dir: As of `Nyud`.
        split: As of `Nyud`.
        crop: As of `Nyud`.
    Raises:
        KerassegError: As `Nyud`; when it is read, if there is neither HHA nor depth.
    Reference:
        Gupta, Girshick, Arbeláez & Malik 2014, arXiv:1407.5736, §3; networks: Shelhamer et al. 2017, §5, Table 5.
    """

    colors = 0
    _maps = ("hha",)


class NyudColorD(Nyud):
    """NYUDv2 as four channels for early fusion: red, green, blue and the natural logarithm of depth in millimetres.

    Where there is no depth it is that of the nearest pixel that has one: the logarithm of 0 would be −∞, which no training
    survives. Images are float32.

    Args:
        data_dir: As of `Nyud`.
        split: As of `Nyud`.
        crop: As of `Nyud`.
    Raises:
        KerassegError: As `Nyud`; when it is read, if there is no depth.
    Reference:
        Shelhamer et al. 2017, §5, Table 5; the authors' `nyud_layers.py`, whose mean of 7.844 is that of 2.55 m in millimetres.
    """

    channels = 4
    _maps = ("color", "depth")


class NyudColorHHA(Nyud):
    """NYUDv2 as the two inputs of late fusion, colour and HHA: six channels, float32.

    Args:
        data_dir: As of `Nyud`.
        split: As of `Nyud`.
        crop: As of `Nyud`.
    Raises:
        KerassegError: As `NyudHHA`.
    Reference:
        Shelhamer et al. 2017, §5, Table 5.
    """

    channels = 6
    inputs = {"color": 3, "hha": 3}
    _maps = ("color", "hha")


def _frames(data_dir, split: str, crop: bool) -> Frames:
    """Finds out which layout a folder has."""
    if data_dir is not None and str(data_dir).endswith(LABELED):
        data_dir = data_path(data_dir).parent
    root = check_folder(data_dir, "nyud", _LAYOUT)
    for folder in (root, *(each for each in sorted(root.iterdir()) if each.is_dir())):
        if (folder / LABELED).is_file():
            return LabeledFrames(folder, split, crop)
        if (folder / "data" / "images").is_dir():
            return TreeFrames(folder, split)
    raise KerassegError(f"'{root}' does not hold data set 'nyud', nor does a folder in it: expected {_LAYOUT}")
