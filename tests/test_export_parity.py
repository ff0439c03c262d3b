"""Every network of MODELS as a TFLite and as an ONNX file: the short form of benchmarks/export_parity.py."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_varies, images, random_model

from kerasseg.export import TOLERANCES, Target
from kerasseg.export.graph import plan, trace_plan
from kerasseg.export.onnx import convert_onnx
from kerasseg.export.tflite import convert_tflite
from kerasseg.models import MODELS
from kerasseg.runtimes import open_file

# Shallower forms of the same line, where there are some; every operation of the deep ones occurs.
SHALLOW = {
    "deeplab_v3": {"backbone": "resnet50"},
    "deeplab_v3_cascade": {"backbone": "resnet50", "last_block": 5},
    "gcn": {"backbone": "resnet50_msra"},
}
SIZES = {"deconvnet": (224, 224)}
# One of each line.
INT8 = ("fcn8s", "fcn_alexnet", "deeplab_v2_vgg16", "deeplab_v3", "dilation8", "gcn")


def build(arch):
    return random_model(arch, **SHALLOW.get(arch, {}))


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return open_file(path, check=False, threads=1)


@pytest.mark.parametrize("arch", list(MODELS))
def test_every_network_computes_the_same_as_a_file(tmp_path, arch):
    size = SIZES.get(arch, (33, 47))
    model = build(arch)
    made = plan(model, Target(input_size=size))
    assert made.left_out is None or arch == "crf_rnn"
    pictures = [picture.astype(np.float32) for picture in images(size, batch=2, block=8)]
    image = np.stack(pictures[:1])
    expected = made.model(image, training=False)["logits"].numpy()
    assert_varies(expected)

    function = trace_plan(made)
    lite = written(tmp_path, "a.tflite", convert_tflite(function).content)
    onnx = written(tmp_path, "a.onnx", convert_onnx(function))
    for file in (lite, onnx):
        received = file.run(image)
        assert list(received) == ["logits"] and received["logits"].dtype == np.float32
        assert_close(received["logits"], expected)
    # A dilated convolution taken apart, and what needs more than TFLite itself, would show here.
    operations = set(lite.operations())
    assert all(name == name.upper() and "BATCH" not in name for name in operations), operations
    assert "CONV_2D" in operations and lite.operations()["CONV_2D"] == onnx.operations()["Conv"]

    if arch in INT8:
        file = written(tmp_path, "b.tflite", convert_tflite(function, quantize="int8", calibration=pictures).content)
        received = file.run(image)["logits"]
        assert file.input_dtype != np.float32
        error = np.sqrt(np.mean((received - expected) ** 2) / np.mean(expected**2))
        agreement = (received.argmax(-1) == expected.argmax(-1)).mean()
        assert error <= TOLERANCES["int8"].rms_error and agreement >= TOLERANCES["int8"].argmax_agreement, (error, agreement)
    keras.backend.clear_session()
