"""Anyone's own data: a table of images and masks, wherever they lie."""

import csv
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kerasseg.data.layouts.folder import in_usual_order, is_for_validation, read_classes
from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable, generic_table
from kerasseg.tables import did_you_mean

_COLUMNS = ("image", "mask", "split", "id")
_DELIMITERS = ",;\t"
_EXPECTED = "a list with the columns image, mask[, split][, id], and classes.txt beside it"


class CsvList(FileDataSet):
    """A table of images and masks, one example a line, and `classes.txt` beside it.

    The columns are `image`, `mask`, `split` and `id`, in this order, or in any order below a first line with their names, where
    others may stand, too; `split` and `id` may be absent. Commas, semicolons or tabs part them. Paths are relative to the list. A
    line without mask is an example without label. Without a column `split`, the names decide as in `Folder`: about one in five
    examples is in `val`, the others in `train`. Without a column `id`, the name of the image's file is it, or its path where
    several have one name.

    Images, masks and `classes.txt` are those of `Folder`.

    Args:
        data_dir: The list, UTF-8.
        split: What the column says; `"train"` or `"val"` without one.
        classes: Another file like `classes.txt`, relative to the list, or the names of the classes.
    Raises:
        KerassegError: If the list or the classes cannot be read, or the split is unknown.
    Example:
        >>> data = CsvList("my_photos/list.csv", "val")  # doctest: +SKIP
    """

    def __init__(self, data_dir=None, split: str = "train", classes: str | Sequence[str] | None = None):
        path = _list_file(data_dir)
        rows = _rows(path, _text(path))
        chosen = [record for record, its_split in rows if its_split == split]
        if not chosen:
            known = in_usual_order(its_split for _, its_split in rows)
            raise KerassegError(f"{path} has no example of split '{split}': {did_you_mean(str(split), known)}")
        super().__init__(_labels(path, classes), chosen)

    @classmethod
    def splits_of(cls, data_dir, **options) -> tuple[str, ...]:
        """Names what the column `split` holds; see `DataSet`."""
        path = _list_file(data_dir)
        return in_usual_order(split for _, split in _rows(path, _text(path)))


def _list_file(data_dir) -> Path:
    remedy = "open_data('csv', 'LIST.csv') or --data csv --data-dir LIST.csv"
    if data_dir is None:
        raise KerassegError(f"data set 'csv' received no data_dir: expected {_EXPECTED}; {remedy}")
    path = data_path(data_dir)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise KerassegError(f"data set 'csv' received data_dir '{data_dir}', which is {what}: expected {_EXPECTED}; {remedy}")
    return path


def _labels(path: Path, classes: str | Sequence[str] | None) -> LabelTable:
    if classes is not None and not isinstance(classes, str):
        return generic_table(list(map(str, classes)))
    file = path.parent / (classes or "classes.txt")
    if not file.is_file():
        raise KerassegError(
            f"there is no {file}: expected one class a line; name another file by --data-arguments classes=FILE, or the classes "
            """themselves by --data-arguments 'classes=["ground", "cat"]'"""
        )
    return read_classes(file)


# Each split is opened from the same list.
@functools.lru_cache(maxsize=2)
def _rows(path: Path, text: str) -> tuple[tuple[Record, str], ...]:
    """The examples, and the split of each."""
    lines = _lines(path, text)
    columns, lines = _columns(path, lines)
    places = [_entry(path, number, columns, cells) for number, cells in lines]
    if not places:
        raise KerassegError(f"{path} lists nothing: expected {_EXPECTED}")
    stems = Counter(_stem(row["image"]) for row in places)
    found, seen = [], {}
    for row in places:
        stem = _stem(row["image"])
        name = row["id"] or (stem if stems[stem] == 1 else row["image"].rpartition(".")[0])
        split = row["split"] if "split" in columns else "val" if is_for_validation(name) else "train"
        if (name, split) in seen:
            raise KerassegError(
                f"{path} lists '{name}' twice in split '{split}', in lines {seen[name, split]} and {row['line']}: expected one "
                "line for each example, or a column id that tells them apart"
            )
        seen[name, split] = row["line"]
        mask = _file(path, row["mask"]) if row["mask"] else None
        found.append((Record(name, _file(path, row["image"]), mask), split))
    return tuple(found)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise KerassegError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None


def _lines(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that holds something."""
    first = next(filter(str.strip, text.splitlines()), "")
    reader = csv.reader(text.splitlines(), delimiter=max(_DELIMITERS, key=first.count), skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise KerassegError(f"{path} is no CSV (line {reader.line_num}: {error}): expected {_EXPECTED}") from error
    return [(number, cells) for number, cells in lines if any(cells)]


def _columns(path: Path, lines: list) -> tuple[list[str], list]:
    if not lines:
        raise KerassegError(f"{path} is empty: expected {_EXPECTED}")
    first = [cell.lower() for cell in lines[0][1]]
    if "image" not in first:
        return list(_COLUMNS[: len(first)]), lines
    if "mask" not in first or len(set(first)) < len(first):
        raise KerassegError(f"{path} begins with '{', '.join(first)}': expected the columns image, mask[, split][, id], each once")
    return first, lines[1:]


def _entry(path: Path, number: int, columns: list[str], cells: list[str]) -> dict:
    if len(cells) != len(columns) or len(columns) < 2:
        raise KerassegError(
            f"{path} has {len(cells)} columns in line {number}, expected {max(2, len(columns))}: {', '.join(columns)}; put paths "
            'with commas in "quotation marks"'
        )
    row = dict.fromkeys(_COLUMNS, "") | dict(zip(columns, cells, strict=True)) | {"line": number}
    if not row["image"]:
        raise KerassegError(f"{path} names no image in line {number}: expected a path relative to the list")
    if "split" in columns and not row["split"]:
        raise KerassegError(f"{path} names no split in line {number}: expected one, e.g. train")
    return row


def _stem(image: str) -> str:
    name = image.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _file(path: Path, place: str) -> Path:
    place = place.replace("\\", "/")
    # Joined to a folder, an absolute path stays what it is.
    return data_path(place) if is_remote(place) else path.parent / place
