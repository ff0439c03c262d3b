"""Training on stored features as part of a recipe: whose they are, where they lie, what is refused."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras

from kerasseg.data import DataSet
from kerasseg.data.class_counts import check_one_map
from kerasseg.data.features import read_header
from kerasseg.errors import KerassegError
from kerasseg.evaluation import load_model
from kerasseg.evaluation.running import network_inputs
from kerasseg.layers import Preprocessing
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import open_recipe_data
from kerasseg.runs import Preempted, Run
from kerasseg.training.features import FeatureExtractor, FeatureStore, SampleFeatures
from kerasseg.training.preemption import Preemption
from kerasseg.training.recording import Report

# Gives, for a number of classes, the network whose features are stored.
Origin = Callable[[int], keras.Model]

# What acts on photographs → what turns it off.
_OF_PHOTOGRAPHS = {
    "resize": None,
    "image_scale": 1.0,
    "random_scale": None,
    "color_jitter": 0.0,
    "jitter": 0,
    "margin": 0,
    "label_margin": 0,
    "label_offset": 0,
    "examples": "images",
    "foreground": "keep",
    "background": "keep",
    "skip_broken": False,
}


class StoringPreempted(Preempted):
    """Storing of features was asked to stop, and did so between two images; what is stored is kept."""

    def __init__(self, run: Run, done: int, total: int):
        go_on = run.resume_command if Run(run.resume_path).exists else f"the same command again, with --run-dir {run.resume_path}"
        Exception.__init__(self, f"stopped by SIGTERM, the features of {done} of {total} images stored; to go on: {go_on}")


def origin_of(path: str | Path | None) -> Origin | None:
    """Gives a trained network as that whose features are stored; `None` for no path."""
    return (lambda num_classes: load_model(path)) if path else None


def check_feature_fields(recipe: Recipe) -> None:
    """Refuses, of a recipe that trains on features, what only photographs can go through.

    Args:
        recipe: The recipe, without stages.
    Raises:
        KerassegError: If it has such a thing.
    """
    if recipe.features and recipe.data == "features":
        raise KerassegError(f"features='{recipe.features}' are stored of photographs, received data='features': omit --features")
    if not recipe.features and recipe.data != "features":
        return
    for name, off in _OF_PHOTOGRAPHS.items():
        # Features are stored at the image scale of their stage.
        if getattr(recipe, name) != off and not (name == "image_scale" and recipe.features):
            option = name.replace("_", "-")
            option = f"--no-{option}" if off is False else f"--{option} {'none' if off is None else off}"
            raise KerassegError(
                f"{recipe.name} trains on stored features and has {name}={getattr(recipe, name)}, which is for photographs: pass "
                f"{option}, or set it so in this stage"
            )


def check_channels(model: keras.Model, data: DataSet) -> None:
    """Refuses data that a network does not take: photographs for maps, or the maps of another layer or network; other inputs.

    Raises:
        KerassegError: If that is so.
    """
    if data.inputs is not None or len(model.inputs) > 1:
        _check_inputs(model, data)
        return
    expected = model.inputs[0].shape[-1]
    if data.photographs and expected in (data.channels, None):
        return
    if data.photographs:
        raise KerassegError(
            f"{model.name} takes {expected} channels, the images of data set '{data.labels.name}' have {data.channels}: pass "
            "--data features with what tools/store_features.py stored, or name a network of images"
        )
    if expected != data.channels or any(isinstance(layer, Preprocessing) for layer in model.layers):
        what = "photographs" if any(isinstance(layer, Preprocessing) for layer in model.layers) else f"maps of {expected} channels"
        raise KerassegError(
            f"stored features of another network: {model.name} takes {what}, received maps of {data.channels} channels; pass "
            "--arguments from_features=true to a network that offers it, or store the features of the layer that it continues"
        )


def _check_inputs(model: keras.Model, data: DataSet) -> None:
    """In the order in which an array has them, too: evaluation cuts it by the network's."""
    takes, given = [(tensor.name, tensor.shape[-1]) for tensor in network_inputs(model)], list((data.inputs or {}).items())
    if takes != given:
        shown = [", ".join(f"{name} ({channels} channels)" for name, channels in inputs) for inputs in (takes, given)]
        raise KerassegError(
            f"{model.name} takes the inputs {shown[0]}, data set '{data.labels.name}' gives {shown[1] or 'one image'}: pass "
            "--arguments late_fusion with the names that the data have, as recipe fcn32s_nyud_color_hha, or other --data"
        )


