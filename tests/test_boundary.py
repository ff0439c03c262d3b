import json

import numpy as np
import pytest
from inference_helpers import LABELS, Data, make_model

from kerasseg import KerassegError
from kerasseg.evaluation import Evaluation, Regions, evaluate, write_report
from kerasseg.labels import IGNORE
from kerasseg.metrics import boundaries, boundary_region, confusion_matrix, scores


def nearest_other(label, distance, ignored_is_boundary):
    """Every pixel against every other, as the definition says it."""
    height, width = label.shape
    region = np.zeros((height, width), bool)
    for y, x in np.ndindex(height, width):
        for v, u in np.ndindex(height, width):
            other = label[v, u] != label[y, x] and (ignored_is_boundary or label[v, u] != IGNORE)
            if other and label[y, x] != IGNORE and (v - y) ** 2 + (u - x) ** 2 <= distance**2:
                region[y, x] = True
    return region


@pytest.mark.parametrize("ignored_is_boundary", [True, False])
@pytest.mark.parametrize("distance", [1, 2, 2.5, 7])
def test_the_region_is_that_of_the_definition(distance, ignored_is_boundary):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        label = generator.integers(0, 3, (4, 5)).repeat(6, 0).repeat(5, 1)[: 17 + seed, :23]
        label[generator.random(label.shape) < 0.02] = IGNORE
        found = boundary_region(label, distance, ignored_is_boundary=ignored_is_boundary)
        expected = nearest_other(label, distance, ignored_is_boundary)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == bool and (distance > 2 or 0 < found.mean() < 1)


@pytest.mark.parametrize("ignored_is_boundary", [True, False])
def test_far_boundaries_are_found_as_near_ones(ignored_is_boundary):
    # Of four labels, islands, and bands to ignore, on both sides of the distance at which the algorithm changes.
    label = np.zeros((70, 90), np.int64)
    label[20:40, 30:60], label[60:, :9], label[5, 80], label[38:41, 28:62] = 1, 300, 2, IGNORE
    nearest = nearest_other_of(label, ignored_is_boundary)
    for distance in (3, 16, 17, 25.5, 40, 1e300):
        found = boundary_region(label, distance, ignored_is_boundary=ignored_is_boundary)
        np.testing.assert_array_equal(found, nearest <= distance)
        assert 0 < found.mean() < 1 and (distance < 1e300 or (found == (label != IGNORE)).all())


def nearest_other_of(label, ignored_is_boundary):
    """Each pixel's distance to the nearest of another label, from all pairs."""
    places, values = np.argwhere(label >= 0), label.ravel()
    nearest = np.full(values.shape, np.inf)
    for value in np.unique(values):
        own, others = values == value, (values != value) & (ignored_is_boundary | (values != IGNORE))
        if value != IGNORE:
            for pixel in np.flatnonzero(own):
                nearest[pixel] = np.sqrt(((places[others] - places[pixel]) ** 2).sum(1).min())
    return nearest.reshape(label.shape)


