"""`tools/prepare_data.py`: check a data set once, and keep what is slow to read in a form that is fast."""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence

from kerasseg.cli.opening import add_data_arguments
from kerasseg.cli.options import parse_names
from kerasseg.cli.progress import Progress, duration
from kerasseg.cli.running import make_parser, run_command
from kerasseg.data.preparation.doubts import SMALLEST, find_doubts
from kerasseg.data.preparation.preparing import Outcome, prepare
from kerasseg.data.preparation.stored import table_from_json
from kerasseg.errors import KerassegError

_MOST_JOBS, _TOLD, _MANY = 8, 20, 4


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/prepare_data.py`."""
    made = make_parser(
        "prepare_data.py",
        "Check every file of a data set, convert what is slow to read (.mat, polygons) to PNG, and write lists, checksums, class "
        "frequencies and channel means. What was done is not done again; what was interrupted goes on.",
    )
    made.add_argument("name", metavar="NAME", help="data set, such as voc")
    made.add_argument("source", metavar="SRC", nargs="?", default=None, help="its folder")
    made.add_argument(
        "--out",
        default=None,
        help="folder for all that belongs to it, to be moved or uploaded (default: SRC/kerasseg-NAME, beside the files)",
    )
    add_data_arguments(made)
    made.add_argument(
        "--splits", type=parse_names, default=None, help="splits with commas between them (default: all that are there)"
    )
    made.add_argument("--skip-broken", action="store_true", help="leave out damaged examples, and name them")
    made.add_argument("--verify", action="store_true", help="read all files again, and compare them with their checksums")
    made.add_argument("--smallest", type=int, default=SMALLEST, help="warn of images with a shorter side, in pixels")
    made.add_argument("--jobs", type=int, default=min(_MOST_JOBS, os.cpu_count() or 1), help="number of processes")
    return made


def run(arguments: Sequence[str]) -> None:
    """Prepares as the arguments say.

    Raises:
        KerassegError: If the data set cannot be opened, or is damaged and `--skip-broken` was not given.
    """
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise KerassegError(f"--jobs {options.jobs}: expected 1 or more")
    if importlib.util.find_spec("simplejpeg") is None:
        print("note: without simplejpeg (pip install 'kerasseg[data]') less damage inside JPEG files is noticed", file=sys.stderr)
    start = time.monotonic()
    with _Report(f"preparing {options.name}") as report:
        outcome = prepare(
            options.name,
            options.source,
            options.out,
            splits=options.splits,
            options=dict(options.data_arguments),
            skip_broken=options.skip_broken,
            verify=options.verify,
            jobs=options.jobs,
            report=report,
        )
    _show(outcome, options.smallest)
    count = sum(len(rows) for rows in outcome.rows.values())
    said = (
        f"prepared {outcome.done} examples" if outcome.done else f"nothing to do: all {count} entries of the lists are as they were"
    )
    print(f"{said} ({duration(time.monotonic() - start)})")
    print(f"{outcome.folder}: --data {outcome.header['data']} --data-dir {options.out or options.source}")


class _Report:
    """A progress bar that is begun when it is known how much there is to do."""

    def __init__(self, title: str):
        self._title, self._progress = title, None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = Progress(self._title, total, unit="images").__enter__()
        self._progress.update(done)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._progress is not None:
            self._progress.__exit__(*exception)


def _show(outcome: Outcome, smallest: int) -> None:
    for line in _table(_split_lines(outcome.header["splits"])):
        print(line)
    heads = _heads(outcome.header)
    for head, table in heads.items():
        print()
        for line in _table(_class_lines(outcome.header["splits"], head, table, len(heads) > 1)):
            print(line)
    print()
    for split, reason in outcome.left_out.items():
        print(f"not there: {split} ({reason.partition(': ')[0]})")
    for split, reason in outcome.kept.items():
        print(f"kept as it was: {split} ({reason.partition(': ')[0]})")
    for names, what in ((outcome.changed, "changed since the last time, done again"), (outcome.gone, "no longer there, taken out")):
        _tell(what, names)
    _tell("broken, left out", [row["error"] for row in outcome.broken])
    for doubt in find_doubts(outcome.rows, outcome.header["splits"], heads, smallest):
        print(f"warning: {doubt}")


def _tell(what: str, names: Sequence[str]) -> None:
    for name in names[:_TOLD]:
        print(f"{what}: {name}")
    if len(names) > _TOLD:
        print(f"{what}: {len(names) - _TOLD} more")


def _heads(header) -> dict:
    tables = header["heads"] or {"mask": header["labels"]}
    return {head: table_from_json(table) for head, table in tables.items()}


def _split_lines(splits) -> list[list[str]]:
    lines = [["split", "images", "labelled", "left out", "smallest", "median", "largest", "channel means"]]
    for split, found in splits.items():
        sizes = [
            "–" if size is None else f"{size[1]}×{size[0]}"
            for size in (found["sizes"][k] for k in ("smallest", "median", "largest"))
        ]
        counts = [str(found["images"]), str(found["labelled"]), str(len(found["skipped"]))]
        lines.append([split, *counts, *sizes, " ".join(f"{mean:.3f}" for mean in found["mean"])])
    return lines


def _class_lines(splits, head: str, table, several: bool) -> list[list[str]]:
    """Pixels of each class and their share of the labelled ones, of many splits that alone; weights of the first with labels."""
    labelled = {split: found["heads"][head] for split, found in splits.items() if found["labelled"]}
    if not labelled:
        return []
    title = f"class ({head})" if several else "class"
    weighed = next((split for split in labelled if "train" in split), next(iter(labelled)))
    weights = labelled[weighed]["median_frequency_weights"] or [0.0] * table.num_classes
    # A line shall fit on a screen.
    first = 0 if len(labelled) < _MANY else 1
    titles = [word for split in labelled for word in (f"{split}, pixels", "%" if first == 0 else f"{split}, %")[first:]]
    lines = [[title, *titles, f"weight, {weighed}"]]
    for label, name in enumerate(table.classes):
        cells = [_share(found["pixels"][label], sum(found["pixels"])) for found in labelled.values()]
        lines.append([name, *(word for cell in cells for word in cell[first:]), f"{weights[label]:.4f}"])
    cells = [_share(found["ignored"], sum(found["pixels"]) + found["ignored"]) for found in labelled.values()]
    return [*lines, ["ignored, of all pixels", *(word for cell in cells for word in cell[first:]), ""]]


def _share(count: int, total: int) -> tuple[str, str]:
    return str(count), f"{100 * count / max(1, total):.3f}"


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines in columns: the first to the left, numbers to the right."""
    if not lines:
        return []
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))]).rstrip()
        for line in lines
    ]


def main() -> int:
    """Runs `tools/prepare_data.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
