"""Files of 8-bit integers, after training: weights by channel, maps by the range that they have on calibration images."""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence

import numpy as np

from kerasseg.errors import KerassegError, first_line

# Below lies only what stands around a map for max pooling: no value, and 8 bits clip it to the lowest one that they have.
_LOWEST = -1e30
_SIGNATURE = "serving_default"


def quantize_int8(content: bytes, calibration: Sequence[np.ndarray], *, float_io: bool = False) -> tuple[bytes, list[str]]:
    """Turns a float32 TFLite file into one of 8-bit integers.

    Args:
        content: The float32 file, one input of images 0–255.
        calibration: Images, `(H, W, C)`, 0–255 (`calibration.check_calibration`); the ranges of all maps are the smallest and
            largest value that they have on them.
        float_io: Whether the file takes and gives float32. Else it takes uint8, the image as it is, and gives int8.
    Returns:
        The new file, and which of its operations take or make float numbers: by rule (`keeping.kept_in_float`), or because they
        have no form in 8 bits.
    Raises:
        KerassegError: If ai-edge-quantizer is missing or refuses the file.
    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §2; LiteRT's 8-bit quantization specification: symmetric weights with a scale for each
        output channel, maps with a scale and a zero point.
    """
    module = _quantizer_module()
    from kerasseg.export.keeping import Operations, kept_in_float

    operations = Operations(content)
    (image,) = operations.inputs
    ranges = _ranges(content, operations, calibration)
    # Not what the images happened to hold: a byte of the image is a step.
    ranges[operations.name(image)] = _range(0, 255, len(operations.shape(image)))
    quantizer = module.Quantizer(bytearray(content))
    _write_recipe(quantizer, operations, kept_in_float(operations), float_io)
    try:
        # It draws progress bars and warns of what it does itself.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    # Whatever it raises at a graph that it does not understand.
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise KerassegError(f"ai-edge-quantizer cannot quantize the file to int8: {first_line(error)}") from error
    content = bytes(result.quantized_model)
    return content, _in_float(Operations(content))


def _quantizer_module():
    try:
        from ai_edge_quantizer import quantizer
    except ModuleNotFoundError as error:
        raise KerassegError("int8 needs ai-edge-quantizer: run `pip install 'kerasseg[lite]'`") from error
    return quantizer


def _write_recipe(quantizer, operations, kept: set[int], float_io: bool) -> None:
    """Says what becomes of each operation; where several rules hold, the last one counts."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe

    name, nothing = qtyping.TFLOperationName, {"algorithm_key": algorithm_manager.AlgorithmName.NO_QUANTIZE}
    quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
    for index in sorted(kept):
        quantizer.update_quantization_recipe(f"^{re.escape(operations.scope(index))}$", name.ALL_SUPPORTED, **nothing)
    # Another expression than that of the rules before, in whose place these two would else be put.
    if float_io:
        for side in (name.INPUT, name.OUTPUT):
            quantizer.update_quantization_recipe("^.*$", side, **nothing)
        return
    tensor = qtyping.TensorQuantizationConfig
    image = tensor(8, symmetric=False, granularity=qtyping.QuantGranularity.TENSORWISE, dtype=qtyping.TensorDataType.UINT)
    # An image has no weights, but the quantizer knows no other way to say it.
    weights = tensor(8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE)
    whole = qtyping.ComputePrecision.INTEGER
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=image, weight_tensor_config=weights, compute_precision=whole, explicit_dequantize=False
    )
    quantizer.update_quantization_recipe("^.*$", name.INPUT, config)
    quantizer.add_static_config("^.*$", name.OUTPUT, activation_num_bits=8, weight_num_bits=8)


def _ranges(content: bytes, operations, images: Sequence[np.ndarray]) -> dict:
    """Runs the file on the images and looks at all its maps: tensor name → smallest and largest value."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        num_threads=2,
        experimental_preserve_all_tensors=True,
        # A delegate would hide what lies between its operations.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    kinds = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    tensors = [tensor for tensor in operations.activations() if kinds[tensor] == np.float32]
    found: dict[int, tuple] = {}
    for batch in _batches(images, operations.shape(operations.inputs[0])[0]):
        interpreter.set_tensor(operations.inputs[0], batch)
        interpreter.invoke()
        for tensor in tensors:
            values = interpreter.get_tensor(tensor)
            smallest, largest = values.min(initial=np.inf, where=values > _LOWEST), values.max(initial=_LOWEST)
            had = found.get(tensor, (smallest, largest))
            found[tensor] = min(had[0], smallest), max(had[1], largest)
    return {operations.name(t): _range(*ends, len(operations.shape(t))) for t, ends in found.items() if np.isfinite(ends).all()}


def _batches(images: Sequence[np.ndarray], size: int):
    """Batches of what the file takes at once, float32, clipped to 0–255; the last one filled up from the start."""
    for start in range(0, len(images), size):
        batch = np.stack([images[index % len(images)] for index in range(start, start + size)])
        yield np.clip(batch.astype(np.float32, copy=False), 0, 255)


def _range(smallest: float, largest: float, rank: int) -> dict:
    # A map of zeros, behind a ReLU that never opens, has no scale, which XNNPACK refuses: any will do.
    largest = largest if largest > min(smallest, 0) else 1.0
    return {name: np.float32(value).reshape([1] * rank) for name, value in (("min", smallest), ("max", largest))}


def _in_float(operations) -> list[str]:
    conversions = ("QUANTIZE", "DEQUANTIZE")
    floats = [i for i in range(len(operations)) if operations.is_float(i) and operations.kinds[i] not in conversions]
    # What the converter merged has all the names, one after the other.
    return [f"{operations.kinds[index]} {operations.name(operations.made(index)[0]).split(';')[0]}" for index in floats]
