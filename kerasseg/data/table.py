"""The table of the data sets, and how one is opened."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kerasseg.data.paths import data_path, several_places
from kerasseg.data.preparation.prepared import find_prepared, open_prepared
from kerasseg.data.records import DataSet
from kerasseg.data.signatures import check_value, options_of
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

    So that the stages of a recipe share one `data_dir`, one name takes such folders, too: a folder that holds one of that name, or
    several joined by commas, of which it opens the first that holds the data set.

    Where the folder, or `kerasseg-<name>` in it, was made by `tools/prepare_data.py`, the prepared data are opened.

    Args:
        name: One of `DATA_SETS`, or several joined by `+`.
        data_dir: Its folder, on a disk or as `gs://bucket/folder`; `None` for `shapes`, which is drawn.
        split: `"train"`, `"val"`, … as the data set has them.
        options: What else the data set takes, e.g. `size` for `shapes`; of a union each set takes those that it has.
    Returns:
        The opened data set; files are listed and paired, not yet decoded.
    Raises:
        KerassegError: If the name or an option is unknown or an option of another type than it is, or the folder is not laid out
            as expected.
    Example:
        >>> len(open_data("shapes", split="val", length=8))
        8
    """
    check_value(name, "data_dir", data_dir, str | os.PathLike | None)
    check_value(name, "split", split, str)
    if JOINT in name or JOINT in split:
        return _open_union(name, data_dir, split, options)
    check_options([name], options)
    return _open_first(name, _places([name], data_dir)[0], split, options)


def is_known(name: str) -> bool:
    """Tells whether `open_data` takes a name.

    Args:
        name: Of a data set, or several joined by `+`.
    Returns:
        Whether each is in `DATA_SETS`.
    """
    return all(part in DATA_SETS for part in name.split(JOINT))


def check_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuses options that none of some data sets takes, and values that are not of an option's type.

    Args:
        names: Of the data sets.
        options: What was given.
    Raises:
        KerassegError: If there is one.
    """
    takes = {name: options_of(DATA_SETS[name]) for name in names}
    known = list(dict.fromkeys(option for own in takes.values() for option in own))
    for option, value in options.items():
        if option not in known:
            answer = did_you_mean(option, known) if known else "it takes only data_dir and split"
            raise KerassegError(f"data set '{JOINT.join(names)}' has no option '{option}': {answer}")
        for name, own in takes.items():
            if option in own:
                check_value(name, option, value, own[option])


def _open_first(name: str, places: Sequence, split: str, options: Mapping[str, Any]) -> DataSet:
    """Opens a data set in the first of some places that has it."""
    refusals = {}
    for place in places:
        try:
            return _open_one(name, _own_folder(name, place), split, options)
        except KerassegError as error:
            refusals.setdefault(str(error), error)
    if len(refusals) == 1:
        raise next(iter(refusals.values()))
    raise KerassegError(f"none of {len(places)} folders will do for data set '{name}': {'; '.join(refusals)}")


def _own_folder(name: str, place):
    """Where a data set lies, in a folder that may hold one for each name."""
    if place is None:
        return None
    root, family = data_path(place), DATA_SETS[name].family
    # What was prepared in a folder is of the folder itself.
    if find_prepared(root, name, family) is not None:
        return place
    inside = [root / each for each in dict.fromkeys((name, family)) if each]
    return next((folder for folder in inside if folder.is_dir()), place)


def _open_one(name: str, data_dir, split: str, options: Mapping[str, Any]) -> DataSet:
    data_set = DATA_SETS[name]
    data = None if data_dir is None else open_prepared(name, data_set, data_dir, split, options)
    if data is None:
        data = data_set(data_dir, split, **options)
    # By these a cache tells apart what was made of the same files.
    data.opened_with = {"data_set": name, **options}
    return data


def _open_union(name: str, data_dir, split: str, options: Mapping[str, Any]) -> DataSet:
    names, splits = name.split(JOINT), split.split(JOINT)
    count = max(len(names), len(splits))
    if len(names) not in (1, count) or len(splits) not in (1, count):
        raise KerassegError(
            f"data sets '{name}' received the splits '{split}': expected one for all, or {len(names)} joined by '{JOINT}'"
        )
    folders = _places(names, data_dir) * (count // len(names))
    names, splits = names * (count // len(names)), splits * (count // len(splits))
    check_options(names, options)
    parts = [(part, tuple(places), each) for part, places, each in zip(names, folders, splits, strict=True)]
    for part, places, each in parts:
        if parts.count((part, places, each)) > 1:
            raise KerassegError(f"data sets '{name}' received split '{each}' of '{part}' twice, of one folder: name each once")
    named = {}
    for part, places, each in zip(names, folders, splits, strict=True):
        known = options_of(DATA_SETS[part])
        data = _open_first(part, places, each, {option: value for option, value in options.items() if option in known})
        title = part if Counter(names)[part] == 1 else f"{part}:{each}"
        if title in named:
            title = f"{title}:{len(named)}"
        named[title] = data
    return Union(named)


def _places(names: list[str], data_dir) -> list[list]:
    """Where each data set may lie: several have each their own place, one has any of them."""
    places = [data_dir] if data_dir is None else several_places(data_dir)
    if len(places) == 1:
        return [[data_dir]] * len(names)
    if len(names) == 1:
        return [list(places)]
    if len(places) != len(names):
        raise KerassegError(
            f"data sets '{JOINT.join(names)}' received {len(places)} folders, '{data_dir}': expected one that holds all, or "
            f"{len(names)} joined by commas"
        )
    return [[place] for place in places]
