"""`kerasseg train|evaluate|predict|export`."""

import importlib
import sys

from kerasseg.cli.running import run_command
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

COMMANDS = {
    "train": "train a network, or resume a run",
    "evaluate": "score a run or model on a data set",
    "predict": "write masks of photographs",
    "export": "write a file for devices, and prove that it computes the same",
    "prepare_data": "check a data set once, and keep what is slow to read as PNG",
    "inspect_data": "write a page that shows what is in a data set, and what in it is likely a mistake",
    "web_page": "build a page that segments photographs in the browser",
    "analyze": "look into a network: what it sees, does and costs, and what limits it",
    "compare": "put reports of evaluations side by side",
    "inspect_model": "print the layers of a network as a table",
    "convert_weights": "write the weights of a .caffemodel as a model of Keras",
    "tune_crf": "search the parameters of a dense CRF behind a network",
    "crf": "clean a rough annotation of a photograph by a dense CRF",
}


def main() -> int:
    """Dispatches to one command and returns its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: kerasseg COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:16} {text}" for name, text in COMMANDS.items()))
        return 0

    def dispatch(arguments):
        if arguments[0] not in COMMANDS:
            raise KerassegError(f"unknown command '{arguments[0]}': {did_you_mean(arguments[0], COMMANDS)}")
        importlib.import_module(f"kerasseg.cli.{arguments[0]}").run(arguments[1:])

    return run_command(dispatch)
