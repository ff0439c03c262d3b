"""Scoring a network on a data set, image by image, at the photographs' own size."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kerasseg.data.views.heads import OneHead
from kerasseg.errors import KerassegError
from kerasseg.evaluation.exported import check_has_scores
from kerasseg.evaluation.fitted import usual_method
from kerasseg.evaluation.inference import Inference, Prediction, predict_batch
from kerasseg.evaluation.measures import Measure, requested
from kerasseg.evaluation.results import Evaluation, ImageScore, Timing
from kerasseg.labels import IGNORE
from kerasseg.metrics import class_counts, confusion_matrix, scores
from kerasseg.tables import did_you_mean

# How many batches of images are held at most, among which pictures of equal size are looked for.
_AHEAD = 4


def evaluate(
    model,
    data,
    inference: Inference | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    boundary: float | None = None,
    trimap: Sequence[float] | None = None,
    trimap_boundary: str = "labels",
    boundary_f: bool | float | None = None,
    calibration: bool | int | None = None,
    exclude: Sequence[str] | None = None,
    batch_size: int = 1,
    measures: Sequence[Measure] = (),
) -> Evaluation:
    """Scores a network on a data set.

    Memory does not grow with the images: a few of them at a time, one confusion matrix for all. Of each image three counts per
    class are kept, from which the intervals come.

    Args:
        model: As for `predict`.
        data: Data set with labels: `len`, indexing to examples, and `labels`, its label table. One with several label maps has
            `heads` (`kerasseg.data.DataSet`), or `labels` and each example's `label` are mappings from the network's output to
            table and map.
        inference: How to run the network; `None`: on whole images at scale 1. Its `output` picks one of several label maps as well.
        progress: Called with (images done, images in all) after each image.
        limit: Only so many images, the first ones.
        boundary: Up to how many pixels from the boundary of objects to score apart from the rest; `None`: not.
        trimap: Widths of bands around the boundaries to score, in pixels, ascending, such as `range(1, 41)`; `None`: none.
        trimap_boundary: What the boundaries are, one of `kerasseg.metrics.TRIMAP_BOUNDARIES`.
        boundary_f: Whether to measure the boundary F of contours: `True`, within 0.75 % of the diagonal; or within how many
            pixels; `None`: not.
        calibration: Into how many bins of confidence to sort the pixels; `True`: 15; `None`: not at all, which spares a softmax.
        exclude: Names of classes to leave out of the means over classes; `None`: those that the label table calls absent.
        batch_size: How many pictures of one size the network gets at once. The scores are the same whatever it is.
        measures: What else to measure; found in the result's `measured`.
    Returns:
        Scores at the labels' own size, pixels with label 255 left out.
    Raises:
        KerassegError: If there are no images, an image has no label or one of another size, a label is out of range, no pixel
            at all is labelled, the network's number of classes is not the data set's, a class to exclude is unknown or none
            would be left, or there is no photograph for the CRF.
    """
    task, labels = _task(data, inference and inference.output, model)
    data = scored_head(data, model, task)
    excluded = excluded_classes(labels, exclude)
    made = requested(
        labels.num_classes,
        tuple(map(labels.classes.index, excluded)),
        boundary=boundary,
        trimap=trimap,
        trimap_boundary=trimap_boundary,
        boundary_f=boundary_f,
        calibration=calibration,
    )
    inference = inference or Inference(method=usual_method(model))
    check_has_scores(model, inference, calibration=calibration)
    total = _check_request(data, labels, inference, limit, batch_size)
    tally = _Tally(labels, excluded, [*made, *measures])
    predicting, scoring, start = _Stopwatch(), _Stopwatch(), time.perf_counter()
    confidence = any(measure.needs_confidence for measure in tally.measures)
    examples = (_checked(data[index], task) for index in range(total))
    for example, prediction in _predicted(model, examples, inference, batch_size, confidence, predicting):
        with scoring:
            tally.add(example, prediction)
        if progress:
            progress(len(tally.images), total)
    timing = Timing(time.perf_counter() - start, predicting.seconds, scoring.seconds, total)
    about = {"network": model.name, "split": getattr(data, "split", None), "task": task or getattr(data, "task", None)}
    return tally.evaluation(inference=inference, timing=timing, **about)


def score_predictions(
    data,
    predictions: Iterable,
    *,
    boundary: float | None = None,
    trimap: Sequence[float] | None = None,
    trimap_boundary: str = "labels",
    boundary_f: bool | float | None = None,
    exclude: Sequence[str] | None = None,
    output: str | None = None,
    measures: Sequence[Measure] = (),
) -> Evaluation:
    """Scores predictions that are there already, such as the masks of another program.

    Args:
        data: Data set with labels, as for `evaluate`.
        predictions: For each example of the data, in their order, the classes of its pixels, `(H, W)`, integer. They may come
            one by one, from a generator.
        boundary: As for `evaluate`, and so the others.
        trimap: See above.
        trimap_boundary: See above.
        boundary_f: See above.
        exclude: See above.
        output: Which of several label maps the predictions are of; `None`: the first, as far as the data have several.
        measures: See above; none that needs to know how sure the network was.
    Returns:
        As `evaluate`, without network and inference.
    Raises:
        KerassegError: If there are more or fewer predictions than images, or none, one has another size than its label or a
            class out of range, there are no labels of that output, or as `evaluate`.
    """
    task, labels = _task(data, output)
    data = scored_head(data, output=task)
    if task is None and output is not None:
        raise KerassegError(f"output '{output}': data set '{data.labels.name}' has one label map only, expected no output")
    excluded, start, scoring = excluded_classes(labels, exclude), time.perf_counter(), _Stopwatch()
    made = requested(
        labels.num_classes,
        tuple(map(labels.classes.index, excluded)),
        boundary=boundary,
        trimap=trimap,
        trimap_boundary=trimap_boundary,
        boundary_f=boundary_f,
        calibration=None,
    )
    tally, total, given = _Tally(labels, excluded, [*made, *measures]), len(data), iter(predictions)
    for index in range(total):
        prediction = next(given, None)
        if prediction is None:
            raise KerassegError(f"{index} predictions for {total} images: expected one for each image, in their order")
        with scoring:
            tally.add(_checked(data[index], task), Prediction(np.asarray(prediction), labels.num_classes))
    if next(given, None) is not None:
        raise KerassegError(f"more than {total} predictions for {total} images: expected one for each image, in their order")
    timing = Timing(time.perf_counter() - start, 0.0, scoring.seconds, total)
    return tally.evaluation(inference=None, timing=timing, split=getattr(data, "split", None), task=task)


def excluded_classes(labels, exclude: Sequence[str] | None) -> tuple[str, ...]:
    """Says which classes means over classes leave out.

    Args:
        labels: Label table.
        exclude: Names of classes; `None`: those that the table calls absent.
    Returns:
        Their names, in the order of the table.
    Raises:
        KerassegError: If a name is no class, or no class would be left.
    """
    names = labels.absent if exclude is None else exclude
    for name in names:
        if name not in labels.classes:
            raise KerassegError(
                f"class '{name}' to exclude: data set '{labels.name}' has none; {did_you_mean(name, labels.classes)}"
            )
    if len(set(names)) == labels.num_classes:
        raise KerassegError(
            f"all {labels.num_classes} classes of data set '{labels.name}' are excluded: leave at least one to score"
        )
    return tuple(name for name in labels.classes if name in names)


def _task(data, output: str | None, model=None) -> tuple[str | None, Any]:
    """Which of several label maps is scored: of the network's outputs, or else of the maps, the first; `None` of one only."""
    tables = getattr(data, "heads", None) or data.labels
    if not isinstance(tables, Mapping):
        return None, tables
    outputs = model.output if model is not None and isinstance(model.output, dict) else tables
    task = next(iter(outputs)) if output is None else output
    if task not in tables:
        raise KerassegError(f"output '{task}' has no labels in these data: {did_you_mean(task, tables)}")
    return task, tables[task]


