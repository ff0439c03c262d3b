"""Stored features: maps of a network's layer with labels at their stride, for training what follows that layer alone.

A folder holds one file for each example, `000000.npz` and so on, each with `features` (float32, `(h, w, C)`) and `label` (uint8,
`(h, w)`), and `features.json`, which says whose they are and is written last.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.data.paths import check_folder
from kerasseg.data.records import DataSet, Example
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LabelTable
from kerasseg.runs.files import atomic_path, sweep, write_json
from kerasseg.tables import did_you_mean

# The second is there while the folder is filled.
_HEADER, _BEGUN = "features.json", "unfinished.json"
# What makes features those of one network and of some examples, how it is called, and of which type it is.
_FIELDS = {
    "fingerprint": ("weights", str),
    "network": ("network", str),
    "layer": ("layer", str),
    "labels": ("data set", str),
    "classes": ("classes", list),
    "palette": ("colours", list),
    "channels": ("channels", int),
    "margin": ("margin", int),
    "size": ("tile size", list | None),
    "stride": ("stride", list | None),
    "scale": ("image scale", float),
    "ids": ("examples", list),
}
# Whatever a damaged file makes np.load raise.
_DAMAGED = (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class StoredFeatures(DataSet):
    """The data set `features`: what `tools/store_features.py`, or a stage of a recipe, has stored.

    Args:
        data_dir: A folder with one folder for each split, `<split>/features.json` and its `.npz` files.
        split: Name of that folder.
    Raises:
        KerassegError: If there is none, storing was not finished, or files are damaged or missing.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §4: the context module is trained alone, on the front end's feature maps.
    Example:
        >>> StoredFeatures("runs/x/stages/2-context/features", "train")[0].image.shape  # doctest: +SKIP
        (66, 66, 21)
    """

    photographs = False

    def __init__(self, data_dir=None, split: str = "train"):
        root = check_folder(data_dir, "features", f"<split>/{_HEADER}")
        self.folder = root / split
        self.header = read_header(self.folder)
        if self.header is None:
            raise KerassegError(_missing(root, split))
        self.channels = self.header["channels"]
        super().__init__(header_labels(self.header), self.header["ids"], (0.0,) * self.channels)
        left = missing(self.folder, len(self))
        if left:
            raise KerassegError(
                f"{self.folder} lacks {len(left)} of its {len(self)} files ({_name(left[0])} …): store them again by the command "
                "that did it, which makes only these"
            )

    def read(self, index: int) -> Example:
        """Reads the map and the label of one example.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The example: `image` is the map, `(h, w, C)` float32, `label` `(h, w)` int32.
        Raises:
            KerassegError: If the file is damaged or holds something else.
        """
        path = self.folder / _name(index)
        try:
            # Opened here, since np.load leaves what it cannot read open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                features, label = arrays["features"], arrays["label"]
        except _DAMAGED as error:
            raise KerassegError(_damaged(path, f"{type(error).__name__}: {error}")) from error
        if features.dtype != np.float32 or features.shape != (*label.shape, self.channels) or label.dtype != np.uint8:
            found = f"features {features.shape} {features.dtype}, label {label.shape} {label.dtype}"
            raise KerassegError(_damaged(path, f"it holds {found}; expected float32 (h, w, {self.channels}) and uint8 (h, w)"))
        if ((label >= self.labels.num_classes) & (label != IGNORE)).any():
            raise KerassegError(_damaged(path, f"label {label[label != IGNORE].max()} of {self.labels.num_classes} classes"))
        return Example(features, label.astype(np.int32), self.ids[index], str(path))


class FeatureWriter:
    """Fills a folder with features, and goes on where it was interrupted; a file is there whole or not at all.

    Args:
        folder: The folder; need not exist yet.
        header: What `features.json` shall say: `fingerprint`, `network`, `layer`, `labels`, `classes`, `palette`, `channels`,
            `margin`, `size`, `stride`, `scale`, `ids`; and what else it shall keep.
    Raises:
        KerassegError: If it holds the features of another network, or of other examples.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]):
        self._folder, self._header = Path(folder), dict(header)
        check_same(self._folder, header)
        if not (self._folder / _HEADER).is_file() and not (self._folder / _BEGUN).is_file():
            if any(self._folder.glob("*.npz")):
                raise KerassegError(
                    f"{self._folder} holds .npz files but neither {_HEADER} nor {_BEGUN}, so that nobody knows whose they are: "
                    "remove them or name another folder"
                )
            write_json(self._folder / _BEGUN, self._header)
        sweep(self._folder)

    def missing(self) -> list[int]:
        """Gives the numbers of the examples that are not stored yet."""
        return missing(self._folder, len(self._header["ids"]))

    def write(self, index: int, features: np.ndarray, label: np.ndarray) -> None:
        """Writes one example.

        Args:
            index: Its number.
            features: Shape `(h, w, C)`, finite.
            label: Shape `(h, w)`, 0–255.
        """
        with atomic_path(self._folder / _name(index)) as temporary, open(temporary, "wb") as file:
            np.savez(file, features=features.astype(np.float32), label=label.astype(np.uint8))

    def finish(self) -> None:
        """Writes `features.json`: the folder is then a data set."""
        if not (self._folder / _HEADER).is_file():
            write_json(self._folder / _HEADER, self._header)
        (self._folder / _BEGUN).unlink(missing_ok=True)


