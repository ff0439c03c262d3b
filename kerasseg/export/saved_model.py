"""SavedModels: directories, with the whole of TensorFlow to draw on."""

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from kerasseg.export.forms import Target
from kerasseg.export.graph import Plan, concrete_function, plan

SIGNATURE = "serving_default"
"""The name of the one function in it."""

_UNFINISHED = ".unfinished-"


def write_saved_model(model, target: Target, directory: str | Path) -> None:
    """Writes a network as a SavedModel, which TensorFlow Serving and `tf.saved_model.load` open without Keras.

    Args:
        model: The network.
        target: What is asked for.
        directory: Where to; it is made, or filled.
    Raises:
        KerassegError: See `plan`.
    """
    write_plan(plan(model, target), directory)


def write_plan(made: Plan, directory: str | Path) -> None:
    """Does what `write_saved_model` does, of a plan."""
    module = tf.Module()
    # All that the function holds, and nothing else of Keras.
    module.weights = [variable.value for variable in made.model.variables]
    module.run = concrete_function(made)
    tf.saved_model.save(module, str(directory), signatures={SIGNATURE: module.run})


@contextmanager
def atomic_directory(path: str | Path):
    """Gives a temporary directory beside the final one, and moves it there when the block ends well.

    Args:
        path: The final directory; what is there before is replaced.
    Yields:
        An empty directory. After an exception it is removed and the final one is untouched.
    Raises:
        OSError: If a file is there, or the disk does not take it.
    """
    path = Path(path)
    if path.is_file():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=path.parent, prefix=_UNFINISHED, suffix=".saved_model"))
    try:
        made = room / "new"
        made.mkdir()
        yield made
        if path.exists():
            # A directory that holds something cannot be replaced at one stroke.
            path.rename(room / "old")
        made.rename(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def sweep_directories(folder: Path) -> None:
    """Removes the temporary directories that a killed process left; nobody else may be exporting there."""
    for stray in folder.glob(f"{_UNFINISHED}*.saved_model"):
        shutil.rmtree(stray, ignore_errors=True)
