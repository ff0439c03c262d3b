import math
from fractions import Fraction

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


def test_sigmoid_over_all_classes_worked_by_hand():
    """The control of FCN's section 6.1: background is scored and learned like the others."""
    logits = np.array([[[[0, np.log(3), 0], [np.log(3), 0, 0]]]], np.float32)
    # Pixel of class 1: -ln 1/2 - ln 3/4 - ln 1/2; background pixel, its own score ln 3: the same.
    label = np.array([[[1, 0]]], np.int32)
    one = 2 * np.log(2) + np.log(4 / 3)
    np.testing.assert_allclose(SegmentationSigmoidCrossEntropy("sum")(label, logits), 2 * one, rtol=1e-6)
    # Without a learned background, its ln 3 is not looked at: the second pixel is a negative of two scores of 0.
    null = SegmentationSigmoidCrossEntropy("sum", null_background=True)
    np.testing.assert_allclose(null(label, logits), np.log(4 / 3) + np.log(2) + 2 * np.log(2), rtol=1e-6)


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
    loss = SegmentationSigmoidCrossEntropy("sum", 7, (1.0, 2.0), True, 0.5, 1, 3, name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is SegmentationSigmoidCrossEntropy
    assert again.get_config() == loss.get_config()
    assert (again.normalization, again.ignore_label, again.class_weights) == ("sum", 7, (1.0, 2.0))
    assert again.null_background and again.name == "mine" and again.reduction == "sum"
    assert (again.hard_pixel_share, again.label_offset, again.label_margin) == (0.5, 1, 3)
    plain = keras.losses.deserialize(keras.losses.serialize(SegmentationCrossEntropy()))
    assert plain.normalized and plain.class_weights is None


def test_constructor_and_shape_errors():
    label, logits = batch()
    with pytest.raises(KerassegError, match="unknown normalization 'mean': known: valid, sum"):
        SegmentationCrossEntropy("mean")
    with pytest.raises(KerassegError, match="not negative"):
        SegmentationCrossEntropy(class_weights=(1, -1))
    for share in (0, 1.5, -0.1, math.nan):
        with pytest.raises(KerassegError, match="hard_pixel_share=.*: expected 0.000001 to 1"):
            SegmentationCrossEntropy(hard_pixel_share=share)
    for offset in (-1, 0.5):
        for name in ("label_offset", "label_margin"):
            with pytest.raises(KerassegError, match=f"{name}=.*: expected a whole number of pixels, 0 or more"):
                SegmentationCrossEntropy(**{name: offset})
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


@pytest.mark.parametrize("known", [True, False])
def test_the_label_of_deeplab_v1_is_every_eighth_from_the_second_on(known):
    label = np.random.default_rng(0).integers(0, 3, (2, 306, 306)).astype(np.int32)
    if known:
        small = subsample_label(tf.constant(label), 39, 39, offset=1)
    else:
        signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32)]
        small = tf.function(lambda *inputs: subsample_label(*inputs, 1), input_signature=signature)(label, 39, 39)
    np.testing.assert_array_equal(small, label[:, 1::8, 1::8])
    with pytest.raises(KerassegError, match="label of 304 pixels cannot be subsampled to logits of 39"):
        subsample_label(tf.constant(label), 39, 39, offset=2)
    # Of the logits' size once cut.
    np.testing.assert_array_equal(subsample_label(tf.constant(label), 305, 305, offset=1), label[:, 1:, 1:])


def test_a_loss_with_an_offset_cuts_before_it_subsamples():
    label, _ = batch(size=(2, 18, 26))
    _, logits = batch(size=(2, 3, 4))
    loss = SegmentationCrossEntropy(label_offset=1)
    small = label[:, 1::8, 1::8]
    np.testing.assert_allclose(loss(label, logits), np.mean([term for _, term in softmax_terms(small, logits)]), rtol=1e-5)
    assert loss.weight(label, (3, 4)) == np.sum(small != 255)


# Share of the valid pixels, and how many of 40 that is: ⌈0.07 · 100⌉ is 7, though 0.07 · 100 > 7 in floats.
SHARES = [(0.25, 40, 10), (0.26, 40, 11), (0.07, 100, 7), (0.001, 40, 1), (1 / 3, 9, 3), (0.999999, 40, 40), (0.5, 0, 0)]


@pytest.mark.parametrize(("share", "valid", "hard"), SHARES)
def test_hard_pixels_are_the_rounded_up_share_of_the_valid_ones(share, valid, hard):
    label = np.full((1, 10, 12), 255, np.int32)
    label.reshape(-1)[5 : 5 + valid] = 0
    loss = SegmentationCrossEntropy(hard_pixel_share=share)
    assert loss.weight(label) == hard
    assert loss.totals(label, np.zeros((1, 10, 12, 2), np.float32))[1] == hard


def hard_terms(label, logits, terms_of, share, class_weights):
    """By image: the losses that count, their weights on, largest first; sorting in float64."""
    for image, scores in zip(label, logits, strict=True):
        terms = [class_weights[true] * term for true, term in terms_of(image[None], scores[None]) if class_weights[true]]
        yield sorted(terms, reverse=True)[: math.ceil(Fraction(str(share)) * len(terms))]


