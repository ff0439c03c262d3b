"""`tools/inspect_data.py`: a page that shows what is in a data set, and what in it is likely a mistake."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasseg.cli.opening import add_data_arguments
from kerasseg.cli.options import parse_names
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.data import DATA_SETS, DataSet, open_data
from kerasseg.data.checking import Broken, examine
from kerasseg.data.preparation.doubts import SMALLEST, find_doubts
from kerasseg.data.preparation.journal import rows_of
from kerasseg.data.preparation.prepared import Prepared, find_prepared
from kerasseg.data.preparation.survey import Row, summarize
from kerasseg.errors import KerassegError


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/inspect_data.py`."""
    made = make_parser(
        "inspect_data.py",
        "Write one self-contained HTML page about a data set: examples with their labels, how often each class occurs, sizes, and "
        "warnings. Every file is checked, unless it was prepared.",
    )
    made.add_argument("name", metavar="NAME", help="data set, such as voc")
    made.add_argument("source", metavar="SRC", nargs="?", default=None, help="its folder, or what tools/prepare_data.py made of it")
    add_data_arguments(made)
    made.add_argument(
        "--split", type=parse_names, default=None, help="names with commas between them (default: all that are there)"
    )
    made.add_argument("--out", default=None, help="the page (default: NAME.html)")
    made.add_argument("--samples", type=int, default=12, help="how many examples are shown")
    made.add_argument("--seed", type=int, default=0, help="which examples are shown")
    made.add_argument("--smallest", type=int, default=SMALLEST, help="warn of images with a shorter side, in pixels")
    return made


@dataclass
class _Examined:
    """A split, what was counted of it, and what in it cannot be used."""

    data: DataSet
    rows: list[Row]
    broken: list[Broken]


def run(arguments: Sequence[str]) -> None:
    """Writes the page that the arguments ask for.

    Raises:
        KerassegError: If the data set cannot be opened.
    """
    options = parser().parse_args(arguments)
    if options.samples < 0 or options.seed < 0:
        raise KerassegError(f"--samples {options.samples}, --seed {options.seed}: expected 0 or more")
    page = Path(options.out or f"{options.name.replace('+', '-')}.html")
    if page.is_dir():
        raise KerassegError(f"--out {page}: expected a file, received a folder: pass --out {page / 'data.html'}")
    opened = _open_splits(options.name, options.source, options.split, dict(options.data_arguments))
    examined = {split: _examine(options.name, split, data) for split, data in opened.items()}
    usable = {split: each for split, each in examined.items() if each.rows}
    broken = [one for each in examined.values() for one in each.broken]
    if not usable:
        raise KerassegError(f"all {len(broken)} examples of data set '{options.name}' are broken; the first: {broken[0].reason}")
    _write(page, options, usable, broken)


def _write(page: Path, options: argparse.Namespace, examined: Mapping[str, _Examined], broken: Sequence[Broken]) -> None:
    data = next(iter(examined.values())).data
    heads = data.heads or {"mask": data.labels}
    rows = {split: each.rows for split, each in examined.items()}
    summaries = {split: summarize(members, heads) for split, members in rows.items()}
    # A split may hold others, such as trainval.
    distinct = list({(row["id"], row.get("sha256")): row for members in rows.values() for row in members}.values())
    doubts = find_doubts(rows, summaries, heads, options.smallest)
    start_tensorflow()
    from kerasseg.evaluation.data_page import choose_samples, write_data_page

    # Labels are what there is to see.
    sampled = next((split for split in examined if summaries[split]["labelled"]), next(iter(examined)))
    shown = examined[sampled]
    write_data_page(
        page,
        options.name,
        heads,
        summarize(distinct, heads),
        summaries,
        Counter(tuple(row["size"]) for row in distinct),
        samples=[shown.data[index] for index in choose_samples(shown.data, shown.rows, options.samples, options.seed)],
        sampled=sampled,
        doubts=doubts,
        broken=broken,
    )
    for one in broken:
        print(f"broken: {one.reason}")
    for doubt in doubts:
        print(f"warning: {doubt}")
    print(page)


def _open_splits(name: str, source, splits: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, DataSet]:
    if splits:
        return {split: open_data(name, source, split, **options) for split in splits}
    opened, errors = {}, []
    for split in _known_splits(name, source, options):
        try:
            opened[split] = open_data(name, source, split, **options)
        except KerassegError as error:
            errors.append(error)
            print(f"not there: {split} ({str(error).partition(': ')[0]})")
    if not opened:
        raise errors[0]
    return opened


def _known_splits(name: str, source, options: Mapping[str, Any]) -> Sequence[str]:
    if "+" in name:
        # Each has its own: one of a usual name is looked for in all.
        return DataSet.splits
    data_set = DATA_SETS[name]
    folder = find_prepared(source, name, data_set.family)
    return Prepared(folder).splits if folder is not None else data_set.splits_of(source, **options)


def _examine(name: str, split: str, data: DataSet) -> _Examined:
    if data.prepared is not None and data.prepared.data == name and (data.heads or {}).keys() == (data.prepared.heads or {}).keys():
        # It was all counted.
        return _Examined(data, rows_of(data.prepared, split), [])
    with Progress(f"looking through {split}", len(data), unit="images") as progress:
        rows, broken = examine(data, lambda done, _: progress.update(done))
    return _Examined(data, rows, broken)


def main() -> int:
    """Runs `tools/inspect_data.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
