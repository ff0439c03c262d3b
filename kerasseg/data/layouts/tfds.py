"""Data sets of TensorFlow Datasets: any that has photographs and masks."""

import os
import struct
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from kerasseg.data.paths import data_path
from kerasseg.data.records import DataSet, Example
from kerasseg.errors import KerassegError, first_line
from kerasseg.labels import IGNORE, LabelTable, generic_table
from kerasseg.tables import did_you_mean, import_lazily

_INFO = "dataset_info.json"
_OF_MASKS = ("mask", "segment", "annotation", "label")
# Before each record of a file: its length, and a checksum of that; behind it a checksum of its own.
_HEAD, _TAIL = 12, 4


class Tfds(DataSet):
    """A data set that TensorFlow Datasets has prepared on this machine: photographs with masks in it, nothing is downloaded.

    Examples are read one by one wherever they lie in the files: TFRecord, array_record, and whatever else TFDS reads so.

    Args:
        data_dir: TFDS's folder, which holds `<name>/[<config>/]<version>/`, or that version's own folder; `None`:
            `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
        split: One of the set's own, or a part of one, such as `train[:80%]`.
        name: The set, such as `oxford_iiit_pet`, with its config and version where there are several: `name/config:1.0.0`.
        image: Key of the photographs among the set's features, `a/b` for one within another; `None`: the only one there is.
        mask: Key of the masks; `None`: the only feature of one channel whose name tells that it is one.
        classes: Names of the classes, in a list or between commas, or how many there are; `None`: as the set names them.
        offset: Added to what the masks hold: −1 where they count from 1.
        values: What the masks hold for each class in order, instead of an offset; whatever else they hold is to be ignored.
        ignore: What they hold for pixels to ignore, beside 255.
    Raises:
        KerassegError: If TFDS is not installed, the set is not there, it has no such split or feature, or does not name classes.
    Example:
        >>> Tfds(name="oxford_iiit_pet", classes=["pet", "background"], offset=-1, ignore=[3])[0].label.shape  # doctest: +SKIP
        (500, 394)
    """

    def __init__(
        self,
        data_dir=None,
        split: str = "train",
        name: str | None = None,
        image: str | None = None,
        mask: str | None = None,
        classes: str | Sequence[str] | int | None = None,
        offset: int = 0,
        values: Sequence[int] | None = None,
        ignore: int | Collection[int] = (),
    ):
        builder, title = _builder(data_dir, name)
        _check_split(builder, split, title)
        features = dict(sorted(_flat(builder.info.features)))
        self._image, self._mask = _image_key(features, image, title), _mask_key(features, mask, title)
        records = _records(builder, split)
        self._examples, self._labels_only = (_reader(builder, keys, records) for keys in ((self._image, self._mask), (self._mask,)))
        labels = _table(title, features[self._mask], classes)
        self._known = _known_values(labels.num_classes, offset, values, (ignore,) if isinstance(ignore, int) else ignore)
        # Of a list of values, others are not meant; without one, others are a mistake.
        self._rest = None if values is None else IGNORE
        self.split, self.folder = split, str(builder.data_dir)
        parts = builder.info.splits[split].file_instructions
        self._files = [data_path(part.filename) for part in parts]
        self._ends = np.cumsum([part.examples_in_shard - part.skip if part.take == -1 else part.take for part in parts])
        super().__init__(labels, (f"{split}_{index:06d}" for index in range(len(self._examples))))

    slow_to_open = True

    @classmethod
    def splits_of(cls, data_dir, **options) -> tuple[str, ...]:
        """Names the set's own splits; see `DataSet`."""
        return tuple(_builder(data_dir, options.get("name"))[0].info.splits)

    def files(self, index: int) -> tuple[Path, ...]:
        """Tells the file that holds the record of an example, and many others."""
        return (self._files[np.searchsorted(self._ends, index, side="right")],)

    def read(self, index: int) -> Example:
        """Decodes an image and its mask; see `DataSet`."""
        found = self._examples[index]
        image, label = _three_channels(_at(found, self._image)), self._label(index, found)
        if image.shape[:2] != label.shape:
            raise KerassegError(
                f"example '{self.ids[index]}' of '{self.labels.name}' has an image of {image.shape[:2]} and a mask of {label.shape}"
                " pixels (height, width): expected one size; name other features by image= and mask="
            )
        return Example(image, label, self.ids[index], None)

    def read_label(self, index: int) -> np.ndarray:
        """Decodes the mask alone; see `DataSet`."""
        return self._label(index, self._labels_only[index])

    def _label(self, index: int, found) -> np.ndarray:
        mask = _at(found, self._mask)
        mask = np.asarray(mask)[..., 0] if np.ndim(mask) == 3 else np.asarray(mask)
        label = np.full(mask.shape, IGNORE, np.int32)
        for value in np.unique(mask).tolist():
            meaning = self._known.get(value, self._rest)
            if meaning is None:
                raise KerassegError(
                    f"example '{self.ids[index]}' of '{self.labels.name}' has mask value {value}: expected {_spoken(self._known)}; "
                    "pass offset=, values= or ignore= (--data-arguments ignore=[…]), or the right number of classes="
                )
            label[mask == value] = meaning
        return label


