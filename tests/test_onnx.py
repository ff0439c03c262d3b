import logging
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from cli_helpers import ROOT
from helpers import assert_close, assert_varies, give_random_weights, images, random_model
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from kerasseg import KerassegError
from kerasseg.export import Target, trace
from kerasseg.export.onnx import OPSET, convert_onnx
from kerasseg.layers import AlignedResize, CeilMaxPooling2D, Conv2D


def converted(function, *shape, dtype=tf.float32):
    """A function's file, converted from the plain frozen graph."""
    traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec(shape, dtype, name="image"))
    frozen = convert_variables_to_constants_v2(traced)
    names = dict(zip(sorted(traced.structured_outputs), frozen.outputs, strict=True))
    return convert_onnx(SimpleNamespace(graph=frozen.graph, inputs=frozen.inputs, outputs=frozen.outputs, structured_outputs=names))


def run(content, image):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {given.name: image}), strict=True))


def test_names_axes_and_version_are_told():
    model = random_model("fcn32s", padding="same")
    content = convert_onnx(trace(model, Target("onnx", batch_size=None)))
    loaded = onnx.load_model_from_string(content)
    onnx.checker.check_model(loaded, full_check=True)
    assert {entry.domain: entry.version for entry in loaded.opset_import}[""] == OPSET == 18
    (given,), (result,) = loaded.graph.input, loaded.graph.output
    assert given.name == "image" and result.name == "logits"
    axes = [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (given, result)]
    assert axes[0] == ["batch", "height", "width", 3] and axes[1][:3] == ["batch", "logits_height", "logits_width"]
    for size, batch in (((33, 41), 2), ((20, 65), 1)):
        picture = images(size, batch).astype("float32")
        found = run(content, picture)["logits"]
        assert_close(found, model(picture, training=False), 1e-5)
        assert_varies(found)


@pytest.mark.parametrize(("kernel", "rate"), [(3, 2), (2, 3), (4, 5)])
def test_padding_of_dilated_convolutions_is_written_out(kernel, rate):
    image = keras.Input((None, None, 3))
    model = give_random_weights(keras.Model(image, Conv2D(4, kernel, dilation_rate=rate, padding="same")(image)))
    content = converted(lambda x: {"logits": model(x)}, None, None, None, 3)
    assert onnx.load_model_from_string(content).graph.output[0].type.tensor_type.shape.dim[3].dim_value == 4
    (node,) = [node for node in onnx.load_model_from_string(content).graph.node if node.op_type == "Conv"]
    found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    reach = (kernel - 1) * rate
    assert "auto_pad" not in found and found["pads"] == [reach // 2] * 2 + [reach - reach // 2] * 2
    for size in ((9, 14), (4, 5)):
        picture = images(size, block=2).astype("float32")
        assert_close(run(content, picture)["logits"], model(picture), 1e-5)


def test_whole_numbers_are_rounded_down_as_in_tensorflow():
    # By hand: −7 // 3 = −3, −7 % 3 = 2; ONNX' own quotient is −2.
    numbers = np.array([-7, -6, -1, 0, 1, 7], np.int32)

    def function(x):
        quotients = {"div": x // 3, "negative": x // -3, "up": -(-x // 3)}
        return {**quotients, "mod": tf.math.floormod(x, 3), "rest": tf.math.floormod(x, -4)}

    found = run(converted(function, None, dtype=tf.int32), numbers)
    assert found["div"].tolist() == [-3, -2, -1, 0, 0, 2]
    assert found["mod"].tolist() == [2, 0, 2, 0, 1, 1]
    assert found["negative"].tolist() == [2, 2, 0, 0, -1, -3]
    assert found["up"].tolist() == [-2, -2, 0, 0, 1, 3]
    assert found["rest"].tolist() == [-3, -2, -1, 0, -3, -1]
    parts = converted(lambda x: {"div": x // 3.0, "mod": tf.math.floormod(x, 3.0)}, None)
    found = run(parts, numbers.astype("float32"))
    assert found["div"].tolist() == [-3, -2, -1, 0, 0, 2] and found["mod"].tolist() == [2, 0, 2, 0, 1, 1]


def test_a_network_of_any_size_that_reflects_its_image():
    model = random_model("dilation_frontend")
    content = convert_onnx(trace(model, Target("onnx", batch_size=None)))
    for size, batch in (((33, 50), 2), ((48, 33), 1)):
        picture = images(size, batch, block=8).astype("float32")
        found = run(content, picture)["logits"]
        assert_close(found, model(picture, training=False), 1e-5)
        assert_varies(found)


@pytest.mark.parametrize("layer", [CeilMaxPooling2D(3, 2), CeilMaxPooling2D(3, 2, padding=1), AlignedResize(zoom=8)])
def test_layers_that_compute_sizes(layer):
    content = converted(lambda x: {"maps": layer(x)}, None, None, None, 3)
    for size in ((6, 9), (7, 8), (10, 5)):
        picture = images(size, block=2).astype("float32")
        assert_close(run(content, picture)["maps"], layer(picture), 1e-5)


def test_an_operation_that_onnx_has_not_is_named():
    with pytest.raises(KerassegError, match=r"^[^\n]*no form of the operations Lgamma: [^\n]*--format saved_model$"):
        converted(lambda x: {"turned": tf.math.lgamma(x)}, 1, 9, 9, 3)

    def looped(x):
        body = lambda i, y: (i + 1, tf.math.lgamma(y))  # noqa: E731
        return {"turned": tf.while_loop(lambda i, y: i < 3, body, (0, x))[1]}

    with pytest.raises(KerassegError, match="Lgamma"):
        converted(looped, 1, 9, 9, 3)


@pytest.mark.parametrize("package", ["tf2onnx", "onnx"])
def test_a_missing_package_is_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KerassegError, match=r"^[^\n]*pip install 'kerasseg\[onnx\]'[^\n]*$"):
        converted(lambda x: {"y": x + 1}, 1, 2)


SILENT = """
import sys
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from kerasseg.export.onnx import convert_onnx
traced = tf.function(lambda image: {"y": tf.nn.max_pool2d(image, 3, 2, "SAME")}).get_concrete_function(tf.TensorSpec((1, 9, 9, 3)))
frozen = convert_variables_to_constants_v2(traced)
sys.stderr.flush()
print("begins", file=sys.stderr)
convert_onnx(frozen)
"""


def test_converting_is_silent_and_leaves_the_loggers_alone():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", SILENT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.split("begins\n")[1] == ""
    before = [logging.getLogger(name).level for name in ("tf2onnx", "tensorflow")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted(lambda x: {"y": x + 1}, 1, 2)
    assert [logging.getLogger(name).level for name in ("tf2onnx", "tensorflow")] == before
