"""What is in a data set: how often each class occurs, sizes, brightness; and what in it is likely a mistake."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasseg.data.class_counts import ClassCounts
from kerasseg.data.records import DataSet, Example
from kerasseg.labels import IGNORE, LabelTable

Row = dict[str, Any]
"""What is counted of one example, as JSON can hold it."""


def survey_example(data: DataSet, example: Example) -> Row:
    """Counts one example.

    Args:
        data: Its data set.
        example: The example.
    Returns:
        `id`; `size`, height and width in pixels; `sums`, of the values of each channel; and for each label map in `pixels` class →
        pixels, in `ignored` the pixels that are 255. Both are empty of an example without a label.
    """
    image, label = example.image, example.label
    kind = np.int64 if image.dtype.kind in "iu" else np.float64
    row = {
        "id": example.id,
        "size": list(image.shape[:2]),
        "sums": image.reshape(-1, image.shape[-1]).sum(0, dtype=kind).tolist(),
        "pixels": [],
        "ignored": [],
    }
    if label is not None:
        for one in np.moveaxis(label, -1, 0) if data.heads else (label,):
            counts = np.bincount(one.ravel(), minlength=IGNORE + 1)
            row["pixels"].append({str(k): int(counts[k]) for k in np.flatnonzero(counts[:IGNORE])})
            row["ignored"].append(int(counts[IGNORE]))
    return row


def class_counts(rows: Iterable[Row], num_classes: int, place: int = 0) -> ClassCounts:
    """Adds up how often each class occurs.

    Args:
        rows: Of `survey_example`; those without labels do not count.
        num_classes: How many classes there are.
        place: Which of several label maps.
    Returns:
        The counts.
    """
    pixels, around = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    ignored = images = 0
    for row in rows:
        if row["pixels"]:
            images, ignored = images + 1, ignored + row["ignored"][place]
            for label, count in row["pixels"][place].items():
                pixels[int(label)] += count
                around[int(label)] += row["size"][0] * row["size"][1]
    return ClassCounts(pixels, around, ignored, images)


def summarize(rows: Sequence[Row], heads: Mapping[str, LabelTable]) -> dict[str, Any]:
    """Adds up a split.

    Args:
        rows: Of `survey_example`.
        heads: Name → label table of each label map, in their order.
    Returns:
        `images`, `labelled` of them, `mean` and `sizes`, and in `heads` for each: `pixels`, `in_images` and
        `median_frequency_weights` by class, `ignored` pixels, and `void`, names of images that have no other.
    """
    area = sum(row["size"][0] * row["size"][1] for row in rows)
    # Exact integers where the images are of bytes, so that neither order nor machine matters.
    sums = [sum(channel) for channel in zip(*(row["sums"] for row in rows), strict=True)]
    return {
        "images": len(rows),
        "labelled": sum(bool(row["pixels"]) for row in rows),
        "mean": [float(total / area) for total in sums],
        "sizes": _sizes([tuple(row["size"]) for row in rows]),
        "heads": {name: _head(rows, table.num_classes, place) for place, (name, table) in enumerate(heads.items())},
    }


def _sizes(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {"smallest": None, "median": None, "largest": None, "different": 0, "common": []}
    heights, widths = np.array(sizes).T
    pairs = [[int(measure(heights)), int(measure(widths))] for measure in (np.min, np.median, np.max)]
    # The more frequent first, of equally frequent ones the smaller.
    ranked = sorted(Counter(sizes).items(), key=lambda item: (-item[1], item[0]))
    common = [[*size, count] for size, count in ranked[:10]]
    return dict(zip(("smallest", "median", "largest"), pairs, strict=True)) | {"different": len(ranked), "common": common}


def _head(rows: Sequence[Row], num_classes: int, place: int) -> dict[str, Any]:
    counts = class_counts(rows, num_classes, place)
    labelled = [row for row in rows if row["pixels"]]
    present = Counter(int(label) for row in labelled for label in row["pixels"][place])
    return {
        "pixels": counts.pixels.tolist(),
        "in_images": [present[label] for label in range(num_classes)],
        "ignored": counts.ignored,
        "void": [row["id"] for row in labelled if not row["pixels"][place]],
        "median_frequency_weights": counts.median_frequency_weights().tolist() if counts.pixels.any() else None,
    }
