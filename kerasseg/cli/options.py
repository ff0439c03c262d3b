"""Command-line options derived from the recipe's fields, and a recipe from the options."""

import argparse
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

from kerasseg.crf import PARAMETERS
from kerasseg.errors import KerassegError
from kerasseg.recipes import RECIPES, Recipe, Stage
from kerasseg.tables import did_you_mean, import_lazily

# Set by --recipe, or only told.
_NOT_OPTIONS = ("name", "stages", "paper", "expected", "command")
# Where the data lie and where it trains: of the whole recipe, also where the command line names a stage.
_OF_ALL_STAGES = ("data_dir", "cache", "strategy", "replicas", "join_timeout")
# The smaller side of the built-in images, in pixels.
_SHAPES_HEIGHT = 96
# What photographs go through: not of a stage that trains on stored features, unless the command line names it.
_OF_PHOTOGRAPHS = (
    "resize", "random_scale", "random_scale_step", "color_jitter", "jitter", "margin", "crop_size", "flip", "label_offset",
    "label_margin", "training_arguments", "examples", "boxes",
)  # fmt: skip
# What `train.py --arch X` means where no recipe is named.
_DEFAULT_RECIPE = "shapes"


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each field of `Recipe`; one that is not given keeps the recipe's value."""
    group = parser.add_argument_group("recipe", "every field of the recipe; what is not given stays as the recipe has it")
    hints = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name in _NOT_OPTIONS:
            continue
        option = "--" + field.name.replace("_", "-")
        help_text = field.metadata["help"].replace("%", "%%")
        hint = hints[field.name]
        arguments = {"dest": field.name, "default": argparse.SUPPRESS, "help": help_text}
        if hint is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **arguments)
        elif hint in _ENTRY_READERS:
            group.add_argument(option, nargs="+", type=_entry_or_none(_ENTRY_READERS[hint]), metavar="NAME=VALUE", **arguments)
        else:
            group.add_argument(option, type=_parser_of(hint), metavar=option[2:].upper(), **arguments)


def _entry_or_none(read):
    """Reads one entry of a mapping, or `none`, which empties it."""

    def parse(text: str):
        return None if text.lower() == "none" else read(text)

    return parse


def _parser_of(hint):
    """Gives the function that reads an option of this type; None in a union is what `none` stands for."""
    members = [m for m in typing.get_args(hint) if m is not types.NoneType] if "|" in str(hint) else [hint]
    (member,) = members
    optional = len(members) != len(typing.get_args(hint) or members)
    read = _READERS.get(member, member)

    def parse(text: str):
        return None if optional and text.lower() == "none" else read(text)

    parse.__name__ = getattr(read, "__name__", "value")
    return parse


def parse_size(text: str) -> tuple[int, int]:
    """Reads `HxW`, or one number for a square, in pixels."""
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"received '{text}', expected HEIGHTxWIDTH in pixels, such as 321x321")
    return int(parts[0]), int(parts[-1])


def parse_number(text: str) -> float:
    """Reads a number; infinity is none."""
    return parse_range(text, count=1, expected="a number, such as 0.5")[0]


def parse_range(
    text: str, *, count: int | None = None, expected: str = "numbers between commas, such as 0.5,2"
) -> tuple[float, ...]:
    """Reads numbers between commas, so many or any number of them."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)) or count not in (None, len(numbers)):
        raise argparse.ArgumentTypeError(f"received '{text}', expected {expected}")
    return numbers


def parse_pair(text: str) -> tuple[float, float]:
    """Reads two numbers with a comma between them."""
    return parse_range(text, count=2, expected="two numbers, such as 0.5,2")


def parse_assignment(text: str) -> tuple[str, object]:
    """Reads `name=value`; the value as JSON where it is JSON, else as text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"received '{text}', expected NAME=VALUE, such as padding=same")
    try:
        return name, json.loads(value, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def _refuse_constant(text: str):
    # Python's JSON knows NaN and Infinity.
    raise argparse.ArgumentTypeError(f"received {text}, expected a finite number")


def parse_multiplier(text: str) -> tuple[str, tuple[float, float]]:
    """Reads `pattern=rate,decay`."""
    pattern, sign, value = text.rpartition("=")
    numbers = parse_range(value) if sign else ()
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"received '{text}', expected PATTERN=RATE,DECAY, such as .*/bias=2,0")
    return pattern, numbers


