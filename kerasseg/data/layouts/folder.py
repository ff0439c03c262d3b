"""Anyone's own data: a folder of images, a folder of masks, a list of classes."""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

from kerasseg.data.layouts.shared import files_in
from kerasseg.data.paths import check_folder, is_remote
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, IGNORE_COLOR, LabelTable, generic_table
from kerasseg.tables import did_you_mean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""How the names of photographs end."""

_MASKS = (".png",)
_BY_NAME = ("train", "val")
# Lists of these names say that the other texts, too, are lists.
_USUAL = frozenset(_BY_NAME)
_COLORED = re.compile(r"(.+?)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)")


class Folder(FileDataSet):
    """A folder with `images/`, `masks/` and `classes.txt`; image and mask have the same name.

    Images are JPEG or PNG; masks are PNG, with indices (grey or palette; 255 = ignore) or the colours of the classes.

    `classes.txt` names one class a line, in the order of the labels; `name r g b` or `name,r,g,b` gives its colour, too, else the
    VOC colour map is used. A last line named `ignore` is no class: its number and its colour mean 255.

    The split is found in the first of these ways that applies:

    1. by `train.txt`, `val.txt`, … beside `classes.txt`, with one name a line, or a pair `image mask` of paths;
    2. by subfolders `images/train/`, `masks/train/`, …;
    3. by the names: an image whose name without suffix has a CRC-32 divisible by 5 belongs to `val`, any other to `train`: about
       20 and 80 %, and an image keeps its place when others come or go.

    Args:
        data_dir: The folder.
        split: Name of the list or subfolder; `"train"` or `"val"` in the third way.
    Raises:
        KerassegError: If the layout is not as told, or an image lacks its mask or a mask its image.
    Example:
        >>> data = Folder("my_photos", "val")  # doctest: +SKIP
    """

    def __init__(self, data_dir=None, split: str = "train"):
        root = check_folder(data_dir, "folder", "images/, masks/, classes.txt")
        for name in ("images", "masks", "classes.txt"):
            if not (root / name).exists():
                raise KerassegError(f"{root} has no {name}: data set 'folder' expects images/, masks/ and classes.txt in it")
        records = _records(root, split)
        if not records:
            raise KerassegError(f"split '{split}' of {root} is empty: add images, or put their names into {root / f'{split}.txt'}")
        super().__init__(read_classes(root / "classes.txt"), records)

    @classmethod
    def splits_of(cls, data_dir, **options) -> tuple[str, ...]:
        """Names the lists, or the subfolders; see `DataSet`."""
        root = check_folder(data_dir, "folder", "images/, masks/, classes.txt")
        lists, subfolders = _lists(root), _subfolders(root / "images")
        used = [name for name in lists if name in _USUAL or _names_an_image(root, name)]
        return in_usual_order(used if _USUAL & set(lists) else subfolders or used) or _BY_NAME


def in_usual_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Sorts names of splits: those that everybody uses first, in their order, then the others by name."""
    usual = ("train", "val", "trainval", "test")
    return tuple(sorted(set(splits), key=lambda name: (usual.index(name) if name in usual else len(usual), name)))


def is_for_validation(name: str) -> bool:
    """Tells to which split an example belongs where nothing says it: about one in five is for validation.

    Args:
        name: Of the example.
    Returns:
        Whether it is for validation; always the same of a name, whatever others there are.
    """
    return zlib.crc32(name.encode()) % 5 == 0


def read_classes(path: Path) -> LabelTable:
    """Reads `classes.txt`, as `Folder` tells it.

    Args:
        path: The file, UTF-8.
    Returns:
        The label table.
    Raises:
        KerassegError: If it names no class, one twice, or gives colours to some only.
    """
    lines = [line.strip() for line in _text(path).splitlines()]
    entries = [_COLORED.fullmatch(line) for line in lines if line]
    names = [entry.group(1) if entry else line for entry, line in zip(entries, filter(None, lines), strict=True)]
    colors = [tuple(int(part) for part in entry.group(2, 3, 4)) if entry else None for entry in entries]
    ignored = [k for k, name in enumerate(names) if name.lower() == "ignore"]
    if ignored not in ([], [len(names) - 1]):
        raise KerassegError(f"{path} names 'ignore' before its last line: labels count lines, move it to the end")
    count = len(names) - len(ignored)
    if not count:
        raise KerassegError(f"{path} names no class: expected one name a line, e.g. `background`")
    for name, color in zip(names, colors, strict=True):
        if color is not None and max(color) > 255:
            raise KerassegError(f"{path} gives '{name}' the colour {color}: expected three numbers from 0 to 255")
    colored = [color for color in colors[:count] if color is not None]
    if len(colored) not in (0, count):
        bare = names[colors.index(None)]
        raise KerassegError(
            f"{path} gives a colour to {len(colored)} of {count} classes, none to '{bare}': give it to all or to none"
        )
    return _table(path, names[:count], colored or None, colors[count:])


