"""What runs on stored features remember and print: their origin, the command to go on by, what is stored, the bars."""

import os
import shlex
import signal

import keras
import numpy as np
import pytest
from cli_helpers import assert_equal, run, toy_offered, weights_of, write_camvid
from test_feature_stages import BASE, calls, place
from test_features import Photographs

import kerasseg
from kerasseg import KerassegError
from kerasseg.cli import evaluate, store_features, train
from kerasseg.cli.display import Display
from kerasseg.data import open_data
from kerasseg.data.features import read_header
from kerasseg.layers import Conv2D, Dropout, Preprocessing, ReflectionPadding2D
from kerasseg.models import MODELS
from kerasseg.runs import Run
from kerasseg.training import train_recipe
from kerasseg.training.features import FeatureExtractor, fingerprint
from kerasseg.training.features import store_features as store

QUICK = BASE.override(iterations=1)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(features_toy="test_feature_runs:QUICK"), pytest.MonkeyPatch.context() as patch:
        for name in ("context", "joint"):
            patch.setitem(MODELS._locations, f"toy_{name}", f"test_feature_stages:{name}")
        yield


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def given(camvid, tmp_path_factory):
    """Another front end than those of the runs below."""
    path = tmp_path_factory.mktemp("given") / "run"
    train_recipe(QUICK.override(data_dir=str(camvid), seed=5), Run(path), stage="frontend")
    return place(path, "frontend")


# Whose features they are


def test_a_stage_remembers_the_network_that_init_named(camvid, given, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a run"
    assert run(train, "--recipe", "features_toy", "--data-dir", camvid, "--run-dir", path, "--stage", "frontend") == 0
    original = FeatureExtractor.__call__

    def stopped(self, example):
        if example.id == open_data("camvid", camvid).ids[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, example)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "__call__", stopped)
        assert run(train, "--run-dir", path, "--stage", "context", "--init", given) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    command = line.partition("to go on: ")[2]
    assert "the features of 2 of 6 images stored" in line and command == f"python train.py --run-dir '{path}' --stage context"
    seen = calls(monkeypatch)
    assert run(train, *shlex.split(command)[2:]) == 0
    # Twice one to check the stage, and what was missing.
    assert len(seen) == 2 + 4 + 4
    assert read_header(place(path, "context") / "features/train")["origin"] == str(given)
    network, photo = kerasseg.load_model(given), open_data("camvid", camvid)[3]
    features, _ = original(FeatureExtractor(network, "score", scale=0.5), photo)
    np.testing.assert_allclose(open_data("features", place(path, "context") / "features")[3].image, features, rtol=1e-5, atol=1e-5)
    # More iterations, with nothing said; without the stage's name, too.
    assert run(train, "--run-dir", path, "--stage", "context", "--iterations", "2") == 0
    assert run(train, "--run-dir", path, "--stage", "context", "--iterations", "3", "--dry-run") == 0
    with np.load(place(path, "context") / "checkpoints/step-00000002.npz"):
        pass


def test_a_run_of_its_own_remembers_it_too_and_predecessors_may_be_moved(camvid, given, tmp_path):
    one = QUICK.override(data_dir=str(camvid)).stage("context")
    train_recipe(one, Run(tmp_path / "own"), init=given)
    (tmp_path / "own/features/train/000002.npz").unlink()
    train_recipe(one.override(iterations=2), Run(tmp_path / "own"))
    whole = QUICK.override(data_dir=str(camvid))
    for stage in ("frontend", "context"):
        train_recipe(whole, Run(tmp_path / "whole"), stage=stage)
    assert read_header(place(tmp_path / "whole", "context") / "features/train")["origin"] == "../1-frontend"
    (tmp_path / "whole").rename(tmp_path / "moved")
    before = weights_of(place(tmp_path / "moved", "frontend"))
    (place(tmp_path / "moved", "context") / "features/val/000000.npz").unlink()
    train_recipe(whole.override(iterations=2), Run(tmp_path / "moved"), stage="context")
    assert_equal(weights_of(place(tmp_path / "moved", "frontend")), before)


# What is stored and shown


def test_two_stages_in_one_process_have_a_bar_each_and_the_second_can_be_evaluated(camvid, tmp_path, capsys):
    path = tmp_path / "run"
    assert run(train, "--recipe", "features_toy", "--data-dir", camvid, "--run-dir", path) == 0
    out = capsys.readouterr().out
    shown = [line.split(" loss")[0].split(" (")[0] for line in out.splitlines() if "/" in line.split(" loss")[0]]
    assert [line for line in shown if line.endswith(("1/1", "6/6", "4/4"))] == [
        "frontend 1/1", "storing features of train 6/6", "storing features of val 4/4", "context 1/1", "joint 1/1"
    ]  # fmt: skip
    # Nothing is validated while it trains, and yet the images to evaluate on are there.
    assert QUICK.validate_every is None and f"evaluate.py {path}" in out
    assert run(evaluate, place(path, "context"), "--report", tmp_path / "report") == 0


