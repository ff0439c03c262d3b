import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import write_camvid

from kerasseg import KerassegError
from kerasseg.cli.options import check_names
from kerasseg.data import DATA_SETS, open_data
from kerasseg.data.transforms import Flip, Jitter, LossSampling, PadTo, RandomCrop, RandomScale, ReflectionMargin, Resize
from kerasseg.layers import Preprocessing
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.recipes.building import (
    build_network,
    images_per_pass,
    open_recipe_data,
    open_training_data,
    padding_color,
    recipe_transforms,
)
from kerasseg.training.feature_stages import check_feature_fields

NAMES = list(RECIPES)

VGG = {".*/bias": (2.0, 0.0)}
ALEXNET = {"score_fr.*/bias": (2.0, 0.0)}
# The solver files of fcn.berkeleyvision.org, the length that solve.py steps, and the mean IU of Tables 3, 2, 7, 6 and 5. Of several
# strides: the rate of each stage.
PROTOCOLS = [
    # recipe, networks, base_lr of each, momentum, iter_size, iterations, snapshot and test, ImageNet's weights, mean IU
    ("fcn32s_voc", "32s", (1e-10,), 0.99, 1, 100_000, 4000, True, 63.6),
    ("fcn16s_voc", "32s 16s", (1e-10, 1e-12), 0.99, 1, 100_000, 4000, True, 65.0),
    ("fcn8s_voc", "32s 16s 8s", (1e-10, 1e-12, 1e-14), 0.99, 1, 100_000, 4000, True, 65.5),
    ("fcn8s_atonce_voc", "8s_atonce", (1e-10,), 0.99, 1, 300_000, 4000, True, 65.4),
    ("fcn_alexnet_voc", "_alexnet", (1e-4,), 0.9, 20, 100_000, 4000, False, 48.0),
    ("fcn_googlenet_voc", "_googlenet", (5e-5,), 0.9, 20, 9730, 200, False, 42.5),
    ("fcn32s_voc_accum", "32s", (1e-10,), 0.9, 20, 5_000, 200, True, 51.9),
    ("fcn32s_voc_online", "32s", (1e-10,), 0.9, 1, 100_000, 4000, True, 60.7),
    ("fcn32s_voc_fixed", "32s", (1e-10,), 0.99, 1, 100_000, 4000, True, 46.6),
    ("fcn_pool5_voc", "_pool5", (1e-10,), 0.99, 1, 100_000, 4000, True, 50.0),
    ("fcn_pool4_voc", "_pool4", (1e-10,), 0.99, 1, 100_000, 4000, True, 22.4),
    ("fcn_pool3_voc", "_pool3", (1e-10,), 0.99, 1, 100_000, 4000, True, 9.2),
    ("fcn32s_voc_fg_only", "32s", (1e-10,), 0.99, 1, 100_000, 4000, True, 76.1),
    ("fcn32s_voc_bg_only", "32s", (1e-10,), 0.99, 1, 100_000, 4000, True, 37.8),
    ("fcn32s_voc_shape", "32s", (1e-10,), 0.99, 1, 100_000, 4000, True, 29.1),
    ("fcn32s_context", "32s", (1e-10,), 0.99, 1, 400_000, 8000, True, 36.7),
    ("fcn16s_context", "32s 16s", (1e-10, 1e-12), 0.99, 1, 400_000, 8000, True, 38.4),
    ("fcn8s_context", "32s 16s 8s", (1e-10, 1e-12, 1e-14), 0.99, 1, 400_000, 8000, True, 39.1),
    ("fcn32s_siftflow", "32s", (1e-10,), 0.99, 1, 100_000, 2000, True, None),
    ("fcn16s_siftflow", "32s 16s", (1e-10, 1e-12), 0.99, 1, 100_000, 2000, True, None),
    ("fcn8s_siftflow", "32s 16s 8s", (1e-10, 1e-12, 1e-12), 0.99, 1, 100_000, 2000, True, 41.2),
    ("fcn32s_nyud_color", "32s", (1e-10,), 0.99, 1, 100_000, 2000, True, 31.6),
    ("fcn32s_nyud_color_d", "32s", (1e-10,), 0.99, 1, 100_000, 2000, True, 31.7),
    ("fcn32s_nyud_hha", "32s", (1e-10,), 0.99, 1, 100_000, 2000, True, 25.2),
    ("fcn32s_nyud_color_hha", "32s 32s 32s", (1e-10, 1e-10, 1e-12), 0.99, 1, 100_000, 2000, True, 33.3),
]
FCN = [row[0] for row in PROTOCOLS]
SPLITS = {"voc": ("sbd_train", "seg11valid"), "pascal_context": ("train", "val")}
HEADS = {"semantic": 33, "geometric": 3}


