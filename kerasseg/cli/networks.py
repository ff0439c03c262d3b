"""What the commands share that build a network by its name."""

import argparse
from collections.abc import Iterable
from typing import Any

from kerasseg.errors import KerassegError


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
