"""From a recipe to the things it names: the network, the data, the transforms."""

import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import keras

from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import accepts
from kerasseg.backbones.quantizing import with_simulated_int8
from kerasseg.data import DATA_SETS, Bootstrapped, Cached, DataSet, Subset, hide_cues, open_data, read_boxes, without_broken
from kerasseg.data.class_counts import check_one_map
from kerasseg.data.transforms import (
    ColorJitter,
    Flip,
    Jitter,
    LossSampling,
    PadTo,
    RandomCrop,
    RandomScale,
    ReflectionMargin,
    Resize,
)
from kerasseg.errors import KerassegError, first_line
from kerasseg.layers import Preprocessing
from kerasseg.models import MODELS
from kerasseg.models.crf_rnn import with_crf_rnn
from kerasseg.recipes.base import Recipe
from kerasseg.recipes.remembered import remembered
from kerasseg.tables import did_you_mean, import_lazily

EXAMPLES = ("images", "objects", "proposals")
"""What a recipe may cut out of its images."""


def build_network(recipe: Recipe, num_classes, *, initial_weights: bool = True) -> keras.Model:
    """Builds the network of a recipe.

    Args:
        recipe: The recipe.
        num_classes: Number of classes, or head name → number.
        initial_weights: Whether to load the recipe's first weights.
    Raises:
        KerassegError: If the network is unknown or does not take one of the arguments.
    """
    arguments = recipe.network_arguments()
    if not initial_weights:
        arguments["weights"] = None
    model = call_builder(recipe.arch, num_classes, arguments)
    if recipe.crf_rnn:
        model = _with_crf_rnn(model, recipe.crf_rnn_arguments)
    return model


def training_network(recipe: Recipe, num_classes, *, initial_weights: bool = True) -> keras.Model:
    """Builds the network of a recipe in the form that trains: with its `training_arguments`, and `quantization_aware`.

    Args:
        recipe: The recipe.
        num_classes: Number of classes, or head name → number.
        initial_weights: Whether to load the recipe's first weights.
    Raises:
        KerassegError: As `build_network`, or if a layer has no simulated int8 form.
    """
    model = build_network(recipe.as_trained(), num_classes, initial_weights=initial_weights)
    return with_simulated_int8(model) if recipe.quantization_aware else model


def _with_crf_rnn(model: keras.Model, arguments: Mapping[str, Any]) -> keras.Model:
    for name in arguments:
        if not accepts(with_crf_rnn, name):
            known = [p.name for p in inspect.signature(with_crf_rnn).parameters.values() if p.kind is p.KEYWORD_ONLY]
            raise KerassegError(f"crf_rnn_arguments: with_crf_rnn has no argument '{name}': {did_you_mean(name, known)}")
    return with_crf_rnn(model, **arguments)


def call_builder(arch: str, num_classes: int | Mapping[str, int], arguments: Mapping[str, Any]) -> keras.Model:
    """Builds a network by its name.

    Args:
        arch: Key of `MODELS`.
        num_classes: Number of classes, or head name → number.
        arguments: Of the builder, by their names.
    Raises:
        KerassegError: If the network is unknown, does not take one of the arguments, or cannot be built with them.
    """
    builder = MODELS[arch]
    parameters = inspect.signature(builder).parameters
    for name in arguments:
        if not accepts(builder, name):
            known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
            raise KerassegError(f"{arch} has no argument '{name}': {did_you_mean(name, known)}")
    if isinstance(num_classes, Mapping) and parameters["num_classes"].annotation is int:
        raise KerassegError(
            f"{arch} has one head, received classes for {', '.join(num_classes)}: pass one number, e.g. {max(num_classes.values())}"
            f"; of data with several label maps --data-arguments head={next(iter(num_classes))} is one"
        )
    try:
        return builder(num_classes, **arguments)
    except KerassegError:
        raise
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in {"num_classes": num_classes, **arguments}.items())
        raise KerassegError(f"{arch} cannot be built with {shown}: {first_line(error)}") from error


