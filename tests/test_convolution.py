"""Dilated convolution against Keras' own way, which rearranges the image, in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from kerasseg.layers import Conv2D, convolution

# Kernel, rate, padding, size: even kernels, rates that differ, windows larger than the image.
CASES = [
    (3, 2, "same", (9, 8)),
    (3, 2, "valid", (9, 8)),
    (3, (4, 3), "same", (7, 10)),
    (3, 6, "same", (4, 7)),
    (3, 12, "same", (5, 1)),
    ((1, 3), (2, 3), "same", (6, 9)),
    (4, 3, "same", (11, 13)),
    (4, (2, 1), "valid", (9, 8)),
    (2, 5, "same", (6, 7)),
    (1, 4, "same", (3, 4)),
    (7, 2, "same", (14, 15)),
]
SCRIPT = Path(__file__).with_name("without_onednn.py")


def twins(dtype="float32", reference_dtype="float64", channels=4, **arguments):
    """Ours and Keras' layer with the same weights."""
    pair = Conv2D(6, dtype=dtype, **arguments), keras.layers.Conv2D(6, dtype=reference_dtype, **arguments)
    generator = np.random.default_rng(1)
    for layer in pair:
        layer.build((None, None, None, channels))
    values = [generator.normal(0, 0.3, weight.shape) for weight in pair[0].weights]
    for layer in pair:
        layer.set_weights(values)
    return pair


def image(*size, channels=4):
    return np.random.default_rng(0).normal(0, 1, (2, *size, channels)).astype("float32")


def value_and_gradients(layer, x):
    """Output, and the gradients of a sum of its squares: for x, then for the weights."""
    weights = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(tf.cast(y, "float32" if y.dtype == tf.bfloat16 else y.dtype) ** 2)
    return [y, *tape.gradient(loss, [x, *weights])]


def operations(function, *specs):
    """Names of all operations of a function, those of its inner functions included."""
    definition = tf.function(function, specs, autograph=False).get_concrete_function().graph.as_graph_def()
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
    return [node for node in nodes if node.op not in ("Placeholder", "Const", "Identity")]


@pytest.mark.parametrize("unknown", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("kernel_size", "rate", "padding", "size"), CASES)
def test_dilated_values_and_gradients_are_keras(kernel_size, rate, padding, size, unknown):
    ours, keras_own = twins(kernel_size=kernel_size, dilation_rate=rate, padding=padding)
    x = tf.constant(image(*size))
    expected = value_and_gradients(keras_own, tf.cast(x, "float64"))
    specs = [tf.TensorSpec((None, None, None, 4) if unknown else x.shape)]
    received = tf.function(lambda x: value_and_gradients(ours, x), specs, autograph=False)(x)
    for got, wanted in zip(received, expected, strict=True):
        assert_close(got, wanted, 2e-6)
    for got, wanted in zip(value_and_gradients(ours, x), expected, strict=True):
        assert_close(got, wanted, 2e-6)


def test_the_image_is_not_rearranged():
    if not convolution.has_native_dilation("float32"):
        pytest.skip("no native dilation on this machine")
    spec = tf.TensorSpec((None, None, None, 4))
    for groups in (1, 2):
        ours, _ = twins(kernel_size=3, dilation_rate=(2, 4), padding="same", groups=groups)
        found = operations(lambda x, layer=ours: value_and_gradients(layer, x), spec)
        kinds = [node.op for node in found]
        assert "SpaceToBatchND" not in kinds
        for kind in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
            nodes = [node for node in found if node.op == kind]
            assert [list(node.attr["dilations"].list.i) for node in nodes] == [[1, 2, 4, 1]] * groups
    keras_own = twins(kernel_size=3, dilation_rate=2, padding="same")[1]
    assert "SpaceToBatchND" in [node.op for node in operations(keras_own, tf.TensorSpec((None, None, None, 4), "float64"))]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    ours, keras_own = twins(dtype=f"mixed_{dtype}", kernel_size=3, dilation_rate=2, padding="same")
    x = tf.constant(image(9, 8))
    received = value_and_gradients(ours, tf.cast(x, dtype))
    assert received[0].dtype == dtype and received[2].dtype == "float32"
    for got, wanted in zip(received, value_and_gradients(keras_own, tf.cast(x, "float64")), strict=True):
        assert_close(tf.cast(got, "float32"), wanted, 0.02 if dtype == "bfloat16" else 0.003)


