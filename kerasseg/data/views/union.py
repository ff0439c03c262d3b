"""Several data sets as one."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from kerasseg.data.records import DataSet, Example
from kerasseg.data.views.derived import Derived
from kerasseg.errors import KerassegError

_PHOTOGRAPHS_OF = {"sbd": "voc"}
"""Data sets whose ids name the photographs of another one."""


class Union(Derived):
    """The examples of several data sets, one set after the other, as one data set.

    All must have one label table, that is, the same classes in the same order. An example that stands in several of them is
    listed once, with the label of the first: an image file of two splits, or a photograph of VOC that SBD labels, too. Two
    different examples of one id are told apart as `name/id`.

    Args:
        data_sets: Name → data set, or the data sets alone, whose label tables then name them.
    Raises:
        KerassegError: If there is none, or they differ in classes, heads, inputs or channels.
    Example:
        >>> from kerasseg.data import open_data
        >>> shapes = Union({"many": open_data("shapes", length=8), "few": open_data("shapes", split="val", length=2)})
        >>> len(shapes), shapes.counts
        (10, {'many': 8, 'few': 2})
    """

    def __init__(self, data_sets: Mapping[str, DataSet] | Iterable[DataSet]):
        named = data_sets if isinstance(data_sets, Mapping) else _named(tuple(data_sets))
        if not named:
            raise KerassegError("a union received no data set: name some, e.g. open_data('voc+coco_voc', FOLDER)")
        first_name, first = next(iter(named.items()))
        for name, data in named.items():
            _check_alike(first_name, first, name, data)
        self.data_sets = tuple(named.values())
        self._places = _listed_once(named)
        held = Counter(number for number, _ in self._places)
        self.counts = {name: held[number] for number, name in enumerate(named)}
        super().__init__(first, _ids(named, self._places))
        self.mean = _mean([data.mean for data in self.data_sets], self.counts.values())

    def read(self, index: int) -> Example:
        """Reads an example from the data set that it is of, under its id here."""
        number, place = self._places[index]
        example = self.data_sets[number].read(place)
        return Example(example.image, example.label, self.ids[index], example.path)

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads a label map from the data set that it is of."""
        number, place = self._places[index]
        return self.data_sets[number].read_label(place)

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example is from.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The data set, and the index in it.
        """
        number, place = self._places[index]
        return self.data_sets[number], place


def _named(data_sets: tuple[DataSet, ...]) -> dict[str, DataSet]:
    names = [data.labels.name for data in data_sets]
    titles = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]
    return dict(zip(titles, data_sets, strict=True))


def _check_alike(first_name: str, first: DataSet, name: str, data: DataSet) -> None:
    mine, others = first.labels.classes, data.labels.classes
    if mine != others:
        count = min(len(mine), len(others))
        place = next((k for k in range(count) if mine[k] != others[k]), count)
        told = [f"'{classes[place]}'" if place < len(classes) else "none" for classes in (mine, others)]
        raise KerassegError(
            f"data sets '{first_name}' ({len(mine)} classes) and '{name}' ({len(others)} classes) differ in class {place}, which "
            f"is {told[0]} and {told[1]}: join only sets with the same classes in the same order"
        )
    heads = [{head: table.classes for head, table in (each.heads or {}).items()} for each in (first, data)]
    pairs = {
        "heads": heads,
        "inputs": [each.inputs for each in (first, data)],
        "channels": [each.channels for each in (first, data)],
        "colors": [each.colors for each in (first, data)],
        "photographs": [each.photographs for each in (first, data)],
    }
    for kind, (one, other) in pairs.items():
        if one != other:
            raise KerassegError(
                f"data sets '{first_name}' and '{name}' differ in their {kind}, {one} and {other}: a network is trained on one "
                "kind of examples, open one of them alone"
            )


def _listed_once(named: Mapping[str, DataSet]) -> tuple[tuple[int, int], ...]:
    """Number of the data set and index in it, of each example that none before has."""
    seen, places = set(), []
    for number, (name, data) in enumerate(named.items()):
        kind = _opened_as(data) or name.partition(":")[0]
        for index in range(len(data)):
            key = _photograph(kind, data, index) or (number, index)
            if key not in seen:
                seen.add(key)
                places.append((number, index))
    return tuple(places)


def _opened_as(data: DataSet) -> str | None:
    """The name that a data set was opened by, or by which its photographs are known."""
    return getattr(data, "opened_with", {}).get("data_set") or getattr(data, "photographs_of", None)


def _photograph(kind: str | None, data: DataSet, index: int) -> tuple | None:
    """By what the photograph of an example is known in other data sets, too; `None` where nothing tells."""
    photographs = _PHOTOGRAPHS_OF.get(kind, kind)
    if photographs in _PHOTOGRAPHS_OF.values():
        return photographs, data.ids[index]
    records = getattr(data, "records", None)
    # Not by the name alone: two folders may well have an `image1` each.
    return (str(records[index].image), data.ids[index]) if records else None


def shared_examples(data: DataSet, others: DataSet) -> tuple[str, ...]:
    """Names the examples of a data set whose photograph is in another one, too.

    Args:
        data: The data set, for instance to validate on.
        others: The other one, for instance to train on.
    Returns:
        Their ids, in their order. Photographs of VOC are known by name, others by their file; of what has neither nothing is told.
    """
    theirs = {key for _, key in _photographs(others)}
    return tuple(name for name, key in _photographs(data) if key is not None and key in theirs)


def _photographs(data: DataSet) -> Iterator[tuple[str, tuple | None]]:
    """Of each example its id and what its photograph is known by, in the data set that reads it."""
    for index, name in enumerate(data.ids):
        origin = data
        while step := getattr(origin, "place", None) or getattr(origin, "cut_from", None):
            origin, index = step(index)
        yield name, _photograph(_opened_as(origin), origin, index)


def _ids(named: Mapping[str, DataSet], places) -> list[str]:
    names, data_sets = list(named), list(named.values())
    plain = [data_sets[number].ids[index] for number, index in places]
    held = Counter(plain)
    return [f"{names[number]}/{name}" if held[name] > 1 else name for (number, _), name in zip(places, plain, strict=True)]


def _mean(means, counts) -> tuple[float, ...]:
    if len(set(map(tuple, means))) == 1:
        return means[0]
    return tuple(float(channel) for channel in np.average(np.array(means, np.float64), axis=0, weights=list(counts)))
