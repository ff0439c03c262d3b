"""What an evaluation found: its scores with intervals, as text and as JSON."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kerasseg.evaluation.inference import Inference
from kerasseg.evaluation.measures import BoundaryF, Calibration, Regions, Result, Trimap
from kerasseg.evaluation.measures.base import finite, percent
from kerasseg.metrics import SCORES, bootstrap, grouped, scores

LEVEL, REPLICATES = 0.95, 1000
"""Of all confidence intervals: how much of the draws is inside, and how many draws."""


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """How well one image came out.

    Args:
        id: The example's name.
        mean_iou: Mean IoU over the classes that its truth or prediction has, 0–1; NaN if there is none that counts.
        pixel_accuracy: Share of labelled pixels that are right, 0–1; NaN if no pixel is labelled.
    """

    id: str
    mean_iou: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long an evaluation took, in seconds.

    Args:
        seconds: From the first image read to the last scored.
        prediction_seconds: Of these, in the network and all that belongs to the inference; the first image's compilation too.
        scoring_seconds: Of these, in all that is measured. The rest is reading.
        num_images: How many there were.
    """

    seconds: float = 0.0
    prediction_seconds: float = 0.0
    scoring_seconds: float = 0.0
    num_images: int = 0

    @property
    def images_per_second(self) -> float:
        """Images over all seconds; NaN of no time."""
        return self.num_images / self.seconds if self.seconds else math.nan

    def to_json(self) -> dict:
        """All of it as JSON can hold it."""
        names = ("seconds", "prediction_seconds", "scoring_seconds", "images_per_second")
        return {name: finite(getattr(self, name)) for name in names}


