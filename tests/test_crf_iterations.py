"""The CRF iteration by iteration against the CRF itself."""

import dataclasses

import numpy as np
import pytest
from cli_helpers import run
from inference_helpers import image_of, scored_network
from PIL import Image

from kerasseg.cli import analyze
from kerasseg.crf import Parameters, dense_crf
from kerasseg.evaluation.analysis import crf_picture, crf_steps
from kerasseg.evaluation.analysis.pictures import heat

PARAMETERS = Parameters(3.0, 8.0, 20.0, 2.0, 2.0, normalization="after")


@pytest.fixture(scope="module")
def scene():
    logits = np.random.default_rng(1).normal(size=(14, 17, 3)).astype(np.float32)
    return image_of((14, 17)), logits


@pytest.mark.parametrize("rows_first", [False, True])
def test_beliefs_are_the_marginals_after_so_many_iterations(scene, rows_first):
    image, logits = scene
    parameters = dataclasses.replace(PARAMETERS, rows_first=rows_first)
    steps = crf_steps(image, logits, parameters, [0, 1, 3])
    assert [step.iterations for step in steps] == [0, 1, 3]
    np.testing.assert_array_equal(steps[0].scores, logits)
    for step in steps:
        expected = dense_crf(image, logits, parameters, iterations=step.iterations, from_logits=True)
        np.testing.assert_allclose(step.beliefs, expected, atol=1e-5)
        exponentials = np.exp(step.scores - step.scores.max(-1, keepdims=True))
        np.testing.assert_allclose(step.beliefs, exponentials / exponentials.sum(-1, keepdims=True), atol=1e-6)
    # Potts: what a pixel receives are the others' beliefs, which sum to 1, times the weights.
    received = (steps[1].scores - logits).sum(-1)
    np.testing.assert_allclose(received, 5.0, atol=1e-4)
    assert np.abs(steps[2].beliefs - steps[1].beliefs).max() > 0.05


def test_the_picture_has_one_range_of_scores_and_beliefs_from_0_to_1(scene, tmp_path):
    image, logits = scene
    steps = crf_steps(image, logits, PARAMETERS, [0, 2])
    shown = np.full(image.shape, 77, np.uint8)
    picture = np.asarray(crf_picture(image, steps, 1, tmp_path / "c.png", labelled=shown))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), picture)
    scores = [step.scores[..., 1] for step in steps]
    low, high = min(map(np.min, scores)), max(map(np.max, scores))
    assert low < scores[1].min() or high > scores[0].max()
    for part in (image, shown, *(heat(each, low, high) for each in scores), *(heat(step.beliefs[..., 1], 0, 1) for step in steps)):
        windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)[:, :, 0]
        assert (windows == part).all((2, 3, 4)).sum() == 1


def test_heat_of_a_given_range():
    found = heat(np.array([[-3.0, 0.0, 0.5, 1.0, 9.0]]), 0, 1)
    assert found[0].tolist() == [[0, 0, 60], [0, 0, 60], [0, 190, 160], [220, 30, 20], [220, 30, 20]]


def test_the_command_prints_and_draws(tmp_path, capsys):
    scored_network().save(tmp_path / "model.keras")
    Image.fromarray(image_of()).save(tmp_path / "cat.png")
    given = ("crf_iterations", tmp_path / "model.keras", tmp_path / "cat.png", "--out", tmp_path / "out", "--crf", "deeplab_v1")
    assert run(analyze, *given, "--iterations", "0,1") == 0
    first, second, last = capsys.readouterr().out.splitlines()
    label = scored_network()(image_of()[None].astype(np.float32)).numpy()[0].argmax(-1)
    # No class of a bare file is background.
    frequent = np.bincount(label.ravel()).argmax()
    assert first.startswith(f"0 iterations: class {frequent}: score ") and first.endswith("; 0.00 % differ from the network's")
    assert f"most likely at {100 * (label == frequent).mean():.2f} % of pixels" in first
    assert second.startswith(f"1 iteration: class {frequent}: ") and last == f"picture: {tmp_path / 'out/crf_iterations.png'}"
    with Image.open(tmp_path / "out/crf_iterations.png") as picture:
        assert picture.width > 3 * 40
    assert run(analyze, *given, "--class", "class 2", "--iterations", "0") == 0
    assert capsys.readouterr().out.startswith("0 iterations: class 2: ")


def test_background_is_no_class_to_look_at():
    label = np.array([[0, 0, 0], [2, 2, 1]])
    chosen = analyze.crf_iterations._most_frequent
    assert chosen(label, ("background", "cat", "dog")) == 2 and chosen(label, ("sky", "cat", "dog")) == 0
    assert chosen(label * 0, ("background", "cat", "dog")) == 0


MISTAKES = {
    "name": (("--crf", "deeplab_v9"), "--crf 'deeplab_v9': no such file or name; did you mean"),
    "iterations": (("--crf", "deeplab_v1", "--iterations", "0,-1"), "--iterations 0,-1: expected whole numbers from 0, such as"),
    "class": (("--crf", "deeplab_v1", "--class", "cow"), "--class cow: the network has no such class"),
    "image": (("--crf", "deeplab_v1", "--out", "cat.png"), "--out cat.png: cat.png is a file"),
    "file": (("--crf", "cat.png"), "cat.png is not JSON"),
}


def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scored_network().save("model.keras")
    Image.fromarray(image_of()).save("cat.png")
    for arguments, message in MISTAKES.values():
        assert run(analyze, "crf_iterations", "model.keras", "cat.png", "--out", "o", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not (tmp_path / "o").exists()
