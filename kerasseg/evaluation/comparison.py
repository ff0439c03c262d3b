"""Reports of evaluations side by side, and whether their scores differ by more than chance."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.measures.base import percent
from kerasseg.evaluation.reading import read_counts, read_scores
from kerasseg.evaluation.rendering import inference_text
from kerasseg.evaluation.results import LEVEL, REPLICATES, Evaluation
from kerasseg.metrics import SCORES, paired_bootstrap


@dataclasses.dataclass(frozen=True)
class Report:
    """One evaluation, as it was written.

    Args:
        name: What to call it.
        scores: What `scores.json` holds.
        ids: Names of the images.
        counts: `kerasseg.metrics.class_counts` of each image, `(N, 3, C)` int64; `None` where they were not kept.
    """

    name: str
    scores: dict[str, Any]
    ids: tuple[str, ...]
    counts: np.ndarray | None

    @classmethod
    def of(cls, evaluation: Evaluation, name: str) -> "Report":
        """The report of an evaluation that was just done."""
        return cls(name, evaluation.to_json(), tuple(image.id for image in evaluation.images), evaluation.counts)

    @classmethod
    def read(cls, folder, name: str) -> "Report":
        """Reads `scores.json` and, if it is there, `counts.npz`.

        Raises:
            KerassegError: If one is damaged, or from before reports could be compared, or they are of two evaluations.
        """
        folder = Path(folder)
        found, file = read_scores(folder / "scores.json"), folder / "counts.npz"
        counts = read_counts(file, found) if file.is_file() else None
        return cls(name, found, tuple(image["id"] for image in found["images"]), counts)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several reports, and by how much each differs from one of them.

    Args:
        reports: In the order in which they are shown; no two of one name.
        differences: For each other report and score: `a` and `b`, the names; `score`; `difference`, a's score less b's, 0–1;
            `low` and `high`, its 95 % interval; `p_value`.
        reasons: Why there is no difference, for each pair that has none, or lacks that of a score.
        baseline: Which of the reports the others are compared with.
    """

    reports: tuple[Report, ...]
    differences: tuple[dict, ...]
    reasons: tuple[str, ...]
    baseline: int = 0

    def table(self) -> str:
        """Scores with intervals and the IoU of each class, in percent, the best marked by `*`; then the differences.

        Between them a line for each network that was run otherwise than the baseline.
        """
        names = [report.name for report in self.reports]
        rows = [("", names), *((name, self._cells(name)) for name in SCORES), ("", [""] * len(names))]
        rows += [("IoU %", [""] * len(names)), *((name, self._class_cells(name)) for name in self._classes())]
        width = max(len(head) for head, _ in rows)
        widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(names))]
        lines = [
            f"{head:<{width}}  " + "  ".join(f"{cell:<{size}}" for cell, size in zip(cells, widths, strict=True))
            for head, cells in rows
        ]
        return "\n".join(line.rstrip() for line in [*lines, *self._inference_lines(), "", *self._difference_lines()])

    def _inference_lines(self) -> list[str]:
        """What each network that was run otherwise than the baseline was run at."""
        one = self.reports[self.baseline]
        ways = {report.name: inference_text(report.scores.get("inference")) or "not known" for report in self.reports}
        others = [name for name, way in ways.items() if way != ways[one.name]]
        lines = [f"{name} run at: {ways[name]}; {one.name} at: {ways[one.name]}" for name in others]
        return ["", *lines] if lines else []

    def _cells(self, score: str) -> list[str]:
        best, cells = _best([report.scores[score] for report in self.reports]), []
        for report in self.reports:
            interval = report.scores.get("intervals", {}).get(score)
            ends = f" ({_percent(interval[0])} to {_percent(interval[1])})" if interval and None not in interval else ""
            cells.append(f"{_marked(report.scores[score], best)}{ends}")
        return cells

    def _classes(self) -> list[str]:
        return list(dict.fromkeys(name for report in self.reports for name in report.scores["classes"]))

    def _class_cells(self, name: str) -> list[str]:
        values = [dict(zip(r.scores["classes"], r.scores["per_class_iou"], strict=True)).get(name) for r in self.reports]
        return [_marked(value, _best(values)) for value in values]

    def _difference_lines(self) -> list[str]:
        width = max((len(each["score"]) for each in self.differences), default=0)
        lines = [f"differences on the same images, with {100 * LEVEL:g} % intervals ({REPLICATES} draws of the images), in percent"]
        for each in self.differences:
            ends = f"({100 * each['low']:+.2f} to {100 * each['high']:+.2f})"
            size = f"{each['score']:<{width}}  {100 * each['difference']:+6.2f}  {ends}"
            lines.append(f"{each['a']} - {each['b']}  {size}  p = {each['p_value']:.3g}")
        return [*(lines if self.differences else []), *self.reasons]


