"""TFLite files."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from kerasseg.errors import KerassegError
from kerasseg.export.cutting import cut_for_tflite
from kerasseg.export.parity import Parity, measure_parity
from kerasseg.labels import LabelTable
from kerasseg.runs import atomic_path, write_json


def export_tflite(
    model: keras.Model,
    path: str | Path,
    *,
    input_size: tuple[int, int],
    labels: LabelTable | None = None,
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    left_out: str | None = None,
) -> Parity:
    """Writes a network as a float32 TFLite file, if the file computes what the network does.

    The file takes one RGB image of 0–255, float32, and gives its logits; preprocessing is inside. Beside it lies a JSON file of
    the same name with classes, palette, input size and the figures of the comparison.

    A CRF at the end of the network stays outside (`cut_for_tflite` says which): the file gives the logits that it would refine, is
    compared with the network up to there, and the JSON file says so under `left_out`.

    Args:
        model: The trained network, one input and one output.
        path: The file, `*.tflite`.
        input_size: Height and width in pixels; the file takes no other.
        labels: Names and colours for the JSON file.
        images: Photographs to compare on beside random ones, `(H, W, C)` of `input_size`, 0–255.
        tolerance: Largest relative error of the logits that passes.
        left_out: What else is not in the file, of which the network knows nothing, for the JSON file.
    Returns:
        The figures of the comparison.
    Raises:
        KerassegError: If the network cannot be converted at that size, ai-edge-litert is missing, or the file disagrees; nothing
            is left under `path` that was not there before.
    Reference:
        TensorFlow Lite converter; variables are frozen first, since unfrozen ones turn into NaN silently.
    """
    path = Path(path)
    if path.suffix != ".tflite":
        raise KerassegError(f"received '{path}', expected a file name that ends in .tflite")
    if len(model.inputs) != 1 or isinstance(model.output, dict):
        raise KerassegError(f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; a file has one of each")
    shape = (1, *input_size, model.inputs[0].shape[-1])
    cut = cut_for_tflite(model)
    missing = "; ".join(filter(None, (cut.left_out, left_out))) or None
    content = _convert(cut.model, shape)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        batches = [image[np.newaxis].astype(np.float32) for image in images] + _random_images(shape)
        parity = measure_parity(_litert_runner(temporary), lambda x: cut.model(x, training=False), batches)
        if not parity.relative_error <= tolerance:
            raise KerassegError(
                f"the TFLite file disagrees with Keras: relative error {parity.relative_error:.2g} of the logits, "
                f"tolerance {tolerance:g}; no file was written"
            )
    write_json(path.with_suffix(".json"), _description(cut.model, shape, labels, parity, len(content), missing))
    return parity


def _convert(model: keras.Model, shape) -> bytes:
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
    def logits(image):
        return {"logits": model(image, training=False)}

    try:
        frozen = convert_variables_to_constants_v2(logits.get_concrete_function())
        return tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    except Exception as error:  # The converter's own error derives from Exception itself.
        reason = str(error).strip().splitlines()[0]
        raise KerassegError(f"{model.name} at {shape[1]}x{shape[2]} cannot be converted to TFLite: {reason[:200]}") from error


def _litert_runner(path: Path):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise KerassegError("comparing the file needs ai-edge-litert: run `pip install 'kerasseg[lite]'`") from error
    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner() if interpreter.get_signature_list() else None
    interpreter.allocate_tensors()

    def run(image: np.ndarray) -> np.ndarray:
        if runner is not None:
            return next(iter(runner(image=image).values()))
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run


def _random_images(shape) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    noise = generator.uniform(0, 255, shape).astype(np.float32)
    # Smooth, as photographs are: noise alone excites hardly any class.
    coarse = generator.uniform(0, 255, (1, 4, 4, shape[-1])).astype(np.float32)
    return [noise, tf.image.resize(coarse, shape[1:3]).numpy()]


def _description(model, shape, labels: LabelTable | None, parity: Parity, size: int, left_out: str | None) -> dict:
    return {
        "network": model.name,
        "format": "tflite float32",
        "input": {"shape": list(shape), "type": "float32", "range": [0, 255], "preprocessing": "inside"},
        "output": {"shape": [1, *shape[1:3], model.output.shape[-1]], "type": "float32", "meaning": "logits"},
        "left_out": left_out,
        "classes": list(labels.classes) if labels else None,
        "palette": [list(color) for color in labels.palette] if labels else None,
        "bytes": size,
        "parity": parity._asdict(),
    }
