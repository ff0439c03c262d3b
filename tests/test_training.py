import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_training import SIZE, examples, feed_of, make_trainer, network, softmax_gradient, train

from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, Trainer
from kerasseg.training.trainer import NonFiniteLossError

# The step


@pytest.mark.parametrize("normalization", ["valid", "sum"])
def test_a_step_is_the_gradient_of_the_normalised_loss(normalization):
    model, (images, labels) = network(), examples(4)
    before = model.get_weights()
    loss, gradients = softmax_gradient(before, images, labels, normalization)
    rate = 0.5 if normalization == "valid" else 0.01
    (step,) = train(model, rate, images, labels, 4, 1, normalization)
    assert step.step == 1 and step.loss == pytest.approx(loss, rel=1e-6) and step.learning_rate == pytest.approx(rate)
    for weight, old, gradient in zip(model.get_weights(), before, gradients, strict=True):
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(weight, old - rate * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalization", ["valid", "sum"])
@pytest.mark.parametrize("regularizer", [None, keras.regularizers.L2(0.1)], ids=["plain", "regularised"])
def test_accumulation_equals_a_large_batch(normalization, regularizer):
    """20 images one by one are one batch of 20, to 1e-6."""
    images, labels = examples(20)
    labels[8:] = examples(12, seed=1)[1] % 3
    rate, results = (0.5 if normalization == "valid" else 0.002), []
    for batch, accumulation in ((20, 1), (1, 20)):
        model = network(regularizer=regularizer)
        start = model.get_weights()
        steps = train(model, rate, images, labels, batch, 3, normalization, momentum=0.9, accumulation=accumulation)
        results.append((model.get_weights(), [step.loss for step in steps]))
    assert all(np.abs(new - old).max() > 1e-2 for new, old in zip(results[0][0], start, strict=True))
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-6)
    for one, other in zip(*(weights for weights, _ in results), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6 * np.abs(one).max())


def test_several_outputs_are_accumulated_alike():
    """With class weights, hard pixels, factors and a regulariser: each output has its own normaliser, known beforehand."""
    images, labels = examples(8)
    truth = {"semantic": labels, "geometric": examples(8, seed=7)[1]}
    results = []
    for batch, accumulation, steps_per_call in ((8, 1, 1), (4, 2, 2), (1, 8, 1)):
        model = network(("semantic", "geometric"), keras.regularizers.L2(0.1))
        loss = {
            "semantic": SegmentationCrossEntropy(class_weights=(1, 2, 0.5)),
            "geometric": SegmentationCrossEntropy(hard_pixel_share=0.4),
        }
        arguments = {"loss": loss, "loss_weights": {"geometric": 0.3}, "clip_norm": 0.5, "momentum": 0.9}
        steps = train(model, 0.5, images, truth, batch, 3, accumulation=accumulation, steps_per_call=steps_per_call, **arguments)
        results.append((model.get_weights(), [step.loss for step in steps]))
    for weights, losses in results[1:]:
        np.testing.assert_allclose(losses, results[0][1], rtol=1e-6)
        for one, other in zip(results[0][0], weights, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-6 * np.abs(one).max())


def test_a_step_that_broke_off_leaves_no_gradient_behind():
    images, labels = examples(4)
    broken = labels.copy()
    broken[1] = 7
    fresh, model = network(), network()
    trainer = make_trainer(model, 0.5, accumulation=2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="label out of range"):
        list(trainer.train(feed_of(images, broken, 1), 1))
    (step,) = trainer.train(feed_of(images, labels, 1), 1)
    assert [step] == train(fresh, 0.5, images, labels, 1, 1, accumulation=2)


