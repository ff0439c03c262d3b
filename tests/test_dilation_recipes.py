"""Dilation's recipes against the paper and the authors' code, written out by hand."""

import re

import numpy as np
import pytest
from helpers import QUICK
from test_dilation import seeing_centres
from test_recipes import runs_of

from kerasseg.data.transforms import Flip, RandomCrop, ReflectionMargin
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.optimizers import check_multipliers
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import build_network, recipe_transforms
from kerasseg.schedules import make_schedule

# Rows with a CRF: tests/test_crf_recipes.py.
NAMES = [name for name in RECIPES if name.startswith("dilation") and "_crf" not in name]
VOC, WITH_COCO = "voc trainaug", "coco_voc+voc trainval+trainaug"
PUBLISHED = 400_000


def stages(data, arch, rate, iterations, score=None):
    """Front end, context module on stored maps, both."""
    return [("dilation_frontend", data, rate, 14, iterations, None), *behind(data, arch, score)]


def behind(data, arch, score=None):
    return [
        (arch, data, 1e-3, 60, PUBLISHED, None),
        (arch, data, 1e-5, 14, PUBLISHED, score),
    ]


ON_COCO = [
    ("dilation_frontend", WITH_COCO, 1e-3, 14, 140_000, None),
    ("dilation_frontend", VOC, 1e-5, 14, 50_000, None),
]
# Of each run: network, data and split, rate, images of a step, iterations, mean IoU.
RUNS = {
    # Table 2.
    "dilation_frontend_voc": [("dilation_frontend", VOC, 1e-3, 14, 60_000, 67.6)],
    # §5 and the first row of Table 3.
    "dilation_frontend_coco_voc": [
        ("dilation_frontend", WITH_COCO, 1e-3, 14, 100_000, None),
        ("dilation_frontend", WITH_COCO, 1e-4, 14, 40_000, None),
        ("dilation_frontend", VOC, 1e-5, 14, 50_000, 69.8),
    ],
    "dilation8_voc": stages(VOC, "dilation8", 1e-3, 60_000),
    "dilation8_voc_large": stages(VOC, "dilation8", 1e-3, 60_000),
    # Table 3, front end + basic, + large; the 100K and 40K steps of above are one run, whose rate drops between them.
    "dilation8_coco_voc": [*ON_COCO, *behind(VOC, "dilation8", 71.3)],
    "dilation8_coco_voc_large": [*ON_COCO, *behind(VOC, "dilation8", 72.1)],
    "dilation8_camvid": stages("camvid train", "dilation8", 1e-4, PUBLISHED),
    "dilation7_kitti": stages("kitti train", "dilation7", 1e-4, PUBLISHED),
    "dilation10_cityscapes": stages("cityscapes train", "dilation10", 1e-4, PUBLISHED),
}
EVERY_RUN = [
    pytest.param(name, run, row, id=run.name) for name in NAMES for run, row in zip(runs_of(RECIPES[name]), RUNS[name], strict=True)
]
every_run = pytest.mark.parametrize(("name", "recipe", "row"), EVERY_RUN)
# On 900² and the like: images of 66×66, 66×91, 60×159 and 128×256 cells.
TILES = {"voc": (66, 66), "camvid": (66, 91), "kitti": (60, 159), "cityscapes": (128, 256)}


def test_every_recipe_is_in_the_table():
    assert list(RUNS) == NAMES


