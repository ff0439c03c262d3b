"""How well coarse predictions could do at best: ground truth shrunk, enlarged again, and scored against itself."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kerasseg.data import FileDataSet, Record
from kerasseg.data.layouts.folder import read_classes
from kerasseg.errors import KerassegError
from kerasseg.evaluation.analysis.resampling import BORDERS, DOWN, GRIDS, UP, down_matrix, up_matrix
from kerasseg.labels import IGNORE, LABELS, LabelTable
from kerasseg.metrics import scores
from kerasseg.tables import did_you_mean

FACTORS = (128, 64, 32, 16, 8, 4)
"""The downsampling factors of the paper's table."""

PUBLISHED = dict(zip(FACTORS, (50.9, 73.3, 86.1, 92.8, 96.4, 98.5), strict=True))
"""Factor → mean IoU in percent on the 736 images of seg11valid: Shelhamer et al. 2017, arXiv:1605.06211, §6.3."""

VOIDS = ("background", "class", "nothing", "left out", "nearest")
SCORED = ("labelled", "all")
# Of two classes with equal shares of a place the lower one wins, whatever rounding says.
_TIE = 1e-5
# Shares below it are those of cells in which no pixel has a label.
_EMPTY = 1e-6


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to simulate a coarse prediction.

    Args:
        down: How the maps of the classes (1 where a pixel has the class, else 0) shrink, one of `DOWN`; `"majority"` is `"box"`,
            after which each cell has its commonest class alone.
        up: How they grow, one of `UP`; then each pixel takes the class of the largest value.
        grid: Where the cells lie, one of `GRIDS`.
        border: What is beyond the image, one of `BORDERS`.
        void: What pixels without a label are while the maps shrink: `"background"`, too; a `"class"` of their own, which is
            wrong where it wins; `"nothing"`, a pixel of no class; `"left out"` of the average; or of the class of the `"nearest"`
            labelled pixel.
        scored: Which pixels count: the `"labelled"`; or `"all"`, those without a label as background.
    Raises:
        KerassegError: If a word is none of these.
    """

    down: str = "triangle"
    up: str = "linear"
    grid: str = "blocks"
    border: str = "renormalized"
    void: str = "background"
    scored: str = "labelled"

    def __post_init__(self):
        known = {"down": (*DOWN, "majority"), "up": UP, "grid": GRIDS, "border": BORDERS, "void": VOIDS, "scored": SCORED}
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise KerassegError(f"Protocol received {name}='{getattr(self, name)}': {did_you_mean(getattr(self, name), words)}")

    def __str__(self):
        border = "" if self.down == "nearest" else f", border {self.border}"
        return f"{self.down} down, {self.up} up, {self.grid}{border}, void {self.void}, {self.scored} pixels"

    def prediction(self, label: np.ndarray, factor: int, num_classes: int, background: int = 0) -> np.ndarray:
        """Shrinks a label map and enlarges it again.

        Args:
            label: Shape `(H, W)`, 0 to `num_classes` − 1, 255 = void.
            factor: Pixels per cell along a side, 1 or more.
            num_classes: C.
            background: The class of void pixels, and of what is beyond the image, where the protocol says so.
        Returns:
            Shape `(H, W)`, int64, 0 to C − 1; C where void wins as a class of its own.
        """
        return self._enlarged(*_maps(label, self.void, num_classes, background), factor, background)

    def _enlarged(self, classes: np.ndarray, maps: np.ndarray, factor: int, background: int) -> np.ndarray:
        """What `prediction` returns, from what `_maps` found."""
        size = maps.shape[1:]
        kind = "box" if self.down == "majority" else self.down
        rows, columns = (down_matrix(side, factor, kind, self.grid, self.border) for side in size)
        cells = np.stack([rows @ each @ columns.T for each in maps])
        if self.border == "background":
            cells[classes == background] += 1 - np.outer(rows.sum(1), columns.sum(1))
        if self.void == "left out":
            cells /= np.maximum(rows @ maps.sum(0) @ columns.T, _EMPTY)
        if self.down == "majority":
            cells = (_largest(cells) == np.arange(len(classes))[:, np.newaxis, np.newaxis]).astype(maps.dtype)
        rows, columns = (up_matrix(side, factor, self.up, self.grid) for side in size)
        return classes[_largest(rows @ cell @ columns.T for cell in cells)]

    def mean_iou(self, matrix: np.ndarray, background: int = 0) -> float:
        """Scores what `upper_bounds` counted.

        Args:
            matrix: Shape `(C + 1, C + 1)`; the last row and column are void.
            background: The class that void pixels are where all are scored.
        Returns:
            Percent, over the classes that occur; NaN if no pixel is labelled.
        """
        matrix = np.array(matrix)
        if self.scored == "all":
            matrix[background] += matrix[-1]
        matrix[-1] = 0
        # What was taken for void stays a miss of the class that it is.
        return 100 * scores(matrix, exclude=(len(matrix) - 1,))["mean_iou"]


def _maps(label: np.ndarray, void: str, num_classes: int, background: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes of a label map whose void pixels are what the protocol wants, `(K,)`, and where each is, `(K, H, W)` float32."""
    unlabelled = label == IGNORE
    if void == "nearest" and not unlabelled.all():
        from scipy.ndimage import distance_transform_edt

        label = label[tuple(distance_transform_edt(unlabelled, return_distances=False, return_indices=True))]
    else:
        label = np.where(unlabelled, background if void == "background" else num_classes, label)
    present = np.bincount(label.ravel(), minlength=num_classes + 1) > 0
    # Where no class has anything, it is background.
    present[background], present[num_classes] = True, present[num_classes] and void == "class"
    classes = np.flatnonzero(present)
    return classes, (label == classes[:, np.newaxis, np.newaxis]).astype(np.float32)