def scored_head(data, model=None, output: str | None = None):
    """Gives, of data with several label maps, those that `evaluate` scores a network by.

    Args:
        data: The data set.
        model: The network.
        output: Which of its outputs counts; `None`: the first.
    Returns:
        A data set of one label map an example; the data itself where it has no `heads`.
    Raises:
        KerassegError: If the data have no labels of that output.
    """
    return OneHead(data, _task(data, output, model)[0]) if getattr(data, "heads", None) else data


def _check_request(data, labels, inference: Inference, limit: int | None, batch_size: int) -> int:
    """Refuses, not after hours of work, what cannot be done; counts the images."""
    if limit is not None and limit < 1:
        raise KerassegError(f"limit {limit}: expected at least 1 image, or None for all")
    if batch_size < 1:
        raise KerassegError(f"batch size {batch_size}: expected at least 1 image")
    total = len(data) if limit is None else min(limit, len(data))
    if inference.crf is not None and not getattr(data, "photographs", True):
        raise KerassegError(f"data set '{labels.name}' holds maps of a network, no photographs: expected no CRF (--crf none)")
    inference.method.check_names(getattr(data, "ids", ())[:total])
    return total


class _Scored(NamedTuple):
    """An example whose label can be scored."""

    id: str
    image: np.ndarray
    label: np.ndarray


