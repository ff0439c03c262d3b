"""What recipes say about their data can be followed: names, splits and arguments, by the loaders' own words."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
from cli_helpers import TOY, run, toy_offered, write_camvid
from fixtures.cityscapes import write_cityscapes
from fixtures.coco import write_coco
from fixtures.sbd import write_sbd
from fixtures.voc import write_voc

from kerasseg import KerassegError
from kerasseg.cli import train
from kerasseg.cli.options import resolve_recipe
from kerasseg.data import DATA_SETS, checking, example_index, open_data
from kerasseg.data.sampling import SAMPLINGS, class_balance
from kerasseg.data.table import JOINT
from kerasseg.recipes import RECIPES, Recipe, Stage
from kerasseg.recipes.building import open_recipe_data, open_training_data
from kerasseg.runs import Run
from kerasseg.training import parts, train_recipe
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
        count = max(len(names), len(splits))
        assert {len(names), len(splits)} <= {1, count}, run.name
        yield from zip(names * (count // len(names)), splits * (count // len(splits)), strict=True)


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


def arguments_of(*given, recipe="deeplab_v3_coco_voc"):
    found = resolved("--recipe", recipe, "--data-arguments", *given)
    return {stage.name: found.stage(stage.name).data_arguments for stage in found.stages}


def test_each_stage_gets_the_arguments_that_its_data_set_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = arguments_of("sbd_dir=SBD", "release=2014", "minival=~/list.txt")
    on_voc, on_coco = {"sbd_dir": f"{tmp_path}/SBD"}, {"release": 2014, "minival": "/home/me/list.txt", "minimum_region": 1000}
    assert found == {"coco": on_coco, "trainaug": on_voc, "trainval": on_voc}
    # Of a union a stage gets what either takes; one that is named gets what it is given.
    found = arguments_of("sbd_dir=gs://bucket/sbd", "minimum_region=9", recipe="gcn_voc")
    both = {"sbd_dir": "gs://bucket/sbd", "minimum_region": 9}
    assert found == {"coco-sbd-voc": both, "sbd-voc": {"sbd_dir": "gs://bucket/sbd"}, "voc": {"sbd_dir": "gs://bucket/sbd"}}
    assert resolved("--data", "voc", "--data-arguments", "sbd_dir=SBD").data_arguments == on_voc
    # What is no path stays as it is, also of this name.
    assert resolved("--data", "camvid", "--data-arguments", "sbd_dir=SBD").data_arguments == {"sbd_dir": "SBD"}
    given = ("--recipe", "deeplab_v3_coco_voc", "--data-arguments", "sbd_dri=SBD")
    assert run(train, *given, "--run-dir", tmp_path / "run") == 2
    message = "no data set of recipe deeplab_v3_coco_voc (coco_voc, voc) has an option 'sbd_dri': did you mean 'sbd_dir'?"
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_folders_of_a_union_and_of_a_cache_hold_elsewhere_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one,two").mkdir()
    recipe = resolved("--recipe", "gcn_voc", "--data-dir", "coco,gs://bucket/voc", "--cache", "kept")
    for one in (recipe, *(recipe.stage(stage.name) for stage in recipe.stages)):
        assert (one.data_dir, one.cache) == (f"{tmp_path}/coco,gs://bucket/voc", f"{tmp_path}/kept")
    assert resolved("--data-dir", "one,two", "--cache", "memory").data_dir == f"{tmp_path}/one,two"
    assert resolved("--cache", "memory").cache == "memory" and resolved("--cache", "none").cache is None


@pytest.fixture(scope="module")
def voc_and_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    write_coco(root / "coco_voc")
    write_voc(root / "voc")
    write_sbd(root / "voc")
    return root


@pytest.mark.parametrize("name", ["gcn_voc", "deeplab_v3_coco_voc", "dilation_frontend_coco_voc"])
def test_every_stage_opens_its_data_in_the_folders_of_all(name, voc_and_coco):
    """A run has one data_dir, and so has what evaluates it; its stages are of COCO, of VOC, or of both."""
    coco, voc = voc_and_coco / "coco_voc", voc_and_coco / "voc"
    for stage in (RECIPES[name], *(RECIPES[name].stage(each.name) for each in RECIPES[name].stages)):
        for split in filter(None, (stage.split, stage.validation_split)):
            found = []
            for places in (voc_and_coco, f"{coco},{voc}"):
                data = open_recipe_data(stage.override(data_dir=str(places)), split)
                found.append(data.ids)
            assert found[0] == found[1] and found[0]
            if stage.data in ("voc", "coco_voc"):
                alone = open_data(stage.data, voc_and_coco / stage.data, split, **stage.data_arguments)
                assert found[0] == alone.ids, stage.name


def test_words_of_masking_are_checked(tmp_path, capsys):
    assert run(train, "--background", "hide", "--run-dir", tmp_path / "run") == 2
    assert "--background hide: expected keep or mask" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_images_of_a_union_are_counted_aloud(tmp_path, capsys):
    write_camvid(tmp_path / "camvid")
    with toy_offered():
        options = ("--arch", "toy", "--data", "camvid", "--data-dir", tmp_path / "camvid", "--split", "train+val")
        options = (*options, "--crop-size", "16x16", "--iterations", "1", "--run-dir", tmp_path / "run", "--validate-every", "1")
        for more in (("--dry-run",), ()):
            assert run(train, *options, *more) == 0
            said = capsys.readouterr().out
            assert "camvid:train 6 + camvid:val 4 = 10 images" in said
            # Which says, too, that it validates on what it trains on.
            assert "4 of the 4 validation images are trained on, too (first 'val_00000'): choose other splits" in said


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("gcn_cityscapes", "coarse", "cityscapes:train 3 + cityscapes:train_extra 2 = 5 images"),
        (
            "deeplab_v3_cityscapes_coarse",
            None,
            "cityscapes:train 3 + cityscapes:val 2 + cityscapes:train_extra 2 = 7 images",
        ),
    ],
)
def test_fine_and_coarse_images_of_cityscapes_are_counted_aloud(name, stage, said, tmp_path):
    """2,975 + 19,998 = 22,973, and with val's 500, where they are whole."""
    known = write_cityscapes(tmp_path)
    recipe = (RECIPES[name].stage(stage) if stage else RECIPES[name]).override(data_dir=str(tmp_path))
    notices = []
    data = open_training_data(recipe, notice=notices.append)
    assert notices == [said]
    for index, photograph in enumerate(data.ids):
        kind = "fine" if photograph in known["fine"] else "coarse"
        np.testing.assert_array_equal(data.read_label(index), known[kind][photograph][1])


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
        assert "checking files 6/6" in said and "searching" not in said
        assert "left out 'train_00002'" in said and "1 of 6 images are broken and left out" in said
    recipe = RECIPES["camvid_small"].override(data_dir=str(tmp_path / "camvid"), skip_broken=True)
    notices = []
    assert len(open_training_data(recipe, notice=notices.append)) == 5 and len(notices) == 2
    # What is scored is never left out.
    assert len(open_recipe_data(recipe, "train")) == 6


