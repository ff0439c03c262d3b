"""The scores of counts: of classes left out, of groups, of many images at once. Those of one matrix: `test_metrics.py`."""

from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.labels import LABELS
from kerasseg.metrics import (
    SCORES,
    SegmentationMetrics,
    class_counts,
    confusion_matrix,
    count_pixels,
    grouped,
    scores,
    scores_of_counts,
)

# Nine pixels, one ignored. Class 3 is predicted on that one only, so it is absent; class 4 is predicted once and never true.
TRUTH = np.array([[0, 0, 1], [0, 1, 255], [2, 2, 1]])
PREDICTION = np.array([[0, 1, 1], [0, 1, 3], [4, 2, 1]])
MATRIX = np.array([[2, 1, 0, 0, 0], [0, 3, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
IOU = [2 / 3, 3 / 4, 1 / 2, np.nan, 0]
ACCURACY = [2 / 3, 1, 1 / 2, np.nan, np.nan]
# By what is excluded: mean accuracy, mean IoU.
MEANS = {
    (): (Fraction(13, 18), Fraction(23, 48)),
    (4,): (Fraction(13, 18), Fraction(23, 36)),
    (0,): (Fraction(3, 4), Fraction(5, 12)),
    (0, 4): (Fraction(3, 4), Fraction(5, 8)),
    (3,): (Fraction(13, 18), Fraction(23, 48)),
    (0, 1, 2): (None, Fraction(0)),
}


def random_maps(seed, classes=9, size=(3, 40, 31)):
    """Some pixels to ignore; classes 2 and 7 nowhere, class 5 predicted only, class 3 true only."""
    generator = np.random.default_rng(seed)
    label, prediction = generator.integers(0, classes, size), generator.integers(0, classes, size)
    prediction = np.where(generator.random(size) < 0.5, label, prediction)
    for absent, instead in ((2, 1), (7, 0)):
        label[label == absent], prediction[prediction == absent] = instead, instead
    label[label == 5], prediction[prediction == 3] = 4, 4
    label[generator.random(size) < 0.2] = 255
    return label, prediction


@pytest.mark.parametrize("exclude", MEANS)
def test_three_by_three_by_hand(exclude):
    np.testing.assert_array_equal(confusion_matrix(TRUTH, PREDICTION, 5), MATRIX)
    np.testing.assert_array_equal(count_pixels(TRUTH, PREDICTION, 5)[0], MATRIX)
    mean_accuracy, mean_iou = (np.nan if value is None else float(value) for value in MEANS[exclude])
    found = scores(MATRIX, exclude=exclude)
    expected = {"pixel_accuracy": 6 / 8, "mean_accuracy": mean_accuracy, "mean_iou": mean_iou, "frequency_weighted_iou": 21 / 32}
    assert {name: found[name] for name in SCORES} == pytest.approx(expected, rel=1e-15, nan_ok=True)
    np.testing.assert_array_equal(found["per_class_iou"], IOU)
    np.testing.assert_array_equal(found["per_class_accuracy"], ACCURACY)
    metric = SegmentationMetrics(5, exclude=exclude)
    metric.update_state(TRUTH[None], PREDICTION[None])
    assert {name: float(value) for name, value in metric.result().items()} == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert SegmentationMetrics.from_config(metric.get_config()).exclude == exclude


def test_three_by_three_in_groups():
    # Pixels taken for another class of their group are right.
    np.testing.assert_array_equal(grouped(MATRIX, [[0], [1, 2], [3, 4]]), [[2, 1, 0], [0, 4, 1], [0, 0, 0]])
    np.testing.assert_array_equal(grouped(MATRIX, [(4, 2), (3,), (1, 0)]), [[2, 0, 0], [0, 0, 0], [0, 0, 6]])
    found = scores(grouped(MATRIX, [[0], [1, 2], [3, 4]]))
    np.testing.assert_allclose(found["per_class_iou"], [2 / 3, 4 / 6, 0])
    assert found["pixel_accuracy"] == 6 / 8 and grouped(MATRIX, [[0, 1, 2, 3, 4]]).tolist() == [[8]]


@pytest.mark.parametrize("seed", range(3))
def test_grouping_pixels_first_gives_the_same(seed):
    label, prediction = random_maps(seed, 19)
    table = LABELS["cityscapes"]
    groups = [[table.classes.index(name) for name in names] for _, names in table.groups]
    of_class = np.full(256, 255)
    for number, group in enumerate(groups):
        of_class[group] = number
    expected = confusion_matrix(of_class[label], of_class[prediction], len(groups))
    np.testing.assert_array_equal(grouped(confusion_matrix(label, prediction, 19), groups), expected)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_sklearn_to_the_last_digit(seed):
    label, prediction = random_maps(seed)
    matrix = confusion_matrix(label, prediction, 9)
    kept = label != 255
    true, predicted = label[kept], prediction[kept]
    np.testing.assert_array_equal(matrix, sklearn.metrics.confusion_matrix(true, predicted, labels=range(9)))
    found, present = scores(matrix), [0, 1, 3, 4, 5, 6, 8]
    assert found["pixel_accuracy"] == sklearn.metrics.accuracy_score(true, predicted)
    iou = sklearn.metrics.jaccard_score(true, predicted, labels=present, average=None)
    np.testing.assert_array_equal(found["per_class_iou"][present], iou)
    assert np.isnan(found["per_class_iou"][[2, 7]]).all() and iou[2] == iou[4] == 0
    assert found["mean_iou"] == pytest.approx(iou.mean(), rel=1e-15)
    recall = sklearn.metrics.recall_score(true, predicted, labels=range(9), average=None, zero_division=np.nan)
    np.testing.assert_array_equal(found["per_class_accuracy"], recall)
    assert found["mean_accuracy"] == pytest.approx(np.nanmean(recall), rel=1e-15)
    weighted = sklearn.metrics.jaccard_score(true, predicted, labels=present, average="weighted")
    assert found["frequency_weighted_iou"] == pytest.approx(weighted, rel=1e-14)


def test_counts_of_images_add_up_and_score_as_their_matrices():
    label, prediction = random_maps(0)
    label[1] = 255
    matrices = [confusion_matrix(*pair, 9) for pair in zip(label, prediction, strict=True)]
    counts = np.stack([class_counts(matrix) for matrix in matrices])
    assert counts.dtype == np.int64 and counts.shape == (3, 3, 9)
    whole = confusion_matrix(label, prediction, 9)
    np.testing.assert_array_equal(counts.sum(0), class_counts(whole))
    np.testing.assert_array_equal(class_counts(MATRIX), [[2, 3, 1, 0, 0], [3, 3, 2, 0, 0], [2, 4, 1, 0, 1]])
    found = scores_of_counts(np.stack([counts, 3 * counts]), exclude=[5])
    for place in np.ndindex(2, 3):
        expected = scores(matrices[place[1]], exclude=[5])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][place], value, rtol=1e-15, err_msg=name)
    assert found["mean_iou"].shape == (2, 3) and found["per_class_iou"].shape == (2, 3, 9)
    assert np.isnan(found["pixel_accuracy"][:, 1]).all() and not np.isnan(found["pixel_accuracy"][:, [0, 2]]).any()


def test_one_pass_over_all_pixels_is_what_the_stream_of_batches_gives():
    generator = np.random.default_rng(4)
    label = random_maps(1, size=(7, 11, 13))[0].astype(np.int32)
    logits = generator.normal(size=(7, 11, 13, 9)).astype(np.float32)
    metric, step = SegmentationMetrics(9, exclude=[3]), tf.function(count_pixels)
    update = tf.function(metric.update_state, reduce_retracing=True)
    added = np.zeros((9, 9), np.int64)
    for start in range(0, 7, 2):
        update(label[start : start + 2], logits[start : start + 2])
        added += step(label[start : start + 2], logits[start : start + 2].argmax(-1), 9)[0]
    stored = confusion_matrix(label, logits.argmax(-1), 9)
    np.testing.assert_array_equal(metric.matrix(), stored)
    np.testing.assert_array_equal(added, stored)
    found, expected = metric.result(), scores(stored, exclude=[3])
    assert {name: float(found[name]) for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES}, rel=1e-6)


