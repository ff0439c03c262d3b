"""ONNX files."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from kerasseg.errors import KerassegError, first_line

OPSET = 18
"""Version of ONNX' operations: what tf2onnx knows in full and every runtime of the last years has."""

# Domains whose operations every runtime has.
_STANDARD = ("", "ai.onnx")
# How axes of unknown length are called, so that tools can tell them apart.
_AXES = ("batch", "height", "width", "classes")


def convert_onnx(function, opset: int = OPSET) -> bytes:
    """Converts a frozen function to ONNX.

    Images stay channels last at the file's border; the name of the input and the keys of the outputs are the function's own.
    Padding is written out wherever a convolution is dilated: onnxruntime refuses SAME there.

    Args:
        function: Frozen `ConcreteFunction` of one input and a dictionary of outputs, as `kerasseg.export.trace` makes it.
        opset: Version of ONNX' operations.
    Returns:
        The file's content.
    Raises:
        KerassegError: If tf2onnx or onnx is missing, or ONNX has no form of an operation, which is named.
    Reference:
        tf2onnx 1.17; ONNX operators of opset 18.
    """
    with _quiet():
        tf2onnx = _imported()
        inputs, outputs = _names(function)
        try:
            model, _ = tf2onnx.convert.from_graph_def(
                function.graph.as_graph_def(),
                name="kerasseg",
                input_names=list(inputs),
                output_names=list(outputs),
                opset=opset,
                custom_op_handlers={"FloorDiv": (_floor_div, []), "FloorMod": (_floor_mod, [])},
            )
        # Its handlers raise whatever comes.
        except Exception as error:
            raise KerassegError(f"the network cannot be converted to ONNX: {type(error).__name__}: {first_line(error)}") from error
    if unknown := sorted({node.op_type for node in _nodes(model.graph) if not _is_known(node, opset)}):
        raise KerassegError(
            f"ONNX has no form of the operations {', '.join(unknown)}: leave out what needs them, or use --format saved_model"
        )
    for node in _nodes(model.graph):
        _write_padding_out(node)
    _rename(model.graph, {**inputs, **outputs})
    _name_axes(model.graph, {outputs.get(tensor.name, tensor.name): tensor.shape for tensor in function.outputs})
    return model.SerializeToString()


def _imported():
    try:
        import onnx as onnx
        import tf2onnx
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "tf2onnx"):
            raise
        raise KerassegError("ONNX files need tf2onnx and onnx: run `pip install 'kerasseg[onnx]'`") from error
    return tf2onnx


@contextlib.contextmanager
def _quiet():
    """Silences what tf2onnx tells its developers: its own notices, and those of the old TensorFlow calls that it makes."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="tf2onnx")
        # By their paths, where TensorFlow's wrappers stand between.
        warnings.filterwarnings("ignore", r".*`np\.\w+` is a deprecated alias", DeprecationWarning)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _names(function) -> tuple[dict[str, str], dict[str, str]]:
    """Tensors of the graph → names in the file, of the inputs and of the outputs."""
    results = function.structured_outputs
    if not isinstance(results, dict):
        results = {tensor.op.name: tensor for tensor in function.outputs}
    return {tensor.name: tensor.op.name for tensor in function.inputs}, {tensor.name: name for name, tensor in results.items()}


def _floor_div(graph, node, name: str, _) -> None:
    """Rounds a quotient of whole numbers down, as TensorFlow does: ONNX' Div, all that tf2onnx has for it, rounds towards 0.

    Sizes are computed so, and with the sign of `-(-n // k)`, which rounds up.
    """
    if _is_float(graph, node):
        from tf2onnx.onnx_opset.math import FloorDiv

        FloorDiv.version_6(graph, node)
        return
    dividend, divisor = node.input
    shapes, dtypes = node.output_shapes, node.output_dtypes
    remainder = graph.make_node("Mod", [dividend, divisor], attr={"fmod": 0}, dtypes=dtypes)
    multiple = graph.make_node("Sub", [dividend, remainder.output[0]], dtypes=dtypes)
    graph.remove_node(name)
    graph.make_node("Div", [multiple.output[0], divisor], name=name, outputs=node.output, shapes=shapes, dtypes=dtypes)


def _floor_mod(graph, node, name: str, _) -> None:
    """The remainder of that, which has the sign of the divisor: indices are computed so, from places before the image."""
    if _is_float(graph, node):
        from tf2onnx.onnx_opset.math import FloorMod

        FloorMod.version_7(graph, node)
        return
    node.type = "Mod"
    node.set_attr("fmod", 0)


def _is_float(graph, node) -> bool:
    from onnx import TensorProto

    return graph.get_dtype(node.input[0]) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _nodes(graph) -> Iterator:
    """All nodes, those of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _is_known(node, opset: int) -> bool:
    from onnx import defs

    # What tf2onnx cannot convert it leaves standing, under TensorFlow's name.
    return node.domain in _STANDARD and defs.has(node.op_type, opset, "")


def _write_padding_out(node) -> None:
    """Replaces SAME of a dilated convolution, which has no stride, by what it means for every size."""
    from onnx import helper

    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type != "Conv" or found.get("auto_pad") != b"SAME_UPPER" or max(found.get("dilations", [1])) == 1:
        return
    if max(found.get("strides", [1])) > 1:
        raise KerassegError("a dilated convolution with a stride and SAME padding cannot be converted to ONNX: pad explicitly")
    reach = [(size - 1) * rate for size, rate in zip(found["kernel_shape"], found["dilations"], strict=True)]
    # TensorFlow puts the odd cell behind.
    pads = [cells // 2 for cells in reach] + [cells - cells // 2 for cells in reach]
    kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _rename(graph, names: dict[str, str]) -> None:
    """Gives inputs and outputs the names that the function has for them, instead of `image:0` and `Identity:0`."""
    for node in _nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _name_axes(graph, known: dict) -> None:
    """Says how long the axes of outputs are, as far as TensorFlow knows it, and names those of any length."""
    for value in (*graph.input, *graph.output):
        prefix, shape = (f"{value.name}_", known[value.name]) if value.name in known else ("", None)
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if shape is not None and shape.rank is not None and shape[place] is not None:
                axis.dim_value = shape[place]
            elif not axis.HasField("dim_value"):
                name = _AXES[place] if place < len(_AXES) else f"axis_{place}"
                # The batch is the same at both ends; sizes need not be.
                axis.dim_param = name if name == "batch" else prefix + name
