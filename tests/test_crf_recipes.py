"""Recipes with a CRF behind the network, in evaluation or trained with it: against the papers, and run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import crf_replicas
import numpy as np
import pytest
from cli_helpers import TINY, assert_equal, run, weights_of
from helpers import QUICK, assert_close, give_random_weights, images, parts
from test_recipes import runs_of

from kerasseg import KerassegError, load_model
from kerasseg.cli import train
from kerasseg.crf import PARAMETERS
from kerasseg.data.transforms import PadTo, RandomCrop, ReflectionMargin
from kerasseg.interop import transplant
from kerasseg.optimizers import check_multipliers
from kerasseg.recipes import RECIPES, Recipe, Stage
from kerasseg.recipes.building import build_network, recipe_transforms
from kerasseg.recipes.crf_rnn import NETWORK
from kerasseg.runs import Run
from kerasseg.training import freeze, make_strategy, train_recipe
from kerasseg.training.parts import check_resumption

SCRIPT = Path(crf_replicas.__file__)
# Rows that differ from another by the CRF alone: its parameters; the first number that was published, and of what.
ROWS = {
    "deeplab_v1_voc": ("deeplab_v1", 66.4, "test"),
    "deeplab_v1_largefov_voc": ("deeplab_v1_largefov", 67.64, "val"),
    "deeplab_v1_msc_voc": ("deeplab_v1", None, None),
    "deeplab_v1_msc_largefov_voc": ("deeplab_v1_largefov", 68.70, "val"),
    "deeplab_v2_vgg16_voc": ("deeplab_v2_vgg16", None, None),
    "deeplab_v2_vgg16_aspp_s_voc": ("deeplab_v2_vgg16", None, None),
    "deeplab_v2_resnet101_voc": ("deeplab_v2_resnet101", 77.69, "val"),
    "deeplab_v2_resnet101_context": ("deeplab_v2_resnet101", 45.7, "val"),
    "deeplab_v2_resnet101_person_part": ("deeplab_v2_resnet101", 64.94, "val"),
    "deeplab_v2_resnet101_cityscapes": ("deeplab_v2_resnet101", 70.4, "test"),
    # Dilation, Table 3.
    "dilation_frontend_coco_voc": ("deeplab_v1", 71.6, "val"),
    "dilation8_coco_voc": ("deeplab_v1", 72.7, "val"),
    "dilation8_coco_voc_large": ("deeplab_v1", 73.3, "val"),
    "deconvnet_voc": ("deconvnet", 72.5, "test"),
    "gcn_voc": ("deeplab_v2_resnet101", 81.0, "val"),
    "gcn_cityscapes": ("deeplab_v2_resnet101", 77.4, "val"),
}
# Table 3's bottom.
TRAINED = {"dilation_frontend_coco_voc": 72.5, "dilation8_coco_voc": 73.1, "dilation8_coco_voc_large": 73.9}
FCN = ["fcn32s", "fcn16s", "fcn8s"]


def published(recipe):
    """The first number, and, if all of VOC's classes are there, their mean with it of the background."""
    numbers = [float(number) for number in re.findall(r"(?<= )\d+(?:\.\d+)?(?=[,) ;]|$)", recipe.expected or "")]
    return numbers[0] if numbers else None, numbers[1:]


def test_every_recipe_is_in_a_table():
    named = {f"{name}_crf" for name in ROWS} | {f"{name}_crf_rnn" for name in TRAINED}
    assert named | {"crf_rnn_voc", "crf_rnn_voc_two_stage", "camvid_crf_rnn"} == {name for name in RECIPES if "crf" in name}


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_a_crf_differ_by_it_alone(name):
    plain, row = RECIPES[name], RECIPES[f"{name}_crf"]
    parameters, score, where = ROWS[name]
    assert row.final().crf == parameters and parameters in PARAMETERS and plain.final().crf is None
    assert published(row)[0] == score and (score is None or f" on {where}" in row.expected)
    assert row.command == plain.command.replace(name, f"{name}_crf")
    told = {"name", "crf", "expected", "command"}
    for one, other in zip(runs_of(plain), runs_of(row), strict=True):
        differing = {key for key, value in one.to_json().items() if other.to_json()[key] != value}
        # Of several stages, the last alone is another.
        assert differing <= told if other == row.final() else differing <= {"name", "command"}


@pytest.mark.parametrize("name", ["dilation_frontend_coco_voc", "dilation8_coco_voc", "dilation8_coco_voc_large"])
@pytest.mark.parametrize("kind", ["", "_crf", "_crf_rnn"])
def test_the_nine_rows_of_dilations_table_3(name, kind):
    """The mean is over 21 classes, of which the table leaves out the background: it must come to a believable number."""
    mean, classes = published(RECIPES[f"{name}{kind}"])
    assert len(classes) >= 20
    assert 92 < 21 * mean - sum(classes[:20]) < 96