def parse_factor(text: str) -> tuple[str, float]:
    """Reads `name=number`."""
    name, sign, value = text.rpartition("=")
    numbers = parse_range(value) if sign else ()
    if len(numbers) != 1:
        raise argparse.ArgumentTypeError(f"received '{text}', expected NAME=NUMBER, such as semantic=1")
    return name, numbers[0]


def parse_names(text: str) -> tuple[str, ...]:
    """Reads names between commas; nothing is no name."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


# How an option of each type is read; a mapping comes entry by entry.
_READERS = {
    float: parse_number,
    tuple[int, int]: parse_size,
    tuple[float, float]: parse_pair,
    tuple[float, ...]: parse_range,
    tuple[str, ...]: parse_names,
}
_ENTRY_READERS = {
    Mapping[str, Any]: parse_assignment,
    Mapping[str, float]: parse_factor,
    Mapping[str, tuple[float, float]]: parse_multiplier,
}
_MAPPINGS = tuple(name for name, hint in typing.get_type_hints(Recipe).items() if hint in _ENTRY_READERS)


def resolve_recipe(options: argparse.Namespace) -> Recipe:
    """Makes the recipe that a command line describes: the named one, or the default one, with the options on top.

    Args:
        options: What `add_recipe_options` parsed, and `recipe`.
    Raises:
        KerassegError: If the recipe is unknown.
    """
    base = RECIPES[options.recipe or _DEFAULT_RECIPE]
    return with_options(base if options.recipe else _adapt_default(base, _given(options)), options)


def with_options(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """Changes the fields of a recipe that the command line names.

    Mappings are merged, the command line's entries first: of several multipliers that match, the first counts; `none` empties one.
    Paths become absolute, so that the run can be used from another folder. In a recipe with stages, the options hold in each of
    them, or in the one that `--stage` names; where the data lie and where it trains is always that of all, and what only
    photographs go through reaches a stage that trains on features by its name alone. Of `--data-arguments` each stage gets those
    that its data set takes. `--strategy one` alone takes the recipe's replicas away: one device has none.

    Args:
        recipe: The recipe.
        options: What `add_recipe_options` parsed, and `stage`.
    Raises:
        KerassegError: If there is no such stage, an option would make its stages one and the same, or no data set takes one of
            `data_arguments`.
    """
    given, chosen = _given(options), getattr(options, "stage", None)
    for name in ("data_dir", "weights", "boxes", "cache"):
        if given.get(name) and given[name] not in ("imagenet", "memory"):
            given[name] = _absolute(given[name])
    if given.get("data_arguments"):
        # Others do without the data sets, which take a moment to import.
        arguments = import_lazily("kerasseg.cli.data_arguments")
        given["data_arguments"] = arguments.with_absolute_places(recipe, given, _absolute)
    if given.get("strategy") == "one":
        given.setdefault("replicas", None)
    if chosen and not recipe.stages:
        raise KerassegError(f"recipe {recipe.name} has no stages, received --stage {chosen}: omit it")
    if not recipe.stages:
        return recipe.override(**_merged(recipe, given))
    _check_contradictions(recipe, given)
    if not chosen:
        changed = _changed_in_all(recipe, given)
        return arguments.fitted_to_data(changed, given["data_arguments"]) if given.get("data_arguments") else changed
    recipe.stage(chosen)
    recipe = _changed_in_all(recipe, {name: value for name, value in given.items() if name in _OF_ALL_STAGES})
    own = {name: value for name, value in given.items() if name not in _OF_ALL_STAGES}
    return recipe.override(stages=tuple(_changed(recipe, each, own) if each.name == chosen else each for each in recipe.stages))


def _absolute(text: str) -> str:
    """Paths that hold in another folder, too; a union's data may lie in several, between commas."""
    parts = [text] if os.path.exists(text) else text.split(",")
    # A shell leaves `~` alone behind `name=`.
    return ",".join(part if "://" in part else os.path.abspath(os.path.expanduser(part)) for part in parts)


def _merged(recipe: Recipe, given: Mapping) -> dict:
    """What was given, the recipe's own entries after those of each mapping; a mapping that was emptied has none."""
    if given.get("data", recipe.data) != recipe.data:
        # The recipe's arguments are of its own data.
        recipe, given = recipe.override(data_arguments={}), {"data_arguments": {}, **given}
    named = [name for name in _MAPPINGS if given.get(name)]
    rest = {name: {k: v for k, v in getattr(recipe, name).items() if k not in given[name]} for name in named}
    return {name: {**value, **rest[name]} if name in rest else value for name, value in given.items()}


