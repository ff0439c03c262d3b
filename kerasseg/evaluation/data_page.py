"""What is in a data set, as a web page: one file, which carries its pictures inside and loads nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasseg.data import DataSet, Example
from kerasseg.data.checking import Broken
from kerasseg.evaluation.figures import Picture, inline_svg, label_picture, photograph_picture, sizes_figure
from kerasseg.evaluation.rendering import DASH, css_color, render
from kerasseg.labels import IGNORE, IGNORE_COLOR, LabelTable, overlay

_NAMED = 20


def write_data_page(
    path,
    title: str,
    heads: Mapping[str, LabelTable],
    whole: Mapping[str, Any],
    summaries: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[tuple[int, int], int],
    *,
    samples: Sequence[Example] = (),
    sampled: str = "",
    doubts: Sequence[str] = (),
    broken: Sequence[Broken] = (),
) -> None:
    """Writes the page of a data set, whole or not at all.

    Args:
        path: The page.
        title: Its heading.
        heads: Name → label table of each label map.
        whole: What `kerasseg.data.preparation.survey.summarize` gives of all examples, each counted once.
        summaries: Split → what it gives of that.
        sizes: Height and width in pixels → number of images.
        samples: Examples to be shown.
        sampled: The split that they are from.
        doubts: Lines of `kerasseg.data.preparation.doubts.find_doubts`.
        broken: Examples that cannot be used.
    """
    titled = [(head if len(heads) > 1 else "", table) for head, table in heads.items()]
    render(
        path,
        "data.html",
        title=title,
        subtitle=", ".join(f"{split} {found['images']:,}" for split, found in summaries.items()) + " images",
        cards=_cards(heads, whole, len(summaries)),
        doubts=list(doubts),
        broken=[one.reason for one in broken[:_NAMED]],
        more_broken=max(0, len(broken) - _NAMED),
        samples=[_sample(example, heads) for example in samples],
        sampled=sampled,
        legends=[(title, _legend(place, table, samples)) for place, (title, table) in enumerate(titled)],
        classes=[(title, _classes(head, table, summaries)) for head, (title, table) in zip(heads, titled, strict=True)],
        splits=_splits(summaries),
        common=_common(sizes),
        size_count=len(sizes),
        scatter=_scatter(sizes) if len(sizes) > 1 else None,
        level=None,
    )


def choose_samples(data: DataSet, rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[int]:
    """Chooses examples by chance, but such first that show a class which those before do not.

    Args:
        data: The data set.
        rows: What was counted of it, without broken examples.
        count: How many at most.
        seed: The same seed chooses the same.
    Returns:
        Their indices in the data set.
    """
    places = {name: index for index, name in enumerate(data.ids)}
    order = np.random.default_rng(seed).permutation(len(rows))
    seen, first, rest = set(), [], []
    for place in order:
        classes = {(head, label) for head, counts in enumerate(rows[place]["pixels"]) for label in counts}
        (first if classes - seen else rest).append(places[rows[place]["id"]])
        seen |= classes
    return (first + rest)[:count]


def _cards(heads: Mapping[str, LabelTable], whole: Mapping[str, Any], splits: int) -> list[dict[str, str]]:
    head, table = next(iter(heads.items()))
    found, median = whole["heads"][head], whole["sizes"]["median"]
    pixels, ignored = sum(found["pixels"]), found["ignored"]
    many = pixels >= 1_000_000
    share = f"{100 * ignored / (pixels + ignored):.2f}" if pixels + ignored else DASH
    return [
        {"label": "images", "value": f"{whole['images']:,}", "note": f"in {splits} split{'s' if splits > 1 else ''}"},
        {"label": "classes that occur", "value": f"{np.count_nonzero(found['pixels'])}", "note": f"of {table.num_classes}"},
        {
            "label": f"labelled pixels{', millions' if many else ''}",
            "value": f"{pixels / 1e6:,.1f}" if many else f"{pixels:,}",
            "note": "",
        },
        {"label": "ignored, % of pixels", "value": share, "note": ""},
        {"label": "median size, px", "value": f"{median[1]} × {median[0]}", "note": "width × height"},
    ]


def _sample(example: Example, heads: Mapping[str, LabelTable]) -> dict[str, Any]:
    # Whatever is behind the colours, such as depth, cannot be shown.
    image = np.asarray(example.image)[..., :3]
    shown = [("image", photograph_picture(image))]
    for place, (head, table) in enumerate(heads.items() if example.label is not None else ()):
        label = _label(example, place)
        name = f"{head} " if len(heads) > 1 else ""
        shown.append((f"{name}labels", label_picture(label, table.palette)))
        shown.append((f"{name}labels on it", _overlay(image, label, table)))
    height, width = image.shape[:2]
    return {
        "id": example.id,
        "size": f"{width} × {height} px",
        "wide": len(shown) > 3,
        # Classes have no shades between them.
        "shown": [{"what": what, "sharp": what.endswith("labels"), **one._asdict()} for what, one in shown],
    }


def _label(example: Example, place: int) -> np.ndarray:
    return example.label[..., place] if example.label.ndim == 3 else example.label


def _overlay(image: np.ndarray, label: np.ndarray, table: LabelTable) -> Picture:
    return photograph_picture(overlay(image, label, table, alpha=0.6))


def _legend(place: int, table: LabelTable, samples: Sequence[Example]) -> list[dict[str, str]]:
    """The classes that the samples have."""
    labels = [_label(example, place) for example in samples if example.label is not None]
    seen = {label for one in labels for label in np.unique(one).tolist()}
    found = [{"name": name, "color": css_color(table.palette[at])} for at, name in enumerate(table.classes) if at in seen]
    return found + ([{"name": "ignored", "color": css_color(IGNORE_COLOR)}] if IGNORE in seen else [])


def _classes(head: str, table: LabelTable, summaries) -> list[dict[str, Any]]:
    """Of each class its share of the labelled pixels and of the images of each split."""
    found = [(split["heads"][head], split["labelled"]) for split in summaries.values() if split["labelled"]]
    shares = [np.array(one["pixels"]) / max(1, sum(one["pixels"])) for one, _ in found]
    images = [np.array(one["in_images"]) / count for one, count in found]
    return [
        {
            "name": name,
            "color": css_color(table.palette[label]),
            "cells": [
                {
                    "pixels": share[label],
                    "bar": float(np.sqrt(share[label])),
                    "images": image[label],
                }
                for share, image in zip(shares, images, strict=True)
            ],
        }
        for label, name in enumerate(table.classes)
    ]


def _splits(summaries) -> list[dict[str, Any]]:
    return [
        {
            "name": split,
            "images": f"{found['images']:,}",
            "labelled": bool(found["labelled"]),
            "mean": ", ".join(f"{channel:.2f}" for channel in found["mean"]),
            "sizes": [f"{size[1]} × {size[0]}" for size in (found["sizes"][kind] for kind in ("smallest", "median", "largest"))],
        }
        for split, found in summaries.items()
    ]


def _common(sizes: Mapping[tuple[int, int], int]) -> list[dict[str, Any]]:
    total = sum(sizes.values())
    ranked = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:8]
    return [{"size": f"{width} × {height}", "count": f"{count:,}", "share": count / total} for (height, width), count in ranked]


def _scatter(sizes: Mapping[tuple[int, int], int]):
    from markupsafe import Markup

    return Markup(inline_svg(sizes_figure, sizes))
