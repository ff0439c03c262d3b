"""What in a data set is likely a mistake, though every file can be read."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasseg.data.preparation.survey import Row
from kerasseg.labels import IGNORE, LabelTable

SMALLEST = 64
"""Images with a shorter side of fewer pixels are told."""

_LARGEST, _LONGEST = 8192, 5
_MUCH_VOID, _NAMED = 0.5, 5
_UNLIKELY = 1e-3


def find_doubts(
    rows: Mapping[str, Sequence[Row]],
    summaries: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, LabelTable],
    smallest: int = SMALLEST,
) -> list[str]:
    """Tells what is likely a mistake.

    Args:
        rows: Split → rows of `survey_example`; where they have `sha256`, equal images are found by it.
        summaries: Split → what `summarize` gave.
        heads: Name → label table of each label map.
        smallest: Images with a shorter side of fewer pixels are told.
    Returns:
        One line each; none where all is as usual.
    """
    found = []
    for split, summary in summaries.items():
        for place, (head, table) in enumerate(heads.items()):
            title = f"{split}, {head}" if len(heads) > 1 else split
            if summary["labelled"]:
                found += _of_labels(title, summary["heads"][head], table)
                found += _of_few_classes(title, rows[split], place, table)
        found += _of_sizes(split, rows[split], smallest)
        found += _of_copies(split, rows[split])
    for one, other in itertools.combinations(rows, 2):
        if _should_be_apart(one, other):
            found += _of_overlap(one, rows[one], other, rows[other])
    return found


def _of_labels(title: str, head: Mapping[str, Any], table: LabelTable) -> list[str]:
    found = []
    # Some are known to be missing from the test images.
    absent = [name for name, count in zip(table.classes, head["pixels"], strict=True) if not count and name not in table.absent]
    if absent:
        found.append(f"{title}: classes that never occur, of {table.num_classes}: {_counted(absent)}")
    labelled = sum(head["pixels"])
    void = head["ignored"] / max(1, labelled + head["ignored"])
    if void > _MUCH_VOID:
        found.append(f"{title}: {100 * void:.0f} % of the pixels are ignored (label {IGNORE})")
    if head["void"]:
        found.append(f"{title}: masks that hold label {IGNORE} alone: {_counted(head['void'])}")
    return found + _of_grey_levels(title, head, table)


def _of_grey_levels(title: str, head: Mapping[str, Any], table: LabelTable) -> list[str]:
    """Colour-coded masks that were saved as grey: their indices are the brightness of the colours."""
    values = {label for label, count in enumerate(head["pixels"]) if count}
    # As ITU-R 601 weighs them, in the fixed point of Pillow and OpenCV.
    shades = {int(shade) for shade in (np.array(table.palette, np.int64) @ (19595, 38470, 7471) + 32768) >> 16}
    # How likely it is that numbers which mean nothing happen to be among the shades.
    chance = (len(shades) / (IGNORE + 1)) ** len(values - {0})
    if values <= shades and chance < _UNLIKELY:
        return [
            f"{title}: the labels that occur ({_some(sorted(values))}) are the grey levels of the classes' colours: colour-coded "
            "masks were likely converted to grey; save them as RGB or as indices"
        ]
    return []


def _of_few_classes(title: str, rows: Sequence[Row], place: int, table: LabelTable) -> list[str]:
    labelled = [row for row in rows if row["pixels"] and row["pixels"][place]]
    classes = {label for row in labelled for label in row["pixels"][place]}
    if len(classes) == 1 and table.num_classes > 1:
        return [f"{title}: all masks have one class, {table.classes[int(*classes)]}: a network learns nothing else from them"]
    return []


def _of_sizes(split: str, rows: Sequence[Row], smallest: int) -> list[str]:
    found = []
    kinds = {
        f"a shorter side below {smallest} pixels": lambda height, width: min(height, width) < smallest,
        f"a longer side above {_LARGEST} pixels": lambda height, width: max(height, width) > _LARGEST,
        f"sides of more than {_LONGEST}:1": lambda height, width: max(height, width) > _LONGEST * min(height, width),
    }
    for kind, applies in kinds.items():
        names = [f"{row['id']} ({row['size'][1]}×{row['size'][0]})" for row in rows if applies(*row["size"])]
        if names:
            found.append(f"{split}: images with {kind}: {_counted(names)}")
    return found


def _of_copies(split: str, rows: Sequence[Row]) -> list[str]:
    counts = Counter(row["sha256"] for row in rows if row.get("sha256"))
    twice = [row["id"] for row in rows if counts[row.get("sha256")] > 1]
    return [f"{split}: images that are copies of others in it: {_counted(twice)}"] if twice else []


def _should_be_apart(one: str, other: str) -> bool:
    """Whether two splits share nothing by their names: `trainval` holds `train` and `val`, but `train` and `val` are apart."""
    parts = [{part for part in ("train", "val", "test") if part in split} for split in (one, other)]
    return all(parts) and not parts[0] & parts[1]


def _of_overlap(one: str, rows: Sequence[Row], other: str, others: Sequence[Row]) -> list[str]:
    ids, sums = ({row.get(kind) for row in others} - {None} for kind in ("id", "sha256"))
    same = [row["id"] for row in rows if row["id"] in ids]
    copies = [row["id"] for row in rows if row.get("sha256") in sums and row["id"] not in ids]
    found = []
    if same:
        found.append(f"{one} and {other} share examples of one name: {_counted(same)}")
    if copies:
        found.append(f"{one} and {other} share images under other names: {_counted(copies)}")
    return found


def _counted(names: Sequence) -> str:
    return f"{len(names)} ({_some(names)})"


def _some(names: Sequence) -> str:
    return ", ".join(map(str, names[:_NAMED])) + (" …" if len(names) > _NAMED else "")
