"""Runs the conversion of many examples, in this process or in several."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from kerasseg.data.preparation.conversion import Converter, Unit
from kerasseg.data.preparation.prepared import EXAMPLES
from kerasseg.data.preparation.survey import Row
from kerasseg.errors import KerassegError

# Examples that a process is given at a time, and for how many it is worth to start one.
_CHUNK, _WORTH_A_PROCESS = 4, 16
# Of a process that was started: what it works with.
_converters: list[Converter] = []


def convert_all(converter: Converter, pending: Sequence[Unit], jobs: int) -> Iterator[Row]:
    """Prepares examples, and notes each when it is done, for another run to go on from there.

    Args:
        converter: How.
        pending: Which.
        jobs: Number of processes at most; the rows are the same with any.
    Yields:
        The row of each, in their order.
    Raises:
        KerassegError: If a process dies.
    """
    if not pending:
        return
    jobs = max(1, min(jobs, len(pending) // _WORTH_A_PROCESS))
    with open(converter.folder / EXAMPLES, "a", encoding="utf-8") as file:
        # After a line that was torn when a process was killed.
        file.write("\n")
        for row in map(converter, pending) if jobs == 1 else _in_processes(converter, pending, jobs):
            if "error" not in row:
                file.write(json.dumps(row) + "\n")
                file.flush()
            yield row


def _in_processes(converter: Converter, pending: Sequence[Unit], jobs: int) -> Iterator[Row]:
    # What is open here each process opens itself.
    plain = Converter(converter.folder, converter.data, converter.data_dir, converter.options, converter.copy)
    # Not forked: this process may have threads.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (plain,))
    try:
        yield from pool.map(_convert, pending, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise KerassegError(
            f"a process ended abruptly, perhaps for want of memory: run the command again, which goes on, with --jobs below {jobs}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(converter: Converter) -> None:
    _converters.append(converter)
    # Ctrl-C is for the first process, which then ends the others. Killed, it cannot.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _convert(unit: Unit) -> Row:
    return _converters[-1](unit)
