"""What recipes say about their data can be followed: names, splits and arguments, by the loaders' own words."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
from cli_helpers import run, toy_offered, write_camvid

from kerasseg import KerassegError
from kerasseg.cli import train
from kerasseg.cli.options import resolve_recipe
from kerasseg.data import DATA_SETS, example_index, open_data
from kerasseg.data.sampling import SAMPLINGS, class_balance
from kerasseg.data.table import JOINT
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.recipes.building import open_recipe_data, open_training_data
from kerasseg.training.parts import feed, sampling_weights
from kerasseg.training.trainer import Share

RUNS = {
    run.name: run
    for recipe in map(RECIPES.__getitem__, RECIPES)
    for run in [recipe, *(recipe.stage(s.name) for s in recipe.stages)]
}
UNKNOWN = "no-such-split"


def named(run: Recipe):
    """Each data set that a run opens, with the split that is asked of it."""
    names = run.data.split(JOINT)
    for split in filter(None, (run.split, run.validation_split)):
        splits = split.split(JOINT)
        assert len(splits) in (1, len(names)), run.name
        yield from zip(names, splits * (len(names) // len(splits)), strict=True)


def answer(name: str, split: str, folder) -> str:
    """What a loader says of a split in an empty folder: it looks at the name first."""
    try:
        DATA_SETS[name](folder, split)
    except KerassegError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", sorted({part for run in RUNS.values() for part in run.data.split(JOINT)} - {"features"}))
def test_every_split_that_a_recipe_names_is_known_to_its_loader(name, tmp_path):
    folder = None if name == "shapes" else tmp_path
    assert re.search("split", answer(name, UNKNOWN, folder)), "the loader does not look at the split first"
    unknown = answer(name, UNKNOWN, folder).partition(UNKNOWN)[0]
    for recipe in RUNS.values():
        for part, split in named(recipe):
            if part == name:
                assert not answer(part, split, folder).startswith(unknown), f"{recipe.name}: {split}"


@pytest.mark.parametrize("recipe", RUNS.values(), ids=RUNS)
def test_every_argument_that_a_recipe_gives_is_one_of_its_loader(recipe):
    taken = {name for part in recipe.data.split(JOINT) for name in inspect.signature(DATA_SETS[part]).parameters}
    assert set(recipe.data_arguments) <= taken - {"data_dir", "split"} and recipe.sampling in SAMPLINGS
    assert recipe.cache is None and not recipe.skip_broken


def test_the_papers_choices_among_the_arguments():
    given = {name: dict(run.data_arguments) for name, run in RUNS.items() if run.data_arguments}
    assert given.pop("deeplab_v3_coco_voc-coco") == {"minimum_region": 1000}
    assert {name.partition("-")[0] for name in given} == {"dilation8_camvid"}
    assert all(values == {"class_order": "dilation"} for values in given.values())


def resolved(*arguments):
    return resolve_recipe(train.parser().parse_args(list(arguments)))


def test_arguments_are_of_the_data_that_they_were_given_for(tmp_path):
    recipe = resolved("--recipe", "dilation8_camvid", "--data-arguments", "class_order=segnet")
    assert {run.data_arguments["class_order"] for run in (recipe, recipe.stage("joint"))} == {"segnet"}
    other = resolved("--recipe", "dilation8_camvid", "--data", "kitti")
    assert other.data_arguments == {} == other.stage("frontend").data_arguments
    coco = resolved("--recipe", "deeplab_v3_coco_voc", "--stage", "coco", "--data-arguments", "release=2014")
    assert coco.stage("coco").data_arguments == {"release": 2014, "minimum_region": 1000} and coco.data_arguments == {}
    everywhere = resolved("--recipe", "deeplab_v3_coco_voc", "--data", "shapes")
    assert everywhere.stage("coco").data_arguments == {} and everywhere.stage("coco").data == "shapes"


def test_folders_of_a_union_and_of_a_cache_hold_elsewhere_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one,two").mkdir()
    recipe = resolved("--recipe", "gcn_voc", "--data-dir", "coco,gs://bucket/voc", "--cache", "kept")
    for one in (recipe, *(recipe.stage(stage.name) for stage in recipe.stages)):
        assert (one.data_dir, one.cache) == (f"{tmp_path}/coco,gs://bucket/voc", f"{tmp_path}/kept")
    assert resolved("--data-dir", "one,two", "--cache", "memory").data_dir == f"{tmp_path}/one,two"
    assert resolved("--cache", "memory").cache == "memory" and resolved("--cache", "none").cache is None


def test_words_of_masking_are_checked(tmp_path, capsys):
    assert run(train, "--background", "hide", "--run-dir", tmp_path / "run") == 2
    assert "--background hide: expected keep or mask" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_images_of_a_union_are_counted_aloud(tmp_path, capsys):
    write_camvid(tmp_path / "camvid")
    with toy_offered():
        options = ("--arch", "toy", "--data", "camvid", "--data-dir", tmp_path / "camvid", "--split", "train+val")
        options = (*options, "--crop-size", "16x16", "--iterations", "1", "--run-dir", tmp_path / "run")
        assert run(train, *options, "--dry-run") == 0
        assert "camvid:train 6 + camvid:val 4 = 10 images" in capsys.readouterr().out
        assert run(train, *options) == 0
        assert "camvid:train 6 + camvid:val 4 = 10 images" in capsys.readouterr().out


def test_broken_images_are_left_out_counted_and_named(tmp_path, capsys):
    write_camvid(tmp_path / "camvid")
    (tmp_path / "camvid/images/train/train_00002.png").write_bytes(b"nothing")
    with toy_offered():
        options = (
            "--arch",
            "toy",
            "--data",
            "camvid",
            "--data-dir",
            tmp_path / "camvid",
            "--crop-size",
            "16x16",
            "--iterations",
            "1",
        )
        options = (*options, "--validate-every", "none", "--batch-size", "6")
        assert run(train, *options, "--run-dir", tmp_path / "broken") == 2
        assert "train_00002.png" in capsys.readouterr().err and not (tmp_path / "broken").exists()
        assert run(train, *options, "--skip-broken", "--run-dir", tmp_path / "run") == 0
        said = capsys.readouterr().out
        assert "left out 'train_00002'" in said and "1 of 6 images are broken and left out" in said
    recipe = RECIPES["camvid_small"].override(data_dir=str(tmp_path / "camvid"), skip_broken=True)
    notices = []
    assert len(open_training_data(recipe, notice=notices.append)) == 5 and len(notices) == 2
    # What is scored is never left out.
    assert len(open_recipe_data(recipe, "train")) == 6


def test_a_cache_changes_nothing(tmp_path):
    base = RECIPES["camvid_small"].override(data_dir=str(write_camvid(tmp_path / "camvid")), background="keep")
    plain = list(open_training_data(base))
    for where in ("memory", str(tmp_path / "cache")):
        data = open_training_data(base.override(cache=where))
        for _ in range(2):
            for example, expected in zip(data, plain, strict=True):
                np.testing.assert_array_equal(example.image, expected.image)
                np.testing.assert_array_equal(example.label, expected.label)


def test_balanced_draws_read_the_labels_once(monkeypatch):
    recipe = RECIPES["shapes"].override(sampling="balanced", batch_size=3, flip=False)
    data, seen = open_data("shapes", length=9), []
    weights = sampling_weights(recipe, data, seen.append)
    assert seen[-1] == {"searched": 9, "of": 9}
    np.testing.assert_array_equal(weights, class_balance(data))
    monkeypatch.setattr(type(data), "read_label", lambda *_: pytest.fail("read again"))
    image, _ = next(iter(feed(recipe, data, 2, Share())))
    places = [example_index(position, 9, recipe.seed, "balanced", weights=weights) for position in (6, 7, 8)]
    np.testing.assert_array_equal(image, np.stack([data[place].image for place in places]).astype(np.float32))
    assert sampling_weights(dataclasses.replace(recipe, sampling="shuffle"), data) is None
