"""What the kinds of analysis share: their parsers, and the photographs that most of them are about."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.inference import check_out
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def add_kind(kinds, name: str, text: str) -> argparse.ArgumentParser:
    """Adds the parser of one kind of analysis, with the options that all share.

    Args:
        kinds: What `add_subparsers` made.
        name: Word of the command line.
        text: What it does, in a line.
    """
    made = kinds.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def add_network_and_image(made: argparse.ArgumentParser, name: str, *, several: bool = False) -> None:
    """Adds the arguments of a kind that runs a network on photographs and draws what it finds.

    Args:
        made: The kind's parser.
        name: Word of the command line; its picture is called so.
        several: Whether it takes more than one photograph.
    """
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    if several:
        made.add_argument("images", nargs="+", metavar="IMAGE", help="photographs")
    else:
        made.add_argument("image", metavar="IMAGE", help="photograph")
    made.add_argument("--out", required=True, help=f"folder for {name}.png")


def check_files(options) -> None:
    """Refuses photographs that are not there and an --out that can be no folder, before anything is opened.

    Raises:
        KerassegError: If there are such.
    """
    for image in [options.image] if hasattr(options, "image") else options.images:
        if not Path(image).is_file():
            raise KerassegError(f"no such photograph: {image}")
    check_out(options.out)


def scale_of(opened) -> float:
    """The scale of photographs that a run trained at; 1 of a bare file."""
    return opened.recipe.image_scale if opened.recipe else 1.0


def parse_counts(option: str, text: str, *, smallest: int, example: str) -> list[int]:
    """Reads whole numbers separated by commas.

    Args:
        option: How the command line calls them.
        text: What it was given.
        smallest: The smallest number that means something.
        example: What would be right.
    Raises:
        KerassegError: If they are something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) >= smallest for part in parts):
        kind = "positive numbers" if smallest == 1 else f"whole numbers from {smallest}"
        raise KerassegError(f"{option} {text}: expected {kind}, such as {example}")
    return [int(part) for part in parts]


def class_number(name: str, names: Sequence[str]) -> int:
    """Finds a class.

    Args:
        name: What `--class` was given.
        names: Those of the network's classes.
    Raises:
        KerassegError: If it is none of them.
    """
    if name not in names:
        raise KerassegError(f"--class {name}: the network has no such class; {did_you_mean(name, names)}")
    return list(names).index(name)
