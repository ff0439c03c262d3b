"""`train.py`: train a network by a recipe, or resume a run."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from kerasseg.cli.options import add_recipe_options, check_names, offered_arguments, resolve_recipe, with_options
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.runs import Run, new_run_path


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `train.py`."""
    made = make_parser("train.py", "Train a network. Without --recipe: built-in data, a narrow network, minutes on a CPU.")
    made.epilog = f"networks: {', '.join(MODELS)}. recipes: {', '.join(RECIPES)}."
    made.add_argument("--recipe", default=None, help="recipe to start from")
    made.add_argument("--run-dir", default=None, help="run directory; one that exists is resumed (default: a new one under runs/)")
    made.add_argument("--init", default=None, help="run or model whose weights to start from, all that fit")
    made.add_argument("--dry-run", action="store_true", help="check everything, show the recipe and the network, train nothing")
    add_recipe_options(made)
    return made


def run(arguments: Sequence[str]) -> None:
    """Trains as the arguments say.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    record = Run(options.run_dir) if options.run_dir else None
    resumed = record is not None and record.exists
    recipe = _resumed_recipe(record, options) if resumed else resolve_recipe(options)
    check_names(recipe)
    start_tensorflow()
    if options.recipe is None and not resumed:
        recipe = offered_arguments(recipe)
    if options.dry_run:
        _show(recipe)
        return
    record = record or Run(new_run_path(recipe.name))
    _train(recipe, record, options.init)


def _resumed_recipe(record: Run, options) -> Recipe:
    """The run's own recipe, with what the command line changes."""
    recipe = Recipe.from_json(record.recipe())
    if options.recipe not in (None, recipe.name):
        raise KerassegError(f"{record.path} was begun with recipe {recipe.name}, received {options.recipe}: choose a new --run-dir")
    return with_options(recipe, options)


def _show(recipe: Recipe) -> None:
    from kerasseg.training import check_recipe

    data, model = check_recipe(recipe)
    print(json.dumps(recipe.to_json(), indent=2))
    print(f"{model.name}: {model.count_params():,} parameters; {len(data)} images of {data.labels.num_classes} classes")


def _train(recipe: Recipe, record: Run, init: str | None) -> None:
    from kerasseg.training import train_recipe

    done = record.checkpoints().last_step() if record.exists else 0
    resumed = f", resumed after step {done}" if record.exists else ""
    print(f"training {recipe.arch} on {recipe.data}, recipe {recipe.name}, in {record.path}{resumed}", flush=True)
    with Progress("step", recipe.iterations, done) as progress:

        def report(values):
            if "started_from" in values:
                print(f"started from {values['started_from']}; new: {', '.join(values['new_layers']) or 'nothing'}", flush=True)
                return
            note = f"loss {values['loss']:.4g}"
            if "mean_iou" in values:
                note += f", validation mean IoU {100 * values['mean_iou']:.2f} %"
            progress.update(values["step"], note, always="mean_iou" in values)

        try:
            train_recipe(recipe, record, init=init, report=report)
        except KeyboardInterrupt:
            if record.exists:
                print(f"\nto go on from the last checkpoint: python train.py --run-dir {shlex.quote(str(record.path))}")
            raise
    print(f"trained: {record.model_path}\nevaluate it: python evaluate.py {shlex.quote(str(record.path))}")


def main() -> int:
    """Runs `train.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