def _largest(maps: Iterable[np.ndarray]) -> np.ndarray:
    """Which of several maps is the largest at each place; of equal ones the first."""
    maps = iter(maps)
    best = next(maps).copy()
    place = np.zeros(best.shape, np.uint8)
    for index, values in enumerate(maps, start=1):
        larger = values > best + _TIE
        place[larger] = index
        np.copyto(best, values, where=larger)
    return place


DEFAULT = Protocol()
"""The protocol whose table comes closest to the published one, of those that give a label map back as it was at factor 1.

It is what the layers of FCN's own networks can do: a convolution of stride f by their bilinear kernel of side 2f, one cell for each
block of f×f pixels, and a deconvolution by the same kernel, cropped to the image. Void is background while maps shrink and grow,
and does not count. Closest is by `distance`. `tools/analyze.py bounds --all-protocols` measures the others; docs/results.md has the
table.
"""


def _variants() -> tuple[Protocol, ...]:
    """The sensible protocols: pairs of filters, each on the grids that programs use it on; then other borders, void and scoring."""
    nearest, halves, area, sampled = ("nearest", "nearest"), ("majority", "linear"), ("box", "linear"), ("sampled", "linear")
    triangle, cubic = ("triangle", "linear"), ("cubic", "cubic")
    grids = {
        "blocks": (nearest, ("majority", "nearest"), halves, area, ("box", "cubic"), sampled, triangle, cubic),
        "stretched": (nearest, ("majority", "nearest"), area, sampled, triangle, cubic),
        "stretched, rounded": (area, triangle),
        "blocks, whole": (nearest, area, triangle),
        "corners": (nearest, sampled, triangle),
        "top left": (nearest, triangle),
        "first": (nearest,),
        "centred": (triangle,),
        "edges": (triangle,),
        "edges, whole": (triangle,),
    }
    found = [Protocol(*pair, grid, "renormalized") for grid, pairs in grids.items() for pair in pairs]
    for grid, border in (
        ("edges", "zero"),
        ("edges", "mirrored"),
        ("blocks", "zero"),
        ("blocks", "mirrored"),
        ("blocks", "background"),
    ):
        found.append(Protocol(*triangle, grid, border))
    found += [Protocol(*triangle, grid, "mirrored") for grid in ("stretched", "stretched, rounded")]
    for base, void in itertools.product((DEFAULT, Protocol(*area, "blocks", "renormalized")), VOIDS):
        found.append(dataclasses.replace(base, void=void))
    found += [dataclasses.replace(base, scored="all") for base in (DEFAULT, found[0], Protocol(*area, "blocks", "renormalized"))]
    found += [dataclasses.replace(found[0], void=void) for void in ("class", "nearest")]
    return tuple(dict.fromkeys(found))


PROTOCOLS: tuple[Protocol, ...] = _variants()
"""Every protocol that was tried, `DEFAULT` among them."""


def default_protocol(labels: LabelTable) -> Protocol:
    """Gives `DEFAULT`; for a data set without a class called background, void pixels are a class of their own instead.

    Args:
        labels: The data set's label table.
    """
    return DEFAULT if "background" in labels.classes else dataclasses.replace(DEFAULT, void="class")


def distance(scores: Sequence[float], factors: Sequence[int] = FACTORS) -> float:
    """Adds up how far bounds are from the published ones.

    Args:
        scores: Mean IoU in percent, one a factor.
        factors: The factors; those that were not published do not count.
    Returns:
        The sum of the absolute differences, in points of mean IoU.
    """
    pairs = zip(factors, scores, strict=True)
    return float(sum(abs(score - PUBLISHED[factor]) for factor, score in pairs if factor in PUBLISHED))


