"""Options of several numbers, and of files."""

import math
import os

from kerasseg.errors import KerassegError

_MOST = 1000


def parse_values(text: str, option: str, example: str) -> tuple[float, ...]:
    """Reads ascending numbers: `1,2,4` or, as MATLAB, `first:last` in steps of 1, or `first:step:last`.

    Args:
        text: What was received.
        option: Whose value it is, for the message.
        example: What the message suggests.
    Raises:
        KerassegError: If it is neither, they do not ascend, or there are more than 1000.
    """
    try:
        if ":" in text:
            first, *step, last = (float(part) for part in text.split(":"))
            (step,) = step or (1.0,)
            # The last is meant to be one of them, whatever rounding says.
            count = math.floor((last - first) / step + 1e-6) + 1
            values = tuple(round(first + index * step, 9) for index in range(count if count <= _MOST else 0))
        else:
            values = tuple(float(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        values = ()
    if not values or len(values) > _MOST or not all(map(math.isfinite, values)) or list(values) != sorted(set(values)):
        raise KerassegError(f"{option} {text}: expected up to {_MOST} ascending numbers, such as {example}")
    return values


def check_json(path: str | None, name: str) -> None:
    """Refuses, before any work, a --json that is a folder.

    Args:
        path: The file, or `None`.
        name: What to call a file in that folder.
    Raises:
        KerassegError: If it is one.
    """
    if path is not None and os.path.isdir(path):
        raise KerassegError(f"--json {path}: expected a file, received a folder: pass --json {path}/{name}")
