"""Some of the examples of a data set."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kerasseg.data.records import DataSet, Example
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError


class Subset(Derived):
    """Some of the examples of a data set, in the order in which they are named.

    Args:
        data: The data set.
        indices: Which examples, each 0 to `len(data)` − 1.
    Raises:
        KerassegError: If an index is out of range.
    Example:
        >>> from kerasseg.data import open_data
        >>> Subset(open_data("shapes", length=4), [3, 1]).ids
        ('train_00003', 'train_00001')
    """

    def __init__(self, data: DataSet, indices: Iterable[int]):
        self.whole, self.indices = data, tuple(map(int, indices))
        for index in self.indices:
            if not 0 <= index < len(data):
                raise KerassegError(f"a subset names example {index}: the data set has {len(data)}, expected 0 to {len(data) - 1}")
        super().__init__(data, (data.ids[index] for index in self.indices))

    def read(self, index: int) -> Example:
        """Reads an example; see `DataSet`."""
        return self.whole.read(self.indices[index])

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads a label map; see `DataSet`."""
        return self.whole.read_label(self.indices[index])

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example is from: the data set, and the index in it."""
        return self.whole, self.indices[index]

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells the files; see `DataSet`."""
        return self.whole.sources(self.indices[index])