def test_counts_beyond_two_to_the_53_lose_nothing():
    large = 2**60 + 1
    matrix = np.array([[large, 0, 0], [0, 2**33, 2**32], [1, 0, 2**53 + 1]])
    counts = class_counts(matrix)
    assert counts.tolist() == [[large, 2**33, 2**53 + 1], [large, 2**33 + 2**32, 2**53 + 2], [large + 1, 2**33, 2**53 + 1 + 2**32]]
    assert grouped(matrix, [[0, 2], [1]]).tolist() == [[large + 1 + 2**53 + 1, 0], [2**32, 2**33]]
    found = scores(matrix)
    assert found["per_class_iou"][2] == pytest.approx(float(Fraction(2**53 + 1, 2**53 + 2 + 2**32)), rel=1e-15)
    assert found["per_class_accuracy"][1] == 2 / 3


@pytest.mark.parametrize("wrong", [[[0, 1]], [[0], [1], [1, 2]], [[0, 1, 2], [3]], [[0, 1], [-1]], []])
def test_groups_hold_every_class_once(wrong):
    with pytest.raises(KerassegError, match="groups hold the classes .*: expected each of 0 to 2 in one group"):
        grouped(np.eye(3, dtype=int), wrong)


def test_what_cannot_be_scored_is_refused():
    for exclude, message in (
        ([3], "class 3 to exclude: expected one of 0 to 2"),
        ([-1], "class -1 to"),
        ([2, 0, 1], "all 3 classes"),
    ):
        with pytest.raises(KerassegError, match=message):
            scores(np.eye(3), exclude=exclude)
        with pytest.raises(KerassegError, match=message):
            SegmentationMetrics(3, exclude=exclude)
    for shape in ((3,), (2, 4), (5, 2, 3)):
        with pytest.raises(KerassegError, match=r"class counts have shape .*: expected \(…, 3, C\)"):
            scores_of_counts(np.zeros(shape, int))
    for matrix in ([[0.5, 0.5], [0, 1]], [[np.nan, 1], [0, 1]], [[-1, 0], [0, 1]]):
        with pytest.raises(KerassegError, match="other than whole numbers from 0: expected counts of pixels"):
            scores(matrix)
    assert scores(np.array([[3.0, 1], [0, 4]]))["pixel_accuracy"] == 7 / 8
    for function in (class_counts, lambda matrix: grouped(matrix, [[0], [1]])):
        with pytest.raises(KerassegError, match=r"confusion matrix has shape \(2, 3\): expected \(C, C\)"):
            function(np.zeros((2, 3), int))