def feature_folder(run: Run) -> Path:
    """Gives the folder in which a run keeps the features it trains on, one below it for each split."""
    return run.path / "features"


def is_stored(recipe: Recipe, run: Run) -> bool:
    """Tells whether all features that a recipe needs are in the run's folder."""
    return all((feature_folder(run) / split / "features.json").is_file() for split in _splits(recipe))


def count_images(recipe: Recipe) -> int:
    """Counts the images whose features a recipe stores."""
    return sum(len(open_recipe_data(recipe, split)) for split in _splits(recipe))


def sample_features(recipe: Recipe, origin: Origin | None, data: DataSet) -> SampleFeatures:
    """Makes, of the first image, what stands for the features that will be stored.

    Args:
        recipe: The recipe that trains on them.
        origin: The network whose features they are, trained or not.
        data: Its training images.
    Raises:
        KerassegError: If there is no such network, or its layer cannot be stored.
    """
    return SampleFeatures(_extractor(recipe, origin, data), data)


def check_stored(recipe: Recipe, run: Run, origin: Origin | None) -> None:
    """Refuses what a run has stored, finished or not, if it is of another network than this.

    Raises:
        KerassegError: If that is so.
    """
    if origin is not None:
        _stores(recipe, run, origin)


def recorded_origin(recipe: Recipe, run: Run) -> Path | None:
    """Finds the network whose features a run has stored, finished or not, where that is still to be found.

    Args:
        recipe: The recipe; one that stores no features has none.
        run: Its run, begun or not.
    """
    for split in _splits(recipe) if recipe.features else ():
        origin = (read_header(feature_folder(run) / split, begun=True) or {}).get("origin")
        path = run.path / (origin or "")
        if origin and (path.is_file() or Run(path).exists):
            return path
    return None


def _named(run: Run, path: Path) -> str:
    """How a run keeps the path of its origin: one of the same whole relative to it, so that the whole may be moved."""
    path, whole = Path(path).resolve(), run.resume_path.resolve()
    return os.path.relpath(path, run.path.resolve()) if path.is_relative_to(whole) else str(path)


def store_for(recipe: Recipe, run: Run, path: Path | None, preemption: Preemption, report: Report) -> None:
    """Stores in a run's folder the features that its recipe trains on, as far as they are not there.

    Args:
        recipe: The recipe.
        run: Its run, begun or not.
        path: The trained network; `None` trusts what is there.
        preemption: What notes SIGTERM.
        report: Called with `stored`, `of` and `split`, the images done and in all.
    Raises:
        KerassegError: If they are not there and nobody says whose they are, or they are of another network.
        StoringPreempted: If the process was asked to end.
    """
    if path is None:
        if not is_stored(recipe, run):
            raise KerassegError(
                f"{run.path} trains on stored features, of which {feature_folder(run)} lacks some: pass --init with the run or "
                "model that they come from"
            )
        return
    for split, store in _stores(recipe, run, origin_of(path), _named(run, path)).items():
        store.fill(partial(_after, run, split, preemption, report))


def _after(run: Run, split: str, preemption: Preemption, report: Report, done: int, total: int) -> None:
    report({"stored": done, "of": total, "split": split})
    if preemption.requested:
        raise StoringPreempted(run, done, total)


def _stores(recipe: Recipe, run: Run, origin: Origin, path: str | None = None) -> dict[str, FeatureStore]:
    """All of them before any is filled: what is wrong with the last shows first."""
    data = {split: open_recipe_data(recipe, split) for split in _splits(recipe)}
    extractor = _extractor(recipe, origin, data[recipe.split])
    return {split: FeatureStore(extractor, part, feature_folder(run) / split, path) for split, part in data.items()}


def _extractor(recipe: Recipe, origin: Origin | None, data: DataSet) -> FeatureExtractor:
    if origin is None:
        raise KerassegError(
            f"{recipe.name} trains on features of layer '{recipe.features}': pass --init with the run or model whose layer it is"
        )
    check_one_map(data)
    return FeatureExtractor(origin(data.labels.num_classes), recipe.features, recipe.pad_size, recipe.image_scale)


def _splits(recipe: Recipe) -> list[str]:
    """Those to store; that of the validation also where none is done while training, for the evaluation afterwards."""
    return list(dict.fromkeys(filter(None, [recipe.split, recipe.validation_split])))