def _changed_in_all(recipe: Recipe, given: Mapping) -> Recipe:
    """The recipe, and those of its stages that set a field otherwise."""
    return recipe.override(**_merged(recipe, given), stages=tuple(_followed(recipe, stage, given) for stage in recipe.stages))


def _followed(recipe: Recipe, stage: Stage, given: Mapping) -> Stage:
    before = recipe.stage(stage.name)
    kept = {name: getattr(before, name) for name in _OF_PHOTOGRAPHS if name in given} if before.features else {}
    changed = _changed(recipe, stage, {name: value for name, value in given.items() if name in stage.changes and name not in kept})
    return dataclasses.replace(changed, changes={**changed.changes, **kept})


def _changed(recipe: Recipe, stage: Stage, given: Mapping) -> Stage:
    return dataclasses.replace(stage, changes={**stage.changes, **_merged(recipe.stage(stage.name), given)})


def _check_contradictions(recipe: Recipe, given: Mapping) -> None:
    if "arch" in given and any("arch" in stage.changes for stage in recipe.stages):
        networks = ", ".join(f"{stage.name} ({recipe.stage(stage.name).arch})" for stage in recipe.stages)
        raise KerassegError(
            f"--arch {given['arch']} contradicts recipe {recipe.name}, whose stages are {networks}: omit it, or name another recipe"
        )


def _given(options: argparse.Namespace) -> dict:
    fields = [f.name for f in dataclasses.fields(Recipe) if f.name not in _NOT_OPTIONS]
    given = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    for name in _MAPPINGS:
        if None in given.get(name, ()) and len(given[name]) > 1:
            raise KerassegError(f"--{name.replace('_', '-')} none empties it: omit the other entries, or none")
    return {name: dict(filter(None, value)) if name in _MAPPINGS else value for name, value in given.items()}


def _adapt_default(base: Recipe, given: Mapping) -> Recipe:
    """Fits the default recipe to what was asked for: other data has other sizes, ImageNet weights want their own input."""
    changes = {"name": given.get("arch", base.arch), "command": None}
    if given.get("data", base.data) != base.data:
        # Photographs of any size, several to a batch; the maps of a network are small, and padded to the largest of the batch.
        crop_size = None if given["data"] == "features" else (320, 320)
        changes |= {"crop_size": crop_size, "validation_images": None, "validate_every": None}
    if given.get("weights") == "imagenet":
        changes |= {"width_multiplier": 1.0, "learning_rate": 1e-4, "arguments": {}}
    return base.override(**changes)


def offered_arguments(recipe: Recipe) -> Recipe:
    """Adds, where no recipe was named, what makes a network practical for a short run, as far as it is offered. Imports TensorFlow.

    FCN's border is left out. Moving statistics forget within tens of steps, not thousands as DeepLab v3's. Where a network needs
    larger images than the built-in ones, these are enlarged, and cut to a size that it takes.
    """
    from kerasseg.backbones.building import accepts
    from kerasseg.models import MODELS

    practical = {"padding": "same", "batch_norm_momentum": 0.9}
    offered = {name: value for name, value in practical.items() if accepts(MODELS[recipe.arch], name)}
    smallest = getattr(MODELS[recipe.arch], "minimum_size", 1)
    sizes = {}
    if smallest > _SHAPES_HEIGHT and (recipe.data, recipe.image_scale, recipe.crop_size) == ("shapes", 1.0, None):
        sizes = {"image_scale": math.ceil(100 * smallest / _SHAPES_HEIGHT) / 100, "crop_size": (smallest, smallest)}
    return recipe.override(arguments={**offered, **recipe.arguments}, **sizes)


