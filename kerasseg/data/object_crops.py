"""What DeconvNet learns from: single objects cut out of images, then proposals of where an object may be."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kerasseg.data.boxes import boxes_of, check_boxes, cut_box, dense_windows
from kerasseg.data.records import DataSet, Example, each_label
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LabelTable

_BACKGROUND = "background"


class _Crops(Derived):
    """Windows of the images of another data set; what of them lies outside is black and labelled 255.

    Args:
        data: Examples with labels.
        windows: Example of `data` and box of each crop, in their order.
    """

    def __init__(self, data: DataSet, windows: list[tuple[int, tuple[int, int, int, int]]]):
        self._data, self.windows = data, tuple(windows)
        numbers, ids = {}, []
        for index, _ in windows:
            numbers[index] = numbers.get(index, 0) + 1
            ids.append(f"{data.ids[index]}#{numbers[index]}")
        super().__init__(data, ids)

    def cut_from(self, index: int) -> tuple[DataSet, int]:
        """Tells what a window is cut from; this is no `place`, since the example there has another image.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The data set, and the index in it.
        """
        return self._data, self.windows[index][0]

    def read(self, index: int) -> Example:
        """Reads an image and cuts the window out."""
        source, box = self.windows[index]
        example = self._data.read(source)
        return Example(cut_box(example.image, box, 0), self._label(index, example.label), self.ids[index], example.path)

    def read_label(self, index: int) -> np.ndarray | None:
        """Cuts the window out of the label alone."""
        return self._label(index, self._data.read_label(self.windows[index][0]))

    def _label(self, index: int, label: np.ndarray) -> np.ndarray:
        """The label map of a window."""
        return cut_box(label, self.windows[index][1], IGNORE)


class ObjectCrops(_Crops):
    """A data set with one example for each object: its tight box, enlarged.

    An object is a connected component (by edges and corners) of one class that is not the background. Making the data set reads
    every label once. In the label of a crop, whatever is not the object is background; 255 stays.

    Args:
        data: Examples with labels. The class named "background" is no object; without such a class all are, and what is not the
            object is 255.
        scale: Sides of the window as multiples of the tight box's, around the same centre.
        only_object: Whether other objects in the window are labelled background, or keep their labels.
        minimum_size: Objects of which either side has fewer pixels are left out: specks that a border cuts off an object.
        report: Called with the number of labels read and of all of them, after each.
    Raises:
        KerassegError: If an argument is out of range, an example has no label, or there is no object at all.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, §4.2 and §5.1: first stage, tight boxes 1.2 times as large, labelled by the object
        in the centre alone. The authors know VOC's instances; here two visible parts of one are two objects.
    Example:
        >>> from kerasseg.data import open_data
        >>> data = open_data("shapes", length=4)
        >>> len(ObjectCrops(data)) > len(data)
        True
    """

    def __init__(
        self,
        data: DataSet,
        scale: float = 1.2,
        *,
        only_object: bool = True,
        minimum_size: int = 16,
        report: Callable[[int, int], None] | None = None,
    ):
        if not 1 <= scale < 100 or minimum_size < 1:
            raise KerassegError(
                f"ObjectCrops received scale={scale}, minimum_size={minimum_size}: expected 1 or more and 1 pixel or more, e.g. "
                "ObjectCrops(data, 1.2, minimum_size=16)"
            )
        windows, self._objects = [], []
        for index, label in enumerate(each_label(data, report)):
            for found in _objects(_first(label), data.labels):
                left, top, right, bottom = found.box
                if min(right - left, bottom - top) >= minimum_size:
                    windows.append((index, enlarged(found.box, scale)))
                    self._objects.append(found)
        if not windows:
            raise KerassegError(
                f"data set '{data.labels.name}' has no object of {minimum_size} pixels or more in {len(data)} images: choose "
                "another split, or a smaller minimum_size"
            )
        super().__init__(data, windows)
        self._only_object = only_object

    def _label(self, index: int, label: np.ndarray) -> np.ndarray:
        if self._only_object:
            number, component, _ = self._objects[index]
            background = self.labels.classes.index(_BACKGROUND) if _BACKGROUND in self.labels.classes else IGNORE
            first = _first(label)
            other = (_components(first == number) != component) & (first != IGNORE)
            # What another label map says beside the object is of no object.
            blank = np.array([background, *[IGNORE] * (label[0, 0].size - 1)], np.int32).reshape(label.shape[2:])
            label = np.where(other if label.ndim == 2 else other[..., np.newaxis], blank, label)
        return super()._label(index, label)


class ProposalCrops(_Crops):
    """A data set with one example for each proposal that overlaps an object.

    The label keeps whatever the window shows. Making the data set reads every label once.

    Args:
        data: Examples with labels.
        boxes: Image's id → boxes, as `kerasseg.data.read_boxes` gives them; `None`: `dense_windows` of every image.
        minimum_overlap: Boxes are kept whose intersection over union with the tight box of some object is this or more.
        where: What the boxes were read from, for messages.
        report: Called with the number of labels read and of all of them, after each.
    Raises:
        KerassegError: If an argument is out of range, an image is not listed, a box lies outside its image, an example has no
            label, or no box is kept.
    Reference:
        Noh, Hong & Han 2015, arXiv:1505.04366, §4.2 and §5.1: second stage, proposals that overlap ground truth by 0.5.
    """

    def __init__(
        self,
        data: DataSet,
        boxes: Mapping[str, np.ndarray] | None = None,
        minimum_overlap: float = 0.5,
        *,
        where: str = "the file of boxes",
        report: Callable[[int, int], None] | None = None,
    ):
        if not 0 < minimum_overlap <= 1:
            raise KerassegError(f"minimum_overlap={minimum_overlap}: expected above 0 to 1, e.g. 0.5")
        windows, proposed = [], 0
        for index, label in enumerate(each_label(data, report)):
            if boxes is None:
                proposals = dense_windows(label.shape[:2])
            else:
                name = data.ids[index]
                proposals = check_boxes(boxes_of(boxes, name, where), label.shape[:2], f" of image '{name}' in {where}")
            overlaps = overlap(proposals, object_boxes(_first(label), data.labels))
            kept = proposals[overlaps.max(axis=1, initial=0) >= minimum_overlap]
            windows += [(index, tuple(map(int, box))) for box in kept]
            proposed += len(proposals)
        if not windows:
            which = f"boxes in {where}" if boxes is not None else "boxes"
            raise KerassegError(
                f"none of {proposed} {which} overlaps an object of data set '{data.labels.name}' by {minimum_overlap} or more: "
                "check that the boxes are of these images, or lower minimum_overlap"
            )
        super().__init__(data, windows)


def _first(label: np.ndarray) -> np.ndarray:
    """Of several label maps the one that says what is an object."""
    return label if label.ndim == 2 else label[..., 0]


class _Object(NamedTuple):
    """A connected component of a class: number of the class, number of the component in that class, tight box."""

    number: int
    component: int
    box: tuple[int, int, int, int]


def _components(mask: np.ndarray) -> np.ndarray:
    """Numbers what hangs together by edges and corners, from 1 on in reading order of the first pixels."""
    return ndimage.label(mask, structure=np.ones((3, 3)))[0]


def _objects(label: np.ndarray, labels: LabelTable) -> Iterator[_Object]:
    for number in np.unique(label):
        if number == IGNORE or (number < labels.num_classes and labels.classes[number] == _BACKGROUND):
            continue
        for component, (rows, columns) in enumerate(ndimage.find_objects(_components(label == number)), start=1):
            yield _Object(int(number), component, (columns.start, rows.start, columns.stop, rows.stop))


def object_boxes(label: np.ndarray, labels: LabelTable) -> np.ndarray:
    """Finds the tight boxes of all objects of a label map.

    Args:
        label: Shape `(H, W)`, integer, 255 = ignore.
        labels: Which class is named "background".
    Returns:
        Shape `(N, 4)`, int32: class by class, and of each class component by component (by edges and corners).
    """
    return np.array([found.box for found in _objects(label, labels)], np.int32).reshape(-1, 4)


def enlarged(box, scale: float) -> tuple[int, int, int, int]:
    """Enlarges a box around its centre; it may then reach beyond the image.

    Args:
        box: `(left, top, right, bottom)`.
        scale: Multiple of both sides.
    Returns:
        The smallest box of whole pixels that holds the enlarged one.
    """
    left, top, right, bottom = (int(side) for side in box)
    # A thousandth of a pixel is rounding.
    across, down = (round((side * (scale - 1)) / 2, 3) for side in (right - left, bottom - top))
    return tuple(map(int, (np.floor(left - across), np.floor(top - down), np.ceil(right + across), np.ceil(bottom + down))))


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the intersection over union of each box with each other.

    Args:
        boxes: Shape `(N, 4)`.
        others: Shape `(M, 4)`.
    Returns:
        Shape `(N, M)`, float64, 0 to 1.
    """
    boxes, others = (np.asarray(each, np.float64)[:, :4] for each in (boxes, others))
    near, far = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(far - near, 0), axis=-1)
    areas, other_areas = (np.prod(each[:, 2:] - each[:, :2], axis=-1) for each in (boxes, others))
    return common / (areas[:, None] + other_areas[None] - common)
