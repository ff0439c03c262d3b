"""SavedModels, by TensorFlow."""

from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError, first_line
from kerasseg.runtimes.files import ExportedNetwork, Slot, image_slot
from kerasseg.tables import import_lazily

_SIGNATURE = "serving_default"


class SavedModelNetwork(ExportedNetwork):
    """The folder of a SavedModel."""

    format = "saved_model"

    def __init__(self, path, loaded, description):
        self._function = loaded.signatures[_SIGNATURE]
        # The function lives as long as what was loaded.
        self._loaded = loaded
        given = image_slot(path, [_slot(name, spec) for name, spec in self._function.structured_input_signature[1].items()])
        results = {name: _slot(name, spec) for name, spec in self._function.structured_outputs.items()}
        super().__init__(path, given, results, description)

    def _invoke(self, images):
        import tensorflow as tf

        try:
            found = self._function(**{self._given.name: tf.constant(images)})
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise KerassegError(f"'{self.path}' failed on images of {images.shape}: {first_line(error)}") from error
        return {name: found[name].numpy() for name in self.output_names}

    def _operations(self):
        graph = self._function.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return [node.op for node in nodes]


def open_saved_model(path: Path, description) -> SavedModelNetwork:
    """Opens a SavedModel.

    Raises:
        KerassegError: As `open_file`.
    """
    tf = import_lazily("tensorflow")
    try:
        loaded = tf.saved_model.load(str(path))
    except (tf.errors.OpError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise KerassegError(f"'{path}' is no SavedModel, or a damaged one ({first_line(error)}): export it again") from error
    if _SIGNATURE not in loaded.signatures:
        raise KerassegError(f"'{path}' has no signature '{_SIGNATURE}': expected a SavedModel that tools/export.py wrote")
    return SavedModelNetwork(path, loaded, description)


def _slot(name: str, spec) -> Slot:
    shape = tuple(spec.shape) if spec.shape.rank is not None else ()
    return Slot(name, shape, np.dtype(spec.dtype.as_numpy_dtype))
