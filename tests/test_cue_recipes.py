"""Training on images of which only objects, their surroundings or their shapes are seen: Shelhamer et al. 2017, Table 8."""

import json

import numpy as np
import pytest
from cli_helpers import TOY, run, toy_offered, write_camvid

import kerasseg
from kerasseg import KerassegError
from kerasseg.cli import analyze, evaluate, train
from kerasseg.data import mask_cues, open_data
from kerasseg.data.transforms.cues import hide_cues
from kerasseg.evaluation import Inference
from kerasseg.evaluation.analysis.cues import cue_scores
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.recipes.building import open_recipe_data, open_training_data
from kerasseg.training.parts import feed
from kerasseg.training.trainer import Share

TINY = Recipe(name="tiny", **{**TOY, "iterations": 2, "validate_every": 2, "validation_images": 4})
WAYS = {"fg_only": ("keep", "mask"), "bg_only": ("mask", "keep"), "shape": ("mask", "mask")}


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(tiny="test_cue_recipes:TINY"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cues") / "run"
    assert run(train, "--recipe", "tiny", "--background", "mask", "--run-dir", path) == 0
    return path


@pytest.mark.parametrize(("way", "score"), [("fg_only", 76.1), ("bg_only", 37.8), ("shape", 29.1)])
def test_the_rows_of_table_8_differ_from_the_reference_in_what_is_hidden(way, score):
    recipe, reference = RECIPES[f"fcn32s_voc_{way}"], RECIPES["fcn32s_voc"]
    assert (recipe.foreground, recipe.background) == WAYS[way] and f"mean IoU {score} without background" in recipe.expected
    same = {"name": reference.name, "foreground": "keep", "background": "keep"}
    told = {name: getattr(reference, name) for name in ("expected", "paper", "command")}
    assert recipe.override(**same, **told) == reference and "84.8" in reference.expected


@pytest.mark.parametrize("way", WAYS)
def test_training_and_validation_see_the_same_parts(way):
    foreground, background = WAYS[way]
    recipe = TINY.override(foreground=foreground, background=background, image_scale=1.0)
    for data, split in ((open_training_data(recipe), "train"), (open_recipe_data(recipe, "val"), "val")):
        plain = open_data("shapes", split=split)
        for index in range(3):
            expected = mask_cues(plain[index].image, plain[index].label, foreground, background, fill=plain.mean)
            np.testing.assert_array_equal(data[index].image, expected)
            np.testing.assert_array_equal(data[index].label, plain[index].label)
            assert (expected != plain[index].image).any()
        assert data.ids == plain.ids and data.labels.classes == plain.labels.classes
        assert data.labels.absent == ("background",) and plain.labels.absent == ()
    image, label = next(iter(feed(recipe, open_training_data(recipe), 0, Share())))
    hidden = np.asarray(label) == 0 if background == "mask" else (np.asarray(label) > 0) & (np.asarray(label) < 255)
    fill = (255.0,) * 3 if way == "shape" else plain.mean
    np.testing.assert_allclose(
        np.asarray(image)[hidden], np.broadcast_to(plain.mean if background == "mask" else fill, (hidden.sum(), 3)), rtol=1e-6
    )


def test_hiding_comes_before_whatever_moves_the_label():
    """Half the size, mirrored: what is hidden is still one colour, but for the rim that resizing mixes."""
    recipe = TINY.override(foreground="mask", image_scale=0.5, flip=True)
    image, label = (np.asarray(each) for each in next(iter(feed(recipe, open_training_data(recipe), 0, Share()))))
    inside = np.zeros(label.shape, bool)
    inside[:, 3:-3, 3:-3] = True
    for rows in range(-3, 4):
        for columns in range(-3, 4):
            inside &= np.roll(label, (rows, columns), (1, 2)) > 0
    inside &= label < 255
    assert inside.sum() > 100
    np.testing.assert_allclose(image[inside], np.broadcast_to(open_data("shapes").mean, (inside.sum(), 3)), rtol=1e-5)


def test_a_run_is_scored_as_it_was_trained_without_background(finished):
    assert run(evaluate, finished, "--pictures", "2", "--limit", "16") == 0
    found = json.loads((finished / "report/val-first-16/scores.json").read_text())
    model = kerasseg.load_model(finished)
    inference = Inference(scales=(TINY.image_scale,))
    (expected,) = cue_scores(model, open_data("shapes", split="val"), inference, conditions=[("keep", "mask")], limit=16)
    assert found["confusion_matrix"] == expected.evaluation.matrix.tolist() and found["excluded"] == ["background"]
    assert found["mean_iou"] == expected.mean_iou == np.nanmean(found_of_classes(found)[1:])
    (plain,) = cue_scores(model, open_data("shapes", split="val"), inference, conditions=[("keep", "keep")], limit=16)
    assert plain.evaluation.matrix.tolist() != found["confusion_matrix"]
    assert run(evaluate, finished, "--exclude", "none", "--pictures", "0", "--limit", "16") == 0
    whole = json.loads((finished / "report/val-excluding-none-first-16/scores.json").read_text())
    assert whole["mean_iou"] == pytest.approx(np.nanmean(found_of_classes(found)))


def found_of_classes(report):
    return np.array([np.nan if value is None else value for value in report["per_class_iou"]], float)


def test_validation_is_that_of_the_masked_images(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    model, inference = kerasseg.load_model(finished), Inference(scales=(TINY.image_scale,))
    (expected,) = cue_scores(model, open_data("shapes", split="val"), inference, conditions=[("keep", "mask")], limit=4)
    assert log[-1]["mean_iou"] == pytest.approx(expected.mean_iou)


def test_the_other_rows_are_of_images_as_they_are(finished, capsys):
    """`tools/analyze.py cues` hides parts itself: of a run on masked images nothing is hidden twice."""
    assert run(analyze, "cues", finished, "--limit", "3") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("keep", "mask"))]
    model, inference = kerasseg.load_model(finished), Inference(scales=(TINY.image_scale,))
    expected = cue_scores(model, open_data("shapes", split="val"), inference, limit=3)
    assert [row[2] for row in rows] == [f"{100 * each.mean_iou:.2f}" for each in expected]
    assert len({row[3] for row in rows}) == 4


def test_a_run_goes_on_with_what_it_saw(finished, capsys):
    assert run(train, "--run-dir", finished, "--background", "keep", "--iterations", "3") == 2
    assert "was begun with background=mask, received keep: omit the option to resume" in capsys.readouterr().err


def test_without_a_background_nothing_can_be_hidden(tmp_path, capsys):
    camvid = write_camvid(tmp_path / "camvid")
    options = ("--recipe", "tiny", "--data", "camvid", "--data-dir", camvid, "--foreground", "mask", "--run-dir", tmp_path / "run")
    assert run(train, *options) == 2
    assert "data set 'camvid' has no class background: foreground and background are hidden" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(KerassegError, match="received foreground='hide': expected one of keep, mask"):
        hide_cues(open_data("shapes"), "hide")
    shapes = open_data("shapes")
    assert hide_cues(shapes) is shapes
