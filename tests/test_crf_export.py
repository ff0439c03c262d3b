"""Networks that end in a CRF as files for devices: what TFLite cannot hold stays outside, and that is said."""

import json

import keras
import numpy as np
import pytest
from helpers import QUICK, assert_close, give_random_weights, images
from test_export import export, run_file

from kerasseg.cli import export as command
from kerasseg.crf import MeanField
from kerasseg.export import cut_for, cutting
from kerasseg.labels import generic_table
from kerasseg.layers import Conv2D
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

SIZE = (33, 47)


class Refinement(keras.layers.Layer):
    """Multiplies logits; an image of no weight beside them, as a CRF has one."""

    def __init__(self, factor=2, **arguments):
        super().__init__(**arguments)
        self.factor = factor

    def call(self, inputs):
        logits, image = inputs
        return self.factor * logits + 0 * image[..., :1]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(cutting.UNCONVERTIBLE, Refinement, lambda layer, format: "it doubles" if layer.factor == 2 else None)


def network(*layers):
    """Scores, and what stands behind them; each is called on what was before, and the image where it takes one."""
    image = keras.Input((None, None, 3), name="image")
    x = Conv2D(5, 3, padding="same", name="score")(keras.layers.Rescaling(1 / 128, name="small")(image))
    for layer in layers:
        x = layer([x, image]) if isinstance(layer, (Refinement, MeanField)) else layer(x)
    return give_random_weights(keras.Model(image, x, name="refined"))


def unaries(model, name, image):
    """What stands before the CRF, by Keras alone."""
    return np.asarray(keras.Model(model.input, model.get_layer(name).output)(image))


def crf(**arguments):
    return MeanField(2, theta_alpha=8.0, theta_beta=20.0, theta_gamma=2.0, name="crf", **arguments)


def test_what_cannot_be_held_is_left_out(registered):
    model = network(Refinement(name="refine"))
    cut = cut_for(model, "tflite")
    assert cut.left_out == "refine (Refinement): it doubles"
    assert cut.model.name == "refined" and [layer.name for layer in cut.model.layers] == ["image", "small", "score"]
    assert cut.model.get_layer("score") is model.get_layer("score")
    assert_close(2 * np.asarray(cut.model(images())), model(images()), 1e-6)
    # Also of a network that has a name for its only output, and of one that gives a list of one.
    for outputs in ({"a": model.output}, [model.output]):
        cut = cut_for(keras.Model(model.input, outputs, name="named"), "tflite")
        assert cut.left_out == "refine (Refinement): it doubles"
        (found,) = keras.tree.flatten(cut.model(images()))
        assert_close(2 * np.asarray(found), model(images()), 1e-6)
        assert not isinstance(outputs, dict) or list(cut.model.output) == ["a"]


def test_what_only_crops_behind_it_stays(registered):
    model = network(Refinement(), keras.layers.Cropping2D(3), keras.layers.Activation("linear"))
    cut = cut_for(model, "tflite")
    assert cut.left_out and cut.model.output.shape == model.output.shape
    assert_close(2 * np.asarray(cut.model(images())), model(images()), 1e-6)
    # Copies stand behind: the layers of the network are called no second time.
    assert all(len(layer._inbound_nodes) == 1 for layer in model.layers)


def test_two_of_them_are_both_left_out(registered):
    model = network(Refinement(name="one"), Refinement(name="two"))
    cut = cut_for(model, "tflite")
    assert [part.split()[0] for part in cut.left_out.split("; ")] == ["two", "one"]
    assert_close(4 * np.asarray(cut.model(images())), model(images()), 1e-6)


def test_what_can_be_held_is_left_alone(registered):
    plain = network()
    assert cut_for(plain, "tflite") == (plain, None)
    # Not at the end: there is no network without it.
    inside = network(Refinement(), Conv2D(4, 1))
    assert cut_for(inside, "tflite") == (inside, None)
    heads = MODELS["fcn32s"]({"semantic": 5, "geometric": 3}, **QUICK, padding="same")
    assert cut_for(heads, "tflite") == (heads, None)
    tripled = network(Refinement(3))
    assert cut_for(tripled, "tflite") == (tripled, None)


