import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.metrics import SCORES, SegmentationMetrics, confusion_matrix, count_pixels, scores

# Worked by hand:     truth 0: 4 right, 1 as class 1
#                     truth 1: 2 as class 0, 3 right
#                     truth 2: 1 as class 1, 1 right
HAND = np.array([[4, 1, 0], [2, 3, 0], [0, 1, 1]])
HAND_SCORES = {
    "pixel_accuracy": Fraction(8, 12),
    "mean_accuracy": (Fraction(4, 5) + Fraction(3, 5) + Fraction(1, 2)) / 3,
    "mean_iou": (Fraction(4, 7) + Fraction(3, 7) + Fraction(1, 2)) / 3,
    "frequency_weighted_iou": (5 * Fraction(4, 7) + 5 * Fraction(3, 7) + 2 * Fraction(1, 2)) / 12,
}


def literal_scores(matrix):
    """The formulas of FCN §5, sum by sum, in exact fractions."""
    n, classes = [[int(value) for value in row] for row in matrix], range(len(matrix))
    t = [sum(n[i]) for i in classes]
    iou, accuracy = {}, {}
    for i in classes:
        union = t[i] + sum(n[j][i] for j in classes) - n[i][i]
        if t[i]:
            accuracy[i] = Fraction(n[i][i], t[i])
        if union:
            iou[i] = Fraction(n[i][i], union)
    return {
        "pixel_accuracy": Fraction(sum(n[i][i] for i in classes), sum(t)),
        "mean_accuracy": sum(accuracy.values()) / len(accuracy),
        "mean_iou": sum(iou.values()) / len(iou),
        "frequency_weighted_iou": sum(t[i] * iou[i] for i in classes if t[i]) / sum(t),
    }


def random_pixels(seed=0, size=(2, 13, 17), classes=5):
    generator = np.random.default_rng(seed)
    label, prediction = generator.integers(0, classes, size), generator.integers(0, classes, size)
    label[generator.random(size) < 0.2] = 255
    return label.astype(np.int32), prediction.astype(np.int32)


def metric_with(matrix):
    metric = SegmentationMetrics(len(matrix))
    metric.counts.assign(matrix)
    return metric


def result_of(metric):
    return {name: float(value) for name, value in metric.result().items()}


def test_scores_of_a_matrix_worked_by_hand():
    found = scores(HAND)
    assert set(found) == {*SCORES, "per_class_iou", "per_class_accuracy"}
    for name, expected in HAND_SCORES.items():
        assert isinstance(found[name], float)
        assert found[name] == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(found["per_class_iou"], [4 / 7, 3 / 7, 1 / 2])
    np.testing.assert_allclose(found["per_class_accuracy"], [4 / 5, 3 / 5, 1 / 2])
    assert result_of(metric_with(HAND)) == pytest.approx({name: float(value) for name, value in HAND_SCORES.items()})


