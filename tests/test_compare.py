"""Two networks told apart: `evaluate.py --against`, `tools/compare.py`, and what both are made of."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from cli_helpers import finish, run, toy

import kerasseg
from kerasseg import KerassegError, evaluation
from kerasseg.cli import compare as tool
from kerasseg.cli import evaluate
from kerasseg.cli.scoring import scoring_name
from kerasseg.evaluation.comparison import Report, compare, distinct_names, find_report, report_names
from kerasseg.labels import LABELS, generic_table
from kerasseg.metrics import SCORES, scores_of_counts
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

OTHER = generic_table(["background", "ellipse", "square", "triangle", "striped", "golden"])
DATA = ("--data", "shapes", "--limit", "5", "--pictures", "1")


def counts_of(*accuracies, pixels=100):
    """For each image how many of its pixels, all of class 0, are right; the others are taken for class 1."""
    return np.array([[[right, 0], [pixels, 0], [right, pixels - right]] for right in accuracies])


def report(name, counts, ids=None, classes=("ground", "cat"), excluded=()):
    found = scores_of_counts(counts.sum(0))
    ids = tuple(ids or (f"image-{index}" for index in range(len(counts))))
    values = {score: float(found[score]) for score in SCORES}
    per_class = [None if np.isnan(value) else float(value) for value in found["per_class_iou"]]
    values |= {"classes": list(classes), "excluded": list(excluded), "per_class_iou": per_class}
    return Report(name, {**values, "images": [{"id": id} for id in ids]}, ids, counts)


# The difference of a pair


def test_a_pair_of_two_images_worked_by_hand():
    # Of the four ways to draw two images of two, one takes the first twice, one the second twice.
    a, b = report("a", counts_of(90, 40)), report("b", counts_of(80, 50))
    (found,) = compare([b, a], names=["pixel_accuracy"]).differences
    assert (found["a"], found["b"], found["score"]) == ("a", "b", "pixel_accuracy")
    assert found["difference"] == 0
    assert (found["low"], found["high"]) == pytest.approx((-0.1, 0.1)) and found["p_value"] == 1
    # Both images better by 10 and 5: no draw says anything else, so p is as small as 1000 draws can make it.
    (found,) = compare([b, report("c", counts_of(90, 55))], names=["pixel_accuracy"]).differences
    assert found["difference"] == pytest.approx(0.075) and (found["low"], found["high"]) == pytest.approx((0.05, 0.1))
    assert found["p_value"] == 2 / 1001
    # Better by 30 in one, worse by 10 in the other: a quarter of the draws says worse, which two-sided is one half.
    (found,) = compare([b, report("d", counts_of(70, 80))], names=["pixel_accuracy"]).differences
    assert found["difference"] == pytest.approx(0.1) and (found["low"], found["high"]) == pytest.approx((-0.1, 0.3))
    assert found["p_value"] == pytest.approx(0.5, abs=0.1)


def test_images_are_paired_by_name():
    generator = np.random.default_rng(0)
    rights = generator.integers(20, 80, 9)
    one, other = report("one", counts_of(*rights)), counts_of(*(rights + 1))
    straight = compare([one, report("other", other)]).differences
    order = generator.permutation(9)
    shuffled = compare([one, report("other", other[order], [one.ids[place] for place in order])]).differences
    assert straight == shuffled and len(straight) == 4
    # One pixel more in each image: no doubt, though images differ by much more than that.
    assert straight[0]["low"] == pytest.approx(0.01) == straight[0]["high"]


def test_excluded_classes_are_excluded_from_differences():
    a, b = (report(name, counts_of(*rights), excluded=["cat"]) for name, rights in (("a", (90, 40)), ("b", (80, 20))))
    found = {each["score"]: each["difference"] for each in compare([b, a]).differences}
    # Without the class that is predicted and never there, mean IoU is that of class 0: its accuracy here.
    assert found["mean_iou"] == pytest.approx(0.15) == found["pixel_accuracy"]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (report("b", counts_of(1, 2, 3)), "their images differ (3 and 2; 'image-2' is only in b)"),
        (report("b", counts_of(1, 2), ["image-0", "x"]), "their images differ (2 and 2; 'image-1' is only in a)"),
        (report("b", counts_of(1, 2), classes=("ground", "dog")), "their classes differ ('dog' and 'cat')"),
        (report("b", counts_of(1, 2), excluded=["cat"]), "their means exclude other classes (cat; none)"),
        (report("b", counts_of(1, 2, pixels=99)), "image 0 has other true classes for one model than for the other"),
        (Report("b", report("b", counts_of(1, 2)).scores, ("image-0", "image-1"), None), "b has no counts.npz: evaluate it again"),
    ],
)
def test_it_is_said_why_reports_cannot_be_paired(other, reason):
    third = report("c", counts_of(10, 20))
    found = compare([report("a", counts_of(10, 20)), other, third])
    (line,) = found.reasons
    assert line.startswith(f"b - a: no difference, since {reason}") and found.table().endswith(line)
    # What can be compared is compared.
    assert {(each["a"], each["b"]) for each in found.differences} == {("c", "a")}


def test_differences_that_are_not_known_are_said_to_be_so():
    # Without class 0 there is a class to score only where class 1 was predicted: in b nowhere.
    a, b = (report(name, counts_of(*rights), excluded=["ground"]) for name, rights in (("a", (90, 40)), ("b", (100, 100))))
    found = compare([a, b])
    reasons = ["b - a: mean_accuracy is not known for both", "b - a: mean_iou is not known for both"]
    assert list(found.reasons) == reasons and found.table().endswith("\n".join(reasons)) and "nan" not in found.table()
    b.scores["intervals"] = {"mean_iou": [None, None]}
    assert "- to -" not in compare([a, b]).table()
    assert [each["score"] for each in found.differences] == ["pixel_accuracy", "frequency_weighted_iou"]


def test_it_is_said_which_networks_were_run_otherwise():
    a, b, c, d = (report(name, counts_of(90, 40)) for name in "abcd")
    for each, scales in ((a, [1.0]), (b, [0.5, 1.25]), (c, [1.0])):
        each.scores["inference"] = {"scales": scales, "flip": False, "method": {"name": "whole_image"}}
    b.scores["inference"]["crf"] = {"name": "deeplab_v1"}
    d.scores["inference"] = None
    lines = compare([a, b, c, d]).table().splitlines()
    assert [line for line in lines if " run at: " in line] == [
        "b run at: scales 0.5, 1.25; crf deeplab v1; a at: scale 1",
        "d run at: not known; a at: scale 1",
    ]
    assert "c run at: scale 1; b at: scales 0.5, 1.25; crf deeplab v1" in compare([a, b, c], baseline=1).table()
    assert "run at" not in compare([a, c]).table()


def test_the_table_marks_the_best():
    a, b = report("a", counts_of(90, 40)), report("b", counts_of(80, 60))
    a.scores["intervals"] = {"pixel_accuracy": [0.4, 0.9]}
    lines = compare([a, b]).table().splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[1].split() == ["pixel_accuracy", "65.00", "(40.00", "to", "90.00)", "70.00*"]
    assert [line.split() for line in lines[6:9]] == [["IoU", "%"], ["ground", "65.00", "70.00*"], ["cat", "0.00", "0.00"]]
    assert lines[10].startswith("differences on the same images, with 95 % intervals (1000 draws")
    assert re.match(r"b - a  pixel_accuracy           \+5.00  \(-10.00 to \+20.00\)  p = 0\.\d+$", lines[11])


def test_reports_need_names_of_their_own(tmp_path):
    one = report("a", counts_of(90, 40))
    for wrong in ([one], [one, one]):
        with pytest.raises(KerassegError, match="expected two or more, of different names"):
            compare(wrong)
    folders = [tmp_path / "run1/report/val", tmp_path / "run2/report/val"]
    assert report_names(folders) == ["run1", "run2"]
    assert report_names([*folders, tmp_path / "run1/report/val-tta"]) == ["run1/val", "run2/val", "run1/val-tta"]
    assert distinct_names("aa", "ab", "cd") == ["a", "b"] and distinct_names("aa") == []
    assert report_names([tmp_path / "x/1", tmp_path / "y/1"]) == ["x/1", "y/1"]
    assert report_names([tmp_path / "p/x/1", tmp_path / "q/x/1"]) == [str(tmp_path / "p/x/1"), str(tmp_path / "q/x/1")]
    with pytest.raises(KerassegError, match="run1/report/val is given twice"):
        report_names([folders[0], folders[0]])


# The commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two networks, evaluated against each other, and one of other classes."""
    root = tmp_path_factory.mktemp("compare")
    for seed, (name, classes) in enumerate({"a": 6, "b": 6, "five": 5}.items()):
        keras.utils.set_random_seed(seed)
        toy(classes).save(root / f"{name}.keras")
    assert run(evaluate, root / "a.keras", *DATA, "--against", root / "b.keras", "--exclude", "circle") == 0
    return root