def compare(reports: Sequence[Report], baseline: int = 0, names: Sequence[str] = SCORES) -> Comparison:
    """Puts reports side by side, and draws images to tell the others from one of them.

    Args:
        reports: Two or more, no two of one name.
        baseline: Which of them the others are compared with.
        names: Of which scores to give the difference, from `kerasseg.metrics.SCORES`.
    Raises:
        KerassegError: If there are fewer than two reports, or two of one name.
    Reference:
        `kerasseg.metrics.paired_bootstrap`: the same images are drawn for both.
    """
    if len(reports) < 2 or len({report.name for report in reports}) < len(reports):
        received = ", ".join(report.name for report in reports) or "none"
        raise KerassegError(f"reports {received}: expected two or more, of different names")
    one, differences, reasons = reports[baseline], [], []
    for other in reports:
        if other is one:
            continue
        reason = _obstacle(other, one)
        if reason is None:
            try:
                known, unknown = _told(other, one, names)
                differences, reasons = differences + known, reasons + unknown
            except KerassegError as error:
                reason = str(error)
        if reason is not None:
            reasons.append(f"{other.name} - {one.name}: no difference, since {reason}")
    return Comparison(tuple(reports), tuple(differences), tuple(reasons), baseline)


def _told(a: Report, b: Report, names: Sequence[str]) -> tuple[list[dict], list[str]]:
    """The differences of a pair, and why the others are not there."""
    found, known, reasons = _paired(a, b), [], []
    for name in names:
        if math.isnan(found[name].difference) or math.isnan(found[name].low):
            reasons.append(f"{a.name} - {b.name}: {name} is not known for both")
        else:
            known.append({"a": a.name, "b": b.name, "score": name, **found[name]._asdict()})
    return known, reasons


def _obstacle(a: Report, b: Report) -> str | None:
    """Why two reports are not of the same task on the same images; `None` if they are."""
    for report in (a, b):
        if report.counts is None:
            return f"{report.name} has no counts.npz: evaluate it again"
    if a.scores["classes"] != b.scores["classes"]:
        return f"their classes differ ({different_classes(a.scores['classes'], b.scores['classes'])})"
    if a.scores["excluded"] != b.scores["excluded"]:
        left = [", ".join(report.scores["excluded"]) or "none" for report in (a, b)]
        return f"their means exclude other classes ({left[0]}; {left[1]}): evaluate with the same --exclude"
    missing = sorted(set(a.ids) ^ set(b.ids))
    if missing or len(a.ids) != len(b.ids):
        only = f"; '{missing[0]}' is only in {a.name if missing[0] in a.ids else b.name}" if missing else ""
        return f"their images differ ({len(a.ids)} and {len(b.ids)}{only})"
    return None


def different_classes(one: Sequence[str], other: Sequence[str]) -> str:
    """Says where two lists of classes part."""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)}"
    return next(f"'{a}' and '{b}'" for a, b in zip(one, other, strict=True) if a != b)


def _paired(a: Report, b: Report):
    places = {name: place for place, name in enumerate(a.ids)}
    order = range(len(b.ids)) if a.ids == b.ids else [places[name] for name in b.ids]
    exclude = [a.scores["classes"].index(name) for name in a.scores["excluded"]]
    return paired_bootstrap(a.counts[list(order)], b.counts, exclude=exclude, replicates=REPLICATES, level=LEVEL)


def find_report(path, split: str | None = None) -> Path:
    """Finds the folder of a report.

    Args:
        path: The folder itself, its `scores.json`, or a run directory or `.keras` file that has been evaluated.
        split: Which of several reports of a run: name of its folder, or else of the part of the data it is about.
    Raises:
        KerassegError: If there is none, or more than one.
    """
    path = Path(path)
    if not path.exists():
        raise KerassegError(f"no report at '{path}': expected a report's folder, a run directory or a .keras file")
    if path.name == "scores.json":
        return path.parent
    if path.is_dir() and (path / "scores.json").is_file():
        return path
    root = (path if path.is_dir() else path.with_suffix("")) / "report"
    found = sorted(file.parent for file in [*root.glob("scores.json"), *root.glob("*/scores.json")])
    if split is not None:
        named = [folder for folder in found if folder.name == split]
        found = named or [folder for folder in found if read_scores(folder / "scores.json").get("split") == split]
    of_split = "" if split is None else f" of split '{split}'"
    if not found:
        again = "" if split is None else f" --split {split}"
        raise KerassegError(f"{path} has no report{of_split}: python evaluate.py {path}{again} writes one")
    if len(found) > 1:
        raise KerassegError(f"{path} has {len(found)} reports{of_split}: name one of {', '.join(map(str, found))}")
    return found[0]


def report_names(folders: Sequence[Path]) -> list[str]:
    """Short names for reports, no two alike: of the run, of run and report, or the whole path.

    Args:
        folders: Of the reports.
    Raises:
        KerassegError: If a folder is given twice.
    """
    folders = [folder.resolve() for folder in folders]
    above = [folder.parents[1] if folder.parent.name == "report" else folder.parent for folder in folders]
    short = [run.name if folder.parent.name == "report" else folder.name for run, folder in zip(above, folders, strict=True)]
    names = distinct_names(short, [f"{run.name}/{folder.name}" for run, folder in zip(above, folders, strict=True)], folders)
    if names:
        return names
    twice = next(folder for folder in folders if folders.count(folder) > 1)
    raise KerassegError(f"report {twice} is given twice: expected different ones")


def distinct_names(*choices: Sequence) -> list[str]:
    """Picks the first list of names of which no two are alike; an empty one if there is none."""
    return next((list(map(str, names)) for names in choices if len(set(map(str, names))) == len(names)), [])


def _best(values) -> float | None:
    """The largest; `None` where all are alike."""
    known = {value for value in values if value is not None}
    return max(known) if len(known) > 1 else None


def _marked(value: float | None, best: float | None) -> str:
    return f"{_percent(value):>6}" + ("*" if value is not None and value == best else " ")


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
