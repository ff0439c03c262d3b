import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import run, toy, tree, write_camvid
from helpers import assert_close, give_random_weights, images, random_model

import kerasseg
from kerasseg import KerassegError, predict
from kerasseg.cli import evaluate, inspect_model, recompute_batch_norm, train, tune_crf
from kerasseg.cli import predict as predict_command
from kerasseg.cli.opening import open_run_or_model, root_of
from kerasseg.data import open_data
from kerasseg.evaluation import Fitted, Inference, WholeImage
from kerasseg.evaluation.crf_store import _checksum
from kerasseg.evaluation.exported import _at_pixels, gives_labels
from kerasseg.export import Target, export_model
from kerasseg.labels import LABELS
from kerasseg.layers import coordinate_map
from kerasseg.recipes import RECIPES

# That of the built-in drawings.
SIZE = (96, 128)
SMALL = (24, 32)


def write(model, root, name, **target):
    format = {"tflite": "tflite", "onnx": "onnx"}.get(name.rsplit(".")[-1], "saved_model")
    target = {"input_size": SMALL, **target}
    labels, recipe = LABELS["shapes"], RECIPES["shapes"].override(arch="toy")
    return export_model(model, root / name, Target(format, **target), labels=labels, recipe=recipe, measure_latency=False).path


@pytest.fixture(scope="module")
def model():
    made = give_random_weights(toy(6))
    score, drawing = made.get_layer("score"), open_data("shapes", split="val", length=1)[0].image
    # No class shall win everywhere.
    score.bias.assign_sub(made(drawing[np.newaxis].astype("float32")).numpy().mean((0, 1, 2)))
    return made


@pytest.fixture(scope="module")
def root(model, tmp_path_factory):
    """Files of all kinds of a network that takes no time; each has its description beside it."""
    root = tmp_path_factory.mktemp("exported")
    for name in ("lite.tflite", "standard.onnx", "saved"):
        write(model, root, name)
    write(model, root, "labels.tflite", result="labels")
    write(model, root, "probabilities.onnx", result="probabilities")
    write(model, root, "any.onnx", input_size=None, batch_size=None)
    return root


def assert_same_scores(found, expected, tolerance):
    """Demands that two reports say the same of a network, whose predictions vary."""
    found, expected = (json.loads((path / "scores.json").read_text()) for path in (found, expected))
    assert np.count_nonzero(np.sum(expected["confusion_matrix"], 0)) > 2 and expected["mean_iou"] > 0
    for key in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou", "per_class_iou", "per_class_accuracy"):
        # A class that no image has, has no accuracy.
        one, other = (np.array(report[key], float) for report in (found, expected))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=key)


def test_evaluate_gives_a_file_the_scores_of_its_network(tmp_path, capsys):
    model = random_model("fcn8s", 6, padding="same")
    model.save(tmp_path / "network.keras")
    common = ("--data", "shapes", "--limit", "4", "--pictures", "0")
    assert run(evaluate, tmp_path / "network.keras", *common, "--report", tmp_path / "keras") == 0
    for name in ("lite.tflite", "standard.onnx", "saved"):
        path = write(model, tmp_path, name, input_size=SIZE)
        capsys.readouterr()
        # The data set is the description's.
        assert run(evaluate, path, *common[2:], "--report", tmp_path / f"of-{name}") == 0
        assert "scales 1; fitted" in capsys.readouterr().out
        assert_same_scores(tmp_path / f"of-{name}", tmp_path / "keras", 1e-4)


@pytest.mark.parametrize("name", ["lite.tflite", "standard.onnx", "saved", "any.onnx"])
def test_a_file_is_a_model(root, model, name):
    opened = kerasseg.load_model(root / name)
    assert opened.name == "toy" and opened.output.shape[-1] == 6 and opened.count_params() == 0
    assert tuple(opened.input.shape[1:3]) == ((None, None) if name == "any.onnx" else SMALL)
    pictures = images(SMALL, 3, block=5).astype("float32")
    assert_close(opened.predict(pictures, verbose=0), model(pictures), 1e-5)
    # A photograph of another size: as the network of that size alone would see it.
    photograph = images((41, 30), 1, block=5)[0]
    fixed = toy(6, input_shape=(*SMALL, 3))
    fixed.set_weights(model.get_weights())
    expected = predict(*((model, photograph) if name == "any.onnx" else (fixed, photograph)))
    assert (predict(opened, photograph) == expected).mean() > 0.998 and predict(opened, photograph).shape == (41, 30)
    assert len(np.unique(expected)) > 2
    with pytest.raises(KerassegError, match="cannot be saved as a Keras model"):
        opened.save(root / "again.keras")