def test_a_batch_without_a_labelled_pixel_changes_nothing():
    model, (images, labels) = network(), examples(2)
    before = model.get_weights()
    (step,) = train(model, 1.0, images, np.full_like(labels, 255), 2, 1)
    assert step.loss == 0.0
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_heads_have_their_losses_and_weights():
    heads = ("semantic", "geometric")
    model, (images, semantic) = network(heads), examples(4)
    geometric = examples(4, seed=7)[1]
    before = {head: model.get_layer(head).get_weights() for head in heads}
    losses = {"geometric": SegmentationCrossEntropy("sum"), "semantic": SegmentationCrossEntropy()}
    (step,) = train(
        model, 0.2, images, {"semantic": semantic, "geometric": geometric}, 4, 1, loss=losses, loss_weights={"geometric": 0.01}
    )
    expected = 0.0
    for head, labels, normalization, weight in (("semantic", semantic, "valid", 1.0), ("geometric", geometric, "sum", 0.01)):
        loss, gradients = softmax_gradient(before[head], images, labels, normalization)
        expected += weight * loss
        for new, old, gradient in zip(model.get_layer(head).get_weights(), before[head], gradients, strict=True):
            np.testing.assert_allclose(new, old - 0.2 * weight * gradient, rtol=1e-5, atol=1e-6)
    assert step.loss == pytest.approx(expected, rel=1e-6)
    with pytest.raises(KerassegError, match="give one for each"):
        train(network(heads), 0.2, images, {}, 4, 1, loss={"semantic": SegmentationCrossEntropy()})


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (1, 4)])
def test_a_regulariser_counts_once(batch, accumulation):
    model, (images, labels) = network(regularizer=keras.regularizers.L2(0.3)), examples(4)
    before = model.get_weights()
    loss, gradients = softmax_gradient(before, images, labels, "valid")
    (step,) = train(model, 0.1, images, labels, batch, 1, accumulation=accumulation)
    assert step.loss == pytest.approx(loss + 0.3 * float((before[0].astype(np.float64) ** 2).sum()), rel=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], before[0] - 0.1 * (gradients[0] + 0.6 * before[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("accumulation", "steps_per_call"), [(1, 1), (2, 1), (1, 5)])
def test_a_loss_that_is_not_finite_stops_training(accumulation, steps_per_call):
    """At once, also amid a call; the weights are those before, and the place is named."""
    model, (images, labels) = network(batch_norm=True), examples(12)
    images[4 * accumulation - 1, 3, 3] = np.nan
    clean = network(batch_norm=True)
    arguments = {"accumulation": accumulation, "steps_per_call": steps_per_call, "momentum": 0.9}
    train(clean, 0.1, *examples(12), 2, 1, **arguments)
    with pytest.raises(NonFiniteLossError) as caught:
        train(model, 0.1, images, labels, 2, 5, **arguments)
    assert str(caught.value) == "the loss became nan at step 2, learning rate 0.1; first in the images: lower --learning-rate"
    assert (caught.value.step, caught.value.learning_rate) == (2, pytest.approx(0.1))
    # Moving statistics and dropout's state included.
    assert len(model.variables) == 7
    for variable, before in zip(model.variables, clean.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before.numpy())


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_gradients_that_are_not_finite_stop_training_too(steps_per_call):
    """Though the loss is finite: here by the slope of a root at zero."""
    image = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(2, 1, kernel_initializer="zeros", name="zero")(image)
    model = keras.Model(image, keras.layers.Conv2D(3, 1, name="score")(keras.ops.sqrt(keras.ops.abs(x))))
    before = model.get_weights()
    message = "the gradients were not finite, of loss 1.099, at step 1, learning rate 0.1: lower"
    with pytest.raises(NonFiniteLossError, match=message):
        train(model, 0.1, *examples(4), 2, 3, steps_per_call=steps_per_call)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_several_steps_per_call_are_the_same_steps():
    """Bit for bit; at the numbers asked for, the state is that of the step just yielded."""
    images, labels = examples(14)
    runs = []
    for steps_per_call in (1, 5):
        trainer = make_trainer(network(), 0.1, momentum=0.9, steps_per_call=steps_per_call)
        steps, states = [], {}
        for step in trainer.train(feed_of(images, labels, 2), 17, stops=(4, 6)):
            steps.append(step)
            if trainer.step == step.step:
                states[step.step] = trainer.state()
        runs.append((steps, states))
    (one, every), (several, some) = runs
    assert one == several and [step.step for step in one] == list(range(1, 18))
    # From 8 a call could do 5 steps, but 12 is one to stop at.
    assert sorted(some) == [4, 6, 8, 12, 16, 17] and sorted(every) == list(range(1, 18))
    for number, state in some.items():
        for value, other in zip(state.values(), every[number].values(), strict=True):
            np.testing.assert_array_equal(value, other)


def test_gradients_are_clipped_by_their_common_norm():
    model, (images, labels) = network(), examples(4)
    before = model.get_weights()
    _, gradients = softmax_gradient(before, images, labels, "valid")
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    for limit, factor in ((norm / 3, 1 / 3), (norm * 2, 1.0)):
        model.set_weights(before)
        train(model, 0.5, images, labels, 4, 1, clip_norm=limit)
        for weight, old, gradient in zip(model.get_weights(), before, gradients, strict=True):
            np.testing.assert_allclose(weight, old - 0.5 * factor * gradient, rtol=1e-5, atol=1e-6)


def test_a_weight_that_the_loss_does_not_see_only_decays():
    images, labels = examples(4)
    for accumulation in (1, 2):
        model = network(("semantic", "unused"))
        before = model.get_layer("unused").get_weights()
        optimizer = CaffeSGD(0.1, 0.0, 0.5)
        loss = {"semantic": SegmentationCrossEntropy(), "unused": Unseen()}
        trainer = Trainer(model, optimizer=optimizer, loss=loss, accumulation=accumulation)
        list(trainer.train(feed_of(images, {"semantic": labels, "unused": labels}, 2), 1))
        for weight, old in zip(model.get_layer("unused").get_weights(), before, strict=True):
            np.testing.assert_allclose(weight, 0.95 * old, rtol=1e-6)


class Unseen(SegmentationCrossEntropy):
    """Does not depend on the logits at all."""

    def totals(self, label, logits):
        return tf.zeros(()), tf.ones(())


def test_accumulation_knows_the_weight_of_a_subsampled_label():
    """Logits at a stride of their own: the normaliser counts the label's pixels that the loss sees."""
    generator = np.random.default_rng(5)
    images = generator.random((4, 9, 9, 3), np.float32)
    labels = generator.integers(0, 3, (4, 9, 9)).astype(np.int32)
    labels[1, :, :6] = labels[3, 2:] = 255
    weights = []
    for batch, accumulation in ((4, 1), (1, 4)):
        keras.utils.set_random_seed(3)
        image = keras.Input((9, 9, 3))
        score = keras.layers.Conv2D(3, 1, 4, bias_initializer="normal", kernel_regularizer=keras.regularizers.L2(0.1), name="score")
        model = keras.Model(image, score(image))
        train(model, 0.5, images, labels, batch, 2, accumulation=accumulation)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    unsized = keras.Input((None, None, 3))
    model = keras.Model(unsized, keras.layers.Conv2D(3, 1, 4, kernel_regularizer="l2")(unsized))
    feed = feed_of(images, labels, 1)
    # A regulariser, so that the weight has to be known before the first pass.
    trainer = make_trainer(model, 0.1, accumulation=4)
    vague = (tf.TensorSpec((1, None, None, 3)), tf.TensorSpec((1, None, None), tf.int32))

    def of_any_size(start, share):
        return tf.data.Dataset.from_generator(lambda: feed(start, share), output_signature=vague)

    with pytest.raises(tf.errors.InvalidArgumentError, match="pass crop_size"):
        list(trainer.train(of_any_size, 1))


def test_a_loss_that_does_not_fit_says_so_in_one_line():
    with pytest.raises(KerassegError) as caught:
        train(network(), 0.1, *examples(2), 2, 1, loss=SegmentationCrossEntropy(class_weights=(1, 2)))
    assert str(caught.value) == "2 class_weights for 3 classes: give one for each class"


def test_a_state_is_restored_whole_or_not_at_all():
    images, labels = examples(8)
    trainers = []
    for _ in range(2):
        model = network()
        trainers.append(Trainer(model, optimizer=CaffeSGD(0.1, 0.9)))
    unbroken, resumed = trainers
    states = {step.step: unbroken.state() for step in unbroken.train(feed_of(images, labels, 2), 5)}
    state = states[2]
    start = resumed.state()
    with pytest.raises(KerassegError, match="it is of another network"):
        resumed.restore({name: value for name, value in state.items() if "velocity" not in name})
    for name, value in resumed.state().items():
        np.testing.assert_array_equal(value, start[name])
    resumed.restore(state)
    assert resumed.step == 2
    list(resumed.train(feed_of(images, labels, 2), 5))
    for name, value in resumed.state().items():
        np.testing.assert_array_equal(value, states[5][name])


def test_a_feed_that_ends_says_so():
    images, labels = examples(2)
    trainer = Trainer(network(), optimizer=CaffeSGD(0.1))
    with pytest.raises(KerassegError, match="the feed ended before step 2 of 3: let it repeat"):
        list(trainer.train(lambda start, share: tf.data.Dataset.from_tensor_slices((images, labels)).batch(2), 3))
