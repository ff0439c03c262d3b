"""TFLite files."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError, first_line
from kerasseg.export.calibration import check_calibration
from kerasseg.export.padding import pad_with_zeros
from kerasseg.export.quantization import quantize_int8


class Converted(NamedTuple):
    """A TFLite file's content, and the operations that 8 bits would have ruined and that it holds in float."""

    content: bytes
    kept_float: list[str]


def convert_tflite(
    function, *, quantize: str = "none", calibration: Sequence[np.ndarray] = (), select_tf_ops: bool = False
) -> Converted:
    """Converts a frozen function to TFLite.

    Args:
        function: From `kerasseg.export.graph.trace`: frozen, one input `image`.
        quantize: `"none"` (float32), `"float16"` (weights of 16 bits, computed in float32), `"dynamic"` (weights of 8 bits,
            the rest measured as it runs), `"int8"` (8 bits, input and outputs too, but for `kept_float`) or `"int8-float-io"`.
        calibration: For int8: images `(H, W, C)` as the network takes them, 0–255, of the function's size.
        select_tf_ops: Allow TensorFlow's own operations; such a file needs the Flex delegate.
    Returns:
        The file's content. Of int8, also which operations stayed in float.
    Raises:
        KerassegError: If TFLite cannot hold the function, or the calibration images cannot be used.
    """
    int8 = quantize.startswith("int8")
    # Before the conversion, which takes a while.
    images = check_calibration(calibration, tuple(function.inputs[0].shape[1:])) if int8 else []
    converter = _converter(function, select_tf_ops)
    if int8:
        return Converted(*quantize_int8(_run(converter, function), images, float_io=quantize == "int8-float-io"))
    if quantize in ("float16", "dynamic"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return Converted(_run(converter, function), [])


def _converter(function, select_tf_ops: bool):
    module = tf.Module()
    # With a module around it, the file has a signature: names for its input and its outputs.
    module.function = _with_zeros_around_pools(function)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function], module)
    if select_tf_ops:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    return converter


def _with_zeros_around_pools(function):
    graph = function.graph.as_graph_def()
    pad_with_zeros(graph)
    for node in graph.node:
        # Names a gradient of this process, which nothing that is saved can hold; nobody trains a file.
        node.attr.pop("_gradient_op_type", None)
    outputs = function.structured_outputs
    names = {name: tensor.name for name, tensor in outputs.items()}
    (given,) = function.inputs
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    tensor = imported.graph.get_tensor_by_name
    return imported.prune(tensor(given.name), {key: tensor(name) for key, name in names.items()})


def _run(converter, function) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # The converter's own error derives from Exception itself.
        size = "x".join("any" if side is None else str(side) for side in function.inputs[0].shape[1:3])
        raise KerassegError(f"a network at {size} cannot be converted to TFLite: {first_line(error)}") from error
