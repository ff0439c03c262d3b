"""What a training run would cost, found by a few of its steps; nothing stays on disk."""

import dataclasses
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import keras
import tensorflow as tf

from kerasseg.data import DataSet
from kerasseg.evaluation.loading import evaluation_network
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network, images_per_pass, open_recipe_data
from kerasseg.runs import Checkpoints, Run
from kerasseg.training.feature_stages import (
    Origin,
    check_stored,
    count_images,
    feature_folder,
    is_stored,
    origin_of,
    recorded_origin,
)
from kerasseg.training.features import SampleFeatures
from kerasseg.training.parts import StrategyMaker, check_recipe, check_resumption, feed, note_overlap, one_line_errors, start_from
from kerasseg.training.recording import validate
from kerasseg.training.session import check_iterations, restore
from kerasseg.training.stages import check_predecessors, check_same_stages, sources_of_init, stage_origin, stage_runs
from kerasseg.training.strategies import make_strategy
from kerasseg.training.trainer import Trainer

# Steps after the first, which also compiles; images of the evaluation.
_STEPS, _IMAGES = 3, 2


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What `dry_run` found.

    Args:
        network: Name of the network.
        images: Training images.
        classes: Their classes, or head name → how many.
        notices: Lines that a person should see about them.
        trainable: Parameters that train.
        frozen: Parameters that stay as they are, moving statistics among them.
        new_layers: Layers that would keep their own weights, where the run starts from others.
        first_step: Seconds of the first step, compilation included.
        step: Seconds of a step after it.
        memory: Largest memory in bytes while the steps ran: of the GPU, or else of the whole process; `None` where the system
            does not tell.
        save: Seconds that one checkpoint takes.
        checkpoint: Its size in bytes.
        images_per_step: Images of each step.
        evaluation: Seconds that one validation takes; `None` without validation.
        evaluation_image: Seconds of each of its images, as measured on a few.
        total: Seconds to the end, from where the run stands, checkpoints, validations and storing included.
        storing: Seconds to store the features that it trains on; `None` if it trains on none, or they are there.
    """

    network: str
    images: int
    classes: int | dict[str, int]
    notices: list[str]
    trainable: int
    frozen: int
    new_layers: list[str] | None
    first_step: float
    step: float
    memory: int | None
    save: float
    checkpoint: int
    images_per_step: int
    evaluation: float | None
    evaluation_image: float | None
    total: float
    storing: float | None = None


def dry_run_all(recipe: Recipe, run: Run, *, stage: str | None = None, init: str | Path | None = None) -> dict[str, DryRun]:
    """Does `dry_run` for what `train_recipe` would train by the same arguments, and refuses what it would refuse.

    Args:
        recipe: The recipe.
        run: The run directory, which is only read.
        stage: Only this stage of the recipe.
        init: Run or model whose weights a new run would start from.
    Returns:
        What was found, by the name of the recipe, or of each of its stages that is not finished.
    Raises:
        KerassegError: If the recipe, its data, or the run directory does not allow it.
    """
    check_same_stages(recipe, run)
    # Made once, whatever the stages: the workers of a cluster join once.
    strategies = cache(make_strategy)
    if not recipe.stages:
        origin = origin_of(init or recorded_origin(recipe, run))
        found = dry_run(recipe, run=run, sources=sources_of_init(init), strategies=strategies, origin=origin)
        return {recipe.name: found}
    places = stage_runs(recipe, run)
    names = [stage] if stage else list(places)
    due = [name for name in names if stage or not (places[name].exists and check_iterations(recipe.stage(name), places[name]))]
    if stage and not init:
        check_predecessors(recipe, places, stage)
    found = {}
    for name in due:
        own = init if name == names[0] else None
        sources = sources_of_init(own) if own else _trained(recipe, places, name)
        origin = stage_origin(recipe, places, name, own)
        found[name] = dry_run(recipe.stage(name), run=places[name], sources=sources, strategies=strategies, origin=origin)
        # Models are cycles: without this they would lie in memory together.
        gc.collect()
    return found


def _trained(recipe: Recipe, places: Mapping[str, Run], stage: str) -> dict[Path, str]:
    """What a stage starts from, as far as it is there."""
    return {places[name].path: suffix for name, suffix in recipe.predecessors(stage).items() if places[name].model_path.is_file()}


def dry_run(
    recipe: Recipe,
    *,
    run: Run | None = None,
    sources: Mapping[Path, str] | None = None,
    strategies: StrategyMaker = make_strategy,
    origin: Origin | None = None,
) -> DryRun:
    """Does a few steps, one save and one evaluation of what a recipe without stages describes, and throws them away.

    Args:
        recipe: The recipe.
        run: The run directory; one that was begun is resumed, as far as that goes without writing.
        sources: Run or model that a new run would start from → suffix of the layer names that it fills.
        strategies: What makes the strategy.
        origin: Gives the network whose features it trains on, instead of starting from it.
    Raises:
        KerassegError: If something in the recipe is unknown, missing or does not fit, or the run directory does not allow it.
    """
    resumed = run is not None and run.exists
    if resumed:
        check_resumption(recipe, run)
    photographs = recipe
    if recipe.features:
        sources = None
        if run is not None and is_stored(recipe, run):
            check_stored(recipe, run, origin)
            photographs = recipe = recipe.on_features(feature_folder(run))
    notices: list[str] = []
    data, trainer = check_recipe(recipe, strategies=strategies, origin=origin, notice=notices.append)
    if resumed and not recipe.features:
        run.check_ids(data.ids, photographs.data)
    if recipe.features:
        recipe = recipe.on_features("")
    new_layers = None
    if resumed:
        restore(recipe, run, trainer, lambda record: None)
    else:
        if recipe.weights:
            # Only to see that they are there and fit.
            build_network(recipe, data.num_classes)
        new_layers = start_from(trainer.model, sources) if sources else None
    validation = open_recipe_data(photographs, photographs.validation_split) if recipe.validate_every else None
    note_overlap(data, validation, notices.append)
    if not isinstance(data, SampleFeatures):
        return dataclasses.replace(_measure(recipe, trainer, data, validation, new_layers), notices=notices)
    validation = validation and data.of(validation)
    storing = data.seconds * count_images(photographs)
    found = _measure(recipe, trainer, data, validation, new_layers)
    return dataclasses.replace(found, storing=storing, total=found.total + storing, notices=notices)


def _measure(recipe: Recipe, trainer: Trainer, data: DataSet, validation: DataSet | None, new_layers: list[str] | None) -> DryRun:
    done, trainable = trainer.step, sum(map(_size, trainer.model.trainable_variables))
    with one_line_errors():
        memory, (first, step) = _largest_memory(lambda: _time_steps(recipe, trainer, data))
        save, checkpoint = _time_save(trainer)
        images, image = _time_evaluation(recipe, trainer.model, data, validation) if validation is not None else (0, None)
    evaluation, left = None if image is None else image * images, max(recipe.iterations - done, 0)
    saves = left // recipe.checkpoint_every + 1
    validations = left // recipe.validate_every + 1 if recipe.validate_every else 0
    return DryRun(
        network=trainer.model.name,
        images=len(data),
        classes=data.num_classes,
        notices=[],
        trainable=trainable,
        frozen=sum(map(_size, trainer.model.weights)) - trainable,
        new_layers=new_layers,
        first_step=first,
        step=step,
        memory=memory,
        save=save,
        checkpoint=checkpoint,
        images_per_step=images_per_pass(recipe) * recipe.accumulation,
        evaluation=evaluation,
        evaluation_image=image,
        total=(first + step * (left - 1) + save * saves + (evaluation or 0) * validations) if left else 0.0,
    )


def _size(variable) -> int:
    return int(keras.ops.size(variable))


def _time_steps(recipe: Recipe, trainer: Trainer, data: DataSet) -> tuple[float, float]:
    """Seconds of the first step and, on average, of each after it."""
    times = [time.perf_counter()]
    # A call for each step, however many the recipe has in one.
    with closing(trainer.train(partial(feed, recipe, data), trainer.step + 1 + _STEPS, stops=[1])) as steps:
        for _ in steps:
            times.append(time.perf_counter())
    return times[1] - times[0], (times[-1] - times[1]) / _STEPS


def _time_save(trainer: Trainer) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = Checkpoints(folder).save(trainer.step, trainer.state())
        return time.perf_counter() - start, path.stat().st_size


def _time_evaluation(recipe: Recipe, model: keras.Model, training: DataSet, data: DataSet) -> tuple[int, float]:
    """Images of a whole validation, and seconds of each."""
    if recipe.trains_another_form:
        model = evaluation_network(recipe, model, training.num_classes)
    count = min(len(data), recipe.validation_images or len(data))
    # The first one compiles.
    validate(recipe, model, data, 1)
    start = time.perf_counter()
    validate(recipe, model, data, min(count, _IMAGES))
    return count, (time.perf_counter() - start) / min(count, _IMAGES)


def _largest_memory(work: Callable):
    """Runs something, and tells the most memory in bytes that was in use meanwhile, and what it gave."""
    gpus = tf.config.list_logical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.reset_memory_stats(gpu.name)
    reset = _reset_high_water()
    result = work()
    if gpus:
        return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus), result
    return _high_water(reset), result


def _reset_high_water() -> bool:
    """Asks Linux to forget the process's high-water mark, so that it is that of what follows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water(reset: bool) -> int | None:
    if reset:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    if os.name != "posix":
        return None
    import resource

    # Kilobytes, but for macOS; of the whole life of the process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