def test_absent_classes_are_left_out_as_the_authors_do():
    # Class 2 occurs nowhere, class 3 is predicted once but never true.
    matrix = np.array([[3, 0, 0, 1], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = scores(matrix)
    np.testing.assert_array_equal(found["per_class_iou"], [3 / 5, 2 / 3, np.nan, 0])
    np.testing.assert_array_equal(found["per_class_accuracy"], [3 / 4, 2 / 3, np.nan, np.nan])
    assert found["mean_iou"] == pytest.approx((3 / 5 + 2 / 3 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["frequency_weighted_iou"] == pytest.approx((4 * 3 / 5 + 3 * 2 / 3) / 7)


@pytest.mark.parametrize("seed", range(5))
def test_scores_and_metric_equal_the_literal_formulas(seed):
    generator = np.random.default_rng(seed)
    matrix = generator.integers(0, 1000, (7, 7))
    matrix[2], matrix[:, 4] = 0, 0
    matrix[5] = matrix[:, 5] = 0
    expected = {name: float(value) for name, value in literal_scores(matrix).items()}
    found = scores(matrix)
    assert {name: found[name] for name in SCORES} == pytest.approx(expected, rel=1e-12)
    assert result_of(metric_with(matrix)) == pytest.approx(expected, rel=1e-6)


def test_nothing_counted_is_nan_without_warnings():
    found = scores(np.zeros((3, 3), np.int64))
    assert all(np.isnan(found[name]) for name in SCORES) and np.isnan(found["per_class_iou"]).all()
    assert all(np.isnan(value) for value in result_of(SegmentationMetrics(3)).values())


def test_confusion_matrix_equals_sklearn_and_counts_every_pixel():
    label, prediction = random_pixels()
    kept = label != 255
    expected = sklearn.metrics.confusion_matrix(label[kept], prediction[kept], labels=range(5))
    found = confusion_matrix(label, prediction, 5)
    assert found.dtype == np.int64 and found.sum() == kept.sum()
    np.testing.assert_array_equal(found, expected)
    for jit_compile in (False, True):
        counts, rejected = tf.function(count_pixels, jit_compile=jit_compile)(label, prediction, 5)
        assert counts.dtype == tf.int64 and rejected == 0
        np.testing.assert_array_equal(counts, expected)


def test_small_integers_do_not_wrap():
    # 20 · 21 + 20 = 440 does not fit into the uint8 of a PNG.
    label = np.full((1, 4), 20, np.uint8)
    np.testing.assert_array_equal(np.argwhere(confusion_matrix(label, label, 21)), [[20, 20]])
    np.testing.assert_array_equal(np.argwhere(count_pixels(label, label, 21)[0].numpy()), [[20, 20]])


@pytest.mark.parametrize(
    ("where", "value"), [("label", 5), ("label", -1), ("prediction", 5), ("prediction", -1), ("prediction", 255)]
)
def test_pixels_out_of_range_are_never_dropped(where, value):
    label, prediction = random_pixels()
    label[0, 0, 0] = 1
    (label if where == "label" else prediction)[0, 0, 0] = value
    with pytest.raises(KerassegError, match=rf"^{where} {value} \(1 pixels\) is out of range: expected 0 to 4, or label 255"):
        confusion_matrix(label, prediction, 5)
    metric = SegmentationMetrics(5)
    with pytest.raises(KerassegError, match="out of range: expected 0 to 4.* pixels: 1"):
        metric.update_state(label, prediction)
    assert metric.matrix().sum() == 0
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        tf.function(metric.update_state)(label, prediction)
    metric.reset_state()
    tf.function(metric.update_state, jit_compile=True)(tf.constant(label), tf.constant(prediction))
    assert all(np.isnan(value) for value in result_of(metric).values())
    with pytest.raises(KerassegError, match="pixels: 1"):
        metric.matrix()
    metric.reset_state()
    assert metric.matrix().sum() == 0


def test_ignored_pixels_may_have_any_prediction():
    label, prediction = np.array([[255, 1]]), np.array([[99, 1]])
    np.testing.assert_array_equal(confusion_matrix(label, prediction, 2), [[0, 0], [0, 1]])
    counts, rejected = count_pixels(label, prediction, 2)
    np.testing.assert_array_equal(counts, [[0, 0], [0, 1]])
    assert rejected == 0
    np.testing.assert_array_equal(confusion_matrix([0, 1], [0, 1], 2, ignore_label=0), [[0, 0], [0, 1]])


def test_metric_accumulates_logits_and_classes():
    metric = SegmentationMetrics(5)
    label, prediction = random_pixels()
    logits = np.random.default_rng(1).random((*prediction.shape, 5)).astype(np.float32)
    np.put_along_axis(logits, prediction[..., None], 2, axis=-1)
    metric.update_state(label, logits)
    tf.function(metric.update_state)(label, prediction)
    expected = 2 * confusion_matrix(label, prediction, 5)
    np.testing.assert_array_equal(metric.matrix(), expected)
    assert metric.matrix().dtype == np.int64
    metric.reset_state()
    assert metric.matrix().sum() == 0


def test_counts_are_exact_beyond_two_to_the_31():
    large = 2**53 + 1
    metric = metric_with(np.array([[large, 0], [2**33, 2**32]]))
    metric.update_state(np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1), np.int32))
    np.testing.assert_array_equal(metric.matrix(), [[large + 1, 0], [2**33, 2**32]])
    assert scores(metric.matrix())["per_class_accuracy"][1] == pytest.approx(1 / 3, rel=1e-12)
    assert result_of(metric_with(HAND * 2**32)) == pytest.approx({name: float(value) for name, value in HAND_SCORES.items()})


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_and_evaluate_report_all_four_scores(jit_compile):
    label, _ = random_pixels(size=(3, 8, 9))
    image = np.random.default_rng(2).random((3, 8, 9, 3)).astype(np.float32)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(5, 1)(inputs))
    model.compile(
        "sgd", loss=lambda label, logits: keras.ops.mean(logits), metrics=[SegmentationMetrics(5)], jit_compile=jit_compile
    )
    expected = scores(confusion_matrix(label, model.predict(image, verbose=0).argmax(-1), 5))
    report = model.evaluate(image, label, batch_size=2, verbose=0, return_dict=True)
    assert {name: report[name] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES}, rel=1e-6)
    history = model.fit(image, label, validation_data=(image, label), batch_size=2, verbose=0).history
    assert {*SCORES, *(f"val_{name}" for name in SCORES)} <= set(history)


