"""`tools/class_weights.py`: how often each class occurs, and the weights that make up for it."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from kerasseg.cli.opening import add_data_arguments
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.data import DataSet, count_classes, each_label, open_data
from kerasseg.data.class_counts import check_one_map
from kerasseg.runs import atomic_path


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/class_weights.py`."""
    made = make_parser("class_weights.py", "Count the pixels of each class of a data set and print median-frequency class weights.")
    made.add_argument("--data", required=True, help="data set")
    made.add_argument("--data-dir", default=None, help="folder of the data set")
    add_data_arguments(made)
    made.add_argument("--split", default="train", help="part of the data set")
    made.add_argument("--out", default=None, help="file for the weights, one a line in the order of the classes")
    return made


def run(arguments: Sequence[str]) -> None:
    """Counts as the arguments say.

    Raises:
        KerassegError: If the data set cannot be read or has no labels.
    """
    options = parser().parse_args(arguments)
    data = open_data(options.data, options.data_dir, options.split, **dict(options.data_arguments))
    check_one_map(data)
    # Begun before the count: where nothing can be written, nobody waits in vain.
    with atomic_path(options.out) if options.out else nullcontext() as file:
        # Significant digits, not decimals: a weight that rounds to 0 would drop its class.
        words = [f"{weight:.6g}" for weight in _count(data, options.split)]
        if file:
            file.write_text("\n".join(words) + "\n")
    print(f"--class-weights {','.join(words)}")


def _count(data: DataSet, split: str) -> list[float]:
    """Counts, and shows the counts beside the weights."""
    with Progress(f"counting {split}", len(data), unit="images") as progress:
        counts = count_classes(each_label(data, lambda done, _: progress.update(done)), data.labels.num_classes)
    weights = counts.median_frequency_weights()
    width = max(map(len, (*data.labels.classes, "ignored")))
    print(f"{'class':{width}} {'pixels':>14} {'weight':>10}")
    for name, pixels, weight in zip(data.labels.classes, counts.pixels, weights, strict=True):
        print(f"{name:{width}} {pixels:14d} {weight:10.4f}{'' if pixels else '  never occurs'}")
    print(f"{'ignored':{width}} {counts.ignored:14d}")
    return list(weights)


def main() -> int:
    """Runs `tools/class_weights.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