def test_a_region_worked_by_hand():
    # Pixels of class 1 are at 1, 2, 3 … from the nearest of class 0; the two ignored ones at the end never count.
    label = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, IGNORE, IGNORE]])
    assert boundary_region(label, 2)[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0]
    assert boundary_region(label, 2, ignored_is_boundary=False)[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    # One pixel of another class: 3-4-5 triangles are in at 5, the corner at the square root of 50 is not.
    label = np.zeros((11, 11), int)
    label[5, 5] = 7
    disc = boundary_region(label, 5)
    rows, columns = np.indices(label.shape) - 5
    np.testing.assert_array_equal(disc, rows**2 + columns**2 <= 25)
    assert disc[1, 2] and disc[5, 5] and not disc[0, 0] and disc.sum() == 81


def test_without_a_boundary_all_is_internal():
    assert not boundary_region(np.full((5, 6), 3)).any()
    assert not boundary_region(np.full((5, 6), IGNORE)).any()
    two = np.array([[0, 0, IGNORE, 0]])
    assert not boundary_region(two, ignored_is_boundary=False).any()
    assert boundary_region(two).tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("distance", [0, 0.5, -7, float("nan"), float("inf")])
def test_distances_that_mean_nothing_are_refused(distance):
    with pytest.raises(KerassegError, match="boundary distance .*: expected at least 1 pixel"):
        boundary_region(np.zeros((3, 3), int), distance)
    with pytest.raises(KerassegError, match="boundary distance"):
        evaluate(make_model(), Data(), boundary=distance)
    with pytest.raises(KerassegError, match=r"label has shape \(1, 3, 3\): expected \(H, W\)"):
        boundary_region(np.zeros((1, 3, 3), int))


def test_evaluate_scores_both_regions_and_they_add_up(tmp_path):
    model, data = make_model(), Data()
    for example in data.examples:
        example.label[:, :3] = 0
        example.label[3:, 5:] = 1
    whole, found = evaluate(model, data), evaluate(model, data, boundary=1)
    assert whole.regions is None and "boundary" not in whole.to_json()
    np.testing.assert_array_equal(found.matrix, whole.matrix)
    expected = {"boundary": np.zeros((3, 3), np.int64), "internal": np.zeros((3, 3), np.int64)}
    for example in data.examples:
        prediction = model(example.image[None].astype(np.float32)).numpy()[0].argmax(-1)
        close = nearest_other(example.label, 1, True)
        for name, region in (("boundary", close), ("internal", ~close & (example.label != IGNORE))):
            expected[name] += confusion_matrix(example.label[region], prediction[region], 3)
    parts = json.loads(json.dumps(found.to_json(), allow_nan=False))["boundary"]
    assert parts["distance"] == 1 and set(parts) == {"distance", "boundary", "internal"}
    for name, matrix in expected.items():
        assert matrix.sum() > 5
        np.testing.assert_array_equal(getattr(found.regions, name), matrix)
        assert parts[name]["confusion_matrix"] == matrix.tolist() and parts[name]["num_pixels"] == matrix.sum()
        assert parts[name]["pixel_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
        assert parts[name]["mean_iou"] == pytest.approx(scores(matrix)["mean_iou"])
    assert (found.regions.boundary + found.regions.internal == found.matrix).all()
    write_report(tmp_path, found)
    assert "up to 1 px from a boundary" in (tmp_path / "scores.txt").read_text("utf-8")


def test_the_table_shows_both_regions():
    close, far = np.array([[3, 1], [0, 0]]), np.zeros((2, 2), int)
    labels = type(LABELS)("two", ("ground", "cat"), ((0, 0, 0), (200, 40, 40)))
    found = Evaluation(close + far, labels, scores(close + far), [], measured={"boundary": Regions(7, close, far)})
    lines = [line.split() for line in found.table().splitlines()[-3:]]
    assert lines[0] == ["up", "to", "7", "px", "from", "a", "boundary", "mean", "IoU", "%", "accuracy", "%"]
    assert lines[1:] == [["boundary", "37.50", "75.00"], ["internal", "-", "-"]]


def test_a_region_may_be_wider_than_the_image():
    label = np.array([[0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(boundary_region(label, 9), np.ones((2, 4), bool))
    for size in ((1, 6), (6, 1), (2, 2)):
        label = np.zeros(size, int)
        label[-1, -1] = 3
        np.testing.assert_array_equal(boundary_region(label, 4), nearest_other(label, 4, True))
    # Labels of more than a byte, and another value for what is ignored.
    label = np.array([[300, 300, 44, 44, -1]])
    assert boundary_region(label, 1, ignore_label=-1)[0].tolist() == [False, True, True, True, False]


def nearest_of_another_label(label):
    """Squared distance of each pixel to the nearest of another label, pair by pair; infinite where there is none."""
    places = np.argwhere(np.ones(label.shape, bool))
    squared = ((places[:, np.newaxis] - places) ** 2).sum(-1).astype(float)
    squared[label.ravel()[:, np.newaxis] == label.ravel()] = np.inf
    return squared.min(1).reshape(label.shape)


@pytest.mark.parametrize("reach", [1, 3, 8, 60])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (13, 17), (17, 13)])
def test_both_ways_to_measure_distances_are_the_definition(monkeypatch, reach, size):
    # Bands of a row or two, so that there are several.
    monkeypatch.setattr(boundaries, "_CELLS_AT_ONCE", 20)
    generator = np.random.default_rng(reach)
    for classes in (1, 2, 4):
        label = generator.integers(0, classes, size).repeat(2, 0)[: size[0]].astype(np.uint8)
        label[generator.random(size) < 0.1] = 255
        expected = nearest_of_another_label(label)
        for found in (boundaries._by_columns_then_rows(label, reach), boundaries._by_label(label, label != 255, reach, True)):
            within = expected <= reach**2
            np.testing.assert_array_equal(found[within], expected[within])
            assert (found[~within] > reach**2).all()
