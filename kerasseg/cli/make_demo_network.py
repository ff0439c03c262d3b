"""`tools/make_demo_network.py`: make the small network that comes with the library."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli import export, train
from kerasseg.cli.demo import DEMO_NETWORK
from kerasseg.cli.running import make_parser, run_command

# Batch normalisation's statistics follow within a few hundred steps; the paper's would need ten thousand.
TRAINING = (
    *("--arch", "gcn", "--backbone", "resnet50", "--width-multiplier", "0.0625"),
    *("--arguments", "batch_norm_momentum=0.95"),
    *("--iterations", "2800", "--batch-size", "8", "--learning-rate", "0.006"),
    *("--checkpoint-every", "700", "--validate-every", "700", "--validation-images", "64"),
)
"""How it is trained; the rest is the recipe `shapes`."""

EXPORT = ("--format", "tflite", "--quantize", "int8-float-io", "--input-size", "96x128")
"""As what it is exported; floats at both ends, since LiteRT.js hands out no int8."""


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/make_demo_network.py`."""
    made = make_parser(
        "make_demo_network.py",
        "Train the demo's network on the built-in drawings (about five minutes on two cores), and export it.",
    )
    made.add_argument("--run-dir", default="runs/demo-network", help="where it is trained; what was begun there goes on")
    made.add_argument("--out", default=str(DEMO_NETWORK), help="the file; its JSON comes beside it")
    return made


def run(arguments: Sequence[str]) -> None:
    """Makes the network.

    Raises:
        KerassegError: If training or export fails; the file that was there stays.
    """
    options = parser().parse_args(arguments)
    begun = (Path(options.run_dir) / "recipe.json").is_file()
    train.run([*(() if begun else TRAINING), "--run-dir", options.run_dir])
    export.run([options.run_dir, *EXPORT, "--out", options.out])


def main() -> int:
    """Runs `tools/make_demo_network.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
