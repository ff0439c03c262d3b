"""Several reports side by side as a web page that loads nothing."""

from collections.abc import Mapping, Sequence

from kerasseg.evaluation.figures import run_color
from kerasseg.evaluation.rendering import (
    DASH,
    SCORE_TITLES,
    about_intervals,
    css_color,
    inference_text,
    known_interval,
    palette_of,
    percent_text,
    reliability_curve,
    render,
    trimap_curves,
    unknown,
)


def write_comparison(
    path, reports: Mapping[str, Mapping], differences: Sequence[Mapping] = (), reasons: Sequence[str] = ()
) -> None:
    """Writes the page of several evaluations side by side, whole or not at all.

    Args:
        path: The page.
        reports: Name → what `scores.json` holds, in the order in which they are shown.
        differences: For pairs of them: `a` and `b`, the names; `score`; `difference`, a's less b's, 0–1; `low` and `high`, its
            interval; `p_value`.
        reasons: Why other pairs or scores have none.
    """
    data = list(dict.fromkeys(f"{one['data']}{', ' + one['split'] if one.get('split') else ''}" for one in reports.values()))
    render(
        path,
        "comparison.html",
        title=" · ".join(reports),
        subtitle="; ".join(data),
        runs=[{"name": name, "color": run_color(place)} for place, name in enumerate(reports)],
        scores=[{"label": title, "cells": _cells(reports, name)} for name, title in SCORE_TITLES.items()],
        facts=_facts(reports),
        differences=[_difference(one) for one in differences],
        reasons=reasons,
        classes=_classes_of_all(reports),
        trimap=trimap_curves(reports),
        reliability=reliability_curve(reports),
        **about_intervals(next((one for one in reports.values() if "intervals" in one), {})),
    )


def _best(values) -> float | None:
    """The largest of those that are known; `None` where all are alike."""
    known = {value for value in values if not unknown(value)}
    return max(known) if len(known) > 1 else None


def _row(values, intervals) -> list[dict]:
    best = _best(values)
    return [
        {"value": value, "interval": known_interval(interval), "best": best is not None and value == best}
        for value, interval in zip(values, intervals, strict=True)
    ]


def _cells(reports: Mapping[str, Mapping], name: str) -> list[dict]:
    intervals = [report.get("intervals", {}).get(name) for report in reports.values()]
    return _row([report[name] for report in reports.values()], intervals)


def _classes_of_all(reports: Mapping[str, Mapping]) -> list[dict]:
    """Every class of any report; values where a report has it."""
    colors, found = {}, []
    for report in reports.values():
        colors = dict(zip(report["classes"], map(css_color, palette_of(report)), strict=False)) | colors
    for name, color in colors.items():
        values, intervals = [], []
        for report in reports.values():
            place = report["classes"].index(name) if name in report["classes"] else None
            ends = report.get("intervals", {}).get("per_class_iou")
            values.append(None if place is None else report["per_class_iou"][place])
            intervals.append(None if place is None or ends is None else ends[place])
        # Where runs leave out different classes, a row of its own says which.
        excluded = _excluding(reports, name) == {True}
        found.append({"name": name, "color": color, "excluded": excluded, "cells": _row(values, intervals)})
    return found


def _excluding(reports: Mapping[str, Mapping], name: str) -> set[bool]:
    """Whether the reports that have a class exclude it: all, none, or only some."""
    return {name in report.get("excluded", ()) for report in reports.values() if name in report["classes"]}


def _facts(reports: Mapping[str, Mapping]) -> list[dict]:
    """What else there is to know of each run; a row only if one has it."""
    known = {
        "boundary F": lambda one: percent_text(one["boundary_f"]["mean"]),
        "calibration error": lambda one: percent_text(one["calibration"]["error"]),
        "images": lambda one: f"{one['num_images']:,}",
        "images a second": lambda one: f"{one['timing']['images_per_second']:.2f}",
        "run at": lambda one: inference_text(one["inference"]) or DASH,
    }
    classes = {name for report in reports.values() for name in report["classes"]}
    if any(len(_excluding(reports, name)) > 1 for name in classes):
        known["left out of means"] = lambda one: ", ".join(one.get("excluded", ())) or "none"
    rows = []
    for label, tell in known.items():
        cells = []
        for report in reports.values():
            try:
                cells.append(tell(report))
            except (KeyError, TypeError):
                cells.append(DASH)
        rows += [{"label": label, "cells": cells}] if set(cells) != {DASH} else []
    return rows


def _difference(found: Mapping) -> dict:
    told_apart = found["low"] > 0 or found["high"] < 0
    return {
        **{name: found[name] for name in ("a", "b", "difference", "low", "high")},
        "label": SCORE_TITLES[found["score"]],
        "p": f"{found['p_value']:.3g}",
        "verdict": f"{found['a'] if found['difference'] > 0 else found['b']} is better" if told_apart else None,
    }
