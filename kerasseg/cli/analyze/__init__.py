"""`tools/analyze.py`: what a network sees, does and costs, and what limits it."""

import argparse
from collections.abc import Sequence

from kerasseg.cli.analyze import (
    activations,
    bounds,
    cost,
    crf_iterations,
    cues,
    momentum,
    proposals,
    receptive_field,
)
from kerasseg.cli.running import make_parser, run_command

# A module each, with NAME, add(kinds), which adds its parser, and run(options), in the order in which they are shown.
MODULES = (activations, receptive_field, proposals, crf_iterations, cues, bounds, momentum, cost)
KINDS = {module.NAME: module for module in MODULES}


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/analyze.py`."""
    made = make_parser("analyze.py", "Look into a network: what it sees, does and costs, and what limits it.")
    kinds = made.add_subparsers(dest="kind", required=True, metavar="KIND")
    for module in MODULES:
        module.add(kinds)
    return made


def run(arguments: Sequence[str]) -> None:
    """Analyses what the arguments ask for.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    KINDS[options.kind].run(options)


def main() -> int:
    """Runs `tools/analyze.py` and returns its exit code."""
    return run_command(run)
