import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.recipes import RECIPES
from kerasseg.schedules import make_schedule
from kerasseg.training import CaffeSGD, Trainer, make_strategy
from kerasseg.training.optimizers import make_optimizer

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
    def feed(start, slices):
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch // slices, drop_remainder=True).repeat()
        return data.skip(start * slices)

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


def train(model, rate, images, labels, batch, steps, normalization="valid", **arguments):
    optimizer = CaffeSGD(rate, arguments.pop("momentum", 0.0))
    loss = arguments.pop("loss", None) or SegmentationCrossEntropy(normalization)
    trainer = Trainer(model, optimizer=optimizer, loss=loss, **arguments)
    return list(trainer.train(feed_of(images, labels, batch), steps))


# Optimizers and schedules


def test_caffe_sgd_is_caffes_rule():
    generator = np.random.default_rng(0)
    values = {
        "a/kernel": generator.normal(size=(3, 4)),
        "a/bias": generator.normal(size=4),
        "b/kernel": generator.normal(size=(2,)),
    }
    multipliers = {r".*/bias": (2.0, 0.0), r"b/.*": (10.0, 0.5)}
    factors = {"a/kernel": (1.0, 1.0), "a/bias": (2.0, 0.0), "b/kernel": (10.0, 0.5)}
    rates, momentum, decay = [0.1, 0.1, 0.01, 0.01, 0.001], 0.9, 0.05
    variables = []
    for path, value in values.items():
        variables.append(keras.Variable(value, dtype="float32", name=path.split("/")[1]))
        variables[-1]._path = path
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.1, 0.01, 0.001])
    optimizer = CaffeSGD(schedule, momentum, decay, multipliers)
    optimizer.build(variables)
    velocity = {path: np.zeros_like(value) for path, value in values.items()}
    for rate in rates:
        gradients = {path: generator.normal(size=value.shape) for path, value in values.items()}
        assert float(optimizer.learning_rate) == pytest.approx(rate)
        optimizer.apply([tf.constant(gradient, tf.float32) for gradient in gradients.values()], variables)
        for path, (r, d) in factors.items():
            # SGDSolver::ComputeUpdateValue: history = local_rate · (diff + local_decay · data) + momentum · history
            velocity[path] = rate * r * (gradients[path] + decay * d * values[path]) + momentum * velocity[path]
            values[path] = values[path] - velocity[path]
    for variable, path in zip(variables, values, strict=True):
        np.testing.assert_allclose(variable.numpy(), values[path], rtol=2e-6, atol=1e-6)


def test_rate_zero_freezes():
    variable = keras.Variable([1.0, 2.0], name="kernel")
    optimizer = CaffeSGD(0.1, 0.9, 0.1, {"kernel": (0.0, 1.0)})
    for _ in range(3):
        optimizer.apply([tf.constant([1.0, 1.0])], [variable])
    assert variable.numpy().tolist() == [1.0, 2.0]


def test_a_compiled_model_keeps_its_velocities(tmp_path):
    model = network()
    optimizer = CaffeSGD(make_schedule("poly", 0.1, iterations=10), 0.9, 1e-3, {".*/bias": (2.0, 0.0)})
    model.compile(optimizer, loss=SegmentationCrossEntropy())
    images, labels = examples(4)
    model.fit(images, labels, batch_size=2, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    opened = kerasseg.load_model(tmp_path / "model.keras")
    assert isinstance(opened.optimizer, CaffeSGD) and opened.optimizer.get_config() == optimizer.get_config()
    pairs = list(zip(optimizer.variables, opened.optimizer.variables, strict=True))
    assert sum(np.abs(np.asarray(before)).max() > 0 for before, _ in pairs if "velocity" in before.path) == 2
    for before, after in pairs:
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    for trained in (model, opened):
        trained.fit(images, labels, batch_size=4, shuffle=False, verbose=0)
    for before, after in zip(model.get_weights(), opened.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_schedules_are_the_papers_formulas():
    steps = (0, 1, 29, 30, 59, 60, 99)
    poly = make_schedule("poly", 0.5, iterations=100, power=0.9)
    step = make_schedule("step", 0.5, iterations=100, step_size=30, gamma=0.1)
    assert make_schedule("fixed", 0.5, iterations=100) == 0.5
    for t in steps:
        assert float(poly(t)) == pytest.approx(0.5 * (1 - t / 100) ** 0.9, rel=1e-6)
        assert float(step(t)) == pytest.approx(0.5 * 0.1 ** (t // 30), rel=1e-6)
    assert float(poly(100)) == 0.0
    with pytest.raises(KerassegError, match="step_size"):
        make_schedule("step", 0.5, iterations=100)
    with pytest.raises(KerassegError, match="expected one of fixed, step, poly"):
        make_schedule("cosine", 0.5, iterations=100)


def test_a_recipe_makes_its_optimizer():
    caffe = make_optimizer(RECIPES["fcn_alexnet_voc"])
    assert isinstance(caffe, CaffeSGD) and (caffe.momentum, caffe.l2_decay) == (0.9, 5e-4)
    assert caffe.multipliers_of("score_fr/bias") == (2.0, 0.0) and caffe.multipliers_of("conv1/bias") == (1.0, 1.0)
    assert isinstance(make_optimizer(RECIPES["shapes"]), keras.optimizers.Adam)
    for wrong, message in (
        ({"optimizer": "lion"}, "expected one of sgd, adam"),
        ({"multipliers": {".*": (1.0, 1.0)}}, "multipliers"),
    ):
        with pytest.raises(KerassegError, match=message):
            make_optimizer(RECIPES["shapes"].override(**wrong))


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


def test_two_replicas_equal_one_device():
    script = Path(__file__).with_name("two_replicas.py")
    paths = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    for normalization in ("valid", "sum"):
        curves = result[normalization]
        assert curves["one"][-1] < curves["one"][0]
        np.testing.assert_allclose(curves["two"], curves["one"], rtol=1e-4)
        assert curves["weights"] < 1e-4


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


def test_a_loss_that_is_not_finite_stops_training():
    model, (images, labels) = network(), examples(4)
    images[2, 3, 3] = np.nan
    with pytest.raises(KerassegError, match=r"the loss became nan at step 2: lower --learning-rate \(now 0\.1\)"):
        train(model, 0.1, images, labels, 2, 5)


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
        list(trainer.train(lambda start, slices: tf.data.Dataset.from_tensor_slices((images, labels)).batch(2), 3))
