import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.metrics import boundary_f

NAN = np.nan


def literal(label, prediction, classes, tolerance, ignored_is_boundary=True):
    """Every outline pixel against every other, as the docstring says it."""

    def outline(classes_of, only_labelled):
        found = []
        for y, x in np.ndindex(label.shape):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < label.shape[0] and 0 <= u < label.shape[1]
                if inside and classes_of[v, u] != classes_of[y, x] and not (only_labelled and 255 in (label[y, x], label[v, u])):
                    found.append((y, x))
        return list(dict.fromkeys(found))

    def share(these, those, what):
        close = [any(np.hypot(y - v, x - u) <= tolerance for v, u in those[what]) for y, x in these[what]]
        return np.mean(close) if close else 1.0

    def by_class(pixels, classes_of):
        return {c: [place for place in pixels if classes_of[place] == c] for c in range(classes)}

    labelled = label != 255
    true = by_class([p for p in outline(label, not ignored_is_boundary) if labelled[p]], label)
    predicted = by_class(outline(prediction, False), prediction)
    counted = by_class([p for p in outline(prediction, not ignored_is_boundary) if labelled[p]], prediction)
    found = np.full(classes, np.nan)
    for c in range(classes):
        precision, recall = share(counted, true, c), share(true, predicted, c)
        in_label, in_prediction = (label[labelled] == c).any(), (prediction[labelled] == c).any()
        if in_label and in_prediction:
            found[c] = 2 * precision * recall / (precision + recall) if precision + recall else 0
        elif in_label or in_prediction:
            found[c] = 0
    return found


@pytest.mark.parametrize("ignored_is_boundary", [True, False])
@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, None])
def test_it_is_the_definition(tolerance, ignored_is_boundary):
    partial = 0
    for seed in range(3):
        generator = np.random.default_rng(seed)
        label = generator.choice([0, 1, 2, 4, 255], (3, 3), p=[0.3, 0.3, 0.15, 0.1, 0.15]).repeat(6, 0).repeat(7, 1)
        label[generator.random(label.shape) < 0.03] = 255
        other = generator.choice([0, 1, 3, 4], label.shape)
        prediction = np.where((label == 255) | (generator.random(label.shape) < 0.02), other, label)
        prediction = np.roll(prediction, seed, 1)
        # 0.75 % of the diagonal.
        expected = literal(label, prediction, 6, 0.21 if tolerance is None else tolerance, ignored_is_boundary)
        found = boundary_f(label, prediction, 6, tolerance, ignored_is_boundary=ignored_is_boundary)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        partial += ((found > 0) & (found < 1)).sum()
        assert found.dtype == np.float64 and np.isnan(found[5])
    assert partial >= 6


def test_three_by_three_by_hand():
    label = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    prediction = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 0]])
    # Outline of class 1: true (1, 1); predicted that and (1, 2): precision 1/2, recall 1. Of class 0: true the four neighbours of
    # the centre; predicted (0, 1), (0, 2), (1, 0), (2, 1), (2, 2), three of them true: precision 3/5, recall 3/4.
    np.testing.assert_allclose(boundary_f(label, prediction, 3, 0), [2 / 3, 2 / 3, NAN])
    np.testing.assert_array_equal(boundary_f(label, prediction, 3, 1), [1, 1, NAN])
    np.testing.assert_array_equal(boundary_f(label, label, 3), [1, 1, NAN])
    prediction = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 2]])
    # At the square root of 2 from the centre.
    assert boundary_f(label, prediction, 3, 1.4)[1] == 0 and boundary_f(label, prediction, 3, 1.5)[1] == 1
    assert boundary_f(label, prediction, 3, 1.5)[2] == 0


def test_a_row_by_hand():
    label, prediction = np.array([[0, 0, 0, 1, 1, 1, 1, 1]]), np.array([[0, 1, 0, 1, 1, 1, 1, 0]])
    # Predicted outline of 0 at 0, 2, 7, of 1 at 1, 3, 6; true at 2 and 3.
    np.testing.assert_allclose(boundary_f(label, prediction, 2, 1), [1 / 2, 1 / 2])
    np.testing.assert_allclose(boundary_f(label, prediction, 2, 2), [0.8, 0.8])


def test_boundaries_within_ignored_pixels_match_but_are_not_counted():
    label = np.array([[1, 1, 255, 255, 255, 0, 0]])
    prediction = np.array([[1, 1, 1, 1, 0, 0, 0]])
    # Both are right wherever there is a label: no predicted outline is wrong. The true one of 1 lies 2 px from the predicted.
    np.testing.assert_array_equal(boundary_f(label, prediction, 2, 1), [1, 0])
    np.testing.assert_array_equal(boundary_f(label, prediction, 2, 2), [1, 1])
    np.testing.assert_array_equal(boundary_f(label, prediction, 2, 0, ignored_is_boundary=False), [1, 1])
    # Whatever is predicted there, even what is no class.
    prediction[0, 2:5] = 1, 99, 0
    np.testing.assert_array_equal(boundary_f(label, prediction, 2, 1), [1, 1])


def test_classes_without_an_outline():
    whole = np.zeros((4, 5), int)
    np.testing.assert_array_equal(boundary_f(whole, whole, 3), [1, NAN, NAN])
    np.testing.assert_array_equal(boundary_f(whole, whole + 2, 3), [0, NAN, 0])
    spot = whole.copy()
    spot[1, 1] = 1
    # A boundary where there is none, and none where there is one.
    np.testing.assert_array_equal(boundary_f(whole, spot, 3, 9), [0, 0, NAN])
    np.testing.assert_array_equal(boundary_f(spot, whole, 3, 1e300), [0, 0, NAN])
    assert np.isnan(boundary_f(np.full((4, 5), 255), spot, 3)).all()


def test_the_tolerance_follows_the_diagonal():
    label = np.zeros((300, 400), int)
    label[:, 200:] = 1
    # 0.75 % of 500 px are 3.75.
    assert boundary_f(label, np.roll(label, 3, 1), 2).tolist() == boundary_f(label, np.roll(label, 3, 1), 2, 3.75).tolist()
    moved = np.zeros_like(label)
    for by, score in ((3, 1), (4, 0)):
        moved[:] = 0
        moved[:, 200 + by :] = 1
        np.testing.assert_array_equal(boundary_f(label, moved, 2), [score, score])


@pytest.mark.parametrize("ignore_label", [255, -1])
def test_what_cannot_be_scored_is_refused(ignore_label):
    label = np.array([[0, 1], [ignore_label, 1]])
    right = {"ignore_label": ignore_label}
    np.testing.assert_array_equal(boundary_f(label, np.array([[0, 1], [0, 1]]), 2, 1, **right), [1, 1])
    with pytest.raises(KerassegError, match="prediction 2 .* out of range"):
        boundary_f(label, np.array([[0, 2], [0, 1]]), 2, **right)
    with pytest.raises(KerassegError, match=r"label has shape \(2, 2\), prediction \(1, 2\): expected \(H, W\), both the same"):
        boundary_f(label, label[:1], 2, **right)
    for tolerance in (-1, np.nan, np.inf):
        with pytest.raises(KerassegError, match="boundary tolerance .*: expected pixels, at least 0, or None"):
            boundary_f(label, label, 2, tolerance, **right)