def runs_of(recipe):
    """The recipe of every run: of each stage, or the recipe itself."""
    return [recipe.stage(stage.name) for stage in recipe.stages] or [recipe]


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


def test_every_recipe_of_fcn_is_in_the_table():
    assert [name for name in NAMES if name.startswith("fcn")] == FCN


def check_network(recipe, num_classes):
    model = build_network(recipe.override(width_multiplier=1 / 32, weights=None), num_classes)
    assert set(recipe.network_arguments()) <= set(inspect.signature(MODELS[recipe.arch]).parameters)
    if isinstance(num_classes, dict):
        assert {key: output.shape[-1] for key, output in model.output.items()} == num_classes
    else:
        assert model.output_shape == (None, None, None, num_classes)
    return model


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("deeplab")])
def test_every_run_of_a_recipe_has_a_network_that_takes_its_arguments(name):
    for recipe in runs_of(RECIPES[name]):
        if "late_fusion" not in recipe.arguments:
            model = check_network(recipe, HEADS if recipe.data == "sift_flow" else 4)
            if recipe.loss_weights:
                assert set(recipe.loss_weights) == set(model.output)


def test_late_fusion_starts_from_both_of_its_streams():
    recipe = RECIPES["fcn32s_nyud_color_hha"]
    assert recipe.predecessors("hha") == {} == recipe.predecessors("color")
    assert recipe.predecessors("fusion") == {"color": "color", "hha": "hha"}
    color, hha, fusion = runs_of(recipe)
    # The snapshots that the authors' net began with.
    assert (color.iterations, hha.iterations) == (28_000, 60_000)
    assert (color.data, color.arguments) == (RECIPES["fcn32s_nyud_color"].data, RECIPES["fcn32s_nyud_color"].arguments)
    assert (hha.data, hha.arguments) == (RECIPES["fcn32s_nyud_hha"].data, RECIPES["fcn32s_nyud_hha"].arguments)
    fused = MODELS[fusion.arch](4, width_multiplier=1 / 32, **fusion.arguments)
    names = {layer.name for layer in fused.layers if layer.weights}
    streams = [check_network(stream, 4) for stream in (color, hha)]
    for stream, suffix in zip(streams, ("color", "hha"), strict=True):
        assert {layer.name + suffix for layer in stream.layers if layer.weights} < names
    assert len(names) == 2 * sum(1 for layer in streams[0].layers if layer.weights)
    assert list(build_network(fusion.override(width_multiplier=1 / 32), 4).input) == ["color", "hha"]


def test_an_argument_that_the_network_does_not_take_is_an_error():
    recipe = RECIPES["shapes"].override(arguments={"paddin": "same"})
    with pytest.raises(KerassegError, match=r"fcn8s has no argument 'paddin': did you mean 'padding'\?"):
        build_network(recipe, 4)


