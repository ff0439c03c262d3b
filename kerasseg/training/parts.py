"""What a training run consists of, made from its recipe, and whether a recipe can be followed at all."""

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data import DataSet, Share, training_batches, unwrap_error
from kerasseg.data.sampling import class_balance
from kerasseg.data.transforms import static_size
from kerasseg.data.views.union import shared_examples
from kerasseg.errors import KerassegError, first_line
from kerasseg.evaluation import load_model
from kerasseg.evaluation.loading import check_forms
from kerasseg.interop import transplant
from kerasseg.losses import LOSSES
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import (
    build_network,
    images_per_pass,
    open_recipe_data,
    open_training_data,
    padding_color,
    recipe_transforms,
    training_network,
)
from kerasseg.recipes.remembered import remembered
from kerasseg.runs import Run
from kerasseg.runtimes import is_exported
from kerasseg.tables import did_you_mean
from kerasseg.training.feature_stages import Origin, check_channels, check_feature_fields, sample_features
from kerasseg.training.freezing import freeze
from kerasseg.training.optimizers import make_optimizer
from kerasseg.training.parameter_server import AsynchronousTrainer
from kerasseg.training.recording import Report
from kerasseg.training.strategies import make_strategy
from kerasseg.training.trainer import Trainer

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}

# What decides the state of a run: its variables, and where in the training sequence it stands.
_FIXED = (
    "arch", "backbone", "width_multiplier", "output_stride", "arguments", "training_arguments", "crf_rnn", "crf_rnn_arguments",
    "freeze", "freeze_batch_norm", "precision", "quantization_aware", "optimizer", "label_offset", "label_margin", "data",
    "data_arguments", "split", "skip_broken", "foreground", "background", "features", "examples", "boxes", "seed", "sampling",
    "bootstrap_classes", "batch_size", "accumulation", "loss_sampling",
)  # fmt: skip

# What the layer MinimumSize says where the size is known only when the graph runs.
_TOO_SMALL = re.compile(r"(expected height and width of at least [^\]]+)\]")
# Images of which no side is smaller fit into every network there is.
_DEEPEST = 128

# Makes the strategy of a recipe: called once for all stages, because the workers of a cluster join once.
StrategyMaker = Callable[..., tf.distribute.Strategy]


def make_trainer(recipe: Recipe, num_classes, strategy: tf.distribute.Strategy, *, initial: bool) -> Trainer:
    """Builds network, optimizer and loss.

    Args:
        recipe: The recipe.
        num_classes: Number of classes of its data, or head name → number.
        strategy: Where to train.
        initial: Whether to load the recipe's first weights.
    Raises:
        KerassegError: If something in the recipe is unknown or does not fit.
    """
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), _precision(recipe):
        model = training_network(recipe, num_classes, initial_weights=initial)
        check_fits(recipe, model)
        freeze(model, recipe.freeze, batch_norm=recipe.freeze_batch_norm)
        optimizer = make_optimizer(recipe, model)
    if recipe.trains_another_form:
        # Now, and not when the trained network is to be kept.
        check_forms(model, build_network(recipe, num_classes, initial_weights=False))
    shared = {"optimizer": optimizer, "loss": _make_loss(recipe, num_classes), "loss_weights": recipe.loss_weights}
    if recipe.strategy == "parameter_server":
        workers = recipe.replicas or len(tf.config.list_logical_devices("GPU")) or 1
        return AsynchronousTrainer(model, **shared, workers=workers, clip_norm=recipe.clip_norm)
    return Trainer(
        model,
        **shared,
        strategy=strategy,
        accumulation=recipe.accumulation,
        steps_per_call=recipe.steps_per_call,
        clip_norm=recipe.clip_norm,
        loss_scaling=recipe.precision == "float16",
        jit_compile=recipe.jit_compile,
    )


def recipe_strategy(recipe: Recipe, strategies: StrategyMaker = make_strategy) -> tf.distribute.Strategy:
    """Makes the strategy that a recipe names: before anything else of TensorFlow, for a cluster can be joined only then.

    Args:
        recipe: The recipe.
        strategies: What makes the strategy.
    Raises:
        KerassegError: If there is no such strategy, or its replicas cannot share a batch.
    """
    strategy = strategies(recipe.strategy, replicas=recipe.replicas, join_timeout=recipe.join_timeout)
    check_shares(recipe, strategy.num_replicas_in_sync)
    return strategy


def counting(report: Report, what: str) -> Callable[[int, int], None]:
    """Gives what reports progress over images under a name: `{what: done, "of": total}`."""
    return lambda done, total: report({what: done, "of": total})


