"""What decides how the examples of a data set look, beside their files: by it a cache tells data sets apart."""

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping, Set
from types import FunctionType
from typing import Any

import numpy as np

from kerasseg.data.records import DataSet

# What names the examples themselves, or is told by itself.
_OF_EXAMPLES = ("ids", "records", "rows", "mean", "made_with")
_PLAIN = (str, bytes, int, float, complex, type(None), np.generic)


def about(data: DataSet) -> str:
    """Tells a data set from others that make something else of the same files.

    Args:
        data: The data set.
    Returns:
        A checksum of its kind, its tables, what it was made with and the attributes that it has; equal for one that was made alike.
    Example:
        >>> from kerasseg.data import open_data
        >>> about(open_data("shapes", seed=1)) == about(open_data("shapes", seed=2))
        False
    """
    return _about(data, {})


def _about(data: DataSet, seen: dict[int, str]) -> str:
    if id(data) not in seen:
        # For what holds itself.
        seen[id(data)] = type(data).__name__
        own = {name: value for name, value in vars(data).items() if name not in _OF_EXAMPLES}
        tables = data.labels, data.labels.file_to_label, data.heads, data.inputs
        # Objects in the attributes may be all that a loader knows of its files; in the arguments they are settings.
        told = type(data).__module__, type(data).__name__, tables, _told(own, seen), _told(_made_with(data), seen, inside=True)
        seen[id(data)] = hashlib.sha256(repr(told).encode()).hexdigest()
    return seen[id(data)]


def _made_with(data: DataSet) -> dict[str, Any]:
    """The arguments by name, without those that only say where the files are: examples are known by these."""
    positional, named = getattr(data, "made_with", ((), {}))
    try:
        bound = inspect.signature(type(data).__init__).bind_partial(data, *positional, **named)
    except TypeError:
        return {"arguments": positional, **named}
    bound.apply_defaults()
    places = ("data_dir", "split", *getattr(data, "places", ())) if hasattr(data, "files") else ()
    # The first is the data set itself.
    return {name: value for name, value in list(bound.arguments.items())[1:] if name not in (*_OF_EXAMPLES, *places)}


def _told(value, seen: dict[int, str], inside: bool = False) -> str:
    """A setting in short, element by element; of an object of which nothing is known only its kind."""

    def each(values: Iterable) -> list[str]:
        return [_told(one, seen, inside) for one in values]

    kind = type(value).__name__
    if isinstance(value, DataSet):
        return _about(value, seen)
    if isinstance(value, _PLAIN):
        return f"{kind} {value!r}"
    if isinstance(value, os.PathLike) or hasattr(value, "url"):
        return f"str {str(value)!r}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = np.ascontiguousarray(value)
        return f"{value.dtype.str} {value.shape} {hashlib.sha256(content.view(np.uint8) if content.size else b'').hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"array {each(value.tolist())}"
    if isinstance(value, Mapping):
        return f"mapping {sorted(zip(map(repr, value), each(value.values()), strict=True))}"
    if isinstance(value, (list, tuple)):
        told, kinds = each(value), {type(one).__name__ for one in value}
        # How many objects there are differs from split to split.
        return f"list of {sorted(kinds)}" if set(told) == kinds else f"list {told}"
    if isinstance(value, Set):
        return f"set {sorted(each(value))}"
    if isinstance(value, (type, FunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    if inside and dataclasses.is_dataclass(value):
        return f"{kind} {[_told(getattr(value, field.name), seen, inside) for field in dataclasses.fields(value)]}"
    return kind
