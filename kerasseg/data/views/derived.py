"""Data sets made of another one."""

from collections.abc import Iterable

from kerasseg.data.records import DataSet


class Derived(DataSet):
    """The base of a data set that holds some examples of another one, or changed ones: what both have in common is taken over.

    Args:
        data: The other one.
        ids: Names of the examples in their order.
    """

    def __init__(self, data: DataSet, ids: Iterable[str]):
        self.photographs, self.channels, self.colors = data.photographs, data.channels, data.colors
        self.heads, self.inputs = data.heads, data.inputs
        super().__init__(data.labels, ids, data.mean)
