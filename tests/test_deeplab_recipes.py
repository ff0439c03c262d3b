"""The recipes of the three DeepLabs against the solver files and the papers, written out by hand."""

import re

import numpy as np
import pytest
from test_recipes import runs_of

from kerasseg.backbones import BACKBONES
from kerasseg.data import open_data
from kerasseg.data.transforms import Flip, RandomCrop, RandomScale
from kerasseg.layers import Preprocessing
from kerasseg.models import MODELS
from kerasseg.optimizers import check_multipliers
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import build_network, padding_color, recipe_transforms
from kerasseg.training import freeze

# Rows with a CRF: tests/test_crf_recipes.py.
NAMES = [name for name in RECIPES if name.startswith("deeplab") and "_crf" not in name]
V1, V2, V3 = "deeplab_v1 deeplab_v1_largefov", "deeplab_v2_vgg16 deeplab_v2_resnet101", "deeplab_v3 deeplab_v3_cascade"

# Of each run: network, data and split; crop, images of a step, iterations; rate, schedule, L2 decay; mean IoU.
RUNS = {
    "deeplab_v1_voc": [("deeplab_v1", "voc trainaug", 306, 20, 6_000, 1e-3, "step", 5e-4, None)],
    "deeplab_v1_largefov_voc": [("deeplab_v1_largefov", "voc trainaug", 321, 30, 6_000, 1e-3, "step", 5e-4, 62.25)],
    "deeplab_v1_msc_voc": [
        ("deeplab_v1", "voc trainaug", 306, 20, 6_000, 1e-3, "step", 5e-4, None),
        ("deeplab_v1", "voc trainaug", 321, 30, 6_000, 1e-3, "step", 5e-4, None),
    ],
    "deeplab_v1_msc_largefov_voc": [
        ("deeplab_v1_largefov", "voc trainaug", 321, 30, 6_000, 1e-3, "step", 5e-4, 62.25),
        ("deeplab_v1_largefov", "voc trainaug", 321, 30, 6_000, 1e-3, "step", 5e-4, 64.21),
    ],
    "deeplab_v2_vgg16_voc": [("deeplab_v2_vgg16", "voc trainaug", 321, 10, 20_000, 1e-3, "poly", 5e-4, None)],
    "deeplab_v2_vgg16_aspp_s_voc": [("deeplab_v2_vgg16", "voc trainaug", 321, 10, 20_000, 1e-3, "poly", 5e-4, None)],
    "deeplab_v2_resnet101_voc": [("deeplab_v2_resnet101", "voc trainaug", 321, 10, 20_000, 2.5e-4, "poly", 5e-4, 76.35)],
    "deeplab_v2_resnet101_context": [("deeplab_v2_resnet101", "pascal_context train", 321, 10, 20_000, 2.5e-4, "poly", 5e-4, 45.7)],
    "deeplab_v2_resnet101_person_part": [
        ("deeplab_v2_resnet101", "pascal_person_part train", 321, 10, 20_000, 2.5e-4, "poly", 5e-4, 64.94)
    ],
    "deeplab_v2_resnet101_cityscapes": [("deeplab_v2_resnet101", "cityscapes train", 321, 10, 20_000, 2.5e-4, "poly", 5e-4, 70.4)],
    "deeplab_v3_voc": [("deeplab_v3", "voc trainaug", 513, 16, 30_000, 0.007, "poly", 1e-4, 77.21)],
    "deeplab_v3_cascade_voc": [("deeplab_v3_cascade", "voc trainaug", 513, 16, 30_000, 0.007, "poly", 1e-4, 76.66)],
    "deeplab_v3_voc_trainval": [
        ("deeplab_v3", "voc trainaug", 513, 16, 30_000, 0.007, "poly", 1e-4, 77.21),
        ("deeplab_v3", "voc trainval", 513, 16, 30_000, 0.001, "poly", 1e-4, None),
    ],
    "deeplab_v3_coco_voc": [
        ("deeplab_v3", "coco_voc trainval_minus_minival", 513, 16, 30_000, 0.007, "poly", 1e-4, None),
        ("deeplab_v3", "voc trainaug", 513, 16, 30_000, 1e-4, "poly", 1e-4, 82.70),
        ("deeplab_v3", "voc trainval", 513, 16, 30_000, 1e-4, "poly", 1e-4, 85.7),
    ],
    "deeplab_v3_cityscapes": [("deeplab_v3", "cityscapes train", 769, 16, 90_000, 0.007, "poly", 1e-4, 77.23)],
    "deeplab_v3_cityscapes_coarse": [
        ("deeplab_v3", "cityscapes train+val+train_extra", 769, 16, 90_000, 0.007, "poly", 1e-4, 81.3)
    ],
}
# Runs that start from ImageNet's weights, and not from an earlier stage.
FIRST = {runs_of(RECIPES[name])[0].name for name in NAMES}
EVERY_RUN = [
    pytest.param(run, row, id=f"{name}-{index}")
    for name in NAMES
    for index, (run, row) in enumerate(zip(runs_of(RECIPES[name]), RUNS[name], strict=True))
]
every_run = pytest.mark.parametrize(("recipe", "row"), EVERY_RUN)


