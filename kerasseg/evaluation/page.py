"""Reports as web pages: one file each, which carries its pictures and curves inside and loads nothing."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kerasseg.evaluation.figures import (
    error_picture,
    inline_svg,
    label_picture,
    matrix_picture,
    photograph_picture,
    reliability_figure,
    run_color,
    trimap_figure,
)
from kerasseg.labels import IGNORE, IGNORE_COLOR, voc_palette
from kerasseg.runs import atomic_path

SCORE_TITLES = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency weighted IoU",
}
_TRIMAP_SCORES = ("mean_iou", "pixel_accuracy")
# A matrix of so many classes is a table of numbers, a larger one a picture.
_TABLE_CLASSES = 25
_DASH = "–"


def write_page(path, report: Mapping, extremes: Sequence = ()) -> None:
    """Writes the page of one evaluation, whole or not at all.

    Args:
        path: The page.
        report: What `Evaluation.to_json` gives, or `scores.json` holds; what it lacks is left out of the page.
        extremes: Pairs of a heading, such as "worst", and triples of example, its prediction `(H, W)`, and its `ImageScore`.
    """
    palette = _palette(report)
    about = [report["network"] if report.get("network") else "predictions", "on", report["data"]]
    title = " ".join(about) + (f", {report['split']}" if report.get("split") else "")
    _render(
        path,
        "report.html",
        title=title,
        subtitle=f"{report['num_images']:,} images, {report['num_pixels']:,} labelled pixels",
        cards=_cards(report),
        inference=_inference(report.get("inference")),
        excluded=", ".join(report.get("excluded", ())),
        classes=_classes(report, palette),
        has_boundary_f="boundary_f" in report,
        groups=_groups(report.get("groups")),
        pictures=[(heading, [_pictures(*triple, palette) for triple in triples]) for heading, triples in extremes if triples],
        legend=_legend(report, palette, extremes),
        **_confusions(report, palette),
        regions=report.get("boundary"),
        boundary_f=_boundary_f(report.get("boundary_f")),
        trimap=_trimap({report["data"]: report}),
        trimap_boundary=report.get("trimap", {}).get("boundary"),
        calibration=report.get("calibration"),
        reliability=_reliability({report["data"]: report}),
        timing=_timing(report),
        **_about_intervals(report),
    )


def write_comparison(path, reports: Mapping[str, Mapping], differences: Sequence[Mapping] = ()) -> None:
    """Writes the page of several evaluations side by side, whole or not at all.

    Args:
        path: The page.
        reports: Name → what `scores.json` holds, in the order in which they are shown.
        differences: For pairs of them: `a` and `b`, the names; `score`; `difference`, a's less b's, 0–1; `low` and `high`, its
            interval; `p_value`.
    """
    data = list(dict.fromkeys(f"{one['data']}{', ' + one['split'] if one.get('split') else ''}" for one in reports.values()))
    _render(
        path,
        "comparison.html",
        title=" · ".join(reports),
        subtitle="; ".join(data),
        runs=[{"name": name, "color": run_color(place)} for place, name in enumerate(reports)],
        scores=[{"label": title, "cells": _cells(reports, name)} for name, title in SCORE_TITLES.items()],
        facts=_facts(reports),
        differences=[_difference(one) for one in differences],
        classes=_classes_of_all(reports),
        trimap=_trimap({name: one for name, one in reports.items() if "trimap" in one}),
        reliability=_reliability({name: one for name, one in reports.items() if "calibration" in one}),
        **_about_intervals(next((one for one in reports.values() if "intervals" in one), {})),
    )


def _render(path, template: str, **values) -> None:
    from kerasseg import __version__

    text = _environment().get_template(template).render(version=__version__, **values)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@functools.cache
def _environment():
    import jinja2

    # What is missing in a template is a mistake in it, never an empty place in a page.
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("kerasseg.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": _percent, "signed": _signed, "interval": _interval, "place": _place}
    return made


def _unknown(value) -> bool:
    return value is None or math.isnan(value)


def _percent(value) -> str:
    return _DASH if _unknown(value) else f"{100 * value:.2f}"


def _signed(value) -> str:
    # A true minus is as wide as the plus.
    return _DASH if _unknown(value) else f"{100 * value:+.2f}".replace("-", "−")


def _interval(ends) -> str:
    return "" if not _known_interval(ends) else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _known_interval(ends):
    """The interval, or `None` where there is none of one's own to draw."""
    return None if ends is None or any(map(_unknown, ends)) else ends


def _place(rate) -> str:
    """How far along a bar, in percent of its length."""
    return f"{100 * min(max(rate, 0), 1):.2f}"


def _palette(report: Mapping) -> list:
    return report.get("palette") or list(voc_palette(len(report["classes"])))


