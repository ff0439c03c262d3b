"""What several layouts share: splits, finding a release however people point at it, its files, and a look at a mask."""

import functools
import operator
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from PIL import Image

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Refuses a split that a data set does not have.

    Args:
        name: Of the data set.
        split: What was asked for.
        splits: What there is.
    Raises:
        KerassegError: If it is none of them.
    """
    if split not in splits:
        raise KerassegError(f"data set '{name}' has no split '{split}': {did_you_mean(str(split), splits)}")


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Lists the files of a folder by their endings.

    Args:
        folder: The folder; it must be there.
        suffixes: In small letters, each with its dot; files may have them in capitals.
    Returns:
        The files, sorted. Names that begin with a dot are none: macOS keeps `._a.png` beside `a.png` on other disks.
    """
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))


def first_folder(places: Iterable[Path], *parts: str) -> Path | None:
    """Finds the first of several places that holds a folder.

    Args:
        places: Where to look.
        parts: Names of folders, of which it must hold at least one.
    Returns:
        The place, or `None`.
    """
    return next((place for place in places if any((place / part).is_dir() for part in parts)), None)


def below(root: Path, *paths: Sequence[str]) -> list[Path]:
    """Lists places below a folder.

    Args:
        root: The folder.
        paths: The names on the way to each; none is the folder itself.
    Returns:
        The places.
    """
    return [functools.reduce(operator.truediv, path, root) for path in paths]


def find_root(folder: Path, parts: Iterable[str], names: Iterable[str] = ()) -> Path | None:
    """Finds the folder that holds the parts of a release.

    Args:
        folder: What the user named: the release, the folder around it, or one of its parts.
        parts: Folders of which the release has at least one.
        names: How the release's own folder is called.
    Returns:
        The folder that holds a part; `None` if there is none.
    Example:
        >>> find_root(Path("data"), ["leftImg8bit"], ["cityscapes"])  # doctest: +SKIP
        PosixPath('data/cityscapes')
    """
    parts = tuple(parts)
    return first_folder([folder, *(folder / name for name in names), *([folder.parent] if folder.name in parts else [])], *parts)


def is_painted(path: Path) -> bool:
    """Tells whether a mask is in colours.

    Args:
        path: A file of a picture.
    Returns:
        True of RGB and RGBA; false of all else, also of what is none, which decoding it as a whole says.
    """
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            return picture.mode in ("RGB", "RGBA")
    except (OSError, SyntaxError, ValueError):
        return False
