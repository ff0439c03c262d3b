"""Command-line options derived from the recipe's fields, and a recipe from the options."""

import argparse
import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping

from kerasseg.errors import KerassegError
from kerasseg.recipes import RECIPES, Recipe

# Set by --recipe, or only told.
_NOT_OPTIONS = ("name", "paper", "expected", "command")
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
        elif typing.get_origin(hint) is Mapping or "Mapping" in str(hint):
            parse = parse_multiplier if field.name == "multipliers" else parse_assignment
            group.add_argument(option, nargs="+", type=parse, metavar="NAME=VALUE", **arguments)
        else:
            group.add_argument(option, type=_parser_of(hint), metavar=option[2:].upper(), **arguments)


def _parser_of(hint):
    """Gives the function that reads an option of this type; None in a union is what `none` stands for."""
    members = [m for m in typing.get_args(hint) if m is not types.NoneType] if "|" in str(hint) else [hint]
    (member,) = members
    optional = len(members) != len(typing.get_args(hint) or members)
    readers = {tuple[int, int]: parse_size, tuple[float, float]: parse_pair, tuple[float, ...]: parse_range}
    read = readers.get(member, member)

    def parse(text: str):
        return None if optional and text.lower() == "none" else read(text)

    parse.__name__ = getattr(read, "__name__", "value")
    return parse


def parse_size(text: str) -> tuple[int, int]:
    """Reads `HxW`, or one number for a square, in pixels."""
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"received '{text}', expected HEIGHTxWIDTH in pixels, such as 321x321")
    return int(parts[0]), int(parts[-1])


def parse_range(text: str) -> tuple[float, ...]:
    """Reads numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"received '{text}', expected numbers between commas, such as 0.5,2") from error


def parse_pair(text: str) -> tuple[float, float]:
    """Reads two numbers with a comma between them."""
    numbers = parse_range(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"received '{text}', expected two numbers, such as 0.5,2")
    return numbers


def parse_assignment(text: str) -> tuple[str, object]:
    """Reads `name=value`; the value as JSON where it is JSON, else as text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"received '{text}', expected NAME=VALUE, such as padding=same")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def parse_multiplier(text: str) -> tuple[str, tuple[float, float]]:
    """Reads `pattern=rate,decay`."""
    pattern, sign, value = text.rpartition("=")
    numbers = parse_range(value) if sign else ()
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"received '{text}', expected PATTERN=RATE,DECAY, such as .*/bias=2,0")
    return pattern, numbers


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

    Mappings are merged, the command line's entries first: of several multipliers that match, the first counts. Paths become
    absolute, so that the run can be used from another folder.

    Args:
        recipe: The recipe.
        options: What `add_recipe_options` parsed.
    """
    given = _given(options)
    for name in ("arguments", "multipliers"):
        if name in given:
            given[name] = {**given[name], **{k: v for k, v in getattr(recipe, name).items() if k not in given[name]}}
    for name in ("data_dir", "weights"):
        if given.get(name) and given[name] != "imagenet" and "://" not in given[name]:
            given[name] = os.path.abspath(given[name])
    return recipe.override(**given)


def _given(options: argparse.Namespace) -> dict:
    fields = [f.name for f in dataclasses.fields(Recipe) if f.name not in _NOT_OPTIONS]
    given = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    return {name: dict(value) if name in ("arguments", "multipliers") else value for name, value in given.items()}


def _adapt_default(base: Recipe, given: Mapping) -> Recipe:
    """Fits the default recipe to what was asked for: other data has other sizes, ImageNet weights want their own input."""
    changes = {"name": given.get("arch", base.arch), "command": None}
    if given.get("data", base.data) != base.data:
        # Photographs of any size, several to a batch.
        changes |= {"crop_size": (320, 320), "validation_images": None, "validate_every": None}
    if given.get("weights") == "imagenet":
        changes |= {"width_multiplier": 1.0, "learning_rate": 1e-4, "arguments": {}}
    return base.override(**changes)


def offered_arguments(recipe: Recipe) -> Recipe:
    """Adds `padding="same"` where no recipe was named and the network offers it: the practical form. Imports TensorFlow."""
    from kerasseg.backbones.building import accepts
    from kerasseg.models import MODELS

    if accepts(MODELS[recipe.arch], "padding"):
        return recipe.override(arguments={"padding": "same", **recipe.arguments})
    return recipe


def check_names(recipe: Recipe) -> None:
    """Refuses unknown networks and impossible numbers at once, before TensorFlow is imported.

    Raises:
        KerassegError: If there is no such network, or a count is not positive.
    """
    from kerasseg.models import MODELS

    if recipe.arch not in MODELS:
        MODELS[recipe.arch]
    for name in ("batch_size", "iterations", "accumulation", "checkpoint_every", "keep_checkpoints"):
        if getattr(recipe, name) < 1:
            raise KerassegError(f"--{name.replace('_', '-')} {getattr(recipe, name)}: expected at least 1")
    if not 0 <= recipe.seed < 2**32:
        raise KerassegError(f"--seed {recipe.seed}: expected 0 to {2**32 - 1}")
    for name in ("replicas", "validate_every", "validation_images", "step_size"):
        if getattr(recipe, name) is not None and getattr(recipe, name) < 1:
            raise KerassegError(f"--{name.replace('_', '-')} {getattr(recipe, name)}: expected at least 1, or none")