def upper_bounds(
    labels: Iterable[np.ndarray],
    num_classes: int,
    factors: Sequence[int] = FACTORS,
    protocols: Sequence[Protocol] = (DEFAULT,),
    *,
    background: int = 0,
) -> np.ndarray:
    """Counts what is right and wrong of label maps that were shrunk and enlarged again.

    Memory does not grow with the data: one label map at a time, one confusion matrix for each protocol and factor.

    Args:
        labels: Label maps `(H, W)`, 0 to `num_classes` − 1, 255 = void.
        num_classes: C.
        factors: Pixels per cell along a side, each 1 or more.
        protocols: How to shrink, enlarge and score.
        background: The class that void pixels are where a protocol says background.
    Returns:
        Shape `(protocols, factors, C + 1, C + 1)`, int64; row: truth, column: prediction; the last of either is void. A protocol's
        `mean_iou` scores a matrix.
    Raises:
        KerassegError: If a factor is smaller than 1, a label out of range, or there is no label map, or none with a labelled pixel.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.3, which does not say how it down- and upsampled, nor what void was.
    """
    if not factors or any(not isinstance(factor, int | np.integer) or factor < 1 for factor in factors):
        raise KerassegError(f"upper_bounds received factors {tuple(factors)}: expected whole numbers from 1 on, such as {FACTORS}")
    width, total = num_classes + 1, 0
    matrices = np.zeros((len(protocols), len(factors), width * width), np.int64)
    # Protocols that differ in what they score alone make the same predictions.
    alike = [dataclasses.replace(protocol, scored="labelled") for protocol in protocols]
    for total, label in enumerate(labels, start=1):
        bad = label[(label != IGNORE) & ((label < 0) | (label >= num_classes))]
        if bad.size:
            raise KerassegError(f"label map {total} holds {bad[0]}: expected 0 to {num_classes - 1}, or {IGNORE} = void")
        truth = np.where(label == IGNORE, num_classes, label).astype(np.int64) * width
        for void in dict.fromkeys(protocol.void for protocol in alike):
            classes, maps = _maps(label, void, num_classes, background)
            same = dict.fromkeys(protocol for protocol in alike if protocol.void == void)
            for protocol, (place, factor) in itertools.product(same, enumerate(factors)):
                found = truth + protocol._enlarged(classes, maps, int(factor), background)
                counts = np.bincount(found.ravel(), minlength=width * width)
                matrices[[index for index, each in enumerate(alike) if each == protocol], place] += counts
    matrices = matrices.reshape(*matrices.shape[:2], width, width)
    if not matrices[..., :-1, :].any():
        raise KerassegError(
            f"no pixel of {total} label maps has a label: expected 0 to {num_classes - 1} somewhere, not {IGNORE} alone"
        )
    return matrices


def mask_folder(data_dir, split: str) -> FileDataSet:
    """Opens a folder of masks whose photographs need not be there.

    Args:
        data_dir: A folder with `masks/*.png` and lists of names, one a line; `classes.txt` names the classes, else they are VOC's.
        split: Name of the list, such as `seg11valid` for `seg11valid.txt`.
    Returns:
        A data set whose labels can be read; images only where `images/` has them as JPEG.
    Raises:
        KerassegError: If the folder, the list or a mask is missing, or the list is empty.
    """
    layout = "masks/*.png and lists of their names such as seg11valid.txt"
    if data_dir is None or not Path(data_dir).is_dir():
        raise KerassegError(
            f"bounds received data_dir {data_dir}: expected a folder with {layout} (--data-dir FOLDER), or a data set (--data NAME)"
        )
    root = Path(data_dir)
    names = sorted(path.stem for path in root.glob("*.txt") if path.name != "classes.txt")
    if not (root / "masks").is_dir():
        raise KerassegError(f"{root} has no folder masks: expected {layout}, or a data set named by --data")
    if split not in names:
        raise KerassegError(f"{root} has no {split}.txt: {did_you_mean(split, names) if names else f'expected {layout}'}")
    ids = (root / f"{split}.txt").read_text("utf-8-sig").split()
    if not ids:
        raise KerassegError(f"{root / f'{split}.txt'} is empty: expected names of masks, one a line")
    masks = [root / "masks" / f"{name}.png" for name in ids]
    missing = [path for path in masks if not path.is_file()]
    if missing:
        raise KerassegError(
            f"{missing[0]} is missing ({len(missing)} of {len(ids)} that {split}.txt lists): add it, or correct the list"
        )
    records = [Record(name, root / "images" / f"{name}.jpg", mask) for name, mask in zip(ids, masks, strict=True)]
    return FileDataSet(_classes(root / "classes.txt"), records)


def _classes(path: Path) -> LabelTable:
    """The classes that a file names; VOC's table, which knows its colours, where it names those."""
    table = read_classes(path) if path.is_file() else LABELS["voc"]
    return LABELS["voc"] if table.classes == LABELS["voc"].classes else table
