"""A network is never scored against as many classes of other names without a word."""

import shutil

import pytest
from cli_helpers import run, toy, write_camvid
from helpers import give_random_weights

from kerasseg import KerassegError
from kerasseg.cli import analyze, evaluate, store_features, tune_crf
from kerasseg.cli.opening import Opened, check_classes
from kerasseg.data import open_data
from kerasseg.labels import LABELS, generic_table
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on CamVid in SegNet's order of the classes."""
    root = tmp_path_factory.mktemp("classes")
    recipe = RECIPES["shapes"].override(data="camvid", data_dir=str(write_camvid(root / "camvid")), validation_split="val")
    Run(root / "run").begin(recipe.to_json(), LABELS["camvid"])
    give_random_weights(toy(11)).save(root / "run/model.keras")
    return root


COMMANDS = {
    "evaluate": (evaluate, ("--pictures", "0")),
    "cues": (analyze, ("--limit", "1")),
    "tune_crf": (tune_crf, ("--images", "1", "--workers", "1")),
    "store_features": (store_features, ("--layer", "first", "--split", "val")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_another_order_of_the_classes_is_refused(place, name, tmp_path, capsys):
    command, options = COMMANDS[name]
    kind = ("cues",) if name == "cues" else ()
    out = ("--out", tmp_path / "out") if name in ("tune_crf", "store_features") else ()
    assert run(command, *kind, place / "run", *options, *out, "--data-arguments", "class_order=dilation") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: class 0 of {place / 'run'} is 'sky', of data set 'camvid_dilation' 'building': expected the same classes in the "
        "same order; it was trained on camvid with no --data-arguments"
    )
    assert not (tmp_path / "out").exists() and not (place / "run/report").exists()


def test_its_own_order_and_bare_files_are_scored(place, tmp_path):
    assert run(evaluate, place / "run", "--pictures", "0", "--limit", "1", "--report", tmp_path / "own") == 0
    shutil.copy(place / "run/model.keras", tmp_path / "bare.keras")
    options = ("--data", "camvid", "--data-dir", place / "camvid", "--data-arguments", "class_order=dilation", "--limit", "1")
    assert run(evaluate, tmp_path / "bare.keras", *options, "--pictures", "0") == 0


def test_what_says_nothing_of_its_classes_is_taken():
    data = open_data("shapes")
    trained = RECIPES["shapes"].override(data="kitti", data_arguments={"one": 1, "two": "b"})

    class Kitti:
        labels = LABELS["kitti"]

    check_classes(Opened(None, "run", trained, LABELS["camvid_dilation"]), Kitti)
    check_classes(Opened(None, "run", None, None), data)
    check_classes(Opened(None, "run", trained, generic_table([f"class {k}" for k in range(6)])), data)
    # Of another number something else is said.
    check_classes(Opened(None, "run", trained, LABELS["camvid"]), data)
    names = list(data.labels.classes)
    heads = {"first": data.labels, "second": generic_table([*names[:5], "other"])}
    check_classes(Opened(None, "run", trained, data.labels, heads), data, "first")
    with pytest.raises(
        KerassegError, match=f"class 5 of run is 'other', .* '{names[5]}': .* on kitti with --data-arguments one=1 two=b$"
    ):
        check_classes(Opened(None, "run", trained, data.labels, heads), data, "second")