def test_probabilities_and_labels_become_logits(root, model):
    picture = images(SMALL, 1, block=5).astype("float32")
    expected = model(picture).numpy()
    logits = kerasseg.load_model(root / "probabilities.onnx")(picture)
    assert_close(keras.ops.softmax(logits), keras.ops.softmax(expected), 1e-5)
    labels = kerasseg.load_model(root / "labels.tflite")(picture).numpy()
    assert labels.shape == (1, *SMALL, 6) and (labels.sum(-1) == 1).all() and set(np.unique(labels)) == {0, 1}
    assert (labels.argmax(-1) == expected.argmax(-1)).mean() > 0.995


def test_coarse_labels_lie_where_their_cells_do(tmp_path):
    model = random_model("fcn32s", 6)
    coarse = write(model, tmp_path, "coarse.tflite", result="coarse_labels", input_size=(65, 97))
    opened, picture = kerasseg.load_model(coarse), images((65, 97), 1).astype("float32")
    nearest = kerasseg.load_model(write(model, tmp_path, "nearest.tflite", result="nearest_labels", input_size=(65, 97)))
    assert opened.output.shape[1:] == (65, 97, 6)
    np.testing.assert_array_equal(opened(picture), nearest(picture))
    assert len(np.unique(opened(picture).numpy().argmax(-1))) > 1
    # By hand: cells of three pixels, the first at pixel 1.
    cells = {"rows": {"scale": 3.0, "shift": 1.0}, "columns": None}
    labels = np.array([[[4, 5], [6, 7]]])
    assert _at_pixels(labels, cells, (6, 2)).tolist() == [[[4, 4], [4, 4], [4, 4], [6, 6], [6, 6], [6, 6]]]
    assert coordinate_map(model.get_layer("score_fr").output)[0] == 32


def test_heads_of_a_file_are_evaluated_by_name(tmp_path):
    image = keras.Input((None, None, 3), name="image")
    heads = {name: keras.layers.Conv2D(count, 3, padding="same")(image) for name, count in (("semantic", 6), ("geometric", 3))}
    model = give_random_weights(keras.Model(image, heads, name="two"))
    picture = images(SMALL, 1, block=5)[0]
    for name in ("two.tflite", "other.onnx"):
        opened = kerasseg.load_model(write(model, tmp_path, name))
        assert list(opened.output) == ["semantic", "geometric"]
        for output in (None, "geometric"):
            np.testing.assert_array_equal(predict(opened, picture, output=output), predict(model, picture, output=output))


def test_what_is_no_map_is_left_out(model, tmp_path):
    def write_foreign(name, *kept):
        def function(image):
            logits = model(image, training=False)
            # First by name.
            found = {"aside": tf.reduce_mean(logits, (1, 2)), "logits": logits}
            return {key: found[key] for key in kept}

        module = tf.Module()
        module.model, module.function = model, tf.function(function, autograph=False)
        signature = module.function.get_concrete_function(tf.TensorSpec((1, *SMALL, 3), tf.float32, name="image"))
        tf.saved_model.save(module, str(tmp_path / name), signatures=signature)
        return tmp_path / name

    opened, picture = kerasseg.load_model(write_foreign("both", "aside", "logits")), images(SMALL, 1, block=5)[0]
    assert not isinstance(opened.output, dict) and not gives_labels(opened)
    np.testing.assert_array_equal(predict(opened, picture), predict(model, picture))
    with pytest.raises(KerassegError, match=r"^[^\n]*gives 'aside' of shape \(1, 6\): expected logits[^\n]*$"):
        kerasseg.load_model(write_foreign("none", "aside"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tta",),
        ("--windows", "24x32"),
        ("--crf", "deeplab_v1"),
        ("--flip", "--boundary", "3"),
        ("--scales", "0.25", "--calibration"),
    ],
)
def test_evaluate_does_with_files_what_it_does_with_networks(root, model, tmp_path, capsys, arguments):
    fixed = toy(6, input_shape=(*SMALL, 3))
    fixed.set_weights(model.get_weights())
    fixed.save(tmp_path / "fixed.keras")
    common = ("--data", "shapes", "--limit", 2, "--pictures", 1, *arguments)
    for path in (tmp_path / "fixed.keras", root / "lite.tflite"):
        assert run(evaluate, path, *common, "--report", tmp_path / path.stem) == 0
    capsys.readouterr()
    # One pixel more or less is 4e-5 of an image's, and more of a class'.
    assert_same_scores(tmp_path / "lite", tmp_path / "fixed", 1e-3)


