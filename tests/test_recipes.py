import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.data import DATA_SETS, open_data
from kerasseg.data.transforms import Flip, Jitter, RandomCrop, RandomScale, Resize
from kerasseg.layers import Preprocessing
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.recipes.building import build_network, open_recipe_data, padding_color, recipe_transforms

NAMES = list(RECIPES)

# The solver files of fcn.berkeleyvision.org, voc-fcn*/solver.prototxt, and the sampling layer voc_layers.py.
VGG = {".*/bias": (2.0, 0.0)}
ALEXNET = {"score_fr.*/bias": (2.0, 0.0)}
SOLVERS = [
    # recipe, base_lr, momentum, iter_size, max_iter, normalize, from, multipliers, seg11valid
    ("fcn32s_voc", 1e-10, 0.99, 1, 100_000, "sum", None, VGG, 63.6),
    ("fcn16s_voc", 1e-12, 0.99, 1, 100_000, "sum", "fcn32s_voc", VGG, 65.0),
    ("fcn8s_voc", 1e-14, 0.99, 1, 100_000, "sum", "fcn16s_voc", VGG, 65.5),
    ("fcn8s_atonce_voc", 1e-10, 0.99, 1, 300_000, "sum", None, VGG, 65.4),
    ("fcn_alexnet_voc", 1e-4, 0.9, 20, 100_000, "valid", None, ALEXNET, 48.0),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_tuples_survive_json():
    recipe = RECIPES["shapes"].override(
        crop_size=(33, 65), random_scale=(0.5, 2.0), class_weights=(1.0, 2.0), multipliers={".*": (2.0, 0.0)}
    )
    restored = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert restored == recipe and isinstance(restored.crop_size, tuple)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_a_network_that_takes_its_arguments(name):
    recipe = RECIPES[name].override(width_multiplier=1 / 32, weights=None)
    model = build_network(recipe, 4)
    assert model.output_shape == (None, None, None, 4)
    known = inspect.signature(MODELS[recipe.arch]).parameters
    assert set(recipe.network_arguments()) <= set(known)


def test_an_argument_that_the_network_does_not_take_is_an_error():
    recipe = RECIPES["shapes"].override(arguments={"paddin": "same"})
    with pytest.raises(KerassegError, match=r"fcn8s has no argument 'paddin': did you mean 'padding'\?"):
        build_network(recipe, 4)


@pytest.mark.parametrize(("name", "rate", "momentum", "passes", "steps", "loss", "start", "multipliers", "score"), SOLVERS)
def test_voc_recipes_are_the_authors_solvers(name, rate, momentum, passes, steps, loss, start, multipliers, score):
    recipe = RECIPES[name]
    assert (recipe.learning_rate, recipe.momentum, recipe.accumulation) == (rate, momentum, passes)
    assert (recipe.iterations, recipe.loss_normalization, recipe.starts_from) == (steps, loss, start)
    assert recipe.multipliers == multipliers and f"{score}" in recipe.expected
    assert recipe.arch == name.removesuffix("_voc")
    assert (recipe.optimizer, recipe.schedule, recipe.weight_decay, recipe.loss) == ("sgd", "fixed", 5e-4, "cross_entropy")
    # Whole images, one at a time, drawn with replacement.
    assert (recipe.batch_size, recipe.sampling, recipe.seed, recipe.width_multiplier) == (1, "replacement", 1337, 1.0)
    assert recipe_transforms(recipe, (0, 0, 0)) == () and recipe.image_scale == 1
    assert (recipe.data, recipe.split, recipe.validation_split) == ("voc", "sbd_train", "seg11valid")
    assert (recipe.checkpoint_every, recipe.validate_every) == (4000, 4000)
    assert recipe.arguments == {} and recipe.class_weights is None
    assert (recipe.weights == "imagenet") == (name in ("fcn32s_voc", "fcn8s_atonce_voc"))
    assert f"--recipe {name} " in recipe.command and (start is None) == ("--init" not in recipe.command)


def test_every_voc_recipe_is_in_the_table():
    assert [row[0] for row in SOLVERS] == [name for name in NAMES if name.endswith("_voc")]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_starts_from_one_that_exists(name):
    start = RECIPES[name].starts_from
    assert start is None or start in RECIPES


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_voc")])
def test_other_recipes_name_data_that_has_a_loader(name):
    assert RECIPES[name].data in DATA_SETS


def test_data_without_a_loader_is_named():
    with pytest.raises(KerassegError, match="data set 'voc' of recipe fcn8s_voc has no loader"):
        open_recipe_data(RECIPES["fcn8s_voc"], "sbd_train")


def test_transforms_come_in_the_documented_order():
    base = RECIPES["shapes"].override(flip=True, jitter=3, crop_size=(8, 9), image_scale=0.5)
    kinds = [type(transform) for transform in recipe_transforms(base.override(random_scale=(0.5, 2.0)), (1, 2, 3))]
    assert kinds == [RandomScale, Jitter, Flip, RandomCrop]
    scaled, *_, crop = recipe_transforms(base.override(random_scale=(0.5, 2.0)), (1, 2, 3))
    assert (scaled.minimum, scaled.maximum) == (0.25, 1.0) and (crop.size, crop.mean) == ((8, 9), (1, 2, 3))
    assert recipe_transforms(base, (1, 2, 3))[0] == Resize(0.5)


def test_an_unknown_field_is_named_with_the_nearest():
    with pytest.raises(KerassegError, match=r"unknown recipe field 'learning_rat': did you mean 'learning_rate'\?"):
        Recipe.from_json({"name": "x", "learning_rat": 1})
    with pytest.raises(KerassegError, match=r"unknown recipe 'shape': did you mean 'shapes'\?"):
        RECIPES["shape"]


def test_the_built_in_recipe_needs_no_file():
    assert len(open_recipe_data(RECIPES["shapes"], "val")) == len(open_data("shapes", split="val"))


def test_names_are_listed_without_tensorflow():
    code = (
        "import sys, kerasseg\n"
        "from kerasseg.models import MODELS\nfrom kerasseg.recipes import RECIPES\n"
        "names = list(MODELS), [RECIPES[name].name for name in RECIPES], dir(kerasseg)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "print(names[:2])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == (list(MODELS), NAMES)


def test_padding_is_zero_after_preprocessing():
    data = open_data("shapes", length=2)
    base = RECIPES["shapes"]
    for preprocessing in ("caffe", "torch", "tf", {"mean": (1, 2, 3), "order": (1, 2, 0)}):
        color = padding_color(base.override(arguments={"preprocessing": preprocessing}), data)
        image = np.broadcast_to(np.float32(color), (1, 2, 2, 3))
        np.testing.assert_allclose(Preprocessing.of(preprocessing)(image), 0, atol=1e-5)
    assert padding_color(base.override(arguments={"preprocessing": None}), data) == data.mean
    assert padding_color(base.override(arguments={}), data) == (122.67892, 116.66877, 104.00699)


def test_fields_of_the_wrong_type_are_named():
    for field, value in (("iterations", "many"), ("flip", 1), ("crop_size", 3), ("learning_rate", None), ("arguments", [1])):
        with pytest.raises(KerassegError, match=f"recipe field '{field}' is "):
            Recipe.from_json({"name": "x", field: value})