def test_every_recipe_is_in_the_table():
    assert list(RUNS) == NAMES


@every_run
def test_the_runs_are_the_authors(recipe, row):
    arch, data, crop, images, iterations, rate, schedule, decay, score = row
    assert (recipe.arch, f"{recipe.data} {recipe.split}") == (arch, data)
    assert (recipe.crop_size, recipe.batch_size * recipe.accumulation) == ((crop, crop), images)
    assert (recipe.iterations, recipe.learning_rate, recipe.schedule, recipe.weight_decay) == (iterations, rate, schedule, decay)
    assert (recipe.optimizer, recipe.momentum, recipe.sampling, recipe.loss_normalization) == ("sgd", 0.9, "shuffle", "valid")
    assert (recipe.step_size, recipe.gamma) == (2000, 0.1) if schedule == "step" else recipe.power == 0.9
    assert recipe.weights == ("imagenet" if recipe.name in FIRST else None)
    assert recipe.backbone == ("resnet101" if arch in V3.split() else None)
    assert set(recipe.loss_weights.values()) <= {1.0}
    # On trainval there is nothing left to validate on.
    assert recipe.validation_split == (None if recipe.split.startswith(("trainval", "train+val")) else "val")
    assert bool(recipe.validate_every) == bool(recipe.validation_split) and not recipe.keep_best
    published = re.findall(r"\d+\.\d+", recipe.expected or "")
    assert (float(published[0]) if published else None) == score
    # pad → crop → mirror, after scales where there are any.
    kinds = [type(transform) for transform in recipe_transforms(recipe, (0, 0, 0))]
    scales = {"deeplab_v2_resnet101": (0.5, 0.75, 1.0, 1.25, 1.5), "deeplab_v3": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)}
    drawn = scales.get(arch.removesuffix("_cascade"))
    assert kinds == [RandomScale, RandomCrop, Flip][0 if drawn else 1 :]
    assert drawn is None or recipe_transforms(recipe, (0, 0, 0))[0].scales() == drawn


@every_run
def test_networks_can_be_built_frozen_and_multiplied(recipe, row):
    narrow = recipe.override(width_multiplier=1 / 32, weights=None, backbone=recipe.backbone and "resnet50")
    model, kept = build_network(narrow.as_trained(), 4), build_network(narrow, 4)
    assert kept.output_shape == (None, None, None, 4)
    shapes = [{weight.path: weight.shape for weight in network.weights} for network in (model, kept)]
    assert shapes[0] == shapes[1]
    outputs = model.output if isinstance(model.output, dict) else {"logits": model.output}
    assert recipe.loss_weights == {} or list(recipe.loss_weights) == list(outputs)
    # The labels are the logits' size after subsampling; v3 keeps them whole.
    size = recipe.crop_size[0]
    for name, shape in zip(outputs, map(tuple, _shapes(model, size)), strict=True):
        cells = size if recipe.arch in V3.split() else {306: 39, 321: 21 if name == "scale_05" else 41}[size]
        assert shape[1:3] == (cells, cells)
        assert (size - recipe.label_offset - 1) % (cells - 1) == 0
    paths = [weight.path for weight in model.trainable_weights]
    freeze(model, recipe.freeze, batch_norm=recipe.freeze_batch_norm)
    check_multipliers(recipe.multipliers, [weight.path for weight in model.trainable_weights])
    trained = {weight.path.split("/")[0] for weight in model.trainable_weights}
    if recipe.arch in V1.split() and recipe.arguments.get("multi_scale"):
        branches = {f"{level}_{part}" for level in ("data", "pool1", "pool2", "pool3", "pool4") for part in ("conv", "fc", "ms")}
        # In the LargeFOV version fc8 is fixed, too.
        assert trained == branches | ({"fc8_voc12"} if recipe.arch == "deeplab_v1" else set())
    elif recipe.freeze_batch_norm:
        assert not any(path.endswith(("gamma", "beta")) for path in (w.path for w in model.trainable_weights))
    else:
        assert [weight.path for weight in model.trainable_weights] == paths


