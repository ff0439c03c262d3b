"""MS-COCO with the classes of PASCAL VOC, to train on before VOC."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.coco_regions import CocoImage, Region, draw_regions, image_numbers, read_instances
from kerasseg.data.layouts.shared import check_split, find_root
from kerasseg.data.paths import check_folder, data_path
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_LAYOUT = "annotations/instances_{train,val}{2014,2017}.json and the images in train2014/, … (or images/train2014/)"
_ALL, _ONLY_MINIVAL, _NO_MINIVAL = "all", "minival", "not minival"
# Release → split → its folders, each with which of its images. The 118,287 images of train2017 are those of train2014 and val2014
# without the 5,000 of minival, which are val2017.
_PARTS: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]] = {
    "2017": {
        "train": (("train2017", _ALL),),
        "val": (("val2017", _ALL),),
        "trainval": (("train2017", _ALL), ("val2017", _ALL)),
        "minival": (("val2017", _ALL),),
        "trainval_minus_minival": (("train2017", _ALL),),
    },
    "2014": {
        "train": (("train2014", _ALL),),
        "val": (("val2014", _ALL),),
        "trainval": (("train2014", _ALL), ("val2014", _ALL)),
        "minival": (("val2014", _ONLY_MINIVAL),),
        "trainval_minus_minival": (("train2014", _ALL), ("val2014", _NO_MINIVAL)),
    },
}
# Files that name minival's images: others' of the images of 2014, and the same images as of 2017.
_MINIVAL = ("instances_minival2014.json", "instances_val2017.json")


class CocoVoc(FileDataSet):
    """Those images of MS-COCO that hold one of VOC's twenty classes, labelled as VOC's.

    Classes are matched by name. Crowds of a VOC class are ignored (255), all other classes are background. Where regions overlap,
    the smaller lies on top: COCO's polygons have no holes, so that whatever stands before a large thing is inside its outline. (Of
    other programs some ignore such pixels, some let the last or the highest class win.)

    Opening it reads the annotations as a whole, 450 MB for a training set; `tools/prepare_data.py` makes PNGs of them once.

    Args:
        data_dir: The folder with `annotations/` and the folders of images, or the one around it.
        split: `"train"`, `"val"`, `"trainval"`, `"minival"` or `"trainval_minus_minival"`, which is `train2017` by another name.
        release: `"2014"` or `"2017"`; `None` takes 2017's files where all that the split needs are there, else 2014's.
        minimum_region: An image must have a region of a VOC class, no crowd, with more than so many pixels: DeepLab v3 has 1,000;
            0, as Dilation and GCN, takes every image with one.
        minival: Of 2014: a text file with minival's images, a number or file name a line; `None` looks for
            `instances_minival2014.json` or `instances_val2017.json` in `annotations/`.
    Raises:
        KerassegError: If pycocotools is not installed, or files are missing or not as COCO has them.
    Reference:
        Lin et al. 2014, arXiv:1405.0312; Chen et al. 2017, arXiv:1706.05587, §4.3; Peng et al. 2017, arXiv:1703.02719, §4.2; Yu &
        Koltun 2016, arXiv:1511.07122, §4.
    Example:
        >>> data = CocoVoc("data/coco", "trainval_minus_minival", minimum_region=1000)  # doctest: +SKIP
    """

    splits, slow_to_open = ("train", "val", "trainval", "minival", "trainval_minus_minival"), True
    places = ("minival",)
    photographs_of = "coco_voc"

    def __init__(
        self,
        data_dir=None,
        split: str = "train",
        release: str | int | None = None,
        minimum_region: int = 0,
        minival: str | os.PathLike | None = None,
    ):
        folder = check_folder(data_dir, "coco_voc", _LAYOUT)
        check_split("coco_voc", split, self.splits)
        if release is not None and str(release) not in _PARTS or minimum_region < 0:
            raise KerassegError(
                f"data set 'coco_voc' received release={release!r}, minimum_region={minimum_region}: expected release '2014' or "
                "'2017' and 0 pixels or more"
            )
        root = find_root(folder, ("annotations",), ("coco", "COCO", "coco_voc", "mscoco"))
        if root is None:
            raise KerassegError(f"'{data_dir}' does not hold data set 'coco_voc': expected {_LAYOUT}")
        labels = LABELS["voc"]
        parts = _PARTS[_find_release(root, split) if release is None else str(release)][split]
        chosen = [found for part, which in parts for found in _read_part(root, part, which, minival, minimum_region)]
        if not chosen:
            raise KerassegError(f"split '{split}' of {root} holds no region of a VOC class above {minimum_region} pixels")
        self._images = tuple(image for image, _ in chosen)
        super().__init__(labels, (record for _, record in chosen))

    def read_label(self, index: int) -> np.ndarray:
        """Draws the regions of one example; see `FileDataSet`."""
        return draw_regions(self._images[index], self.records[index].mask)

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what to keep of an example; see `FileDataSet`."""
        return {"image": self.records[index].image, "mask": self.read_label(index)}


def _annotations(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}.json"


def _find_release(root: Path, split: str) -> str:
    for release, splits in _PARTS.items():
        if all(_annotations(root, part).is_file() for part, _ in splits[split]):
            return release
    expected = " or ".join(" and ".join(str(_annotations(root, part)) for part, _ in splits[split]) for splits in _PARTS.values())
    raise KerassegError(f"split '{split}' of data set 'coco_voc' is not in {root}: expected {expected}")


def _read_part(root: Path, part: str, which: str, minival, minimum_region: int) -> list[tuple[CocoImage, Record]]:
    """The images of one folder that are to be used, by their numbers."""
    path, folder = _annotations(root, part), _image_folder(root, part)
    numbers = None if which == _ALL else _minival_numbers(root, minival)
    chosen = []
    for number, image in sorted(read_instances(path, LABELS["voc"].classes).items()):
        wanted = numbers is None or (number in numbers) == (which == _ONLY_MINIVAL)
        if wanted and any(_counts(region, minimum_region) for region in image.regions):
            name = image.file_name.rsplit("/", 1)[-1]
            chosen.append((image, Record(name.rsplit(".", 1)[0], folder / name, path)))
    return chosen


def _counts(region: Region, minimum_region: int) -> bool:
    return not region.crowd and region.area > minimum_region


def _image_folder(root: Path, part: str) -> Path:
    for folder in (root / part, root / "images" / part):
        if folder.is_dir():
            return folder
    raise KerassegError(f"there is no folder {root / part} or {root / 'images' / part}: unpack {part}.zip into {root}")


def _minival_numbers(root: Path, minival) -> set[int]:
    if minival is not None:
        return image_numbers(data_path(minival))
    for name in _MINIVAL:
        if (root / "annotations" / name).is_file():
            return image_numbers(root / "annotations" / name)
    raise KerassegError(
        f"which images of val2014 are minival is not in {root / 'annotations'}: expected {' or '.join(_MINIVAL)} there; or pass a "
        "list of their numbers, minival=FILE"
    )
