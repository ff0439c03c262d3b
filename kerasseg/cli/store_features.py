"""`tools/store_features.py`: store what a layer of a trained network gives for a data set, to train what follows it alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.opening import (
    Opened,
    add_data_arguments,
    check_classes,
    chosen_data,
    open_chosen,
    open_run_or_model,
    output_classes,
)
from kerasseg.cli.options import parse_number, parse_size
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.data import DataSet
from kerasseg.errors import KerassegError


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/store_features.py`."""
    made = make_parser(
        "store_features.py",
        "Store the maps of a layer, with labels at their stride, for every image of a data set; what was interrupted goes on. "
        "Train on them with train.py --data features --data-dir OUT, a network that takes them (--arch dilation8 --arguments "
        "from_features=true).",
    )
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    made.add_argument("--layer", required=True, help="name of the layer, such as final (tools/inspect_model.py lists them)")
    made.add_argument("--data", default=None, help="data set (default: the run's)")
    made.add_argument("--data-dir", default=None, help="folder of the data set (default: the run's)")
    add_data_arguments(made, " (default: the run's)")
    made.add_argument("--split", default="train", help="part of the data set; the features' folder has its name")
    made.add_argument(
        "--pad-size",
        type=parse_size,
        default=None,
        help="HEIGHTxWIDTH to continue images to by reflection, margin included (default: 900x900 of networks with a margin)",
    )
    made.add_argument(
        "--image-scale", type=parse_number, default=None, help="size of the images, as a share (default: the run's, or 1)"
    )
    made.add_argument("--out", required=True, help="folder for the features of this and other splits")
    return made


def run(arguments: Sequence[str]) -> None:
    """Stores features as the arguments say.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    if options.image_scale is not None and options.image_scale <= 0:
        raise KerassegError(f"--image-scale {options.image_scale:g}: expected a number above 0, e.g. 0.5")
    opened = open_run_or_model(options.model)
    data = _open_data(opened, options)
    scale = options.image_scale if options.image_scale is not None else opened.recipe.image_scale if opened.recipe else 1.0
    from kerasseg.training.features import store_features

    folder = Path(options.out) / options.split
    with Progress(f"storing features of {options.split}", len(data), unit="images") as progress:
        store_features(
            *(opened.model, options.layer, data, folder),
            size=options.pad_size,
            scale=scale,
            report=lambda done, total: progress.update(done),
        )
    print(f"{len(data)} maps of layer {options.layer}: {folder}")


def _open_data(opened: Opened, options) -> DataSet:
    name, _, _ = chosen_data(opened, options)
    data = open_chosen(opened, options, options.split)
    number = output_classes(opened.model)
    if number != data.labels.num_classes:
        of = f" ({', '.join(opened.labels.classes[:3])}, …)" if opened.labels else ""
        raise KerassegError(
            f"{opened.path} has {number} classes{of}, data set '{name}' has {data.labels.num_classes} "
            f"({', '.join(data.labels.classes[:3])}, …): features are for training on the same classes; name the network's data"
        )
    check_classes(opened, data)
    return data


def main() -> int:
    """Runs `tools/store_features.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