@pytest.mark.parametrize(("name", "archs", "rates", "momentum", "passes", "steps", "every", "imagenet", "score"), PROTOCOLS)
def test_recipes_are_the_authors_solvers(name, archs, rates, momentum, passes, steps, every, imagenet, score):
    recipe = RECIPES[name]
    runs = runs_of(recipe)
    assert [run.arch for run in runs] == [f"fcn{arch}" for arch in archs.split()]
    assert tuple(run.learning_rate for run in runs) == rates
    assert recipe.arch == runs[-1].arch and recipe.learning_rate == rates[-1]
    assert runs[-1].iterations == steps and recipe.final() == runs[-1]
    for run in runs:
        assert (run.momentum, run.accumulation, run.checkpoint_every, run.validate_every) == (momentum, passes, every, every)
        decay = 2e-4 if run.arch == "fcn_googlenet" else 5e-4
        assert (run.optimizer, run.schedule, run.weight_decay, run.loss) == ("sgd", "fixed", decay, "cross_entropy")
        assert run.multipliers == (ALEXNET if run.arch == "fcn_alexnet" else VGG)
        assert run.loss_normalization == ("valid" if run.arch in ("fcn_alexnet", "fcn_googlenet") else "sum")
        # Whole images, one at a time, drawn with replacement.
        assert (run.batch_size, run.sampling, run.seed, run.width_multiplier) == (1, "replacement", 1337, 1.0)
        assert recipe_transforms(run, (0, 0, 0)) == () and run.image_scale == 1 and images_per_pass(run) == 1
        expected = ("seg11train", "seg11valid") if run.arch == "fcn_googlenet" else SPLITS.get(run.data, ("trainval", "test"))
        assert (run.split, run.validation_split) == expected
        assert run.class_weights is None and run.warmup_steps == 0 and run.clip_norm is None
        assert run.freeze == (("conv.*", "fc.*") if name == "fcn32s_voc_fixed" else ())
        # Weights of ImageNet where nothing comes from an earlier stage.
        given = recipe.predecessors(run.name.removeprefix(f"{name}-")) if recipe.stages else {}
        assert (run.weights == "imagenet") == (imagenet and not given)
    assert (f"mean IoU {score}" if score else "None") in str(recipe.expected)
    assert recipe.command.startswith(f"python train.py --recipe {name} --data-dir ") and "Table" in recipe.paper


def test_stages_run_from_the_coarsest_to_the_finest():
    for name in ("fcn8s_voc", "fcn8s_context", "fcn8s_siftflow"):
        recipe = RECIPES[name]
        assert [recipe.predecessors(stage.name) for stage in recipe.stages] == [{}, {"fcn32s": ""}, {"fcn16s": ""}]
    assert [run.expected for run in runs_of(RECIPES["fcn8s_voc"])] == [
        RECIPES[name].expected for name in ("fcn32s_voc", "fcn16s_voc", "fcn8s_voc")
    ]


def test_data_sets_have_their_own_means():
    """As the authors' data layers subtract them; SIFT Flow's and NYUDv2's are written as BGR there."""
    x = np.float32([[[[10, 20, 30]]]])
    expected = {
        "fcn8s_voc": (30 - 104.00699, 20 - 116.66877, 10 - 122.67892),
        "fcn8s_siftflow": (30 - 114.578, 20 - 115.294, 10 - 108.353),
        "fcn32s_nyud_color": (30 - 116.190, 20 - 97.203, 10 - 92.318),
        "fcn32s_nyud_hha": (10 - 132.431, 20 - 94.076, 30 - 118.477),
    }
    for name, values in expected.items():
        layer = build_network(runs_of(RECIPES[name])[0].override(width_multiplier=1 / 32, weights=None), 4).get_layer(
            "preprocessing"
        )
        np.testing.assert_allclose(layer(x)[0, 0, 0], values, rtol=1e-6)
    recipe = RECIPES["fcn32s_nyud_color_d"].override(width_multiplier=1 / 32, weights=None)
    depth = build_network(recipe, 4).get_layer("preprocessing")(np.float32([[[[10, 20, 30, 8]]]]))
    np.testing.assert_allclose(depth[0, 0, 0], (30 - 116.190, 20 - 97.203, 10 - 92.318, 8 - 7.844), rtol=1e-5)


@pytest.mark.parametrize("name", ["shapes", *(name for name in NAMES if "camvid" in name)])
def test_other_recipes_name_data_that_has_a_loader(name):
    assert RECIPES[name].data in DATA_SETS


def test_data_without_a_loader_is_named():
    with pytest.raises(KerassegError, match="data set 'vocs' of recipe fcn8s_voc has no loader"):
        open_recipe_data(RECIPES["fcn8s_voc"].override(data="camvid+vocs"), "sbd_train")