def test_evaluate_against_another_file(root, capsys, monkeypatch):
    assert run(evaluate, root / "lite.tflite", "--against", root / "standard.onnx", "--limit", 2, "--pictures", 0) == 0
    out = capsys.readouterr().out
    assert "lite-tflite - standard-onnx  mean_iou" in out and re.search(r"mean_iou +\+0\.00", out)
    # Each has a folder of its own.
    for name in ("lite-tflite", "standard-onnx"):
        assert (root / name / "report" / "val-first-2" / "scores.json").is_file()
    assert root_of(root / "network.keras") == root / "network" and root_of(root) == root
    # A SavedModel is deployed as the folder that it is.
    content = tree(root / "saved")
    assert run(evaluate, root / "saved", "--limit", 1, "--pictures", 0) == 0
    assert (root / "saved-results" / "report" / "val-first-1" / "scores.json").is_file() and tree(root / "saved") == content
    monkeypatch.chdir(root / "saved")
    assert root_of(Path(".")) == root / "saved-results"


def test_labels_refuse_what_needs_scores(root, capsys):
    common = (root / "labels.tflite", "--limit", 1, "--pictures", 0)
    assert run(evaluate, *common) == 0
    for option, what in (
        ("--tta", "several scales"),
        ("--flip", "mirrored"),
        ("--crf", "a CRF needs"),
        ("--calibration", "calibration"),
    ):
        capsys.readouterr()
        assert run(evaluate, *common, *((option, "deeplab_v1") if option == "--crf" else (option,))) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and what in error and "gives labels" in error
    labelled = kerasseg.load_model(root / "labels.tflite")
    with pytest.raises(KerassegError, match=r"expected no CRF \(--crf none\), or a file exported with --result logits"):
        predict(labelled, images(SMALL, 1)[0], crf="deeplab_v1")


def test_what_a_description_knows(root, tmp_path, capsys):
    opened = open_run_or_model(root / "lite.tflite", exported=True)
    assert opened.recipe.data == "shapes" and opened.recipe.arch == "toy" and opened.labels is LABELS["shapes"]
    # The classes of a folder of one's own are nobody's table.
    values = json.loads((root / "lite.json").read_text())
    values.update(classes=list("abcdef"), label_table="folder", palette=[[index, 0, 0] for index in range(6)], recipe=None)
    (tmp_path / "lite.json").write_text(json.dumps(values))
    (tmp_path / "lite.tflite").write_bytes((root / "lite.tflite").read_bytes())
    opened = open_run_or_model(tmp_path / "lite.tflite", exported=True)
    assert opened.recipe is None and opened.labels.classes == tuple("abcdef") and opened.labels.palette[5] == (5, 0, 0)
    (tmp_path / "lite.json").write_text(json.dumps({**values, "recipe": {"data": "shapes", "of_tomorrow": 1}}))
    with pytest.raises(KerassegError, match=r"^the recipe in [^\n]*lite.json cannot be read [^\n]*of_tomorrow[^\n]*$"):
        open_run_or_model(tmp_path / "lite.tflite", exported=True)
    (tmp_path / "lite.json").unlink()
    assert capsys.readouterr().err == ""
    opened = open_run_or_model(tmp_path / "lite.tflite", exported=True)
    assert not any(opened[2:]) and opened.model.output.shape[-1] == 6
    note = f"note: no lite.json beside {tmp_path / 'lite.tflite'}: taken as RGB 0-255 in, logits out\n"
    assert capsys.readouterr().err == note


