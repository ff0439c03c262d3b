"""What the commands share that build a network by its name."""

import argparse
import math
import os
from collections.abc import Iterable
from typing import Any

from kerasseg.cli.opening import open_run_or_model
from kerasseg.cli.options import parse_assignment, parse_size
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS

# What builds a network and means nothing for one that is built.
_NAMED = ("width_multiplier", "backbone", "output_stride")
_BUILDING = ("num_classes", *_NAMED, "arguments")
WHOLE, UNKNOWN = "image", "?"
"""Instead of a size in pixels: all that there are; it cannot be told."""


def builder_arguments(options: argparse.Namespace, named: Iterable[str]) -> dict[str, Any]:
    """Collects the arguments of a network's builder: those of `--arguments`, and those that have options of their own.

    Args:
        options: With `arguments`, a list of name and value or `None`, and the named ones, `None` where they were not given.
        named: Arguments that have options of their own.
    Raises:
        KerassegError: If one is given twice.
    """
    entries = list(options.arguments or ())
    entries += [(name, getattr(options, name)) for name in named if getattr(options, name) is not None]
    arguments = {}
    for name, value in entries:
        if name in arguments:
            raise KerassegError(f"received {name}={arguments[name]} and {name}={value}: pass it once, e.g. {_example(name, named)}")
        arguments[name] = value
    return arguments


def _example(name: str, named: Iterable[str]) -> str:
    return f"by --{name.replace('_', '-')} alone" if name in named else f"--arguments {name}=VALUE"


def add_network_options(made: argparse.ArgumentParser) -> None:
    """Adds the options of a command about a network for images of one size, by its name or from a file."""
    made.add_argument("model", metavar="ARCH|RUN_OR_MODEL", help="network by its --arch name, run directory, or .keras file")
    made.add_argument("--input-size", type=parse_size, default=(513, 513), help="HEIGHTxWIDTH of the image")
    made.add_argument("--num-classes", type=int, default=None, help="classes of an ARCH (default: 21)")
    made.add_argument("--width-multiplier", type=float, default=None, help="factor for every width of an ARCH (default: 1)")
    made.add_argument("--backbone", default=None, help="trunk of an ARCH (default: its own)")
    made.add_argument(
        "--output-stride", type=int, default=None, help="image pixels per feature pixel of an ARCH (default: its own)"
    )
    made.add_argument(
        "--arguments", nargs="+", type=parse_assignment, default=None, metavar="NAME=VALUE", help="further arguments of an ARCH"
    )


def saved_network(options):
    """Opens the network that the options name, if it is one that is built.

    Args:
        options: What `add_network_options` parsed.
    Returns:
        The network, or `None` if `built_network` makes it.
    Raises:
        KerassegError: If there is neither such a network nor such a file, or the options do not fit it.
    """
    if options.model in MODELS:
        _check_building(options)
        return None
    if not os.path.exists(options.model):
        MODELS[options.model]
    _refuse_building(options)
    return open_run_or_model(options.model).model


def _refuse_building(options) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _BUILDING if getattr(options, name) is not None]
    if given:
        raise KerassegError(
            f"{given[0]} is for a network by name, and {options.model} is one that is built: omit it, or name an arch, e.g. fcn8s"
        )


def _check_building(options) -> None:
    classes, width = options.num_classes, options.width_multiplier
    if (classes is not None and classes < 1) or (width is not None and not 0 < width < math.inf):
        raise KerassegError(f"--num-classes {classes} --width-multiplier {width}: expected both above 0")


def built_network(options):
    """Builds the network that the options name, for images of any size, so that it is the same graph as in a file.

    Args:
        options: What `add_network_options` parsed.
    Raises:
        KerassegError: If it takes no images of that size, or cannot be built.
    """
    from kerasseg.recipes.building import call_builder

    builder, size = MODELS[options.model], options.input_size
    if min(size) < builder.minimum_size or any(side % builder.divisor for side in size):
        multiples = f", multiples of {builder.divisor}" if builder.divisor > 1 else ""
        raise KerassegError(
            f"--input-size {size[0]}x{size[1]}: {options.model} takes sizes from {builder.minimum_size} pixels{multiples}"
        )
    arguments = builder_arguments(options, _NAMED)
    # None are loaded.
    arguments.pop("weights", None)
    return call_builder(options.model, 21 if options.num_classes is None else options.num_classes, arguments)


def shown_pair(pair) -> str:
    """Height and width to be read: one number where both are the same."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def shown_field(field) -> str:
    """A receptive field as a cell of a table."""
    return field if isinstance(field, str) else WHOLE if None in field else shown_pair(field)


def seen_pixels(field) -> str:
    """A receptive field as part of a sentence; `None` is one that cannot be told."""
    return UNKNOWN if field is None else "the whole image" if None in field else f"{shown_pair(field)} pixels"
