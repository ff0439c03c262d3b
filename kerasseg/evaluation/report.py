"""Pictures of predictions beside the truth, and the report directory of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw

from kerasseg.errors import KerassegError
from kerasseg.evaluation.page import write_page
from kerasseg.evaluation.trimap import draw_trimaps
from kerasseg.labels import IGNORE, colorize
from kerasseg.runs import atomic_path, write_json

_MARGIN = 8
_SWATCH = 14
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)


def side_by_side(examples, predictions, labels, path=None) -> PIL.Image.Image:
    """Draws one row per example: photograph, ground truth, prediction; below them a legend of the classes.

    Args:
        examples: Examples with `image` and `label`; where the label is `None` its place stays empty.
        predictions: One array `(H, W)` of classes per example.
        labels: Label table: names and palette.
        path: Where to write the picture as PNG as well; `None`: nowhere.
    Returns:
        The picture, RGB.
    Raises:
        KerassegError: If there are no examples, or not one prediction of the image's size for each.
    """
    examples, predictions = list(examples), [np.asarray(prediction) for prediction in predictions]
    if not examples or len(examples) != len(predictions):
        raise KerassegError(f"{len(examples)} examples with {len(predictions)} predictions: expected one or more, and as many")
    rows = [_row(example, prediction, labels) for example, prediction in zip(examples, predictions, strict=True)]
    top = 2 * _MARGIN + text_height()
    cell = max(row[0].width for row in rows)
    width = 3 * cell + 4 * _MARGIN
    legend = _legend(labels, width)
    canvas = PIL.Image.new("RGB", (width, top + sum(row[0].height + _MARGIN for row in rows) + legend.height), _PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    columns = [_MARGIN + column * (cell + _MARGIN) for column in range(3)]
    for left, title in zip(columns, ("image", "ground truth", "prediction"), strict=True):
        draw.text((left, _MARGIN), title, fill=_INK)
    for row in rows:
        for left, picture in zip(columns, row, strict=True):
            if picture is not None:
                canvas.paste(picture, (left, top))
        top += row[0].height + _MARGIN
    canvas.paste(legend, (0, top))
    if path is not None:
        with atomic_path(path) as temporary:
            canvas.save(temporary, format="PNG")
    return canvas


def _row(example, prediction, labels):
    """The three pictures of one example; None where it has no label."""
    if prediction.shape != example.image.shape[:2]:
        raise KerassegError(
            f"prediction for '{example.id}' is {prediction.shape}: expected {example.image.shape[:2]}, its image's size"
        )
    # Whatever is behind the colours, such as depth, cannot be shown.
    photograph = PIL.Image.fromarray(np.clip(np.rint(example.image[..., :3]), 0, 255).astype(np.uint8))
    truth = None if example.label is None else PIL.Image.fromarray(colorize(example.label, labels))
    return photograph, truth, PIL.Image.fromarray(colorize(prediction, labels))


def _legend(labels, width):
    """A strip of colour swatches with names, as many to a line as fit."""
    draw = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1)))
    entries = [*zip(labels.classes, range(labels.num_classes), strict=True), ("ignored", IGNORE)]
    swatch_colors = colorize(np.array([[value for _, value in entries]], np.int32), labels)[0]
    left, line, places = _MARGIN, 0, []
    for (name, _), color in zip(entries, swatch_colors, strict=True):
        extent = _SWATCH + 4 + int(np.ceil(draw.textlength(name))) + 2 * _MARGIN
        if left > _MARGIN and left + extent > width:
            left, line = _MARGIN, line + 1
        places.append((left, line, name, tuple(int(channel) for channel in color)))
        left += extent
    pitch = max(_SWATCH, text_height()) + 4
    strip = PIL.Image.new("RGB", (width, (line + 1) * pitch + _MARGIN), _PAPER)
    draw = PIL.ImageDraw.Draw(strip)
    for left, line, name, color in places:
        top = line * pitch
        draw.rectangle((left, top, left + _SWATCH - 1, top + _SWATCH - 1), fill=color, outline=_INK)
        draw.text((left + _SWATCH + 4, top + _SWATCH // 2), name, fill=_INK, anchor="lm")
    return strip


def text_height():
    """Gives the height of a line in PIL's default font, in pixels."""
    box = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1))).textbbox((0, 0), "Ag")
    return int(np.ceil(box[3]))


def write_report(directory, evaluation, pictures=(), extremes=()) -> Path:
    """Writes what an evaluation found, for people and for programs; every file appears whole or not at all.

    `report.html` shows all of it in one page that loads nothing. `scores.json` holds the same figures, `scores.txt` the table,
    `counts.npz` what a comparison draws images from: their names, `ids`, and `kerasseg.metrics.class_counts` of each, `counts`.
    Of a trimap there is `trimap.png`, with examples `pictures.png`.

    Args:
        directory: Where to write, made if need be; in a run directory its `report`.
        evaluation: Result of `evaluate`.
        pictures: Pairs of example and its prediction, `(H, W)` classes.
        extremes: Of the page: pairs of a heading, such as "worst", and triples of example, its prediction, and its `ImageScore`.
    Returns:
        The directory.
    """
    directory, report = Path(directory), evaluation.to_json()
    write_json(directory / "scores.json", report)
    with atomic_path(directory / "scores.txt") as temporary:
        temporary.write_text(evaluation.table() + "\n", encoding="utf-8")
    _write_counts(directory / "counts.npz", evaluation)
    if evaluation.trimap:
        draw_trimaps({evaluation.labels.name: evaluation.trimap}, directory / "trimap.png")
    pictures = [(_of_task(example, evaluation), prediction) for example, prediction in pictures]
    if pictures:
        examples, predictions = zip(*pictures, strict=True)
        side_by_side(examples, predictions, evaluation.labels, directory / "pictures.png")
    extremes = [(heading, [(_of_task(triple[0], evaluation), *triple[1:]) for triple in triples]) for heading, triples in extremes]
    write_page(directory / "report.html", report, extremes)
    return directory


def _write_counts(path: Path, evaluation) -> None:
    if evaluation.counts is None:
        # Those of an earlier evaluation would be taken for this one's.
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        ids = np.array([image.id for image in evaluation.images], dtype=str)
        np.savez_compressed(temporary, ids=ids, counts=evaluation.counts)


def _of_task(example, evaluation):
    """The example with the one of several label maps that was evaluated."""
    if evaluation.task is None or not isinstance(example.label, Mapping):
        return example
    return SimpleNamespace(id=example.id, image=example.image, label=example.label[evaluation.task])
