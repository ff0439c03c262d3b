"""The threads that read and transform examples, and what becomes of them when the program ends."""

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from kerasseg.errors import KerassegError


class Calls:
    """The calls that TensorFlow's threads make into Python to load a batch.

    An iterator that is still alive when the program ends waits for its calls, and they for an interpreter that no longer runs
    them: the program would hang. So, while Python still runs, those under way are let finish and later ones get nothing.
    """

    def __init__(self):
        self._lock, self._running, self.ended = threading.Lock(), 0, False
        atexit.register(self._end)

    def __enter__(self):
        with self._lock:
            self._running += 1

    def __exit__(self, *exception):
        with self._lock:
            self._running -= 1

    def _end(self) -> None:
        self.ended, quiet = True, 0
        # Not one look but several: a call may be waiting for its turn of the interpreter, and is not counted yet.
        while quiet < 5:
            time.sleep(0.01)
            quiet = 0 if self._running else quiet + 1


CALLS = Calls()
"""Those of this program."""


@cache
def _executor(count: int) -> ThreadPoolExecutor:
    """The threads of all pipelines of so many: TensorFlow lets go of a pipeline's functions late, or never."""
    return ThreadPoolExecutor(count, thread_name_prefix="kerasseg")


class Workers:
    """Threads that do one thing to several examples at once. Decoding and resizing do not hold Python's lock.

    Args:
        count: How many; `None` is one for each core that the program may use.
    Raises:
        KerassegError: If it is less than 1.
    """

    def __init__(self, count: int | None = None):
        if count is not None and count < 1:
            raise KerassegError(f"received threads={count}: expected 1 or more, or None for one for each core")
        # Not every system tells which cores a program may use.
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = usable if count is None else count

    def map(self, function: Callable, arguments: Iterable) -> list:
        """Calls a function with each argument.

        Args:
            function: Of one argument.
            arguments: Those.
        Returns:
            What it returned, in the order of the arguments.
        """
        arguments = tuple(arguments)
        if self.count == 1 or len(arguments) == 1:
            return [function(argument) for argument in arguments]
        try:
            waiting = [_executor(self.count).submit(function, argument) for argument in arguments]
        except RuntimeError:
            # The program ends, and threads take nothing new.
            return [function(argument) for argument in arguments]
        try:
            return [each.result() for each in waiting]
        finally:
            # After an error nobody wants the others.
            for each in waiting:
                each.cancel()