@pytest.mark.parametrize("name", TRAINED)
def test_a_crf_rnn_trains_behind_the_whole_of_dilation(name):
    plain, recipe = RECIPES[name], RECIPES[f"{name}_crf_rnn"]
    assert [stage.name for stage in recipe.stages] == [*(stage.name for stage in plain.stages), "crf_rnn"]
    for one, other in zip(runs_of(plain), runs_of(recipe)[:-1], strict=True):
        assert {key for key, value in one.to_json().items() if other.to_json()[key] != value} <= {"name", "command"}
    last = recipe.final()
    assert published(recipe)[0] == TRAINED[name] and recipe.predecessors("crf_rnn") == {plain.stages[-1].name: ""}
    check_end_to_end(last, ".*/bias")
    assert last.crf_rnn and last.crf_rnn_arguments == {} and (last.data, last.split) == ("voc", "trainaug")
    # Whole images, and the network in the form that scores each of their pixels.
    assert not {RandomCrop, ReflectionMargin} & {type(transform) for transform in recipe_transforms(last, (0, 0, 0))}
    before, model = (build_network(each.override(**QUICK, weights=None), 4) for each in (runs_of(recipe)[-2], last.as_trained()))
    assert model.output_shape == (None, None, None, 4) and last.label_margin == 0
    give_random_weights(before)
    assert transplant(before, model) == ["inference1"]
    x = images((24, 40), block=8)
    unary = parts(model, "logits")(x, training=False)
    np.testing.assert_array_equal(unary, before(x, training=False))


def check_end_to_end(recipe, biases):
    """The solver of CRF-RNN, and the factors of its layers."""
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum, recipe.weight_decay) == ("sgd", 1e-13, 0.99, 5e-4)
    assert (recipe.schedule, recipe.batch_size, recipe.accumulation, recipe.loss_normalization) == ("fixed", 1, 1, "sum")
    assert [each.size for each in recipe_transforms(recipe, (0, 0, 0)) if isinstance(each, PadTo)] == [(500, 500)]
    model = build_network(recipe.override(**QUICK, weights=None), 4)
    paths = [weight.path for weight in model.trainable_weights]
    check_multipliers(recipe.multipliers, paths)
    found = {path: next((f for p, f in recipe.multipliers.items() if re.fullmatch(p, path)), (1.0, 1.0)) for path in paths}
    assert {path: pair for path, pair in found.items() if "inference1" in path} == {
        "inference1/spatial_weight": (10_000, 1),
        "inference1/bilateral_weight": (10_000, 1),
        "inference1/compatibility": (1000, 1),
    }
    assert {path for path, pair in found.items() if pair == (2.0, 0.0)} == {path for path in paths if re.fullmatch(biases, path)}


@pytest.mark.parametrize(("name", "last"), [("crf_rnn_voc", ["end_to_end"]), ("crf_rnn_voc_two_stage", ["crf", "joint"])])
def test_crf_rnn_begins_as_a_trained_fcn8s(name, last):
    recipe = RECIPES[name]
    runs = runs_of(recipe)
    assert [stage.name for stage in recipe.stages] == [*FCN, *last] and [each.arch for each in runs[:3]] == FCN
    assert [each.learning_rate for each in runs[:3]] == [1e-10, 1e-12, 1e-14] and runs[0].weights == "imagenet"
    assert {each.arch for each in runs[3:]} == {"crf_rnn"} and not any(each.crf_rnn for each in runs)
    for each in runs:
        assert (each.split, each.validation_split) == ("sbd_and_train", "val_without_sbd")
        assert each.momentum == 0.99 and each.loss_normalization == "sum" and each.iterations == 100_000
    assert (published(recipe)[0] or 0) == (72.0 if last == ["end_to_end"] else 0)
    for each in runs[3:]:
        check_end_to_end(each, ".*/bias")
        assert each.freeze == ((NETWORK,) if each.name.endswith("-crf") else ())
    fcn8s, model = (build_network(each.override(**QUICK, weights=None), 4) for each in (runs[2], runs[3]))
    give_random_weights(fcn8s)
    assert sorted(transplant(fcn8s, model)) == ["inference1", "score2", "score4", "upsample"]
    crf = model.get_layer("inference1")
    assert (crf.iterations, crf.training_iterations) == (10, 5)
    x = images((30, 41), block=8)
    assert_close(parts(model, "coarse")(x, training=False), fcn8s(x, training=False), 1e-5)


def test_a_frozen_network_leaves_the_crf_alone_to_learn():
    recipe = RECIPES["crf_rnn_voc_two_stage"].stage("crf")
    model = build_network(recipe.override(**QUICK, weights=None), 4)
    freeze(model, recipe.freeze)
    assert {weight.path.split("/")[0] for weight in model.trainable_weights} == {"inference1"}
    assert len(model.trainable_weights) == 3