def _color(color) -> str:
    return "rgb({}, {}, {})".format(*map(int, color))


def _cards(report: Mapping) -> list[dict]:
    intervals = report.get("intervals", {})
    return [
        {"label": f"{title}, %", "value": _percent(report[name]), "note": _interval(intervals.get(name))}
        for name, title in SCORE_TITLES.items()
    ]


def _about_intervals(report: Mapping) -> dict:
    intervals = report.get("intervals")
    return {"level": intervals and f"{100 * intervals['level']:g}", "replicates": intervals and intervals["replicates"]}


def _inference(inference: Mapping | None) -> str:
    """How the network was run, to be read."""
    if not inference:
        return ""
    several = len(inference["scales"]) > 1
    parts = [f"scale{'s' if several else ''} {', '.join(f'{scale:g}' for scale in inference['scales'])}"]
    parts += ["mirrored too"] if inference.get("flip") else []
    rest = {name: value for name, value in inference.items() if name not in ("scales", "flip") and value}
    if rest.get("method") == {"name": "whole_image"}:
        del rest["method"]
    parts += [f"{name} {_plain(value)}" for name, value in rest.items()]
    return f"Network run at {'; '.join(parts)}."


def _plain(value) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(
            f"{key.replace('_', ' ')} {_plain(one)}" for key, one in value.items() if key != "name" and one is not None
        )
        return " ".join(part for part in (str(value.get("name", "")).replace("_", " "), f"({rest})" if rest else "") if part)
    if isinstance(value, list | tuple):
        return "×".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _classes(report: Mapping, palette) -> list[dict]:
    matrix = np.array(report["confusion_matrix"], np.int64)
    shares = matrix.sum(1) / max(1, matrix.sum())
    count = len(report["classes"])
    intervals = report.get("intervals", {}).get("per_class_iou") or [None] * count
    contours = report.get("boundary_f", {}).get("per_class") or [None] * count
    return [
        {
            "name": name,
            "color": _color(palette[place]),
            "iou": report["per_class_iou"][place],
            "accuracy": report["per_class_accuracy"][place],
            "interval": _known_interval(intervals[place]),
            "boundary_f": contours[place],
            "share": shares[place],
            "excluded": name in report.get("excluded", ()),
        }
        for place, name in enumerate(report["classes"])
    ]


def _groups(groups: Mapping | None) -> dict | None:
    if groups is None:
        return None
    columns = zip(groups["classes"], groups["per_class_iou"], groups["per_class_accuracy"], strict=True)
    rows = [{"name": name, "iou": iou, "accuracy": accuracy} for name, iou, accuracy in columns]
    return {"rows": rows, "mean_iou": groups["mean_iou"], "pixel_accuracy": groups["pixel_accuracy"]}


def _pictures(example, prediction, score, palette) -> dict:
    # Whatever is behind the colours, such as depth, cannot be shown.
    image, prediction = np.asarray(example.image)[..., :3], np.asarray(prediction)
    shown = [
        ("image", photograph_picture(image)),
        ("truth", label_picture(example.label, palette)),
        ("prediction", label_picture(prediction, palette)),
        ("error", photograph_picture(error_picture(image, example.label, prediction))),
    ]
    return {
        "id": score.id,
        "mean_iou": score.mean_iou,
        "pixel_accuracy": score.pixel_accuracy,
        "shown": [{"what": what, **picture._asdict()} for what, picture in shown],
    }


def _legend(report: Mapping, palette, extremes) -> list[dict]:
    """The classes that the pictures have."""
    seen = set()
    for _, triples in extremes:
        for example, prediction, _ in triples:
            seen |= {*np.unique(example.label).tolist(), *np.unique(prediction).tolist()}
    found = [{"name": name, "color": _color(palette[at])} for at, name in enumerate(report["classes"]) if at in seen]
    return found + ([{"name": "ignored", "color": _color(IGNORE_COLOR)}] if IGNORE in seen else [])


def _confusions(report: Mapping, palette) -> dict:
    counts = np.array(report["confusion_matrix"], np.int64)
    rates = counts / np.maximum(1, counts.sum(1, keepdims=True))
    names, colors, small = report["classes"], [_color(color) for color in palette], len(counts) <= _TABLE_CLASSES
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[: 10 if small else 20]
    frequent = [
        {
            "truth": names[row],
            "prediction": names[column],
            "color": colors[row],
            "other": colors[column],
            "pixels": f"{wrong[row, column]:,}",
            "of_class": rates[row, column],
            "of_errors": wrong[row, column] / wrong.sum(),
        }
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]
    table = [
        {"name": name, "color": color, "cells": _matrix_cells(names, count, rate)}
        for name, color, count, rate in zip(names, colors, counts, rates, strict=False)
    ]
    picture = None if small else matrix_picture(rates)._asdict()
    return {"matrix": table if small else None, "matrix_picture": picture, "confusions": frequent}