def test_a_file_ends_before_the_lattice(tmp_path):
    model = network(crf())
    parity = export(model, tmp_path / "model.tflite", SIZE).parity
    assert parity["relative_error"] < 1e-4 and parity["argmax_agreement"] > 0.999
    image = np.float32(images(SIZE, 1))
    before = unaries(model, "score", image)
    assert_close(run_file(tmp_path / "model.tflite", image), before)
    assert np.abs(np.asarray(model(image)) - before).max() > 0.1 * np.abs(before).max(), "the CRF does nothing"
    beside = json.loads((tmp_path / "model.json").read_text())
    assert beside["left_out"].startswith("crf (MeanField): ") and "\n" not in beside["left_out"]
    assert beside["outputs"] == {"logits": {"shape": [1, *SIZE, 5], "type": "float32", "meaning": "logits"}}


def test_without_a_crf_nothing_is_left_out(tmp_path):
    export(network(), tmp_path / "model.tflite", SIZE)
    assert json.loads((tmp_path / "model.json").read_text())["left_out"] is None


def test_the_exact_form_is_in_the_file(tmp_path):
    model = network(crf(method="exact"))
    parity = export(model, tmp_path / "model.tflite", (16, 24)).parity
    assert parity["relative_error"] < 1e-4 and parity["argmax_agreement"] > 0.999
    assert json.loads((tmp_path / "model.json").read_text())["left_out"] is None
    image = np.float32(images((16, 24), 1, block=8))
    refined = np.asarray(model(image))
    assert_close(run_file(tmp_path / "model.tflite", image), refined)
    assert np.abs(refined - unaries(model, "score", image)).max() > 0.1 * np.abs(refined).max()


def test_crf_rnn_ends_with_its_unaries(tmp_path):
    model = give_random_weights(MODELS["crf_rnn"](5, **QUICK, padding="same", iterations=2))
    export(model, tmp_path / "model.tflite", SIZE)
    image = np.float32(images(SIZE, 1))
    assert_close(run_file(tmp_path / "model.tflite", image), unaries(model, "coarse", image))


def test_the_crf_of_the_evaluation_is_told_of(tmp_path, capsys):
    names = [f"class {number}" for number in range(5)]
    for name, layers, crf_of_recipe in (("plain", (), "deeplab_v1"), ("refined", (crf(),), "deeplab_v1"), ("none", (), None)):
        recipe = RECIPES["shapes"].override(crf=crf_of_recipe, data_dir=str(tmp_path / "absent"), data="camvid")
        Run(tmp_path / name).begin(recipe.to_json(), generic_table(names))
        network(*layers).save(tmp_path / name / "model.keras")
        command.run([str(tmp_path / name), "--input-size", "32x40"])
        lines = capsys.readouterr().out.splitlines()
        left_out = json.loads((tmp_path / name / "export/tflite-32x40/model.json").read_text())["left_out"]
        sentence = "the DenseCRF of the evaluation (deeplab_v1) is not in the file, which gives what it would start from"
        assert (sentence in lines) == bool(crf_of_recipe)
        if name == "refined":
            assert left_out.startswith("crf (MeanField): ") and left_out.endswith(f"; {sentence}")
        else:
            assert left_out == (sentence if crf_of_recipe else None)


def test_the_command_says_so(tmp_path, capsys):
    for name, layers, said in (("plain", (), False), ("refined", (crf(),), True)):
        network(*layers).save(tmp_path / f"{name}.keras")
        command.run([str(tmp_path / f"{name}.keras"), "--input-size", "32x40", "--out", str(tmp_path / f"{name}.tflite")])
        lines = capsys.readouterr().out.splitlines()
        left_out = json.loads((tmp_path / f"{name}.json").read_text())["left_out"]
        assert len(lines) == 1 + said and "relative error" in lines[-1]
        if said:
            assert lines[0] == f"left out of the file, which ends with the logits before it: {left_out}"
