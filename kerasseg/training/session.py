"""A whole training run by a recipe, in a run directory, from the start or from where it stopped."""

from collections.abc import Callable, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasseg.data import DataSet, training_batches, unwrap_error
from kerasseg.errors import KerassegError
from kerasseg.evaluation import Inference, evaluate, load_model
from kerasseg.interop import transplant
from kerasseg.losses import LOSSES
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network, open_recipe_data, padding_color, recipe_transforms
from kerasseg.runs import Checkpoints, Run
from kerasseg.tables import did_you_mean
from kerasseg.training.optimizers import make_optimizer
from kerasseg.training.strategies import make_strategy
from kerasseg.training.trainer import Step, Trainer

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def train_recipe(
    recipe: Recipe,
    run: Run,
    *,
    init: str | Path | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
) -> keras.Model:
    """Trains what a recipe describes, or resumes it exactly where the run directory stops.

    Everything that can be wrong with the arguments and the first images is found before the run directory is begun.

    Args:
        recipe: The recipe.
        run: Where it is recorded; a run that was begun is resumed, and its record keeps what the recipe changes.
        init: Run or model whose weights a new run starts from, all that fit; layers of other shapes stay new.
        report: Called with each record of the log: `step`, `loss`, `learning_rate`, and scores after a validation; and once,
            with `started_from` and `new_layers`, after `init`.
    Returns:
        The trained network, in float32: the best of the validations, or the last step where there were none or the recipe says so.
    Raises:
        KerassegError: If the recipe, its data, or the run directory does not allow it.
    """
    report = report or (lambda record: None)
    data = open_recipe_data(recipe, recipe.split)
    validation = open_recipe_data(recipe, recipe.validation_split) if recipe.validate_every else None
    _check(recipe, init, run)
    trainer = _make_trainer(recipe, data.labels.num_classes, initial=not run.exists)
    checkpoints = run.checkpoints(recipe.keep_checkpoints)
    if run.exists:
        _resume(recipe, run, trainer, checkpoints)
    elif init:
        report({"started_from": str(init), "new_layers": _start_from(init, trainer.model)})
    # Closed in any case: the data set's threads shall end now, and not when Python is half gone.
    steps = trainer.train(partial(_feed, recipe, data), recipe.iterations)
    with closing(steps), _mistakes_in_the_data():
        # Done before anything is written: what is wrong with the images or their sizes shows here.
        first = next(steps, None)
        if not run.exists:
            # Kept at once: what --init gave would be lost by a crash before the first regular checkpoint.
            checkpoints.save(first.step, trainer.state())
            run.begin(recipe.to_json(), data.labels)
        with tf.summary.create_file_writer(str(run.tensorboard_path)).as_default():
            for step in chain([first] if first else [], steps):
                _after_step(recipe, run, trainer, checkpoints, validation, step, report)
    return _finish(recipe, run, trainer, checkpoints)


def check_recipe(recipe: Recipe) -> tuple[DataSet, keras.Model]:
    """Makes everything that a recipe names and trains nothing.

    Args:
        recipe: The recipe.
    Returns:
        Its training data, the first image decoded, and its network.
    Raises:
        KerassegError: If something in it is unknown, missing or does not fit.
    """
    data = open_recipe_data(recipe, recipe.split)
    with _mistakes_in_the_data():
        next(iter(_feed(recipe, data, 0, 1)))
    if recipe.validate_every:
        open_recipe_data(recipe, recipe.validation_split)
    _check_precision(recipe)
    return data, _make_trainer(recipe, data.labels.num_classes, initial=False).model


def _after_step(recipe: Recipe, run: Run, trainer: Trainer, checkpoints: Checkpoints, validation, step: Step, report) -> None:
    """Validates, records, reports and saves, where it is time to."""
    record = {"step": step.step, "loss": step.loss, "learning_rate": step.learning_rate}
    last = step.step == recipe.iterations
    if validation is not None and (last or step.step % recipe.validate_every == 0):
        record |= _validate(recipe, trainer.model, validation)
    run.log(record)
    for name, value in record.items():
        if name != "step":
            tf.summary.scalar(name, value, step=step.step)
    report(record)
    if last or step.step % recipe.checkpoint_every == 0 or "mean_iou" in record:
        checkpoints.save(step.step, trainer.state(), record.get("mean_iou"))


