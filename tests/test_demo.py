import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cli_helpers import ROOT, run, tree
from PIL import Image

import kerasseg
from kerasseg.cli import make_demo_network, predict
from kerasseg.cli.demo import DEMO_NETWORK, drawings, label_photograph
from kerasseg.cli.train import parser as training_parser
from kerasseg.data import open_data
from kerasseg.labels import LABELS, colorize, overlay
from kerasseg.metrics import scores
from kerasseg.recipes import Recipe
from kerasseg.runtimes import open_file
from kerasseg.runtimes.description import read


def test_the_network_that_comes_along_is_small_and_good():
    data, network = open_data("shapes", split="val"), open_file(DEMO_NETWORK)
    matrix = np.zeros((6, 6), np.int64)
    for index in range(len(data)):
        example = data[index]
        (result,) = network.run(example.image[np.newaxis]).values()
        valid = example.label != 255
        np.add.at(matrix, (example.label[valid], result[0].argmax(-1)[valid]), 1)
    assert scores(matrix)["mean_iou"] > 0.60
    assert DEMO_NETWORK.stat().st_size < 300_000


def test_its_description_says_how_it_was_made():
    about = read(DEMO_NETWORK)
    about.check(DEMO_NETWORK)
    assert about.sha256 == hashlib.sha256(DEMO_NETWORK.read_bytes()).hexdigest()
    assert tuple(about.classes) == LABELS["shapes"].classes and about.label_table == "shapes"
    assert about.calibration["images"] == 100 and about.latency["milliseconds"] > 0
    recipe, asked = Recipe.from_json(about.recipe), vars(training_parser().parse_args(make_demo_network.TRAINING))
    for name in ("arch", "backbone", "width_multiplier", "iterations", "batch_size", "learning_rate"):
        assert getattr(recipe, name) == asked[name], name
    assert recipe.data == "shapes" and recipe.arguments["batch_norm_momentum"] == 0.95
    # Nothing of the machine it was made on.
    assert "data_dir" not in about.recipe and str(ROOT) not in json.dumps(about.to_json())


def test_masks_of_drawings_without_tensorflow(tmp_path):
    """In a process in which TensorFlow and Keras cannot be imported."""
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from kerasseg.cli.predict import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "--demo", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "6 drawings labelled in" in done.stdout and f"masks: {tmp_path} (index, color, overlay)" in done.stdout
    for index, image in enumerate(drawings(6), start=1):
        name = f"drawing_{index}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images" / name)), image)
        label = np.asarray(Image.open(tmp_path / "index" / name))
        assert label.shape == image.shape[:2] and len(np.unique(label)) > 1
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "color" / name)), colorize(label, LABELS["shapes"]))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay" / name)), overlay(image, label, LABELS["shapes"]))


@pytest.mark.parametrize("size", [(96, 128), (150, 130), (40, 300), (1, 1), (200, 256)])
def test_photographs_are_labelled_as_evaluation_does(size):
    picture = drawings(1, (200, 320))[0][: size[0], : size[1]]
    label = label_photograph(open_file(DEMO_NETWORK), picture)
    expected = kerasseg.predict(kerasseg.load_model(DEMO_NETWORK), picture)
    assert label.dtype == np.uint8 and label.shape == size
    # Where the shrunk picture differs in its last bits, one of 256 steps may be another.
    assert (label == expected).mean() >= 0.995


def test_masks_of_ones_own_photographs(tmp_path, capsys):
    Image.fromarray(drawings(1, (50, 70))[0]).save(tmp_path / "mine.png")
    assert run(predict, "--demo", tmp_path / "mine.png", "--out", tmp_path / "out", "--kinds", "index") == 0
    assert "1 photographs (the network knows nothing but drawings of shapes)" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["mine.png"]
    assert np.asarray(Image.open(tmp_path / "out/index/mine.png")).shape == (50, 70)


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    (tmp_path / "color").mkdir()
    Image.fromarray(drawings(1, (50, 70))[0]).save(tmp_path / "color/mine.png")
    np.save(tmp_path / "large.npy", np.zeros((4, 4, 3), np.uint8))
    before = tree(tmp_path)
    for arguments, said in (
        ([tmp_path / "color", "--out", tmp_path], "would be written over"),
        ([tmp_path / "color", "--out", tmp_path / "color/mine.png"], "is a file"),
        # Refused before the masks of the first one are written.
        ([tmp_path / "color", tmp_path / "large.npy", "--out", tmp_path / "out"], "the demo labels photographs"),
    ):
        assert run(predict, "--demo", *arguments) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
        assert tree(tmp_path) == before
    # Of what is not written over it may be in the same folder.
    assert run(predict, "--demo", tmp_path / "color", "--out", tmp_path, "--kinds", "index") == 0


def test_what_the_demo_does_not_do_is_said(tmp_path, capsys):
    np.save(tmp_path / "large.npy", np.zeros((4, 4, 3), np.uint8))
    for arguments, said in (
        (["--demo"], "--out"),
        (["--demo", "--out", tmp_path, "--kinds", "pretty"], "--kinds pretty"),
        (["--demo", tmp_path / "large.npy", "--out", tmp_path / "o"], "the demo labels photographs"),
        (["--demo", tmp_path / "nothing.jpg", "--out", tmp_path / "o"], "no such photograph"),
    ):
        assert run(predict, *arguments) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.npy"]
