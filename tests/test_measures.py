"""What is measured beside the confusion matrix: sums over images, worked by hand, and as JSON and text."""

import json

import numpy as np
import pytest
from inference_helpers import Data, make_model

from kerasseg import KerassegError
from kerasseg.evaluation import BoundaryF, Calibration, Inference, Regions, Trimap, evaluate, predict_with_classes
from kerasseg.evaluation.measures import requested
from kerasseg.metrics import boundary_f, calibration_counts

NAN = float("nan")


def json_of(result):
    return json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_boundary_f_is_a_mean_over_images_then_over_classes():
    # Class 1 is in two images, class 2 in one, class 3 in none.
    found = BoundaryF(2.0, np.array([[0.5, 1.0, NAN, NAN], [1.0, 0.25, 0.4, NAN], [0.0, NAN, NAN, NAN]]))
    assert found.per_class()[:3].tolist() == [0.5, 0.625, 0.4] and np.isnan(found.per_class()[3])
    assert found.mean == pytest.approx((0.5 + 0.625 + 0.4) / 3)
    assert BoundaryF(2.0, found.values, (0,)).mean == pytest.approx((0.625 + 0.4) / 2)
    assert json_of(found) == {"tolerance": 2.0, "mean": found.mean, "per_class": [0.5, 0.625, 0.4, None], "num_images": 3}
    assert found.table() == ["boundary F within 2 px, mean of the classes: 50.83 %"]
    empty = BoundaryF(None, np.full((2, 3), NAN))
    assert json_of(empty) == {"tolerance": None, "mean": None, "per_class": [None] * 3, "num_images": 2}
    assert empty.table() == ["boundary F within 0.75 % of the diagonal, mean of the classes: - %"]


def test_calibration_worked_by_hand():
    # Ten pixels sure to 0.3 each, of which five are right; none; ten sure to 0.9, all right.
    found = Calibration(np.array([[10, 5, 3.0], [0, 0, 0], [10, 10, 9.0]]))
    assert found.error == pytest.approx((10 * 0.2 + 10 * 0.1) / 20) and found.mean_confidence == pytest.approx(0.6)
    values = json_of(found)
    assert values["error"] == found.error and values["mean_confidence"] == found.mean_confidence
    low, empty, high = values["bins"]
    assert low == {"low": 0, "high": pytest.approx(1 / 3), "num_pixels": 10, "accuracy": 0.5, "confidence": 0.3}
    assert (empty["num_pixels"], empty["accuracy"], empty["confidence"]) == (0, None, None)
    assert (high["low"], high["high"], high["accuracy"]) == (pytest.approx(2 / 3), 1, 1)
    assert found.table() == ["expected calibration error (3 bins): 15.00 %, mean confidence 60.00 %"]


def test_means_of_regions_and_bands_leave_excluded_classes_out():
    matrix = np.array([[6, 2], [0, 1]])
    # Class 0: 6 of a union of 8; class 1: 1 of a union of 3.
    regions, bands = Regions(7, matrix, matrix, (0,)), Trimap((1.0,), "labels", matrix[None], (0,))
    assert regions.scores()["internal"]["mean_iou"] == bands.rows()[0]["mean_iou"] == pytest.approx(1 / 3)
    assert Trimap((1.0,), "labels", matrix[None]).rows()[0]["mean_iou"] == pytest.approx((6 / 8 + 1 / 3) / 2)
    assert json_of(regions)["boundary"]["pixel_accuracy"] == pytest.approx(7 / 9)


@pytest.mark.parametrize("tolerance", [True, 2.0])
def test_an_evaluation_measures_every_image(tolerance):
    data, model = Data(), make_model()
    inference = Inference((0.5, 1.0))
    result = evaluate(model, data, inference, boundary_f=tolerance, calibration=4)
    values, counts = [], np.zeros((4, 3))
    for example in data.examples:
        prediction = predict_with_classes(model, example.image, inference, confidence=True)
        values.append(boundary_f(example.label, prediction.classes, 3, None if tolerance is True else tolerance))
        counts += calibration_counts(example.label, prediction.confidence, prediction.classes, 4)
    np.testing.assert_array_equal(result.boundary_f.values, values)
    np.testing.assert_array_equal(result.calibration.counts, counts)
    assert counts[:, 0].sum() == result.matrix.sum() and counts[:, 1].sum() == np.trace(result.matrix)
    head, first = (line.split() for line in result.table().splitlines()[:2])
    assert head[-3:] == ["boundary", "F", "%"] and first[-1] == f"{100 * result.boundary_f.per_class()[0]:.2f}"
    assert result.to_json()["boundary_f"]["tolerance"] == (None if tolerance is True else 2.0)


def test_only_what_is_asked_for_is_measured():
    nothing = {"boundary": None, "trimap": None, "trimap_boundary": "labels", "boundary_f": None, "calibration": None}
    assert requested(3, (), **nothing) == []
    for no in (False, np.False_):
        assert requested(3, (), **{**nothing, "boundary_f": no, "calibration": no}) == []
    for yes in (True, np.True_):
        contours, confidence = requested(3, (), **{**nothing, "boundary_f": yes, "calibration": yes})
        assert contours.result().tolerance is None and len(confidence.result().counts) == 15
    for name, value in (("boundary", 7), ("trimap", (1, 2)), ("boundary_f", True), ("calibration", 15)):
        (measure,) = requested(3, (), **{**nothing, name: value})
        assert measure.needs_confidence == (name == "calibration") and measure.result().key == name
    with pytest.raises(KerassegError, match="trimap boundary 'edges': expected one of"):
        evaluate(make_model(), Data(), trimap=(1,), trimap_boundary="edges")