@dataclasses.dataclass(frozen=True)
class Groups:
    """The pixels of an evaluation with classes merged to the groups of their label table.

    Args:
        names: Of the groups.
        matrix: Confusion matrix, `(G, G)` int64; row: truth, column: prediction.
        excluded: Names of the groups that the mean leaves out.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    excluded: tuple[str, ...] = ()

    def scores(self) -> dict:
        """What `kerasseg.metrics.scores` makes of the matrix."""
        return scores(self.matrix, exclude=tuple(map(self.names.index, self.excluded)))

    def to_json(self) -> dict:
        """All of it as JSON can hold it."""
        found = self.scores()
        rates = {name: finite(found[name]) for name in ("mean_iou", "pixel_accuracy", "per_class_iou", "per_class_accuracy")}
        return {"classes": list(self.names), "excluded": list(self.excluded), **rates, "confusion_matrix": self.matrix.tolist()}

    def table(self) -> list[str]:
        """One line for each group, `*` for excluded ones, and their mean IoU and pixel accuracy, in percent."""
        names = [f"{name} *" if name in self.excluded else name for name in self.names]
        found, width = self.scores(), max(map(len, (*names, "pixel_accuracy")))
        lines = [f"{'group':<{width}}  {'IoU %':>8}  {'accuracy %':>10}"]
        rows = zip(names, found["per_class_iou"], found["per_class_accuracy"], strict=True)
        lines += [f"{name:<{width}}  {percent(iou):>8}  {percent(accuracy):>10}" for name, iou, accuracy in rows]
        return lines + [f"{name:<{width}}  {percent(found[name]):>8}" for name in ("mean_iou", "pixel_accuracy")]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        matrix: Confusion matrix over all images, `(C, C)` int64; row: truth, column: prediction.
        labels: The data set's label table: `name`, `classes`, `palette` and `groups` are used.
        scores: What `kerasseg.metrics.scores` makes of the matrix.
        images: One score per image, in the order of the data.
        inference: How the network was run; `None` of predictions that were there already.
        counts: What `kerasseg.metrics.class_counts` makes of each image's matrix, `(N, 3, C)` int64; `None`: not known.
        excluded: Names of the classes that the means over classes leave out.
        measured: What else was measured, by its key in `scores.json`.
        timing: How long it took.
        network: Name of the network.
        split: Part of the data set, where that is known.
        task: Which of the data set's label maps was scored; `None` where it has one only.
    """

    matrix: np.ndarray
    labels: object
    scores: dict
    images: list[ImageScore]
    inference: Inference | None = Inference()
    counts: np.ndarray | None = None
    excluded: tuple[str, ...] = ()
    measured: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    timing: Timing = Timing()
    network: str | None = None
    split: str | None = None
    task: str | None = None

    @property
    def regions(self) -> Regions | None:
        """The pixels close to boundaries and the others apart, if that was asked for."""
        return self.measured.get(Regions.key)

    @property
    def trimap(self) -> Trimap | None:
        """The same in bands around the boundaries, if that was asked for."""
        return self.measured.get(Trimap.key)

    @property
    def boundary_f(self) -> BoundaryF | None:
        """How well contours agree, if that was asked for."""
        return self.measured.get(BoundaryF.key)

    @property
    def calibration(self) -> Calibration | None:
        """Whether the network is right as often as it is sure, unless that was not to be measured."""
        return self.measured.get(Calibration.key)

    @property
    def excluded_indices(self) -> tuple[int, ...]:
        """The classes that the means over classes leave out."""
        return tuple(map(self.labels.classes.index, self.excluded))

    @functools.cached_property
    def intervals(self) -> dict:
        """The bootstrap intervals of all scores, as `kerasseg.metrics.bootstrap` gives them; empty of fewer than two images."""
        if self.counts is None or len(self.counts) < 2:
            return {}
        return bootstrap(self.counts, exclude=self.excluded_indices, replicates=REPLICATES, level=LEVEL)

    @functools.cached_property
    def groups(self) -> Groups | None:
        """The same of groups of classes, if the label table has any; one all of whose classes are excluded is so, too."""
        if not self.labels.groups:
            return None
        members = [[self.labels.classes.index(name) for name in names] for _, names in self.labels.groups]
        excluded = tuple(name for name, classes in self.labels.groups if set(classes) <= set(self.excluded))
        return Groups(tuple(name for name, _ in self.labels.groups), grouped(self.matrix, members), excluded)

    def of_split(self, split: str) -> "Evaluation":
        """The same, knowing which part of the data set it is about."""
        return dataclasses.replace(self, split=split)

    def summary(self) -> dict[str, float]:
        """The four scores of the paper, 0–1."""
        return {name: float(self.scores[name]) for name in SCORES}

    def table(self) -> str:
        """One line per class and one per score, all in percent; `-` for classes that do not occur, `*` for excluded ones."""
        columns = [result for result in self.measured.values() if result.column]
        names = [f"{name} *" if name in self.excluded else name for name in self.labels.classes]
        width = max(map(len, (*names, *SCORES)))
        heads = ["IoU %", "accuracy %", *(result.column for result in columns)]
        values = [self.scores["per_class_iou"], self.scores["per_class_accuracy"], *(result.per_class() for result in columns)]
        widths = [max(8, len(head)) for head in heads]

        def line(name, cells):
            return f"{name:<{width}}  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))

        lines = [line("class", heads), *(line(name, map(percent, row)) for name, *row in zip(names, *values, strict=True)), ""]
        lines += [f"{name:<{width}}  {percent(self.scores[name]):>8}{self._interval(name)}" for name in SCORES]
        if self.excluded:
            lines.append(f"* in no mean: {', '.join(self.excluded)}")
        for part in (self.groups, *self.measured.values()):
            lines += ["", *part.table()] if part else []
        return "\n".join(lines)

    def _interval(self, name: str) -> str:
        return f"  {percent(self.intervals[name].low)} to {percent(self.intervals[name].high)}" if self.intervals else ""

    def to_json(self) -> dict:
        """Everything as plain numbers, lists and strings; `None` for NaN, which JSON does not have."""
        return {
            "network": self.network,
            "data": self.labels.name,
            "split": self.split,
            "task": self.task,
            "inference": self.inference and self.inference.to_json(),
            "num_images": len(self.images),
            "num_pixels": int(self.matrix.sum()),
            **{name: finite(self.scores[name]) for name in SCORES},
            "classes": list(self.labels.classes),
            "palette": [list(map(int, color)) for color in self.labels.palette],
            "excluded": list(self.excluded),
            "per_class_iou": finite(self.scores["per_class_iou"]),
            "per_class_accuracy": finite(self.scores["per_class_accuracy"]),
            **({"intervals": self._intervals_json()} if self.intervals else {}),
            "confusion_matrix": self.matrix.tolist(),
            "images": [{key: finite(value) for key, value in dataclasses.asdict(image).items()} for image in self.images],
            **({"groups": self.groups.to_json()} if self.groups else {}),
            **{key: result.to_json() for key, result in self.measured.items()},
            "timing": self.timing.to_json(),
        }

    def _intervals_json(self) -> dict:
        per_class = [None if math.isnan(low) else [float(low), float(high)] for low, high in self.intervals["per_class_iou"]]
        rest = {name: finite(self.intervals[name]) for name in SCORES}
        return {"level": LEVEL, "replicates": REPLICATES, **rest, "per_class_iou": per_class}


def ranked(evaluation: Evaluation, count: int) -> dict[str, list[int]]:
    """Picks images by how well they came out.

    Args:
        evaluation: Result of `evaluate`.
        count: How many of each kind; fewer where there are not three times as many images, so that none is in two lists.
    Returns:
        `"worst"`, worst first; `"median"`, those in the middle; `"best"`, best first: indices into `evaluation.images`, by mean
        IoU. Images without one are in no list. Of fewer than three there are only worst ones.
    """
    known = [index for index, image in enumerate(evaluation.images) if not math.isnan(image.mean_iou)]
    order: Sequence[int] = sorted(known, key=lambda index: evaluation.images[index].mean_iou)
    if len(order) < 3:
        return {"worst": order[: max(0, count)], "median": [], "best": []}
    count = max(0, min(count, len(order) // 3))
    start = (len(order) - count) // 2
    return {"worst": order[:count], "median": order[start : start + count], "best": order[::-1][:count]}
