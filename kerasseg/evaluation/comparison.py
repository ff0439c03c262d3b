"""Reports of evaluations side by side, and whether their scores differ by more than chance."""

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.measures.base import percent
from kerasseg.evaluation.results import LEVEL, REPLICATES, Evaluation
from kerasseg.metrics import SCORES, paired_bootstrap

_LISTS = ("classes", "excluded", "per_class_iou", "images")
# Whatever a damaged file makes np.load raise.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


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
            KerassegError: If one is damaged, or from before reports could be compared.
        """
        folder = Path(folder)
        found, counts = _read_scores(folder / "scores.json"), None
        ids = tuple(image["id"] for image in found["images"])
        if (folder / "counts.npz").is_file():
            ids, counts = _read_counts(folder / "counts.npz", len(found["classes"]))
        return cls(name, found, ids, counts)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several reports, and by how much each differs from one of them.

    Args:
        reports: In the order in which they are shown; no two of one name.
        differences: For each other report and score: `a` and `b`, the names; `score`; `difference`, a's score less b's, 0–1;
            `low` and `high`, its 95 % interval; `p_value`.
        reasons: Why there is no difference, for each pair that has none.
    """

    reports: tuple[Report, ...]
    differences: tuple[dict, ...]
    reasons: tuple[str, ...]

    def table(self) -> str:
        """Scores with intervals and the IoU of each class, in percent, the best marked by `*`; then the differences."""
        names = [report.name for report in self.reports]
        rows = [("", names), *((name, self._cells(name)) for name in SCORES), ("", [""] * len(names))]
        rows += [("IoU %", [""] * len(names)), *((name, self._class_cells(name)) for name in self._classes())]
        width = max(len(head) for head, _ in rows)
        widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(names))]
        lines = [
            f"{head:<{width}}  " + "  ".join(f"{cell:<{size}}" for cell, size in zip(cells, widths, strict=True))
            for head, cells in rows
        ]
        return "\n".join(line.rstrip() for line in [*lines, "", *self._difference_lines()])

    def _cells(self, score: str) -> list[str]:
        best, cells = _best([report.scores[score] for report in self.reports]), []
        for report in self.reports:
            interval = report.scores.get("intervals", {}).get(score)
            ends = f" ({_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
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
                found = _paired(other, one)
                differences += [{"a": other.name, "b": one.name, "score": name, **found[name]._asdict()} for name in names]
            except KerassegError as error:
                reason = str(error)
        if reason is not None:
            reasons.append(f"{other.name} - {one.name}: no difference, since {reason}")
    return Comparison(tuple(reports), tuple(differences), tuple(reasons))


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
        found = named or [folder for folder in found if _read_scores(folder / "scores.json").get("split") == split]
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
    short = [folder.parents[1].name if folder.parent.name == "report" else folder.name for folder in folders]
    longer = [
        f"{folder.parents[1].name}/{folder.name}" if folder.parent.name == "report" else f"{folder.parent.name}/{folder.name}"
        for folder in folders
    ]
    for names in (short, longer, list(map(str, folders))):
        if len(set(names)) == len(names):
            return names
    twice = next(folder for folder in folders if folders.count(folder) > 1)
    raise KerassegError(f"report {twice} is given twice: expected different ones")


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise KerassegError(f"cannot read {path}: {error}; evaluate again") from error
    if not isinstance(found, dict):
        found = {}
    # Written before classes could be left out.
    found.setdefault("excluded", [])
    wanted = {**dict.fromkeys(_LISTS, list), **{name: (float, int, type(None)) for name in SCORES}}
    wrong = [name for name, kind in wanted.items() if name not in found or not isinstance(found[name], kind)]
    if wrong or len(found["classes"]) != len(found["per_class_iou"]):
        raise KerassegError(f"{path} is not what evaluate.py writes ({', '.join(wrong) or 'per_class_iou'}): evaluate again")
    return found


def _read_counts(path: Path, num_classes: int) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        with np.load(path) as file:
            ids, counts = file["ids"], file["counts"]
    except _DAMAGED as error:
        raise KerassegError(f"cannot read {path}: {type(error).__name__}: {error}; evaluate again") from error
    if ids.ndim != 1 or counts.shape != (len(ids), 3, num_classes) or counts.dtype.kind not in "iu":
        raise KerassegError(f"{path} holds counts of shape {counts.shape}: expected ({len(ids)}, 3, {num_classes}); evaluate again")
    return tuple(map(str, ids)), counts


def _best(values) -> float | None:
    """The largest; `None` where all are alike."""
    known = {value for value in values if value is not None}
    return max(known) if len(known) > 1 else None


def _marked(value: float | None, best: float | None) -> str:
    return f"{_percent(value):>6}" + ("*" if value is not None and value == best else " ")


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