def test_against_reports_both_and_their_difference(place, tmp_path, capsys):
    options = ("--against", place / "b.keras", "--exclude", "circle", "--report", tmp_path)
    assert run(evaluate, place / "a.keras", *DATA, *options) == 0
    out = capsys.readouterr().out
    folders = [tmp_path, tmp_path / "against-b"]
    reports = [Report.read(folder, name) for folder, name in zip(folders, "ab", strict=True)]
    assert [each.scores["excluded"] for each in reports] == [["circle"]] * 2 and reports[0].counts.shape == (5, 3, 6)
    expected = compare(reports, baseline=1)
    assert len(expected.differences) == 4 and expected.differences[0]["a"] == "a"
    assert out.endswith(f"\n{expected.table()}\npage: {folders[0] / 'against-b.html'}\n")
    assert (folders[0] / "against-b.html").is_file()
    # It is what is in the report: the difference of the two scores.
    found = {each["score"]: each["difference"] for each in expected.differences}
    assert found["mean_iou"] == pytest.approx(reports[0].scores["mean_iou"] - reports[1].scores["mean_iou"])


def test_runs_are_compared_if_their_classes_have_the_same_names(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, file, labels in (("one", "a", LABELS["shapes"]), ("two", "b", LABELS["shapes"]), ("other", "b", OTHER)):
        record = Run(f"runs/{name}")
        record.begin(RECIPES["shapes"].override(arch="fcn8s", image_scale=0.5).to_json(), labels)
        shutil.copy(place / f"{file}.keras", record.model_path)
    assert run(evaluate, "runs/one", "--limit", "2", "--pictures", "0", "--against", "runs/other") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--against runs/other has other classes than runs/one ('ellipse' and 'circle')" in line
    assert not (tmp_path / "runs/one/report").exists()
    # On the first one's data, each at the scale that it was trained at.
    assert run(evaluate, "runs/one", "--limit", "2", "--pictures", "0", "--against", "runs/two") == 0
    assert run(tool, "runs/one", "runs/two") == 0
    out = capsys.readouterr().out
    assert out.count("\nscales 0.5\n") == 2 and "\none - two  mean_iou " in out and out.endswith("page: compare.html\n")
    first, second = (re.search(rf"{pair}  mean_iou +(\S+)", out)[1] for pair in ("one - two", "two - one"))
    assert float(first) == -float(second) != 0


def test_other_data_than_a_runs_get_a_report_of_their_own(place, tmp_path, monkeypatch, capsys):
    for name, file, data in (("one", "a", "shapes"), ("two", "b", "camvid"), ("x/one", "b", "shapes")):
        record = Run(tmp_path / name)
        record.begin(RECIPES["shapes"].override(arch="fcn8s", data=data).to_json(), LABELS["shapes"])
        shutil.copy(place / f"{file}.keras", record.model_path)
    options = ("--limit", "2", "--pictures", "0", "--split", "train")
    # The second's data are the first's; the folder that one is in has a name, too.
    monkeypatch.chdir(tmp_path / "one")
    assert run(evaluate, ".", *options, "--against", "../two") == 0
    assert "\none - two  mean_iou " in capsys.readouterr().out
    assert run(evaluate, "../two", *options, "--data", "shapes", "--flip") == 0
    folders = {path.name for path in (tmp_path / "two/report").iterdir()}
    assert folders == {"shapes-train-first-2", "shapes-train-flip-first-2"}
    assert run(evaluate, ".", *options, "--against", "../x/one") == 0
    assert f"\n{tmp_path.name}/one - x/one  mean_iou " in capsys.readouterr().out
    pages = [path.name for path in (tmp_path / "one/report/train-first-2").glob("against-*")]
    assert sorted(pages) == ["against-two.html", "against-x-one.html"]


def test_every_choice_of_bands_has_a_folder_of_its_own():
    names = [scoring_name(evaluate.parser().parse_args(["--trimap", text])) for text in ("1,4", "1:4", "1:2:4")]
    assert names == ["-trimap-1-4", "-trimap-1to4", "-trimap-1to2to4"]


def test_the_worst_median_and_best_images_are_shown(place, monkeypatch):
    given = []
    monkeypatch.setattr(evaluation, "write_report", lambda *values: given.extend(values))
    options = ("--data", "shapes", "--limit", "7", "--scales", "0.5", "--pictures")
    assert run(evaluate, place / "a.keras", *options, "5") == 0
    _, found, pictures, extremes = given
    order = sorted(found.images, key=lambda image: image.mean_iou)
    expected = {"worst": order[:2], "median": order[2:4], "best": order[:-3:-1]}
    assert {kind: [score for *_, score in shown] for kind, shown in extremes} == expected
    assert [example.id for example, _ in pictures] == [f"val_{index:05d}" for index in (0, 1, 2, 4, 5)]
    model = kerasseg.load_model(place / "a.keras")
    for example, prediction, *score in (*pictures, *(each for _, shown in extremes for each in shown)):
        np.testing.assert_array_equal(prediction, kerasseg.predict(model, example.image, scales=(0.5,)))
        assert not score or score[0].id == example.id
    assert run(evaluate, place / "a.keras", *options, "0") == 0 and given[-2:] == [[], []]


def test_the_tool_compares_reports(place, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert run(tool, place / "a.keras", place / "b", "--score", "mean_iou", "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["a", "b"] and printed[-1] == f"page: {out}"
    assert printed[-2].startswith("b - a  mean_iou ") and sum(" - " in line for line in printed) == 1
    page = out.read_text()
    for each in "ab":
        folder = place / each / "report/shapes-val-excluding-circle-first-5"
        assert f"{100 * json.loads((folder / 'scores.json').read_text())['mean_iou']:.2f}" in page


def test_a_run_of_several_reports_is_asked_which(place, tmp_path, capsys):
    folder = place / "a/report/shapes-val-excluding-circle-first-5"
    for name, split in (("val", "val"), ("val-tta", "val"), ("test-tta", "test")):
        shutil.copytree(folder, tmp_path / "run/report" / name)
        scores = json.loads((folder / "scores.json").read_text())
        (tmp_path / "run/report" / name / "scores.json").write_text(json.dumps({**scores, "split": split}))
    assert run(tool, tmp_path / "run", place / "b") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'} has 3 reports: name one of ") and "report/val-tta" in line
    assert find_report(tmp_path / "run", "val") == tmp_path / "run/report/val"
    assert find_report(tmp_path / "run", "test") == tmp_path / "run/report/test-tta"
    assert find_report(tmp_path / "run/report/val/scores.json") == tmp_path / "run/report/val"
    with pytest.raises(KerassegError, match="has no report of split 'train': python evaluate.py .* --split train writes one"):
        find_report(tmp_path / "run", "train")


def test_what_cannot_be_compared_is_one_line(place, tmp_path, capsys):
    folder = place / "a/report/shapes-val-excluding-circle-first-5"
    for name in ("json", "keys", "npz", "shape", "ids", "names", "data", "ends", "count", "stopped", "again"):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "json/scores.json").write_text("{")
    (tmp_path / "keys/scores.json").write_text('{"classes": []}')
    (tmp_path / "npz/counts.npz").write_bytes(b"PK")
    np.savez(tmp_path / "shape/counts.npz", ids=np.array(["x"]), counts=np.zeros((1, 3, 2), int))
    (tmp_path / "empty").mkdir()
    whole = json.loads((folder / "scores.json").read_text())
    images = [{**image, "id": f"{image['id']}-b"} for image in whole["images"]]
    matrix = np.roll(whole["confusion_matrix"], 1).tolist()
    for name, changes in {
        "ids": {"images": [{"mean_iou": 0.5}]},
        "names": {"excluded": ["dog"]},
        "data": {"data": None, "num_images": "5"},
        "ends": {"intervals": {**whole["intervals"], "mean_iou": [0.5]}},
        "count": {"per_class_iou": [0.5]},
        "stopped": {"images": images},
        "again": {"confusion_matrix": matrix},
    }.items():
        (tmp_path / name / "scores.json").write_text(json.dumps({**whole, **changes}))
    for wrong, message in {
        (tmp_path / "none",): "no report at '",
        (tmp_path / "empty", folder): "empty has no report: python evaluate.py ",
        (folder, folder): "is given twice",
        (folder, tmp_path / "json"): "json/scores.json: Expecting",
        (folder, tmp_path / "keys"): "is not what evaluate.py writes (per_class_iou, images, pixel_accuracy",
        (folder, tmp_path / "npz"): "npz/counts.npz: ",
        (folder, tmp_path / "ids"): "ids/scores.json is not what evaluate.py writes (images)",
        (folder, tmp_path / "names"): "names/scores.json is not what evaluate.py writes (excluded)",
        (folder, tmp_path / "data"): "data/scores.json is not what evaluate.py writes (data, num_images)",
        (folder, tmp_path / "ends"): "ends/scores.json is not what evaluate.py writes (intervals)",
        (folder, tmp_path / "count"): "count/scores.json is not what evaluate.py writes (per_class_iou)",
        (folder, tmp_path / "stopped"): "stopped/counts.npz is of another evaluation than scores.json beside it",
        (folder, tmp_path / "again"): "again/counts.npz is of another evaluation than scores.json beside it",
        (folder, tmp_path / "shape"): "holds counts of shape (1, 3, 2): expected (1, 3, 6)",
        (folder,): "alone: expected two reports or more",
    }.items():
        given = wrong if wrong[0] != tmp_path / "none" else (*wrong, folder)
        assert run(tool, *given, "--out", tmp_path / "out.html") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, line
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "{place}/five.keras"), "five.keras has 5 classes, {place}/a.keras 6: expected the same classes"),
        (("--against", "{place}/a.keras"), "is the network itself, expected another one"),
        (("--against", "{place}/none.keras"), "no model at '{place}/none.keras'"),
        (("--exclude", "circel"), "class 'circel' to exclude: data set 'shapes' has none; did you mean 'circle'?"),
        (("--exclude", ","), "--exclude ',': expected names of classes"),
        (("--exclude", "background,circle,square,triangle,striped,golden"), "all 6 classes of data set 'shapes' are excluded"),
        (("--calibration", "-1"), "--calibration -1: expected a number of bins"),
        (("--boundary-f", "0"), "--boundary-f 0: expected pixels above 0"),
        (("--batch-size", "0"), "--batch-size 0: expected at least 1 image"),
        (("--replicas", "2"), "--replicas 2: means something only with --strategy mirrored"),
        (("--trimap-boundary", "void"), "--trimap-boundary void: means something only with --trimap"),
    ],
)
def test_wrong_options_are_one_line(place, capsys, options, message):
    given = [option.format(place=place) for option in options]
    assert run(evaluate, place / "a.keras", *DATA, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(place=place) in line


def test_a_full_report_and_two_replicas(place, tmp_path, capsys):
    """On two devices, in a process of its own, as on one; all that can be measured has its place in the folder's name."""
    model = shutil.copy(place / "a.keras", tmp_path / "c.keras")
    options = ("--data", "shapes", "--limit", "5", "--pictures", "2", "--full-report", "--boundary-f", "3")
    assert run(evaluate, model, *options, "--calibration", "4") == 0
    assert "up to 7 px from a boundary" in capsys.readouterr().out
    folder = tmp_path / "c/report/shapes-val-full-boundary-f-3-calibration-4-first-5"
    one = json.loads((folder / "scores.json").read_text())
    assert [band["width"] for band in one["trimap"]["bands"]] == [1, 2, 4, 8, 16, 32]
    assert (one["boundary"]["distance"], one["boundary_f"]["tolerance"], len(one["calibration"]["bins"])) == (7, 3, 4)
    assert one["split"] == "val" and one["network"] == "toy"
    replicas = ("--strategy", "mirrored", "--replicas", "2", "--batch-size", "3", "--report", tmp_path / "two")
    code, out, err = finish("evaluate.py", model, *options, "--calibration", "4", *replicas)
    assert (code, err) == (0, "")
    two = json.loads((tmp_path / "two/scores.json").read_text())
    for name in set(one) - {"timing", "calibration"}:
        assert one[name] == two[name], name
    assert two["calibration"]["error"] == pytest.approx(one["calibration"]["error"], abs=1e-5)
