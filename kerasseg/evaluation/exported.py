"""Exported files as Keras models, so that all that is done with a network is done with its file by the same code."""

import math
import re
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.runtimes import ExportedNetwork, open_file
from kerasseg.runtimes.files import LABEL_RESULTS

# Quantised probabilities are 0 in places; the logarithm of the smallest number stands for that.
_TINY = float(np.finfo(np.float32).tiny)
# Of an image on which a file is tried, if it takes any: no network asks for more, or for a multiple of something else.
_ANY_SIDE = 224


def open_exported(path: str | Path) -> keras.Model:
    """Opens an exported file as a model of one layer, which runs it.

    Args:
        path: `.tflite`, `.onnx`, or the folder of a SavedModel.
    Returns:
        A model that takes what the file takes, as float, and gives logits: of probabilities their logarithm, whose softmax they
        are; of labels 1 at the class and 0 elsewhere, at the size of the image where the description says where its cells lie.
        It has no weights, cannot be trained, and runs on the CPU.
    Raises:
        KerassegError: As `kerasseg.runtimes.open_file`, or if the file does not say how many classes it tells apart.
    """
    network = open_file(path)
    described = network.description.network if network.description else Path(path).stem
    # As scopes in a graph may be called.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", described).lstrip("_.-") or "exported"
    image = keras.Input(network.input_shape[1:], batch_size=None, name="image")
    return keras.Model(image, ExportedFile(network, name="file")(image), name=name)


