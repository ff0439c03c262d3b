"""`tools/recompute_batch_norm.py`: a trained network with the statistics of batch normalization made anew."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.opening import open_run_or_model
from kerasseg.cli.options import parse_size
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError
from kerasseg.recipes import Recipe
from kerasseg.runs import atomic_path

# Fields of the recipe that the options may set otherwise.
_FIELDS = ("data", "data_dir", "split", "examples", "boxes", "resize", "crop_size", "seed")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/recompute_batch_norm.py`."""
    made = make_parser(
        "recompute_batch_norm.py",
        "Recompute the statistics of every batch normalization by forward passes over training batches, and write a .keras file.",
    )
    made.add_argument("model", nargs="?", metavar="RUN_OR_MODEL", help="run directory or .keras file (default: the newest run)")
    made.add_argument("--data", default=None, help="data set (default: the run's)")
    made.add_argument("--data-dir", default=None, help="folder of the data set (default: the run's)")
    made.add_argument("--split", default=None, help="part of the data set (default: what the run trained on)")
    made.add_argument("--examples", default=None, help="what is cut out of the images (default: as the run trained)")
    made.add_argument("--boxes", default=None, help="file of boxes for --examples proposals (default: the run's)")
    made.add_argument("--resize", type=parse_size, default=None, help="size that every example is resized to (default: the run's)")
    made.add_argument("--crop-size", type=parse_size, default=None, help="random crop (default: the run's)")
    made.add_argument("--seed", type=int, default=None, help="of the order and the crops (default: the run's)")
    made.add_argument("--passes", type=int, default=501, help="forward passes")
    made.add_argument("--batch-size", type=int, default=28, help="images of each")
    made.add_argument("--out", default=None, help="the .keras file (default: beside the model, NAME_statistics.keras)")
    return made


def run(arguments: Sequence[str]) -> None:
    """Recomputes as the arguments say.

    Raises:
        KerassegError: If the network cannot be opened or has no batch normalization, or the data cannot be read.
    """
    options = parser().parse_args(arguments)
    if options.out is not None and not options.out.endswith(".keras"):
        raise KerassegError(f"--out {options.out}: expected a file name that ends in .keras")
    for name in ("passes", "batch_size"):
        if getattr(options, name) < 1:
            raise KerassegError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    opened = open_run_or_model(options.model)
    recipe = _recipe(opened, options)
    source = opened.path / "model.keras" if opened.path.is_dir() else opened.path
    out = Path(options.out) if options.out else source.with_name(f"{source.stem}_statistics.keras")
    _recompute(opened.model, recipe, options)
    with atomic_path(out) as temporary:
        opened.model.save(temporary)
    print(f"{out}: statistics of {options.passes} passes of {options.batch_size} images")


def _recipe(opened, options: argparse.Namespace) -> Recipe:
    """What the examples are made by: the run's recipe, or none, and the options."""
    if opened.recipe is None and options.data is None:
        raise KerassegError(f"'{opened.path}' does not say what it was trained on: pass --data, e.g. --data camvid --data-dir DIR")
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    recipe = opened.recipe or Recipe(name=opened.path.stem)
    if options.data not in (None, recipe.data):
        # The run's folder, split, boxes and classes are of its own data.
        recipe = recipe.override(data_dir=None, split="train", data_arguments={}, boxes=None, bootstrap_classes=())
    return recipe.override(**given)


def _recompute(model, recipe: Recipe, options: argparse.Namespace) -> None:
    from kerasseg.data import training_batches
    from kerasseg.recipes.building import open_training_data, padding_color, recipe_transforms
    from kerasseg.training.parts import one_line_errors
    from kerasseg.training.statistics import recompute_statistics

    data = open_training_data(recipe)
    # A bare file's recipe knows nothing of the network, so that its preprocessing cannot be asked.
    fill = padding_color(recipe, data) if recipe.arch == model.name else data.mean
    batches = training_batches(
        data, options.batch_size, transforms=recipe_transforms(recipe, fill), seed=recipe.seed, fill=fill, steps=options.passes
    )
    with Progress("statistics", options.passes, unit="images", size=options.batch_size) as progress, one_line_errors():
        recompute_statistics(model, batches, options.passes, lambda done, _: progress.update(done))


def main() -> int:
    """Runs `tools/recompute_batch_norm.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
