import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy, SegmentationSigmoidCrossEntropy, subsample_label

LOSSES = (SegmentationCrossEntropy, SegmentationSigmoidCrossEntropy)


def batch(seed=0, size=(2, 4, 5), classes=3):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, size).astype(np.int32)
    label[generator.random(size) < 0.3] = 255
    return label, generator.normal(0, 2, (*size, classes)).astype(np.float32)


def softmax_terms(label, logits):
    """Loss of each valid pixel, in float64, pixel by pixel."""
    terms = []
    for place in np.ndindex(label.shape):
        if label[place] != 255:
            scores = logits[place].astype(np.float64)
            terms.append((int(label[place]), np.log(np.exp(scores).sum()) - scores[label[place]]))
    return terms


def sigmoid_terms(label, logits, first_class=0):
    terms = []
    for place in np.ndindex(label.shape):
        if label[place] != 255:
            total = 0.0
            for channel, score in enumerate(logits[place].astype(np.float64)):
                probability = 1 / (1 + np.exp(-score))
                total -= np.log(probability if channel + first_class == label[place] else 1 - probability)
            terms.append((int(label[place]), total))
    return terms


def test_two_pixels_worked_by_hand():
    # Logits (ln 1, ln 3), class 1: -ln 3/4; (ln 2, ln 2), class 0: -ln 1/2; the third pixel is ignored.
    logits = np.log(np.array([[[[1, 3], [2, 2], [7, 1]]]], np.float32))
    label = np.array([[[1, 0, 255]]], np.int32)
    total = np.log(4 / 3) + np.log(2)
    np.testing.assert_allclose(SegmentationCrossEntropy()(label, logits), total / 2, rtol=1e-6)
    np.testing.assert_allclose(SegmentationCrossEntropy("sum")(label, logits), total, rtol=1e-6)
    # Class weights 3 and 1: (1 · ln 4/3 + 3 · ln 2) / (1 + 3).
    weighted = SegmentationCrossEntropy(class_weights=(3, 1))(label, logits)
    np.testing.assert_allclose(weighted, (np.log(4 / 3) + 3 * np.log(2)) / 4, rtol=1e-6)


@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 0.25)])
@pytest.mark.parametrize(("loss_class", "terms_of"), [(LOSSES[0], softmax_terms), (LOSSES[1], sigmoid_terms)])
def test_losses_equal_the_formula_pixel_by_pixel(loss_class, terms_of, class_weights):
    label, logits = batch()
    terms = terms_of(label, logits)
    weights = class_weights or (1, 1, 1)
    total, weight = sum(weights[true] * loss for true, loss in terms), sum(weights[true] for true, _ in terms)
    mean, plain = loss_class(class_weights=class_weights), loss_class("sum", class_weights=class_weights)
    np.testing.assert_allclose(mean(label, logits), total / weight, rtol=1e-5)
    np.testing.assert_allclose(plain(label, logits), total, rtol=1e-5)
    np.testing.assert_allclose(mean.totals(label, logits), (total, weight), rtol=1e-5)
    np.testing.assert_allclose(plain.totals(label, logits), (total, 1), rtol=1e-5)
    assert mean.normalized and not plain.normalized


def test_null_background_takes_no_part_and_is_negative_of_all_others():
    label, logits = batch(classes=4)
    loss = SegmentationSigmoidCrossEntropy("sum", null_background=True)
    np.testing.assert_allclose(loss(label, logits), sum(t for _, t in sigmoid_terms(label, logits[..., 1:], 1)), rtol=1e-5)
    # A background pixel with the scores 0, 0 beside background's: -2 ln 1/2.
    np.testing.assert_allclose(loss(np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1, 3))), 2 * np.log(2), rtol=1e-6)


def test_gradient_is_softmax_minus_truth_over_the_valid_count():
    label, logits = batch()
    with tf.GradientTape() as tape:
        variable = tf.Variable(logits)
        loss = SegmentationCrossEntropy()(label, variable)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(3)[np.where(label == 255, 0, label)]
    expected[label == 255] = 0
    np.testing.assert_allclose(tape.gradient(loss, variable), expected / (label != 255).sum(), atol=1e-7)