@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 0.25), (1.0, 0.0, 3.0)])
@pytest.mark.parametrize(("loss_class", "terms_of"), [(LOSSES[0], softmax_terms), (LOSSES[1], sigmoid_terms)])
def test_hard_pixels_are_each_images_own(loss_class, terms_of, class_weights):
    label, logits = batch(seed=1, size=(3, 7, 6))
    label[1, 2:] = 255
    # The first image is all harder than the others: it must not take their share.
    logits[0] *= 5
    parts = list(hard_terms(label, logits, terms_of, 0.3, class_weights or (1, 1, 1)))
    assert len({len(part) for part in parts}) > 1
    total, count = sum(map(sum, parts)), sum(map(len, parts))
    mean, plain = (loss_class(n, class_weights=class_weights, hard_pixel_share=0.3) for n in ("valid", "sum"))
    np.testing.assert_allclose(mean.totals(label, logits), (total, count), rtol=1e-5)
    np.testing.assert_allclose((mean(label, logits), plain(label, logits)), (total / count, total), rtol=1e-5)
    assert mean.weight(label) == count and plain.weight(label) == 1
    # One image at a time, as replicas and accumulation see them: the same sums.
    single = [mean.totals(label[i : i + 1], logits[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(np.sum(single, axis=0), (total, count), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_gradient_flows_through_the_hard_pixels_alone(jit_compile):
    label, logits = batch(size=(2, 5, 6))
    variable, loss = tf.Variable(logits), SegmentationCrossEntropy(hard_pixel_share=0.25)

    @tf.function(jit_compile=jit_compile)
    def gradient():
        with tf.GradientTape() as tape:
            value = loss(tf.constant(label), variable)
        return tape.gradient(value, variable)

    received, chosen = gradient().numpy(), []
    exponentials = np.exp(logits.astype(np.float64))
    full = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(3)[np.where(label == 255, 0, label)]
    for image, scores in zip(label, logits, strict=True):
        valid = [place for place in np.ndindex(image.shape) if image[place] != 255]
        losses = dict(zip(valid, (term for _, term in softmax_terms(image[None], scores[None])), strict=True))
        chosen.append(sorted(valid, key=lambda place, losses=losses: -losses[place])[: math.ceil(len(valid) / 4)])
    count = sum(map(len, chosen))
    for index, places in enumerate(chosen):
        for place in np.ndindex(label.shape[1:]):
            expected = full[(index, *place)] / count if place in places else 0
            np.testing.assert_allclose(received[(index, *place)], expected, atol=1e-7)


def test_of_equal_losses_the_first_in_reading_order_count():
    label = np.array([[[255, 0, 0], [0, 255, 0]]], np.int32)
    variable = tf.Variable(np.zeros((1, 2, 3, 2), np.float32))
    with tf.GradientTape() as tape:
        loss = SegmentationCrossEntropy("sum", hard_pixel_share=0.5)(label, variable)
    touched = np.any(tape.gradient(loss, variable)[0] != 0, axis=-1)
    assert touched.tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_hard_pixels_under_fit(jit_compile):
    label, image = batch(seed=3)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    model.compile("sgd", loss=SegmentationCrossEntropy(hard_pixel_share=0.5), jit_compile=jit_compile)
    parts = list(hard_terms(label, model.predict(image, verbose=0), softmax_terms, 0.5, (1, 1, 1)))
    expected = sum(map(sum, parts)) / sum(map(len, parts))
    np.testing.assert_allclose(model.fit(image, label, batch_size=2, verbose=0).history["loss"], [expected], rtol=1e-5)


def test_hard_pixels_are_chosen_in_float32():
    """In float16 the two losses would be equal, and the first would count."""
    scores = np.array([[[[0.0, 10.0], [0.0, 10.0 + 2**-6]]]], np.float16)
    label, loss = np.zeros((1, 1, 2), np.int32), SegmentationCrossEntropy("sum", hard_pixel_share=0.5)
    value = loss(label, tf.constant(scores))
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, np.log1p(np.exp(10 + 2**-6)), rtol=1e-6)


def test_what_is_not_a_number_is_not_passed_over_as_easy():
    label, logits = batch()
    logits[0, 0, 0], label[0, 0, 0] = math.nan, 0
    assert np.isnan(SegmentationCrossEntropy(hard_pixel_share=0.1)(label, logits))
    logits[0, 0, 0], label[0, 0, 0] = 0, 7
    loss = SegmentationCrossEntropy(hard_pixel_share=0.1)
    assert np.isnan(tf.function(lambda: loss(tf.constant(label), tf.constant(logits)), jit_compile=True)())


def test_the_weight_of_a_step_is_known_from_labels_of_any_size():
    label, _ = batch(size=(2, 17, 25))
    small = label[:, ::8, ::8]
    weights = (0.5, 2.0, 0.25)
    valid = small[small != 255]
    assert SegmentationCrossEntropy().weight(label, (3, 4)) == len(valid)
    assert SegmentationCrossEntropy().weight(label) == np.sum(label != 255)
    weighted = SegmentationCrossEntropy(class_weights=weights).weight(label, (3, 4))
    np.testing.assert_allclose(weighted, np.sum(np.array(weights)[valid]), rtol=1e-6)
    hard = SegmentationCrossEntropy(hard_pixel_share=0.5).weight(label, (3, 4))
    assert hard == sum(math.ceil(np.sum(image != 255) / 2) for image in small)
