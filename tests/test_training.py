import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.data import Share
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, Trainer, make_strategy
from kerasseg.training.trainer import NonFiniteLossError

SIZE = (5, 7)


def network(heads=("logits",), regularizer=None, classes=3):
    """One layer, several heads; the weights are the same in every call."""
    keras.utils.set_random_seed(3)
    image = keras.Input((*SIZE, 3))
    outputs = {
        head: keras.layers.Conv2D(classes, 1, name=head, kernel_regularizer=regularizer, bias_initializer="normal")(image)
        for head in heads
    }
    return keras.Model(image, outputs["logits"] if heads == ("logits",) else outputs)


def examples(count, seed=0, classes=3):
    """Images in 0–1 and labels, of which every image has another number to ignore."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, *SIZE, 3), np.float32)
    labels = generator.integers(0, classes, (count, *SIZE)).astype(np.int32)
    for index in range(count):
        labels[index].flat[: 4 * index] = 255
    return images, labels


def feed_of(images, labels, batch):
    def feed(start, share):
        assert share == Share()
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch, drop_remainder=True).repeat().skip(start)

    return feed


def softmax_gradient(weights, images, labels, normalization):
    """Loss and gradients of a 1×1 convolution under the softmax loss, by hand in float64."""
    kernel, bias = (np.asarray(weight, np.float64) for weight in weights)
    kernel, x, y = kernel.reshape(3, -1), images.reshape(-1, 3).astype(np.float64), labels.reshape(-1)
    x, y = x[y != 255], y[y != 255]
    scores = x @ kernel + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).sum()
    p[np.arange(len(y)), y] -= 1
    share = len(y) if normalization == "valid" else 1
    return loss / share, [(x.T @ p).reshape(1, 1, 3, -1) / share, p.sum(0) / share]


def make_trainer(model, rate, normalization="valid", momentum=0.0, loss=None, **arguments):
    loss = loss or SegmentationCrossEntropy(normalization)
    return Trainer(model, optimizer=CaffeSGD(rate, momentum), loss=loss, **arguments)


def train(model, rate, images, labels, batch, steps, normalization="valid", **arguments):
    trainer = make_trainer(model, rate, normalization, **arguments)
    return list(trainer.train(feed_of(images, labels, batch), steps))


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
def test_accumulation_equals_a_large_batch(normalization):
    images, labels = examples(8)
    rate, results = (0.5 if normalization == "valid" else 0.005), []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = network(regularizer=keras.regularizers.L2(0.1))
        start = model.get_weights()
        steps = train(model, rate, images, labels, batch, 3, normalization, momentum=0.9, accumulation=accumulation)
        results.append((model.get_weights(), [step.loss for step in steps]))
    assert all(np.abs(new - old).max() > 1e-2 for new, old in zip(results[0][0], start, strict=True))
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-5)
    for one, other in zip(*(weights for weights, _ in results), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


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
    model, (images, labels) = network(), examples(12)
    images[4 * accumulation - 1, 3, 3] = np.nan
    clean = network()
    arguments = {"accumulation": accumulation, "steps_per_call": steps_per_call, "momentum": 0.9}
    train(clean, 0.1, *examples(12), 2, 1, **arguments)
    with pytest.raises(NonFiniteLossError) as caught:
        train(model, 0.1, images, labels, 2, 5, **arguments)
    assert str(caught.value) == "the loss became nan at step 2, learning rate 0.1; first in the images: lower --learning-rate"
    assert (caught.value.step, caught.value.learning_rate) == (2, pytest.approx(0.1))
    for weight, before in zip(model.get_weights(), clean.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, before)


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
        model = keras.Model(image, keras.layers.Conv2D(3, 1, 4, bias_initializer="normal", name="score")(image))
        train(model, 0.5, images, labels, batch, 2, accumulation=accumulation)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    unsized = keras.Input((None, None, 3))
    model = keras.Model(unsized, keras.layers.Conv2D(3, 1, 4, bias_initializer="normal")(unsized))
    feed = feed_of(images, labels, 1)
    trainer = make_trainer(model, 0.1, accumulation=4)
    vague = (tf.TensorSpec((1, None, None, 3)), tf.TensorSpec((1, None, None), tf.int32))

    def of_any_size(start, share):
        return tf.data.Dataset.from_generator(lambda: feed(start, share), output_signature=vague)

    with pytest.raises(tf.errors.InvalidArgumentError, match="pass crop_size"):
        list(trainer.train(of_any_size, 1))


def test_xla_compiles_the_same_step():
    images, labels = examples(8)
    runs = []
    for jit_compile in (False, True):
        model = network()
        steps = train(model, 0.1, images, labels, 2, 3, momentum=0.9, clip_norm=0.1, jit_compile=jit_compile)
        runs.append(([step.loss for step in steps], model.get_weights()))
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-5)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def half_network():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return network()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_float16_trains_as_float32_by_scaling_the_loss(accumulation):
    """The gradients are far below float16's smallest number, 6e-8, without the factor."""
    images, labels = examples(8)
    moved = []
    for model, scaling in ((network(), False), (half_network(), True), (half_network(), False)):
        before = model.get_weights()[0]
        tiny = {"accumulation": accumulation, "loss_weights": {"logits": 1e-7}}
        train(model, 1e6, images, labels, 2, 1, loss_scaling=scaling, **tiny)
        moved.append(model.get_weights()[0] - before)
    assert np.abs(moved[0]).max() > 0.005
    np.testing.assert_allclose(moved[1], moved[0], atol=0.02 * np.abs(moved[0]).max())
    assert np.abs(moved[2] - moved[0]).max() > 0.1 * np.abs(moved[0]).max()