@pytest.mark.parametrize("normalization", ["valid", "sum"])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_nothing_labelled_gives_zero_and_no_gradient(loss_class, normalization):
    _, logits = batch()
    label = np.full(logits.shape[:3], 255, np.int32)
    variable = tf.Variable(logits)
    loss = loss_class(normalization)
    with tf.GradientTape() as tape:
        value = loss(label, variable)
    assert value == 0
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros_like(logits))
    np.testing.assert_array_equal(loss.totals(label, variable), (0, 0 if normalization == "valid" else 1))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("normalization", ["valid", "sum"])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_fit_and_evaluate_report_the_formula(loss_class, normalization, jit_compile):
    label, image = batch(seed=3)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    model.compile("sgd", loss=loss_class(normalization), jit_compile=jit_compile)
    logits = model.predict(image, verbose=0)
    terms = [loss for _, loss in (softmax_terms if loss_class is LOSSES[0] else sigmoid_terms)(label, logits)]
    expected = np.mean(terms) if normalization == "valid" else np.sum(terms)
    np.testing.assert_allclose(model.evaluate(image, label, batch_size=2, verbose=0), expected, rtol=1e-5)
    history = model.fit(image, label, batch_size=2, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(history[0], expected, rtol=1e-5)
    assert history[1] != history[0]


def test_half_precision_logits_are_computed_in_float32():
    label, logits = batch()
    half = tf.cast(logits * 40, tf.float16)
    for loss_class in LOSSES:
        loss = loss_class("sum")
        assert loss(label, half).dtype == tf.float32
        np.testing.assert_allclose(loss(label, half), loss(label, tf.cast(half, tf.float32)), rtol=0)
        np.testing.assert_allclose(loss.totals(label, half), loss.totals(label, tf.cast(half, tf.float32)), rtol=0)


@pytest.mark.parametrize("value", [3, -1, 254])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_labels_out_of_range_never_train(loss_class, value):
    label, logits = batch()
    label[1, 2, 3] = value
    loss, variable = loss_class(), tf.Variable(logits)
    with pytest.raises(KerassegError, match=rf"label {value} is out of range: expected 0 to 2, or 255 .*first$"):
        loss(label, variable)
    with pytest.raises(tf.errors.InvalidArgumentError, match="label out of range: expected 0 to 2"):
        tf.function(loss)(label, variable)

    @tf.function(jit_compile=True)
    def compiled():
        with tf.GradientTape() as tape:
            value = loss(tf.constant(label), variable)
        return value, tape.gradient(value, variable)

    value, gradient = compiled()
    assert np.isnan(value) and np.isnan(gradient).any()


def test_another_ignore_label_may_be_a_class_number():
    label, logits = batch()
    label[label == 255] = 0
    expected = np.mean([loss for true, loss in softmax_terms(label, logits) if true != 0])
    np.testing.assert_allclose(SegmentationCrossEntropy(ignore_label=0)(label, logits), expected, rtol=1e-5)


def test_config_round_trip_keeps_every_argument():
    loss = SegmentationSigmoidCrossEntropy("sum", 7, (1.0, 2.0), True, name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is SegmentationSigmoidCrossEntropy
    assert again.get_config() == loss.get_config()
    assert (again.normalization, again.ignore_label, again.class_weights) == ("sum", 7, (1.0, 2.0))
    assert again.null_background and again.name == "mine" and again.reduction == "sum"
    plain = keras.losses.deserialize(keras.losses.serialize(SegmentationCrossEntropy()))
    assert plain.normalized and plain.class_weights is None


def test_constructor_and_shape_errors():
    label, logits = batch()
    with pytest.raises(KerassegError, match="unknown normalization 'mean': known: valid, sum"):
        SegmentationCrossEntropy("mean")
    with pytest.raises(KerassegError, match="not negative"):
        SegmentationCrossEntropy(class_weights=(1, -1))
    with pytest.raises(KerassegError, match="2 class_weights for 3 classes"):
        SegmentationCrossEntropy(class_weights=(1, 1))(label, logits)
    with pytest.raises(KerassegError, match=r"label has shape \(2, 4, 5, 1\): expected \(B, H, W\)"):
        SegmentationCrossEntropy()(label[..., None], logits)
    with pytest.raises(KerassegError, match="logits have shape"):
        SegmentationCrossEntropy()(label, logits[..., 0])


GRIDS = [((9, 17), (3, 5)), ((321, 321), (41, 41)), ((5, 5), (5, 5)), ((7, 9), (7, 3)), ((1, 9), (1, 2))]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("full", "small"), GRIDS)
def test_subsample_label_takes_the_pixels_under_the_logits(full, small, known):
    label = np.arange(2 * full[0] * full[1], dtype=np.int32).reshape(2, *full)
    rows, columns = (np.round(np.linspace(0, size - 1, count)).astype(int) for size, count in zip(full, small, strict=True))
    expected = label[:, rows][:, :, columns]
    if known:
        np.testing.assert_array_equal(subsample_label(tf.constant(label), *small), expected)
        return
    signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32)]
    run = tf.function(subsample_label, input_signature=signature)
    np.testing.assert_array_equal(run(label, *small), expected)


@pytest.mark.parametrize(
    ("full", "small"), [((11, 9), (4, 3)), ((9, 9), (3, 1)), ((8, 8), (9, 9)), ((2, 9), (1, 9)), ((5, 5), (1, 1))]
)
def test_subsample_label_refuses_what_is_not_exact(full, small):
    label, logits = np.zeros((1, *full), np.int32), np.zeros((1, *small, 2), np.float32)
    loss = SegmentationCrossEntropy()
    with pytest.raises(KerassegError, match="must be a whole number"):
        loss(label, logits)
    signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((None, None, None, 2), tf.float32)]
    for loss in (SegmentationCrossEntropy(), SegmentationSigmoidCrossEntropy()):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be a whole number"):
            tf.function(loss, input_signature=signature)(label, logits)
        # XLA drops the assertion; the shapes themselves must not fit.
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
            tf.function(loss, input_signature=signature, jit_compile=True)(label, logits)


def test_logits_at_stride_eight_meet_every_eighth_label():
    label, _ = batch(size=(2, 17, 25))
    _, logits = batch(size=(2, 3, 4))
    expected = np.mean([loss for _, loss in softmax_terms(label[:, ::8, ::8], logits)])
    np.testing.assert_allclose(SegmentationCrossEntropy()(label, logits), expected, rtol=1e-5)
