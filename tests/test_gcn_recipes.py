"""GCN's recipes against the paper, written out by hand."""

import re

import numpy as np
import pytest
from test_recipes import runs_of

from kerasseg.backbones import BACKBONES
from kerasseg.data import open_data
from kerasseg.data.transforms import Flip, PadTo, RandomCrop
from kerasseg.layers import Preprocessing
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import build_network, padding_color, recipe_transforms
from kerasseg.training import freeze

# Rows with a CRF: tests/test_crf_recipes.py.
NAMES = [name for name in RECIPES if name.startswith("gcn") and "_crf" not in name]
ALL = "coco_voc+voc trainval+trainaug"

# Of each run: data and split; side, and whether it is a random crop; backbone and kernel; steps; mean IoU on val.
RUNS = {
    "gcn_voc_ablation": [("voc trainaug", 512, False, "resnet152_msra", 15, 100_000, 74.5)],
    "gcn_voc": [
        (ALL, 640, False, "resnet152_msra", 15, 300_000, 75.0),
        ("voc trainaug", 512, False, "resnet152_msra", 15, 100_000, 78.6),
        ("voc train", 512, False, "resnet152_msra", 15, 100_000, 80.3),
    ],
    "gcn_resnet50_voc": [("voc trainaug", 512, False, "resnet50_msra", 15, 100_000, 72.3)],
    "gcn_resnet50_gcn_voc": [("voc trainaug", 512, False, "resnet50_gcn", 15, 100_000, 72.5)],
    "gcn_cityscapes": [
        ("cityscapes train+train_extra", 800, True, "resnet152_msra", 25, 300_000, 73.0),
        ("cityscapes train", 800, True, "resnet152_msra", 25, 100_000, 76.9),
    ],
}
EVERY_RUN = [
    pytest.param(run, index, row, id=f"{name}-{index}")
    for name in NAMES
    for index, (run, row) in enumerate(zip(runs_of(RECIPES[name]), RUNS[name], strict=True))
]


def default(recipe, name):
    return recipe.network_arguments().get(name, MODELS["gcn"].__wrapped__.__kwdefaults__[name])


def test_every_recipe_is_in_the_table():
    assert list(RUNS) == NAMES


@pytest.mark.parametrize(("recipe", "index", "row"), EVERY_RUN)
def test_the_runs_are_the_papers(recipe, index, row):
    data, side, cropped, backbone, kernel, steps, score = row
    assert (recipe.arch, f"{recipe.data} {recipe.split}", recipe.validation_split) == ("gcn", data, "val")
    assert (default(recipe, "backbone"), default(recipe, "kernel_size"), default(recipe, "head")) == (backbone, kernel, "gcn")
    assert default(recipe, "boundary_refinement") == ("ablation" not in recipe.name)
    # §4; what it does not state is FCN's.
    assert (recipe.batch_size, recipe.accumulation, recipe.optimizer, recipe.momentum) == (1, 1, "sgd", 0.99)
    assert (recipe.weight_decay, recipe.loss, recipe.freeze_batch_norm) == (5e-4, "cross_entropy", True)
    fcn = RECIPES["fcn32s_voc"]
    for field in ("learning_rate", "momentum", "weight_decay", "schedule", "loss_normalization", "batch_size"):
        assert getattr(recipe, field) == getattr(fcn, field)
    assert recipe.iterations == steps and steps in (fcn.iterations, RECIPES["fcn8s_atonce_voc"].iterations)
    assert recipe.weights == (None if index or backbone == "resnet50_gcn" else "imagenet")
    assert float(re.search(r"\d\d\.\d", recipe.expected)[0]) == score
    transforms = recipe_transforms(recipe, (0, 0, 0))
    assert [type(transform) for transform in transforms] == [RandomCrop if cropped else PadTo, Flip]
    assert transforms[0].size == (side, side)
    # Kernels span res5's map, as far as an odd one can.
    if side != 640:
        assert kernel == side // 32 - (side // 32 + 1) % 2


def test_published_scores_of_the_other_rows_are_named():
    ablation = [float(number) for number in re.findall(r"\d\d\.\d", RECIPES["gcn_voc_ablation"].expected)]
    table_1, table_2, table_3, table_4 = (
        [74.5, 74.7, 69.0, 70.1, 71.1, 72.8, 73.4, 73.7, 74.0],
        [69.8, 70.4, 69.6, 68.8],
        [69.8, 71.8, 71.3, 69.5, 67.5],
        [70.4, 68.8],
    )
    assert ablation == table_1 + table_2 + table_3 + table_4
    phases = [[float(number) for number in re.findall(r"\d\d\.\d", run.expected)] for run in runs_of(RECIPES["gcn_voc"])]
    assert phases == [[75.0, 74.1, 69.6], [78.6, 77.6, 72.4], [80.3, 80.4, 81.0, 82.2, 78.7, 74.0]]
    assert RECIPES["gcn_voc"].expected == runs_of(RECIPES["gcn_voc"])[-1].expected


def test_each_stage_starts_from_the_one_before():
    for name in ("gcn_voc", "gcn_cityscapes"):
        recipe = RECIPES[name]
        stages = [stage.name for stage in recipe.stages]
        assert [recipe.predecessors(stage) for stage in stages] == [{}, *({before: ""} for before in stages[:-1])]


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_stays_and_all_else_trains(name):
    recipe = RECIPES[name].final().override(width_multiplier=1 / 32, weights=None)
    recipe = recipe.override(backbone="resnet50_msra" if recipe.backbone == "resnet152_msra" else recipe.backbone)
    model = build_network(recipe, 4)
    freeze(model, recipe.freeze, batch_norm=recipe.freeze_batch_norm)
    trained = {weight.path.split("/")[0] for weight in model.trainable_weights}
    assert {layer.name for layer in model.layers if layer.weights} - trained == {
        layer.name for layer in model.layers if layer.name.startswith("bn")
    }


def test_padding_is_zero_after_the_backbones_own_preprocessing():
    data = open_data("shapes", length=2)
    for name in NAMES:
        color = padding_color(RECIPES[name], data)
        spec = BACKBONES[RECIPES[name].backbone].preprocessing
        np.testing.assert_allclose(Preprocessing.of(spec)(np.float32(color)[None, None, None]), 0, atol=1e-5)
