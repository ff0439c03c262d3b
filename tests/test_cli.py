import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_helpers import ROOT, TINY, assert_equal, finish, on, run, start, tree, weights_of, write_camvid
from PIL import Image
from sklearn.metrics import confusion_matrix

import kerasseg
from kerasseg.cli import evaluate, export, main, plot_log, predict, train
from kerasseg.cli.options import resolve_recipe
from kerasseg.runs import Run
from kerasseg.training import recording

SCRIPTS = (
    "train.py",
    "evaluate.py",
    "tools/predict.py",
    "tools/export.py",
    "tools/plot_log.py",
    "tools/class_weights.py",
    "tools/check_xla.py",
    "tools/convert_weights.py",
    "tools/inspect_model.py",
    "tools/store_features.py",
    "tools/analyze.py",
    "tools/compare.py",
    "tools/tune_crf.py",
    "tools/crf.py",
    "tools/recompute_batch_norm.py",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data sets, whole and damaged, and with two runs: `eleven` on camvid, `six` on shapes."""
    root = tmp_path_factory.mktemp("cli")
    camvid = write_camvid(root / "camvid")
    for name in ("cut", "size", "label"):
        shutil.copytree(camvid, root / name)
    for path in sorted((root / "cut/images/train").glob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
        content = path.with_suffix(".jpg").read_bytes()
        path.with_suffix(".jpg").write_bytes(content[: len(content) // 2])
    for path in (root / "size/masks/train").glob("*.png"):
        Image.open(path).crop((0, 0, 20, 30)).save(path)
    for path in (root / "label/masks/train").glob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 12)).save(path)
    (root / "notes.jpg").write_text("no photograph")
    learn = ("--iterations", "60", "--learning-rate", "0.003", "--seed", "5", "--color-jitter", "0.1")
    learn += ("--class-weights", "1,9,9,9,9,9,1,1,1,1,1", "--arguments", "dropout_rate=0")
    assert run(train, *TINY, *on(camvid), *learn, "--run-dir", root / "eleven") == 0
    assert run(train, *TINY, "--crop-size", "32x32", "--batch-size", "1", "--run-dir", root / "six") == 0
    shutil.copytree(root / "six", root / "disguised")
    # As a run of a release that did not count its images.
    (root / "disguised/data.json").unlink()
    recipe = json.loads((root / "six/recipe.json").read_text())
    changed = {**recipe, "data": "camvid", "data_dir": str(camvid)}
    (root / "disguised/recipe.json").write_text(json.dumps(changed))
    return root


# The whole way


def test_train_evaluate_predict_export_on_a_fresh_machine(tmp_path):
    """Without any data, in processes of their own; nothing but the result on either stream."""
    code, out, err = finish("train.py", *TINY, "--crop-size", "32x32", cwd=tmp_path)
    assert (code, err) == (0, "") and "evaluate it: python evaluate.py runs/fcn8s-" in out
    (directory,) = (tmp_path / "runs").iterdir()
    expected = {
        "recipe.json",
        "labels.json",
        "data.json",
        "environment.json",
        "log.jsonl",
        "model.keras",
        "checkpoints",
        "tensorboard",
    }
    assert {path.name for path in directory.iterdir()} == expected
    assert [json.loads(line)["step"] for line in (directory / "log.jsonl").read_text().splitlines()] == [1, 2]
    code, out, err = finish("evaluate.py", "--limit", "2", "--pictures", "1", cwd=tmp_path)
    assert (code, err) == (0, "") and "mean_iou" in out
    expected = {"report.html", "scores.json", "scores.txt", "counts.npz", "pictures.png"}
    assert {path.name for path in (directory / "report/val-first-2").iterdir()} == expected


@pytest.mark.parametrize("inference", [(), ("--tta",), ("--scales", "0.5,1"), ("--windows", "30x32", "--flip")])
def test_masks_score_what_evaluate_says(place, tmp_path, capsys, inference):
    assert run(evaluate, place / "eleven", "--report", tmp_path / "report", *inference) == 0
    assert run(predict, place / "eleven", place / "camvid/images/val", "--out", tmp_path / "out", *inference) == 0
    assert capsys.readouterr().err == ""
    truth, guess = [], []
    for mask in sorted((place / "camvid/masks/val").glob("*.png")):
        truth.append(np.asarray(Image.open(mask)).ravel())
        index = Image.open(tmp_path / "out/index" / mask.name)
        assert index.mode == "P"
        guess.append(np.asarray(index).ravel())
        for kind in ("color", "overlay"):
            picture = np.asarray(Image.open(tmp_path / "out" / kind / mask.name))
            assert picture.shape == (index.height, index.width, 3) and picture.dtype == np.uint8
    truth, guess = np.concatenate(truth), np.concatenate(guess)
    matrix = confusion_matrix(truth[truth != 11], guess[truth != 11], labels=range(11))
    scores = json.loads((tmp_path / "report/scores.json").read_text())
    assert scores["confusion_matrix"] == matrix.tolist() and len(np.unique(guess)) > 2
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert scores["mean_iou"] == pytest.approx((hits[union > 0] / union[union > 0]).mean(), rel=1e-6)
    assert scores["pixel_accuracy"] == pytest.approx(hits.sum() / matrix.sum(), rel=1e-6)
    assert scores["num_images"] == 4 and len(scores["classes"]) == 11


def test_evaluate_reports_into_the_run(place, capsys):
    for options, name in (((), "val"), (("--tta", "--split", "train", "--limit", "1"), "train-tta-first-1")):
        assert run(evaluate, place / "eleven", *options) == 0
        assert f"report: {place / 'eleven/report' / name}" in capsys.readouterr().out
        assert json.loads((place / "eleven/report" / name / "scores.json").read_text())["data"] == "camvid"


def test_export_writes_a_file_that_was_compared(place, tmp_path, capsys):
    assert run(export, place / "eleven", "--out", tmp_path / "a.tflite") == 0
    assert "against Keras on 6 images (4 of them photographs): relative error" in capsys.readouterr().out
    beside = json.loads((tmp_path / "a.json").read_text())
    # The size of the run's own first validation image.
    assert beside["input"]["shape"] == [1, 40, 48, 3] and len(beside["classes"]) == 11
    assert beside["parity"]["relative_error"] < 1e-4


def test_dry_run_writes_nothing(place, capsys):
    before = tree(place)
    assert run(train, *TINY, *on(place / "camvid"), "--run-dir", place / "dry", "--dry-run") == 0
    out = capsys.readouterr().out
    recipe = json.loads(out[: out.rindex("}") + 1])
    assert (recipe["data"], recipe["crop_size"], recipe["arguments"]["padding"]) == ("camvid", [32, 32], "same")
    assert tree(place) == before


def test_init_starts_from_what_fits(place, tmp_path):
    assert (
        run(train, *TINY, *on(place / "camvid"), "--init", place / "six", "--learning-rate", "0", "--run-dir", tmp_path / "a") == 0
    )
    source, model = (kerasseg.load_model(path) for path in (place / "six", tmp_path / "a"))
    for name, same in (("conv1_1", True), ("fc7", True), ("score_fr", False)):
        pair = [network.get_layer(name).get_weights()[0] for network in (source, model)]
        assert (pair[0].shape == pair[1].shape and np.array_equal(*pair)) == same


# Killed and resumed


def test_a_killed_run_resumes_bit_for_bit(place, tmp_path):
    options = (*TINY, *on(place / "camvid"), "--iterations", "24", "--checkpoint-every", "4", "--seed", "3")
    killed = tmp_path / "killed"
    process = start("train.py", *options, "--run-dir", killed)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints/step-00000004.npz").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "model.keras").exists()
    assert run(train, "--run-dir", killed) == 0
    assert run(train, *options, "--run-dir", tmp_path / "unbroken") == 0
    log = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    assert log == [json.loads(line) for line in (tmp_path / "unbroken/log.jsonl").read_text().splitlines()]
    assert json.loads((killed / "recipe.json").read_text())["arguments"]["padding"] == "same"
    assert_equal(weights_of(killed), weights_of(tmp_path / "unbroken"))


def test_what_init_gave_survives_a_crash_before_the_first_regular_checkpoint(place, tmp_path, monkeypatch):
    options = (*TINY, *on(place / "camvid"), "--init", place / "six", "--run-dir")

    def crash(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording.Recorder, "after", crash)
    assert run(train, *options, tmp_path / "crashed") == 130
    monkeypatch.undo()
    assert run(train, "--run-dir", tmp_path / "crashed") == 0
    assert run(train, *options, tmp_path / "unbroken") == 0
    assert_equal(weights_of(tmp_path / "crashed"), weights_of(tmp_path / "unbroken"))


def test_a_resumed_run_records_what_changed_and_drops_the_model_that_is_no_longer_its_last(place, tmp_path, monkeypatch):
    shutil.copytree(place / "six", tmp_path / "six")
    assert (tmp_path / "six/model.keras").is_file()

    def crash(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording.Recorder, "after", crash)
    assert run(train, "--run-dir", tmp_path / "six", "--iterations", "4", "--learning-rate", "0.5") == 130
    recipe = json.loads((tmp_path / "six/recipe.json").read_text())
    assert (recipe["iterations"], recipe["learning_rate"]) == (4, 0.5)
    assert not (tmp_path / "six/model.keras").exists() and kerasseg.load_model(tmp_path / "six").name == "fcn8s"


def test_the_model_kept_is_the_best_or_the_last_and_it_says_which(tmp_path, monkeypatch, capsys):
    scores = iter([0.9, 0.1] * 2)
    monkeypatch.setattr(recording, "validate", lambda *arguments: {"mean_iou": next(scores)})
    options = (*TINY, "--crop-size", "32x32", "--validate-every", "1", "--run-dir")
    said = {
        "best": "best validation mean IoU: 90.00 % after step 1\n",
        "last": "last validation mean IoU: 10.00 % after step 2, which is kept; best: 90.00 % after step 1\n",
    }
    for name, step, flag in (("best", 1, "--keep-best"), ("last", 2, "--no-keep-best")):
        assert run(train, *options, tmp_path / name, flag) == 0
        assert said[name] in capsys.readouterr().out
        with np.load(tmp_path / name / f"checkpoints/step-{step:08d}.npz") as arrays:
            expected = [value for key, value in arrays.items() if key.startswith("model/") and "seed" not in key]
        for received, value in zip(kerasseg.load_model(tmp_path / name).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(received, value)


def test_options_come_before_the_recipe_and_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--recipe", "fcn32s_voc", "--multipliers", "(conv|fc).*=0,0", "--data-dir", "my", "--weights", "a.keras"]
    recipe = resolve_recipe(train.parser().parse_args(arguments))
    assert list(recipe.multipliers.items()) == [("(conv|fc).*", (0.0, 0.0)), (".*/bias", (2.0, 0.0))]
    assert (recipe.data_dir, recipe.weights) == (str(tmp_path / "my"), str(tmp_path / "a.keras"))
    remote = resolve_recipe(train.parser().parse_args(["--data-dir", "gs://bucket/x", "--weights", "imagenet"]))
    assert (remote.data_dir, remote.weights) == ("gs://bucket/x", "imagenet")


def test_a_full_disk_is_one_line(place, tmp_path, capsys, monkeypatch):
    def full(self, record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Run, "log", full)
    assert run(train, *TINY, "--crop-size", "32x32", "--run-dir", tmp_path / "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No space left on device: free some space there")


def test_a_curve_is_drawn(place, tmp_path):
    assert run(plot_log, place / "eleven", "--out", tmp_path / "curve.png") == 0
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 300
    assert run(plot_log, tmp_path, "--out", tmp_path / "none.png") == 2 and not (tmp_path / "none.png").exists()


# Mistakes

NEW = ("--run-dir", "{place}/new")
SMALL = (*TINY, *NEW)
CAMVID = ("--data", "camvid", "--crop-size", "32x32", "--data-dir")
MISTAKES = {
    "arch": (train, ("--arch", "fcn8", *NEW), "unknown arch 'fcn8': did you mean 'fcn"),
    "recipe": (train, ("--recipe", "shape", *NEW), "unknown recipe 'shape': did you mean 'shapes'?"),
    "option": (train, ("--learning-rat3", "1", *NEW), "unrecognized arguments: --learning-rat3 1 (see train.py --help)"),
    "no data folder": (train, (*SMALL, "--data", "camvid"), "received no data_dir"),
    "missing data": (train, (*SMALL, *CAMVID, "{place}/nowhere"), "which is no folder"),
    "data": (train, (*SMALL, "--data", "camvit"), "did you mean 'camvid'?"),
    "loader": (train, (*SMALL, "--data", "shapes+vok"), "data set 'vok' of recipe fcn8s has no loader: did you mean 'voc'?"),
    "truncated image": (train, (*SMALL, *CAMVID, "{place}/cut"), "cannot decode {place}/cut/images/train/"),
    "mask size": (train, (*SMALL, *CAMVID, "{place}/size"), "is 20×30 but image {place}/size/images/train/"),
    "label": (train, (*SMALL, *CAMVID, "{place}/label"), "holds the value 12"),
    "weights": (train, (*SMALL, *CAMVID, "{place}/camvid", "--weights", "{place}/six/model.keras"), "do not fit fcn8s"),
    "no weights": (train, (*SMALL, "--weights", "{place}/none.keras"), "expected None, 'imagenet', or an existing"),
    "init": (train, (*SMALL, "--init", "{place}/none"), "no model at '{place}/none'"),
    "crop": (train, (*SMALL, "--crop-size", "32x"), "received '32x', expected HEIGHTxWIDTH in pixels"),
    "scale": (train, (*SMALL, "--random-scale", "2"), "received '2', expected two numbers"),
    "scales": (
        train,
        (*SMALL, "--random-scale", "2,1"),
        "--random-scale (2.0, 1.0): expected two numbers, 0 < smallest <= largest",
    ),
    "number": (train, (*SMALL, "--momentum", "much"), "argument --momentum: received 'much', expected a number"),
    "iterations": (train, (*SMALL, "--iterations", "0"), "--iterations 0: expected at least 1"),
    "checkpoints": (train, (*SMALL, "--checkpoint-every", "0"), "--checkpoint-every 0: expected at least 1"),
    "precision": (train, (*SMALL, "--precision", "float8"), "expected one of float32, bfloat16"),
    "schedule": (train, (*SMALL, "--schedule", "cosine"), "expected one of fixed, step, poly"),
    "loss": (train, (*SMALL, "--loss", "cross_entropi"), "did you mean 'cross_entropy'?"),
    "optimizer": (train, (*SMALL, "--optimizer", "lion"), "expected one of sgd, adam"),
    "sampling": (train, (*SMALL, "--sampling", "shuffel"), "did you mean 'shuffle'?"),
    "strategy": (train, (*SMALL, "--strategy", "tpus"), "unknown strategy 'tpus': did you mean 'tpu'?"),
    "argument": (train, (*SMALL, "--arguments", "paddin=same"), "did you mean 'padding'?"),
    "assignment": (train, (*SMALL, "--arguments", "padding"), "expected NAME=VALUE"),
    "classes twice": (train, (*SMALL, "--arguments", "num_classes=5"), "fcn8s has no argument 'num_classes'"),
    "type": (train, (*SMALL, "--arguments", "dropout_rate=much"), "fcn8s cannot be built with"),
    "two inputs": (train, (*SMALL, "--arch", "fcn32s", "--arguments", 'late_fusion=["color","hha"]'), "takes the inputs color"),
    "seed": (train, (*SMALL, "--seed", "-1"), "--seed -1: expected 0 to"),
    "dry loss": (train, (*TINY, "--loss", "foo", "--dry-run"), "loss='foo'"),
    "dry optimizer": (train, (*TINY, "--optimizer", "lion", "--dry-run"), "expected one of sgd, adam"),
    "dry strategy": (train, (*TINY, "--strategy", "nope", "--dry-run"), "unknown strategy 'nope'"),
    "dry precision": (train, (*TINY, "--precision", "float8", "--dry-run"), "expected one of float32, bfloat16"),
    "dry data": (train, (*TINY, *CAMVID, "{place}/cut", "--dry-run"), "cannot decode {place}/cut/images/train/"),
    "class weights": (train, (*SMALL, "--class-weights", "1,2"), "2 class_weights for 6 classes"),
    "run is a file": (train, (*TINY, "--run-dir", "{place}/notes.jpg"), "notes.jpg"),
    "other data": (train, (*CAMVID, "{place}/camvid", "--run-dir", "{place}/six"), "was begun with data=shapes, received camvid"),
    "other recipe": (train, ("--recipe", "camvid_small", "--run-dir", "{place}/six"), "was begun with recipe fcn8s"),
    "other classes": (train, ("--run-dir", "{place}/disguised"), "it is of another network"),
    "evaluate": (evaluate, ("{place}/six", *CAMVID[:2], "--data-dir", "{place}/camvid"), "the network has 6 classes"),
    "no model": (evaluate, ("{place}/none",), "no model at '{place}/none'"),
    "no run": (evaluate, ("{place}/camvid",), "is not a run directory"),
    "bare model": (evaluate, ("{place}/six/model.keras",), "pass --data and --data-dir"),
    "split": (evaluate, ("{place}/six", "--split", "vall"), "did you mean 'val'?"),
    "limit": (evaluate, ("{place}/six", "--limit", "-1"), "expected at least 1 image"),
    "no photograph": (predict, ("{place}/six", "{place}/notes.jpg", "--out", "{place}/new"), "cannot decode {place}/notes.jpg"),
    "no photographs": (predict, ("{place}/six", "{place}/six/checkpoints", "--out", "{place}/new"), "holds no photograph"),
    "nothing": (predict, ("{place}/six", "{place}/none.jpg", "--out", "{place}/new"), "no such photograph or folder"),
    "no out": (predict, ("{place}/six", "{place}/notes.jpg"), "the following arguments are required: --out"),
    "kinds": (predict, ("{place}/six", "{place}/notes.jpg", "--out", "{place}/new", "--kinds", "blue"), "expected some of index"),
    "labels": (
        predict,
        ("{place}/six", "{place}/camvid", "--out", "{place}/new", "--labels", "camvid"),
        "has 11 classes, the network 6",
    ),
    "suffix": (export, ("{place}/six", "--out", "{place}/model.onnx"), "expected a file name that ends in .tflite"),
    "format": (export, ("{place}/six", "--format", "onix"), "unknown format 'onix': did you mean 'onnx'?"),
    "size": (export, ("{place}/six/model.keras", "--out", "{place}/new.tflite"), "pass --input-size"),
}


def filled(place, texts):
    return [text.replace("{place}", str(place)) for text in texts]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place, capsys, monkeypatch, tmp_path, mistake):
    command, arguments, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    before = tree(place)
    assert run(command, *filled(place, arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and filled(place, [message])[0] in line
    assert tree(place) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["cut", "label"])
def test_tensorflow_adds_no_line_to_a_mistake_in_the_data(place, data):
    before = tree(place)
    code, out, err = finish("train.py", *TINY, *on(place / data), "--run-dir", place / "new")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in out and tree(place) == before


def test_a_mistake_in_later_training_is_one_line_and_the_run_stays(place, tmp_path, capsys):
    options = (*TINY, *on(place / "camvid"), "--optimizer", "sgd", "--run-dir", tmp_path / "a")
    assert run(train, *options, "--learning-rate", "1e30", "--iterations", "9") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(("error: the loss became ", "error: the gradients were not finite")) and ": lower --learning-rate; " in line
    )
    assert run(train, "--run-dir", tmp_path / "a", "--learning-rate", "1e-3", "--iterations", "1") == 0


def test_debug_shows_the_traceback():
    with pytest.raises(kerasseg.KerassegError, match="did you mean"):
        run(train, "--arch", "fcn8", "--debug")


def test_one_command_holds_them_all(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kerasseg", "evalute"])
    assert main.main() == 2
    assert capsys.readouterr().err == "error: unknown command 'evalute': did you mean 'evaluate'?\n"
    monkeypatch.setattr(sys, "argv", ["kerasseg", "train", "--arch", "fcn8"])
    assert main.main() == 2
    assert "did you mean" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["kerasseg"])
    assert main.main() == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in main.COMMANDS)


# Help


def test_help_does_not_wait_for_tensorflow():
    """All of them in one process: the last line says what was imported."""
    code = (
        "import runpy, sys, kerasseg, kerasseg.cli.main\n"
        "for script in sys.argv[1:]:\n"
        "    sys.argv[:] = [script, '--help']\n"
        "    try:\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, script\n"
        "kerasseg.cli.main.main()\n"
        "print({'tensorflow', 'keras'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code.replace("sys.argv[1:]", repr([str(ROOT / script) for script in SCRIPTS]))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1] == "set()" and done.stdout.count("usage:") == len(SCRIPTS) + 1


def test_help_names_every_recipe_field_and_choice():
    text = train.parser().format_help()
    for name in ("fcn8s", "fcn_alexnet_voc", "--learning-rate", "--crop-size", "--no-flip", "--multipliers", "--dry-run"):
        assert name in text