def _spoken(known: Mapping[int, int]) -> str:
    classes = sorted(value for value, label in known.items() if label != IGNORE)
    return f"{classes[0]} to {classes[-1]} for {len(classes)} classes"


def _known_values(count: int, offset: int, values: Sequence[int] | None, ignore: Collection[int]) -> dict[int, int]:
    """What the masks hold → label."""
    if values is not None and (offset or len(values) != count or len(set(values)) != count):
        raise KerassegError(
            f"data set 'tfds' received {len(values)} values for {count} classes, offset={offset}: expected a different value for "
            "each class, and no offset"
        )
    own = [label - offset for label in range(count)] if values is None else values
    return {IGNORE: IGNORE, **dict(zip(own, range(count), strict=True)), **dict.fromkeys(ignore, IGNORE)}


def _builder(data_dir, name: str | None):
    """What reads the set, found by its files alone: its code need not be there, and nothing asks the network."""
    root = data_path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~/tensorflow_datasets").expanduser())
    place, title = (root, name) if (root / _INFO).is_file() else (_version_folder(root, name), name)
    tfds = _library()
    try:
        builder = tfds.builder_from_directory(str(place))
    # TFDS lets through whatever its readers of JSON and files raise.
    except Exception as error:
        raise KerassegError(
            f"{place} is no data set of TFDS ({first_line(error)}): prepare it again, {_remedy(name, root)}"
        ) from error
    return builder, title or builder.name


def _library():
    try:
        with warnings.catch_warnings():
            # Of what it imports, for its developers.
            warnings.simplefilter("ignore")
            return import_lazily("tensorflow_datasets")
    except ImportError as error:
        raise KerassegError(f"data set 'tfds' needs tensorflow_datasets ({error}): pip install kerasseg[data]") from error


def _remedy(name: str | None, root) -> str:
    return f"`tfds build {name or 'NAME'} --data_dir {root}`, which downloads it"


def _version_folder(root, name: str | None):
    if not name:
        known = sorted(place.parts[-3] for place in root.glob(f"*/*/{_INFO}")) if root.is_dir() else []
        raise KerassegError(
            f"data set 'tfds' received no name: pass --data-arguments name=NAME, one of TFDS's sets; in {root} there are "
            f"{', '.join(known) or 'none'}"
        )
    title, _, version = name.partition(":")
    folder = root / title
    if not folder.is_dir():
        raise KerassegError(
            f"there is no {folder}: '{name}' is not prepared here; nothing is downloaded unasked, {_remedy(name, root)}"
        )
    versions = _versions(folder)
    if not versions:
        inner = sorted(place.name for place in folder.iterdir() if place.is_dir() and _versions(place))
        if len(inner) != 1:
            raise KerassegError(
                f"{folder} has {'the configs ' + ', '.join(inner) if inner else 'no version of a data set'}: expected "
                + (f"one, e.g. name={title}/{inner[0]}" if inner else f"<version>/{_INFO}; {_remedy(name, root)}")
            )
        folder = folder / inner[0]
        versions = _versions(folder)
    if version and version not in versions:
        raise KerassegError(f"{folder} has no version {version}: {did_you_mean(version, versions)}")
    return folder / (version or max(versions, key=_numbers))


def _versions(folder) -> list[str]:
    return sorted(place.name for place in folder.iterdir() if (place / _INFO).is_file())


def _numbers(version: str) -> tuple[int, ...]:
    number, mark, _ = version.partition("-")
    # A release comes after its candidates.
    return (*(int(part) if part.isdecimal() else -1 for part in number.split(".")), int(not mark))


def _check_split(builder, split: str, title: str) -> None:
    known = list(builder.info.splits)
    try:
        builder.info.splits[split]
    # Which of several types it raises depends on what is wrong with the text.
    except (KeyError, ValueError, AssertionError) as error:
        raise KerassegError(
            f"TFDS set '{title}' has no split '{split}': {did_you_mean(str(split), known)}, or a part, such as {known[0]}[:80%]"
        ) from error


def _flat(features, before: str = ""):
    """Each feature that is no group of others, under its path."""
    for key, feature in features.items():
        if hasattr(feature, "items"):
            yield from _flat(feature, f"{before}{key}/")
        else:
            yield f"{before}{key}", feature


def _channels(feature) -> int | None:
    """How many channels a picture has; 0 of what is none."""
    shape = feature.shape if isinstance(feature.shape, tuple) else ()
    if len(shape) == 2:
        return 1
    return shape[-1] if len(shape) == 3 else 0