def test_transforms_come_in_the_documented_order():
    base = RECIPES["shapes"].override(flip=True, jitter=3, crop_size=(8, 9), image_scale=0.5)
    kinds = [type(transform) for transform in recipe_transforms(base.override(random_scale=(0.5, 2.0)), (1, 2, 3))]
    assert kinds == [RandomScale, Jitter, RandomCrop, Flip]
    scaled, *_, crop, _ = recipe_transforms(base.override(random_scale=(0.5, 2.0)), (1, 2, 3))
    assert (scaled.minimum, scaled.maximum) == (0.25, 1.0) and (crop.size, crop.mean) == ((8, 9), (1, 2, 3))
    assert recipe_transforms(base, (1, 2, 3))[0] == Resize(0.5)
    # Behind whatever moves the label.
    assert recipe_transforms(base.override(loss_sampling=0.25, loss_sampling_cell=8), (1, 2, 3))[-1] == LossSampling(0.25, 8)


@pytest.mark.parametrize(
    ("batch_size", "share", "images"), [(1, 1.0, 1), (1, 0.5, 2), (3, 0.2, 15), (3, 0.3, 10), (2, 1 / 3, 6), (4, 0.8, 5)]
)
def test_loss_sampling_takes_more_images(batch_size, share, images):
    assert images_per_pass(RECIPES["shapes"].override(batch_size=batch_size, loss_sampling=share)) == images


def test_loss_sampling_that_makes_no_whole_number_of_images_is_refused():
    base = RECIPES["shapes"].override(batch_size=1)
    with pytest.raises(
        KerassegError, match=r"^loss_sampling=0.3 makes 3.33333 images of batch_size=1, .* a multiple of 3, or .*…$"
    ):
        images_per_pass(base.override(loss_sampling=0.3))
    for share in (0, -0.5, 1.5, 1e-9):
        with pytest.raises(KerassegError, match=f"^loss_sampling={share}: expected above 0 to 1"):
            images_per_pass(base.override(loss_sampling=share))


def test_images_of_rare_classes_train_twice_and_validate_once(tmp_path):
    base = RECIPES["camvid_small"].override(data_dir=str(write_camvid(tmp_path)))
    recipe = base.override(bootstrap_classes=("pole",))
    plain, twice = open_training_data(base), open_training_data(recipe)
    rare = [example.id for example in plain if (example.label == plain.labels.classes.index("pole")).any()]
    assert 0 < len(rare) < len(plain) and list(twice.ids) == [*plain.ids, *rare]
    assert open_recipe_data(recipe, "train").ids == plain.ids
    with pytest.raises(KerassegError, match=r"data set 'camvid' has no class 'pol': did you mean 'pole'\?"):
        open_training_data(base.override(bootstrap_classes=("pol",)))


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


def test_a_resize_comes_first_and_the_margin_before_the_crop():
    """DeconvNet's 250×250 before its crop of 224; Dilation's crops are cut from images that carry their margin."""
    resized = RECIPES["shapes"].override(resize=(250, 250), image_scale=0.5, crop_size=(224, 224), flip=False)
    assert recipe_transforms(resized, (1, 2, 3)) == (Resize(size=(250, 250)), Resize(0.5), RandomCrop((224, 224), (1, 2, 3)))
    image, label = np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), np.int32)
    out, small = recipe_transforms(resized, (1, 2, 3))[0](image, label, None)
    assert out.shape == (250, 250, 3) and small.shape == (250, 250) and (small == 1).all()
    margin = RECIPES["shapes"].override(random_scale=(0.5, 2.0), margin=186, pad_size=(900, 900), crop_size=(500, 500), flip=True)
    kinds = [type(transform) for transform in recipe_transforms(margin, (1, 2, 3))]
    assert kinds == [RandomScale, ReflectionMargin, PadTo, RandomCrop, Flip]
    assert recipe_transforms(margin, (1, 2, 3))[1] == ReflectionMargin(186)
    restored = Recipe.from_json(json.loads(json.dumps(resized.override(label_margin=186).to_json())))
    assert restored.resize == (250, 250) and restored.label_margin == 186


@pytest.mark.parametrize("name", [name for name in NAMES if any(run.features for run in runs_of(RECIPES[name]))])
def test_a_stage_on_features_has_nothing_that_is_for_photographs(name):
    check_names(RECIPES[name])
    for recipe in runs_of(RECIPES[name]):
        check_feature_fields(recipe)