def fitted_arguments(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """Leaves out, of the arguments that a command line gives to all stages, those that a stage's network lacks. Imports TensorFlow.

    Args:
        recipe: What `with_options` gave.
        options: What was parsed.
    Raises:
        KerassegError: If no stage's network has one of them.
    """
    from kerasseg.backbones.building import accepts
    from kerasseg.models import MODELS

    given = {name: value for name, value in _given(options).items() if name in ("arguments", "training_arguments")}
    if not recipe.stages or options.stage:
        return recipe
    runs = {stage.name: recipe.stage(stage.name) for stage in recipe.stages}
    for name in {name: None for values in given.values() for name in values}:
        if not any(accepts(MODELS[run.arch], name) for run in runs.values()):
            networks = ", ".join(dict.fromkeys(run.arch for run in runs.values()))
            raise KerassegError(f"no network of recipe {recipe.name} ({networks}) has an argument '{name}': omit it or correct it")
    stages = []
    for stage in recipe.stages:
        run, fitting = runs[stage.name], {}
        for field, values in given.items():
            lacks = {name for name in values if not accepts(MODELS[run.arch], name)}
            if lacks:
                fitting[field] = {name: value for name, value in getattr(run, field).items() if name not in lacks}
        stages.append(dataclasses.replace(stage, changes={**stage.changes, **fitting}))
    return recipe.override(stages=tuple(stages))


def check_names(recipe: Recipe) -> None:
    """Refuses unknown names and impossible numbers at once, in every stage, before TensorFlow is imported.

    Raises:
        KerassegError: If there is no such network or CRF, a number is out of range, or no CRF-RNN takes the arguments of one.
    """
    from kerasseg.models import MODELS

    runs = [recipe.stage(stage.name) for stage in recipe.stages] or [recipe]
    _check_crf_rnn(runs)
    for one in runs:
        if one.arch not in MODELS:
            MODELS[one.arch]
        # Names alone: a run may be moved to where a file is not, and parameters are searched behind a trained network.
        if one.crf is not None and one.crf not in PARAMETERS:
            hint = did_you_mean(one.crf, PARAMETERS)
            raise KerassegError(f"--crf '{one.crf}': no such parameters; {hint} (files are for evaluate.py --crf)")
        for names, (fits, expected) in _RANGES.items():
            for name in names.split():
                value = getattr(one, name)
                if value is not None and not fits(value):
                    raise KerassegError(f"--{name.replace('_', '-')} {value}: expected {expected}")
        if one.warmup_steps >= one.iterations:
            raise KerassegError(f"--warmup-steps {one.warmup_steps}: expected fewer than --iterations {one.iterations}")


def _check_crf_rnn(runs: list[Recipe]) -> None:
    """Refuses arguments that no CRF-RNN takes; where some stage has one, those of all stages may name them."""
    taken = {name for one in runs if one.crf_rnn for name in one.crf_rnn_arguments}
    for one in runs:
        idle = [name for name in one.crf_rnn_arguments if name not in taken]
        if idle and not one.crf_rnn:
            advice = "has its own, give it --arguments" if one.arch == "crf_rnn" else "has no CRF-RNN, pass --crf-rnn with them"
            raise KerassegError(f"--crf-rnn-arguments {', '.join(idle)}: {one.name} {advice}, or omit them")


def _not_negative(values) -> bool:
    return all(0 <= value < math.inf for value in values)


# Fields → what their numbers must be, and how that is said.
_RANGES = {
    "batch_size iterations accumulation checkpoint_every keep_checkpoints steps_per_call join_timeout": (
        lambda value: value >= 1,
        "at least 1",
    ),
    "replicas validate_every validation_images step_size": (lambda value: value >= 1, "at least 1, or none"),
    "seed": (lambda value: 0 <= value < 2**32, f"0 to {2**32 - 1}"),
    "loss_sampling hard_pixel_share": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    "loss_sampling_cell": (lambda value: 1 <= value <= 10_000, "1 to 10000 pixels"),
    "image_scale width_multiplier gamma": (lambda value: 0 < value < math.inf, "a number above 0"),
    "random_scale": (lambda value: 0 < value[0] <= value[1] < math.inf, "two numbers, 0 < smallest <= largest"),
    "clip_norm random_scale_step": (lambda value: 0 < value < math.inf, "a number above 0, or none"),
    "learning_rate warmup_rate weight_decay power": (lambda value: 0 <= value < math.inf, "a number that is not negative"),
    "color_jitter": (lambda value: 0 <= value <= 1, "0 to 1"),
    "warmup_steps label_offset": (lambda value: value >= 0, "0 or more"),
    "jitter margin label_margin": (lambda value: 0 <= value <= 10_000, "0 to 10000 pixels"),
    "foreground background": (lambda value: value in ("keep", "mask"), "keep or mask"),
    "momentum": (lambda value: 0 <= value < 1, "0 or more, less than 1"),
    "class_weights": (_not_negative, "numbers that are not negative, or none"),
    "loss_weights": (lambda value: _not_negative(value.values()), "factors that are not negative"),
    "multipliers": (lambda value: all(map(_not_negative, value.values())), "factors that are not negative"),
}