def _image_key(features, asked: str | None, title: str) -> str:
    # A picture whose channels are not said is one of colours.
    return _key(features, asked, title, "image", [key for key, each in features.items() if _channels(each) in (3, 4, None)])


def _mask_key(features, asked: str | None, title: str) -> str:
    single = [key for key, each in features.items() if _channels(each) == 1]
    named = [key for key in single if hasattr(features[key], "names")]
    telling = [key for key in single if any(word in key.rpartition("/")[2].lower() for word in _OF_MASKS)]
    return _key(features, asked, title, "mask", named if len(named) == 1 else telling)


def _key(features, asked: str | None, title: str, what: str, found: list[str]) -> str:
    if asked is not None:
        if asked not in features or _channels(features[asked]) == 0:
            pictures = [key for key, each in features.items() if _channels(each) != 0]
            raise KerassegError(f"TFDS set '{title}' has no pictures '{asked}' for {what}: {did_you_mean(asked, pictures)}")
        return asked
    if len(found) != 1:
        listed = ", ".join(f"{key} {tuple(each.shape)}" for key, each in features.items() if _channels(each) != 0)
        raise KerassegError(
            f"TFDS set '{title}' has {len(found)} features that may be the {what} ({', '.join(found) or 'none'}): name one by "
            f"{what}=KEY (--data-arguments {what}=KEY); its pictures are {listed or 'none'}"
        )
    return found[0]


def _table(title: str, feature, classes: str | Sequence[str] | int | None) -> LabelTable:
    names = getattr(feature, "names", None) if classes is None else classes
    count = getattr(feature, "num_classes", None) if classes is None else None
    if names is None and isinstance(count, int):
        names = count
    if isinstance(names, str):
        names = [part.strip() for part in names.split(",")]
    if not names:
        raise KerassegError(
            f"TFDS set '{title}' does not name the classes of its masks: pass classes= "
            """(--data-arguments 'classes=["pet","background"]', or how many, classes=2), and offset= or ignore= as they need"""
        )
    table = generic_table([f"class {k}" for k in range(names)] if isinstance(names, int) else [str(each) for each in names])
    return LabelTable(title.partition(":")[0], table.classes, table.palette, table.ignore_colors)


def _reader(builder, keys: Sequence[str], records) -> "_Examples":
    """Examples behind indices, of which only some features are decoded."""
    wanted = {}
    for key in keys:
        *groups, last = key.split("/")
        inner = wanted
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = True
    return _Examples(_library().decode.PartialDecoding(wanted).extract_features(builder.info.features), records)


def _records(builder, split: str):
    """The records of a split, still encoded, behind indices."""
    kind, method = builder.info.file_format.value, _library().decode.DeserializeMethod.RAW_BYTES
    if kind == "tfrecord":
        return _Records(builder.info.splits[split])
    try:
        if kind != "array_record":
            raise NotImplementedError("its records are no bytes")
        return builder.as_data_source(split, deserialize_method=method)
    except (NotImplementedError, ImportError) as error:
        raise KerassegError(
            f"TFDS set '{builder.name}' lies in {kind} files, which cannot be read here one by one ({first_line(error)}): prepare "
            f"it as TFRecord, `tfds build {builder.name} --file_format tfrecord`"
        ) from error


class _Examples:
    """Records, decoded by some of their features when they are asked for."""

    def __init__(self, features, records):
        self._features, self._records = features, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int):
        record = self._records[index]
        try:
            return self._features.deserialize_example_np(record)
        # Of protobuf, of whatever decodes pictures.
        except Exception as error:
            raise KerassegError(f"record {index} cannot be read ({first_line(error)}): prepare the set of TFDS again") from error


class _Records:
    """The records of TFRecord files. Where each lies is found once, by their lengths; what is between is not read."""

    def __init__(self, split):
        self._places = []
        for part in split.file_instructions:
            last = None if part.take == -1 else part.skip + part.take
            self._places += _places(data_path(part.filename))[part.skip : last]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        path, start, length = self._places[index]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def _places(path) -> list[tuple[Path, int, int]]:
    """File, first byte and length of every record of a file."""
    found, place = [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while place < size:
            file.seek(place)
            head = file.read(_HEAD)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == _HEAD else size
            if place + _HEAD + length + _TAIL > size:
                raise KerassegError(f"{path} ends within a record: it is no whole TFRecord file; prepare the set again")
            found.append((path, place + _HEAD, length))
            place += _HEAD + length + _TAIL
    return found


def _at(found, key: str):
    for part in key.split("/"):
        found = found[part]
    return found


def _three_channels(image) -> np.ndarray:
    image = np.asarray(image)
    image = image[..., np.newaxis] if image.ndim == 2 else image
    if image.dtype != np.uint8:
        raise KerassegError(f"an image is {image.dtype}: expected uint8, RGB 0-255; name another feature by image=")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