def _shapes(model, size):
    shapes = model.compute_output_shape((1, size, size, 3))
    return shapes.values() if isinstance(shapes, dict) else [shapes]


def factors(recipe, path):
    return next((pair for pattern, pair in recipe.multipliers.items() if re.fullmatch(pattern, path)), (1.0, 1.0))


def test_fields_of_view():
    large, small = (RECIPES[f"deeplab_v2_vgg16{name}_voc"].arguments for name in ("", "_aspp_s"))
    assert large == {} and small == {"atrous_rates": [2, 4, 8, 12]}
    coco, largefov = RECIPES["deeplab_v3_coco_voc"], RECIPES["deeplab_v1_msc_largefov_voc"]
    assert [run.output_stride for run in runs_of(coco)] == [16, 16, 8]
    assert [run.arguments for run in runs_of(largefov)] == [{}, {"multi_scale": True}]


def test_rates_and_decays_of_single_layers():
    largefov, vgg, resnet, v3 = (RECIPES[f"deeplab_{name}_voc"] for name in ("v1_largefov", "v2_vgg16", "v2_resnet101", "v3"))
    for recipe, score in ((largefov, "fc8_voc12"), (vgg, "fc8_voc12_3"), (resnet, "fc1_voc12_c2")):
        assert factors(recipe, f"{score}/kernel") == (10, 1) and factors(recipe, f"{score}/bias") == (20, 0)
    for recipe in (largefov, vgg):
        assert factors(recipe, "conv1_1/kernel") == (1, 1) and factors(recipe, "fc6/bias") == (2, 0)
    assert factors(v3, "aspp1/kernel") == (1, 1) and factors(v3, "aspp1_BatchNorm/gamma") == (1, 0)
    assert factors(v3, "logits_semantic/bias") == (2, 0)
    branches = RECIPES["deeplab_v1_msc_largefov_voc"].final()
    assert factors(branches, "data_ms/kernel") == (1, 1) and factors(branches, "data_ms/bias") == (2, 0)
    assert (resnet.batch_size, resnet.accumulation, resnet.freeze_batch_norm) == (1, 10, True)


def test_the_second_phase_of_v3():
    trainaug, trainval = runs_of(RECIPES["deeplab_v3_voc_trainval"])
    assert (trainaug.output_stride, trainaug.freeze_batch_norm, trainaug.weights) == (16, False, "imagenet")
    assert (trainval.output_stride, trainval.freeze_batch_norm, trainval.weights) == (8, True, None)
    assert trainval.bootstrap_classes == ("bicycle", "chair", "diningtable", "pottedplant", "sofa")
    assert set(trainval.bootstrap_classes) < set(open_labels("voc"))


def open_labels(name):
    from kerasseg.labels import LABELS

    return LABELS[name].classes


def test_padding_is_zero_after_the_backbones_own_preprocessing():
    data = open_data("shapes", length=2)
    for backbone in ("resnet101", "resnet50_beta", "resnet50_caffe", "resnet50_torchvision"):
        color = padding_color(RECIPES["deeplab_v3_voc"].override(backbone=backbone), data)
        image = np.broadcast_to(np.float32(color), (1, 2, 2, 3))
        np.testing.assert_allclose(Preprocessing.of(BACKBONES[backbone].preprocessing)(image), 0, atol=1e-5)
    plain = RECIPES["deeplab_v3_voc"].override(backbone=None)
    assert padding_color(plain, data) == (123.15, 115.90, 103.06)
    assert padding_color(plain.override(arguments={"preprocessing": "tf"}), data) == (127.5,) * 3
    assert set(f"{V1} {V2} {V3}".split()) == {arch for arch in MODELS if arch.startswith("deeplab")}
