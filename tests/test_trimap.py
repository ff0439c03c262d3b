import json

import numpy as np
import PIL.Image
import pytest
from inference_helpers import LABELS, Data, make_model

from kerasseg import KerassegError
from kerasseg.evaluation import Inference, evaluate, predict, write_report
from kerasseg.evaluation.trimap import Trimap, draw_trimaps
from kerasseg.labels import IGNORE
from kerasseg.metrics import TRIMAP_BOUNDARIES, boundary_region, confusion_matrix, scores, trimap_matrices

WIDTHS = (1, 1.5, 2, 3, 7, 40)


def in_band(label, width, boundary):
    """Every pixel against every other, as the definition says it."""
    inside = np.zeros(label.shape, bool)
    for y, x in np.ndindex(label.shape):
        for v, u in np.ndindex(label.shape):
            far = max(abs(v - y), abs(u - x)) if boundary == "void" else np.hypot(v - y, u - x)
            other = {
                "labels": label[v, u] != label[y, x],
                "classes": label[v, u] not in (label[y, x], IGNORE),
                "void": label[v, u] == IGNORE,
            }
            inside[y, x] |= label[y, x] != IGNORE and far <= width and other[boundary]
    return inside


def random_maps(seed, size=(17, 14)):
    """Blocks of classes 0, 1 and 3, never 2, and some pixels to ignore; predictions of 0 to 3."""
    generator = np.random.default_rng(seed)
    label = np.array([0, 1, 3])[generator.integers(0, 3, (4, 4))].repeat(6, 0).repeat(5, 1)[: size[0], : size[1]]
    label[generator.random(size) < 0.03] = IGNORE
    label[:4, :3] = IGNORE
    return label, np.where(generator.random(size) < 0.7, np.where(label == IGNORE, 0, label), generator.integers(0, 4, size))


@pytest.mark.parametrize("boundary", TRIMAP_BOUNDARIES)
def test_every_band_is_that_of_the_definition(boundary):
    for seed in range(2):
        label, prediction = random_maps(seed)
        found = trimap_matrices(label, prediction, WIDTHS, 5, boundary=boundary)
        assert found.dtype == np.int64 and found.shape == (len(WIDTHS), 5, 5)
        for width, matrix in zip(WIDTHS, found, strict=True):
            inside = in_band(label, width, boundary)
            expected = np.zeros((5, 5), int)
            np.add.at(expected, (label[inside], prediction[inside]), 1)
            np.testing.assert_array_equal(matrix, expected)
        # They grow, up to all that is not ignored.
        sizes = found.sum((1, 2))
        assert sizes[0] < sizes[2] < sizes[-1] == (label != IGNORE).sum() and (found[:, 2] == 0).all()


@pytest.mark.parametrize(("boundary", "ignored_is_boundary"), [("labels", True), ("classes", False)])
def test_a_band_is_the_boundary_region_of_that_distance(boundary, ignored_is_boundary):
    label, prediction = (array.repeat(4, 0).repeat(4, 1) for array in random_maps(3, (19, 20)))
    found = trimap_matrices(label, prediction, (2, 9, 30), 4, boundary=boundary)
    for width, matrix in zip((2, 9, 30), found, strict=True):
        region = boundary_region(label, width, ignored_is_boundary=ignored_is_boundary)
        np.testing.assert_array_equal(matrix, confusion_matrix(np.where(region, label, IGNORE), prediction, 4))


def test_bands_worked_by_hand():
    # One row: 0 0 0 | 1 1 v v 0, v to ignore; wrong are the third and the last pixel.
    label = np.array([[0, 0, 0, 1, 1, IGNORE, IGNORE, 0]])
    prediction = np.array([[0, 0, 1, 1, 1, 0, 0, 1]])
    # Distances to another label: 3 2 1 1 1 - - 1; to another class, void being none: 3 2 1 1 2 - - 3.
    found = trimap_matrices(label, prediction, (1, 2, 3), 2)
    assert found.tolist() == [[[0, 2], [0, 2]], [[1, 2], [0, 2]], [[2, 2], [0, 2]]]
    assert trimap_matrices(label, prediction, (1, 2, 3), 2, boundary="classes").tolist() == [
        [[0, 1], [0, 1]],
        [[1, 1], [0, 2]],
        [[2, 2], [0, 2]],
    ]
    # Columns to the nearest void pixel: 5 4 3 2 1 - - 1.
    void = trimap_matrices(label, prediction, (1, 2, 4), 2, boundary="void")
    assert void.tolist() == [[[0, 1], [0, 1]], [[0, 1], [0, 2]], [[1, 2], [0, 2]]]
    rows = Trimap((1, 2, 4), "void", void).rows()
    # Of the widest: class 0 hits 1 of a union of 3, class 1 hits 2 of a union of 4.
    assert rows[2]["mean_iou"] == pytest.approx((1 / 3 + 2 / 4) / 2) and rows[2]["pixel_accuracy"] == pytest.approx(3 / 5)
    assert [row["num_pixels"] for row in rows] == [2, 3, 5]


