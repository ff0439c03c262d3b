"""One training run in a run directory, from the start or from where it stopped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import keras
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import images_per_pass, open_recipe_data, open_training_data
from kerasseg.runs import Preempted, Run
from kerasseg.training.parts import (
    StrategyMaker,
    check_resumption,
    check_sizes,
    feed,
    make_trainer,
    one_line_errors,
    recipe_strategy,
    start_from,
)
from kerasseg.training.preemption import Preemption
from kerasseg.training.recording import Recorder, Report
from kerasseg.training.strategies import is_chief, make_strategy
from kerasseg.training.trainer import NonFiniteLossError, Step, Trainer


def train_run(
    recipe: Recipe,
    run: Run,
    *,
    sources: Mapping[Path, str] | None = None,
    strategies: StrategyMaker = make_strategy,
    on_begin: Callable[[], object] = lambda: None,
    report: Report = lambda record: None,
) -> keras.Model:
    """Trains what a recipe without stages describes, or resumes it exactly where the run directory stops.

    Everything that can be wrong with the arguments and the first images is found before the run directory is begun.

    Args:
        recipe: The recipe.
        run: Where it is recorded; a run that was begun is resumed, and its record keeps what the recipe changes.
        sources: Run or model that a new run starts from → suffix of the layer names that it fills.
        strategies: What makes the strategy.
        on_begin: Called before a new run directory is begun.
        report: As in `train_recipe`.
    Returns:
        The trained network, in float32: the best of the validations, or the last step where there were none or the recipe says so.
    Raises:
        KerassegError: If the recipe, its data, or the run directory does not allow it.
        Preempted: If the process was asked to end; the run can be resumed at the very step.
    """
    check_sizes(recipe)
    if run.exists:
        check_resumption(recipe, run)
    strategy = recipe_strategy(recipe, strategies)
    chief = is_chief(strategy)
    report = report if chief else lambda record: None
    data = open_training_data(recipe, lambda done, total: report({"searched": done, "of": total}))
    validation = open_recipe_data(recipe, recipe.validation_split) if recipe.validate_every else None
    trainer = make_trainer(recipe, data.labels.num_classes, strategy, initial=not run.exists)
    if run.exists:
        _restore(run, trainer, report)
    elif sources:
        report({"started_from": list(map(str, sources)), "new_layers": start_from(trainer.model, sources)})
    report({"done": trainer.step, "iterations": recipe.iterations, "images": images_per_pass(recipe) * recipe.accumulation})
    recorder = Recorder(recipe, run, trainer, data.labels, validation, report) if chief else None
    # Closed in any case: the data set's threads shall end now, and not when Python is half gone.
    steps = trainer.train(partial(feed, recipe, data), recipe.iterations, _stops(recipe))
    with closing(steps), Preemption() as preemption, recorder or nullcontext(), _way_back(run), one_line_errors():
        if recorder and run.exists:
            recorder.resume()
        # Done before anything is written: what is wrong with the images or their sizes shows here.
        first = next(steps, None)
        if recorder and not run.exists:
            on_begin()
            recorder.begin()
        _follow(chain([first] if first else [], steps), trainer, run, preemption, recorder)
        model = recorder.finish() if recorder else trainer.model
        _meet(strategy)
    return model


def _restore(run: Run, trainer: Trainer, report: Report) -> None:
    state = run.checkpoints().last(lambda notice: report({"notice": notice}))
    if state is None:
        return
    try:
        trainer.restore(state[1])
    except KerassegError as error:
        raise KerassegError(
            f"{run.path}: {error}; choose a new --run-dir, or start from its weights with --init {run.path}"
        ) from error


def _stops(recipe: Recipe) -> list[int]:
    """Where the weights must be those of the step just done: to save them, or to validate."""
    return [recipe.checkpoint_every, *([recipe.validate_every] if recipe.validate_every else [])]


def _follow(steps: Iterator[Step], trainer: Trainer, run: Run, preemption: Preemption, recorder: Recorder | None) -> None:
    """Goes from step to step, until the last or until the process is asked to end."""
    for step in steps:
        stopping = preemption.requested and step.step == trainer.step
        if recorder:
            recorder.after(step, stopping=stopping)
        if stopping:
            raise Preempted(run, step.step)


@contextmanager
def _way_back(run: Run):
    """Adds to a loss that is not finite the checkpoint from which training goes on."""
    try:
        yield
    except NonFiniteLossError as error:
        step = run.checkpoints().last_step() if run.exists else 0
        way = f"{run.resume_command} goes back to its checkpoint of step {step}" if step else "no checkpoint was written yet"
        error.args = (f"{error}; {way}",)
        raise


def _meet(strategy: tf.distribute.Strategy) -> None:
    """Waits for the other workers of a cluster: what the one that writes has written is then there for all."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):

        def one():
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))

        tf.function(lambda: strategy.run(one), autograph=False)()
