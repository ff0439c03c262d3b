"""A network as the graph that goes into a file: frozen, with named inputs and outputs, and what is asked for at its end."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from kerasseg.backbones.grafting import split_tail
from kerasseg.errors import KerassegError, first_line
from kerasseg.export.cells import Cells, find_cells, find_cells_of_any_size
from kerasseg.export.cutting import cut_for, named_outputs
from kerasseg.export.forms import Target
from kerasseg.export.sizes import all_layers, fitting, some_sizes
from kerasseg.layers import MinimumSize
from kerasseg.tables import did_you_mean

INPUT = "image"
"""The name of a file's only input."""

_MOST_CLASSES = 256
# What TensorFlow lets operations be called.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """What of a network goes into a file.

    Args:
        target: What is asked for.
        model: The network as far as its scores: image → `{name: scores}`. It shares the weights of the network that it was made
            of, and is also what the file is compared with.
        cells: Of scores that are taken before they are resized, by name: where their cells lie. Names of scores of the image's
            own size are not in it.
        left_out: What is not in it, and why, in one line.
    """

    target: Target
    model: keras.Model
    cells: Mapping[str, Cells | None]
    left_out: str | None

    def __call__(self, images) -> dict:
        """Computes the results of images in TensorFlow: what the file will do."""
        scores = self.model(images, training=False)
        return {name: self._result(name, tf.cast(values, tf.float32)) for name, values in scores.items()}

    def _result(self, name: str, scores):
        if self.target.result == "logits":
            return scores
        if self.target.result == "probabilities":
            return tf.nn.softmax(scores)
        # Of Keras' own argmax, TFLite has not all operations.
        labels = tf.cast(tf.argmax(scores, -1, output_type=tf.int32), tf.uint8)
        if (cells := self.nearest(name)) is None:
            return labels
        return tf.gather(tf.gather(labels, cells.nearest_rows, axis=1), cells.nearest_columns, axis=2)

    def nearest(self, name: str) -> Cells | None:
        """The cells whose labels are brought to the image, if any are."""
        return self.cells.get(name) if self.target.result == "nearest_labels" else None

    def meaning(self, name: str) -> str:
        """What an output is: coarse labels of scores that nothing enlarges are labels."""
        return "labels" if self.target.coarse and name not in self.cells else self.target.result


def plan(model: keras.Model, target: Target) -> Plan:
    """Finds what of a network a file of some kind holds.

    Args:
        model: The network: one input, an image, and any number of outputs, all of them logits.
        target: What is asked for.
    Raises:
        KerassegError: If the network has several inputs, no such head, more classes than fit into a byte, or takes no images of
            that size; if it was not built yet, or computes in half precision, which only a SavedModel does.
    """
    _check_built(model, target)
    if len(model.inputs) != 1:
        raise KerassegError(f"{model.name} has {len(model.inputs)} inputs: expected one, the image, that a file can take")
    check_size(model, target.input_size)
    cut = cut_for(model, target.format)
    outputs, cells = {}, {}
    for name, output in _named(cut.model, target).items():
        _check_scores(model, name, output, target)
        outputs[name] = output
        scores, tail = split_tail(output) if target.coarse else (output, [])
        if not tail:
            continue
        found = _cells(model, scores, tail, target.input_size)
        if found is None or not found.whole:
            outputs[name], cells[name] = scores, found
    return Plan(target, keras.Model(model.inputs[0], outputs, name=model.name), cells, cut.left_out)


def _cells(model: keras.Model, scores, tail: list, size: tuple[int, int] | None) -> Cells | None:
    if size is not None:
        return find_cells(model.inputs[0], scores, tail, size)
    # Of sides that are all a multiple of the stride plus 1, corners on corners would look like a fixed scale.
    return find_cells_of_any_size(model.inputs[0], scores, tail, [*some_sizes(model), fitting(model, (66, 100))])


def _check_built(model: keras.Model, target: Target) -> None:
    if not getattr(model, "inputs", None):
        raise KerassegError(f"{model.name} has no input yet: build it as keras.Model(inputs, outputs), or with keras.Input first")
    half = [layer for layer in all_layers(model) if layer.compute_dtype in _HALF]
    if half and target.format != "saved_model":
        more = ", …" if len(half) > 1 else ""
        raise KerassegError(
            f"{model.name} computes in {half[0].compute_dtype} ({half[0].name}{more}): TFLite and ONNX files are float32; load it "
            "with float32 policies, or use the format saved_model"
        )


def check_size(model: keras.Model, size: tuple[int, int] | None) -> None:
    """Refuses a size that a network does not take, before anything is built for it.

    Raises:
        KerassegError: With what it takes.
    """
    own = model.inputs[0].shape[1:3]
    for side, wanted in zip(own, size or (None, None), strict=True):
        if side is not None and side != wanted:
            takes = "x".join("any" if n is None else str(n) for n in own)
            raise KerassegError(
                f"{model.name} takes images of {takes} alone, received {_shown(size)}: build it with input_shape=(None, None, ...)"
            )
    if size is not None:
        for layer in all_layers(model):
            if isinstance(layer, MinimumSize):
                layer.compute_output_shape((None, *size, own[-1]))


def _named(model: keras.Model, target: Target) -> dict:
    """Symbolic outputs by the names that they have in the file."""
    result = "labels" if target.gives_labels else target.result
    output = named_outputs(model)
    if not isinstance(output, dict):
        if target.output is not None:
            raise KerassegError(f"{model.name} has one output: leave output={target.output!r} away")
        return {result: output}
    if INPUT in output and target.output is None:
        raise KerassegError(
            f"{model.name} has an output '{INPUT}', which is what the file's input is called: pass output='{INPUT}' alone"
        )
    if target.output is None and len(output) > 1 and target.format != "saved_model":
        _check_names(model, output)
    if target.output is None:
        return output if len(output) > 1 else {result: next(iter(output.values()))}
    if target.output not in output:
        raise KerassegError(f"{model.name} has no output '{target.output}': {did_you_mean(target.output, output)}")
    return {result: output[target.output]}


def _check_names(model: keras.Model, names) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise KerassegError(
                f"{model.name} has an output '{name}', which a file cannot call so: pass output='{name}' alone (--output), or use "
                "the format saved_model"
            )


def _check_scores(model: keras.Model, name: str, output, target: Target) -> None:
    if len(output.shape) != 4:
        raise KerassegError(
            f"{model.name} gives '{name}' of shape {tuple(output.shape)}: expected scores, (batch, height, width, classes)"
        )
    if target.gives_labels and output.shape[-1] > _MOST_CLASSES:
        raise KerassegError(f"{model.name} has {output.shape[-1]} classes: labels are bytes, use the result logits")


def input_shape(made: Plan) -> tuple[int | None, int | None, int | None, int]:
    """The shape of the images that the file takes, `None` where any will do."""
    return (made.target.batch_size, *(made.target.input_size or (None, None)), made.model.inputs[0].shape[-1])


def trace(model: keras.Model, target: Target):
    """Makes the graph that goes into a file, with the weights as constants.

    Args:
        model: The network.
        target: What is asked for.
    Returns:
        A frozen `ConcreteFunction`: input `image`, float32, `(B, H, W, C)`, 0–255 as the network takes it; outputs a dictionary,
        whose keys are also the names of the tensors.
    Raises:
        KerassegError: If the network cannot be exported so, or takes no images of that size.
    Reference:
        TensorFlow's `convert_variables_to_constants_v2`: converters turn variables that are not frozen into NaN silently.
    """
    return trace_plan(plan(model, target))


def trace_plan(made: Plan):
    """Does what `trace` does, of a plan."""
    concrete = concrete_function(made)
    return _named_tensors(convert_variables_to_constants_v2(concrete), sorted(concrete.structured_outputs))


def concrete_function(made: Plan):
    """Makes the graph of a plan, of one argument, `image`, with its variables.

    Raises:
        KerassegError: If a layer cannot take images of that size.
    """
    signature = tf.TensorSpec(input_shape(made), tf.float32, name=INPUT)
    # A new function for every call: one is traced once, and a network is collected with it.
    function = tf.function(lambda image: made(image), input_signature=[signature], autograph=False)
    try:
        return function.get_concrete_function()
    except KerassegError:
        raise
    # Whatever a layer raises when it sees an image of a size that it cannot take, a user's layers among them.
    except Exception as error:
        raise KerassegError(
            f"{made.model.name} does not take images of {_shown(made.target.input_size)}: {first_line(error)}"
        ) from error


def _shown(size: tuple[int, int] | None) -> str:
    return "any size" if size is None else "x".join(map(str, size))


def _named_tensors(frozen, names: list[str]):
    """The same graph, whose inputs and outputs are called what they are: freezing leaves `Identity_1` and a plain list."""
    graph = frozen.graph.as_graph_def()
    wanted = {tensor.op.name: name for tensor, name in zip(frozen.outputs, names, strict=True)}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        node.name = _renamed(node.name, wanted, taken)
        node.input[:] = [_renamed(name, wanted, taken) for name in node.input]
    (given,) = frozen.inputs
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    tensor = imported.graph.get_tensor_by_name
    return imported.prune(tensor(given.name), {name: tensor(f"{name}:0") for name in names})


def _renamed(name: str, wanted: Mapping[str, str], taken: set[str]) -> str:
    if name in wanted:
        return wanted[name]
    # An operation may already have the name.
    return f"network/{name}" if name in wanted.values() and name in taken else name
