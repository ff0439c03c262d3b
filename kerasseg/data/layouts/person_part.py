"""PASCAL-Person-Part: the people of VOC 2010, in six parts."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import read_ids, read_lines, read_mat
from kerasseg.data.layouts.pascal_context import find_voc2010
from kerasseg.data.layouts.shared import below, check_split, first_folder
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_NAME = "pascal_person_part"
_LAYOUT = "Annotations_Part/*.mat, or pascal_person_part_gt/ and pascal_person_part_trainval_list/, and VOC2010 in or beside it"
_MAT, _PNG, _LISTS = "Annotations_Part", "pascal_person_part_gt", "pascal_person_part_trainval_list"
_FOLDERS = (
    (),
    ("trainval",),
    (_NAME,),
    ("PASCAL-Part",),
    ("pascal-part",),
    ("PASCAL-Part", "trainval"),
    ("pascal-part", "trainval"),
)

PARTS: dict[str, str] = {
    **dict.fromkeys(("head", "leye", "reye", "lear", "rear", "lebrow", "rebrow", "nose", "mouth", "hair"), "head"),
    **dict.fromkeys(("torso", "neck"), "torso"),
    **dict.fromkeys(("luarm", "ruarm"), "upper arms"),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), "lower arms"),
    **dict.fromkeys(("luleg", "ruleg"), "upper legs"),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), "lower legs"),
}
"""Each of the 24 parts of a person in PASCAL-Part → the class that it belongs to."""


class PascalPersonPart(FileDataSet):
    """The images of VOC 2010 with people whose parts are labelled: 1,716 and 1,817 by the paper.

    Read from the masks and lists that the paper's authors published (`pascal_person_part.zip`), or, where those are not there, from
    PASCAL-Part's own .mat files. Those come without lists: the images of VOC 2010's train and val are then taken whose file holds
    a person with a part, for which the files of all images with people are read once when the data set is opened. Run
    `tools/prepare_data.py` to do that only once.

    Args:
        data_dir: A folder with `pascal_person_part_gt/*.png` and `pascal_person_part_trainval_list/`, or with `Annotations_Part/`
            (also in `trainval/`), and with VOC 2010 in it or beside it; or VOC 2010 with those in it. With the authors' lists
            the photographs of VOC 2012 or 2011 do, too.
        split: `"train"`, `"val"` or `"trainval"`.
        voc_dir: Where VOC is, if elsewhere.
    Raises:
        KerassegError: If a folder is missing or laid out otherwise, there is no such split, or a .mat file is damaged.
    Reference:
        Chen et al. 2014, "Detect what you can", CVPR (the parts); Chen et al. 2016, "Attention to scale", arXiv:1511.03339, §4 (the
        six classes and the splits).
    Example:
        >>> len(PascalPersonPart("pascal_person_part", voc_dir="VOCdevkit"))  # doctest: +SKIP
        1716
    """

    splits, slow_to_open = ("train", "val", "trainval"), True
    places = ("voc_dir",)

    def __init__(self, data_dir=None, split: str = "train", voc_dir: str | os.PathLike | None = None):
        root = check_folder(data_dir, _NAME, _LAYOUT)
        check_split(_NAME, split, self.splits)
        home = find_voc2010(root, voc_dir, _NAME, (2010, 2012, 2011))
        places = [place for base in (root, home, home.parent, home.parent.parent) for place in below(base, *_FOLDERS)]
        lists, painted, annotated = (first_folder(places, folder) for folder in (_LISTS, _PNG, _MAT))
        if lists is None:
            # Then it is VOC 2010's own lists that say what the splits are.
            home = find_voc2010(root, voc_dir, _NAME)
        if lists is not None and painted is not None:
            masks, suffix, ids = painted / _PNG, ".png", read_ids(lists / _LISTS / f"{split}.txt")
        elif annotated is not None:
            masks, suffix = annotated / _MAT, ".mat"
            ids = read_ids(lists / _LISTS / f"{split}.txt") if lists is not None else _with_people(home, masks, split)
        else:
            raise KerassegError(f"'{root}' does not hold data set '{_NAME}': expected {_LAYOUT}")
        images = home / "JPEGImages"
        super().__init__(LABELS[_NAME], (Record(name, images / f"{name}.jpg", masks / f"{name}{suffix}") for name in ids))

    def read_mask(self, path: Path) -> np.ndarray:
        """Reads the parts in a .mat file, of two that overlap the later, or a PNG: `(H, W)`, int32."""
        return super().read_mask(path) if path.suffix != ".mat" else _read_people(path).label()


@dataclasses.dataclass(frozen=True, eq=False)
class _People:
    """What one .mat file says: height and width, and the parts of all people, each a class and where it is."""

    path: Path
    size: tuple[int, int] | None
    parts: list[tuple[int, np.ndarray]]

    def label(self) -> np.ndarray:
        if self.size is None:
            raise KerassegError(
                f"{self.path} annotates no object, so it does not say the size: expected an image with people; take it off the list"
            )
        label = np.zeros(self.size, np.int32)
        for number, where in self.parts:
            if where.shape != self.size:
                raise KerassegError(
                    f"{self.path} holds masks of {self.size[::-1]} and {where.shape[::-1]} pixels (width, height): expected one "
                    "size; copy the file again"
                )
            label[where] = number
        return label


def _read_people(path: Path) -> _People:
    def content(annotation) -> _People:
        things = annotation["objects"][0, 0].ravel()
        size = things[0]["mask"].shape if len(things) else None
        return _People(path, size, list(_parts(things, path)))

    return read_mat(path, "anno", content)


def _parts(things, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    for thing in things:
        if thing["class"].item() == "person":
            # Of a person too small to tell parts there are none.
            for part in thing["parts"].ravel():
                name, where = part["part_name"].item(), part["mask"]
                if name not in PARTS or where.ndim != 2:
                    raise KerassegError(
                        f"{path} holds a person's part '{name}' of shape {where.shape}: expected the 24 names of PASCAL-Part and "
                        "(height, width); copy the file again"
                    )
                yield LABELS[_NAME].classes.index(PARTS[name]), where != 0


def _with_people(home: Path, masks: Path, split: str) -> list[str]:
    """The images of a split of VOC 2010 in which a pixel is a part of a person."""
    main = home / "ImageSets" / "Main"
    flagged = main / f"person_{split}.txt"
    if flagged.is_file():
        # −1 is none; 0 are people whom VOC leaves out of its scores, and who may have parts all the same.
        names = [words[0] for words in read_lines(flagged) if words[-1] != "-1"]
    else:
        names = read_ids(main / f"{split}.txt")
    found = [name for name in names if any(where.any() for _, where in _read_people(masks / f"{name}.mat").parts)]
    if not found:
        raise KerassegError(f"no image of split '{split}' has a person with parts in {masks}: expected PASCAL-Part's own files")
    return found
