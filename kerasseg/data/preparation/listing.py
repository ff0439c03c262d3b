"""What a data set lists, in text: by it an example is known again, and an edited list is noticed."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from kerasseg.data.paths import is_remote
from kerasseg.data.records import DataSet, FileDataSet


class Relative:
    """Gives paths from a folder on, so that both can be moved together.

    Args:
        folder: The folder.
    Example:
        >>> Relative("/data/voc/kerasseg-voc")("/data/voc/JPEGImages/2007_000032.jpg")
        '../JPEGImages/2007_000032.jpg'
    """

    def __init__(self, folder):
        self._folder, self._parents = folder, {}

    def __call__(self, path) -> str:
        """Gives one; of what is on no disk the whole address."""
        if is_remote(path):
            return str(path)
        # Of a hundred thousand files few folders differ.
        parent, name = os.path.split(path)
        if name in ("", ".", ".."):
            return Path(os.path.relpath(path, self._folder)).as_posix()
        if parent not in self._parents:
            before = Path(os.path.relpath(parent or ".", self._folder)).as_posix()
            self._parents[parent] = "" if before == "." else f"{before}/"
        return self._parents[parent] + name


def keys_of(data: DataSet, split: str, relative: Relative) -> list[str]:
    """Tells what the examples of a split are made of.

    Args:
        data: The split.
        split: Its name.
        relative: Gives paths from the prepared folder on.
    Returns:
        Of each example, in their order, its name and its image and mask, with tabs between them; or its name and the split, where
        it is not of files.
    """
    if not isinstance(data, FileDataSet):
        return [f"{name}\t{split}" for name in data.ids]
    files = ([relative(path) for path in (record.image, record.mask) if path is not None] for record in data.records)
    return ["\t".join([name, *paths]) for name, paths in zip(data.ids, files, strict=True)]


def sum_of(keys: Iterable[str]) -> str:
    """Sums up what is listed.

    Args:
        keys: Of `keys_of`.
    Returns:
        A SHA-256, which differs if one example does, or their order.
    """
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest()
