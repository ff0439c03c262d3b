"""COCO's annotations: reading those of a few classes out of half a gigabyte of JSON, and drawing them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

# How COCO calls VOC's classes, where it calls them otherwise.
_OTHER_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_BACKGROUND = "background"
# Three points; pycocotools takes four numbers for a box.
_FEWEST_NUMBERS = 6
# Of a side in pixels, and of a coordinate: damaged numbers beyond would fill the memory, in C without a word.
_LARGEST = 30_000


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated thing, or a crowd of them.

    Args:
        label: Its class.
        crowd: Whether it marks many at once.
        area: Pixels, as the file says.
        shape: Polygons, each `(x, y, x, y, …)`, or a run-length code, as pycocotools takes them.
    """

    label: int
    crowd: bool
    area: float
    shape: list[np.ndarray] | Mapping[str, Any]


@dataclass(slots=True)
class CocoImage:
    """One image and its regions of the wanted classes, in the order of the file."""

    file_name: str
    height: int
    width: int
    regions: list[Region] = field(default_factory=list)


def read_instances(path: Path, classes: Sequence[str]) -> dict[int, CocoImage]:
    """Reads the images of a file of annotations, with those of some classes.

    The file is parsed in one pass, and what is not wanted is dropped on the way: that of train2017 would fill gigabytes.

    Args:
        path: `instances_*.json`.
        classes: VOC's names in the order of their labels; the first, background, is not looked for.
    Returns:
        Number of the image → image; also those without regions.
    Raises:
        KerassegError: If the file is missing, no JSON of this form, or lacks a class.
    """
    text = _read(path)
    labels = _labels_of_categories(text, path, classes)
    images: dict[int, CocoImage] = {}
    regions: list[tuple[int, Region]] = []

    def keep(thing: dict[str, Any]):
        if "file_name" in thing and "height" in thing:
            images[thing["id"]] = _image(thing)
        elif "category_id" in thing:
            label = labels.get(thing["category_id"])
            shape = None if label is None else _shape(thing["segmentation"])
            if shape:
                regions.append((thing["image_id"], Region(label, bool(thing["iscrowd"]), float(thing["area"]), shape)))
        else:
            return thing
        return None

    try:
        json.loads(text, object_hook=keep)
        for number, region in regions:
            images[number].regions.append(region)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KerassegError(f"cannot read {path} ({reason}): expected COCO's annotations of instances; copy it again") from error
    return images


def image_numbers(path: Path) -> set[int]:
    """Reads which images a list has.

    Args:
        path: COCO annotations, or text with the number of an image, or its file name, in each line.
    Returns:
        The numbers.
    Raises:
        KerassegError: If the file is missing or of another form.
    """
    text = _read(path)
    try:
        if path.suffix == ".json":
            return {image["id"] for image in json.loads(text)["images"]}
        names = [line.strip().removesuffix(".jpg") for line in text.splitlines() if line.strip()]
        return {int(re.search(r"\d+$", name).group()) for name in names}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KerassegError(f"{path} is no list of images: expected a number or file name a line, or COCO's JSON") from error


def draw_regions(image: CocoImage, path: Path) -> np.ndarray:
    """Draws the regions of an image: crowds first, then things from the largest to the smallest.

    Args:
        image: The image.
        path: The file of its annotations, for messages.
    Returns:
        Shape `(H, W)`, int32: labels, 0 where there is no region, 255 where there is nothing but a crowd.
    Raises:
        KerassegError: If pycocotools is not installed, or a region is not for an image of this size or cannot be decoded.
    """
    label = np.zeros((image.height, image.width), np.int32)
    for region in sorted(image.regions, key=lambda region: (not region.crowd, -region.area)):
        label[_mask(region.shape, image, path) > 0] = IGNORE if region.crowd else region.label
    return label


def _mask(shape, image: CocoImage, path: Path) -> np.ndarray:
    codes, size = _pycocotools(), [image.height, image.width]
    try:
        if isinstance(shape, list):
            if not all(np.abs(part).max() <= _LARGEST for part in shape):
                raise KerassegError(f"a coordinate is beyond {_LARGEST}, or no number")
            return codes.decode(codes.merge(codes.frPyObjects(shape, *size)))
        runs = _runs(shape["counts"])
        if list(shape["size"]) != size or sum(runs) != image.height * image.width or min(runs) < 0:
            # Of what a code leaves out pycocotools gives whatever memory held.
            raise KerassegError(f"size {shape['size']} and runs of {sum(runs)} pixels, expected {size} and {size[0] * size[1]}")
        return codes.decode(codes.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape)
    except Exception as error:
        # pycocotools raises Exception itself, and TypeError and ValueError from below it.
        raise KerassegError(f"{path} holds a region of {image.file_name} that is none ({error}): copy it again") from error


def _runs(counts: list[int] | str) -> list[int]:
    """The lengths in a run-length code: a list is they; text has five bits a letter, and differences from the last but one."""
    if isinstance(counts, list):
        return counts
    runs, value, shift = [], 0, 0
    for letter in counts:
        bits = ord(letter) - ord("0")
        value, shift = value | (bits & 31) << shift, shift + 5
        if bits & 32:
            continue
        value -= (bits & 16) and 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; unpack COCO's annotations there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KerassegError(f"cannot read {path} ({error}): copy it again") from error


def _labels_of_categories(text: str, path: Path, classes: Sequence[str]) -> dict[int, int]:
    """COCO's number of a category → label. They stand at the end of the file, after all that is to be read by them."""
    start = text.rfind('"categories"')
    try:
        categories, _ = json.JSONDecoder().raw_decode(text, text.index("[", start))
        numbers = {category["name"]: category["id"] for category in categories}
    except (ValueError, KeyError, TypeError) as error:
        raise KerassegError(f"{path} has no list of categories: expected COCO's annotations of instances; copy it again") from error
    wanted = {_OTHER_NAMES.get(name, name): label for label, name in enumerate(classes) if name != _BACKGROUND}
    lost = [name for name in wanted if name not in numbers]
    if lost:
        raise KerassegError(f"{path} has no category {', '.join(lost)}: expected COCO's 80, by their names")
    return {numbers[name]: label for name, label in wanted.items()}


def _image(thing: Mapping[str, Any]) -> CocoImage:
    name, height, width = thing["file_name"], thing["height"], thing["width"]
    if not isinstance(name, str) or not all(isinstance(side, int) and 0 < side <= _LARGEST for side in (height, width)):
        raise ValueError(f"image {thing['id']} is {name!r}, {width}×{height} pixels")
    return CocoImage(name, height, width)


def _shape(segmentation):
    """What can be drawn; nothing of parts with fewer than three points, which have no area."""
    if isinstance(segmentation, dict):
        return segmentation
    # Exact: pycocotools rounds fifths of a pixel, and float32 falls on either side of them.
    return [np.array(part, np.float64) for part in segmentation if len(part) >= _FEWEST_NUMBERS]


def _pycocotools():
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise KerassegError("pycocotools is not installed: run `pip install 'kerasseg[data]'`") from error
    return mask
