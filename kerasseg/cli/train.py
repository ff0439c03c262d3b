"""`train.py`: train a network by a recipe, or resume a run."""

import argparse
import json
import sys
from collections.abc import Sequence

from kerasseg.cli.display import Display
from kerasseg.cli.options import (
    add_recipe_options,
    check_names,
    fitted_arguments,
    offered_arguments,
    resolve_recipe,
    with_options,
)
from kerasseg.cli.progress import duration
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.runs import Preempted, Run, new_run_path


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `train.py`."""
    made = make_parser("train.py", "Train a network. Without --recipe: built-in data, a narrow network, minutes on a CPU.")
    made.epilog = f"networks: {', '.join(MODELS)}. recipes: {', '.join(RECIPES)}."
    made.add_argument("--recipe", default=None, help="recipe to start from")
    made.add_argument("--stage", default=None, help="only this stage of the recipe (default: all that are not finished)")
    made.add_argument("--run-dir", default=None, help="run directory; one that exists is resumed (default: a new one under runs/)")
    made.add_argument("--init", default=None, help="run or model whose weights to start from, all that fit")
    made.add_argument("--dry-run", action="store_true", help="check everything, do a few steps, show what it takes, keep nothing")
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
    record = record or Run(new_run_path(recipe.name))
    start_tensorflow(distributed=recipe.final().strategy in ("multiworker", "tpu"))
    if options.recipe is None and not resumed:
        recipe = offered_arguments(recipe)
    recipe = fitted_arguments(recipe, options)
    if options.dry_run:
        _show(recipe, record, options)
    else:
        _train(recipe, record, options)


def _resumed_recipe(record: Run, options) -> Recipe:
    """The run's own recipe, with what the command line changes."""
    recipe = Recipe.from_json(record.recipe())
    if options.recipe not in (None, recipe.name):
        raise KerassegError(f"{record.path} was begun with recipe {recipe.name}, received {options.recipe}: choose a new --run-dir")
    return with_options(recipe, options)


def _show(recipe: Recipe, record: Run, options) -> None:
    from kerasseg.training.dry_run import dry_run_all

    found = dry_run_all(recipe, record, stage=options.stage, init=options.init)
    print(json.dumps(recipe.to_json(), indent=2))
    if not found:
        print(f"\nevery stage is finished in {record.path}")
    for name, one in found.items():
        print(f"\n{name}: {one.network}, {one.images} images of {_counted(one.classes)} classes")
        for notice in one.notices:
            print(f"  note           {notice}")
        print(f"  parameters     {one.trainable:,} trainable, {one.frozen:,} frozen")
        if one.new_layers is not None:
            print(f"  new layers     {', '.join(one.new_layers) or 'none'}")
        if one.memory is not None:
            print(f"  peak memory    {one.memory / 1e9:.2f} GB")
        print(f"  speed          {1 / one.step:.3g} steps/s, {one.images_per_step / one.step:.3g} images/s")
        if one.storing is not None:
            print(f"  storing        {duration(one.storing)}, before the first step")
        print(f"  first step     {duration(one.first_step)}")
        print(f"  one save       {duration(one.save)}, {one.checkpoint / 1e6:.3g} MB")
        if one.evaluation is not None:
            print(f"  one evaluation {duration(one.evaluation)}, {duration(one.evaluation_image)} an image")
        print(f"  to the end     {duration(one.total)}")


def _counted(classes) -> str:
    """How many classes there are, of several heads for each."""
    return str(classes) if isinstance(classes, int) else " and ".join(f"{count} {head}" for head, count in classes.items())


def _train(recipe: Recipe, record: Run, options) -> None:
    from kerasseg.training import train_recipe

    done = record.checkpoints().last_step() if record.exists else 0
    resumed = f", resumed after step {done}" if done else ", resumed" if record.exists else ""
    what = f"in stages {', '.join(stage.name for stage in recipe.stages)}" if recipe.stages else recipe.arch
    print(f"training {what} on {recipe.final().data}, recipe {recipe.name}, in {record.path}{resumed}", flush=True)
    stage = f" --stage {options.stage}" if options.stage else ""
    with Display() as display:
        try:
            train_recipe(recipe, record, stage=options.stage, init=options.init, report=display)
        except KeyboardInterrupt:
            if record.exists:
                print(f"\nto go on from the last checkpoint: {record.resume_command}{stage}")
            raise
        except Preempted as stop:
            # Without it the command would go on with the stages before and after, too.
            if stage and str(stop).endswith(record.resume_command):
                stop.args = (f"{stop}{stage}",)
            raise
    if display.reported:
        log, whole = _last(recipe, record, options.stage)
        keep_best = recipe.stage(options.stage).keep_best if options.stage else recipe.final().keep_best
        print(display.summary(record.path if whole else log.path, log.read_log(), keep_best=keep_best))


def _last(recipe: Recipe, record: Run, stage: str | None) -> tuple[Run, bool]:
    """The run that was trained last, and whether its model is that of the whole."""
    names = [each.name for each in recipe.stages]
    if not names:
        return record, True
    number = names.index(stage) + 1 if stage else len(names)
    return record.stage(number, names[number - 1]), number == len(names)


def main() -> int:
    """Runs `train.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