def test_compiled_by_xla():
    ours, keras_own = twins(kernel_size=3, dilation_rate=2, padding="same")
    x = tf.constant(image(7, 6))
    received = tf.function(lambda x: value_and_gradients(ours, x), jit_compile=True, autograph=False)(x)
    for got, wanted in zip(received, value_and_gradients(keras_own, tf.cast(x, "float64")), strict=True):
        assert_close(got, wanted, 2e-6)


@pytest.mark.parametrize("shape", [(1, 9, 8, 4), (1, None, None, 4)])
def test_tflite_keeps_the_dilation(shape):
    from ai_edge_litert.interpreter import Interpreter

    ours, keras_own = twins(kernel_size=3, dilation_rate=(2, 3), padding="same")
    kernel, bias = (tf.constant(value) for value in ours.get_weights())
    function = tf.function(lambda x: ours.convolution_op(x, kernel) + bias, [tf.TensorSpec(shape)], autograph=False)
    content = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()]).convert()
    interpreter = Interpreter(model_content=content)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, 9, 8, 4))
    interpreter.allocate_tensors()
    assert {operation["op_name"] for operation in interpreter._get_ops_details()} - {"DELEGATE"} == {"CONV_2D"}
    x = image(9, 8)[:1]
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    assert_close(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), keras_own(x), 1e-5)


def test_configuration_and_weights_are_keras(tmp_path):
    arguments = {"kernel_size": (3, 5), "dilation_rate": 2, "padding": "same", "activation": "relu", "name": "one"}
    ours, keras_own = twins(reference_dtype="float32", kernel_regularizer="l2", **arguments)
    assert ours.get_config() == keras_own.get_config()
    assert [(w.path, w.shape, w.trainable) for w in ours.weights] == [(w.path, w.shape, w.trainable) for w in keras_own.weights]
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, ours(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[1]) is Conv2D
    np.testing.assert_array_equal(again(image(9, 8)), model(image(9, 8)))
    # And Keras' network takes the weights as they are.
    theirs = keras.Model(inputs, keras_own(inputs))
    model.save_weights(tmp_path / "all.weights.h5")
    keras_own.set_weights([np.zeros(w.shape) for w in keras_own.weights])
    theirs.load_weights(tmp_path / "all.weights.h5")
    assert_close(theirs(image(9, 8)), model(image(9, 8)), 1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_where_gradients_are_not_native_keras_own_way_is_taken(monkeypatch, groups):
    ours, _ = twins(kernel_size=3, dilation_rate=2, padding="same", groups=groups)
    x = tf.constant(image(9, 8))
    native = value_and_gradients(ours, x)
    monkeypatch.setattr(convolution, "has_native_dilation", lambda dtype: False)
    kinds = [node.op for node in operations(ours, tf.TensorSpec((None, None, None, 4)))]
    assert kinds.count("SpaceToBatchND") == groups
    for got, wanted in zip(value_and_gradients(ours, x), native, strict=True):
        assert_close(got, wanted, 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_probe_answers_within_a_graph_as_outside(dtype):
    answers = []
    tf.function(lambda: answers.append(convolution.has_native_dilation.__wrapped__(dtype)), autograph=False)()
    assert answers == [convolution.has_native_dilation(dtype)]


def test_the_probe_asks_once_and_trusts_no_wrong_gradient(monkeypatch):
    convolution.has_native_dilation("float32")
    for name in ("Conv2DBackpropInput", "Conv2DBackpropFilter"):
        right = getattr(tf.raw_ops, name)
        with monkeypatch.context() as patch:
            patch.setattr(tf.raw_ops, name, lambda right=right, **call: right(**{**call, "dilations": [1] * 4}))
            assert convolution.has_native_dilation.__wrapped__("float32") is False
            patch.setattr(tf.raw_ops, name, lambda **call: pytest.fail("asked again"))
            convolution.has_native_dilation("float32")


def test_without_onednn():
    environment = {
        **os.environ,
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("native") is False and len(result) == 8
    assert max(result.values()) < 1e-5, result
