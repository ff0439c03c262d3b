"""A training run that ends early or was begun before: how it goes on, and what it refuses."""

import os
import shutil
import signal

import numpy as np
import pytest
from cli_helpers import TOY, assert_equal, run, states, toy_offered, tree, weights_of

from kerasseg import KerassegError
from kerasseg.cli import train
from kerasseg.recipes import Recipe
from kerasseg.runs import Preempted, Run
from kerasseg.training import recording, train_recipe
from kerasseg.training.recording import Recorder
from kerasseg.training.workers import Workers

RECIPE = Recipe(name="toy", **TOY).override(validate_every=2, validation_images=2, checkpoint_every=3)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("resumption") / "run"
    train_recipe(RECIPE, Run(path))
    return path


# How it ends early, and goes on


@pytest.mark.parametrize("step", [1, 2, 4], ids=["between", "where it should validate", "the last"])
def test_sigterm_saves_the_step_and_the_run_goes_on_from_it(undisturbed, tmp_path, step):
    before = signal.getsignal(signal.SIGTERM)
    after = Recorder.after

    def asked(self, done, **arguments):
        # The signal comes while the step before is recorded.
        if done.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, done, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        if step == 1:
            original = Recorder.begin
            patch.setattr(Recorder, "begin", lambda self: (os.kill(os.getpid(), signal.SIGTERM), original(self)))
        patch.setattr(Recorder, "after", asked)
        with pytest.raises(Preempted, match=f"saved after step {step}; to go on: python train.py --run-dir {tmp_path}"):
            train_recipe(RECIPE, Run(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == before
    assert f"step-{step:08d}.npz" in states(tmp_path) and not (tmp_path / "model.keras").exists()
    reports = []
    train_recipe(RECIPE, Run(tmp_path), report=reports.append)
    assert reports[0]["done"] == step
    assert Run(tmp_path).read_log() == Run(undisturbed).read_log()
    assert_equal(weights_of(tmp_path), weights_of(undisturbed))


def killed(patch, target, name):
    """Lets the process die where something is called, as far as files can tell."""

    def die(*arguments, **options):
        raise KeyboardInterrupt

    patch.setattr(target, name, die)


@pytest.mark.parametrize("place", [(recording, "validate"), (recording, "atomic_path")], ids=lambda place: place[1])
def test_a_validation_that_was_put_off_is_done_however_often_it_is_killed(undisturbed, tmp_path, place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "any", lambda self, flag: True)
        for step in (1, 2):
            with pytest.raises(Preempted, match=f"after step {step};"):
                train_recipe(RECIPE, Run(tmp_path))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed(patch, *place)
        train_recipe(RECIPE, Run(tmp_path))
    train_recipe(RECIPE, Run(tmp_path))
    assert Run(tmp_path).read_log() == Run(undisturbed).read_log()
    assert states(tmp_path) == states(undisturbed)
    assert_equal(weights_of(tmp_path), weights_of(undisturbed))


def test_killed_before_its_first_record_a_run_starts_again_from_its_first_weights(tmp_path):
    recipe = RECIPE.override(steps_per_call=4)
    train_recipe(recipe, Run(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed(patch, Recorder, "after")
        train_recipe(recipe, Run(tmp_path / "killed"))
    assert states(tmp_path / "killed") == ["step-00000000.npz"]
    train_recipe(recipe, Run(tmp_path / "killed"))
    log = Run(tmp_path / "killed").read_log()
    assert log == Run(tmp_path / "whole").read_log()
    assert [("mean_iou" in record, record["step"]) for record in log] == [(False, 1), (True, 2), (False, 3), (True, 4)]
    assert_equal(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))


def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path, capsys):
    recipe = RECIPE.override(checkpoint_every=1, validate_every=None)
    train_recipe(recipe.override(iterations=2, schedule="fixed"), Run(tmp_path))
    newest = tmp_path / "checkpoints/step-00000002.npz"
    newest.write_bytes(newest.read_bytes()[:-200])
    assert run(train, "--run-dir", tmp_path, "--iterations", "3") == 0
    out = capsys.readouterr().out
    assert "step-00000002.npz is damaged; taking step-00000001.npz" in out and "trained 2 steps" in out
    assert [record["step"] for record in Run(tmp_path).read_log()] == [1, 2, 3]


def test_a_rate_that_changes_on_resuming_is_the_one_that_trains(undisturbed, tmp_path):
    place = Run(shutil.copytree(undisturbed, tmp_path / "run"))
    train_recipe(RECIPE.override(iterations=5, learning_rate=0.125), place)
    assert [record["learning_rate"] for record in place.read_log()] == pytest.approx([0.01] * 4 + [0.125])


# Numbers that are not finite


# After its first step the weights are infinite; or finite, but no loss that follows from them is.
TOO_FAST = {
    "infinite": (
        {"learning_rate": 1e38, "loss_normalization": "sum"},
        "the weights are not finite after step 1: lower .*first weights",
    ),
    "huge": ({"learning_rate": 1e30}, "at step 2, learning rate .* first weights"),
    "huge later": (
        {
            "learning_rate": 1e30,
            "schedule": "step",
            "step_size": 2,
            "gamma": 1.0,
            "warmup_steps": 2,
            "warmup": "constant",
            "warmup_rate": 1e-4,
        },
        "at step 4, .* goes back to its checkpoint of step 2",
    ),
}


@pytest.mark.parametrize("case", TOO_FAST)
def test_there_is_a_way_back_from_numbers_that_are_not_finite(tmp_path, case):
    change, message = TOO_FAST[case]
    recipe = RECIPE.override(validate_every=None, checkpoint_every=1, **change)
    with pytest.raises(KerassegError, match=message):
        train_recipe(recipe, Run(tmp_path))
    model = train_recipe(recipe.override(learning_rate=1e-4), Run(tmp_path))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert [record["step"] for record in Run(tmp_path).read_log()] == [1, 2, 3, 4]


def test_where_the_only_checkpoint_leads_to_the_same_loss_no_way_back_is_promised(tmp_path):
    recipe = RECIPE.override(validate_every=None, checkpoint_every=1, keep_checkpoints=1, learning_rate=1e30)
    with pytest.raises(KerassegError, match="its only checkpoint leads there at any rate: choose a new --run-dir"):
        train_recipe(recipe, Run(tmp_path))
    assert states(tmp_path) == ["step-00000001.npz"]


# What it refuses


@pytest.mark.parametrize(
    "change",
    [{"freeze": ("first",)}, {"optimizer": "adam"}, {"precision": "float16"}, {"loss_sampling": 0.5}, {"freeze_batch_norm": True}],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_state_may_not_change(undisturbed, change):
    (name,) = change
    with pytest.raises(KerassegError, match=f"was begun with {name}=.*, received .*: omit the option to resume, or choose a new"):
        train_recipe(RECIPE.override(**change), Run(undisturbed))


def copied(undisturbed, tmp_path) -> Run:
    return Run(shutil.copytree(undisturbed, tmp_path / "run"))


def test_a_mistake_on_resuming_changes_nothing(undisturbed, tmp_path):
    place = copied(undisturbed, tmp_path)
    before = tree(place.path)
    with pytest.raises(KerassegError, match="class_weights|weights"):
        train_recipe(RECIPE.override(iterations=6, class_weights=(1.0,)), place)
    assert tree(place.path) == before


REFUSED = {
    "without its checkpoints": (
        {},
        "has no checkpoint to go on from: choose a new --run-dir, or start from its weights with",
    ),
    "fewer steps": ({"iterations": 3}, "has done 4 steps, received iterations=3: pass --iterations 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_that_was_begun_refuses(undisturbed, tmp_path, case):
    change, message = REFUSED[case]
    place = copied(undisturbed, tmp_path)
    if case == "without its checkpoints":
        shutil.rmtree(place.path / "checkpoints")
    before = tree(place.path)
    with pytest.raises(KerassegError, match=message):
        train_recipe(RECIPE.override(**change), place)
    assert tree(place.path) == before


def test_the_command_that_began_a_run_goes_on_with_it(undisturbed, tmp_path):
    """As a scheduler repeats it after a kill: what it started from is not taken again, nor need it be there."""
    place, reports = copied(undisturbed, tmp_path), []
    before = Run(undisturbed).read_log()
    train_recipe(RECIPE, place, init="nowhere", report=reports.append)
    notices = [report["notice"] for report in reports if "notice" in report]
    assert notices == [f"{place.path} was begun before: it goes on, and nowhere is for a new run"]
    assert place.read_log() == before