def _table(path: Path, names, palette, ignored) -> LabelTable:
    try:
        table = generic_table(names, palette)
        if not ignored:
            return table
        # The line after the last class is its file value, too.
        extra = [color for color in ignored if color not in (None, IGNORE_COLOR)]
        return LabelTable(table.name, table.classes, table.palette, (*table.ignore_colors, *extra), {len(names): IGNORE})
    except KerassegError as error:
        raise KerassegError(f"{path}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise KerassegError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def _records(root: Path, split: str) -> list[Record]:
    images, masks = root / "images", root / "masks"
    lists = _lists(root)
    if split in lists and (_USUAL & set(lists) or _names_an_image(root, split)):
        return _listed(root, split)
    if _USUAL & set(lists):
        raise KerassegError(f"{root} has no {split}.txt: {did_you_mean(split, lists)}")
    subfolders = _subfolders(images)
    if subfolders:
        if split not in subfolders:
            raise KerassegError(f"{images} has no subfolder '{split}': {did_you_mean(split, subfolders)}")
        return pair_files(images / split, masks / split)
    if split not in _BY_NAME:
        raise KerassegError(f"{root} has no split '{split}': without lists or subfolders there are 'train' and 'val'")
    records = pair_files(images, masks)
    return [record for record in records if is_for_validation(record.id) == (split == "val")]


def _lists(root: Path) -> list[str]:
    return [path.stem for path in files_in(root, (".txt",)) if path.suffix == ".txt" and path.name != "classes.txt"]


def _names_an_image(root: Path, split: str) -> bool:
    """Whether a text is a list: one such as README.txt is none."""
    there = _Present(root)
    try:
        return any(_pair(root, line, there)[1] for line in _lines_of(root / f"{split}.txt"))
    except (KerassegError, OSError):
        # In another encoding, or with lines that are longer than any name may be.
        return False


def _subfolders(images: Path) -> list[str]:
    if not images.is_dir():
        return []
    # Of a photograph nothing is asked, which would be a call for each in a bucket.
    others = [path for path in images.iterdir() if path.suffix.lower() not in IMAGE_SUFFIXES and not path.name.startswith(".")]
    return sorted(path.name for path in others if path.is_dir())


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Name without suffix → file."""
    if not folder.is_dir():
        raise KerassegError(
            f"there is no folder {folder}: expected the files {', '.join('*' + suffix for suffix in suffixes)} in it"
        )
    found: dict[str, Path] = {}
    for path in files_in(folder, suffixes):
        if path.stem in found:
            raise KerassegError(
                f"{found[path.stem]} and {path} have one name: expected one file for each name, rename or remove one"
            )
        found[path.stem] = path
    return found


def pair_files(images: Path, masks: Path) -> list[Record]:
    """Pairs all images of a folder with the masks of another, by name.

    Args:
        images: Folder of `*.jpg`, `*.jpeg` or `*.png`.
        masks: Folder of `*.png`.
    Returns:
        The records, sorted by name.
    Raises:
        KerassegError: If there is none, or one lacks the other; names the first and how many.
    """
    photos, labels = _files(images, IMAGE_SUFFIXES), _files(masks, _MASKS)
    if not photos:
        raise KerassegError(f"{images} holds no image: expected {', '.join('*' + suffix for suffix in IMAGE_SUFFIXES)}")
    for these, those, kind, other, where in ((photos, labels, "image", "mask", masks), (labels, photos, "mask", "image", images)):
        alone = [name for name in these if name not in those]
        if alone:
            raise KerassegError(
                f"{kind} {these[alone[0]]} has no {other} ({len(alone)} of {len(these)} {kind}s have none): expected "
                f"{where / alone[0]}{'.png' if other == 'mask' else '.jpg or .png'}; add or remove files"
            )
    return [Record(name, path, labels[name]) for name, path in photos.items()]


def _listed(root: Path, split: str) -> list[Record]:
    images, masks = root / "images", root / "masks"
    records, lost, there = [], [], _Present(root)
    for line in _lines_of(root / f"{split}.txt"):
        name, image, mask = _pair(root, line, there)
        if image is None or mask is None:
            lost.append((line, "image" if image is None else "mask"))
        else:
            records.append(Record(_stem(name, image), image, mask))
    if lost:
        line, kind = lost[0]
        raise KerassegError(
            f"{root / f'{split}.txt'} lists '{line}' but its {kind} is missing ({len(lost)} of {len(records) + len(lost)} lines "
            f"lack a file): expected a name found in {images} and {masks}, or `image mask` paths below {root}"
        )
    return records


def _lines_of(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


class _Present:
    """Which files there are. A remote folder is listed once: each question would be one to the network."""

    def __init__(self, root: Path):
        self._root, self._names = root, {}

    def __contains__(self, path: Path) -> bool:
        return path.name in self._names_in(path.parent) if is_remote(path) else path.is_file()

    def _names_in(self, folder: Path) -> set[str]:
        if folder not in self._names:
            # A line with blanks and slashes may look like a folder of its own.
            there = self._root not in folder.parents or folder.name in self._names_in(folder.parent)
            self._names[folder] = {file.name for file in folder.iterdir()} if there and folder.is_dir() else set()
        return self._names[folder]


def _pair(root: Path, line: str, there: _Present) -> tuple[str, Path | None, Path | None]:
    """Name, image and mask that a line of a list says."""
    images, masks = root / "images", root / "masks"
    # A whole line first: names may hold blanks.
    image = _find(there, line, IMAGE_SUFFIXES, images)
    words = line.split()
    if image is None and len(words) == 2:
        return words[0], _find(there, words[0], IMAGE_SUFFIXES, images, root), _find(there, words[1], _MASKS, masks, root)
    return line, image, _find(there, _stem(line, image), _MASKS, masks)


def _stem(name: str, file: Path | None) -> str:
    # Not by the last dot alone: names without suffix may hold dots.
    return name if file is None else name.removesuffix(file.suffix)


def _find(there: _Present, name: str, suffixes: Iterable[str], *folders: Path) -> Path | None:
    """The file of a name with or without suffix, in the first folder that has it."""
    for folder in folders:
        for candidate in (folder / name, *(folder / (name + suffix) for suffix in suffixes)):
            if candidate.suffix.lower() in suffixes and candidate in there:
                return candidate
    return None
