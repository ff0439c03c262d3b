"""What the data sets around PASCAL VOC share: the folder of a year, lists of names, MATLAB's files."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kerasseg.data.layouts.shared import below, first_folder
from kerasseg.errors import KerassegError

# Where people leave the folders of the years; the third is how VOC 2011 unpacks.
_ABOVE = ((), ("VOCdevkit",), ("TrainVal", "VOCdevkit"))


def find_year(root: Path, years: Sequence[int]) -> Path | None:
    """Finds the folder of a year of VOC, which holds `JPEGImages/`, however people point at it.

    Args:
        root: The year's folder itself, the one of another year beside it, `VOCdevkit`, or its parent.
        years: In the order in which they are looked for.
    Returns:
        The folder, or `None`. One whose name says no year is taken for any.
    """
    named = re.fullmatch(r"VOC(\d{4})", root.name)
    if (root / "JPEGImages").is_dir() and (not named or int(named[1]) in years):
        return root
    names = [f"VOC{year}" for year in years]
    places = [place for name in names for place in below(root, *((*above, name) for above in _ABOVE))]
    return first_folder([*places, *(root.parent / name for name in names if named)], "JPEGImages")


def read_lines(path: Path) -> list[list[str]]:
    """Reads a list.

    Args:
        path: The file.
    Returns:
        The words of each line that is not empty and does not begin with `#`.
    Raises:
        KerassegError: If the list is missing, is no text, or is empty.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise KerassegError(f"there is no list {path}: expected the names of the examples of the split in it, one a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KerassegError(f"cannot read the list {path} ({error}): expected the names of examples, one a line") from error
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise KerassegError(f"the list {path} names no example: expected one a line, e.g. `2007_000032`")
    return words


def read_ids(path: Path) -> list[str]:
    """Reads the names of examples.

    Args:
        path: The list, one a line. The first word counts; of a path the name without suffix.
    Returns:
        The names, in the list's order.
    Raises:
        KerassegError: As `read_lines`.
    """
    names = [words[0].rpartition("/")[2] for words in read_lines(path)]
    return [re.sub(r"\.(jpe?g|png|mat)$", "", name, flags=re.IGNORECASE) for name in names]


def read_mat(path: Path, variable: str, content: Callable):
    """Reads one variable of a file of MATLAB, version 5.

    Args:
        path: The file.
        variable: Its name.
        content: Makes of it, as scipy reads it, what is wanted; it may fail where the file is not as it should be.
    Returns:
        What `content` returns.
    Raises:
        KerassegError: If the file is missing, damaged, or holds something else.
    """
    # Other data sets do without it, and it takes a while.
    from scipy.io import loadmat

    expected = f"expected a whole .mat file with the variable {variable}; copy the file again"
    try:
        return content(loadmat(io.BytesIO(path.read_bytes()), variable_names=[variable])[variable])
    except FileNotFoundError:
        raise KerassegError(f"no such file: {path}; check the data folder and the list that names it") from None
    except KerassegError:
        raise
    except Exception as error:
        # Any: what scipy raises depends on which byte is wrong.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KerassegError(f"cannot read {path} ({reason}): {expected}") from error