def test_a_file_of_any_size_without_description_counts_its_classes(root, tmp_path):
    (tmp_path / "any.onnx").write_bytes((root / "any.onnx").read_bytes())
    assert kerasseg.load_model(tmp_path / "any.onnx").output.shape == (None, None, None, 6)
    (tmp_path / "labels.tflite").write_bytes((root / "labels.tflite").read_bytes())
    with pytest.raises(KerassegError, match=r"^[^\n]*does not say how many classes[^\n]*--labels[^\n]*$"):
        kerasseg.load_model(tmp_path / "labels.tflite")


def test_data_of_a_folder_need_it_named(root, tmp_path, capsys):
    for name in ("lite.tflite", "lite.json"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    values = json.loads((root / "lite.json").read_text())
    values["recipe"]["data"] = "camvid"
    (tmp_path / "lite.json").write_text(json.dumps(values))
    assert run(evaluate, tmp_path / "lite.tflite") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--data-dir" in error
    write_camvid(tmp_path / "camvid")
    assert run(evaluate, tmp_path / "lite.tflite", "--data-dir", tmp_path / "camvid") == 2
    # Which has 11 classes.
    assert "the network has 6 classes" in capsys.readouterr().err


def test_predict_writes_masks(root, model, tmp_path, capsys):
    from PIL import Image

    photograph = open_data("shapes", split="val", size=SMALL, length=1)[0].image
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    np.save(tmp_path / "large.npy", images((50, 70), 1, block=5)[0])
    for name in ("lite.tflite", "standard.onnx", "labels.tflite"):
        out = tmp_path / name
        assert (
            run(predict_command, root / name, tmp_path / "photo.png", tmp_path / "large.npy", "--kinds", "index", "--out", out) == 0
        )
        mask = np.asarray(Image.open(out / "index" / "photo.png"))
        assert (mask == predict(model, photograph)).mean() > 0.995
        assert np.load(out / "index" / "large.npy").shape == (50, 70)
    capsys.readouterr()


def test_commands_that_need_a_network_refuse_a_file(root, tmp_path, capsys):
    file = root / "lite.tflite"
    for command, *arguments in (
        (inspect_model, file),
        (recompute_batch_norm, file),
        (train, "--arch", "fcn8s", "--init", file, "--run-dir", tmp_path / "run", "--iterations", 1),
        (evaluate, file, "--output-stride", 8),
        (evaluate, file, "--output-stride", 8, "--data", "shapes"),
        (evaluate, file, "--strategy", "mirrored", "--replicas", 2),
        (evaluate, tmp_path / "run", "--against", file, "--strategy", "mirrored", "--replicas", 2),
        (predict_command, root / "saved", tmp_path, "--out", tmp_path / "out"),
    ):
        capsys.readouterr()
        assert run(command, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        if "mirrored" in arguments:
            assert "--strategy mirrored: an exported file runs on one device, omit it" in error
        elif command is not predict_command:
            assert str(file) in error and ("exported file" in error or "exported with" in error)


def test_a_search_for_a_crf_tells_files_apart(root, tmp_path, capsys):
    values = json.loads((root / "labels.json").read_text())
    (tmp_path / "labels.tflite").write_bytes((root / "labels.tflite").read_bytes())
    # The command has no option to leave out the recipe's.
    for crf in (None, "deeplab_v1"):
        values["recipe"]["crf"] = crf
        (tmp_path / "labels.json").write_text(json.dumps(values))
        assert run(tune_crf, tmp_path / "labels.tflite", "--images", 1, "--workers", 1, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.endswith("gives labels, and a CRF needs scores: expected a file exported with --result logits\n")
        assert error.count("\n") == 1
    one, same, other = (kerasseg.load_model(root / name) for name in ("lite.tflite", "lite.tflite", "standard.onnx"))
    assert _checksum(one) == _checksum(same) != _checksum(other)
    assert tune_crf.parser().parse_args([str(root / "lite.tflite")]).model == str(root / "lite.tflite")


def test_the_way_of_running_is_told(root):
    opened = kerasseg.load_model(root / "lite.tflite")
    assert kerasseg.evaluation.fitted.usual_method(opened) == Fitted()
    whole = Inference(method=WholeImage())
    with pytest.raises(KerassegError, match="takes only 24x32: resize the image, use windows of that size"):
        kerasseg.evaluation.predict_with_classes(opened, images((41, 30), 1)[0], whole)
