"""What a data set takes beside folder and split, and whether a value is of the type that it says."""

import inspect
import numbers
import os
import reprlib
import types
import typing
from typing import Any

from kerasseg.errors import KerassegError

_UNIONS = (types.UnionType, typing.Union)
_SPOKEN = {
    str: "text",
    os.PathLike: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    types.NoneType: "none",
}


def options_of(data_set: type) -> dict[str, Any]:
    """Gives the options of a data set.

    Args:
        data_set: Its class.
    Returns:
        Name → type, as its signature has them, without folder and split.
    """
    parameters = inspect.signature(data_set).parameters.values()
    types_of = {each.name: Any if each.annotation is each.empty else each.annotation for each in parameters}
    return {name: hint for name, hint in types_of.items() if name not in ("data_dir", "split")}


def check_value(name: str, option: str, value, hint) -> None:
    """Refuses a value that is not of an option's type.

    Args:
        name: Of the data set.
        option: Of the option.
        value: What was given.
        hint: The type, as a signature has it.
    Raises:
        KerassegError: If it is not.
    """
    if not _fits(value, hint):
        shown = reprlib.repr(value).replace("\n", " ")
        raise KerassegError(f"data set '{name}' received {option}={shown}: expected {_spoken(hint)}")


def _fits(value, hint) -> bool:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return any(_fits(value, member) for member in members)
    if isinstance(origin, type):
        # Text would be a sequence of its letters.
        return isinstance(value, origin) and not isinstance(value, (str, bytes)) and all(_fits(each, members[0]) for each in value)
    if hint in (int, float):
        # Python takes true for 1.
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    # What a type is not known of may be anything; a remote path is none of `os`.
    unknown = hint is Any or not isinstance(hint, type)
    return unknown or isinstance(value, hint) or (hint is os.PathLike and hasattr(value, "url"))


def _spoken(hint) -> str:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(map(_spoken, members))
    return f"a list of which each is {_spoken(members[0])}" if members else _SPOKEN.get(hint, str(hint))