@every_run
def test_the_runs_are_the_authors(name, recipe, row):
    arch, data, rate, images, iterations, score = row
    assert (recipe.arch, f"{recipe.data} {recipe.split}") == (arch, data)
    assert (recipe.learning_rate, recipe.batch_size, recipe.iterations, recipe.accumulation) == (rate, images, iterations, 1)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.loss_normalization) == ("sgd", 0.9, 5e-4, "valid")
    assert (recipe.schedule, recipe.step_size, recipe.gamma, recipe.sampling) == ("step", 100_000, 0.1, "shuffle")
    first = recipe.name in (name, f"{name}-frontend", f"{name}-coco", f"{name}-coco_voc")
    assert recipe.weights == ("imagenet" if first else None)
    published = re.findall(r"\d+\.\d+", recipe.expected or "")
    assert (float(published[0]) if published else None) == score
    assert bool(recipe.validate_every) == bool(recipe.validation_split) and not recipe.keep_best
    kinds = [type(transform) for transform in recipe_transforms(recipe, (0, 0, 0))]
    if recipe.features:
        assert recipe.features == "final" and recipe.name == f"{name}-context" and kinds[1:] == []
        inner = [side - 2 * 186 for side in recipe.pad_size]
        assert [side % 8 for side in inner] == [0, 0]
        assert tuple(side // 8 for side in inner) == TILES[recipe.data]
    else:
        assert kinds == [ReflectionMargin, RandomCrop, Flip] and recipe.crop_size == (500, 500) and recipe.margin == 186


def test_stages_start_where_they_should():
    for name in NAMES:
        recipe = RECIPES[name]
        names = [stage.name for stage in recipe.stages]
        if "context" in names:
            front_ends = ["coco_voc", "voc"] if "coco" in name else ["frontend"]
            assert names == [*front_ends, "context", "joint"] and recipe.final().name == f"{name}-joint"
            assert recipe.predecessors(front_ends[-1]) == ({"coco_voc": ""} if "coco" in name else {})
            assert recipe.predecessors("context") == {front_ends[-1]: ""}
            assert recipe.predecessors("joint") == {front_ends[-1]: "", "context": ""}
    for data in ("voc", "coco_voc"):
        forms = [RECIPES[f"dilation8_{data}{form}"].final().arguments["context"] for form in ("", "_large")]
        assert forms == ["basic", "large"]
    first = RECIPES["dilation8_coco_voc"].stage("coco_voc")
    rate = make_schedule(first.schedule, first.learning_rate, iterations=140_000, step_size=first.step_size, gamma=first.gamma)
    assert [float(rate(step)) for step in (0, 99_999, 100_000, 139_999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    tuned = RECIPES["dilation_frontend_coco_voc"]
    assert [tuned.predecessors(stage.name) for stage in tuned.stages] == [{}, {"coco": ""}, {"coco_slow": ""}]


@every_run
def test_networks_fit_together(name, recipe, row):
    narrow = recipe.override(width_multiplier=1 / 32, weights=None)
    model, kept = build_network(narrow.as_trained(), 4), build_network(narrow, 4)
    assert [(w.path, tuple(w.shape)) for w in model.weights] == [(w.path, tuple(w.shape)) for w in kept.weights]
    assert kept.output_shape == (None, None, None, 4)
    check_multipliers(recipe.multipliers, [weight.path for weight in model.trainable_weights])
    assert recipe.multipliers == {".*/bias": (2.0, 0.0)}
    if recipe.features:
        # What is stored, and what the last stage takes from both.
        front_end, _, joint = (
            build_network(run.override(width_multiplier=1 / 32, weights=None), 4) for run in runs_of(RECIPES[name])[-3:]
        )
        assert front_end.get_layer("final").output.shape[-1] == model.input_shape[-1] == 4
        paths = {weight.path for weight in joint.weights}
        assert paths == {weight.path for weight in (*front_end.weights, *model.weights)}
    else:
        assert model.compute_output_shape((1, 500, 500, 3)) == (1, 16, 16, 4)
        assert kept.compute_output_shape((1, 500, 400, 3)) == (1, 500, 400, 4)


def test_every_network_subtracts_its_own_mean():
    means = {
        "voc": (102.93, 111.36, 116.52),
        "camvid": (110.70313, 108.77809, 105.41213),
        "kitti": (96.19430, 95.55137, 91.34692),
        "cityscapes": (72.39, 82.91, 73.16),
    }
    for name in NAMES:
        for recipe in runs_of(RECIPES[name]):
            if not recipe.features:
                layer = build_network(recipe.override(width_multiplier=1 / 32, weights=None), 4).get_layer("preprocessing")
                assert (layer.order, layer.mean) == ((2, 1, 0), means[recipe.data.split("+")[-1]])
    for arch, data in (("dilation_frontend", "voc"), ("dilation7", "kitti"), ("dilation8", "voc"), ("dilation10", "cityscapes")):
        assert MODELS[arch](4, **QUICK).get_layer("preprocessing").mean == means[data]


def test_a_cell_meets_the_first_label_of_its_pixels():
    """Cell i of the crop sees pixels 186 + 8i … 186 + 8i + 7 and learns the label of the first: by hand, with 16 × 16 squares."""
    recipe = RECIPES["dilation_frontend_voc"]
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 5, (16, 16))
    image = np.zeros((128, 128, 3), np.uint8)
    image[..., 0] = 40 * squares.repeat(8, axis=0).repeat(8, axis=1)
    # Elsewhere in each square the label is another one.
    label = (image[..., 0] // 40 + 1).astype(np.int32) % 5
    label[::8, ::8] = squares
    margin, crop, _ = recipe_transforms(recipe, (0, 0, 0))
    image, label = crop(*margin(image, label, generator), generator)
    assert image.shape == (500, 500, 3) and label.shape == (500, 500)
    np.testing.assert_array_equal(label[186:-186:8, 186:-186:8], squares)
    cells = np.asarray(seeing_centres()(image[np.newaxis].astype("float32")))
    logits = -10 * (cells / 40 - np.arange(5)) ** 2
    assert logits.shape == (1, 16, 16, 5)
    loss = SegmentationCrossEntropy(label_margin=recipe.label_margin)
    assert float(loss(label[np.newaxis], logits)) < 1e-3
    # One pixel, or one cell, beside is another label.
    for shift in (-8, -1, 1, 7, 8):
        for axis in (0, 1):
            assert float(loss(np.roll(label, shift, axis)[np.newaxis], logits)) > 5
