"""Bootstrapping on hard images: those that hold a rare class come twice."""

from collections.abc import Callable, Sequence

import numpy as np

from kerasseg.data.records import DataSet, Example, each_label
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable
from kerasseg.tables import did_you_mean


class Bootstrapped(Derived):
    """A data set with the images that hold any of some classes listed once more, after all others.

    Making it reads every label once.

    Args:
        data: Examples with labels.
        classes: Names or numbers of the classes, as in `data.labels`.
        report: Called with the number of labels read and of all of them, after each.
    Raises:
        KerassegError: If a class is unknown, no image holds one, or an example has no label.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §4.3: bicycle, chair, table, potted plant and sofa of PASCAL VOC.
    Example:
        >>> from kerasseg.data import Bootstrapped, open_data
        >>> data = open_data("shapes", length=8)
        >>> len(data) < len(Bootstrapped(data, ["stripes"])) <= 2 * len(data)
        True
    """

    def __init__(self, data: DataSet, classes: Sequence[str | int], report: Callable[[int, int], None] | None = None):
        wanted = [_class_number(name, data.labels) for name in classes]
        # Of several label maps the first, whose classes they are.
        maps = (label if data.heads is None else label[..., 0] for label in each_label(data, report))
        found = [index for index, label in enumerate(maps) if np.isin(label, wanted).any()]
        if not found:
            raise KerassegError(
                f"no image of data set '{data.labels.name}' holds {' or '.join(map(str, classes))}: nothing to list twice"
            )
        self._data, self._indices = data, (*range(len(data)), *found)
        super().__init__(data, (data.ids[index] for index in self._indices))

    def read(self, index: int) -> Example:
        """Reads the example from the data set behind it."""
        return self._data.read(self._indices[index])

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads a label map from the data set behind it."""
        return self._data.read_label(self._indices[index])

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example comes from: the data set behind this one, and its number there."""
        return self._data, self._indices[index]


def _class_number(name: str | int, labels: LabelTable) -> int:
    if name in labels.classes:
        return labels.classes.index(name)
    if str(name).isdecimal() and int(name) < labels.num_classes:
        return int(name)
    raise KerassegError(f"data set '{labels.name}' has no class '{name}': {did_you_mean(str(name), labels.classes)}")
