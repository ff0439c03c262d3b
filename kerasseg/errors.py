"""The one exception for mistakes that a user can cause and mend, and the warnings for what is likely one."""


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
