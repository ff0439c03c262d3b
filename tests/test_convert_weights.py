"""`tools/convert_weights.py`: from a file of Caffe's to a model of Keras that can be opened."""

import os
import subprocess
import sys

import numpy as np
import pytest
from caffe_files import caffemodel_bytes, prototxt
from cli_helpers import ROOT, finish, run, tree
from helpers import QUICK, assert_varies, images, random_model, to_caffe

import kerasseg
from kerasseg.cli import convert_weights, main
from kerasseg.models import MODELS

CLASSES = 5
LITTLE = [
    ("conv1", "Convolution", [np.ones((6, 3, 3, 3))]),
    ("bn_conv1", "BatchNorm", [np.ones(6), np.ones(6), np.ones(1)]),
    ("scale_conv1", "Scale", [np.ones(6), np.ones(6)]),
    ("fc", "InnerProduct", [np.ones((5, 384)), np.ones(5)]),
]


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """FCN-8s for five classes at width 1/16, one with two heads, as Caffe's files; and files that are none."""
    root = tmp_path_factory.mktemp("caffe")
    for name, classes in (("fcn8s", CLASSES), ("heads", {"semantic": 4, "geometric": 3})):
        blobs = to_caffe(random_model("fcn8s", classes))
        short = {key.replace("_semantic", "_sem").replace("_geometric", "_geo"): value for key, value in blobs.items()}
        write(root / f"{name}.caffemodel", caffemodel_bytes([(n, "any", a) for n, a in short.items()]))
    content = (root / "fcn8s.caffemodel").read_bytes()
    write(root / "cut.caffemodel", content[: len(content) // 2])
    write(root / "little.caffemodel", caffemodel_bytes(LITTLE))
    (root / "net.prototxt").write_text(prototxt((1, 3, 8, 8), []))
    return root


NARROW = ("--arch", "fcn8s", "--width-multiplier", "0.0625")


def test_a_file_becomes_a_model_that_can_be_opened(place, tmp_path):
    code, out, err = finish("tools/convert_weights.py", place / "fcn8s.caffemodel", *NARROW, "--out", tmp_path / "new/a.keras")
    assert (code, err) == (0, "") and f"{tmp_path}/new/a.keras: fcn8s of 5 classes, " in out.splitlines()[-1]
    model, source = kerasseg.load_model(tmp_path / "new/a.keras"), random_model("fcn8s", CLASSES)
    photo = images((64, 96), 1)
    expected = source.predict(photo, verbose=0)
    assert_varies(expected)
    np.testing.assert_array_equal(model.predict(photo, verbose=0), expected)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.keras"]


def test_weights_alone_and_arguments_of_the_network(place, tmp_path):
    out = tmp_path / "a.weights.h5"
    options = ("--preprocessing", "none", "--arguments", "padding=same", "dropout_rate=0.1", "--num-classes", "5")
    assert run(convert_weights, place / "fcn8s.caffemodel", *NARROW, *options, "--out", out) == 0
    model = MODELS["fcn8s"](CLASSES, weights=out, padding="same", preprocessing=None, **QUICK)
    for received, expected in zip(model.get_weights(), random_model("fcn8s", CLASSES).get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    assert run(convert_weights, place / "fcn8s.caffemodel", *NARROW, *options, "--out", tmp_path / "a.keras") == 0
    names = {layer.name for layer in kerasseg.load_model(tmp_path / "a.keras").layers}
    assert "preprocessing" not in names and "score_fr" in names


def test_the_width_is_an_argument_of_the_network_too(place, tmp_path):
    options = ("--arch", "fcn8s", "--arguments", "width_multiplier=0.0625", "preprocessing=null", "--out", tmp_path / "a.keras")
    assert run(convert_weights, place / "fcn8s.caffemodel", *options) == 0
    model = kerasseg.load_model(tmp_path / "a.keras")
    assert model.get_layer("conv1_1").filters == 4 and "preprocessing" not in {layer.name for layer in model.layers}


def test_two_heads(place, tmp_path):
    heads = ("--num-classes", "semantic=4", "geometric=3")
    assert run(convert_weights, place / "heads.caffemodel", *NARROW, *heads, "--out", tmp_path / "a.keras") == 0
    outputs = kerasseg.load_model(tmp_path / "a.keras").output
    assert {name: tensor.shape[-1] for name, tensor in outputs.items()} == {"semantic": 4, "geometric": 3}


def test_null_background_is_one_class_more_than_the_file_scores(place, tmp_path):
    blobs = to_caffe(random_model("fcn8s", CLASSES, null_background=True))
    assert len(blobs["score_fr"][1]) == CLASSES - 1
    file = write(tmp_path / "a.caffemodel", caffemodel_bytes([(n, "any", a) for n, a in blobs.items()]))
    options = ("--arguments", "null_background=true", "--out", tmp_path / "a.keras")
    assert run(convert_weights, file, *NARROW, *options) == 0
    assert kerasseg.load_model(tmp_path / "a.keras").output.shape[-1] == CLASSES


def test_a_network_of_one_width_only_says_nothing_of_the_classes(place, tmp_path, monkeypatch):
    build = convert_weights._build

    def of_one_width(options, classes, **changes):
        if classes in convert_weights._PROBES:
            raise kerasseg.KerassegError("this network has one width")
        return build(options, classes, **changes)

    monkeypatch.setattr(convert_weights, "_build", of_one_width)
    options = (place / "fcn8s.caffemodel", *NARROW, "--out", tmp_path / "a.keras")
    assert run(convert_weights, *options) == 2 and not list(tmp_path.iterdir())
    assert run(convert_weights, *options, "--num-classes", CLASSES) == 0


def test_what_fits_is_kept_and_the_rest_told(place, tmp_path, capsys):
    options = ("--num-classes", "7", "--skip-mismatch", "--out", tmp_path / "a.keras")
    assert run(convert_weights, place / "fcn8s.caffemodel", *NARROW, *options) == 0
    *left, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in left] == [
        "score_fr",
        "upscore2",
        "score_pool4",
        "upscore_pool4",
        "score_pool3",
        "upscore8",
    ]
    assert "fcn8s of 7 classes" in last
    model, source = kerasseg.load_model(tmp_path / "a.keras"), random_model("fcn8s", CLASSES)
    np.testing.assert_array_equal(model.get_layer("fc7").kernel, source.get_layer("fc7").kernel)
    assert not model.get_layer("score_fr").kernel.numpy().any()


def test_the_layers_of_a_file_are_listed(place, capsys):
    assert run(convert_weights, place / "little.caffemodel", "--list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["conv1", "162", "6x3x3x3"],
        ["bn_conv1", "13", "6", "6", "1"],
        ["scale_conv1", "12", "6", "6"],
        ["fc", "1,925", "5x384", "5"],
        ["together", "2,112"],
    ]


OUT = ("--out", "{place}/new.keras")
MISTAKES = {
    "no network": (("{place}/fcn8s.caffemodel", *OUT), "received no --arch: pass --arch NETWORK --out NAME.keras, or --list"),
    "no out": (("{place}/fcn8s.caffemodel", *NARROW), "received no --out"),
    "network": (("{place}/fcn8s.caffemodel", "--arch", "fcn8", *OUT), "unknown arch 'fcn8': did you mean 'fcn"),
    "suffix": (("{place}/fcn8s.caffemodel", *NARROW, "--out", "{place}/new.h5"), "ends in .keras or .weights.h5"),
    "suffix alone": (("{place}/fcn8s.caffemodel", *NARROW, "--out", "{place}/.keras"), "ends in .keras or .weights.h5"),
    "missing": (("{place}/none.caffemodel", *NARROW, *OUT), "no file at '{place}/none.caffemodel'"),
    "missing list": (("{place}/none.caffemodel", "--list"), "no file at '{place}/none.caffemodel'"),
    "cut": (("{place}/cut.caffemodel", *NARROW, *OUT), "it is truncated; expected the binary file"),
    "text": (("{place}/net.prototxt", *NARROW, *OUT), "'{place}/net.prototxt' is text"),
    "exported": (
        ("{place}/a.tflite", *NARROW, *OUT),
        "{place}/a.tflite is an exported file, whose weights are folded: expected the run",
    ),
    "other network": (("{place}/little.caffemodel", *NARROW, *OUT), "unknown layer conv1;"),
    "nothing fits": (("{place}/little.caffemodel", *NARROW, *OUT, "--skip-mismatch"), "nothing of them fits"),
    "width": (
        ("{place}/fcn8s.caffemodel", "--arch", "fcn8s", *OUT, "--width-multiplier", "0.03"),
        "--skip-mismatch loads what fits",
    ),
    "no width": (("{place}/fcn8s.caffemodel", "--arch", "fcn8s", *OUT, "--width-multiplier", "0"), "expected a number above 0"),
    "classes": (
        ("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--num-classes", "21"),
        "--num-classes 21: score_fr, score_pool4, score_pool3 of {place}/fcn8s.caffemodel fit 5; pass --num-classes 5",
    ),
    "no classes": (("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--num-classes", "0"), "expected a number of classes or HEAD=N"),
    "no head": (("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--num-classes", "=5"), "expected a number of classes or HEAD=N"),
    "heads": (("{place}/heads.caffemodel", *NARROW, *OUT, "--num-classes", "4", "geometric=3"), "expected HEAD=N once each"),
    "heads of one": (("{place}/heads.caffemodel", *NARROW, *OUT), "unknown layer score_fr_sem"),
    "argument": (("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--arguments", "paddin=same"), "did you mean 'padding'?"),
    "value": (("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--arguments", "padding=some"), "padding='some': expected one of"),
    "type": (
        ("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--arguments", "dropout_rate=much"),
        "fcn8s cannot be built with num_classes=21, dropout_rate='much', width_multiplier=0.0625: ",
    ),
    "shape": (
        ("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--arguments", "input_shape=5"),
        "cannot be built with num_classes=21, input_shape=5",
    ),
    "width twice": (
        ("{place}/none.caffemodel", *NARROW, *OUT, "--arguments", "width_multiplier=2"),
        "received width_multiplier=2 and width_multiplier=0.0625: pass it once, e.g. by --width-multiplier alone",
    ),
    "one head": (
        ("{place}/heads.caffemodel", "--arch", "deeplab_v3", *OUT, "--num-classes", "semantic=4", "geometric=3"),
        "deeplab_v3 has one head, received classes for semantic, geometric: pass one number, e.g. 4",
    ),
    "preprocessing": (("{place}/fcn8s.caffemodel", *NARROW, *OUT, "--preprocessing", "caff"), "caff"),
    "out is a folder": (("{place}/fcn8s.caffemodel", *NARROW, "--out", "{place}/folder.keras"), "Is a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(place, capsys, mistake):
    arguments, message = MISTAKES[mistake]
    (place / "folder.keras").mkdir(exist_ok=True)
    before = tree(place)
    assert run(convert_weights, *(text.replace("{place}", str(place)) for text in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message.replace("{place}", str(place)) in line
    assert tree(place) == before


def test_help_and_the_one_command_know_it():
    assert "convert_weights" in main.COMMANDS
    code = (
        "import runpy, sys\nsys.argv[1:] = ['--help']\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nfinally:\n    "
    )
    code += "print({'tensorflow', 'keras', 'google.protobuf'} & set(sys.modules))"
    command = [sys.executable, "-c", code.replace("sys.argv[0]", repr(str(ROOT / "tools/convert_weights.py")))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines()[-1] == "set()"
    assert all(option in done.stdout for option in ("--list", "--arch", "--num-classes", "--skip-mismatch", "--width-multiplier"))
