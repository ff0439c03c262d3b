"""The label files of Cityscapes: ids, train ids, and the polygons that both are drawn from."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kerasseg.data.decode import decode_label
from kerasseg.data.layouts.shared import is_painted
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LABELS, LabelTable, voc_palette

_TRAIN_IDS = LABELS["cityscapes"]
_NAMES = (
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,rail track,building,"
    "wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,"
    "truck,bus,caravan,trailer,train,motorcycle,bicycle"
)
IDS = tuple(_NAMES.split(","))
"""Name of each id, from 0 on."""

# Polygons of license plates are never drawn: what lies below them, mostly a car, stays.
_NOT_DRAWN = "license plate"
# Values as they stand in the file. Which of the two numberings they are is then seen by what only one of them has.
_VALUES = LabelTable("cityscapes ids", IDS, voc_palette(len(IDS)), file_to_label={-1: 0})
_GROUP = "group"
# A side beyond this is no photograph's, and would take all memory.
_LARGEST = 30_000


def read_label_file(path: Path) -> np.ndarray:
    """Reads the labels of one image.

    Args:
        path: `*_labelIds.png`, `*_labelTrainIds.png` or `*_polygons.json`.
    Returns:
        Shape `(H, W)`, int32: train ids, 255 = ignore.
    Raises:
        KerassegError: If the file cannot be read, is painted in colours, or holds the other numbering than its name says.
    """
    if path.suffix == ".json":
        return _to_train_ids(draw_polygons(path))
    if is_painted(path):
        raise KerassegError(
            f"{path} holds colours, which do not tell pole from polegroup: expected ids in one channel; use gtFine's "
            "*_labelIds.png, not *_color.png"
        )
    values = decode_label(path, _VALUES)
    if path.name.endswith("labelTrainIds.png"):
        ids = values[(values >= _TRAIN_IDS.num_classes) & (values != IGNORE)]
        if ids.size:
            raise KerassegError(
                f"{path} is named train ids but holds {ids[0]} ({IDS[ids[0]]}), an id: expected 0 to 18 or {IGNORE}; rename "
                "it to *_labelIds.png, or make train ids by cityscapesScripts' csCreateTrainIdLabelImgs"
            )
        return values
    if (values == IGNORE).any():
        raise KerassegError(
            f"{path} is named ids but holds {IGNORE} ({int((values == IGNORE).sum())} pixels), which no id is: these are train "
            "ids; rename it to *_labelTrainIds.png, or copy gtFine's file again"
        )
    return _to_train_ids(values)


def draw_polygons(path: Path) -> np.ndarray:
    """Draws the polygons of one image one over the other in the order of the file, as cityscapesScripts' `json2labelImg`.

    Those marked deleted and license plates are left out; a group is drawn as what it is a group of; what fewer than two points
    mark has no pixel.

    Args:
        path: `*_polygons.json`.
    Returns:
        Shape `(H, W)`, int32: ids, 0 to 33, where nothing is drawn 0.
    Raises:
        KerassegError: If the file is no JSON of this form or names an unknown class.
    """
    try:
        content = json.loads(path.read_bytes())
        size = content["imgWidth"], content["imgHeight"]
        if not all(type(side) is int and 1 <= side <= _LARGEST for side in size):
            raise ValueError(f"imgWidth and imgHeight are {size}, not 1 to {_LARGEST}")
        picture = Image.new("L", size, 0)
        polygons = [
            (thing["label"], [tuple(point) for point in thing["polygon"]])
            for thing in content["objects"]
            if not thing.get("deleted")
        ]
        pen = ImageDraw.Draw(picture)
        for name, points in polygons:
            value = _id_of(name, path)
            if value is not None and len(points) > 1:
                pen.polygon(points, fill=value)
        return np.asarray(picture).astype(np.int32)
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; unpack gtFine or gtCoarse again") from None
    except KerassegError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KerassegError(
            f"cannot draw {path} ({reason}): expected JSON with imgHeight, imgWidth and objects of label and polygon; copy the "
            "file again"
        ) from error


def _id_of(name: str, path: Path) -> int | None:
    if name not in IDS and name.endswith(_GROUP):
        name = name.removesuffix(_GROUP)
    if name == _NOT_DRAWN:
        return None
    if name not in IDS:
        raise KerassegError(f"{path} names the class '{name}', which Cityscapes does not have: expected one of {', '.join(IDS)}")
    return IDS.index(name)


def _to_train_ids(ids: np.ndarray) -> np.ndarray:
    lookup = np.array([_TRAIN_IDS.file_to_label[value] for value in range(len(IDS))], np.int32)
    return lookup[ids]
