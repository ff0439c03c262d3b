"""Mistakes that a user can cause and mend, warnings of what is likely one, and the line of an error that tells something."""

import re

_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class KerassegError(ValueError):
    """A mistake told in one line: what was received, what was expected, the corrected call.

    The command lines print its message without a traceback and end with exit code 2. In Python it is an ordinary
    `ValueError`.
    """


class UnknownNameError(KerassegError, KeyError):
    """A name that a table does not hold."""

    # KeyError would print the repr of the message, quotes and all.
    __str__ = ValueError.__str__


class DegenerateRateWarning(UserWarning):
    """A map so small that every atrous rate applied to it reaches nothing but padding."""


def first_line(error: BaseException, *, length: int = 200) -> str:
    """The first line of an error's message that says something: what libraries put around it is for developers.

    Args:
        error: Of Keras, TensorFlow, or another library; its message may go on for pages.
        length: Characters that are kept.
    Returns:
        The line, without colours; the error's type where it has none.
    """
    lines = (line.strip() for line in _COLOURS.sub("", str(error)).splitlines())
    telling = (line for line in lines if line and not line.startswith("Exception encountered when calling"))
    return next(telling, type(error).__name__)[:length]
