import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from cli_helpers import run, write_camvid
from inference_helpers import LABELS, Data, image_of, resized, scored_network, shrunk, softmax
from PIL import Image
from sklearn.metrics import confusion_matrix as counted

from kerasseg import KerassegError
from kerasseg.cli import evaluate, predict
from kerasseg.crf import PARAMETERS, dense_crf
from kerasseg.evaluation import Inference, Proposals, Tiles, Windows, crf_parameters, probabilities
from kerasseg.evaluation import evaluate as score
from kerasseg.evaluation import predict as classes_of
from kerasseg.evaluation.crf import crf_logits
from kerasseg.labels import generic_table
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

STRONG = dataclasses.replace(PARAMETERS["deeplab_v1"], theta_beta=30.0)


def as_logits(model, image):
    return model(image[None].astype(np.float32)).numpy()[0]


def test_behind_one_picture_the_crf_starts_from_the_scores():
    model, image = scored_network(), image_of()
    expected = dense_crf(image, as_logits(model, image), STRONG, from_logits=True)
    np.testing.assert_allclose(probabilities(model, image, crf=STRONG), expected, atol=1e-6)
    found = classes_of(model, image, crf=STRONG)
    np.testing.assert_array_equal(found, expected.argmax(-1))
    assert 0.02 < (found != classes_of(model, image)).mean() < 0.9 and found.dtype == np.int32


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), ((0.75, 1.25), False)])
def test_behind_several_pictures_it_starts_from_the_mean_probabilities(scales, flip):
    model, image = scored_network(), image_of()
    maps = []
    for scale in scales:
        small = shrunk(image, round(30 * scale), round(40 * scale))
        maps.append(softmax(resized(as_logits(model, small), 30, 40)))
    if flip:
        maps.append(softmax(as_logits(model, image[:, ::-1]))[:, ::-1])
    mean = np.mean(maps, 0)
    expected = dense_crf(image, np.log(mean), STRONG, from_logits=True)
    found = probabilities(model, image, scales=scales, flip=flip, crf=STRONG)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - mean).max() > 0.1
    np.testing.assert_array_equal(classes_of(model, image, scales=scales, flip=flip, crf=STRONG), found.argmax(-1))


def test_it_runs_behind_every_method():
    model, image = scored_network(), image_of()
    boxes = np.array([[0, 0, 30, 30], [5, 5, 40, 30]], np.int32)
    proposals = Proposals(boxes, minimum_side=10, size=(24, 24))
    for method in (Windows((20, 24), 3), proposals, dataclasses.replace(proposals, ensemble=scored_network(4))):
        # Scores and logits of one picture as they are; of proposals they are those that the softmax is taken of.
        plain = probabilities(model, image, method=method).astype(np.float64)
        found = probabilities(model, image, method=method, crf=STRONG)
        np.testing.assert_allclose(found, dense_crf(image, np.log(plain), STRONG, from_logits=True), atol=1e-4)
        assert np.abs(found - plain).max() > 0.05
    assert Tiles.kind == "probabilities"


def test_a_probability_of_zero_is_no_infinity():
    assert crf_logits(np.array([[[1.0, 0.0]]]), "probabilities").tolist() == [[[0.0, pytest.approx(-87.33655)]]]
    negative = np.array([[[-3.0, 2.0]]], np.float32)
    assert crf_logits(negative, "logits") is negative and crf_logits(negative, "scores") is negative


def test_colours_are_the_first_three_channels():
    image = np.concatenate([image_of(), np.full((30, 40, 1), -300.0)], -1)
    given = keras.Input((None, None, 4))
    model = keras.Model(given, scored_network()(given[..., :3]))
    expected = probabilities(scored_network(), image_of(), crf=STRONG)
    np.testing.assert_allclose(probabilities(model, image, crf=STRONG), expected, atol=1e-5)


