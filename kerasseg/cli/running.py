"""How every command line starts and ends: one-line errors, exit codes, quiet libraries."""

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from kerasseg.errors import KerassegError
from kerasseg.runs import Preempted, Run
from kerasseg.tables import import_lazily

# Of TensorFlow's C++: errors, without notices and warnings.
_LEVEL = "2"
_FULL = "free some space there, then {again}; what was saved before is whole"
_OTHER_FOLDER = "name a folder that can be written (--run-dir, --out), or make this one so and {again}"
_NO_FOLDER = "expected a folder, received a file: name another (--run-dir, --out) or move the file away, then {again}"
_OF_A_RUN = "expected a folder, received a file of the run there: name another (--run-dir, --out), then {again}"
# What is a file, and what a folder, of a run that was begun.
_FILES = ("log.jsonl", "model.keras", "recipe.json", "labels.json", "data.json", "environment.json")
_WRITTEN = (*_FILES, "checkpoints", "stages", "tensorboard")
# What the system refused → what to do about it.
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "let files be larger (ulimit -f), then {again}; what was saved before is whole",
    errno.EROFS: _OTHER_FOLDER,
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: "expected a file, received a folder: name another (--out), then {again}",
}


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        """Raises instead of printing the whole usage."""
        raise KerassegError(f"{message} (see {self.prog} --help)")


def make_parser(prog: str, description: str) -> Parser:
    """Makes the parser of one command, with the options that all commands share."""
    parser = Parser(prog=prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def start_tensorflow(*, distributed: bool = False) -> None:
    """Imports TensorFlow without the notices that it writes before it reads TF_CPP_MIN_LOG_LEVEL.

    Args:
        distributed: Whether it will work with other processes or a TPU. It then prints pages about one that is gone, besides the
            exception that says so; only what ends the process is left of them. SIGTERM ends the process at once again: waiting for
            others in a call that never returns, Python would not get to see it.
    Raises:
        KerassegError: If it is not installed.
    """
    if distributed and _is_main_thread() and signal.getsignal(signal.SIGTERM) is _unwind:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if distributed and os.environ.get("TF_CPP_MIN_LOG_LEVEL") == _LEVEL:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    sys.stderr.flush()
    # They come from C++, so that only the file descriptor can be turned away.
    original, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import_lazily("tensorflow")
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(nowhere)


def run_command(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Runs one command and turns what the user can mend into one line.

    Args:
        command: Function of the argument list.
        arguments: The command line without the program's name; `sys.argv`'s by default.
    Returns:
        Exit code: 0; 2 after an error that the user can mend; 130 after Ctrl-C; 143 after SIGTERM, where training saved its state
        and nothing half-written is left.
    """
    # The user's own choice wins; left alone, TensorFlow prints a page of notices about the machine.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _LEVEL)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _one_line_warnings(), _unwound_by_sigterm():
            command(arguments)
    except (KerassegError, OSError) as error:
        # A disk that is full, a file where a folder should be: the user can mend them as well as a mistake.
        if "--debug" in arguments:
            raise
        line = _describe(error) if isinstance(error, OSError) else str(error)
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return 2
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 143
    except _Terminated:
        print("stopped by SIGTERM", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _unwound_by_sigterm():
    """Lets SIGTERM remove what is half-written, as Ctrl-C does, unless something else was installed; a second one kills at once.

    Training enters its own handler inside, which comes first (`kerasseg.training.preemption`).
    """
    # Only the main thread gets signals.
    ours = _is_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unwind(number, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _one_line_warnings():
    """Shows a warning of this library as one line; others, which are for developers, with file and source."""
    usual = warnings.formatwarning

    def formatted(message, category, *where):
        own = category.__module__.split(".")[0] == "kerasseg"
        return f"warning: {' '.join(str(message).split())}\n" if own else usual(message, category, *where)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _describe(error: OSError) -> str:
    """What the system refused, of which file, and how to go on."""
    name, remedy = error.filename, _REMEDIES.get(error.errno)
    resume = _resume_command(name) if isinstance(name, str) else None
    if remedy is _NO_FOLDER and isinstance(name, str):
        # The system names what it wanted to make below it. No run goes on there.
        name, resume = next((path for path in (Path(name), *Path(name).parents) if path.is_file()), Path(name)), None
        if name.name in _FILES and Run(name.parent).exists:
            remedy = _OF_A_RUN
    parts = [str(part) for part in (error.strerror or error, name) if part]
    if remedy:
        parts.append(remedy.format(again=f"go on with {resume}" if resume else "run the command again"))
    return ": ".join(parts)


def _resume_command(file: str) -> str | None:
    """How to go on with the run whose training writes a file; `None` if no run that was begun does."""
    for folder in reversed(Path(file).parents):
        if Run(folder).exists and Path(file).relative_to(folder).parts[0] in _WRITTEN:
            return Run(folder).resume_command
    return None
