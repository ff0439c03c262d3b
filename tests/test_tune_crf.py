import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import run, start, write_camvid
from inference_helpers import Data, scored_network

from kerasseg import KerassegError
from kerasseg.cli import evaluate, tune_crf
from kerasseg.crf import PARAMETERS
from kerasseg.evaluation import (
    SEARCHES,
    Inference,
    Search,
    crf_parameters,
    draw_images,
    score_parameters,
    search_parameters,
    store_logits,
    write_best,
)
from kerasseg.evaluation import crf_search as searching
from kerasseg.evaluation import crf_store as storing
from kerasseg.evaluation import evaluate as score
from kerasseg.labels import generic_table
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

BASE = dataclasses.replace(PARAMETERS["deeplab_v1"], iterations=2)
SMALL = Search(BASE, {"bilateral_weight": (1.0, 4.0), "theta_beta": (10.0, 40.0)}, rounds=1)


def test_the_searches_are_the_papers():
    first, second = SEARCHES["deeplab_v1"].first(), SEARCHES["deeplab_v2"].first()
    assert (len(first), len(second)) == (2 * 6 * 8, 4 * 8 * 4)
    for sets, spans in ((first, ((5, 10), (50, 100), (3, 10))), (second, ((3, 6), (30, 100), (3, 6)))):
        found = np.array([[each.bilateral_weight, each.theta_alpha, each.theta_beta] for each in sets])
        assert list(zip(found.min(0), found.max(0), strict=True)) == [tuple(map(float, span)) for span in spans]
        assert {(each.spatial_weight, each.theta_gamma, each.iterations, each.normalization) for each in sets} == {
            (3, 3, 10, "after")
        }
    assert tuple(SEARCHES) == tune_crf._SEARCHES and searching.SEARCHED == tune_crf._SEARCHED


def test_refinement_halves_the_steps_around_the_best():
    ranges = {"bilateral_weight": (1.0, 2.0, 4.0), "theta_beta": (3.0,)}
    search = Search(BASE, ranges, rounds=2)

    def weights(number, value):
        best = dataclasses.replace(BASE, bilateral_weight=value, theta_beta=3.0)
        found = search.around(best, number)
        assert {each.theta_beta for each in found} == {3.0}
        return [each.bilateral_weight for each in found]

    assert weights(1, 4.0) == [3, 4, 5] and weights(1, 1.0) == [0.5, 1, 1.5]
    # Between 2 and 4 the step is 2, halved twice; none goes below 0.
    assert weights(2, 3.5) == [3, 3.5, 4] and weights(1, 0.25) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"theta_delta": (1.0,)},), "search over 'theta_delta': expected some of bilateral_weight"),
        (({"theta_beta": ()},), "values of theta_beta: received none"),
        (({"theta_beta": (3.0, 2.0)},), "values of theta_beta: received 3, 2, expected ascending"),
        (({"theta_beta": (-1.0, 2.0)},), "CRF parameter theta_beta=-1"),
        (({"theta_beta": (1.0,)}, -1), "-1 rounds of refinement"),
    ],
)
def test_searches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(KerassegError, match=message):
        Search(BASE, *arguments)


def test_more_sets_than_anybody_waits_for_are_refused_before_they_are_made(monkeypatch):
    ranges = {name: tuple(map(float, range(1, 1001))) for name in searching.SEARCHED}
    monkeypatch.setattr(Search, "_combinations", lambda *given: pytest.fail("all combinations were made"))
    with pytest.raises(KerassegError) as error:
        Search(BASE, ranges)
    assert str(error.value) == (
        f"the ranges make {1000**5} sets (1000 x 1000 x 1000 x 1000 x 1000): expected at most 10000, such as fewer values of each"
    )
    hundred = tuple(map(float, range(1, 101)))
    Search(BASE, {"theta_beta": hundred, "theta_alpha": hundred})
    with pytest.raises(KerassegError, match=r"10100 sets \(100 x 101\)"):
        Search(BASE, {"theta_beta": hundred, "theta_alpha": (*hundred, 101.0)})


def test_images_are_drawn_by_the_seed():
    drawn = draw_images(1000, 50, 1)
    assert drawn == draw_images(1000, 50, 1) == sorted(set(drawn)) and len(drawn) == 50 and max(drawn) < 1000
    assert drawn != draw_images(1000, 50, 2) and draw_images(3, 100, 0) == [0, 1, 2]


def stored(folder, data=None, model=None, inference=None, **about):
    data = data or Data(3)
    return store_logits(model or scored_network(), data, [0, 2], inference or Inference((1.0, 0.5)), folder, about)