def _check(recipe: Recipe, init, run: Run) -> None:
    _check_precision(recipe)
    if recipe.starts_from and not init and not run.exists:
        raise KerassegError(f"recipe {recipe.name} starts from a trained {recipe.starts_from}: pass --init with its run directory")
    if run.exists:
        before = Recipe.from_json(run.recipe())
        fixed = ("arch", "data", "split", "seed", "batch_size", "accumulation", "sampling", "width_multiplier", "arguments")
        for name in fixed:
            if getattr(before, name) != getattr(recipe, name):
                raise KerassegError(
                    f"{run.path} was begun with {name}={getattr(before, name)}, received {getattr(recipe, name)}: "
                    "omit the option to resume, or choose a new --run-dir"
                )


def _check_precision(recipe: Recipe) -> None:
    if recipe.precision not in PRECISIONS:
        raise KerassegError(f"precision='{recipe.precision}': expected one of {', '.join(PRECISIONS)}")


@contextmanager
def _mistakes_in_the_data():
    """Finds a mistake in the user's files behind what TensorFlow makes of it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise unwrap_error(error) or error from error


@contextmanager
def _precision(recipe: Recipe):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[recipe.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _make_trainer(recipe: Recipe, num_classes: int, *, initial: bool) -> Trainer:
    """Builds network, optimizer and loss under the strategy; `initial` says whether to load the recipe's first weights."""
    strategy = make_strategy(recipe.strategy, replicas=recipe.replicas)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise KerassegError(f"batch_size={recipe.batch_size} cannot be shared by {replicas} replicas: make it a multiple")
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), _precision(recipe):
        model = build_network(recipe, num_classes, initial_weights=initial)
        optimizer = make_optimizer(recipe)
    return Trainer(model, optimizer=optimizer, loss=_make_loss(recipe), strategy=strategy, accumulation=recipe.accumulation)


def _start_from(init, model: keras.Model) -> list[str]:
    """Copies all weights that fit and names the layers that keep their own."""
    source = load_model(init)
    new = transplant(source, model)
    if len(new) == sum(1 for layer in model.layers if layer.weights):
        raise KerassegError(f"--init {init}: no layer of {source.name} has the name and shape of one of {model.name}")
    return new


def _make_loss(recipe: Recipe):
    if recipe.loss not in LOSSES:
        raise KerassegError(f"loss='{recipe.loss}': {did_you_mean(recipe.loss, LOSSES)}")
    arguments = {"normalization": recipe.loss_normalization, "class_weights": recipe.class_weights}
    if recipe.loss == "sigmoid_cross_entropy":
        arguments["null_background"] = bool(recipe.arguments.get("null_background"))
    return LOSSES[recipe.loss](**arguments)


def _resume(recipe: Recipe, run: Run, trainer: Trainer, checkpoints: Checkpoints) -> None:
    state = checkpoints.last()
    if state is not None:
        trainer.restore(state[1])
    run.rewind_log(trainer.step)
    if recipe.to_json() != run.recipe():
        run.update(recipe.to_json())
    if trainer.step < recipe.iterations:
        # Until the run is finished again, its checkpoints are what counts.
        run.model_path.unlink(missing_ok=True)


def _feed(recipe: Recipe, data: DataSet, start: int, slices: int):
    fill = padding_color(recipe, data)
    return training_batches(
        data,
        recipe.batch_size,
        transforms=recipe_transforms(recipe, fill),
        fill=fill,
        seed=recipe.seed,
        sampling=recipe.sampling,
        start=start,
        slices=slices,
    )


def _validate(recipe: Recipe, model, data: DataSet) -> dict[str, float]:
    return evaluate(model, data, Inference(scales=(recipe.image_scale,)), limit=recipe.validation_images).summary()


def _finish(recipe: Recipe, run: Run, trainer: Trainer, checkpoints: Checkpoints) -> keras.Model:
    best = checkpoints.best() if recipe.validate_every and recipe.keep_best else None
    if best is not None:
        trainer.restore(best[1])
    model = trainer.model
    if recipe.precision != "float32" or trainer.strategy.num_replicas_in_sync > 1:
        # What is kept is the plain network: no mirrored variables, no layer that computes in bfloat16.
        plain = build_network(recipe, model.output_shape[-1], initial_weights=False)
        plain.set_weights(model.get_weights())
        model = plain
    run.save_model(model.save)
    return model
