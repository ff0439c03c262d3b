"""Recipes of several stages: what each starts from, what is kept, what a resumed one does again."""

import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
from cli_helpers import TOY, assert_equal, run, toy_offered, tree, weights_of
from PIL import Image

import kerasseg
from kerasseg import KerassegError
from kerasseg.backbones.building import batch_norm
from kerasseg.cli import evaluate, export, plot_log, predict, train
from kerasseg.cli.options import check_names, resolve_recipe
from kerasseg.layers import Conv2D, Preprocessing
from kerasseg.models import MODELS
from kerasseg.recipes import Recipe, Stage
from kerasseg.runs import Preempted, Run
from kerasseg.training import train_recipe
from kerasseg.training.recording import Recorder

NETS = ("fcn32s", "fcn16s", "fcn8s")
THREE = Recipe(
    name="three",
    data="shapes",
    width_multiplier=1 / 16,
    batch_size=2,
    iterations=2,
    arguments={"padding": "same", "preprocessing": "torch"},
    learning_rate=1e-3,
    stages=(
        Stage(name="fcn32s", changes={"arch": "fcn32s"}),
        Stage(name="fcn16s", changes={"arch": "fcn16s"}),
        Stage(name="fcn8s", changes={"arch": "fcn8s", "image_scale": 0.5}),
    ),
)
# Late fusion: two networks that know nothing of each other, then one that holds both.
FUSION = Recipe(
    name="fusion",
    **TOY,
    stages=(
        Stage(name="color", changes={"seed": 1}),
        Stage(name="depth", changes={"seed": 2}, starts_from={}),
        Stage(
            name="both",
            changes={"arguments": {"trunks": ["color", "depth"]}, "learning_rate": 0.0},
            starts_from={"color": "color", "depth": "depth"},
        ),
    ),
)
# Other data and sizes, and a layer that stays as it is.
PHASES = Recipe(
    name="phases",
    **TOY,
    stages=(
        Stage(name="whole"),
        Stage(
            name="crops", changes={"split": "val", "crop_size": [16, 24], "freeze": ["first"], "multipliers": {".*bias": [2, 0]}}
        ),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def offered():
    names = {"three": "THREE", "fusion": "FUSION", "phases": "PHASES"}
    with toy_offered(**{name: f"test_stages:{value}" for name, value in names.items()}):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all three nets, undisturbed, and what it reported."""
    path, reports = tmp_path_factory.mktemp("three") / "run", []
    train_recipe(THREE, Run(path), report=reports.append)
    return path, reports


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    path, reports = tmp_path_factory.mktemp("fusion") / "run", []
    train_recipe(FUSION, Run(path), report=reports.append)
    return path, reports


def trained(state) -> list[np.ndarray]:
    """The network's weights in a checkpoint, without the random state of its dropout."""
    return [value for name, value in state.items() if name.startswith("model/") and "seed" not in name]


# What a staged run is


def test_each_stage_is_a_run_below_the_run(finished):
    path, reports = finished
    for number, name in enumerate(NETS, start=1):
        place = path / f"stages/{number}-{name}"
        assert json.loads((place / "recipe.json").read_text())["arch"] == name
        assert [record["step"] for record in Run(place).read_log()] == [1, 2]
        assert kerasseg.load_model(place).name == name
    assert {p.name for p in path.iterdir()} == {"recipe.json", "labels.json", "environment.json", "model.keras", "stages"}
    assert Recipe.from_json(Run(path).recipe()) == THREE
    assert (path / "model.keras").read_bytes() == (path / "stages/3-fcn8s/model.keras").read_bytes()
    assert [report["stage"] for report in reports if "stage" in report] == list(NETS)
    # What the finer nets have that the coarser lack: FCN, section 4.3.
    new = [sorted(report["new_layers"]) for report in reports if "new_layers" in report]
    assert new == [["score_pool4", "upscore2"], ["score_pool3", "upscore_pool4"]]


def test_the_commands_take_the_run_as_a_whole(finished, tmp_path, capsys):
    path, _ = finished
    assert run(evaluate, path, "--limit", "1", "--pictures", "0", "--report", tmp_path / "report") == 0
    # Only the last stage works at this scale.
    assert "scales 0.5\n" in capsys.readouterr().out
    photograph = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(photograph)
    assert run(predict, path, photograph, "--out", tmp_path / "out", "--kinds", "index") == 0
    assert run(export, path, "--out", tmp_path / "a.tflite") == 0
    assert json.loads((tmp_path / "a.json").read_text())["input"]["shape"] == [1, 48, 64, 3]
    assert run(plot_log, path, "--out", tmp_path / "curve.png") == 0
    assert plot_log._read(Run(path))[1] == [2, 4]


def test_a_killed_run_goes_on_where_it_was(fused, tmp_path, monkeypatch):
    """Three calls: one dies in the second stage, one between the second and the third, one ends."""
    after, begin = Recorder.after, Recorder.begin

    def dies_after_a_step(self, step, **arguments):
        after(self, step, **arguments)
        if self._recipe.name == "fusion-depth" and step.step == 2:
            raise KeyboardInterrupt

    def dies_at_its_beginning(self):
        if self._recipe.name == "fusion-both":
            raise KeyboardInterrupt
        begin(self)

    for patch in ({"after": dies_after_a_step}, {"begin": dies_at_its_beginning}, {}):
        with monkeypatch.context() as patched:
            for name, value in patch.items():
                patched.setattr(Recorder, name, value)
            reports = []
            try:
                train_recipe(FUSION.override(checkpoint_every=1), Run(tmp_path), report=reports.append)
            except KeyboardInterrupt:
                assert patch and not (tmp_path / "model.keras").exists()
    assert [report["finished"] for report in reports if "stage" in report] == [True, True, False]
    path, _ = fused
    for place in ("stages/1-color", "stages/2-depth", "stages/3-both"):
        assert Run(tmp_path / place).read_log() == Run(path / place).read_log()
        assert_equal(weights_of(tmp_path / place), weights_of(path / place))


def test_two_predecessors_fill_layers_by_their_suffix(fused):
    path, reports = fused
    color, depth = (weights_of(path / place, "first") for place in ("stages/1-color", "stages/2-depth"))
    assert np.abs(color[0] - depth[0]).max() > 0.01
    assert_equal(weights_of(path, "firstcolor"), color)
    assert_equal(weights_of(path, "firstdepth"), depth)
    (new,) = (report["new_layers"] for report in reports if "new_layers" in report)
    assert new == ["bn", "score"]


def test_a_predecessor_that_fills_nothing_is_an_error(fused, tmp_path):
    shutil.copytree(fused[0] / "stages", tmp_path / "stages", ignore=lambda folder, names: {"3-both"} & set(names))
    both = Stage(name="both", changes=FUSION.stages[2].changes, starts_from={"color": "color", "depth": "death"})
    with pytest.raises(KerassegError, match="cannot start from .*2-depth: no layer of toy has, 'death' added, the name and shape"):
        train_recipe(FUSION.override(stages=(*FUSION.stages[:2], both)), Run(tmp_path))
    assert not (tmp_path / "stages/3-both").exists()


def test_a_stage_may_have_other_data_another_size_and_frozen_layers(tmp_path):
    train_recipe(PHASES, Run(tmp_path))
    before, after = (tmp_path / "stages" / place for place in ("1-whole", "2-crops"))
    recipe = Recipe.from_json(Run(after).recipe())
    assert (recipe.split, recipe.crop_size, recipe.freeze, recipe.multipliers) == ("val", (16, 24), ("first",), {".*bias": (2, 0)})
    assert_equal(weights_of(after, "first"), weights_of(before, "first"))
    assert np.abs(weights_of(after, "score")[0] - weights_of(before, "score")[0]).max() > 0


def dilated(num_classes=6, *, output_stride=16, preprocessing="torch", width_multiplier=1.0, weights=None):
    """As ResNets are brought to another stride: where a layer no longer strides, those after it are dilated."""
    image = keras.Input((None, None, 3), name="image")
    x, late = Preprocessing.of(preprocessing)(image), 16 // output_stride
    for index, (stride, rate) in enumerate([(2, 1), (2, 1), (2, 1), (2 // late, 1), (1, late)]):
        x = Conv2D(4, 3, stride, padding="same", dilation_rate=rate, use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.ReLU()(batch_norm(x, f"bn{index}"))
    score = Conv2D(num_classes, 1, name="score")(x)
    return keras.Model(image, keras.layers.UpSampling2D(output_stride, interpolation="bilinear")(score), name="dilated")


def test_a_stage_at_another_output_stride_with_batch_norm_frozen(tmp_path, monkeypatch):
    """As DeepLab v3 trains: Chen et al. 2017, arXiv:1706.05587, section 4.1."""
    monkeypatch.setitem(MODELS._locations, "dilated", "test_stages:dilated")
    changes = {"output_stride": 8, "freeze_batch_norm": True, "learning_rate": 0.001}
    stages = (Stage(name="coarse", changes={"output_stride": 16}), Stage(name="fine", changes=changes))
    recipe = Recipe(name="v3", **{**TOY, "arch": "dilated", "image_scale": 1.0, "crop_size": (64, 64)}, stages=stages)
    reports = []
    train_recipe(recipe, Run(tmp_path), report=reports.append)
    coarse, fine = (Run(tmp_path / "stages" / place) for place in ("1-coarse", "2-fine"))
    before, after = kerasseg.load_model(coarse.path), kerasseg.load_model(fine.path)
    assert [before.get_layer("conv3").strides, before.get_layer("conv4").dilation_rate] == [(2, 2), (1, 1)]
    assert [after.get_layer("conv3").strides, after.get_layer("conv4").dilation_rate] == [(1, 1), (2, 2)]
    # Everything is carried over: what the second stage began with is what the first one ended with.
    assert [report["new_layers"] for report in reports if "new_layers" in report] == [[]]
    with np.load(fine.path / "checkpoints/step-00000000.npz") as first:
        assert_equal(trained(first), before.get_weights())
    for index in range(5):
        norm = f"bn{index}"
        assert_equal(after.get_layer(norm).get_weights(), before.get_layer(norm).get_weights())
        assert np.abs(before.get_layer(norm).moving_mean).max() > 0
        assert np.abs(after.get_layer(f"conv{index}").kernel - before.get_layer(f"conv{index}").kernel).max() > 0
    for stage, rate in ((coarse, 0.01), (fine, 0.001)):
        assert [record["learning_rate"] for record in stage.read_log()] == pytest.approx([rate] * 4)


# How it goes on, and what it refuses then


def test_sigterm_at_the_end_of_a_stage_ends_there(fused, tmp_path, monkeypatch):
    finish = Recorder.finish
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "finish", lambda self: (os.kill(os.getpid(), signal.SIGTERM), finish(self))[1])
        with pytest.raises(Preempted, match=f"saved after step 4; to go on: python train.py --run-dir {tmp_path}$"):
            train_recipe(FUSION, Run(tmp_path))
    assert [place.name for place in (tmp_path / "stages").iterdir()] == ["1-color"]
    train_recipe(FUSION, Run(tmp_path))
    assert_equal(weights_of(tmp_path), weights_of(fused[0]))


def copied(fused, tmp_path) -> Run:
    return Run(shutil.copytree(fused[0], tmp_path / "run"))


REFUSED = {
    "a mistake": ({"iterations": 6, "class_weights": (1.0,)}, "class_weights|weights"),
    "fewer steps": ({"iterations": 3}, "1-color has done 4 steps, received iterations=3: pass --iterations 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_finished_run_refuses_changes_nothing(fused, tmp_path, case):
    change, message = REFUSED[case]
    place = copied(fused, tmp_path)
    before = tree(place.path)
    with pytest.raises(KerassegError, match=message):
        train_recipe(FUSION.override(**change), place)
    assert tree(place.path) == before


def test_a_finished_run_trains_the_iterations_that_are_added(tmp_path):
    place, reports = Run(tmp_path / "run"), []
    train_recipe(PHASES, place)
    # The weights of finished stages may lie without the checkpoints.
    for stage in ("1-whole", "2-crops"):
        shutil.copytree(place.path / "stages" / stage / "checkpoints", tmp_path / stage)
        shutil.rmtree(place.path / "stages" / stage / "checkpoints")
    train_recipe(PHASES, place, report=reports.append)
    assert [report["finished"] for report in reports] == [True, True]
    for stage in ("1-whole", "2-crops"):
        shutil.copytree(tmp_path / stage, place.path / "stages" / stage / "checkpoints")
    top, reports = weights_of(place.path), []
    longer = PHASES.override(iterations=5)
    train_recipe(longer, place, stage="whole", report=reports.append)
    # One stage alone: what follows from it is kept, and said to be of an older one.
    assert [report["notice"] for report in reports if "notice" in report] == [
        f"stage crops was begun before stage whole ended: to start it anew, remove {place.path}/stages/2-crops"
    ]
    assert_equal(weights_of(place.path), top)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "finish", lambda self: exec("raise KeyboardInterrupt"))
        train_recipe(longer, place)
    # The last stage is under way: the network as a whole is its newest checkpoint.
    assert not place.model_path.exists()
    state = place.stage(2, "crops").checkpoints().last()
    assert state[0] == 5
    assert_equal(weights_of(place.path), trained(state[1]))
    train_recipe(longer, place)
    for stage in (place.stage(1, "whole"), place.stage(2, "crops")):
        assert [record["step"] for record in stage.read_log()] == [1, 2, 3, 4, 5]
    assert Run(place.path).recipe()["iterations"] == 5


# One stage at a time


def test_one_stage_after_the_other(tmp_path, capsys):
    directory = tmp_path / "run"
    options = ("--recipe", "phases", "--iterations", "2", "--run-dir", directory)
    assert run(train, *options, "--stage", "crops") == 2
    assert "stage 'crops' starts from 'whole', which is not finished in" in capsys.readouterr().err and not directory.exists()
    assert run(train, *options, "--stage", "whole") == 0
    assert not (directory / "model.keras").exists() and f"evaluate.py {directory}/stages/1-whole" in capsys.readouterr().out
    # Only in this stage.
    assert run(train, "--run-dir", directory, "--stage", "crops", "--momentum", "0.5") == 0
    assert f"trained network: {directory}/model.keras" in capsys.readouterr().out
    recipes = [Recipe.from_json(Run(directory / "stages" / name).recipe()) for name in ("1-whole", "2-crops")]
    assert [recipe.momentum for recipe in recipes] == [0.9, 0.5] and [recipe.iterations for recipe in recipes] == [2, 4]
    before = tree(directory)
    assert run(train, "--run-dir", directory) == 0
    out = capsys.readouterr().out
    assert "stage whole is finished: kept as it is" in out and "nothing was left to train" in out
    assert {k for k, v in tree(directory).items() if before[k] != v} <= {".", "model.keras"}


def test_init_takes_the_place_of_the_predecessors(tmp_path, capsys):
    recipe = Recipe(name="other", **TOY).override(seed=9, iterations=1)
    train_recipe(recipe, Run(tmp_path / "other"))
    options = ("--init", tmp_path / "other", "--learning-rate", "0", "--iterations", "1")
    for index, stage in enumerate((("--stage", "crops"), ())):
        directory = tmp_path / f"run{index}"
        assert run(train, "--recipe", "phases", *stage, *options, "--run-dir", directory) == 0
        place = directory / "stages" / ("2-crops" if stage else "1-whole")
        assert_equal(weights_of(place, "first", "score"), weights_of(tmp_path / "other", "first", "score"))
    assert capsys.readouterr().out.count(f"started from {tmp_path}/other; new: nothing") == 2


def test_a_dry_run_shows_every_stage_and_keeps_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(train, "--recipe", "phases", "--dry-run") == 0
    out = capsys.readouterr().out
    assert Recipe.from_json(json.loads(out[: out.rindex("}\n") + 1])) == PHASES
    # first: 3·3·3·4 + 4, batch normalization: 2·4 and as many statistics, score: 4·6 + 6.
    whole, crops = out.split("\ncrops: ")
    assert "parameters     150 trainable, 8 frozen" in whole
    assert "parameters     38 trainable, 120 frozen" in crops and "to the end" in crops
    assert not list(tmp_path.iterdir())


# What the command line changes


def resolved(*arguments):
    return resolve_recipe(train.parser().parse_args(list(arguments)))


def test_an_option_holds_in_every_stage():
    recipe = resolved("--recipe", "phases", "--crop-size", "8x8", "--multipliers", "score.*=10,1", "--arguments", "trunks=[]")
    whole, crops = recipe.stage("whole"), recipe.stage("crops")
    assert whole.crop_size == crops.crop_size == (8, 8)
    assert list(whole.multipliers.items()) == [("score.*", (10.0, 1.0))]
    assert list(crops.multipliers.items()) == [("score.*", (10.0, 1.0)), (".*bias", (2, 0))]
    assert crops.freeze == ("first",) and crops.arguments == whole.arguments == {"trunks": []}
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == Recipe.from_json(recipe.to_json())


def test_an_option_of_one_stage_holds_there_alone():
    recipe = resolved("--recipe", "phases", "--stage", "crops", "--split", "train", "--freeze", "", "--weights", "imagenet")
    assert (recipe.stage("crops").split, recipe.stage("crops").freeze, recipe.stage("crops").weights) == ("train", (), "imagenet")
    assert recipe.stage("whole") == PHASES.stage("whole")


def test_first_weights_are_for_stages_that_start_from_nothing_else():
    recipe = FUSION.override(weights="imagenet")
    assert [recipe.stage(stage.name).weights for stage in recipe.stages] == ["imagenet", "imagenet", None]


MISTAKES = {
    ("--recipe", "three", "--arch", "fcn8s"): "--arch fcn8s contradicts recipe three, whose stages are fcn32s (fcn32s), fcn16s",
    ("--recipe", "three", "--stage", "fcn8"): "recipe three has no stage 'fcn8': did you mean 'fcn8s'?",
    ("--recipe", "shapes", "--stage", "fcn8s"): "recipe shapes has no stages, received --stage fcn8s: omit it",
    ("--recipe", "phases", "--iterations", "0"): "--iterations 0: expected at least 1",
    ("--recipe", "phases", "--stage", "crops", "--clip-norm", "0"): "--clip-norm 0.0: expected a number above 0, or none",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_contradiction_is_one_line(arguments):
    with pytest.raises(KerassegError) as error:
        check_names(resolved(*arguments))
    assert MISTAKES[arguments] in str(error.value)


def test_a_mistake_in_the_last_stage_is_found_before_the_first_is_trained(tmp_path):
    late = Stage(name="late", changes={"split": "trian"})
    with pytest.raises(KerassegError, match="did you mean 'train'"):
        train_recipe(PHASES.override(stages=(*PHASES.stages, late)), Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_stages(finished, capsys):
    path, _ = finished
    message = "was begun with the stages fcn32s, fcn16s, fcn8s, received none: choose a new --run-dir"
    with pytest.raises(KerassegError, match=message):
        train_recipe(THREE.stage("fcn8s"), Run(path))
    assert run(train, "--run-dir", path, "--stage", "fcn8s", "--seed", "3") == 2
    assert "was begun with seed=0, received 3" in capsys.readouterr().err
