"""Stages that train on stored features of the one before: front end, context alone, both together."""

import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
from cli_helpers import assert_equal, finish, run, toy, toy_offered, tree, weights_of, write_camvid

import kerasseg
from kerasseg import KerassegError
from kerasseg.cli import evaluate, export, predict, store_features, train
from kerasseg.data import open_data
from kerasseg.layers import Conv2D
from kerasseg.models import MODELS
from kerasseg.recipes import Recipe, Stage
from kerasseg.runs import Preempted, Run
from kerasseg.training import train_recipe
from kerasseg.training.dry_run import dry_run_all
from kerasseg.training.features import FeatureExtractor
from kerasseg.training.recording import Recorder

NAMES = ("frontend", "context", "joint")
STAGES = (
    Stage(name="frontend"),
    Stage(name="context", changes={"arch": "toy_context", "features": "score", "batch_size": 3}, starts_from={"frontend": ""}),
    Stage(name="joint", changes={"arch": "toy_joint"}, starts_from={"frontend": "", "context": ""}),
)
VALUES = {"arch": "toy", "data": "camvid", "batch_size": 2, "iterations": 3, "learning_rate": 0.01, "image_scale": 0.5}
BASE = Recipe(name="features_toy", **VALUES, keep_checkpoints=9, stages=STAGES)


def context(num_classes=11, *, preprocessing=None, width_multiplier=1.0, weights=None, channels=None):
    """What follows `score`, for its maps alone."""
    features = keras.Input((None, None, channels or num_classes), name="features")
    return keras.Model(features, Conv2D(num_classes, 3, padding="same", name="context")(features), name="toy_context")


def joint(num_classes=11, *, preprocessing="torch", width_multiplier=1.0, weights=None):
    """`toy` with the same behind it."""
    first = toy(num_classes, preprocessing=preprocessing)
    return keras.Model(first.input, Conv2D(num_classes, 3, padding="same", name="context")(first.output), name="toy_joint")


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(), pytest.MonkeyPatch.context() as patch:
        for name in ("context", "joint"):
            patch.setitem(MODELS._locations, f"toy_{name}", f"test_feature_stages:{name}")
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """On six photographs, no two of one size, and four to validate on."""
    return BASE.override(data_dir=str(write_camvid(tmp_path_factory.mktemp("camvid"))), validate_every=2)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    path, reports = tmp_path_factory.mktemp("finished") / "run", []
    train_recipe(recipe, Run(path), report=reports.append)
    return path, reports


def place(path, name):
    return path / f"stages/{NAMES.index(name) + 1}-{name}"


def copied(finished, tmp_path, *, without=()):
    """The finished run, without some of its stages."""
    path = shutil.copytree(finished[0], tmp_path / "run")
    for name in without:
        shutil.rmtree(place(path, name))
    if without:
        (path / "model.keras").unlink()
    return path


def assert_same_runs(one, other):
    for name in NAMES:
        assert Run(place(one, name)).read_log() == Run(place(other, name)).read_log()
        assert_equal(weights_of(place(one, name)), weights_of(place(other, name)))


def calls(monkeypatch):
    """Names of the images whose features are computed from now on."""
    seen, original = [], FeatureExtractor.__call__
    monkeypatch.setattr(FeatureExtractor, "__call__", lambda self, example: (seen.append(example.id), original(self, example))[1])
    return seen


# What such a run is


