import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from kerasseg import KerassegError
from kerasseg.metrics import calibration_counts, calibration_error

# Four bins, whose ends are exact: up to and with 0.25, 0.5, 0.75, 1. The pixel of 0.7 is ignored.
TRUTH = np.array([[0, 0, 1], [0, 1, 255], [2, 2, 1]])
PREDICTION = np.array([[0, 1, 1], [0, 1, 3], [4, 2, 2]])
CONFIDENCE = np.array([[0.5, 0.9, 1.0], [0.6, 0.3, 0.7], [0.25, 0.75, 0.5]])


def test_three_by_three_by_hand():
    found = calibration_counts(TRUTH, CONFIDENCE, PREDICTION, 4)
    # Pixels, right ones, sum of confidences.
    np.testing.assert_allclose(found, [[1, 0, 0.25], [3, 2, 1.3], [2, 2, 1.35], [2, 1, 1.9]], rtol=1e-15)
    assert found.dtype == np.float64
    # (|0 − 0.25| + |2 − 1.3| + |2 − 1.35| + |1 − 1.9|) / 8
    assert calibration_error(found) == pytest.approx(2.5 / 8, rel=1e-14)
    assert calibration_error(calibration_counts(TRUTH, CONFIDENCE, PREDICTION, 1)) == pytest.approx((5 - 4.8) / 8, rel=1e-13)


def test_bins_are_those_of_sklearn_and_images_add_up():
    generator = np.random.default_rng(0)
    label, prediction = generator.integers(0, 3, (2, 4, 30, 25))
    confidence = generator.random(label.shape).astype(np.float32) ** 0.5
    # Just at the ends of bins, and at both ends of all.
    confidence[0, 0, :12] = np.arange(12, dtype=np.float32) / 11
    label[generator.random(label.shape) < 0.2] = 255
    kept = label != 255
    images = zip(label, confidence, prediction, strict=True)
    found = sum(calibration_counts(*image, 11) for image in images)
    accuracy, mean_confidence = calibration_curve((label == prediction)[kept], confidence[kept].astype(float), n_bins=11)
    pixels, right, summed = found.T
    np.testing.assert_allclose(right / pixels, accuracy, rtol=1e-13)
    np.testing.assert_allclose(summed / pixels, mean_confidence, rtol=1e-13)
    assert pixels.sum() == kept.sum() and right.sum() == (label == prediction)[kept].sum()
    expected = (pixels * np.abs(accuracy - mean_confidence)).sum() / pixels.sum()
    assert calibration_error(found) == pytest.approx(expected, rel=1e-12)


def test_right_as_often_as_said_is_no_error():
    label = np.zeros((10, 10), int)
    prediction = (np.arange(100) >= 80).astype(int).reshape(10, 10)
    assert calibration_error(calibration_counts(label, np.full((10, 10), 0.8), prediction)) == pytest.approx(0, abs=1e-14)
    assert calibration_error(calibration_counts(label, np.ones((10, 10)), prediction)) == pytest.approx(0.2, rel=1e-14)


def test_no_pixel_is_nan_and_bad_input_is_refused():
    nothing = calibration_counts(np.full((2, 2), 255), np.full((2, 2), np.nan), np.zeros((2, 2), int), 3)
    assert nothing.tolist() == [[0, 0, 0]] * 3 and np.isnan(calibration_error(nothing))
    label = np.zeros((2, 2), int)
    # The rounding of a mean of float32 probabilities is none of the user's.
    assert calibration_counts(label, np.full((2, 2), np.float32(1.0000002)), label, 2).tolist()[1][:2] == [4, 4]
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(KerassegError, match=r"confidence .* \(4 pixels\): expected probabilities"):
            calibration_counts(label, np.full((2, 2), wrong), label)
    with pytest.raises(KerassegError, match=r"label \(2, 2\), confidence \(2, 2\), prediction \(1, 2\): expected the same"):
        calibration_counts(label, np.ones((2, 2)), label[:1])
    with pytest.raises(KerassegError, match="bins 0"):
        calibration_counts(label, np.ones((2, 2)), label, 0)
