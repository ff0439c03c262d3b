"""`tools/export.py`: what is asked for is written, compared and told; what does not pass is exit code 2."""

import json

import keras
import numpy as np
import pytest
from cli_helpers import ROOT, finish, run, toy, tree, write_camvid
from helpers import give_random_weights, images
from test_export import tiny

from kerasseg.cli import export
from kerasseg.export import exporting, tflite
from kerasseg.labels import LABELS
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run
from kerasseg.runtimes import open_file


def network(seed=0):
    return give_random_weights(toy(11), seed)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on photographs of 40×48, and what has no run around it."""
    root = tmp_path_factory.mktemp("place")
    data = write_camvid(root / "camvid")
    recipe = RECIPES["shapes"].override(data="camvid", data_dir=str(data), image_scale=0.5, validation_split="val")
    Run(root / "run").begin(recipe.to_json(), LABELS["camvid"])
    network().save(root / "run/model.keras")
    network(1).save(root / "other.keras")
    tiny(heads={"a": 3, "b": 11}).save(root / "heads.keras")
    return root


def described(folder) -> dict:
    (path,) = folder.rglob("model.json")
    return json.loads(path.read_text())


def exported(place, tmp_path, capsys, *options, path="model.tflite"):
    assert run(export, place / "run", "--out", tmp_path / path, *options) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_usual_place_and_size(place, capsys):
    assert run(export, place / "run") == 0
    path = place / "run/export/tflite-20x24/model.tflite"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: tflite, 0.0") and "against Keras on 6 images (4 of them photographs): relative error" in line
    assert " ms for 1 of 20x24, " in line and " threads, " in line
    # The size of the validation images at the run's scale.
    found = described(path.parent)
    assert found["input"]["shape"] == [1, 20, 24, 3] and found["label_table"] == "camvid" and len(found["classes"]) == 11
    assert found["recipe"]["image_scale"] == 0.5 and str(place) not in json.dumps(found)
    assert run(export, place / "other.keras", "--input-size", "16x20", "--argmax") == 0
    assert (place / "other-export/tflite-labels-16x20/model.tflite").is_file()


@pytest.mark.parametrize(
    ("options", "path", "shape", "outputs"),
    [
        (("--format", "onnx", "--input-size", "any", "--batch-size", "any"), "a.onnx", [None, None, None, 3], "logits"),
        (("--format", "saved_model", "--batch-size", "2"), "a", [2, 20, 24, 3], "logits"),
        (("--quantize", "float16", "--result", "probabilities"), "a.tflite", [1, 20, 24, 3], "probabilities"),
        (("--quantize", "dynamic", "--input-size", "33"), "a.tflite", [1, 33, 33, 3], "logits"),
        (("--result", "coarse_labels"), "a.tflite", [1, 20, 24, 3], "labels"),
    ],
)
def test_forms(place, tmp_path, capsys, options, path, shape, outputs):
    exported(place, tmp_path, capsys, *options, path=path)
    network = open_file(tmp_path / path)
    assert network.description.input["shape"] == shape and list(network.output_names) == [outputs]


def test_one_head(place, tmp_path, capsys):
    options = ("--input-size", "20x24", "--out", tmp_path / "a.tflite", "--output", "b", "--labels", "camvid")
    assert run(export, place / "heads.keras", *options) == 0
    assert described_outputs(tmp_path)["logits"] == {"shape": [1, 20, 24, 11], "type": "float32", "meaning": "logits", "head": "b"}


def described_outputs(folder) -> dict:
    return json.loads((folder / "a.json").read_text())["outputs"]


def test_a_spoiled_file_is_exit_code_2(place, tmp_path, capsys, monkeypatch):
    right, other = tflite.convert_tflite, network(1)

    def wrong(function, **arguments):
        target = exporting.Target(input_size=tuple(function.inputs[0].shape[1:3]))
        return right(exporting.trace_plan(exporting.plan(other, target)), **arguments)

    monkeypatch.setattr(tflite, "convert_tflite", wrong)
    (tmp_path / "a.tflite").write_bytes(b"older")
    assert run(export, place / "run", "--out", tmp_path / "a.tflite") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the TFLite file disagrees with Keras: relative error") and error.count("\n") == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.tflite", b"older")]


def test_check(place, tmp_path, capsys):
    line = exported(place, tmp_path, capsys)
    path, before = tmp_path / "model.tflite", tree(tmp_path)
    assert run(export, place / "run", "--check", path) == 0
    shown = capsys.readouterr().out.strip()
    assert shown.startswith(f"{path}: computes what Keras does; against Keras on 6 images") and shown.split("; ")[1] in line
    assert shown.endswith("; tolerance: relative error 0.0001, rms error 0.0001, argmax agreement 0.999")
    # The threshold is the one that was asked for.
    assert run(export, place / "run", "--check", path, "--tolerance", "0") == 2
    assert "tolerance 0)" in capsys.readouterr().err
    assert run(export, place / "other.keras", "--check", path) == 2
    assert "disagrees with Keras: relative error" in capsys.readouterr().err
    assert tree(tmp_path) == before
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(export, place / "run", "--check", path) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err
    assert run(export, place / "run", "--check", tmp_path / "none.tflite") == 2
    assert "no exported file at" in capsys.readouterr().err


def test_tolerances(place, tmp_path, capsys):
    assert run(export, place / "run", "--out", tmp_path / "a.tflite", "--quantize", "dynamic", "--tolerance", "1e-12") == 2
    assert "rms error" in capsys.readouterr().err and not list(tmp_path.iterdir())
    exported(place, tmp_path, capsys, "--quantize", "dynamic", "--tolerance", "0.2", "--agreement", "0.5")
    assert described(tmp_path)["tolerance"] == {"relative_error": None, "rms_error": 0.2, "argmax_agreement": 0.5}
    # What it had to pass is what it has to.
    assert run(export, place / "run", "--check", tmp_path / "model.tflite") == 0
    assert capsys.readouterr().out.strip().endswith("; tolerance: rms error 0.2, argmax agreement 0.5")
    about = json.loads((tmp_path / "model.json").read_text())
    about["tolerance"]["rms_error"] = 1e-12
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert run(export, place / "run", "--check", tmp_path / "model.tflite") == 2
    assert "rms error" in capsys.readouterr().err


def test_check_without_photographs_of_a_run(place, tmp_path, capsys):
    """Those that are named; with random images alone, int8 would be judged on what it was not made for."""
    exported(place, tmp_path, capsys, "--quantize", "int8")
    folder = place / "camvid/images/train"
    assert run(export, place / "run/model.keras", "--check", tmp_path / "model.tflite", "--calibration", folder) == 0
    assert "against Keras on 6 images (4 of them photographs)" in capsys.readouterr().out


def test_more_classes_than_labels_have_names(tmp_path, capsys):
    give_random_weights(toy(300)).save(tmp_path / "many.keras")
    assert run(export, tmp_path / "many.keras", "--input-size", "8x9") == 0
    found = described(tmp_path / "many-export")
    assert found["classes"] is None and found["outputs"]["logits"]["shape"][-1] == 300
    capsys.readouterr()
    for options, message in ((("--argmax",), "300 classes: labels are bytes"), (("--labels", "voc"), "has 21 classes")):
        assert run(export, tmp_path / "many.keras", "--input-size", "8x9", *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_outputs_that_are_a_list(tmp_path, capsys):
    heads = tiny(heads={"a": 3, "b": 11})
    keras.Model(heads.input, [heads.output["a"], heads.output["b"]], name="pair").save(tmp_path / "pair.keras")
    assert run(export, tmp_path / "pair.keras", "--input-size", "8x9", "--format", "onnx", "--output", "b") == 0
    found = described(tmp_path / "pair-export")
    assert found["outputs"]["logits"]["head"] == "b" and len(found["classes"]) == 11


MISTAKES = {
    "format": (("--format", "onix"), "unknown format 'onix': did you mean 'onnx'?"),
    "quantize": (("--quantize", "int9"), "unknown quantization 'int9': did you mean 'int8'?"),
    "result": (("--result", "label"), "unknown result 'label': did you mean 'labels'?"),
    "argmax": (("--argmax", "--result", "logits"), "--argmax is --result labels, received --result logits too"),
    "any size": (("--input-size", "any"), "a TFLite file takes images of one size: pass input_size"),
    "any batch": (("--batch-size", "any"), "takes one number of images a call"),
    "batch": (("--batch-size", "0"), "received '0', expected a number of images, or any"),
    "float": (("--format", "onnx", "--quantize", "int8"), "format onnx is float32 only"),
    "ops": (("--format", "onnx", "--select-tf-ops"), "select_tf_ops is a question of TFLite"),
    "head": (("--output", "a"), "toy has one output: leave output='a' away"),
    "agreement": (("--agreement", "95"), "expected a share of pixels from 0 to 1"),
    "tolerance": (("--tolerance", "-1"), "expected a relative error of at least 0"),
    "check": (("--check", "x.tflite", "--quantize", "int8"), "--check takes the file as it is: omit --quantize"),
    "check ops": (("--check", "x.tflite", "--select-tf-ops"), "omit --select-tf-ops"),
    "calibration": (("--calibration", "nowhere"), "--calibration is for --quantize int8: omit it"),
    "images": (("--calibration-images", "9", "--quantize", "float16"), "--calibration-images is for --quantize int8: omit it"),
    "seed": (("--seed", "3"), "--seed is for --quantize int8: omit it"),
    "check seed": (("--check", "x.tflite", "--seed", "3"), "--seed is for --calibration: pass that too, or omit it"),
    "labels": (("--labels", "voc"), "label table 'voc' has 21 classes, the network 11"),
    "data": (("--data-dir", "nowhere"), "nowhere"),
    "suffix": (("--out", "x.onnx"), "expected a file name that ends in .tflite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place, tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    options, message = MISTAKES[mistake]
    before = tree(place)
    assert run(export, place / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert tree(place) == before and not list(tmp_path.iterdir())


def test_a_bare_model_wants_a_size(place, tmp_path, capsys):
    assert run(export, place / "other.keras", "--out", tmp_path / "a.tflite") == 2
    assert "pass --input-size" in capsys.readouterr().err


def test_data_that_is_gone_is_told(place, tmp_path, capsys):
    recipe = RECIPES["shapes"].override(data="camvid", data_dir=str(tmp_path / "gone"))
    Run(tmp_path / "run").begin(recipe.to_json(), LABELS["camvid"])
    network().save(tmp_path / "run/model.keras")
    assert run(export, tmp_path / "run", "--input-size", "20x24") == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("comparing on random images alone") and "(0 of them photographs)" in last
    # Elsewhere, it is used.
    assert run(export, tmp_path / "run", "--data-dir", place / "camvid") == 0
    assert described(tmp_path / "run/export/tflite-40x48")["parity"]["real_images"] == 4


def test_in_a_process_of_its_own(place, tmp_path):
    """Nothing but the result on either stream."""
    code, out, err = finish(ROOT / "tools/export.py", place / "run", "--out", tmp_path / "a.tflite", "--argmax")
    assert (code, err) == (0, "") and out.count("\n") == 1 and out.startswith(str(tmp_path / "a.tflite"))
    image = np.float32(images((20, 24), 1, block=4))
    np.testing.assert_array_equal(open_file(tmp_path / "a.tflite").run(image)["labels"], np.argmax(network()(image), -1))