def test_three_stages_of_which_the_second_trains_on_the_firsts_maps(finished, recipe):
    path, reports = finished
    for name in NAMES:
        assert [record["step"] for record in Run(place(path, name)).read_log()] == [1, 2, 3]
    frontend = kerasseg.load_model(place(path, "frontend"))
    for split, count in (("train", 6), ("val", 4)):
        stored, photos = (
            open_data("features", place(path, "context") / "features", split),
            open_data("camvid", recipe.data_dir, split),
        )
        assert len(stored) == len(photos) == count and stored.ids == photos.ids and stored.channels == 11
        for example, photo in zip(stored, photos, strict=True):
            # At the recipe's image scale, as the front end was trained.
            image, label = FeatureExtractor(frontend, "score", scale=0.5)._resize(photo.image, photo.label, None)
            np.testing.assert_allclose(example.image, frontend(image[None].astype(np.float32))[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(example.label, label)
        told = [report["stored"] for report in reports if report.get("split") == split]
        assert told == list(range(count + 1))
    # The joint network begins with the weights of both.
    with np.load(place(path, "joint") / "checkpoints/step-00000000.npz") as state:
        first = {value.tobytes() for name, value in state.items() if name.startswith("model/")}
    for name, layer in (("frontend", "first"), ("frontend", "score"), ("context", "context")):
        assert {weight.tobytes() for weight in weights_of(place(path, name), layer)} <= first
    new = [report["new_layers"] for report in reports if "new_layers" in report]
    assert new == [[]] and np.abs(weights_of(place(path, "context"), "context")[0]).max() > 0
    # What is recorded is the recipe as it was, so that another folder may hold the run.
    written = Recipe.from_json(Run(place(path, "context")).recipe())
    assert (written.features, written.data, written.image_scale) == ("score", "camvid", 0.5)


def test_validation_and_evaluation_are_at_the_features_stride(finished, tmp_path, capsys):
    path, _ = finished
    model, data = kerasseg.load_model(place(path, "context")), open_data("features", place(path, "context") / "features", "val")
    matrix = np.zeros((11, 11), np.int64)
    for example in data:
        prediction = np.argmax(model(example.image[None])[0], -1)
        for truth, found in zip(example.label.ravel(), prediction.ravel(), strict=True):
            if truth != 255:
                matrix[truth, found] += 1
    log = Run(place(path, "context")).read_log()
    best = max(record["pixel_accuracy"] for record in log if record.get("mean_iou") == max(r.get("mean_iou", 0) for r in log))
    assert best == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-6)
    assert run(evaluate, place(path, "context"), "--report", tmp_path / "report") == 0
    scores = json.loads((tmp_path / "report/scores.json").read_text())
    assert scores["num_pixels"] == matrix.sum() and scores["confusion_matrix"] == matrix.tolist()
    assert run(evaluate, path, "--report", tmp_path / "whole", "--limit", "1") == 0
    capsys.readouterr()
    # Of photographs, and of a size, it knows nothing.
    assert run(predict, place(path, "context"), next((path / "..").glob("*.png"), "x.png"), "--out", tmp_path) == 2
    assert run(export, place(path, "context"), "--out", tmp_path / "a.tflite") == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())


# Interrupted, resumed


def die(split, after):
    def report(record):
        if record.get("split") == split and record["stored"] == after:
            raise KeyboardInterrupt

    return report


def test_killed_while_storing_it_goes_on_and_ends_bit_for_bit_as_if_it_were_not(finished, recipe, tmp_path, monkeypatch):
    path = tmp_path / "run"
    for split, after in (("train", 2), ("val", 3)):
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, Run(path), report=die(split, after))
        assert not Run(place(path, "context")).exists and not place(path, "joint").exists()
    # Between storing and the first step.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "begin", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        train_recipe(recipe, Run(path))
    seen = calls(monkeypatch)
    train_recipe(recipe, Run(path))
    # Only the sample by which the stage is checked.
    assert set(seen) == {open_data("camvid", recipe.data_dir, "train").ids[0]}
    assert_same_runs(path, finished[0])
    assert not list(path.rglob("unfinished.json")) and not list(path.rglob(".unfinished-*"))


def test_sigterm_while_storing_ends_between_two_images(finished, recipe, tmp_path, capsys):
    path = copied(finished, tmp_path, without=("context", "joint"))

    def send(record):
        if record.get("stored") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    message = f"^stopped by SIGTERM, the features of 2 of 6 images stored; to go on: python train.py --run-dir {path}$"
    with pytest.raises(Preempted, match=message):
        train_recipe(recipe, Run(path), report=send)
    assert len(list((place(path, "context") / "features/train").glob("*.npz"))) == 2
    assert run(train, "--run-dir", path) == 0
    assert "storing features of train 6/6" in capsys.readouterr().out
    assert_same_runs(path, finished[0])


def test_a_resumed_stage_uses_what_is_stored_if_it_is_the_front_ends(finished, recipe, tmp_path, monkeypatch):
    path = copied(finished, tmp_path)
    second = Stage(name="context", changes={**STAGES[1].changes, "iterations": 5}, starts_from={"frontend": ""})
    longer = recipe.override(stages=(STAGES[0], second, STAGES[2]))
    seen, features = calls(monkeypatch), place(path, "context") / "features"
    train_recipe(longer, Run(path), stage="context")
    assert len(set(seen)) == 1 and len(Run(place(path, "context")).read_log()) == 5
    # One that was removed is made again.
    (features / "train/000003.npz").unlink()
    seen.clear()
    more = json.loads(json.dumps(longer.to_json()).replace('"iterations": 5', '"iterations": 6'))
    train_recipe(Recipe.from_json(more), Run(path), stage="context")
    assert len(set(seen)) == 2
    # Another front end.
    shutil.copy(finished[0] / "model.keras", place(path, "joint") / "model.keras")
    model = kerasseg.load_model(place(path, "frontend"))
    model.get_layer("score").bias.assign(np.ones(11))
    model.save(place(path, "frontend") / "model.keras")
    before = tree(features)
    last = json.loads(json.dumps(longer.to_json()).replace('"iterations": 5', '"iterations": 7'))
    message = f"^stored features of another network in {features}/train: found weights .*, expected .*; remove {features}/train to"
    with pytest.raises(KerassegError, match=message):
        train_recipe(Recipe.from_json(last), Run(path), stage="context")
    assert tree(features) == before
    # Where nobody has the front end any more, what is stored is trusted.
    shutil.rmtree(place(path, "frontend"))
    only = Recipe.from_json(last).stage("context")
    train_recipe(only, Run(place(path, "context")))
    shutil.rmtree(features)
    with pytest.raises(KerassegError, match="trains on stored features, of which .* lacks some: pass --init with the run or model"):
        train_recipe(only.override(iterations=8), Run(place(path, "context")))