def test_void_spreads_by_squares():
    label = np.zeros((7, 7), int)
    label[3, 3] = IGNORE
    sizes = trimap_matrices(label, label, (1, 2, 3), 1, boundary="void").sum((1, 2))
    assert sizes.tolist() == [8, 24, 48]


def test_an_image_without_boundary_has_empty_bands():
    label = np.full((5, 6), 1)
    for boundary in TRIMAP_BOUNDARIES:
        assert not trimap_matrices(label, label, (1, 1e300), 2, boundary=boundary).any()
    ignored = np.full((5, 6), IGNORE)
    assert (
        not trimap_matrices(ignored, label, (1, 40), 2).any()
        and not trimap_matrices(ignored, label, (1,), 2, boundary="void").any()
    )
    row = Trimap((1.0,), "labels", np.zeros((1, 2, 2), np.int64))
    assert np.isnan(row.rows()[0]["mean_iou"]) and row.to_json()["bands"][0]["mean_iou"] is None and " -" in row.table()[1]


def test_counts_of_uint8_maps_do_not_wrap():
    label = np.array([[150, 151]], np.uint8)
    assert trimap_matrices(label, label, (1,), 152)[0].nonzero()[0].tolist() == [150, 151]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": ()}, "trimap widths none: expected pixels from 1, ascending"),
        ({"widths": (0.5, 1)}, "trimap widths 0.5, 1:"),
        ({"widths": (2, 1)}, "trimap widths 2, 1:"),
        ({"widths": (1, 1)}, "trimap widths 1, 1:"),
        ({"widths": (1, float("inf"))}, "trimap widths 1, inf:"),
        ({"boundary": "edges"}, "trimap boundary 'edges': expected one of labels, classes, void"),
        ({"prediction": np.zeros((2, 3), int)}, r"label has shape \(2, 2\), prediction \(2, 3\)"),
        ({"label": np.full((2, 2), 7)}, r"label 7 \(4 pixels\) is out of range"),
        ({"prediction": np.full((2, 2), 3)}, r"prediction 3 \(4 pixels\) is out of range"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    given = {"label": np.zeros((2, 2), int), "prediction": np.zeros((2, 2), int), "widths": (1, 2), "num_classes": 3, **arguments}
    with pytest.raises(KerassegError, match=message):
        trimap_matrices(**given)


def test_an_evaluation_adds_up_its_images(tmp_path):
    data, model = Data(), make_model()
    result = evaluate(model, data, Inference(), trimap=(1, 3), trimap_boundary="classes")
    expected = sum(
        trimap_matrices(e.label, predict(model, e.image), (1, 3), LABELS.num_classes, boundary="classes") for e in data.examples
    )
    np.testing.assert_array_equal(result.trimap.matrices, expected)
    bands = result.to_json()["trimap"]["bands"]
    assert [band["width"] for band in bands] == [1, 3] and bands[1]["mean_iou"] == scores(expected[1])["mean_iou"]
    assert "trimap (classes), px" in result.table() and f"{100 * bands[0]['mean_iou']:.2f}" in result.table()
    assert "trimap" not in evaluate(model, data).to_json() and "trimap" not in evaluate(model, data).table()
    folder = write_report(tmp_path / "report", result)
    assert json.loads((folder / "scores.json").read_text())["trimap"] == result.to_json()["trimap"]
    with PIL.Image.open(folder / "trimap.png") as picture:
        assert picture.size[0] > 500 and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_wrong_widths_are_refused_before_anything_is_run():
    with pytest.raises(KerassegError, match="trimap widths 0:"):
        evaluate(None, Data(), trimap=(0,))


def test_curves_of_several_runs_lie_in_one_picture(tmp_path):
    matrices = np.array([[[3, 1], [0, 2]], [[9, 1], [0, 9]]])
    trimaps = {name: Trimap((1.0, 2.0), "labels", matrices + i) for i, name in enumerate(("_plain", r"with a $\CRF$"))}
    draw_trimaps(trimaps, tmp_path / "curve.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "curve.png").convert("RGB")).reshape(-1, 3)
    # matplotlib's first two colours.
    for color in ((31, 119, 180), (255, 127, 14)):
        assert (pixels == color).all(1).sum() > 100
    # Names stand in the legend as they are, whatever they begin with or hold.
    named, blank = pixels, {" " * (1 + i): trimap for i, trimap in enumerate(trimaps.values())}
    draw_trimaps(blank, tmp_path / "blank.png")
    without = np.asarray(PIL.Image.open(tmp_path / "blank.png").convert("RGB")).reshape(-1, 3)
    assert (named < 100).all(1).sum() > (without < 100).all(1).sum() + 100
