"""What only reading all of a data set tells, found once in a process: the check of stages and their training share it."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from kerasseg.data import DataSet
from kerasseg.data.paths import is_remote
from kerasseg.data.records import source_of
from kerasseg.data.views.cache import source_files
from kerasseg.recipes.base import Recipe

Found = TypeVar("Found")

_OPENED_BY = ("data", "data_dir", "split", "data_arguments")
_SEEN_BY = ("skip_broken", "foreground", "background", "bootstrap_classes", "examples", "boxes")
_FOUND: dict[tuple, Any] = {}
# More than the stages of any recipe.
_LIMIT = 16


def remembered(kind: str, recipe: Recipe, data: DataSet, find: Callable[[], Found], *, as_opened: bool = False) -> Found:
    """Gives what was found before for the same data, as long as no file has changed; else finds it.

    Args:
        kind: What is found.
        recipe: Names the data.
        data: They, opened.
        find: Reads them all.
        as_opened: Whether the recipe's changes of them, such as `bootstrap_classes`, come later and do not count.
    Returns:
        What `find` gives or gave.
    """
    fields = _OPENED_BY if as_opened else (*_OPENED_BY, *_SEEN_BY)
    told = json.dumps([getattr(recipe, name) for name in fields], sort_keys=True, default=str)
    key = kind, told, type(data), _state(data)
    if key not in _FOUND:
        found = find()
        while len(_FOUND) >= _LIMIT:
            del _FOUND[next(iter(_FOUND))]
        _FOUND[key] = found
    return _FOUND[key]


def _state(data: DataSet) -> str:
    """The names of the examples, and sizes and times of their files. Of remote ones to ask would take longer than to read some."""
    told = hashlib.sha256()
    for index, name in enumerate(data.ids):
        told.update(repr(name).encode())
        for path in source_files(*source_of(data, index)):
            if not is_remote(path):
                try:
                    found = path.stat()
                    told.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode())
                except OSError:
                    told.update(b"missing")
    return told.hexdigest()