def missing(folder: Path, count: int) -> list[int]:
    """Gives the numbers of the files that a folder of features lacks.

    Args:
        folder: The folder.
        count: How many it should have.
    """
    there = {path.name for path in Path(folder).glob("*.npz")}
    return [index for index in range(count) if _name(index) not in there]


def check_same(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuses a folder, finished or begun, that holds other features than these.

    Args:
        folder: The folder; one without features holds no others.
        header: What its `features.json` should say.
    Raises:
        KerassegError: If that is so; names the first thing that differs.
    """
    found = read_header(folder, begun=True)
    for name, (what, _) in _FIELDS.items():
        if found is not None and found[name] != header[name]:
            one, other = _shown(found[name]), _shown(header[name])
            if one == other:
                one, other = f"others than the {other}", "these"
            whose = "another network" if name in ("fingerprint", "network", "layer") else "other data"
            raise KerassegError(
                f"stored features of {whose} in {folder}: found {what} {one}, expected {other}; remove {folder} to store them anew"
            )


def read_header(folder: Path, *, begun: bool = False) -> dict[str, Any] | None:
    """Reads `features.json`; `None` where there is none.

    Args:
        folder: The folder.
        begun: Whether that of a folder that is not full yet counts, too.
    Raises:
        KerassegError: If it is damaged.
    """
    return _read(Path(folder) / _HEADER) or (_read(Path(folder) / _BEGUN) if begun else None)


def header_labels(header: Mapping[str, Any]) -> LabelTable:
    """Gives the classes that the labels of stored features mean."""
    return LabelTable(header["labels"], tuple(header["classes"]), tuple(map(tuple, header["palette"])), ())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        header = json.loads(path.read_text())
        wrong = [name for name, (_, kind) in _FIELDS.items() if not isinstance(header[name], kind)]
        header_labels(header)
    except (ValueError, TypeError, KeyError, KerassegError) as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        raise KerassegError(f"{path} is damaged ({wrong[0]}): remove {path.parent} and store the features again")
    return header


def _name(index: int) -> str:
    return f"{index:06d}.npz"


def _missing(root: Path, split: str) -> str:
    found = sorted(path.parent.name for path in root.glob(f"*/{_HEADER}"))
    if (root / split / _BEGUN).is_file():
        return f"{root / split} is not finished: go on by the command that stores its features"
    if (root / _HEADER).is_file():
        return f"{root} is one split of a data set: pass --data-dir {root.parent} --split {root.name}"
    if found:
        return f"{root} holds no features of split '{split}': {did_you_mean(split, found)}"
    return f"{root} holds no {split}/{_HEADER}: expected what tools/store_features.py --out {root} wrote"


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}): remove it and run the command that stored it again, which makes only what is missing"


def _shown(value) -> str:
    """A value of the header, short enough for a line."""
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)}, first {value[0]}"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