def sampling_weights(recipe: Recipe, data: DataSet, report: Report = lambda record: None) -> np.ndarray | None:
    """Finds how often each example is drawn, where a recipe balances classes; every label is read once for it.

    Args:
        recipe: The recipe.
        data: What it trains on.
        report: Called with `searched` and `of` while labels are read.
    Raises:
        KerassegError: If an example has no label, or none holds a class.
    """
    if recipe.sampling != "balanced":
        return None
    # Batches begin anew with each start, and stages are checked before they train.
    return remembered("balance", recipe, data, lambda: class_balance(data, counting(report, "searched")))


def note_overlap(data: DataSet, validation: DataSet | None, notice: Callable[[str], None]) -> None:
    """Tells of images that are trained on and validated on: their scores say nothing of new ones.

    Args:
        data: What is trained on.
        validation: What is validated on, if anything.
        notice: Called with a line, if there are such images.
    """
    shared = () if validation is None else shared_examples(validation, data)
    if shared:
        notice(
            f"{len(shared)} of the {len(validation)} validation images are trained on, too (first '{shared[0]}'): choose other "
            "splits, e.g. --data voc --split trainaug --validation-split val"
        )


def feed(recipe: Recipe, data: DataSet, start: int, share: Share) -> tf.data.Dataset:
    """Gives a recipe's training batches, as `Trainer.train` asks for them."""
    fill = padding_color(recipe, data)
    return training_batches(
        data,
        images_per_pass(recipe),
        transforms=recipe_transforms(recipe, fill),
        fill=fill,
        seed=recipe.seed,
        sampling=recipe.sampling,
        weights=sampling_weights(recipe, data),
        start=start,
        share=share,
    )


def check_recipe(
    recipe: Recipe,
    *,
    strategies: StrategyMaker = make_strategy,
    origin: Origin | None = None,
    report: Report = lambda record: None,
    notice: Callable[[str], None] | None = None,
) -> tuple[DataSet, Trainer]:
    """Makes everything that a recipe names and trains nothing.

    Args:
        recipe: The recipe, without stages.
        strategies: What makes the strategy.
        origin: Gives the network whose features it trains on, trained or not.
        report: Called with `checked` and `of` while files are checked, with `searched` and `of` while labels are searched.
        notice: Called with each line that a person should see about the data.
    Returns:
        Its training data, the first batch decoded, and what would train its network. Of features that would be stored, those of
        the first image stand for all.
    Raises:
        KerassegError: If something in it is unknown, missing or does not fit.
    """
    check_sizes(recipe)
    strategy = recipe_strategy(recipe, strategies)
    if recipe.validate_every or (recipe.features and recipe.validation_split):
        open_recipe_data(recipe, recipe.validation_split)
    data = open_training_data(recipe, counting(report, "searched"), notice, counting(report, "checked"))
    sampling_weights(recipe, data, report)
    if recipe.features:
        data, recipe = sample_features(recipe, origin, data), recipe.on_features("")
    with one_line_errors():
        next(iter(feed(recipe, data, 0, Share())))
    trainer = make_trainer(recipe, data.num_classes, strategy, initial=False)
    check_channels(trainer.model, data)
    return data, trainer


def check_sizes(recipe: Recipe) -> None:
    """Refuses an unknown precision, and images whose size contradicts the network's or is not known where it must be.

    Raises:
        KerassegError: If that is so.
    """
    if recipe.precision not in PRECISIONS:
        raise KerassegError(f"precision='{recipe.precision}': expected one of {', '.join(PRECISIONS)}")
    if recipe.strategy == "parameter_server":
        _check_asynchronous(recipe)
    check_feature_fields(recipe)
    on_maps = bool(recipe.features) or recipe.data == "features"
    if recipe.features:
        recipe = recipe.on_features("")
    size = static_size(recipe_transforms(recipe, (0.0, 0.0, 0.0)))
    fixed = tuple(recipe.arguments.get("input_shape") or ())[:2]
    if size is None and (recipe.jit_compile or recipe.strategy == "tpu"):
        what = "jit_compile" if recipe.jit_compile else "strategy='tpu'"
        if on_maps:
            raise KerassegError(f"{what} needs maps of one size: pass --crop-size in their cells, with --stage if there are stages")
        raise KerassegError(f"{what} needs images of one size: pass --crop-size, such as 321x321, or for whole images --pad-size")
    if recipe.pad_size and recipe.crop_size and any(c > p for c, p in zip(recipe.crop_size, recipe.pad_size, strict=True)):
        crop, pad = ("x".join(map(str, sides)) for sides in (recipe.crop_size, recipe.pad_size))
        raise KerassegError(f"crop_size {crop} is larger than the padded image, pad_size {pad}: pass --crop-size {pad} or omit one")
    for side, received, expected in zip(("high", "wide"), size or (), fixed, strict=False):
        if expected is not None and received != expected:
            raise KerassegError(
                f"crop_size or pad_size makes images {received} pixels {side}, input_shape={list(recipe.arguments['input_shape'])} "
                f"takes {expected}: pass --crop-size {'x'.join(str(n or 'N') for n in fixed)}"
            )