def test_init_names_the_network_whose_features_are_stored(finished, recipe, tmp_path, capsys):
    given = place(finished[0], "frontend")
    one, own = recipe.stage("context"), tmp_path / "own"
    with pytest.raises(KerassegError, match="trains on features of layer 'score': pass --init with the run or model whose layer"):
        train_recipe(one, Run(own))
    assert not own.exists()
    with pytest.raises(Preempted, match=f"to go on: the same command again, with --run-dir {own}$"):
        train_recipe(one, Run(own), init=given, report=lambda record: "stored" in record and os.kill(os.getpid(), signal.SIGTERM))
    train_recipe(one, Run(own), init=given)
    train_recipe(recipe, Run(tmp_path / "staged"), stage="context", init=given)
    for path in (own, place(tmp_path / "staged", "context")):
        assert_equal(weights_of(path), weights_of(place(finished[0], "context")))
    # Resumed without saying it again, or with another.
    train_recipe(one.override(iterations=4), Run(own))
    with pytest.raises(KerassegError, match="stored features of another network"):
        train_recipe(one.override(iterations=5), Run(own), init=place(finished[0], "joint"))


@pytest.mark.parametrize("strategy", ["mirrored", "parameter_server"])
def test_other_strategies_give_a_network_too(finished, recipe, tmp_path, strategy):
    train_recipe(recipe.stage("context").override(strategy=strategy), Run(tmp_path), init=place(finished[0], "frontend"))
    assert kerasseg.load_model(tmp_path).name == "toy_context"


# What is refused


def changed(recipe, **changes):
    starts = changes.pop("starts_from", {"frontend": ""})
    second = Stage(name="context", changes={**STAGES[1].changes, **changes}, starts_from=starts)
    return recipe.override(stages=(STAGES[0], second, *STAGES[2:]))


