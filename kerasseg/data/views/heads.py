"""One of several label maps of a data set, as a data set of its own."""

import dataclasses

import numpy as np

from kerasseg.data.records import DataSet, Example
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


class OneHead(Derived):
    """A data set of several label maps an example, with one of them alone.

    Args:
        data: A data set with `heads`.
        head: Name of the label map.
    Attributes:
        task: Name of the label map, which reports say.
    Raises:
        KerassegError: If there is no such label map.
    Example:
        >>> OneHead(open_data("sift_flow", folder, "test"), "geometric")[0].label.shape  # doctest: +SKIP
        (256, 256)
    """

    def __init__(self, data: DataSet, head: str):
        if head not in (data.heads or ()):
            known = did_you_mean(head, data.heads) if data.heads else "it has one label map, so name none"
            raise KerassegError(f"data set '{data.labels.name}' has no label map '{head}': {known}")
        self._data, self._place, self.task = data, list(data.heads).index(head), head
        super().__init__(data, data.ids)
        self.heads, self.labels = None, data.heads[head]

    def read(self, index: int) -> Example:
        """Reads an example, and of its label maps the one."""
        example = self._data.read(index)
        return dataclasses.replace(example, label=self._one(example.label))

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads that label map alone."""
        return self._one(self._data.read_label(index))

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example comes from: the data set behind this one, and its number there."""
        return self._data, index

    def _one(self, label):
        return None if label is None else label[..., self._place]