def check_fits(recipe: Recipe, model: keras.Model) -> None:
    """Refuses crops that a network is too deep for, where all are of one size.

    Raises:
        KerassegError: If that is so.
    """
    size = static_size(recipe_transforms(recipe, (0.0, 0.0, 0.0)))
    if size is None or min(size) >= _DEEPEST:
        return
    try:
        shapes = {tensor.name: (1, *size, tensor.shape[-1]) for tensor in model.inputs}
        model.compute_output_shape(shapes if len(shapes) > 1 else next(iter(shapes.values())))
    except ValueError as error:
        reason, crop = first_line(error).rstrip("."), "x".join(map(str, size))
        raise KerassegError(f"{model.name} cannot take images of {crop} pixels: {reason}; pass a larger --crop-size") from error


def _check_asynchronous(recipe: Recipe) -> None:
    has = {
        "--accumulation": recipe.accumulation > 1,
        "--steps-per-call": recipe.steps_per_call > 1,
        "--precision float16": recipe.precision == "float16",
        "--jit-compile": recipe.jit_compile,
    }
    for option, given in has.items():
        if given:
            raise KerassegError(f"strategy='parameter_server' has no {option}: omit it, or pass --strategy mirrored")


def check_shares(recipe: Recipe, replicas: int) -> None:
    """Refuses a batch that the replicas cannot share.

    Raises:
        KerassegError: If that is so.
    """
    images = images_per_pass(recipe)
    if images % replicas:
        grown = f" (grown to {images} by loss_sampling)" if images != recipe.batch_size else ""
        larger = -(-recipe.batch_size // replicas) * replicas
        raise KerassegError(
            f"batch_size={recipe.batch_size}{grown} cannot be shared by {replicas} replicas: make it a multiple, "
            f"--batch-size {larger}"
        )


def check_resumption(recipe: Recipe, run: Run) -> None:
    """Refuses to go on with what would make another run.

    Raises:
        KerassegError: If a field that may not change has changed.
    """
    before = Recipe.from_json(run.recipe())
    for name in _FIXED:
        if getattr(before, name) != getattr(recipe, name):
            raise KerassegError(
                f"{run.path} was begun with {name}={getattr(before, name)}, received {getattr(recipe, name)}: "
                "omit the option to resume, or choose a new --run-dir"
            )


def start_from(model: keras.Model, sources: Mapping[Path, str]) -> list[str]:
    """Copies all weights that fit from trained networks.

    Args:
        model: The network to start; changed in place.
        sources: Run directory or model file → suffix of the layer names that it fills.
    Returns:
        Names of the layers that keep their own.
    Raises:
        KerassegError: If one of them fills nothing.
    """
    new = {layer.name: None for layer in model.layers if layer.weights}
    every = len(new)
    for path, suffix in sources.items():
        if is_exported(path):
            raise KerassegError(f"cannot start from {path}, an exported file: expected a run directory or .keras file")
        source = load_model(path)
        kept = transplant(source, model, suffix)
        if len(kept) == every:
            follows = f", '{suffix}' added," if suffix else ""
            raise KerassegError(
                f"cannot start from {path}: no layer of {source.name} has{follows} the name and shape of one of {model.name}"
            )
        new = {name: None for name in new if name in kept}
    return list(new)


@contextmanager
def one_line_errors():
    """Finds behind what TensorFlow raises a mistake in the user's files, or that another worker is gone."""
    try:
        yield
    except tf.errors.OpError as error:
        if "Collective ops is aborted" in str(error):
            raise KerassegError(
                "another worker was lost: start all workers again with the same --run-dir; they go on from the last checkpoint"
            ) from error
        if refused := _TOO_SMALL.search(str(error)):
            raise KerassegError(
                f"the images do not fit the network: {refused[1]}; crop or resize them, e.g. --crop-size or --resize 320x320"
            ) from error
        raise unwrap_error(error) or error from error


@contextmanager
def _precision(recipe: Recipe):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[recipe.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _make_loss(recipe: Recipe, num_classes):
    if recipe.loss not in LOSSES:
        raise KerassegError(f"loss='{recipe.loss}': {did_you_mean(recipe.loss, LOSSES)}")
    if recipe.class_weights is not None and isinstance(num_classes, Mapping):
        raise KerassegError(
            f"class_weights has {len(recipe.class_weights)} numbers, the heads {', '.join(num_classes)} have classes of their own: "
            "pass --class-weights none, or train one head, --data-arguments head=NAME"
        )
    arguments = {
        "normalization": recipe.loss_normalization,
        "class_weights": recipe.class_weights,
        "hard_pixel_share": recipe.hard_pixel_share,
        "label_offset": recipe.label_offset,
        "label_margin": recipe.label_margin,
    }
    if recipe.loss == "sigmoid_cross_entropy":
        arguments["null_background"] = bool(recipe.arguments.get("null_background"))
    return LOSSES[recipe.loss](**arguments)