def open_recipe_data(recipe: Recipe, split: str | None, notice: Callable[[str], None] | None = None) -> DataSet:
    """Opens one part of a recipe's data set, its images as the recipe hides parts of them.

    Args:
        recipe: The recipe.
        split: The part.
        notice: Called with a line of how many images come from which, where the data are a union.
    Raises:
        KerassegError: If the data set has no loader, its folder is missing or wrong, or nothing can be hidden in it.
    """
    return _prepared(recipe, _opened(recipe, split, notice))


def _opened(recipe: Recipe, split: str | None, notice: Callable[[str], None] | None = None) -> DataSet:
    for name in recipe.data.split("+"):
        if name not in DATA_SETS:
            raise KerassegError(f"data set '{name}' of recipe {recipe.name} has no loader: {did_you_mean(name, DATA_SETS)}")
    data = open_data(recipe.data, recipe.data_dir, split, **recipe.data_arguments)
    counts = getattr(data, "counts", None)
    if counts and notice:
        notice(f"{' + '.join(f'{name} {count}' for name, count in counts.items())} = {len(data)} images")
    return data


def _prepared(recipe: Recipe, data: DataSet) -> DataSet:
    """What is kept is kept as it was decoded: runs that hide other parts share it."""
    if recipe.cache:
        data = Cached(data, recipe.cache)
    return hide_cues(data, recipe.foreground, recipe.background)