class ExportedFile(keras.layers.Layer):
    """Runs an exported file.

    Args:
        network: The file, opened.
    Attributes:
        names: Those of its outputs that are maps; the others are left out.
    Raises:
        KerassegError: If it gives no map, or does not say how many classes it tells apart.
    """

    def __init__(self, network: ExportedNetwork, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.network = network
        # Beside its maps, a file may give what is none, such as a vector for the whole image.
        self.names = tuple(name for name in network.output_names if len(network.output_shape(name)) in (0, 3, 4))
        if not self.names:
            shown = ", ".join(f"'{name}' of shape {network.output_shape(name)}" for name in network.output_names)
            raise KerassegError(f"'{network.path}' gives {shown}: expected logits (batch, height, width, classes)")
        self._classes = {name: _class_count(network, name) for name in self.names}

    def call(self, images):
        """Runs the file on images `(B, H, W, C)`; gives logits, of a file of several outputs a dict of them."""
        names, images = self.names, tf.cast(images, tf.float32)
        types = [tf.float32] * len(names)
        # Asked for a list of one, TensorFlow gives a list in graphs, and what is in it elsewhere.
        found = tf.numpy_function(self._run, [images], types if len(names) > 1 else types[0], stateful=False)
        found = dict(zip(names, found if len(names) > 1 else [found], strict=True))
        for name, logits in found.items():
            logits.set_shape(self._shape(name))
        return found if len(names) > 1 else found[names[0]]

    def _run(self, images: np.ndarray):
        found, size = self.network.run(images), images.shape[1:3]
        logits = [self._logits(name, found[name], size) for name in self.names]
        return logits if len(logits) > 1 else logits[0]

    def _logits(self, name: str, values: np.ndarray, size) -> np.ndarray:
        meaning = self.network.meaning(name)
        if meaning in LABEL_RESULTS:
            if meaning == "coarse_labels":
                values = _at_pixels(values, self._cells(name), size)
            return _one_hot(values, self._classes[name], self.network.path)
        return np.log(np.maximum(values, _TINY)) if meaning == "probabilities" else values

    def _shape(self, name: str) -> list[int | None]:
        meaning = self.network.meaning(name)
        size = self.network.output_shape(name)[1:3]
        if meaning == "coarse_labels" and self._cells(name):
            size = self.network.input_shape[1:3]
        return [None, *(size if len(size) == 2 else (None, None)), self._classes[name]]

    def _cells(self, name: str):
        """Where coarse cells lie; `None` where the description does not say it."""
        description = self.network.description
        return description.outputs[name].get("cells") if description and name in description.outputs else None

    def get_config(self):
        """Refuses: a `.keras` file would hold nothing of the file."""
        raise KerassegError(f"'{self.network.path}' is an exported file, which cannot be saved as a Keras model: copy it instead")


def exported_network(model) -> ExportedNetwork | None:
    """Gives the file behind a model; `None` of a network that is none."""
    layer = _file_layer(model)
    return None if layer is None else layer.network


def _file_layer(model) -> ExportedFile | None:
    return next((layer for layer in getattr(model, "layers", ()) if isinstance(layer, ExportedFile)), None)


def gives_labels(model, output: str | None = None) -> bool:
    """Says whether a model is an exported file that gives classes, of whose scores nothing is known.

    Args:
        model: The network.
        output: Key of the output; `None`: the first.
    """
    layer = _file_layer(model)
    return layer is not None and layer.network.meaning(layer.names[0] if output is None else output) in LABEL_RESULTS


def check_has_scores(model, inference, *, calibration: bool | int | None = None, crf: bool = False) -> None:
    """Refuses, of what gives labels alone, all that needs scores.

    Args:
        model: The network.
        inference: How it is to be run: several pictures cannot be fused, and a CRF has nothing to start from.
        calibration: As for `evaluate`: nothing says how sure the network is.
        crf: Whether there will be a CRF besides.
    Raises:
        KerassegError: If the model is an exported file of labels, and something of that is asked for.
    """
    asked = (
        # Where a CRF is what it is all about, going without is no way out.
        ("a CRF needs", "", crf),
        ("a CRF needs", "no CRF (--crf none), or ", inference.crf is not None),
        ("several scales or mirrored images need", "one scale, without --tta and --flip, or ", not inference.is_single),
        ("calibration needs", "no --calibration, or ", calibration is not None and calibration is not False),
    )
    found = next(((what, expected) for what, expected, present in asked if present), None)
    if found and gives_labels(model, inference.output):
        raise KerassegError(
            f"'{exported_network(model).path}' gives labels, and {found[0]} scores: expected {found[1]}a file exported with "
            "--result logits"
        )


def _class_count(network: ExportedNetwork, name: str) -> int:
    shape = network.output_shape(name)
    if network.meaning(name) not in LABEL_RESULTS and len(shape) == 4 and shape[3] is not None:
        return shape[3]
    description = network.description
    if description is not None and description.classes:
        return len(description.classes)
    described = description.outputs.get(name, {}).get("shape", ()) if description is not None else ()
    if len(described) == 4 and described[3]:
        return described[3]
    if network.meaning(name) not in LABEL_RESULTS and len(shape) in (0, 4):
        _, *size, channels = network.input_shape
        found = network.run(np.zeros((1, *(side or _ANY_SIDE for side in size), channels), np.float32))[name]
        if found.ndim == 4:
            return found.shape[3]
    raise KerassegError(
        f"'{network.path}' does not say how many classes its output '{name}' of shape {shape} tells apart: expected logits "
        "(batch, height, width, classes), or a model.json beside it with the classes, which tools/export.py --labels writes"
    )


def _one_hot(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.ndim != 3 or labels.min() < 0 or labels.max() >= count:
        raise KerassegError(
            f"'{path}' gave labels of shape {labels.shape} from {labels.min()} to {labels.max()}: expected (batch, height, width) "
            f"of {count} classes"
        )
    return np.eye(count, dtype=np.float32)[labels]


def _at_pixels(labels: np.ndarray, cells, size) -> np.ndarray:
    """Gives each pixel of the image the label of the nearest cell; of two that are equally near, of the later."""
    for axis, (side, name) in enumerate(zip(size, ("rows", "columns"), strict=True) if cells else (), start=1):
        if cells[name] is None:
            # One cell alone, spread out.
            labels = np.repeat(labels[:, :1] if axis == 1 else labels[:, :, :1], side, axis)
            continue
        scale, shift = (Fraction(cells[name][key]).limit_denominator(1 << 12) for key in ("scale", "shift"))
        # As fractions: in floats, ties would fall to either side.
        nearest = [math.floor((pixel - shift) / scale + Fraction(1, 2)) for pixel in range(side)]
        labels = np.take(labels, np.clip(nearest, 0, labels.shape[axis] - 1), axis)
    return labels