def test_what_is_prepared_has_a_bar_of_its_own(capsys):
    with Display() as display:
        display({"done": 0, "iterations": 2, "images": 1})
        display({"step": 1, "loss": 1.0, "learning_rate": 1.0})
        for kind in ({"searched": 1}, {"stored": 1, "split": "train"}, {"stored": 1, "split": "val"}):
            display({**kind, "of": 3})
            display({**kind, "of": 3})
        display({"done": 1, "iterations": 2, "images": 1})
        display({"searched": 2, "of": 3})
    titles = [line.split(" loss")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == [
        "step 1/2", "searching labels 1/3", "storing features of train 1/3", "storing features of val 1/3", "searching labels 2/3"
    ]  # fmt: skip


def test_the_search_of_the_check_is_shown_too(tmp_path):
    stages = (BASE.stages[0],)
    recipe = QUICK.override(data="shapes", examples="objects", image_scale=1.0, crop_size=(16, 16), stages=stages)
    reports = []
    train_recipe(recipe, Run(tmp_path), report=reports.append)
    begins = next(index for index, record in enumerate(reports) if "stage" in record)
    assert [record["searched"] == record["of"] for record in reports[:begins]].count(True) == 1 < begins


def test_maps_of_one_size_are_asked_for_in_cells(camvid, given, tmp_path):
    one = QUICK.override(data_dir=str(camvid)).stage("context").override(jit_compile=True)
    with pytest.raises(KerassegError, match="jit_compile needs maps of one size: pass --crop-size in their cells, with --stage"):
        train_recipe(one, Run(tmp_path), init=given)
    train_recipe(one.override(crop_size=(16, 16)), Run(tmp_path), init=given)


def test_an_image_scale_of_nothing_is_named(given, tmp_path, capsys):
    for scale in ("0", "-0.5"):
        assert run(store_features, given, "--layer", "score", f"--image-scale={scale}", "--out", tmp_path / "out") == 2
        assert f"error: --image-scale {scale}: expected a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# What cannot be stored


def strided(rate=1, preprocessing="torch", padding="same"):
    image = keras.Input((None, None, 3), name="image")
    x = Conv2D(3, 3, 4, padding=padding, name="first")(Preprocessing.of(preprocessing)(image))
    return keras.Model(image, Conv2D(3, 3, padding="same", dilation_rate=rate, name="score")(x), name="strided")


def test_a_size_that_does_not_fit_is_refused_before_the_folder_is_begun_with_one_that_does(tmp_path):
    data = Photographs((9, 13), (11, 10))
    message = r"images of 11x10 pixels give layer 'score' of strided 3x3 cells, .*: pass --pad-size 13x13$"
    with pytest.raises(KerassegError, match=message):
        store(strided(), "score", data, tmp_path / "train")
    with pytest.raises(KerassegError, match="images of 11x14 pixels .*: pass --pad-size 13x17$"):
        store(strided(), "score", data, tmp_path / "train", size=(11, 14))
    # Of no size are there fewer cells than pixels.
    image = keras.Input((None, None, 3))
    larger = keras.Model(image, keras.layers.UpSampling2D(name="up")(image), name="larger")
    with pytest.raises(KerassegError, match="images of 9x13 pixels .* 18x26 cells, .*: name another layer$"):
        store(larger, "up", data, tmp_path / "train")
    assert not (tmp_path / "train").exists()
    store(strided(), "score", data, tmp_path / "train", size=(13, 13))
    assert open_data("features", tmp_path)[1].image.shape == (4, 4, 3)


def test_a_layer_that_still_has_the_margin_is_told_so():
    image = keras.Input((None, None, 3))
    early = Conv2D(2, 3, name="early")(ReflectionPadding2D(3)(image))
    model = keras.Model(image, Conv2D(2, 5, name="late")(early), name="eating")
    for size in ((22, 22), (23, 30)):
        with pytest.raises(KerassegError, match="give layer 'early' of eating .* cells, no whole number .*: name a later layer"):
            FeatureExtractor(model, "early", size)
        assert FeatureExtractor(model, "late", size).stride == (1, 1)


def test_a_fingerprint_is_of_what_is_computed():
    def made(change=lambda layers: None, **arguments):
        keras.utils.set_random_seed(1)
        model = strided(**arguments)
        change(model)
        return fingerprint(model)

    same = made()
    assert made(rate=2) != same and made(preprocessing="caffe") != same and made(padding="valid") != same
    assert made(lambda model: setattr(model.get_layer("score"), "trainable", False)) == same
    assert made(lambda model: setattr(model.get_layer("score"), "kernel_regularizer", keras.regularizers.L2(1e-3))) == same
    image = keras.Input((None, None, 3))
    pair = [keras.Model(image, Dropout(rate)(image)) for rate in (0.1, 0.9)]
    assert fingerprint(pair[0]) == fingerprint(pair[1])