def test_a_step_that_leaves_float16_counts_but_changes_no_weight():
    images, labels = examples(8)
    trainer = make_trainer(half_network(), 0.1, momentum=0.9, loss_scaling=True)
    state = trainer.state()
    assert [name.split("/", 2)[2] for name in state if name.startswith("trainer")] == ["loss_scale:0", "finite_steps:0"]
    name = next(name for name in state if "loss_scale" in name)
    trainer.restore({**state, name: np.float32(2.0**120)})
    losses = [step.loss for step in trainer.train(feed_of(images, labels, 2), 3)]
    assert np.isfinite(losses).all() and trainer.step == 3
    after = trainer.state()
    assert after[name] == 2.0**117
    for key, value in state.items():
        if key.startswith("model") or "velocity" in key:
            np.testing.assert_array_equal(after[key], value)


def test_the_scale_grows_after_2000_finite_steps():
    images, labels = examples(2)
    trainer = make_trainer(half_network(), 0.0, loss_scaling=True, steps_per_call=400)
    state = trainer.state()
    scale, count = (next(name for name in state if part in name) for part in ("loss_scale", "finite_steps"))
    trainer.restore({**state, count: np.int32(1998)})
    scales = [trainer.state()[scale] for _ in trainer.train(feed_of(images, labels, 2), 3, stops=(1,))]
    assert scales == [2.0**15, 2.0**16, 2.0**16]


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


def test_strategies_are_checked():
    assert make_strategy("one").num_replicas_in_sync == 1
    with pytest.raises(KerassegError, match="did you mean 'mirrored'"):
        make_strategy("mirored")
    with pytest.raises(KerassegError, match="before TensorFlow starts"):
        make_strategy("mirrored", replicas=1 + len(tf.config.list_logical_devices("CPU")))


def test_tpu_without_a_tpu_says_what_was_looked_for(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(KerassegError, match="looked for a TPU of this machine .TPU_NAME is not set. and found none") as caught:
        make_strategy("tpu")
    assert "\n" not in str(caught.value) and "--strategy one" in str(caught.value)
    monkeypatch.setenv("TPU_NAME", "grpc://localhost:1")
    with pytest.raises(KerassegError, match="looked for the TPU named by TPU_NAME='grpc://localhost:1' and found none"):
        make_strategy("tpu")


# Shelhamer et al. 2017, §6.2: momentum p at batch size k weighs examples as p' = p^(1/k) at batch size 1.

BATCH, MOMENTUM = 20, 0.9


def quadratic(examples_seen, momentum, batch, rate):
    """Descends the mean of ½(w − x)² over batches of the examples; w after every 20 examples."""
    weight = keras.Variable(1.0)
    optimizer = CaffeSGD(rate, momentum)
    path = []
    for start in range(0, len(examples_seen), batch):
        gradient = weight.numpy() - examples_seen[start : start + batch].sum() / batch
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
        if (start + batch) % BATCH == 0:
            path.append(float(weight.numpy()))
    return np.array(path)


def test_momentum_and_batch_size_weigh_past_examples_alike():
    """Example j steps ago counts p^⌊j/k⌋ in batches and p'^j one by one: never more than a factor 1/p apart."""
    online = MOMENTUM ** (1 / BATCH)
    assert online == pytest.approx(0.9948, abs=6e-5)
    ages = np.arange(40 * BATCH)
    ratio = MOMENTUM ** (ages // BATCH) / online**ages
    assert ratio.min() >= 1 - 1e-9 and ratio.max() < 1 / MOMENTUM
    wrong = MOMENTUM ** (ages // BATCH) / MOMENTUM**ages
    assert wrong.max() > 1e6


def test_momentum_and_batch_size_trade_on_a_quadratic():
    """Both move equally far for each example in the long run, rate / (1 - p): then only the right momentum takes the same path."""
    noise = np.random.default_rng(0).normal(0, 0.5, 25 * BATCH)
    rate = 0.008
    large = quadratic(noise, MOMENTUM, BATCH, rate)

    def distance(momentum):
        small = quadratic(noise, momentum, 1, rate / BATCH * (1 - momentum) / (1 - MOMENTUM))
        return np.abs(large - small).max() / np.ptp(large)

    assert distance(MOMENTUM ** (1 / BATCH)) < 0.04
    assert distance(MOMENTUM) > 0.15
    assert distance(0.99) > 0.08


def test_a_feed_that_ends_says_so():
    images, labels = examples(2)
    trainer = Trainer(network(), optimizer=CaffeSGD(0.1))
    with pytest.raises(KerassegError, match="the feed ended before step 2 of 3: let it repeat"):
        list(trainer.train(lambda start, share: tf.data.Dataset.from_tensor_slices((images, labels)).batch(2), 3))