def test_mistakes_are_one_line():
    base = RECIPES["shapes"].override(**QUICK, crf_rnn=True)
    for recipe, message in (
        (base.override(crf_rnn_arguments={"theta_alfa": 3}), r"has no argument 'theta_alfa': did you mean 'theta_alpha'\?"),
        (base.override(crf_rnn_arguments={"theta_beta": 0}), "theta_beta"),
        (base.override(arch="deeplab_v1", arguments={}, training_arguments={"upsample_logits": False}), "upsample_logits=True"),
        (base.override(arch="crf_rnn"), "crf_rnn has a CRF already"),
    ):
        with pytest.raises(KerassegError, match=message) as error:
            build_network(recipe.as_trained(), 4)
        assert "\n" not in str(error.value)
    # Without a CRF-RNN its arguments say nothing: options hold in every stage.
    assert build_network(base.override(crf_rnn=False, crf_rnn_arguments={"iterations": 2}), 4).output.shape[-1] == 4


TWO_STAGE = Recipe(
    name="two_stage",
    data="shapes",
    width_multiplier=1 / 16,
    image_scale=0.25,
    batch_size=2,
    iterations=2,
    arguments={"padding": "same", "preprocessing": "torch"},
    optimizer="adam",
    learning_rate=1e-3,
    crf_rnn=True,
    crf_rnn_arguments={"theta_alpha": 10.0, "theta_beta": 30.0, "iterations": 3, "training_iterations": 2},
    stages=(
        Stage(name="network", changes={"crf_rnn": False, "learning_rate": 1e-2}),
        Stage(name="crf", changes={"freeze": (NETWORK,), "multipliers": {"inference1/.*_weight": (100.0, 0.0)}}),
        Stage(name="joint", changes={"precision": "bfloat16"}),
    ),
)


def weights(model, name="inference1"):
    return model.get_layer(name).get_weights()


def changes(after, before):
    """The largest change in each of several arrays."""
    return [np.abs(one - other).max() for one, other in zip(after, before, strict=True)]


def test_two_stages_train(tmp_path):
    path = tmp_path / "run"
    train_recipe(TWO_STAGE, Run(path))
    network, crf, joint = (load_model(path / "stages" / f"{n}-{stage.name}") for n, stage in enumerate(TWO_STAGE.stages, start=1))
    names = [layer.name for layer in network.layers if layer.weights]
    assert [layer.name for layer in crf.layers if layer.weights] == [*names, "inference1"]
    for name in names:
        assert_equal(weights(crf, name), weights(network, name))
        assert max(changes(weights(joint, name), weights(crf, name))) > 0, name
    start = [factor * np.eye(6) for factor in (3, 5, -1)]
    first, second = changes(weights(crf), start), changes(weights(joint), weights(crf))
    assert min(*first, *second) > 1e-4
    # The weights learn a hundred times as fast as the compatibility.
    assert min(first[:2]) > 30 * first[2]
    assert (crf.get_layer("inference1").iterations, joint.get_layer("inference1").training_iterations) == (3, 2)
    # The layer sees the image, not what the network makes of it: its deviation is not of 255.
    assert crf.get_layer("inference1").input[1] is crf.inputs[0]
    for stage in ("2-crf", "3-joint"):
        losses = [record["loss"] for record in Run(path / "stages" / stage).read_log() if "loss" in record]
        assert losses and np.isfinite(losses).all()
    logits = load_model(path)(images((24, 32)), training=False)
    assert logits.shape == (2, 24, 32, 6) and logits.dtype == "float32" and np.isfinite(logits).all()


def test_the_command_line_puts_a_crf_rnn_behind_any_network(tmp_path):
    path = tmp_path / "run"
    options = (*TINY, "--image-scale", 0.25, "--run-dir", path, "--crf-rnn")
    assert run(train, *options, "--crf-rnn-arguments", "iterations=2", "training_iterations=1") == 0
    model = load_model(path)
    crf = model.get_layer("inference1")
    assert model.name == "fcn8s" and (crf.iterations, crf.training_iterations, crf.theta_alpha) == (2, 1, 160)
    assert np.abs(weights_of(path, "inference1")[0] - 3 * np.eye(6)).max() > 1e-4
    # A run goes on with what it was begun with.
    recipe = Recipe.from_json(Run(path).recipe())
    for change in ({"crf_rnn": False}, {"crf_rnn_arguments": {"iterations": 3}}):
        with pytest.raises(KerassegError, match=f"was begun with {next(iter(change))}="):
            check_resumption(dataclasses.replace(recipe, **change), Run(path))


def trained_on_two():
    paths = os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_replicas_train_as_one_device():
    one, two = crf_replicas.train(make_strategy("one")), trained_on_two()
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert len(one["losses"]) == len(set(one["losses"])) == 4
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    for received, expected in zip(two["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    # The CRF's did learn.
    start = [factor * np.eye(5) for factor in (3, 5, -1)]
    assert all(np.abs(np.array(w) - s).max() > 1e-3 for w, s in zip(one["weights"][-3:], start, strict=True))
