"""One training run in a run directory, from the start or from where it stopped."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import keras

from kerasseg.errors import KerassegError
from kerasseg.evaluation import load_model
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import images_per_pass, open_recipe_data, open_training_data
from kerasseg.runs import Preempted, Run
from kerasseg.training.diagnosis import notices
from kerasseg.training.feature_stages import check_channels, feature_folder, origin_of, store_for
from kerasseg.training.parts import (
    StrategyMaker,
    check_recipe,
    check_resumption,
    check_sizes,
    counting,
    feed,
    make_trainer,
    note_overlap,
    one_line_errors,
    recipe_strategy,
    sampling_weights,
    start_from,
)
from kerasseg.training.preemption import Preemption
from kerasseg.training.recording import NonFiniteStateError, Recorder, Report
from kerasseg.training.strategies import is_chief, make_strategy
from kerasseg.training.trainer import NonFiniteLossError, Step, Trainer
from kerasseg.training.workers import Workers


def train_run(
    recipe: Recipe,
    run: Run,
    *,
    sources: Mapping[Path, str] | None = None,
    strategies: StrategyMaker = make_strategy,
    preemption: Preemption | None = None,
    on_begin: Callable[[], object] = lambda: None,
    report: Report = lambda record: None,
) -> keras.Model:
    """Trains what a recipe without stages describes, or resumes it exactly where the run directory stops.

    Everything that can be wrong with the arguments and the first images is found before the run directory is begun or changed.

    Args:
        recipe: The recipe.
        run: Where it is recorded; a run that was begun is resumed, and its record keeps what the recipe changes.
        sources: Run or model that a new run starts from → suffix of the layer names that it fills; one that was begun goes on. Of
            a recipe with `features`, the one whose features are stored, of a run that was begun too.
        strategies: What makes the strategy.
        preemption: What notes SIGTERM, where somebody else has entered it.
        on_begin: Called after the first step, before the run directory is begun or changed.
        report: As in `train_recipe`.
    Returns:
        The trained network, in float32: the best of the validations, or the last step where there were none or the recipe says so.
    Raises:
        KerassegError: If the recipe, its data, or the run directory does not allow it.
        Preempted: If the process was asked to end; the run can be resumed at the very step.
    """
    check_sizes(recipe)
    resumed = run.exists
    if resumed:
        check_resumption(recipe, run)
    strategy = recipe_strategy(recipe, strategies)
    workers, chief = Workers(strategy), is_chief(strategy)
    report = report if chief else lambda record: None
    noting = nullcontext(preemption) if preemption else Preemption()
    with noting as preemption:
        used = recipe
        if recipe.features:
            used, sources = _on_stored(recipe, run, sources, strategies, preemption, workers, report if chief else None), None
        data = open_training_data(
            used, counting(report, "searched"), lambda line: report({"notice": line}), counting(report, "checked")
        )
        if resumed:
            run.check_ids(data.ids, recipe.data)
        sampling_weights(used, data, report)
        validation = open_recipe_data(used, used.validation_split) if used.validate_every else None
        note_overlap(data, validation, lambda line: report({"notice": line}))
        trainer = make_trainer(used, data.num_classes, strategy, initial=not resumed)
        check_channels(trainer.model, data)
        _start(recipe, run, trainer, sources, workers, report)
        recorder = Recorder(recipe, run, trainer, data, validation, report) if chief else None
        # Closed in any case: the data set's threads shall end now, and not when Python is half gone.
        steps = trainer.train(partial(feed, used, data), recipe.iterations, _stops(recipe))
        with closing(steps), recorder or nullcontext(), _way_back(run), one_line_errors():
            if recorder and resumed:
                recorder.catch_up()
            # Done before anything is written: what is wrong with the images or their sizes shows here.
            first = next(steps, None)
            if recorder:
                on_begin()
                recorder.resume() if resumed else recorder.begin()
            _follow(chain([first] if first else [], steps), trainer, run, preemption, workers, recorder)
            model = recorder.finish() if recorder else None
            workers.meet()
    return model or load_model(run.path)


def _on_stored(recipe: Recipe, run: Run, sources, strategies, preemption, workers: Workers, report: Report | None) -> Recipe:
    """Stores the features that a recipe trains on, and gives the recipe that trains on them. The chief, who reports, stores."""
    if len(sources or {}) > 1:
        raise KerassegError(f"{recipe.name} stores the features of one network, received {', '.join(map(str, sources))}: name one")
    path = next(iter(sources or {}), None)
    if not run.exists:
        check_recipe(recipe, strategies=strategies, origin=origin_of(path))
    with one_line_errors():
        if report:
            store_for(recipe, run, path, preemption, report)
            # Models are cycles: without this the one that was stored of would lie in memory while the other trains.
            gc.collect()
        workers.meet()
    return recipe.on_features(feature_folder(run))


def _start(
    recipe: Recipe, run: Run, trainer: Trainer, sources: Mapping[Path, str] | None, workers: Workers, report: Report
) -> None:
    """Brings a trainer to where the run stands, or starts it from other networks, and reports that."""
    resumed = run.exists
    if resumed:
        restore(recipe, run, trainer, report)
        if sources:
            report({"notice": f"{run.path} was begun before: it goes on, and {', '.join(map(str, sources))} is for a new run"})
    elif sources:
        report({"started_from": list(map(str, sources)), "new_layers": start_from(trainer.model, sources)})
    workers.check_same(trainer.step if resumed else -1, run.path)
    report({"done": trainer.step, "iterations": recipe.iterations, "images": images_per_pass(recipe) * recipe.accumulation})
    if not (resumed or sources):
        for notice in notices(trainer.model, recipe.iterations * recipe.accumulation):
            report({"notice": notice})


def check_iterations(recipe: Recipe, run: Run) -> bool:
    """Tells whether a run is finished, for the iterations that the recipe asks.

    Raises:
        KerassegError: If it has done more than these.
    """
    finished = run.model_path.is_file()
    done = run.recipe()["iterations"] if finished else run.checkpoints().last_step()
    if done > recipe.iterations:
        raise KerassegError(f"{run.path} has done {done} steps, received iterations={recipe.iterations}: pass --iterations {done}")
    return finished and done == recipe.iterations


def restore(recipe: Recipe, run: Run, trainer: Trainer, report: Report) -> None:
    """Brings a trainer to where a run stands.

    Args:
        recipe: The recipe as it now is.
        run: The run directory.
        trainer: What will train on; changed in place.
        report: Told of a checkpoint that had to be passed over.
    Raises:
        KerassegError: If the run has done more steps than asked, has no checkpoint, or one of another network.
    """
    check_iterations(recipe, run)
    state = run.checkpoints().last(lambda notice: report({"notice": notice}))
    other = "choose a new --run-dir"
    if state or run.model_path.is_file():
        other += f", or start from its weights with --init {run.path}"
    if state is None:
        raise KerassegError(f"{run.path} was begun but has no checkpoint to go on from: {other}")
    # Without a schedule the rate is one of the optimizer's variables; the recipe's counts, which may have changed.
    rates = [(variable, variable.numpy()) for variable in trainer.optimizer.variables if variable.name == "learning_rate"]
    try:
        trainer.restore(state[1])
    except KerassegError as error:
        raise KerassegError(f"{run.path}: {error}; {other}") from error
    for variable, rate in rates:
        variable.assign(rate)


def _stops(recipe: Recipe) -> list[int]:
    """Where the weights must be those of the step just done: to save them, or to validate."""
    return [recipe.checkpoint_every, *([recipe.validate_every] if recipe.validate_every else [])]


def _follow(steps: Iterator[Step], trainer: Trainer, run: Run, preemption: Preemption, workers: Workers, recorder) -> None:
    """Goes from step to step, until the last or until one of the processes is asked to end: then all end, after the same step."""
    for step in steps:
        stopping = step.step == trainer.step and workers.any(preemption.requested)
        if recorder:
            recorder.after(step, stopping=stopping)
        if stopping:
            workers.meet()
            raise Preempted(run, step.step)


@contextmanager
def _way_back(run: Run):
    """Adds to numbers that are not finite the checkpoint from which training goes on."""
    try:
        yield
    except (NonFiniteLossError, NonFiniteStateError) as error:
        error.args = (f"{error}; {_describe_way_back(run, error)}",)
        raise


def _describe_way_back(run: Run, error: NonFiniteLossError | NonFiniteStateError) -> str:
    if not run.exists:
        return "no checkpoint was written yet"
    checkpoints = run.checkpoints()
    if isinstance(error, NonFiniteLossError) and checkpoints.last_step() == error.step - 1:
        # From just before a loss, every rate leads to the same one: only an older state is a way back.
        newest, *older = sorted(checkpoints.directory.glob("step-*.npz"), reverse=True)
        if not older:
            return f"its only checkpoint leads there at any rate: choose a new --run-dir instead of {run.path}"
        newest.unlink(missing_ok=True)
    step = checkpoints.last_step()
    return f"{run.resume_command} goes back to its {f'checkpoint of step {step}' if step else 'first weights'}"