def _matrix_cells(names, counts, rates) -> list[dict]:
    known = counts.sum() > 0
    return [
        {
            "name": name,
            "pixels": f"{count:,}",
            "share": f"{rate:.3f}",
            # Zeros would hide what there is to see; a row without pixels has no share.
            "text": "" if known and not count else f"{100 * rate:.1f}" if known else _DASH,
            "strong": rate > 0.55,
        }
        for name, count, rate in zip(names, counts, rates, strict=True)
    ]


def _boundary_f(found: Mapping | None) -> dict | None:
    if found is None:
        return None
    tolerance = found["tolerance"]
    return {"mean": found["mean"], "tolerance": "0.75 % of the diagonal" if tolerance is None else f"{tolerance:g} px"}


def _svg(draw, *arguments):
    from markupsafe import Markup

    return Markup(inline_svg(draw, *arguments))


def _trimap(reports: Mapping[str, Mapping]) -> list:
    """The curve of each score; nothing where no report has any."""
    bands = {name: report["trimap"]["bands"] for name, report in reports.items() if "trimap" in report}
    return [_svg(trimap_figure, bands, score, SCORE_TITLES[score]) for score in _TRIMAP_SCORES] if bands else []


def _reliability(reports: Mapping[str, Mapping]):
    bins = {name: report["calibration"]["bins"] for name, report in reports.items() if "calibration" in report}
    return _svg(reliability_figure, bins) if bins else None


def _timing(report: Mapping) -> list[tuple[str, str]]:
    """What is known of the time, in words and figures."""
    timing = report.get("timing") or {}
    titles = {
        "images_per_second": "images a second, all included",
        "seconds": "seconds in all",
        "prediction_seconds": "in the network and its inference",
        "scoring_seconds": "in what is measured",
    }
    # Zero is what predictions that were there already took.
    return [(title, f"{timing[name]:.2f}") for name, title in titles.items() if timing.get(name)]


def _best(values) -> float | None:
    """The largest of those that are known; `None` where all are alike."""
    known = {value for value in values if not _unknown(value)}
    return max(known) if len(known) > 1 else None


def _row(values, intervals) -> list[dict]:
    best = _best(values)
    return [
        {"value": value, "interval": _known_interval(interval), "best": best is not None and value == best}
        for value, interval in zip(values, intervals, strict=True)
    ]


def _cells(reports: Mapping[str, Mapping], name: str) -> list[dict]:
    intervals = [report.get("intervals", {}).get(name) for report in reports.values()]
    return _row([report[name] for report in reports.values()], intervals)


def _classes_of_all(reports: Mapping[str, Mapping]) -> list[dict]:
    """Every class of any report; values where a report has it."""
    colors, found = {}, []
    for report in reports.values():
        colors = dict(zip(report["classes"], map(_color, _palette(report)), strict=False)) | colors
    for name, color in colors.items():
        values, intervals = [], []
        for report in reports.values():
            place = report["classes"].index(name) if name in report["classes"] else None
            ends = report.get("intervals", {}).get("per_class_iou")
            values.append(None if place is None else report["per_class_iou"][place])
            intervals.append(None if place is None or ends is None else ends[place])
        excluded = any(name in report.get("excluded", ()) for report in reports.values())
        found.append({"name": name, "color": color, "excluded": excluded, "cells": _row(values, intervals)})
    return found


def _facts(reports: Mapping[str, Mapping]) -> list[dict]:
    """What else there is to know of each run; a row only if one has it."""
    known = {
        "boundary F": lambda one: _percent(one["boundary_f"]["mean"]),
        "calibration error": lambda one: _percent(one["calibration"]["error"]),
        "images": lambda one: f"{one['num_images']:,}",
        "images a second": lambda one: f"{one['timing']['images_per_second']:.2f}",
    }
    rows = []
    for label, tell in known.items():
        cells = []
        for report in reports.values():
            try:
                cells.append(tell(report))
            except (KeyError, TypeError):
                cells.append(_DASH)
        rows += [{"label": label, "cells": cells}] if set(cells) != {_DASH} else []
    return rows


def _difference(found: Mapping) -> dict:
    told_apart = found["low"] > 0 or found["high"] < 0
    return {
        **{name: found[name] for name in ("a", "b", "difference", "low", "high")},
        "label": SCORE_TITLES[found["score"]],
        "p": f"{found['p_value']:.3g}",
        "verdict": f"{found['a'] if found['difference'] > 0 else found['b']} is better" if told_apart else None,
    }