def test_parameters_come_by_name_file_mapping_or_as_they_are(tmp_path):
    v2 = PARAMETERS["deeplab_v2_resnet101"]
    assert crf_parameters("deeplab_v2_resnet101") == v2 == crf_parameters(v2) == Inference(crf="deeplab_v2_resnet101").crf
    for values in (dataclasses.asdict(v2), {"parameters": dataclasses.asdict(v2), "mean_iou": 0.5}):
        (tmp_path / "found.json").write_text(json.dumps(values))
        assert crf_parameters(tmp_path / "found.json") == v2 == crf_parameters(str(tmp_path / "found.json"))
    assert Inference(crf={"base": "deeplab_v1", "iterations": 3}).crf.iterations == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "found.json is not JSON"),
        ("[1]", "found.json holds no parameters of a CRF"),
        ('{"parameters": null}', "found.json holds no parameters of a CRF"),
        ('{"theta_alpha": 3}', "found.json: CRF parameters without bilateral_weight"),
        ('{"base": "deeplab_v1", "theta_alpha": -3}', "found.json: CRF parameter theta_alpha=-3: expected"),
    ],
)
def test_files_that_hold_no_parameters_are_refused(tmp_path, text, message):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(KerassegError, match=message):
        Inference(crf=tmp_path / "found.json")


def test_an_inference_tells_its_crf():
    inference = Inference(crf="deeplab_v1_largefov")
    assert inference.to_json()["crf"] == dataclasses.asdict(PARAMETERS["deeplab_v1_largefov"])
    assert "crf" not in Inference().to_json() and str(Inference()) == "scales 1"
    assert str(inference) == (
        "scales 1; CRF (bilateral 4 over 49 px and 5 of colour, spatial 3 over 3 px, 10 iterations, normalization after)"
    )
    assert inference.with_tta().crf == inference.crf
    with pytest.raises(KerassegError, match="CRF parameters 'deeplab_v9': no such file or name; did you mean 'deeplab_v1'"):
        Inference(crf="deeplab_v9")


