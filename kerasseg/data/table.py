"""The table of the data sets, and how one is opened."""

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kerasseg.data.paths import data_path, several_places
from kerasseg.data.preparation.prepared import open_prepared
from kerasseg.data.records import DataSet
from kerasseg.data.views.union import Union
from kerasseg.errors import KerassegError
from kerasseg.tables import LazyTable, did_you_mean

DATA_SETS = LazyTable(
    "data set",
    {
        "shapes": "kerasseg.data.shapes:Shapes",
        "folder": "kerasseg.data.layouts.folder:Folder",
        "csv": "kerasseg.data.layouts.csv_list:CsvList",
        "camvid": "kerasseg.data.layouts.camvid:CamVid",
        "coco_voc": "kerasseg.data.layouts.coco_voc:CocoVoc",
        "ade20k": "kerasseg.data.layouts.ade20k:Ade20k",
        "kitti": "kerasseg.data.layouts.kitti:Kitti",
        "cityscapes": "kerasseg.data.layouts.cityscapes:Cityscapes",
        "nyud": "kerasseg.data.layouts.nyud:Nyud",
        "nyud_hha": "kerasseg.data.layouts.nyud:NyudHHA",
        "nyud_color_d": "kerasseg.data.layouts.nyud:NyudColorD",
        "nyud_color_hha": "kerasseg.data.layouts.nyud:NyudColorHHA",
        "sift_flow": "kerasseg.data.layouts.sift_flow:SiftFlow",
        "voc": "kerasseg.data.layouts.voc:Voc",
        "sbd": "kerasseg.data.layouts.sbd:Sbd",
        "pascal_context": "kerasseg.data.layouts.pascal_context:PascalContext",
        "pascal_person_part": "kerasseg.data.layouts.person_part:PascalPersonPart",
        "tfds": "kerasseg.data.layouts.tfds:Tfds",
        "features": "kerasseg.data.features:StoredFeatures",
    },
)
"""Name → class of the data set; each is called as `(data_dir, split, **options)`."""

JOINT = "+"
"""What stands between the names, and between the splits, of data sets that are opened as one."""


def open_data(name: str, /, data_dir=None, split: str = "train", **options) -> DataSet:
    """Opens a data set by its name, or several as one.

    `voc+coco_voc` is the union of both, with split `train` of each, or with one of its own for each, as `trainaug+trainval`;
    `data_dir` is then a folder that holds a folder of each name, or that the loader of each finds its files in, or as many
    folders joined by commas. One name with several splits is their union.

    Where the folder, or `kerasseg-<name>` in it, was made by `tools/prepare_data.py`, the prepared data are opened.

    Args:
        name: One of `DATA_SETS`, or several joined by `+`.
        data_dir: Its folder, on a disk or as `gs://bucket/folder`; `None` for `shapes`, which is drawn.
        split: `"train"`, `"val"`, … as the data set has them.
        options: What else the data set takes, e.g. `size` for `shapes`; of a union each set takes those that it has.
    Returns:
        The opened data set; files are listed and paired, not yet decoded.
    Raises:
        KerassegError: If the name or an option is unknown, or the folder is not laid out as expected.
    Example:
        >>> len(open_data("shapes", split="val", length=8))
        8
    """
    if split is not None and (JOINT in name or JOINT in split):
        return _open_union(name, data_dir, split, options)
    _check_options([name], options)
    return _open_one(name, data_dir, split, options)


def is_known(name: str) -> bool:
    """Tells whether `open_data` takes a name.

    Args:
        name: Of a data set, or several joined by `+`.
    Returns:
        Whether each is in `DATA_SETS`.
    """
    return all(part in DATA_SETS for part in name.split(JOINT))


def _takes(name: str) -> list[str]:
    return [option for option in inspect.signature(DATA_SETS[name]).parameters if option not in ("data_dir", "split")]


def _check_options(names: list[str], options: Mapping[str, Any]) -> None:
    known = list(dict.fromkeys(option for name in names for option in _takes(name)))
    for option in options:
        if option not in known:
            answer = did_you_mean(option, known) if known else "it takes only data_dir and split"
            raise KerassegError(f"data set '{JOINT.join(names)}' has no option '{option}': {answer}")


def _open_one(name: str, data_dir, split: str, options: Mapping[str, Any]) -> DataSet:
    data_set = DATA_SETS[name]
    data = None if data_dir is None else open_prepared(name, data_set, data_dir, split, options)
    if data is None:
        data = data_set(data_dir, split, **options)
    # By these a cache tells apart what was made of the same files.
    data.opened_with = {"name": name, **options}
    return data


def _open_union(name: str, data_dir, split: str, options: Mapping[str, Any]) -> DataSet:
    names, splits = name.split(JOINT), split.split(JOINT)
    count = max(len(names), len(splits))
    if len(names) not in (1, count) or len(splits) not in (1, count):
        raise KerassegError(
            f"data sets '{name}' received the splits '{split}': expected one for all, or {len(names)} joined by '{JOINT}'"
        )
    names, splits = names * (count // len(names)), splits * (count // len(splits))
    _check_options(names, options)
    folders = _folders(names, data_dir)
    named = {}
    for part, folder, each in zip(names, folders, splits, strict=True):
        known = _takes(part)
        data = _open_one(part, folder, each, {option: value for option, value in options.items() if option in known})
        title = part if Counter(names)[part] == 1 else f"{part}:{each}"
        if title in named:
            title = f"{title}:{len(named)}"
        named[title] = data
    return Union(named)


def _folders(names: list[str], data_dir) -> list:
    """Where each data set of a union lies."""
    if data_dir is None:
        return [None] * len(names)
    places = several_places(data_dir)
    if len(places) == 1:
        root = data_path(data_dir)
        return [root / name if (root / name).is_dir() else root for name in names]
    if len(places) != len(names):
        raise KerassegError(
            f"data sets '{JOINT.join(names)}' received {len(places)} folders, '{data_dir}': expected one that holds all, or "
            f"{len(names)} joined by commas"
        )
    return list(places)
