"""What a file gives: probabilities and labels are Keras' own, at the image's size or before the scores are resized to it."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from helpers import give_random_weights, images, random_model
from test_export import SIZE, export, tiny

from kerasseg import KerassegError
from kerasseg.export import RESULTS, Target, trace
from kerasseg.export.graph import plan
from kerasseg.layers import BilinearUpsampling, Conv2D, CropLike
from kerasseg.models import MODELS
from kerasseg.runtimes import open_file

# Deep ones are made of the same parts.
SHALLOW = {"deeplab_v3": {"backbone": "resnet50"}}


def fcn(*size):
    """Scores at stride 4, behind a border of 10 and a kernel of 4, upsampled by 8 taps and cropped, as those of FCN-32s are."""
    image = keras.Input((*(size or (None, None)), 3), name="image")
    x = keras.layers.ZeroPadding2D(10)(keras.layers.Rescaling(1 / 64)(image))
    scores = Conv2D(5, 4, strides=4, name="score")(x)
    # Cell i has its centre at pixel 4 · i + 3/2 − 10; what is upsampled by 8 taps begins 3 1/2 pixels before the first centre.
    upsampled = BilinearUpsampling(kernel_size=8, strides=4, name="up")(scores)
    return give_random_weights(keras.Model(image, CropLike(offset=12, name="crop")([upsampled, image]), name="fcn"))


def scores_of(model, name, image):
    return np.asarray(keras.Model(model.input, model.get_layer(name).output)(image))


@pytest.fixture(scope="module")
def image():
    return np.float32(images(SIZE, 1, block=3))


@pytest.fixture(scope="module", params=["fcn", "deeplab"])
def model(request):
    # Corners on corners, the other alignment there is.
    return fcn() if request.param == "fcn" else tiny()


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize("result", RESULTS)
def test_results_are_keras_own(tmp_path, model, image, result, format):
    described = export(model, tmp_path / f"a.{format}", format=format, result=result)
    found = open_file(tmp_path / f"a.{format}").run(image)
    logits = np.asarray(model(image))
    scores = scores_of(model, "score" if model.name == "fcn" else model.layers[-2].name, image)
    name = "labels" if result.endswith("labels") else result
    assert list(found) == [name] and described.outputs[name]["meaning"] == result
    assert described.outputs[name]["shape"] == list(found[name].shape)
    assert described.outputs[name]["type"] == ("uint8" if name == "labels" else "float32") == str(found[name].dtype)
    if result == "labels":
        np.testing.assert_array_equal(found[name], logits.argmax(-1))
        assert len(np.unique(found[name])) > 1
    elif result == "coarse_labels":
        np.testing.assert_array_equal(found[name], scores.argmax(-1))
        rows = {"fcn": {"scale": 4.0, "shift": -8.5}, "tiny": {"scale": 4.0, "shift": 0.0}}[model.name]
        assert described.outputs[name]["cells"]["rows"] == rows
    elif result == "nearest_labels":
        cells = scores.argmax(-1)
        # By hand: the nearest centre of all, the later of two.
        centres = [(4 * np.arange(n) - 8.5 if model.name == "fcn" else np.linspace(0, side - 1, n), side) for n, side in
                   zip(cells.shape[1:], SIZE, strict=True)]  # fmt: skip
        rows, columns = ([_nearest(places, pixel) for pixel in range(side)] for places, side in centres)
        np.testing.assert_array_equal(found[name], cells[:, rows][:, :, columns])
        assert 0.5 < (found[name] == logits.argmax(-1)).mean() < 1
    elif result == "probabilities":
        expected = np.exp(logits - logits.max(-1, keepdims=True))
        np.testing.assert_allclose(found[name], expected / expected.sum(-1, keepdims=True), atol=1e-4)
    else:
        np.testing.assert_allclose(found[name], logits, atol=1e-4 * np.abs(logits).max())


def _nearest(places, pixel) -> int:
    distances = [abs(Fraction(float(place)).limit_denominator(10**4) - pixel) for place in places]
    return max(index for index, distance in enumerate(distances) if distance == min(distances))


def test_the_cells_of_the_papers_networks():
    # FCN, fcn.berkeleyvision.org: 100 pixels before the image; 64 taps of stride 32, cropped at 19: 31.5 − 19 from the border.
    found = plan(random_model("fcn32s"), Target(input_size=(65, 97), result="nearest_labels")).cells["labels"]
    assert found.rows == found.columns == (32, Fraction(25, 2))
    # Pixel 28 is 15.5 from cell 0 and 16.5 from cell 1.
    np.testing.assert_array_equal(np.flatnonzero(np.diff(found.nearest_rows)), [28, 60])
    # DeepLab v3 at a multiple of the stride plus 1: every 16th pixel is a cell; half way, the later one.
    found = plan(random_model("deeplab_v3", backbone="resnet50"), Target(input_size=(65, 97), result="nearest_labels")).cells[
        "labels"
    ]
    assert found.rows == found.columns == (16, 0)
    np.testing.assert_array_equal(found.nearest_columns, (np.arange(97) + 8) // 16)


# Cell i of the scores has its centre at pixel scale · i + shift. FCN-8s: 100 pixels of border, 16 taps of stride 8 cropped at 31:
# 7.5 − 31. DeepLab v1's 4x4 kernel begins a pixel before that; its odd sides end on cells. v2: corners on corners.
PLACES = {"fcn8s": (8, -23.5), "deeplab_v1": (8, -7), "deeplab_v2_vgg16": (8, 0)}


@pytest.mark.parametrize("arch", PLACES)
def test_every_pixel_has_its_nearest_cell(arch):
    model, (scale, shift) = MODELS[arch](3, width_multiplier=1 / 16), PLACES[arch]
    made = plan(model, Target(input_size=(65, 97), result="nearest_labels"))
    cells, shape = made.cells["labels"], made.model.compute_output_shape((1, 65, 97, 3))["labels"]
    for nearest, side, count in ((cells.nearest_rows, 65, shape[1]), (cells.nearest_columns, 97, shape[2])):
        by_hand = [min(max(int(np.floor((pixel - shift) / scale + 0.5)), 0), count - 1) for pixel in range(side)]
        np.testing.assert_array_equal(nearest, by_hand)
    # Of any size, the same.
    found = plan(model, Target("onnx", result="coarse_labels")).cells["labels"]
    assert found.rows == found.columns == cells.rows == cells.columns == (scale, shift) and found.nearest_rows is None


def test_places_that_follow_the_size_are_not_told():
    # Corners on corners: four pixels a cell at a multiple of 4 plus 1, else more.
    assert plan(tiny(), Target("onnx", result="coarse_labels")).cells == {"labels": None}
    assert plan(tiny(), Target("onnx", input_size=(65, 97), result="coarse_labels")).cells["labels"].rows == (4, 0)


@pytest.mark.parametrize("arch", [arch for arch in MODELS if arch not in ("deeplab_v2_resnet101", "deeplab_v3_cascade", "gcn")])
def test_every_network_has_every_result(arch):
    """Planned and shaped; tests/test_export_parity.py writes and runs files of all of them."""
    model, size = MODELS[arch](3, width_multiplier=1 / 16, **SHALLOW.get(arch, {})), (224, 224) if arch == "deconvnet" else (65, 97)
    whole = arch in ("deconvnet", "crf_rnn")
    for result in RESULTS:
        made = plan(model, Target(input_size=size, result=result))
        (name,) = made.model.output
        assert made.meaning(name) == ("labels" if whole and result.endswith("labels") else result)
        assert name == ("labels" if result.endswith("labels") else result)
        if result == "nearest_labels" and not whole:
            cells = made.cells[name]
            for nearest, side in zip((cells.nearest_rows, cells.nearest_columns), size, strict=True):
                assert len(nearest) == side and (np.diff(nearest) >= 0).all() and nearest[-1] > nearest[0] >= 0
    assert (plan(model, Target("onnx", result="coarse_labels")).model.output["labels"].shape[-1]) == 3


def test_names_that_layers_have_too(tmp_path, image):
    # A layer may be called as the file's input or output is.
    given = keras.Input((None, None, 3), name="labels")
    x = keras.layers.Rescaling(1 / 64, name="image")(given)
    model = give_random_weights(keras.Model(given, Conv2D(4, 3, padding="same", name="logits")(x), name="logits"))
    for format in ("tflite", "onnx"):
        export(model, tmp_path / f"{format}.{format}", format=format)
        np.testing.assert_allclose(open_file(tmp_path / f"{format}.{format}").run(image)["logits"], model(image), atol=1e-3)

    # An output may be called as an operation is, but not as the input.
    heads = tiny(heads={"Cast": 3, "ArgMax": 4})
    export(heads, tmp_path / "heads.tflite", result="labels")
    found, theirs = open_file(tmp_path / "heads.tflite").run(image), heads(image)
    for name in ("Cast", "ArgMax"):
        np.testing.assert_array_equal(found[name], np.argmax(theirs[name], -1))
    # Nor by anything that TensorFlow lets no operation be called; alone, it is called what it is.
    for wrong in ("a b", "köpfe", "a:0", "", "_a"):
        odd = keras.Model(heads.input, {wrong: heads.output["Cast"], "b": heads.output["ArgMax"]}, name="odd")
        for format in ("tflite", "onnx"):
            with pytest.raises(KerassegError, match=rf"^odd has an output '{wrong}', which a file cannot call so: pass output="):
                plan(odd, Target(format, input_size=SIZE))
        trace(odd, Target(input_size=SIZE, output=wrong))
    export(odd, tmp_path / "odd", format="saved_model")
    pair = keras.Model(heads.input, {"image": heads.output["Cast"], "b": heads.output["ArgMax"]})
    with pytest.raises(KerassegError, match="has an output 'image', which is what the file's input is called"):
        plan(pair, Target(input_size=SIZE))


def test_a_trace_is_frozen_and_named():
    traced = trace(tiny(heads={"a": 3, "b": 4}), Target(input_size=SIZE, batch_size=2))
    assert not traced.variables and not [node.op for node in traced.graph.as_graph_def().node if "Variable" in node.op]
    assert [tensor.name for tensor in traced.inputs] == ["image:0"] and traced.inputs[0].shape == (2, *SIZE, 3)
    assert {name: tensor.name for name, tensor in traced.structured_outputs.items()} == {"a": "a:0", "b": "b:0"}
