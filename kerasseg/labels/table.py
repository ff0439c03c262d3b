"""The table of one data set's labels, and pictures of label maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kerasseg.errors import KerassegError

IGNORE = 255
"""The label of pixels that neither train nor count."""

IGNORE_COLOR = (224, 224, 192)
"""How a pixel to ignore is painted: entry 255 of the VOC colour map."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelTable:
    """What the labels of a data set mean, how they are painted, and how its files spell them.

    Label `k` is `classes[k]`, painted `palette[k]`. Index files (grey or palette PNGs) may number the classes otherwise: what
    `file_to_label` does not mention stands for itself. Colour-coded files are read through `palette` and `ignore_colors`.

    Args:
        name: Name of the data set, for messages.
        classes: Names in the order of the labels.
        palette: RGB, 0–255, one for each class; no two alike, since colour-coded masks are read through it.
        ignore_colors: RGB of the pixels that become 255 in colour-coded masks.
        file_to_label: Value in an index file → label, e.g. `{11: 255}`.
        groups: Names of groups and of the classes in each, which are scored a second time with each group as one class; either
            none, or every class in one of them.
        absent: Classes that the images people score lack. `kerasseg.evaluation.evaluate` leaves them out of the means over
            classes, unless told otherwise.
    Raises:
        KerassegError: If the columns do not align, a colour stands for two things, or groups or absent classes name something
            that is no class, or one twice.
    Example:
        >>> LabelTable("pets", ("ground", "cat"), ((0, 0, 0), (200, 90, 0))).num_classes
        2
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_colors: tuple[Color, ...] = (IGNORE_COLOR,)
    file_to_label: Mapping[int, int] = field(default_factory=dict, hash=False)
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    absent: tuple[str, ...] = ()

    def __post_init__(self):
        count = len(self.classes)
        if not 1 <= count <= IGNORE:
            raise KerassegError(f"label table '{self.name}' has {count} classes: expected 1 to {IGNORE} (label {IGNORE} = ignore)")
        if len(self.palette) != count:
            raise KerassegError(
                f"label table '{self.name}' has {count} classes but {len(self.palette)} colours: give each class one"
            )
        _check_alike(self.name, "class", self.classes)
        _check_alike(self.name, "colour", (*self.palette, *self.ignore_colors))
        for value, label in self.file_to_label.items():
            if label != IGNORE and not 0 <= label < count:
                raise KerassegError(
                    f"label table '{self.name}' maps file value {value} to label {label}: expected 0 to {count - 1} or {IGNORE}"
                )
        _check_groups(self.name, self.classes, self.groups)
        _check_alike(self.name, "absent class", self.absent)
        _check_known(self.name, self.classes, self.absent)

    @property
    def num_classes(self) -> int:
        """How many classes there are; labels run from 0 to one less."""
        return len(self.classes)


def _check_alike(name: str, kind: str, entries: Sequence) -> None:
    seen = set()
    for entry in entries:
        if entry in seen:
            raise KerassegError(f"label table '{name}' holds the {kind} {entry} twice: every {kind} must stand for one thing only")
        seen.add(entry)


def _check_known(name: str, classes: Sequence[str], mentioned: Sequence[str]) -> None:
    unknown = [entry for entry in mentioned if entry not in classes]
    if unknown:
        raise KerassegError(f"label table '{name}' has no class {', '.join(unknown)}: expected some of {', '.join(classes)}")


def _check_groups(name: str, classes: Sequence[str], groups: Sequence[tuple[str, Sequence[str]]]) -> None:
    members = [member for _, group in groups for member in group]
    _check_known(name, classes, members)
    _check_alike(name, "group", [title for title, _ in groups])
    _check_alike(name, "grouped class", members)
    left = [entry for entry in classes if entry not in members]
    if groups and left:
        raise KerassegError(f"label table '{name}' has {', '.join(left)} in no group: expected every class in one, or no groups")
    empty = [title for title, group in groups if not group]
    if empty:
        raise KerassegError(f"label table '{name}' has the group {empty[0]} without a class: leave it out")


def voc_palette(n: int) -> tuple[Color, ...]:
    """The PASCAL VOC colour map: the bits of the label, three at a time, fill R, G and B from the top.

    Args:
        n: How many colours, 0 to 256.
    Returns:
        RGB, 0–255, all different. Entry 255 is `IGNORE_COLOR`.
    Raises:
        KerassegError: If `n` is out of range.
    Example:
        >>> voc_palette(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= n <= 256:
        raise KerassegError(f"voc_palette was asked for {n} colours: the map has 256, ask for 0 to 256")
    return tuple(
        tuple(sum((label >> (3 * digit + channel) & 1) << (7 - digit) for digit in range(3)) for channel in range(3))
        for label in range(n)
    )


def generic_table(classes: Sequence[str], palette: Sequence[Color] | None = None) -> LabelTable:
    """The label table of a folder of one's own.

    Args:
        classes: Names in the order of the labels.
        palette: RGB, 0–255, for each class; `None` is the VOC colour map.
    Returns:
        A table whose files use the labels as they are; `IGNORE_COLOR`, unless a class has it, and 255 are to be ignored.
    Raises:
        KerassegError: If there is no class, or names and colours do not align.
    """
    classes = tuple(classes)
    colors = voc_palette(min(len(classes), 256)) if palette is None else tuple(tuple(int(c) for c in color) for color in palette)
    return LabelTable("folder", classes, colors, () if IGNORE_COLOR in colors[:IGNORE] else (IGNORE_COLOR,))


def colorize(label, labels: LabelTable | Sequence[Color] | None = None) -> np.ndarray:
    """Paints a label map.

    Args:
        label: Shape `(H, W)`, integer, 0 to classes − 1, 255 = ignore.
        labels: The table or list of RGB colours to paint with; `None` is the VOC colour map.
    Returns:
        Shape `(H, W, 3)`, uint8 RGB; pixels to ignore are (224, 224, 192).
    Raises:
        KerassegError: If the map is not two-dimensional and integer, or a label has no colour.
    Example:
        >>> colorize(np.array([[1, 255]])).tolist()
        [[[128, 0, 0], [224, 224, 192]]]
    """
    label = np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise KerassegError(
            f"colorize received shape {label.shape}, {label.dtype}: expected an integer label map (H, W); of logits take "
            "argmax over the last axis first"
        )
    colors = labels.palette if isinstance(labels, LabelTable) else voc_palette(IGNORE) if labels is None else tuple(labels)
    bad = ((label < 0) | (label >= len(colors))) & (label != IGNORE)
    if bad.any():
        raise KerassegError(
            f"colorize received label {label[bad][0]} ({int(bad.sum())} pixels beyond the colours): expected 0 to "
            f"{len(colors) - 1} or {IGNORE}; pass the label table of the data set"
        )
    lookup = np.zeros((IGNORE + 1, 3), np.uint8)
    lookup[IGNORE] = IGNORE_COLOR
    lookup[: min(len(colors), IGNORE)] = colors[:IGNORE]
    return lookup[label]


def overlay(image, label, labels, alpha: float = 0.5) -> np.ndarray:
    """Lays the colours of a label over its photograph.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        label: Shape `(H, W)`, classes; ignored pixels (255) show the photograph alone.
        labels: Label table with the palette.
        alpha: How much of the colour shows, 0–1.
    Returns:
        Shape `(H, W, 3)`, uint8.
    Raises:
        KerassegError: If alpha is out of range or the sizes differ.
    """
    image, label = np.asarray(image), np.asarray(label)
    if not 0 <= alpha <= 1:
        raise KerassegError(f"alpha {alpha}: expected 0 (photograph only) to 1 (colours only)")
    if image.shape[:2] != label.shape:
        raise KerassegError(f"label of shape {label.shape} on an image of shape {image.shape}: expected the same height and width")
    mixed = (1 - alpha) * image + alpha * colorize(label, labels)
    return np.rint(np.where((label == IGNORE)[..., np.newaxis], image, mixed)).astype(np.uint8)
