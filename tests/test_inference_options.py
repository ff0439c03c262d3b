import json
import shutil

import numpy as np
import pytest
from cli_helpers import run, tree, write_camvid
from inference_helpers import scored_network
from PIL import Image
from sklearn.metrics import confusion_matrix

from kerasseg.cli import evaluate, predict
from kerasseg.cli.inference import check_inference_options, inference_name
from kerasseg.labels import generic_table
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small data set, a network of its 11 classes, and boxes for its images."""
    root = tmp_path_factory.mktemp("options")
    write_camvid(root / "camvid")
    scored_network(classes=11).save(root / "model.keras")
    stems = sorted(path.stem for path in (root / "camvid/images/val").iterdir())
    boxes = {stem: [[0, 0, 48, 40], [10, 5, 40, 38], [3, 3, 20, 40]] for stem in stems}
    (root / "my boxes.json").write_text(json.dumps(boxes))
    (root / "other").mkdir()
    (root / "other/my boxes.json").write_text(json.dumps({stem: boxes[stem][1:] for stem in stems}))
    for seed, name in enumerate(("one", "two")):
        (root / name).mkdir()
        scored_network(seed + 1, 11).save(root / name / "model.keras")
    scored_network(classes=5).save(root / "five.keras")
    (root / "few.json").write_text(json.dumps({stem: boxes[stem] for stem in stems[:1]}))
    return root


def filled(place, texts):
    return [text.replace("{place}", str(place)) for text in texts]


DATA = ("{place}/model.keras", "--data", "camvid", "--data-dir", "{place}/camvid")
BOXES = ("--proposals", "{place}/my boxes.json", "--min-side", "20")
WAYS = {
    "camvid-val-windows-32x40-window-count-2-boundary-3": ("--windows", "32x40", "--window-count", "2", "--boundary", "3"),
    "camvid-val-flip-windows-30x32": ("--windows", "30x32", "--flip"),
    # Paths of one name are told apart by some digits.
    "camvid-val-proposals-my-boxes.json-????????-min-side-20": BOXES,
    "camvid-val-proposals-my-boxes.json-????????-min-side-20 of another folder": (
        *("--proposals", "{place}/other/my boxes.json", "--min-side", "20"),
    ),
    "camvid-val-proposals-dense-max-proposals-3-min-side-20-ensemble-one-????????": (
        *("--proposals", "dense", "--min-side", "20", "--max-proposals", "3", "--ensemble", "{place}/one/model.keras"),
    ),
    "camvid-val-proposals-dense-max-proposals-3-min-side-20-ensemble-two-????????": (
        *("--proposals", "dense", "--min-side", "20", "--max-proposals", "3", "--ensemble", "{place}/two/model.keras"),
    ),
}


@pytest.fixture(scope="module")
def reports(place):
    """What each way of running found."""
    found = {}
    for name, options in WAYS.items():
        before = set((place / "model/report").glob("*"))
        assert run(evaluate, *filled(place, (*DATA, *options)), "--pictures", "1") == 0
        (new,) = set((place / "model/report").glob(name.split(" of ")[0])) - before
        found[name] = json.loads((new / "scores.json").read_text())
    assert len(list((place / "model/report").iterdir())) == len(WAYS)
    return found


def test_each_way_of_running_has_a_report_of_its_own(reports):
    windows, flipped, proposals, others, ensemble, second = (found["inference"] for found in reports.values())
    assert windows == {"scales": [1.0], "flip": False, "method": {"name": "windows", "size": [32, 40], "count": 2}}
    assert flipped == {"scales": [1.0], "flip": True, "method": {"name": "windows", "size": [30, 32], "count": 4}}
    assert (proposals["method"]["minimum_side"], proposals["method"]["ensemble"]) == (20, None)
    assert [each["method"]["boxes"].split("/")[-2:][0] == "other" for each in (proposals, others)] == [False, True]
    assert (ensemble["method"]["boxes"], ensemble["method"]["maximum"]) == ("dense", 3)
    for each, name in ((ensemble, "one"), (second, "two")):
        assert each["method"]["ensemble"].endswith(f"/{name}/model.keras") and each["method"]["ensemble_scale"] == 1
    assert len({json.dumps(found["confusion_matrix"]) for found in reports.values()}) == len(WAYS)


def test_the_way_is_printed_and_predict_draws_the_masks_that_were_scored(place, reports, tmp_path, capsys):
    for name, options in WAYS.items():
        options = [option for option in options if option not in ("--boundary", "3")] if "boundary" in name else options
        out = tmp_path / name.replace("?", "x")
        given = (place / "model.keras", place / "camvid/images/val", "--out", out, "--kinds", "index")
        assert run(predict, *given, *filled(place, options)) == 0
        matrix = np.zeros((11, 11), int)
        for mask in sorted((place / "camvid/masks/val").glob("*.png")):
            truth, guess = (np.asarray(Image.open(path)).ravel() for path in (mask, out / "index" / mask.name))
            matrix += confusion_matrix(truth[truth != 11], guess[truth != 11], labels=range(11))
        assert reports[name]["confusion_matrix"] == matrix.tolist() and (matrix.sum(0) > 0).sum() > 2
    capsys.readouterr()
    assert run(evaluate, *filled(place, (*DATA, "--windows", "32x40")), "--report", tmp_path / "report") == 0
    assert "\nscales 1; windows (size 32x40, count 4)\n" in capsys.readouterr().out


def test_boundary_and_internal_pixels_are_reported(reports):
    found, *others = reports.values()
    parts = found["boundary"]
    assert parts["distance"] == 3 and 0 < parts["boundary"]["num_pixels"] < found["num_pixels"]
    assert parts["boundary"]["num_pixels"] + parts["internal"]["num_pixels"] == found["num_pixels"]
    assert all("boundary" not in other for other in others)


def run_of(root, model, scale, classes):
    """A run directory that holds a network, trained at a scale on data of such classes."""
    recipe = RECIPES["shapes"].override(image_scale=scale)
    Run(root).begin(recipe.to_json(), generic_table(classes))
    shutil.copy(model, root / "model.keras")
    return root


def test_a_second_run_is_seen_at_its_own_scale_and_has_the_same_classes(place, tmp_path, capsys):
    names = [f"class {index}" for index in range(11)]
    own = run_of(tmp_path / "own", place / "model.keras", 0.5, names)
    second = run_of(tmp_path / "second", place / "one/model.keras", 0.25, names)
    given = (own, *filled(place, DATA[1:]), "--proposals", "dense", "--min-side", "9", "--limit", "1", "--pictures", "0")
    assert run(evaluate, *given, "--report", tmp_path / "report", "--ensemble", second) == 0
    inference = json.loads((tmp_path / "report/scores.json").read_text())["inference"]
    assert (inference["scales"], inference["method"]["ensemble_scale"]) == ([0.5], 0.5)
    assert inference["method"]["ensemble"] == str(second)
    other = run_of(tmp_path / "other", place / "one/model.keras", 0.25, [*names[:9], "cat", "dog"])
    capsys.readouterr()
    assert run(evaluate, *given, "--ensemble", other) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--ensemble {other} is of data set" in line and f"'cat' where {own} has 'class 9'" in line


def test_boxes_of_pictures_in_folders_go_by_their_names_there(place, tmp_path, capsys):
    source = sorted((place / "camvid/images/val").iterdir())[0]
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(source, tmp_path / "in" / folder / "x.png")
    with Image.open(source) as picture:
        size = picture.size
    boxes = {"a/x": [[0, 0, 20, 20]], "b/x": [[size[0] - 20, size[1] - 20, *size]]}
    (tmp_path / "both.json").write_text(json.dumps(boxes))
    (tmp_path / "one.json").write_text(json.dumps({"x": boxes["a/x"]}))
    given = (place / "model.keras", tmp_path / "in", "--kinds", "index", "--min-side", "20")
    assert run(predict, *given, "--out", tmp_path / "out", "--proposals", tmp_path / "both.json") == 0
    masks = [np.asarray(Image.open(tmp_path / "out/index" / folder / "x.png")) for folder in ("a", "b")]
    assert masks[0][:20, :20].any() and not masks[0][20:].any() and masks[1][-20:, -20:].any() and not masks[1][:-20].any()
    capsys.readouterr()
    assert run(predict, *given, "--out", tmp_path / "new", "--proposals", tmp_path / "one.json") == 2
    assert "for 'x' would be those of both 'a/x' and 'b/x'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


NAMES = {
    "-scales-0.5-1-fusion-max": ("--scales", "0.5,1", "--fusion", "max"),
    "-tta-output-a-b-stride-8": ("--tta", "--output", "a b", "--output-stride", "8"),
    "-windows-32x40-window-overlap-16-window-margin-4": ("--windows", "32x40", "--window-overlap", "16", "--window-margin", "4"),
    "-windows-32x40-window-overlap-0.25-blending-linear": (
        *("--windows", "32x40", "--window-overlap", "0.25", "--blending", "linear"),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_way_of_running_has_a_name_of_its_own(name):
    options = evaluate.parser().parse_args(["model.keras", *NAMES[name]])
    check_inference_options(options)
    assert inference_name(options) == name


MISTAKES = {
    "empty boxes": (evaluate, (*DATA, "--proposals", ""), "--proposals '': expected a file of boxes"),
    "empty ensemble": (evaluate, (*DATA, "--proposals", "dense", "--ensemble", ""), "--ensemble '': expected a run directory"),
    "power": (evaluate, (*DATA, "--windows", "²"), "received '²', expected HEIGHTxWIDTH"),
    "other classes": (
        evaluate,
        (*DATA, "--proposals", "dense", "--ensemble", "{place}/five.keras"),
        "--ensemble {place}/five.keras has 5 classes, {place}/model.keras 11",
    ),
    "out": (predict, ("none.keras", "{place}/camvid", "--out", "{place}/few.json"), "few.json is a file, expected a folder"),
    "two ways": (evaluate, (*DATA, "--tiles", "900x900", "--windows", "8x8"), "--tiles and --windows: expected one way to run"),
    "three": (
        evaluate,
        (*DATA, "--tiles", "900x900", "--windows", "8", "--proposals", "dense"),
        "--tiles and --windows and --prop",
    ),
    "zoom": (evaluate, (*DATA, "--zoom", "bilinear"), "--zoom bilinear: means something only with --tiles"),
    "zooms": (
        evaluate,
        (*DATA, "--tiles", "900x900", "--zoom", "cubic"),
        "zoom 'cubic' of tiles: expected one of authors, bilinear",
    ),
    "tile": (evaluate, (*DATA, "--tiles", "300x900"), "tiles of 300x900 pixels with a margin of 186: expected"),
    "no dilation": (evaluate, (*DATA, "--tiles", "900x900"), "built with margin='reflect'"),
    "few windows": (evaluate, (*DATA, "--windows", "8x8", "--window-count", "2"), "do not cover 40: expected at least 5"),
    "window count": (evaluate, (*DATA, "--window-count", "2"), "--window-count 2: means something only with --windows"),
    "windows": (evaluate, (*DATA, "--windows", "8xx"), "received '8xx', expected HEIGHTxWIDTH"),
    "no boxes": (evaluate, (*DATA, "--proposals", "{place}/none.json"), "{place}/none.json"),
    "few boxes": (evaluate, (*DATA, "--proposals", "{place}/few.json", "--min-side", "9"), "has no boxes for image '"),
    "no file of boxes": (evaluate, (*DATA, "--proposals", "denser"), "denser"),
    "ensemble": (evaluate, (*DATA, "--proposals", "dense", "--ensemble", "{place}/none"), "no model at '{place}/none'"),
    "side": (predict, (DATA[0], "x.jpg", "--out", "{place}/new", "--min-side", "9"), "means something only with --proposals"),
    "other": (predict, (DATA[0], "{place}/camvid/images/train", "--out", "{place}/new", *BOXES), "has no boxes for image '"),
    "boundary": (evaluate, (*DATA, "--boundary", "0.5"), "boundary distance 0.5: expected at least 1 pixel"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place, capsys, monkeypatch, tmp_path, mistake):
    command, arguments, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    before = tree(place)
    assert run(command, *filled(place, arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and filled(place, [message])[0] in line
    assert tree(place) == before and not list(tmp_path.iterdir())
