import json

import keras
import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.export import Parity, export_tflite, measure_parity, tflite
from kerasseg.labels import LABELS, generic_table
from kerasseg.models import MODELS

SIZE = (33, 47)


def network(arch, num_classes=5, **arguments):
    """A narrow network whose every weight is random, so that the logits vary."""
    model = MODELS[arch](num_classes, width_multiplier=1 / 16, **arguments)
    generator = np.random.default_rng(0)
    for weight in model.trainable_variables:
        fan_in = max(1, int(np.prod(weight.shape[:-1])))
        weight.assign(generator.normal(0, (2 / fan_in) ** 0.5 if len(weight.shape) > 1 else 0.1, weight.shape))
    return model


@pytest.fixture(scope="module")
def small():
    return network("fcn32s", padding="same")


def run_file(path, image):
    """The file alone, by the interpreter's own plain calls."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(given["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


@pytest.mark.parametrize("padding", ["same", "authors"])
@pytest.mark.parametrize("arch", ["fcn8s", "fcn32s", "fcn_alexnet"])
def test_a_file_computes_what_keras_does(tmp_path, arch, padding):
    model = network(arch, padding=padding)
    path = tmp_path / "new" / "model.tflite"
    labels = generic_table(["a", "b", "c", "d", "e"])
    photograph = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)
    parity = export_tflite(model, path, input_size=SIZE, labels=labels, images=[photograph])
    assert parity.images == 3 and 0 <= parity.relative_error < 1e-4 and parity.argmax_agreement > 0.999
    image = np.random.default_rng(9).uniform(0, 255, (1, *SIZE, 3)).astype(np.float32)
    ours, theirs = run_file(path, image), np.asarray(model(image, training=False))
    assert ours.shape == (1, *SIZE, 5) and np.ptp(theirs) > 1e-2 * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    beside = json.loads(path.with_suffix(".json").read_text())
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.tflite"]
    assert beside["classes"] == list("abcde") and beside["palette"] == [list(color) for color in labels.palette]
    assert beside["input"]["shape"] == [1, *SIZE, 3] and beside["output"]["shape"] == [1, *SIZE, 5]
    assert beside["bytes"] == path.stat().st_size and beside["parity"] == parity._asdict()


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_that_disagrees_is_not_left(tmp_path, monkeypatch, small, before):
    path = tmp_path / "model.tflite"
    if before:
        path.write_bytes(before)
    right = tflite._litert_runner

    def wrong(file):
        run = right(file)
        return lambda image: run(image) * np.float32(1.001)

    monkeypatch.setattr(tflite, "_litert_runner", wrong)
    with pytest.raises(KerassegError, match=r"disagrees with Keras: relative error 0\.001 .* no file was written"):
        export_tflite(small, path, input_size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == (["model.tflite"] if before else [])
    assert not before or path.read_bytes() == before
    # The same with a wider tolerance passes: it is the tolerance that refused.
    assert export_tflite(small, path, input_size=SIZE, tolerance=2e-3).relative_error == pytest.approx(1e-3, rel=0.05)


def test_nan_never_passes(tmp_path, monkeypatch, small):
    monkeypatch.setattr(tflite, "_litert_runner", lambda file: lambda image: np.full((*image.shape[:3], 5), np.nan))
    with pytest.raises(KerassegError, match="disagrees"):
        export_tflite(small, tmp_path / "a.tflite", input_size=SIZE, tolerance=1e6)
    assert not list(tmp_path.iterdir())


def test_constant_logits_prove_nothing(tmp_path):
    untrained = MODELS["fcn32s"](5, width_multiplier=1 / 16, padding="same")
    with pytest.raises(KerassegError, match="logits are constant"):
        export_tflite(untrained, tmp_path / "a.tflite", input_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_what_has_several_outputs_or_inputs_is_refused(tmp_path):
    heads = MODELS["fcn32s"]({"semantic": 5, "geometric": 3}, width_multiplier=1 / 16, padding="same")
    with pytest.raises(KerassegError, match="fcn32s has 1 inputs and 2 outputs; a file has one of each"):
        export_tflite(heads, tmp_path / "a.tflite", input_size=SIZE)
    image = keras.Input((8, 8, 3))
    pair = keras.Model([image, keras.Input((8, 8, 3))], keras.layers.Conv2D(3, 1)(image), name="pair")
    with pytest.raises(KerassegError, match="pair has 2 inputs"):
        export_tflite(pair, tmp_path / "a.tflite", input_size=(8, 8))
    assert not list(tmp_path.iterdir())


def test_the_name_and_the_size_are_checked(tmp_path, small):
    with pytest.raises(KerassegError, match=r"expected a file name that ends in \.tflite"):
        export_tflite(small, tmp_path / "model.onnx", input_size=SIZE)
    fixed = network("fcn32s", padding="same", input_shape=(32, 32, 3))
    with pytest.raises(KerassegError, match="cannot be converted to TFLite"):
        export_tflite(fixed, tmp_path / "model.tflite", input_size=(40, 40))
    assert not list(tmp_path.iterdir())


def test_without_labels_there_are_no_classes(tmp_path, small):
    export_tflite(small, tmp_path / "a.tflite", input_size=(32, 32))
    assert json.loads((tmp_path / "a.json").read_text())["classes"] is None
    assert len(LABELS["shapes"].classes) == 6


def test_parity_is_the_worst_image():
    reference = np.stack([np.eye(3)] * 2)[None].astype(np.float32)
    other = reference.copy()
    other[0, 0, 0] = (0.4, 0.5, 0.0)
    answers = {1: reference, 2: other}
    found = measure_parity(lambda key: answers[key], lambda key: reference, [1, 2])
    # The largest difference is 1 - 0.4 = 0.6 of a largest logit of 1; one pixel of six has another class.
    assert found == Parity(pytest.approx(0.6, rel=1e-6), pytest.approx(5 / 6), 2)
    assert measure_parity(lambda key: reference[..., :2], lambda key: reference, [1]).relative_error == float("inf")


def test_a_network_that_cannot_be_converted_is_one_line(tmp_path, monkeypatch, small):
    class ConverterError(Exception):
        pass

    def fail(functions):
        raise ConverterError("<unknown>:0: error: op is neither a custom op nor a flex op\nand two pages more")

    monkeypatch.setattr("tensorflow.lite.TFLiteConverter.from_concrete_functions", fail)
    with pytest.raises(KerassegError, match=r"cannot be converted to TFLite: <unknown>:0: error: op is neither a custom") as caught:
        export_tflite(small, tmp_path / "a.tflite", input_size=(32, 48))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