def test_metric_errors():
    label, prediction = random_pixels()
    metric = SegmentationMetrics(5)
    with pytest.raises(KerassegError, match="takes no sample_weight"):
        metric.update_state(label, prediction, sample_weight=np.ones(2))
    with pytest.raises(KerassegError, match=r"expected logits \(B, H, W, 5\)"):
        metric.update_state(label, np.zeros((*label.shape, 4), np.float32))
    with pytest.raises(KerassegError, match="expected the same"):
        metric.update_state(label, prediction[:, :-1])
    with pytest.raises(KerassegError, match="expected the same"):
        confusion_matrix(label, prediction[:, :-1], 5)
    with pytest.raises(KerassegError, match=r"expected \(C, C\)"):
        scores(np.zeros((2, 3)))


def test_config_round_trip_keeps_every_argument():
    metric = SegmentationMetrics(7, 9, name="mine")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is SegmentationMetrics
    assert (again.num_classes, again.ignore_label, again.name) == (7, 9, "mine")


MIRRORED = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.metrics import SegmentationMetrics, confusion_matrix, scores
generator = np.random.default_rng(0)
label = generator.integers(0, 3, (4, 5, 6)).astype(np.int32)
label[1] = 255
image = generator.random((4, 5, 6, 3)).astype(np.float32)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    metric = SegmentationMetrics(3)
    inputs = keras.Input((5, 6, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    model.compile("sgd", loss=SegmentationCrossEntropy(), metrics=[metric])
logits = model.predict(image, verbose=0, batch_size=4)
expected = confusion_matrix(label, logits.argmax(-1), 3)
report = model.evaluate(image, label, batch_size=4, verbose=0, return_dict=True)
np.testing.assert_array_equal(metric.matrix(), expected)
np.testing.assert_allclose(report["mean_iou"], scores(expected)["mean_iou"], rtol=1e-6)
# Keras' own loop: the mean of the replicas' means.
exponentials = np.exp(logits.astype(np.float64))
safe = np.where(label == 255, 0, label)
losses = -np.log(np.take_along_axis(exponentials, safe[..., None], -1)[..., 0] / exponentials.sum(-1))
halves = [losses[part][label[part] != 255].mean() for part in (slice(0, 2), slice(2, 4))]
kernel = model.layers[1].kernel
before = keras.ops.convert_to_numpy(kernel)
model.fit(image, label, batch_size=4, verbose=0, shuffle=False)
moved = keras.ops.convert_to_numpy(kernel) - before
truth = np.eye(3)[safe]
slope = (exponentials / exponentials.sum(-1, keepdims=True) - truth) * (label != 255)[..., None]
gradients = [np.einsum("bhwi,bhwc->ic", image[p], slope[p]) / (label[p] != 255).sum() for p in (slice(0, 2), slice(2, 4))]
np.testing.assert_allclose(moved[0, 0], -0.01 * np.mean(gradients, 0), atol=1e-6)
np.testing.assert_allclose(report["loss"], np.mean(halves), rtol=1e-5)
print("SUMMED OVER REPLICAS")
"""


def test_replicas_sum_their_matrices():
    # A process of its own: logical devices can only be made before TensorFlow starts.
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", MIRRORED], env=environment, capture_output=True, text=True, timeout=300)
    assert "SUMMED OVER REPLICAS" in done.stdout, done.stdout + done.stderr


def test_heads_report_side_by_side_by_their_prefix():
    image = keras.Input((4, 4, 3))
    heads = {"semantic": 5, "geometric": 3}
    model = keras.Model(image, {name: keras.layers.Conv2D(classes, 1, name=name)(image) for name, classes in heads.items()})
    metrics = {name: [SegmentationMetrics(classes, prefix=f"{name}_")] for name, classes in heads.items()}
    model.compile(loss={name: SegmentationCrossEntropy() for name in heads}, metrics=metrics)
    generator = np.random.default_rng(0)
    images = generator.random((6, 4, 4, 3)).astype("float32")
    labels = {name: generator.integers(0, classes, (6, 4, 4)).astype("int32") for name, classes in heads.items()}
    found = model.evaluate(images, labels, batch_size=3, return_dict=True, verbose=0)
    for name, logits in model.predict(images, verbose=0).items():
        expected = scores(confusion_matrix(labels[name], logits.argmax(-1), heads[name]))
        for score in SCORES:
            np.testing.assert_allclose(found[f"{name}_{score}"], expected[score], rtol=1e-6)
    again = SegmentationMetrics.from_config(metrics["semantic"][0].get_config())
    assert again.prefix == "semantic_" and again.num_classes == 5
