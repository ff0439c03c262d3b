"""`tools/compare.py`: reports of evaluations side by side."""

import argparse
import sys
from collections.abc import Sequence

from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError

# kerasseg.metrics.SCORES, for which TensorFlow need not be imported.
_SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/compare.py`."""
    made = make_parser(
        "compare.py", "Put reports of evaluate.py side by side, and say which differ from the first by more than chance."
    )
    made.add_argument("reports", nargs="+", metavar="REPORT_OR_RUN", help="folder of a report, or a run that has one; two or more")
    made.add_argument("--split", default=None, help="which report of a run: name of its folder, or part of the data")
    made.add_argument("--score", default=None, choices=_SCORES, help="score whose differences to show (default: all four)")
    made.add_argument("--out", default="compare.html", help="page to write")
    return made


def run(arguments: Sequence[str]) -> None:
    """Compares as the arguments say.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    if len(options.reports) < 2:
        raise KerassegError(f"{options.reports[0]} alone: expected two reports or more to compare")
    start_tensorflow()
    from kerasseg.evaluation.comparison import Report, compare, find_report, report_names

    folders = [find_report(path, options.split) for path in options.reports]
    reports = [Report.read(folder, name) for folder, name in zip(folders, report_names(folders), strict=True)]
    comparison = compare(reports, names=[options.score] if options.score else _SCORES)
    print(comparison.table())
    write_page(options.out, comparison)


def write_page(path, comparison) -> None:
    """Writes the page of a comparison, and says where it is."""
    from kerasseg.evaluation.comparison_page import write_comparison

    reports = {report.name: report.scores for report in comparison.reports}
    write_comparison(path, reports, comparison.differences, comparison.reasons)
    print(f"page: {path}")


def main() -> int:
    """Runs `tools/compare.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