def test_a_set_scores_as_the_evaluation_does(tmp_path):
    data, calls = Data(3), []
    inference = Inference((1.0, 0.5), flip=True)
    files = store_logits(scored_network(), data, [0, 2], inference, tmp_path, {}, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    data.examples = [data.examples[0], data.examples[2]]
    for parameters in (None, BASE):
        expected = score(scored_network(), data, dataclasses.replace(inference, crf=parameters))
        found = score_parameters(files, 3, parameters)
        assert found.mean_iou == expected.scores["mean_iou"] and found.pixel_accuracy == expected.scores["pixel_accuracy"]
        assert found.parameters == parameters


def test_the_network_runs_once_for_each_image(tmp_path, monkeypatch):
    runs = []
    original = storing.logits_for_crf
    monkeypatch.setattr(storing, "logits_for_crf", lambda *given: runs.append(given[3]) or original(*given))
    files = stored(tmp_path)
    assert runs == ["image-0", "image-2"] and stored(tmp_path) == files and len(runs) == 2
    # Of a file that was cut short nothing is believed.
    files[1].write_bytes(files[1].read_bytes()[:-50])
    stray = tmp_path / "logits/.unfinished-x.npz"
    stray.write_text("")
    stored(tmp_path)
    assert runs[2:] == ["image-2"] and not stray.exists()


def test_a_folder_belongs_to_one_search(tmp_path):
    stored(tmp_path, split="val")
    for changed, what in (
        ({"split": "test"}, "split"),
        ({"split": "val", "model": scored_network(1)}, "weights"),
        ({"split": "val", "inference": Inference()}, "inference"),
    ):
        with pytest.raises(KerassegError, match=f"holds a search with other {what}: name another folder"):
            stored(tmp_path, **changed)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(KerassegError, match="holds a search with other settings"):
        stored(tmp_path, split="val")
    with pytest.raises(KerassegError, match="the network has 4 classes, data set 'three' has 3"):
        stored(tmp_path / "four", model=scored_network(classes=4))


def test_every_set_is_tried_once_and_the_best_is_written(tmp_path, monkeypatch):
    files, rounds, tried = stored(tmp_path), [], []
    original = searching.score_parameters
    monkeypatch.setattr(searching, "score_parameters", lambda *given: tried.append(given[2]) or original(*given))
    found = search_parameters(files, 3, SMALL, tmp_path, report=lambda *round: rounds.append(round))
    assert tried[0] is None and tried[1:5] == SMALL.first() and len(set(tried)) == len(tried) == len(found)
    assert [each.mean_iou for each in found] == sorted((original(files, 3, each).mean_iou for each in tried), reverse=True)
    best = next(each for each in found if each.parameters)
    first = max(SMALL.first(), key=lambda each: original(files, 3, each).mean_iou)
    assert set(tried[5:]) == set(SMALL.around(first, 1)) - {first}
    assert rounds[0][:3] == ("without CRF", 0, 1) and rounds[1] == ("without CRF", 1, 1, found_plain(found))
    assert [call[:3] for call in rounds if call[0] == "first round"] == [("first round", done, 4) for done in range(5)]
    path = write_best(tmp_path, found, "2 images of noise")
    written = crf_parameters(path)
    assert dataclasses.replace(written, source="") == best.parameters
    assert f"best of {len(found) - 1} sets, searched on 2 images of noise: mean IoU {best.mean_iou:.4f}" in written.source
    assert json.loads(path.read_text())["without_crf"]["mean_iou"] == found_plain(found)


def found_plain(found):
    return next(each.mean_iou for each in found if each.parameters is None)


def test_a_search_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    files = stored(tmp_path)
    expected = search_parameters(files, 3, SMALL, tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(expected)
    # As a crash leaves it: the last line cut short, one with nothing, one of something else.
    (tmp_path / "results.jsonl").write_text("\n".join([*lines[:3], "", '{"parameters": 3}', lines[3][:-20]]))
    tried = []
    original = searching.score_parameters
    monkeypatch.setattr(searching, "score_parameters", lambda *given: tried.append(given[2]) or original(*given))
    assert search_parameters(files, 3, SMALL, tmp_path) == expected
    assert len(tried) == len(expected) - 3 and tried[0] == SMALL.first()[2]
    assert sorted((tmp_path / "results.jsonl").read_text().splitlines()) == sorted(lines)


def test_images_without_labels_cannot_be_searched(tmp_path):
    data = Data(3)
    data.examples[2].label = None
    with pytest.raises(KerassegError, match="image 'image-2' has no label"):
        stored(tmp_path, data)
    for example in data.examples:
        example.label = np.full(example.image.shape[:2], 255, np.int32)
    with pytest.raises(KerassegError, match="no image of the search has a labelled pixel"):
        score_parameters(stored(tmp_path / "void", data), 3, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    write_camvid(root / "camvid")
    recipe = RECIPES["shapes"].override(data="camvid", data_dir=str(root / "camvid"))
    Run(root / "run").begin(recipe.to_json(), generic_table([f"class {i}" for i in range(11)]))
    scored_network(classes=11).save(root / "run/model.keras")
    return root


RANGES = ("--bilateral-weight", "1,4", "--theta-alpha", "10", "--theta-beta", "10:10:30", "--crf-iterations", "2", "--refine", "0")


def test_a_killed_search_of_two_processes_goes_on(place, tmp_path, capsys):
    given = (place / "run", "--images", "1", "--seed", "3", *RANGES)
    assert run(tune_crf, *given, "--workers", "1", "--out", tmp_path / "whole") == 0
    whole = capsys.readouterr().out
    process = start("tools/tune_crf.py", *given, "--workers", "2", "--out", tmp_path / "killed")
    results, deadline = tmp_path / "killed/results.jsonl", time.monotonic() + 200
    while not (results.is_file() and results.read_text().count("\n") >= 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    # Those that it started end with it.
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(workers) >= 2 and not (tmp_path / "killed/best.json").exists()
    assert run(tune_crf, *given, "--workers", "1", "--out", tmp_path / "killed") == 0
    again = capsys.readouterr().out
    best, other = (json.loads((tmp_path / name / "best.json").read_text()) for name in ("whole", "killed"))
    assert best == other and best["sets"] == 6
    assert table(whole) == table(again) and len(table(again)) == 1 + 6 + 1


def children(pid):
    """Processes that a process started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def table(out):
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("rank"))
    return [line for line in lines[first:] if not line.startswith(("best:", "use it:", "all "))]


def test_evaluate_searches_and_uses_what_was_found(place, capsys, monkeypatch):
    few = dataclasses.replace(SMALL, ranges={**SMALL.ranges, "theta_beta": (10.0,)}, rounds=0)
    monkeypatch.setitem(SEARCHES, "deeplab_v1", few)
    # Half of two cores: no further processes, in which the search would be the papers'.
    monkeypatch.setattr(tune_crf.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert run(evaluate, place / "run", "--crf", "search", "--pictures", "0") == 0
    best = place / "run/crf/val/best.json"
    first = capsys.readouterr().out
    assert f"CRF parameters: {best}" in first and "were not searched yet" in first and "without CRF" in first
    found = json.loads((place / "run/report/val-crf-search/scores.json").read_text())
    assert found["inference"]["crf"] == json.loads(best.read_text())["parameters"]
    # All four images of the split were searched on.
    assert found["mean_iou"] == json.loads(best.read_text())["mean_iou"]
    assert run(evaluate, place / "run", "--crf", "search", "--pictures", "0", "--split", "train", "--limit", "1") == 0
    second = capsys.readouterr().out
    assert f"CRF parameters: {best}" in second and "searched yet" not in second
    # Another way of running has other scores.
    assert run(evaluate, place / "run", "--crf", "search", "--pictures", "0", "--flip", "--limit", "1") == 0
    assert (place / "run/crf/val-flip/best.json").is_file()
    assert run(evaluate, place / "run", "--crf", best, "--pictures", "0", "--report", place / "other") == 0
    assert json.loads((place / "other/scores.json").read_text())["confusion_matrix"] == found["confusion_matrix"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "0"), "--images 0: expected 1 or more"),
        (("--workers", "0"), "--workers 0: expected 1 or more"),
        (("--seed", "-1"), "--seed -1: expected 0 or more"),
        (("--refine", "-1"), "--refine -1: expected 0 or more"),
        (("--search", "deeplab"), "--search deeplab: did you mean 'deeplab_v"),
        (("--theta-alpha", "5,3"), "--theta-alpha 5,3: expected up to 1000 ascending numbers, such as 5,10 or 50:10:100"),
        (("--theta-beta", "0,3"), "--theta-beta 0,3: expected numbers above 0, such as 5,10 or 50:10:100"),
        (("--normalization", "all", "--workers", "1"), "CRF normalization 'all': expected one of symmetric"),
        (("--crf-iterations", "-1", "--workers", "1"), "CRF iterations -1: expected a whole number of at least 0"),
        (("--out", "{place}/run/model.keras"), "model.keras is a file, expected a folder or a new name"),
    ],
)
def test_mistakes_are_one_line(place, capsys, options, message):
    before = sorted(place.rglob("*"))
    assert run(tune_crf, place / "run", *(text.replace("{place}", str(place)) for text in options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and sorted(place.rglob("*")) == before