def _checked(example, task: str | None) -> _Scored:
    label = example.label if not isinstance(example.label, Mapping) else example.label.get(task)
    if label is None:
        of_task = "" if task is None else f" for output '{task}'"
        raise KerassegError(f"image '{example.id}' has no label{of_task}: evaluate on a split whose labels are public")
    if label.shape != example.image.shape[:2]:
        raise KerassegError(f"label of '{example.id}' is {label.shape}, its image {example.image.shape[:2]}: expected the same")
    return _Scored(example.id, example.image, label)


def _predicted(model, examples: Iterator[_Scored], inference, batch_size: int, confidence: bool, watch: "_Stopwatch"):
    """Examples with their predictions, in their order; pictures of one size that are not far apart go through together."""
    held: dict[int, _Scored] = {}
    waiting: dict[tuple, list[int]] = {}
    found: dict[int, Prediction] = {}

    def run(places):
        del waiting[held[places[0]].image.shape]
        images, names = [held[place].image for place in places], [held[place].id for place in places]
        with watch:
            predictions = predict_batch(model, images, inference, names, confidence=confidence)
        found.update(zip(places, predictions, strict=True))

    def ready():
        while held and (first := next(iter(held))) in found:
            yield held.pop(first), found.pop(first)

    for place, example in enumerate(examples):
        held[place] = example
        alike = waiting.setdefault(example.image.shape, [])
        alike.append(place)
        if len(alike) == batch_size:
            run(alike)
        yield from ready()
        # All others wait for the first one, and behind it perhaps for another.
        while len(held) >= batch_size * _AHEAD:
            run(waiting[held[next(iter(held))].image.shape])
            yield from ready()
    while held:
        run(waiting[held[next(iter(held))].image.shape])
        yield from ready()


class _Stopwatch:
    """Adds up the seconds spent inside its blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds += time.perf_counter() - self._start


class _Tally:
    """What is known of the images scored so far."""

    def __init__(self, labels, excluded: tuple[str, ...], measures: Sequence[Measure]):
        self.labels, self.excluded, self.measures = labels, excluded, measures
        self.indices = tuple(map(labels.classes.index, excluded))
        self.matrix = np.zeros((labels.num_classes,) * 2, np.int64)
        self.counts, self.images = [], []

    def add(self, example: _Scored, prediction: Prediction) -> None:
        if prediction.num_classes != self.labels.num_classes:
            raise KerassegError(
                f"the network has {prediction.num_classes} classes, data set '{self.labels.name}' has {self.labels.num_classes}: "
                "expected as many; evaluate on the data it was trained for, or start a training from it with --init"
            )
        if prediction.classes.dtype.kind not in "iu":
            raise KerassegError(
                f"prediction for '{example.id}' is {prediction.classes.dtype}: expected integers, the argmax of scores"
            )
        try:
            one = confusion_matrix(example.label, prediction.classes, self.labels.num_classes)
        except KerassegError as error:
            raise KerassegError(f"image '{example.id}': {error}") from error
        self.matrix += one
        self.counts.append(class_counts(one))
        result = scores(one, exclude=self.indices)
        self.images.append(ImageScore(example.id, result["mean_iou"], result["pixel_accuracy"]))
        for measure in self.measures:
            measure.add(example.label, prediction.classes, prediction.confidence)

    def evaluation(self, **about) -> Evaluation:
        if not self.images:
            raise KerassegError(f"nothing to evaluate: data set '{self.labels.name}' has no images in this split")
        if not self.matrix.any():
            raise KerassegError(
                f"no pixel of the {len(self.images)} images of data set '{self.labels.name}' is labelled: every label is {IGNORE} "
                f"(ignore), expected classes 0 to {self.labels.num_classes - 1} as well; check the masks, or choose another split"
            )
        results = [measure.result() for measure in self.measures]
        return Evaluation(
            self.matrix,
            self.labels,
            scores(self.matrix, exclude=self.indices),
            self.images,
            counts=np.stack(self.counts),
            excluded=self.excluded,
            measured={result.key: result for result in results},
            **about,
        )
