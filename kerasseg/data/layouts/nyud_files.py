"""The frames of NYUDv2 as pictures: the tree of Gupta et al., or what was prepared."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from kerasseg.data.decode import decode_image
from kerasseg.data.hha import NYU_CAMERA, Camera
from kerasseg.data.layouts.devkit import read_ids, read_mat
from kerasseg.data.layouts.values import label_from_values
from kerasseg.data.preparation.prepared import Prepared
from kerasseg.errors import KerassegError, first_line
from kerasseg.labels import LABELS

SPLITS = ("train", "val", "trainval", "test")

_TABLE = LABELS["nyud"]
# The region that Gupta et al. keep of a frame of 640×480: without the white rim that projecting depth to the colour camera left.
FRAME, TOP, LEFT, CROPPED = (480, 640), 45, 40, (425, 560)


def camera_of(shape: tuple[int, ...]) -> Camera | None:
    """The camera of a frame by its size, whole or cropped as Gupta et al. do; `None` of any other."""
    return {FRAME: NYU_CAMERA, CROPPED: NYU_CAMERA.cropped(TOP, LEFT)}.get(tuple(shape[:2]))


class Frames:
    """What the layouts have in common: frames by name, in their order.

    A subclass writes the methods; `file` gives the file of a part (`image`, `depth`, `hha`, `mask`) that can be read as it is,
    `None` where there is none.
    """

    names: tuple[str, ...]

    def place(self, name: str) -> Path:
        """The file that holds the colour image, for messages."""
        raise NotImplementedError

    def mask(self, name: str) -> Path | None:
        """The file that holds the label map alone."""
        return None

    def file(self, role: str, name: str) -> Path | None:
        """The file of a part that can be read as it is."""
        return None

    def image(self, name: str) -> np.ndarray:
        """`(H, W, 3)`, uint8 RGB."""
        raise NotImplementedError

    def depth(self, name: str) -> np.ndarray:
        """`(H, W)`, uint16 millimetres, 0 = none."""
        raise NotImplementedError

    def measured(self, name: str) -> np.ndarray | None:
        """`(H, W)`, boolean: where depth was measured, not filled in; `None` where nothing tells."""
        return None

    def hha(self, name: str) -> np.ndarray | None:
        """`(H, W, 3)`, uint8; `None` where it must be computed."""
        return None

    def label(self, name: str) -> np.ndarray:
        """`(H, W)`, int32, 255 = ignore."""
        raise NotImplementedError

    def has_depth(self, name: str) -> bool:
        """Whether there is a depth map."""
        return True


class TreeFrames(Frames):
    """The tree of Gupta et al. that FCN reads: `data/images`, `data/depth`, `data/hha`, `segmentation` and lists.

    Args:
        folder: Holds them.
        split: One of `SPLITS`.
    Raises:
        KerassegError: If a list is missing or empty.
    """

    def __init__(self, folder, split: str):
        self._folder = folder
        self.names = tuple(f"img_{number}" for number in _listed(folder, split))

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / "data" / kind / f"{name}.png"

    def place(self, name: str) -> Path:
        """See `Frames`."""
        return self._path("images", name)

    def mask(self, name: str) -> Path | None:
        """See `Frames`."""
        return self._folder / "segmentation" / f"{name}.mat"

    def file(self, role: str, name: str) -> Path | None:
        """See `Frames`; label maps are MATLAB's."""
        path = {"image": self._path("images", name), "depth": self._path("depth", name), "hha": self._path("hha", name)}.get(role)
        return path if role == "image" or (path is not None and path.parent.is_dir()) else None

    def image(self, name: str) -> np.ndarray:
        """See `Frames`."""
        return decode_image(self.place(name))

    def has_depth(self, name: str) -> bool:
        """See `Frames`."""
        return self.file("depth", name) is not None

    def depth(self, name: str) -> np.ndarray:
        """See `Frames`."""
        return read_depth(self._path("depth", name))

    def measured(self, name: str) -> np.ndarray | None:
        """See `Frames`; by `data/rawdepth`, where it is there."""
        path = self._path("rawdepth", name)
        return read_depth(path) > 0 if path.is_file() else None

    def hha(self, name: str) -> np.ndarray | None:
        """See `Frames`."""
        path = self.file("hha", name)
        return None if path is None else decode_image(path)

    def label(self, name: str) -> np.ndarray:
        """See `Frames`."""
        path = self.mask(name)
        return label_from_values(read_mat(path, "segmentation", np.asarray), path, _TABLE)


class PreparedFrames(Frames):
    """What `prepare_data` made of either.

    Args:
        prepared: The folder.
        split: One of its splits.
    Raises:
        KerassegError: If there is no such split.
    """

    def __init__(self, prepared: Prepared, split: str):
        self._prepared = prepared
        self._files = {row.id: dict(row.files) for row in prepared.rows(split)}
        self.names = tuple(self._files)

    def place(self, name: str) -> Path:
        """See `Frames`."""
        return self._files[name]["image"]

    def file(self, role: str, name: str) -> Path | None:
        """See `Frames`."""
        return self._files[name].get(role)

    def image(self, name: str) -> np.ndarray:
        """See `Frames`."""
        return self._prepared.read_image(self.place(name))

    def mask(self, name: str) -> Path | None:
        """See `Frames`."""
        return self.file("mask", name)

    def has_depth(self, name: str) -> bool:
        """See `Frames`."""
        return self.file("depth", name) is not None

    def depth(self, name: str) -> np.ndarray:
        """See `Frames`."""
        path = self.file("depth", name)
        if path is None:
            raise KerassegError(f"{self._prepared.folder} was prepared without depth: prepare a copy of the data set that has it")
        self._prepared.check_file(path)
        return read_depth(path)

    def hha(self, name: str) -> np.ndarray | None:
        """See `Frames`."""
        path = self.file("hha", name)
        return None if path is None else self._prepared.read_image(path)

    def label(self, name: str) -> np.ndarray:
        """See `Frames`."""
        return self._prepared.read_label(self._files[name]["mask"], self._prepared.labels)


def read_depth(path) -> np.ndarray:
    """Reads a depth map.

    Args:
        path: A grey PNG of 16 bits.
    Returns:
        Shape `(H, W)`, uint16, the numbers of the file: millimetres in NYUDv2, 0 = none.
    Raises:
        KerassegError: If the file is missing, damaged or of another kind.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            picture.load()
            mode, values = picture.mode, np.asarray(picture)
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; expected a grey PNG of 16 bits, depth in millimetres") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise KerassegError(f"cannot decode {path} ({first_line(error)}): expected a whole PNG; copy the file again") from error
    if not mode.startswith("I"):
        raise KerassegError(f"depth map {path} is of mode {mode}: expected a grey PNG of 16 bits, depth in millimetres")
    return values.astype(np.uint16)


def _listed(folder, split: str) -> list[str]:
    """The numbers in the list of a split; without a list `trainval` is `train` and `val`."""
    path = folder / f"{split}.txt"
    if split == "trainval" and not path.is_file():
        return _listed(folder, "train") + _listed(folder, "val")
    return [name.removeprefix("img_") for name in read_ids(path)]
