"""What a data set is: examples behind indices, a label table and a mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasseg.data.decode import decode_image, decode_label
from kerasseg.errors import KerassegError
from kerasseg.labels import LabelTable

DEFAULT_MEAN = (122.67892, 116.66877, 104.00699)
"""RGB mean of ImageNet as the Caffe networks subtract it; padding with it is 0 after their preprocessing."""


@dataclass(frozen=True, eq=False)
class Example:
    """One photograph and its label map.

    Args:
        image: Shape `(H, W, C)`: uint8 RGB of a photograph; of a data set with `inputs` theirs one after the other, float32.
        label: Shape `(H, W)`, int32, 255 = ignore; of a data set with `heads` `(H, W, heads)`, a map for each; `None` where a split
            comes without labels.
        id: Name of the example within its data set.
        path: The file of the image; `None` if it was drawn.
    """

    image: np.ndarray
    label: np.ndarray | None
    id: str
    path: str | None


class DataSet:
    """A sequence of examples, decoded and checked one by one when they are asked for.

    A subclass writes `read`; it must be a pure function of the index, since several threads call it at once. Data sets whose
    examples are pairs of files derive from `FileDataSet` and only list the pairs.

    Args:
        labels: What the labels mean; it is the attribute `labels`.
        ids: Names of the examples in their order.
        mean: RGB, 0–255, of uncovered pixels.
    Example:
        >>> from kerasseg.data import open_data
        >>> open_data("shapes")[0].image.shape
        (96, 128, 3)
    """

    # RGB photographs of three channels, 0–255; else maps of a network.
    photographs, channels = True, 3
    # How many of them, the first ones, are red, green and blue of a photograph: what may be recoloured.
    colors = 3
    # Of a data set with several label maps an example: head of the network → what its labels mean. `labels` is the first's.
    heads: Mapping[str, LabelTable] | None = None
    # Of a data set for a network of several inputs: name of the input → its channels, in the order in which `image` has them.
    inputs: Mapping[str, int] | None = None
    # What `prepare_data` looks for where it is not told which; a split that is not there is left out.
    splits: tuple[str, ...] = ("train", "val", "trainval", "test")
    # Under which name `prepare_data` keeps the files, where several data sets are made of the same ones; `None`: its own.
    family: str | None = None
    # By the ids of which data set its photographs are known, where several have the same ones.
    photographs_of: str | None = None
    # Options that say only where further files lie: what was prepared holds whatever they say.
    places: tuple[str, ...] = ()
    # Options that only choose among what there is: all of it is prepared, whatever they say.
    choices: tuple[str, ...] = ()
    # Whether opening takes more than a second: what was prepared is then used without asking whether the lists are still the same.
    slow_to_open = False
    # What it was opened from, where `tools/prepare_data.py` made it: files are compared with their checksums when they are read.
    prepared = None

    def __new__(cls, *arguments, **options):
        """Keeps what it is made with, by which a cache tells data sets of the same files apart."""
        data = super().__new__(cls)
        data.made_with = arguments, options
        return data

    def __init__(self, labels: LabelTable, ids: Iterable[str], mean: tuple[float, ...] = DEFAULT_MEAN):
        self.labels = labels
        self.ids = tuple(ids)
        self.mean = mean

    @property
    def num_classes(self) -> int | dict[str, int]:
        """How many classes a network for these data tells apart; of several heads each one's."""
        return self.labels.num_classes if self.heads is None else {name: table.num_classes for name, table in self.heads.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            # The sequence protocol, by which `for example in data` ends.
            raise IndexError(f"example {index} of a data set of {len(self)}")
        return self.read(int(index) % len(self))

    def read(self, index: int) -> Example:
        """Makes one example; this is what a subclass writes.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The example, checked.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to read example {index}")

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads the label map of one example alone, which a data set of files does without decoding the image.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Shape `(H, W)`, int32, 255 = ignore; `None` where the split has no labels.
        """
        return self.read(index).label

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what `prepare_data` keeps of one example, by the part that it plays.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            `image`, and where there is a label `mask`; of several heads `mask` for the first and `mask_<head>` for each other. A
            file that `decode_image`, or `decode_label` with the data set's table, can read as it is; of anything else the content,
            to be written as PNG: uint8 `(H, W, 3)`, uint8 or uint16 `(H, W)`, or plain labels `(H, W)`, 255 = ignore.
        Raises:
            KerassegError: As `read`.
        """
        example = self.read(index)
        label = example.label
        if label is None:
            return {"image": example.image}
        if self.heads is None:
            return {"image": example.image, "mask": label}
        return {"image": example.image, **{role: label[..., place] for place, role in enumerate(mask_roles(self.heads))}}

    def check(self, index: int, example: Example) -> None:
        """Checks what `prepare_data` keeps of an example but `read` does not look at.

        Args:
            index: 0 to `len(self)` − 1.
            example: What was read.
        Raises:
            KerassegError: If something is wrong with it.
        """

    @classmethod
    def splits_of(cls, data_dir, **options) -> tuple[str, ...]:
        """Names the splits that a folder may have; a data set whose splits can have any name finds them out.

        Args:
            data_dir: The folder.
            options: What else the data set takes.
        Returns:
            The names, in the order in which they are prepared.
        """
        return cls.splits

    @classmethod
    def from_prepared(cls, prepared, split: str, **options) -> "DataSet":
        """Opens what `prepare_data` made of this data set.

        Args:
            prepared: The folder, `kerasseg.data.preparation.prepared.Prepared`.
            split: One of its splits.
            options: What else the data set takes; as it was prepared.
        Returns:
            The same examples in the same order, mean and tables as this data set would give.
        Raises:
            KerassegError: If there is no such split, or it was prepared with other options.
        """
        # It builds on this module.
        from kerasseg.data.preparation.prepared import PreparedFiles

        prepared.check_options(cls, options)
        return PreparedFiles(prepared, split)


@dataclass(frozen=True)
class Record:
    """Where an example lies.

    Args:
        id: Name of the example within its data set.
        image: File of the photograph.
        mask: File of the label map; `None` where there is none.
    """

    id: str
    image: Path
    mask: Path | None


class FileDataSet(DataSet):
    """A data set of image files with mask files.

    Args:
        labels: How the masks are read.
        records: Where the examples lie, in their order.
        mean: RGB, 0–255, of uncovered pixels.
    """

    def __init__(self, labels: LabelTable, records: Iterable[Record], mean: tuple[float, float, float] = DEFAULT_MEAN):
        self.records = tuple(records)
        super().__init__(labels, (record.id for record in self.records), mean)

    def read(self, index: int) -> Example:
        """Decodes an image and its mask, and compares their sizes.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            The example.
        Raises:
            KerassegError: If a file cannot be decoded, holds labels beyond the classes, or the sizes differ.
        """
        record = self.records[index]
        image, label = self.read_image(index), self.read_label(index)
        if label is not None and label.shape[:2] != image.shape[:2]:
            sizes = [f"{shape[1]}×{shape[0]}" for shape in (label.shape, image.shape)]
            raise KerassegError(
                f"mask {record.mask} is {sizes[0]} but image {record.image} is {sizes[1]} (width×height, upright): expected one "
                "size; save the mask at the size of the image, by nearest neighbour"
            )
        return Example(image, label, record.id, str(record.image))

    def files(self, index: int) -> tuple[Path, ...]:
        """Tells which files an example is read from.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Each once; they need not exist. A data set of more than image and mask writes this.
        """
        record = self.records[index]
        return tuple(dict.fromkeys(path for path in (record.image, record.mask) if path is not None))

    def read_image(self, index: int) -> np.ndarray:
        """Decodes the photograph of one example.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Shape `(H, W, 3)`, uint8 RGB.
        Raises:
            KerassegError: If the file cannot be decoded.
        """
        return decode_image(self.records[index].image)

    def read_label(self, index: int) -> np.ndarray | None:
        """Decodes the mask of one example.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Shape `(H, W)`, int32, 255 = ignore; `None` where there is no mask.
        Raises:
            KerassegError: If the file cannot be decoded or holds labels beyond the classes.
        """
        mask = self.records[index].mask
        return None if mask is None else self.read_mask(mask)

    def read_mask(self, path: Path) -> np.ndarray:
        """Decodes a mask; a data set whose masks are no picture files writes this.

        Args:
            path: The file.
        Returns:
            Shape `(H, W)`, int32, 255 = ignore.
        Raises:
            KerassegError: As `read_label`.
        """
        return decode_label(path, self.labels)

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells what `prepare_data` keeps of one example, by the part that it plays.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            `image`, the photograph, and `mask`, where there is one: a file that can be read as it is, or, of one that is slow to
            read, its content, a label map of plain labels.
        Raises:
            KerassegError: As `read`.
        """
        record = self.records[index]
        mask = record.mask
        if mask is not None and mask.suffix.lower() != ".png":
            mask = self.read_mask(mask)
        return {"image": record.image, **({} if mask is None else {"mask": mask})}


def each_label(data: DataSet, report: Callable[[int, int], None] | None = None) -> Iterator[np.ndarray]:
    """Reads the label maps of a data set in their order.

    Args:
        data: Examples with labels.
        report: Called with the number of labels read and of all of them, after each.
    Yields:
        Shape `(H, W)`, int32, 255 = ignore.
    Raises:
        KerassegError: If an example has no label or a file is wrong.
    """
    for index, name in enumerate(data.ids):
        label = data.read_label(index)
        if label is None:
            raise KerassegError(f"example '{name}' of data set '{data.labels.name}' has no label: choose a split with masks")
        yield label
        if report is not None:
            report(index + 1, len(data))


def mask_roles(heads: Mapping[str, LabelTable] | None) -> list[str]:
    """The parts that the label maps of an example play: `mask`, and `mask_<head>` of each further head."""
    return ["mask", *(f"mask_{head}" for head in list(heads or ())[1:])]


def source_of(data: DataSet, index: int) -> tuple[DataSet, int]:
    """Finds the data set that reads an example itself, behind unions and parts of it.

    Args:
        data: A data set.
        index: 0 to `len(data)` − 1.
    Returns:
        That data set, and the index in it.
    """
    while (place := getattr(data, "place", None)) is not None:
        data, index = place(index)
    return data, index
