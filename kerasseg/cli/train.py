"""`train.py`: train a network by a recipe, or resume a run."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.options import add_recipe_options, check_names, offered_arguments, resolve_recipe
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
    made.add_argument("--strategy", default="one", help="where to train: one device, or mirrored")
    made.add_argument("--replicas", type=int, default=None, help="logical CPU devices for --strategy mirrored without a GPU")
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
    _train(recipe, record, options)


def _resumed_recipe(record: Run, options) -> Recipe:
    """The run's own recipe, with what the command line changes."""
    recipe = Recipe.from_json(record.recipe())
    if options.recipe not in (None, recipe.name):
        raise KerassegError(f"{record.path} was begun with recipe {recipe.name}, received {options.recipe}: choose a new --run-dir")
    base = argparse.Namespace(**{**vars(options), "recipe": None})
    given = {name: value for name, value in vars(base).items() if name in recipe.to_json() and name != "name"}
    for name in ("arguments", "multipliers"):
        if name in given:
            given[name] = {**getattr(recipe, name), **dict(given[name])}
    return recipe.override(**given)


def _show(recipe: Recipe) -> None:
    from kerasseg.recipes.building import build_network, open_recipe_data

    data = open_recipe_data(recipe, recipe.split)
    data[0]
    model = build_network(recipe, data.labels.num_classes, initial_weights=False)
    print(json.dumps(recipe.to_json(), indent=2))
    print(f"{model.name}: {model.count_params():,} parameters; {len(data)} images of {data.labels.num_classes} classes")


def _train(recipe: Recipe, record: Run, options) -> None:
    from kerasseg.training import train_recipe

    resumed = f", resumed after step {_last_step(record)}" if record.exists else ""
    print(f"training {recipe.arch} on {recipe.data}, recipe {recipe.name}, in {record.path}{resumed}", flush=True)
    with Progress("step", recipe.iterations, _last_step(record)) as progress:

        def report(values):
            note = f"loss {values['loss']:.4g}"
            if "mean_iou" in values:
                note += f", validation mean IoU {100 * values['mean_iou']:.2f} %"
            progress.update(values["step"], note, always="mean_iou" in values)

        train_recipe(
            recipe,
            record,
            strategy=options.strategy,
            replicas=options.replicas,
            init=options.init,
            report=report,
        )
    print(f"trained: {record.model_path}\nevaluate it: python evaluate.py {record.path}")


def _last_step(record: Run) -> int:
    index = Path(record.path) / "checkpoints" / "index.json"
    return max((e["step"] for e in json.loads(index.read_text())), default=0) if index.is_file() else 0


def main() -> int:
    """Runs `train.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
