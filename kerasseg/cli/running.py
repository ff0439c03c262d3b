"""How every command line starts and ends: one-line errors, exit codes, quiet libraries."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from kerasseg.errors import KerassegError
from kerasseg.tables import import_lazily


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


def start_tensorflow() -> None:
    """Imports TensorFlow without the notices that it writes before it reads TF_CPP_MIN_LOG_LEVEL.

    Raises:
        KerassegError: If it is not installed.
    """
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
        Exit code: 0; 2 after an error that the user can mend; 130 after Ctrl-C.
    """
    # The user's own choice wins; left alone, TensorFlow prints a page of notices about the machine.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command(arguments)
    except KerassegError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        # A disk that is full, a file where a folder should be: the user can mend it, too.
        if "--debug" in arguments:
            raise
        print(f"error: {': '.join(str(part) for part in (error.strerror or error, error.filename) if part)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