def open_training_data(
    recipe: Recipe,
    report: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
    checked: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Opens what a recipe trains on: its split, with the images of its `bootstrap_classes` twice, or its `examples` cut out of it.

    Args:
        recipe: The recipe.
        report: Called while the labels are searched for those classes or for objects, with the number read and of all.
        notice: Called with each line that a person should see: where the images come from, and which are left out as broken.
        checked: As `report`, while files are checked for `skip_broken`: once in a process, as long as none changes.
    Raises:
        KerassegError: As `open_recipe_data`, or if a class is unknown or nowhere to be found, the boxes cannot be used, or every
            image is broken.
    """
    if recipe.examples not in EXAMPLES:
        raise KerassegError(f"examples='{recipe.examples}' of recipe {recipe.name}: {did_you_mean(recipe.examples, EXAMPLES)}")
    # With objects they are allowed: options hold in every stage.
    if recipe.boxes and recipe.examples == "images":
        raise KerassegError(f"boxes='{recipe.boxes}' with examples='{recipe.examples}': boxes need --examples proposals")
    # Before anything is read of the images: a file that is missing shows at once.
    boxes = read_boxes(recipe.boxes) if recipe.boxes else None
    data = _opened(recipe, recipe.split, notice)
    if recipe.examples != "images":
        check_one_map(data)
    if recipe.skip_broken:
        data = _without_broken(recipe, data, checked, notice)
    data = _prepared(recipe, data)
    if recipe.bootstrap_classes:
        data = Bootstrapped(data, recipe.bootstrap_classes, report)
    if recipe.examples == "images":
        return data
    # scipy is imported for these alone.
    crops = import_lazily("kerasseg.data.object_crops")
    if recipe.examples == "objects":
        return crops.ObjectCrops(data, report=report)
    return crops.ProposalCrops(data, boxes, where=f"'{recipe.boxes}'", report=report)


def _without_broken(recipe: Recipe, data: DataSet, report, notice) -> DataSet:
    """Leaves out what cannot be trained on, and says of each why."""

    def check():
        left, broken = without_broken(data, report)
        return broken and left.indices, broken

    indices, broken = remembered("broken", recipe, data, check, as_opened=True)
    left = Subset(data, indices) if broken else data
    if broken and notice:
        for one in broken:
            notice(f"left out '{one.id}': {one.reason}")
        notice(f"{len(broken)} of {len(data)} images are broken and left out")
    return left


def images_per_pass(recipe: Recipe) -> int:
    """Counts the images of a forward pass: `batch_size`, grown by 1/p where `loss_sampling` keeps a share p of the pixels.

    Raises:
        KerassegError: If the share is out of range or that is no whole number.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §4.4, "Patch sampling": the effective batch size stays.
    """
    if not 1e-6 <= recipe.loss_sampling <= 1:
        raise KerassegError(f"loss_sampling={recipe.loss_sampling}: expected above 0 to 1, e.g. 0.25; 1 keeps every pixel")
    share = Fraction(recipe.loss_sampling).limit_denominator(10**6)
    images = recipe.batch_size / share
    if images.denominator != 1:
        raise KerassegError(
            f"loss_sampling={recipe.loss_sampling:g} makes {float(images):g} images of batch_size={recipe.batch_size}, no whole "
            f"number: make batch_size a multiple of {share.numerator}, or loss_sampling 0.5, 0.25, 0.2, …"
        )
    return int(images)


def padding_color(recipe: Recipe, data: DataSet) -> tuple[float, ...]:
    """Finds the colour that is zero after the network's preprocessing, so that padded pixels excite nothing.

    Args:
        recipe: The recipe.
        data: Its data, whose mean counts where the network does not preprocess.
    Returns:
        One number a channel, of RGB 0–255; zeros where the data are stored features.
    """
    if not data.photographs:
        return data.mean
    defaults = {name: parameter.default for name, parameter in inspect.signature(MODELS[recipe.arch]).parameters.items()}
    spec = recipe.arguments.get("preprocessing", defaults["preprocessing"])
    if spec == "backbone":
        spec = BACKBONES[recipe.backbone or defaults["backbone"]].preprocessing
    if data.inputs is None:
        return _zero_color(spec, tuple(data.mean))
    found, place = (), 0
    for name, channels in data.inputs.items():
        own = spec.get(name) if isinstance(spec, Mapping) else None
        found, place = (*found, *_zero_color(own, tuple(data.mean[place : place + channels]))), place + channels
    return found


def _zero_color(spec, mean: tuple[float, ...]) -> tuple[float, ...]:
    """The colour that some preprocessing turns to zero; `mean` where there is none, or it is of another number of channels."""
    layer = None if spec is None else Preprocessing.of(spec)
    if layer is None or len(layer.mean) != len(mean):
        return mean
    # The layer's mean belongs to its output channels; output i is input order[i].
    return tuple(layer.mean[layer.order.index(channel)] for channel in range(len(mean)))


def recipe_transforms(recipe: Recipe, fill) -> tuple:
    """Lists a recipe's augmentation.

    Args:
        recipe: The recipe.
        fill: RGB colour for what an image does not cover.
    Returns:
        Transforms in the order in which they act.
    """
    transforms = []
    if recipe.resize:
        transforms.append(Resize(size=recipe.resize))
    if recipe.random_scale:
        low, high = recipe.random_scale
        step = recipe.random_scale_step and recipe.random_scale_step * recipe.image_scale
        transforms.append(RandomScale(low * recipe.image_scale, high * recipe.image_scale, step))
    elif recipe.image_scale != 1:
        transforms.append(Resize(recipe.image_scale))
    if recipe.color_jitter:
        # Before anything pads: that colour has to stay zero after preprocessing.
        transforms.append(ColorJitter(recipe.color_jitter))
    if recipe.jitter:
        transforms.append(Jitter(recipe.jitter, fill))
    if recipe.margin:
        transforms.append(ReflectionMargin(recipe.margin))
    if recipe.pad_size:
        transforms.append(PadTo(recipe.pad_size, fill))
    if recipe.crop_size:
        transforms.append(RandomCrop(recipe.crop_size, fill))
    if recipe.flip:
        # After the crop, as DeepLab's loaders do: padding is then on either side.
        transforms.append(Flip())
    if recipe.loss_sampling != 1:
        transforms.append(LossSampling(recipe.loss_sampling, recipe.loss_sampling_cell))
    return tuple(transforms)