MISTAKES = {
    "unknown layer": ({"features": "scores"}, "toy has no layer 'scores' to store features of: did you mean 'score'?"),
    "channels": (
        {"features": "first"},
        "stored features of another network: toy_context takes maps of 11 channels, received maps of 4",
    ),
    "photographs": ({"arch": "toy", "arguments": {"input_shape": [None, None, 11]}}, "toy takes photographs, received maps of 11"),
    "scale": ({"random_scale": (0.5, 2.0)}, "and has random_scale=(0.5, 2.0), which is for photographs: pass --random-scale none"),
    "colour": ({"color_jitter": 0.5}, "has color_jitter=0.5, which is for photographs: pass --color-jitter 0.0"),
    "resize": ({"resize": (9, 9)}, "has resize=(9, 9)"),
    "margin": ({"label_margin": 186}, "has label_margin=186, which is for photographs: pass --label-margin 0"),
    "crops": ({"examples": "objects"}, "has examples=objects, which is for photographs: pass --examples images"),
    "tile": ({"pad_size": (9, 9)}, "is 40x48 pixels|is 20x24 pixels, 20x24 with the network's margin: larger than 9x9, to which"),
    "no network": ({"starts_from": {}}, "stage 'context' of recipe features_toy trains on the features of one network, received"),
    "split": ({"split": "trian"}, "did you mean 'train'"),
    "features of features": ({"data": "features"}, "features='score' are stored of photographs, received data='features'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_stage_is_found_before_the_front_end_is_trained(recipe, tmp_path, mistake):
    changes, message = MISTAKES[mistake]
    wrong, lines = changed(recipe, **changes), []
    for command in (train_recipe, dry_run_all):
        with pytest.raises(KerassegError) as error:
            command(wrong, Run(tmp_path / "run"))
        lines.append(str(error.value))
    assert lines[0] == lines[1] and any(part in lines[0] for part in message.split("|")) and "\n" not in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_stores_nothing_and_tells_what_storing_takes(finished, recipe, tmp_path, capsys, monkeypatch):
    new = dry_run_all(recipe, Run(tmp_path / "run"))
    assert list(new) == list(NAMES) and [found.storing is None for found in new.values()] == [True, False, True]
    assert new["context"].new_layers is None and new["context"].images == 6 and new["context"].total > new["context"].storing > 0
    assert not (tmp_path / "run").exists()
    path = copied(finished, tmp_path, without=("joint",))
    before = tree(path)
    assert run(train, "--run-dir", path, "--iterations", "5", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "context: toy_context, 6 images of 11 classes" in out and "storing" not in out
    assert tree(path) == before


# By hand


@pytest.fixture(scope="module")
def by_hand(finished, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("by_hand")
    for split in ("train", "val"):
        assert run(store_features, place(finished[0], "frontend"), "--layer", "score", "--split", split, "--out", out) == 0
    return out


def test_the_tool_stores_what_the_stage_stores(finished, by_hand):
    for split in ("train", "val"):
        one, other = (open_data("features", root, split) for root in (by_hand, place(finished[0], "context") / "features"))
        assert one.header | {"origin": None} == other.header | {"origin": None}
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.label, b.label)


WRONG = {
    "unknown layer": (("--layer", "socre"), "toy has no layer 'socre' to store features of: did you mean 'score'?"),
    "classes": (("--layer", "score", "--data", "shapes"), "has 11 classes (sky, building"),
    "split": (("--layer", "score", "--split", "tset"), "did you mean 'test'?"),
    "another network": (("--layer", "first"), "stored features of another network in"),
    "no number": (("--layer", "score", "--image-scale", "x"), "expected a number"),
    "scale of nothing": (("--layer", "score", "--image-scale", "-1"), "scale"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_tool_says_in_one_line_what_is_wrong(finished, by_hand, capsys, mistake):
    arguments, message = WRONG[mistake]
    before = tree(by_hand)
    assert run(store_features, place(finished[0], "frontend"), *arguments, "--out", by_hand) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert tree(by_hand) == before


HAND = ("--batch-size", "2", "--iterations", "2", "--validate-every", "2", "--validation-images", "2", "--data", "features")
REFUSED = {
    "of another network": (("--arch", "dilation8"), "dilation8 takes photographs, received maps of 11 channels; pass --arguments"),
    "scaled": (("--arch", "toy_context", "--image-scale", "0.5"), "has image_scale=0.5, which is for photographs"),
    "no split": (("--arch", "toy_context", "--split", "test"), "holds no features of split 'test': known: train, val"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_training_by_hand_says_in_one_line_what_is_wrong(by_hand, tmp_path, capsys, mistake):
    arguments, message = REFUSED[mistake]
    options = (*HAND, "--data-dir", by_hand, "--width-multiplier", "0.0625", "--run-dir", tmp_path / "run")
    assert run(train, *options, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and not (tmp_path / "run").exists()


def test_photographs_for_a_network_of_maps_are_one_line(recipe, tmp_path, capsys):
    options = ("--arch", "toy_context", "--data", "camvid", "--data-dir", recipe.data_dir, "--run-dir", tmp_path / "run")
    assert run(train, *options) == 2
    assert "toy_context takes 11 channels, the images of data set 'camvid' have 3: pass --data features" in capsys.readouterr().err


def test_the_scripts_train_dilations_context_alone_on_two_replicas(by_hand, tmp_path):
    network = ("--arch", "dilation8", "--arguments", "from_features=true", "--strategy", "mirrored", "--replicas", "2")
    code, out, err = finish("train.py", *network, *HAND, "--data-dir", by_hand, "--run-dir", tmp_path / "run")
    assert code == 0 and "evaluate it: python evaluate.py" in out, err
    assert run(evaluate, tmp_path / "run") == 0
    code, out, err = finish("tools/store_features.py", "--help")
    assert code == 0 and "--pad-size" in out


def test_dilation_itself_in_three_stages(recipe, tmp_path):
    """Front end, context, joint, in the authors' order; tiles of 420 pixels hold six cells of eight."""
    stages = (
        Stage(name="frontend", changes={"arch": "dilation_frontend"}),
        Stage(
            name="context",
            changes={"arch": "dilation8", "arguments": {"from_features": True}, "features": "final", "pad_size": (420, 420)},
            starts_from={"frontend": ""},
        ),
        Stage(name="joint", changes={"arch": "dilation8"}, starts_from={"frontend": "", "context": ""}),
    )
    real = recipe.override(stages=stages, width_multiplier=1 / 16, iterations=1, validate_every=None, image_scale=1.0)
    reports = []
    train_recipe(real, Run(tmp_path), report=reports.append)
    stored = open_data("features", place(tmp_path, "context") / "features")
    assert stored[0].image.shape == (6, 6, 11) and stored.header["stride"] == [8, 8]
    photo = open_data("camvid", recipe.data_dir)[0]
    np.testing.assert_array_equal(stored[0].label[:5], photo.label[::8, ::8])
    assert (stored[0].label[5:] == 255).all()
    assert [report["new_layers"] for report in reports if "new_layers" in report] == [[]]
    assert run(evaluate, tmp_path, "--limit", "1", "--report", tmp_path / "report") == 0