def test_maps_of_a_network_have_no_colours():
    data = Data()
    data.photographs = False
    with pytest.raises(KerassegError, match="data set 'three' holds maps of a network, no photographs"):
        score(scored_network(), data, Inference(crf="deeplab_v1"))
    data.photographs = True
    assert score(scored_network(), data, Inference(crf="deeplab_v1"), limit=1).labels == LABELS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small data set, a network of its 11 classes as a file and as a run whose recipe has a CRF."""
    root = tmp_path_factory.mktemp("crf")
    write_camvid(root / "camvid")
    scored_network(classes=11).save(root / "model.keras")
    names = {"data": "camvid", "data_dir": str(root / "camvid"), "crf": "crf_rnn"}
    recipe = RECIPES["shapes"].override(**names)
    Run(root / "run").begin(recipe.to_json(), generic_table([f"class {i}" for i in range(11)]))
    shutil.copy(root / "model.keras", root / "run/model.keras")
    found = {"parameters": dataclasses.asdict(STRONG)}
    (root / "found.json").write_text(json.dumps(found))
    return root


WAYS = {
    "camvid-val-flip-crf-deeplab_v1": ("--crf", "deeplab_v1", "--flip"),
    "camvid-val-windows-32x40-crf-found.json-????????": ("--crf", "{place}/found.json", "--windows", "32x40"),
    "camvid-val-crf-none": ("--crf", "none"),
}


def test_masks_that_are_drawn_are_those_that_were_scored(place, tmp_path, capsys):
    on = ("--data", "camvid", "--data-dir", place / "camvid")
    matrices = []
    for name, options in WAYS.items():
        options = [text.replace("{place}", str(place)) for text in options]
        assert run(evaluate, place / "model.keras", *on, *options, "--pictures", "1") == 0
        (folder,) = (place / "model/report").glob(name)
        found = json.loads((folder / "scores.json").read_text())
        out = tmp_path / name.replace("?", "x")
        assert run(predict, place / "model.keras", place / "camvid/images/val", "--out", out, "--kinds", "index", *options) == 0
        matrix = np.zeros((11, 11), int)
        for mask in sorted((place / "camvid/masks/val").glob("*.png")):
            truth, guess = (np.asarray(Image.open(path)).ravel() for path in (mask, out / "index" / mask.name))
            matrix += counted(truth[truth != 11], guess[truth != 11], labels=range(11))
        assert found["confusion_matrix"] == matrix.tolist()
        matrices.append(found["confusion_matrix"])
        named = None if "none" in name else found["inference"]["crf"]["theta_alpha"]
        assert named == (49 if named else None) and ("CRF (bilateral" in capsys.readouterr().out) == bool(named)
    assert len({json.dumps(matrix) for matrix in matrices}) == len(WAYS)


def test_the_recipes_crf_is_the_default(place):
    assert run(evaluate, place / "run", "--split", "val", "--pictures", "0", "--limit", "1") == 0
    own = json.loads((place / "run/report/val-first-1/scores.json").read_text())
    assert own["inference"]["crf"] == dataclasses.asdict(PARAMETERS["crf_rnn"])
    assert run(evaluate, place / "run", "--split", "val", "--pictures", "0", "--limit", "1", "--crf", "none") == 0
    without = json.loads((place / "run/report/val-crf-none-first-1/scores.json").read_text())
    assert "crf" not in without["inference"] and own["confusion_matrix"] != without["confusion_matrix"]


def test_trimaps_are_reported(place, capsys):
    on = ("--data", "camvid", "--data-dir", place / "camvid", "--pictures", "0")
    assert run(evaluate, place / "model.keras", *on, "--trimap", "1:2:7", "--trimap-boundary", "classes") == 0
    folder = place / "model/report/camvid-val-trimap-1to2to7-classes"
    bands = json.loads((folder / "scores.json").read_text())["trimap"]
    assert bands["boundary"] == "classes" and [band["width"] for band in bands["bands"]] == [1, 3, 5, 7]
    assert (folder / "trimap.png").is_file() and "trimap (classes), px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crf", "deeplab_v7"), "--crf 'deeplab_v7': no such file or name; did you mean 'deeplab_v1'?"),
        (("--crf", ""), "--crf '': no such file or name"),
        (("--trimap", "0,1"), "--trimap 0,1: expected widths of at least 1 pixel, such as 1,2,4,8 or 1:40"),
        (("--trimap", "4:1"), "--trimap 4:1: expected up to 1000 ascending numbers, such as 1,2,4,8 or 1:40"),
        (("--trimap", "1:0:9"), "--trimap 1:0:9: expected up to 1000 ascending numbers"),
        (("--trimap", "1,nan"), "--trimap 1,nan: expected up to 1000 ascending numbers"),
        (("--trimap", "1:2:3:4"), "--trimap 1:2:3:4: expected up to 1000 ascending numbers"),
        (("--trimap", "1:99999"), "--trimap 1:99999: expected up to 1000 ascending numbers"),
        (("--trimap", "1", "--trimap-boundary", "edges"), "--trimap-boundary edges: expected one of labels, classes, void"),
        (("--trimap-boundary", "void"), "--trimap-boundary void: means something only with --trimap, such as 1:40"),
    ],
)
def test_mistakes_are_one_line(place, capsys, options, message):
    before = sorted(place.rglob("*"))
    assert run(evaluate, place / "model.keras", "--data", "camvid", "--data-dir", place / "camvid", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("settings", "other"), [('{"weights": 1}', "weights"), ("{", "settings"), (None, "settings")])
def test_what_was_searched_for_other_weights_is_not_used(place, capsys, settings, other):
    folder = place / "run/crf/val-flip"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(place / "found.json", folder / "best.json")
    (folder / "settings.json").unlink(missing_ok=True)
    if settings:
        (folder / "settings.json").write_text(settings)
    assert run(evaluate, place / "run", "--split", "val", "--crf", "search", "--flip", "--pictures", "0", "--limit", "1") == 2
    out = capsys.readouterr()
    assert out.err == (
        f"error: {folder} holds a search with other {other}: name another folder (--out of tools/tune_crf.py), or remove this one\n"
    )
    assert "CRF parameters" not in out.out and not list((place / "run/report").glob("*search*"))


def test_predict_says_how_to_search(place, capsys, tmp_path):
    assert run(predict, place / "run", place / "camvid/images/val", "--out", tmp_path / "out", "--crf", "search") == 2
    error = capsys.readouterr().err
    assert f"{place / 'run/crf/val/best.json'} is not there yet; python tools/tune_crf.py {place / 'run'} writes it" in error