STAGES = Recipe(
    name="halves",
    **{**TOY, "data": "camvid", "iterations": 1, "image_scale": 1.0},
    crop_size=(16, 16),
    skip_broken=True,
    sampling="balanced",
    stages=(Stage(name="one"), Stage(name="two", changes={"learning_rate": 0.1})),
)


def test_files_and_labels_are_read_once_for_all_stages(tmp_path, monkeypatch):
    images = write_camvid(tmp_path / "camvid") / "images/train"
    whole = (images / "train_00002.png").read_bytes()
    (images / "train_00002.png").write_bytes(b"nothing")
    read = {"check": [], "balance": []}
    check, balance = checking.check_example, parts.class_balance
    monkeypatch.setattr(checking, "check_example", lambda data, index: read["check"].append(index) or check(data, index))
    monkeypatch.setattr(parts, "class_balance", lambda data, *more: read["balance"].append(len(data)) or balance(data, *more))
    reports = []
    with toy_offered():
        recipe = STAGES.override(data_dir=str(tmp_path / "camvid"), validate_every=None)
        train_recipe(recipe, Run(tmp_path / "run"), report=reports.append)
        assert sorted(read["check"]) == list(range(6)) and read["balance"] == [5]
        # When they are checked, before either stage begins.
        begun = next(place for place, report in enumerate(reports) if "stage" in report)
        for what, count in (("checked", 6), ("searched", 5)):
            found = [place for place, report in enumerate(reports) if what in report]
            assert [reports[place] for place in found] == [{what: k + 1, "of": count} for k in range(count)] and found[-1] < begun
        assert sum("left out 'train_00002'" in report.get("notice", "") for report in reports) == 2
    # Another file, other arguments: read anew.
    first = recipe.stage("one")
    (images / "train_00002.png").write_bytes(whole)
    data = open_training_data(first)
    assert len(data) == 6 and len(read["check"]) == 12
    assert len(open_training_data(first.override(split="val"))) == 4 and len(read["check"]) == 16
    assert len(open_training_data(first.override(data_arguments={"class_order": "dilation"}))) == 6 and len(read["check"]) == 22
    assert len(open_training_data(first)) == 6 and len(read["check"]) == 22
    parts.sampling_weights(first.override(bootstrap_classes=("sky",)), data)
    assert read["balance"] == [5, 6]


def test_a_run_goes_on_with_the_images_that_it_was_begun_on(tmp_path, capsys):
    images = write_camvid(tmp_path / "camvid") / "images/train"
    whole = (images / "train_00002.png").read_bytes()
    (images / "train_00002.png").write_bytes(b"nothing")
    with toy_offered():
        options = ("--arch", "toy", "--data", "camvid", "--data-dir", tmp_path / "camvid", "--crop-size", "16x16", "--skip-broken")
        options = (*options, "--validate-every", "none", "--batch-size", "6", "--schedule", "fixed")
        path = tmp_path / "run"
        assert run(train, *options, "--iterations", "1", "--run-dir", path) == 0
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        (images / "train_00002.png").write_bytes(whole)
        way_on = ": restore the data, or choose a new --run-dir"
        for more in ((), ("--dry-run",)):
            assert run(train, "--run-dir", path, "--iterations", "2", *more) == 2
            assert f"{path} was begun on 5 images, data set 'camvid' now has 6{way_on}" in capsys.readouterr().err
        for folder in (images, tmp_path / "camvid/masks/train"):
            (folder / "train_00001.png").rename(folder / "train_00009.png")
            (folder / "train_00002.png").unlink()
        assert run(train, "--run-dir", path, "--iterations", "2") == 2
        assert f"{path} was begun on 5 images of other names than data set 'camvid' now has{way_on}" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
        (path / "data.json").write_text("{}")
        assert run(train, "--run-dir", path, "--iterations", "2") == 2
        assert "data.json is damaged (KeyError: 'examples'): choose a new --run-dir" in capsys.readouterr().err
        # Earlier releases did not keep it.
        (path / "data.json").unlink()
        assert run(train, "--run-dir", path, "--iterations", "2") == 0


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
