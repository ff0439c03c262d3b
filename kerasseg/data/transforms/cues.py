"""Images with their foreground or background hidden, which shows by what a network recognizes things."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kerasseg.data.records import DEFAULT_MEAN, DataSet, Example
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

WHITE = (255.0, 255.0, 255.0)

_CHOICES = ("keep", "mask")
_VOIDS = ("hidden", "foreground", "background")


def mask_cues(
    image,
    label,
    foreground: str = "keep",
    background: str = "keep",
    *,
    background_classes: Collection[int] = (0,),
    fill: tuple[float, ...] = DEFAULT_MEAN,
    shape: tuple[float, ...] = WHITE,
    void: str = "hidden",
) -> np.ndarray:
    """Hides the foreground or the background of an image, or leaves nothing but the shape that they have.

    What is hidden is one colour. The data set's mean, which a network's preprocessing turns to 0, tells nothing of what was there.
    With both hidden the image is a picture of two constants: `fill` where background was, `shape` where foreground was.

    Args:
        image: Shape `(H, W, C)`, uint8 or float32, RGB 0–255 as a rule.
        label: Shape `(H, W)`, integer, 255 = void.
        foreground: `"keep"` or `"mask"`.
        background: `"keep"` or `"mask"`.
        background_classes: The labels that are background; all others but 255 are foreground.
        fill: What hidden pixels become, one value per channel.
        shape: What the foreground becomes where both are hidden.
        void: What pixels of label 255, which VOC has along every outline, are: `"foreground"`, `"background"`, or `"hidden"` as
            soon as either is, so that no rim of what is hidden is left to be seen; where both are hidden, they are background.
    Returns:
        The image, untouched where both are kept; else a new one, float32.
    Raises:
        KerassegError: If a word is unknown, or sizes or channels differ.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.1, Table 8 and Fig. 7, which do not say what fills, nor what void pixels were.
    Example:
        >>> mask_cues(np.full((1, 2, 3), 9, np.uint8), np.array([[0, 4]]), "mask", fill=(0, 0, 0)).tolist()
        [[[9.0, 9.0, 9.0], [0.0, 0.0, 0.0]]]
    """
    image, label = np.asarray(image), np.asarray(label)
    _check_words(foreground, background, void)
    if label.shape != image.shape[:2]:
        raise KerassegError(f"mask_cues received an image {image.shape} and a label {label.shape}: expected (H, W, C) and (H, W)")
    if not len(fill) == len(shape) == image.shape[2]:
        raise KerassegError(
            f"mask_cues received fill {fill}, shape {shape} for {image.shape[2]} channels: expected a value for each"
        )
    if foreground == background == "keep":
        return image
    ignored = label == IGNORE
    behind = np.isin(label, list(background_classes)) & ~ignored
    ahead = ~behind & ~ignored
    if foreground == background == "mask":
        drawn = ahead | ignored if void == "foreground" else ahead
        return np.where(drawn[..., np.newaxis], np.float32(shape), np.float32(fill))
    hidden, name = (ahead, "foreground") if foreground == "mask" else (behind, "background")
    if void in ("hidden", name):
        hidden = hidden | ignored
    return np.where(hidden[..., np.newaxis], np.float32(fill), image.astype(np.float32))


def _check_words(foreground: str, background: str, void: str) -> None:
    for name, word, known in (("foreground", foreground, _CHOICES), ("background", background, _CHOICES), ("void", void, _VOIDS)):
        if word not in known:
            raise KerassegError(f"received {name}='{word}': expected one of {', '.join(known)}")


@dataclass(frozen=True)
class MaskCues:
    """`mask_cues` as a transform of image and label map; the label stays.

    Args:
        foreground: `"keep"` or `"mask"`.
        background: `"keep"` or `"mask"`.
        background_classes: The labels that are background.
        fill: What hidden pixels become; the data set's mean.
        shape: What the foreground becomes where both are hidden.
        void: What pixels of label 255 are.
    Example:
        >>> image, label = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [1, 255]])
        >>> MaskCues("mask", "mask", fill=(0, 0, 0))(image, label, None)[0][..., 0].tolist()
        [[0.0, 255.0], [255.0, 0.0]]
    """

    foreground: str = "keep"
    background: str = "keep"
    background_classes: tuple[int, ...] = (0,)
    fill: tuple[float, ...] = DEFAULT_MEAN
    shape: tuple[float, ...] = WHITE
    void: str = "hidden"

    def __post_init__(self):
        _check_words(self.foreground, self.background, self.void)

    def __call__(self, image, label, rng):
        """Returns the pair, parts of its image hidden."""
        options = {"background_classes": self.background_classes, "fill": self.fill, "shape": self.shape, "void": self.void}
        return mask_cues(image, label, self.foreground, self.background, **options), label


class MaskedData(DataSet):
    """A data set whose images have their foreground or background hidden.

    Args:
        data: A data set with labels, one map an image.
        cues: What is hidden.
    Example:
        >>> from kerasseg.data import MaskCues, open_data
        >>> shapes = MaskedData(open_data("shapes"), MaskCues("mask", "mask"))
        >>> np.unique(shapes[0].image[..., 0]).round().tolist()
        [123.0, 255.0]
    """

    def __init__(self, data, cues: MaskCues):
        self._data, self._cues = data, cues
        # Those of one's own need not say all that those of the library say.
        for name in ("photographs", "channels", "colors", "heads", "inputs"):
            setattr(self, name, getattr(data, name, getattr(DataSet, name)))
        super().__init__(data.labels, getattr(data, "ids", ()), getattr(data, "mean", DEFAULT_MEAN))

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> Example:
        """Reads an example, its image masked by its label; one without a label stays, for whoever scores it to refuse."""
        example = self._data[index]
        if example.label is None or example.label.shape != example.image.shape[:2]:
            return example
        return dataclasses.replace(example, image=self._cues(example.image, example.label, None)[0])

    def read_label(self, index: int) -> np.ndarray | None:
        """Reads a label map, which nothing is hidden of."""
        return self._data.read_label(index)

    def place(self, index: int) -> tuple[DataSet, int]:
        """Tells where an example comes from: the data set behind this one, and its number there."""
        return self._data, index


def hide_cues(data: DataSet, foreground: str = "keep", background: str = "keep") -> DataSet:
    """Hides the objects of a data set, or what surrounds them, or all but their shapes, in every image.

    Means over classes are then without background, as the paper's, because its label table calls that class absent.

    Args:
        data: A data set with labels, one map an image, and a class called background.
        foreground: `"keep"` or `"mask"`.
        background: `"keep"` or `"mask"`.
    Returns:
        The data set itself where both are kept, or else one of the same examples.
    Raises:
        KerassegError: If a word is unknown, or the data have no class called background, or several label maps.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.1, Table 8: networks trained and tested so.
    Example:
        >>> from kerasseg.data import open_data
        >>> hide_cues(open_data("shapes"), background="mask").labels.absent
        ('background',)
    """
    _check_words(foreground, background, "hidden")
    if foreground == background == "keep":
        return data
    labels, name = data.labels, "background"
    if data.heads is not None or name not in labels.classes:
        raise KerassegError(
            f"data set '{labels.name}' {'has several label maps' if data.heads else f'has no class {name}'}: foreground and "
            f"background are hidden by one label map with a class '{name}'; pass --foreground keep --background keep"
        )
    cues = MaskCues(foreground, background, (labels.classes.index(name),), tuple(data.mean), (255.0,) * data.channels)
    masked = MaskedData(data, cues)
    masked.labels = dataclasses.replace(labels, absent=tuple(dict.fromkeys((*labels.absent, name))))
    return masked
