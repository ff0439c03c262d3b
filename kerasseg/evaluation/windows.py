"""Overlapping windows of a picture of any size: whatever no later window touches is given away at once."""

import dataclasses
import itertools
import math
import numbers
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.methods import Method, as_probabilities, checked_count, checked_size, run_whole
from kerasseg.evaluation.running import resized

BLENDINGS = ("uniform", "linear", "gaussian")
"""How much a window's pixels count, by their place in it."""

# Windows that each device runs at once: a CPU gains little by more than one, and they take memory.
_ON_CPU, _ON_ACCELERATOR = 1, 4
# Standard deviation of the Gaussian as a share of the window's side.
_SIGMA = 1 / 8
# A side that every network takes, and its double.
_SIDE = 1024
# Networks → pixels after which their grid of cells repeats.
_GRIDS: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


class Span(NamedTuple):
    """A window along one side of a picture, in pixels.

    Args:
        begin: Its first pixel.
        end: One behind its last.
        first: The first that counts.
        last: One behind the last that counts.
        weights: How much each of those counts, `(last - first,)` float32, positive.
    """

    begin: int
    end: int
    first: int
    last: int
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Windows(Method):
    """Windows all over the image, whose logits are averaged where they overlap.

    Along a side that is not longer than the window there is one, of the side's length; an image that fits into one window is run
    whole. Along a longer side they are placed in one of two ways:

    - `count` of them, spread evenly, or as many as begin at different pixels, if those are fewer: the i-th of n, from 0, begins
      at pixel i · (side − window) / (n − 1), rounded. GCN's four crops of 1024² of a Cityscapes image, 1024 × 2048, begin at
      columns 0, 341, 683 and 1024.
    - as many as are needed, each `overlap` pixels before the end of the one before. The last ends where the image ends; of what it
      shares with the one before only the last `overlap` pixels count in it.

    Of a window only its inside counts, `margin` pixels away from its edges, but for edges that are the image's own. Windows with a
    margin begin at multiples of the network's grid, the pixels after which its cells repeat: each step is rounded down to such a
    multiple, and the last window begins at the next one and is that much shorter. So a cell sees in a window what it sees in the
    whole image, if its receptive field fits into the margin, and the logits are those of the whole image, up to rounding; but not
    those of networks that look at the whole image anyway (image pooling), or stretch their map onto the size of the image, whose
    window must then have the fitting size (multiples of 8 and one for most).

    Args:
        size: Height and width of a window in pixels.
        count: Windows along a side that is longer than that; 4 if neither it nor `overlap` or `margin` is given.
        overlap: Pixels that a window shares with the next, a whole number, or a share of the window's side, 0 ≤ share < 1, as a
            float; `None` with a margin: twice the margin.
        margin: Pixels along the edges of a window that do not count.
        blending: How much the logits of a window count where others overlap it. `"uniform"`: all the same. `"linear"`: falling
            towards the edges of its inside, in both directions. `"gaussian"`: by a Gaussian about its middle, of a standard
            deviation of an eighth of its sides.
        grid: Pixels at whose multiples windows begin, unless they are spread evenly; `None`: the network's with a margin, where it
            is known, else 1.
    Raises:
        KerassegError: If windows cannot be placed so; when run, if their insides would not cover the image.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, §4.3: four crops of 1024 × 1024 whose score maps are fused. Where they lie, and how they
        are fused, it does not say. The Gaussian, and weights along the two sides multiplied: Isensee et al. 2021,
        doi:10.1038/s41592-020-01008-z.
    """

    name: ClassVar[str] = "windows"
    size: tuple[int, int] = (1024, 1024)
    count: int | None = None
    overlap: float | None = None
    margin: int = 0
    blending: str = "uniform"
    grid: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "size", checked_size(self.size, "windows"))
        checked_count(self.margin, "margin of windows", 64, least=0)
        if self.count is not None and self.overlap is not None:
            raise KerassegError(f"window count {self.count} and overlap {self.overlap}: expected one of them")
        if self.count is not None:
            object.__setattr__(self, "count", checked_count(self.count, "window count", 4))
        elif self.overlap is None:
            name, value = ("overlap", 2 * self.margin) if self.margin else ("count", 4)
            object.__setattr__(self, name, value)
        if self.grid is not None:
            checked_count(self.grid, "grid of windows", 8)
        if self.blending not in BLENDINGS:
            raise KerassegError(f"blending {self.blending!r} of windows: expected one of {', '.join(BLENDINGS)}")
        for side in self.size:
            self._check_side(side)

    def _check_side(self, side: int) -> None:
        height, width = self.size
        if side <= 2 * self.margin:
            raise KerassegError(
                f"windows of {height}x{width} pixels with a margin of {self.margin}: expected height and width above "
                f"{2 * self.margin}, or a smaller margin"
            )
        if self.overlap is None:
            return
        wrong = isinstance(self.overlap, bool) or not isinstance(self.overlap, numbers.Real) or not math.isfinite(self.overlap)
        if wrong or not 0 <= self._overlap_of(side) < side:
            raise KerassegError(
                f"overlap {self.overlap!r} of windows of {height}x{width} pixels: expected pixels below {min(self.size)}, as a "
                "whole number, or a share of the window below 1, such as 0.25"
            )
        if self._overlap_of(side) < 2 * self.margin:
            raise KerassegError(
                f"overlap {self.overlap!r} of windows of {height}x{width} pixels with a margin of {self.margin}: expected at least "
                f"{2 * self.margin} pixels, so that no pixel is left out"
            )

    def _overlap_of(self, side: int) -> int:
        """Pixels that two windows of that side share."""
        return int(self.overlap) if isinstance(self.overlap, numbers.Integral) else math.floor(self.overlap * side)

    def to_json(self) -> dict:
        """Name and options as JSON can hold them; of those that came later what is not as in GCN's."""
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name != "size"}
        return {key: value for key, value in super().to_json().items() if key not in usual or value != usual[key]}

    def scores(self, model, view):
        """See `Method`."""
        total = None
        for rows, columns, scores in self.blocks(model, view.image):
            total = np.empty((*view.size, scores.shape[-1]), np.float32) if total is None else total
            total[rows, columns] = scores
        return tf.constant(total)

    def check_size(self, size):
        """See `Method`."""
        # Only the step must be known, not the grid, of which the step is a multiple.
        for side, window in zip(size, self.size, strict=True):
            self.spans(side, window)

    def runner(self, model, size) -> Callable[[np.ndarray], np.ndarray]:
        """Makes what runs a network on some windows.

        Args:
            model: The network.
            size: Height and width of the picture that they are of, for messages.
        Returns:
            A function from `(B, h, w, 3)` to logits `(B, h, w, C)`, float32.
        """
        where = f" (a window of {size[0]}x{size[1]})"
        # Not .numpy(), which would copy it.
        return lambda windows: np.asarray(resized(run_whole(model, windows, where), windows.shape[1:3]))

    def grid_of(self, model) -> int:
        """Gives the pixels at whose multiples the windows of a network begin."""
        if self.grid is not None:
            return self.grid
        # Networks of one size cannot take the shorter window with which a grid ends.
        return network_grid(model) if self.margin and tuple(model.inputs[0].shape[1:3]) == (None, None) else 1

    def num_windows(self, size, grid: int = 1) -> int:
        """Counts the windows of a picture of that size."""
        return math.prod(len(self.spans(side, window, grid)) for side, window in zip(size, self.size, strict=True))

    def blocks(
        self,
        model,
        image,
        run: Callable[[np.ndarray], np.ndarray] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Goes through the windows row by row and gives away what no later one touches.

        Kept are some windows, and of the row before the lines that the next shares with it: memory does not grow with the height of
        the image, and with its width only by those lines.

        Args:
            model: The network.
            image: Shape `(H, W, 3)`, whatever can be sliced; only windows of it are read.
            run: Runs the network on windows of one size, `(B, h, w, 3)` float32 to `(B, h, w, C)` float32; `None`: as `runner`.
            progress: Called with (windows done, windows in all).
        Yields:
            Rows, columns and their logits `(h, w, C)`: every pixel of the image once. They may change afterwards.
        Raises:
            KerassegError: As the class.
        """
        size, grid, batch = tuple(image.shape[:2]), self.grid_of(model), _batch_of(model)
        rows, columns = (self.spans(side, window, grid) for side, window in zip(size, self.size, strict=True))
        run = run or self.runner(model, size)
        rows, columns = _shares(rows), _shares(columns)
        carried, done = None, 0
        for above, row, below in zip([None, *rows[:-1]], rows, [*rows[1:], None], strict=True):
            finished = below.first if below else row.last
            shared = above.last - row.first if above else 0
            for left, right, strip in _row_sums(_scored(image, row, columns, run, batch), row, columns):
                if carried is None:
                    carried = np.empty((max([0, *_shared(rows)]), image.shape[1], strip.shape[-1]), np.float32)
                strip[:shared] += carried[:shared, left:right]
                if below:
                    # What was there of the row above is in the strip by now.
                    carried[: row.last - finished, left:right] = strip[finished - row.first :]
                yield slice(row.first, finished), slice(left, right), strip[: finished - row.first]
                done += 1
                if progress:
                    progress(done, len(rows) * len(columns))

    def spans(self, side: int, window: int, grid: int = 1) -> list[Span]:
        """Places the windows along one side of the image.

        Args:
            side: Pixels of the image.
            window: Pixels of a window.
            grid: Pixels at whose multiples they begin.
        Raises:
            KerassegError: If their insides do not cover it.
        """
        if side <= window:
            begins = usual = [0]
        elif self.count is None:
            begins, usual = self._begins_by_overlap(side, window, grid)
        else:
            begins = usual = self._begins_by_count(side, window)
        spans = []
        for begin, place in zip(begins, usual, strict=True):
            end = min(begin + window, side)
            first, last = place + (self.margin if place else 0), end - (self.margin if end < side else 0)
            spans.append(Span(begin, end, first, last, _weights(last - first, self.blending)))
        return spans

    def _begins_by_overlap(self, side: int, window: int, grid: int) -> tuple[list[int], list[int]]:
        """Where windows begin, and where they would if the last were not moved to the end of the image."""
        step = (window - self._overlap_of(window)) // grid * grid
        if not step:
            raise KerassegError(
                f"windows of {window} pixels that overlap by {self._overlap_of(window)}: the network's cells repeat after {grid} "
                f"pixels, so that expected is an overlap of at most {window - grid}"
            )
        last = -(-(side - window) // grid) * grid
        usual = list(range(0, last + step, step))
        return [min(place, last) for place in usual], usual

    def _begins_by_count(self, side: int, window: int) -> list[int]:
        inside = window - 2 * self.margin
        needed = 1 + -(-(side - window) // inside)
        if self.count < needed:
            margin = f" with a margin of {self.margin}" if self.margin else ""
            raise KerassegError(
                f"{self.count} windows of {window} pixels{margin} do not cover {side}: expected at least {needed} "
                f"(--window-count {needed})"
            )
        count = min(self.count, side - window + 1)
        return [round(index * (side - window) / (count - 1)) for index in range(count)]


def _weights(length: int, blending: str) -> np.ndarray:
    """How much the pixels of a window's inside count, along one side."""
    place = np.arange(length)
    if blending == "linear":
        return np.minimum(place + 1, length - place).astype(np.float32)
    if blending == "gaussian":
        return np.exp(-0.5 * ((place - (length - 1) / 2) / (_SIGMA * length)) ** 2).astype(np.float32)
    return np.ones(length, np.float32)


def _shares(spans: list[Span]) -> list[Span]:
    """Windows along a side whose weights add up to 1 at each pixel; since rows and columns are multiplied, so do theirs."""
    sums = np.zeros(spans[-1].last, np.float32)
    for span in spans:
        sums[span.first : span.last] += span.weights
    return [span._replace(weights=span.weights / sums[span.first : span.last]) for span in spans]


def _shared(spans: list[Span]) -> list[int]:
    """How many pixels each window shares with those behind it."""
    return [before.last - after.first for before, after in itertools.pairwise(spans)]


def _row_sums(scored, row: Span, columns: list[Span]) -> Iterator[tuple[int, int, np.ndarray]]:
    """From left to right, the weighted sums of one row of windows: first and last column, and what no later window touches."""
    rest = None
    for column, after, scores in zip(columns, [*columns[1:], None], scored, strict=True):
        inside = scores[row.first - row.begin : row.last - row.begin, column.first - column.begin : column.last - column.begin]
        inside = inside * (row.weights[:, None] * column.weights[None])[..., None]
        if rest is not None:
            inside[:, : rest.shape[1]] += rest
        right = after.first if after else column.last
        rest = inside[:, right - column.first :]
        yield column.first, right, inside[:, : right - column.first]


def _scored(image, row: Span, columns: list[Span], run, batch: int) -> Iterator[np.ndarray]:
    """The scores of one row of windows; some of one size are run together."""
    for _, group in itertools.groupby(columns, key=lambda column: column.end - column.begin):
        while some := list(itertools.islice(group, batch)):
            windows = [np.asarray(image[row.begin : row.end, column.begin : column.end], np.float32) for column in some]
            yield from run(np.stack(windows))


def _batch_of(model) -> int:
    """How many windows go through a network at once."""
    accelerated = tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
    return model.distribute_strategy.num_replicas_in_sync * (_ON_ACCELERATOR if accelerated else _ON_CPU)


def write_labels(blocks, kind: str, classes: Callable[[int], np.ndarray], confidence: np.ndarray | None = None) -> tuple:
    """Takes the best class of each block at once, so that the scores of a whole image are never held.

    Args:
        blocks: As `Windows.blocks` yields them.
        kind: What they hold, as `Method.kind` says it.
        classes: Makes the array of classes `(H, W)` once their number is known.
        confidence: Shape `(H, W)`, float32, written as well: the largest probability; `None`: not.
    Returns:
        The array of classes, and their number.
    """
    made = None
    for rows, columns, scores in blocks:
        made = classes(scores.shape[-1]) if made is None else made
        made[rows, columns] = tf.argmax(scores, axis=-1, output_type=tf.int32).numpy()
        if confidence is not None:
            confidence[rows, columns] = tf.reduce_max(as_probabilities(scores, kind), axis=-1).numpy()
    return made, scores.shape[-1]


def network_grid(model) -> int:
    """Counts the pixels after which the grid of a network's cells repeats: the least common multiple of its maps' strides.

    Args:
        model: The network.
    Returns:
        Pixels, at least 1. A map's stride is found from how much it grows with the image. Not seen are those of maps that do not
        say it, strides that do not divide 1024 (of maps that were scaled by 0.75), and the maps inside a network that is a layer
        of this one, of which only the output counts: to be given as `Windows(grid=...)`.
    """
    if model not in _GRIDS:
        maps, found = keras.Model(model.inputs, _maps(model)), []
        for side in (_SIDE, 2 * _SIDE):
            images = [keras.KerasTensor((1, side, side, tensor.shape[-1])) for tensor in model.inputs]
            found.append(maps.compute_output_spec(images[0] if len(images) == 1 else images))
        sides = [[each.shape[1] for each in tf.nest.flatten(specs)] for specs in found]
        growths = {larger - side for side, larger in zip(*sides, strict=True) if None not in (side, larger)}
        _GRIDS[model] = math.lcm(*(_SIDE // growth for growth in growths if growth > 0 and _SIDE % growth == 0))
    return _GRIDS[model]


def _maps(model) -> list:
    """All maps of a network. A layer may be used several times, and in other networks, of which its attribute `output` is one."""
    network = model._functional if isinstance(model, keras.Sequential) else model
    nodes = itertools.chain.from_iterable(network._nodes_by_depth.values())
    return [tensor for node in nodes for tensor in node.output_tensors if len(tensor.shape) == 4]
