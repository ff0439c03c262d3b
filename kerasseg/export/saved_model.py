"""SavedModels: directories, with the whole of TensorFlow to draw on."""

from pathlib import Path

import tensorflow as tf

from kerasseg.export.forms import Target
from kerasseg.export.graph import Plan, concrete_function, plan

SIGNATURE = "serving_default"
"""The name of the one function in it."""


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
