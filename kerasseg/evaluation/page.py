"""The report of one evaluation as a web page: one file, which carries its pictures and curves inside and loads nothing."""

from collections.abc import Mapping, Sequence

import numpy as np

from kerasseg.evaluation.figures import error_picture, label_picture, matrix_picture, photograph_picture
from kerasseg.evaluation.rendering import (
    DASH,
    SCORE_TITLES,
    about_intervals,
    css_color,
    inference_text,
    interval_text,
    known_interval,
    palette_of,
    percent_text,
    reliability_curve,
    render,
    trimap_curves,
)
from kerasseg.labels import IGNORE, IGNORE_COLOR

# A matrix of so many classes is a table of numbers, a larger one a picture.
_TABLE_CLASSES = 25


def write_page(path, report: Mapping, extremes: Sequence = ()) -> None:
    """Writes the page of one evaluation, whole or not at all.

    Args:
        path: The page.
        report: What `Evaluation.to_json` gives, or `scores.json` holds; what it lacks is left out of the page.
        extremes: Pairs of a heading, such as "worst", and triples of example, its prediction `(H, W)`, and its `ImageScore`.
    """
    palette = palette_of(report)
    about = [report["network"] if report.get("network") else "predictions", "on", report["data"]]
    title = " ".join(about) + (f", {report['split']}" if report.get("split") else "")
    render(
        path,
        "report.html",
        title=title,
        subtitle=f"{report['num_images']:,} images, {report['num_pixels']:,} labelled pixels",
        cards=_cards(report),
        inference=inference_text(report.get("inference")),
        excluded=", ".join(report.get("excluded", ())),
        classes=_classes(report, palette),
        has_boundary_f="boundary_f" in report,
        groups=_groups(report.get("groups")),
        pictures=[(heading, [_pictures(*triple, palette) for triple in triples]) for heading, triples in extremes if triples],
        legend=_legend(report, palette, extremes),
        **_confusions(report, palette),
        regions=report.get("boundary"),
        boundary_f=_boundary_f(report.get("boundary_f")),
        trimap=trimap_curves({report["data"]: report}),
        trimap_boundary=report.get("trimap", {}).get("boundary"),
        calibration=report.get("calibration"),
        reliability=reliability_curve({report["data"]: report}),
        timing=_timing(report),
        **about_intervals(report),
    )


def _cards(report: Mapping) -> list[dict]:
    intervals = report.get("intervals", {})
    return [
        {"label": f"{title}, %", "value": percent_text(report[name]), "note": interval_text(intervals.get(name))}
        for name, title in SCORE_TITLES.items()
    ]


def _classes(report: Mapping, palette) -> list[dict]:
    matrix = np.array(report["confusion_matrix"], np.int64)
    shares = matrix.sum(1) / max(1, matrix.sum())
    count = len(report["classes"])
    intervals = report.get("intervals", {}).get("per_class_iou") or [None] * count
    contours = report.get("boundary_f", {}).get("per_class") or [None] * count
    return [
        {
            "name": name,
            "color": css_color(palette[place]),
            "iou": report["per_class_iou"][place],
            "accuracy": report["per_class_accuracy"][place],
            "interval": known_interval(intervals[place]),
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
    # Written before groups could be left out.
    excluded = groups.get("excluded", ())
    rows = [{"name": name, "iou": iou, "accuracy": accuracy, "excluded": name in excluded} for name, iou, accuracy in columns]
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
    found = [{"name": name, "color": css_color(palette[at])} for at, name in enumerate(report["classes"]) if at in seen]
    return found + ([{"name": "ignored", "color": css_color(IGNORE_COLOR)}] if IGNORE in seen else [])


def _confusions(report: Mapping, palette) -> dict:
    counts = np.array(report["confusion_matrix"], np.int64)
    rates = counts / np.maximum(1, counts.sum(1, keepdims=True))
    names, colors, small = report["classes"], [css_color(color) for color in palette], len(counts) <= _TABLE_CLASSES
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
            "text": "" if known and not count else f"{100 * rate:.1f}" if known else DASH,
            "strong": rate > 0.55,
        }
        for name, count, rate in zip(names, counts, rates, strict=True)
    ]


def _boundary_f(found: Mapping | None) -> dict | None:
    if found is None:
        return None
    tolerance = found["tolerance"]
    return {"mean": found["mean"], "tolerance": "0.75 % of the diagonal" if tolerance is None else f"{tolerance:g} px"}


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
