"""Every network of MODELS as a TFLite and as an ONNX file: the short form of benchmarks/export_parity.py."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_varies, images, random_model

from kerasseg.export import TOLERANCES, Target, export_model
from kerasseg.export.graph import plan
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


@pytest.mark.parametrize("arch", list(MODELS))
def test_every_network_computes_the_same_as_a_file(tmp_path, arch):
    size, model = SIZES.get(arch, (33, 47)), build(arch)
    # What int8 is calibrated on is not what it is judged on.
    photograph, *calibration = (picture.astype(np.float32) for picture in images(size, batch=3, block=8))

    def exported(name, **target):
        known = {"images": [photograph], "calibration": calibration if "quantize" in target else ()}
        return export_model(model, tmp_path / name, Target(input_size=size, **target), measure_latency=False, **known)

    lite, onnx = exported("a.tflite"), exported("c.onnx", format="onnx")
    for _, found in (lite, onnx):
        # The photograph, noise, and a smooth image.
        assert (found.parity["images"], found.parity["real_images"]) == (3, 1)
        assert 0 <= found.parity["relative_error"] <= 1e-4 and found.parity["argmax_agreement"] >= 0.999
        assert (found.left_out is None) == (arch != "crf_rnn")
    # The gate's figures are the file's, and say something.
    received = open_file(lite.path).run(photograph[np.newaxis])["logits"]
    assert_varies(received)
    expected = plan(model, Target(input_size=size)).model(photograph[np.newaxis], training=False)["logits"]
    assert_close(received, expected)
    # A dilated convolution taken apart, and what needs more than TFLite itself, would show here.
    operations = lite.description.operations
    assert all(name == name.upper() and "BATCH" not in name for name in operations), operations
    assert operations["CONV_2D"] == onnx.description.operations["Conv"]

    if arch in INT8:
        found = exported("b.tflite", quantize="int8").description
        assert found.input["type"] != "float32" and found.parity["real_images"] == 1
        assert 0 < found.parity["rms_error"] <= TOLERANCES["int8"].rms_error
        assert found.parity["argmax_agreement"] >= TOLERANCES["int8"].argmax_agreement
    keras.backend.clear_session()
