"""Asynchronous replicas: late gradients as by hand, nothing lost, nothing used twice."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.layers import BatchNormalization, Conv2D
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, NonFiniteLossError, Trainer
from kerasseg.training.parameter_server import AsynchronousTrainer

STEPS, SIZE, CLASSES, RATE = 20, (6, 8), 3, 0.05


class Seen(AsynchronousTrainer):
    """Also keeps on which devices gradients were computed."""

    devices = frozenset()

    def _work(self, *arguments):
        result = super()._work(*arguments)
        self.devices |= {result[1][0].device}
        return result


def batches():
    """One for each of 2 · STEPS steps, all different: the class is the brightest channel. One has no labelled pixel."""
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 1, (2 * STEPS, 4, *SIZE, 3)).astype(np.float32)
    labels = images.argmax(-1).astype(np.int32)
    for number in range(2 * STEPS):
        labels[number].flat[: 4 * number] = 255
    labels[3] = 255
    return images, labels


def feed(start, share):
    return tf.data.Dataset.from_tensor_slices(batches()).skip(start)


def network():
    """All that a pass can move beside gradients: batch normalization, dropout's state, a loss of the model's own."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = Conv2D(8, 3, padding="same", dilation_rate=2, kernel_regularizer="l2", name="conv")(image)
    x = BatchNormalization(momentum=0.8, name="conv_bn")(x)
    x = keras.layers.Dropout(0.2, seed=1)(keras.layers.ReLU()(x))
    return keras.Model(image, Conv2D(CLASSES, 1, name="score")(x))


def make_trainer(kind=AsynchronousTrainer, model=None, rate=RATE, momentum=0.9, **arguments):
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, 2 * STEPS, 0.0, 0.9)
    return kind(model or network(), optimizer=CaffeSGD(schedule, momentum, 1e-3), **arguments)


def assert_same_state(received, expected):
    for value, other in zip(received.state().values(), expected.state().values(), strict=True):
        np.testing.assert_array_equal(value, other)


# One worker


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_one_worker_trains_as_the_synchronous_loop(clip_norm):
    reference = make_trainer(Trainer, clip_norm=clip_norm)
    trainer = make_trainer(workers=1, clip_norm=clip_norm)
    expected, received = (list(each.train(feed, STEPS)) for each in (reference, trainer))
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    for value, other in zip(trainer.state().values(), reference.state().values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-7)


def test_several_weighted_outputs():
    def two_heads():
        keras.utils.set_random_seed(0)
        image = keras.Input((*SIZE, 3))
        return keras.Model(image, {name: Conv2D(CLASSES, 1, name=name)(image) for name in ("main", "side")})

    def feed_both(start, share):
        return feed(start, share).map(lambda image, label: (image, {"main": label, "side": label}))

    losses = {"main": SegmentationCrossEntropy("sum"), "side": SegmentationCrossEntropy()}
    arguments = {"loss": losses, "loss_weights": {"side": 0.4}, "rate": 1e-3}
    expected = list(make_trainer(Trainer, two_heads(), **arguments).train(feed_both, 5))
    received = list(make_trainer(model=two_heads(), workers=1, **arguments).train(feed_both, 5))
    np.testing.assert_allclose(received, expected, rtol=1e-6)


# Several workers


def linear():
    """A 1×1 convolution behind a batch normalization that is not trained but moves."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*SIZE, 3))
    x = BatchNormalization(momentum=0.8, center=False, scale=False, name="bn")(image)
    return keras.Model(image, keras.layers.Conv2D(CLASSES, 1, name="score")(x))


def by_hand(model, workers, stops):
    """Caffe's SGD in float64, each gradient from the weights of `workers` - 1 steps before, or since the last stop.

    Gives losses, kernel, bias and moving mean after STEPS steps.
    """
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.get_layer("score").get_weights())
    now = [kernel.reshape(3, CLASSES), bias, np.zeros(3)]
    velocity, history, losses, images_and_labels = [0, 0], [], [], zip(*batches(), strict=True)
    for step, (images, labels) in zip(range(STEPS), images_and_labels, strict=False):
        history.append(list(now))
        kernel, bias, moving = history[max(step - workers + 1, step - step % stops)]
        x = images.reshape(-1, 3).astype(np.float64)
        mean, variance = x.mean(0), x.var(0)
        x, y = ((x - mean) / np.sqrt(variance + 1e-3))[labels.ravel() != 255], labels[labels != 255]
        p = np.exp(x @ kernel + bias)
        p /= p.sum(1, keepdims=True)
        valid = max(1, len(y))
        losses.append(-np.log(p[np.arange(len(y)), y]).sum() / valid)
        p[np.arange(len(y)), y] -= 1
        gradients = [x.T @ p / valid, p.sum(0) / valid]
        rate = RATE * (1 - step / (2 * STEPS)) ** 0.9
        for index, gradient in enumerate(gradients):
            velocity[index] = 0.9 * velocity[index] + rate * (gradient + 1e-3 * now[index])
            now[index] = now[index] - velocity[index]
        now[2] = now[2] + 0.2 * (mean - moving)
    return losses, now


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_late_gradients_are_those_by_hand(workers):
    """Every batch once and in order, every step counted, the rate that of the count, and no part of the momentum lost."""
    model = linear()
    losses, (kernel, bias, mean) = by_hand(model, workers, stops=7)
    trainer = make_trainer(model=model, workers=workers)
    steps = list(trainer.train(feed, STEPS, stops=[7]))
    assert [step.step for step in steps] == list(range(1, STEPS + 1)) and trainer.step == STEPS
    np.testing.assert_allclose([step.learning_rate for step in steps], [poly_rate(n) for n in range(STEPS)], rtol=1e-5)
    np.testing.assert_allclose([step.loss for step in steps], losses, rtol=1e-4)
    np.testing.assert_allclose(np.squeeze(model.get_layer("score").kernel), kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.get_layer("score").bias, bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.get_layer("bn").moving_mean, mean, rtol=1e-5)


def poly_rate(step):
    return RATE * (1 - step / (2 * STEPS)) ** 0.9


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_compute_at_the_same_time(workers):
    """No gradient is begun before as many have been handed out as there are workers."""
    barrier = threading.Barrier(workers, timeout=60)

    class Meeting(AsynchronousTrainer):
        def _work(self, *arguments):
            barrier.wait()
            return super()._work(*arguments)

    assert len(list(make_trainer(Meeting, workers=workers).train(feed, 2 * workers))) == 2 * workers


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_learn_as_one_does(workers):
    def last_loss(workers):
        trainer = make_trainer(model=linear(), momentum=0.5, rate=0.5, workers=workers)
        return np.mean([step.loss for step in trainer.train(feed, 2 * STEPS)][-5:])

    assert last_loss(1) < 0.3
    assert last_loss(workers) == pytest.approx(last_loss(1), rel=0.2)


def test_every_pass_moves_dropouts_state_once():
    trainer = make_trainer(workers=4)
    reference = make_trainer(Trainer)
    for each in (trainer, reference):
        list(each.train(feed, STEPS))
    (state,), (expected,) = (
        [value for name, value in each.state().items() if "seed_generator_state" in name] for each in (trainer, reference)
    )
    np.testing.assert_array_equal(state, expected)


def test_images_of_different_sizes():
    sizes = [(6, 8), (5, 9), (12, 4), (6, 8), (7, 7), (3, 3)]

    def feed(start, share):
        def generate():
            for height, width in sizes[start:]:
                yield np.ones((2, height, width, 3), np.float32), np.zeros((2, height, width), np.int32)

        signature = (tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None), tf.int32))
        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    assert len(list(make_trainer(workers=3).train(feed, len(sizes)))) == len(sizes)


def test_two_devices_train_as_one():
    script = Path(__file__).with_name("asynchronous_replicas.py")
    paths = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert [device[-5:] for device in result["devices"]] == ["CPU:0", "CPU:1"]
    expected = [step.loss for step in make_trainer(workers=2).train(feed, STEPS)]
    np.testing.assert_allclose(result["losses"], expected, rtol=1e-4)


# Resuming and ending


def test_resuming_at_a_stop_is_exact():
    whole, before, after = (make_trainer(workers=3) for _ in range(3))
    list(whole.train(feed, STEPS, stops=[5]))
    list(before.train(feed, 10, stops=[5]))
    after.restore(before.state())
    assert [step.step for step in after.train(feed, STEPS, stops=[5])] == list(range(11, STEPS + 1))
    assert_same_state(after, whole)


def test_a_run_left_anywhere_is_in_the_state_of_its_step():
    """Also with gradients under way: they are dropped, and their threads ended."""
    threads = set(threading.enumerate())
    left, whole = make_trainer(workers=4), make_trainer(workers=4)
    steps = left.train(feed, STEPS)
    for step in steps:
        if step.step == 6:
            assert left.step == 6
            break
    steps.close()
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("kerasseg")]
    list(whole.train(feed, 6))
    assert left.step == 6
    assert_same_state(left, whole)
    assert [step.step for step in left.train(feed, 9)] == [7, 8, 9]


# Errors


def test_no_workers():
    with pytest.raises(KerassegError, match="received workers=0: expected 1 or more"):
        make_trainer(workers=0)


def test_a_feed_that_ends_says_where():
    with pytest.raises(KerassegError, match="the feed ended before step 6 of 9: let it repeat"):
        list(make_trainer(workers=3).train(lambda start, share: feed(start, share).take(5), 9))


def test_a_loss_that_is_not_finite_stops_before_its_step():
    def broken(start, share):
        images, labels = batches()
        images[4] = np.nan
        return tf.data.Dataset.from_tensor_slices((images, labels)).skip(start)

    trainer, whole = (make_trainer(model=linear(), workers=3) for _ in range(2))
    with pytest.raises(NonFiniteLossError, match="nan at step 5, learning rate 0.045.*first in") as caught:
        list(trainer.train(broken, STEPS))
    assert caught.value.step == 5 and trainer.step == 4
    list(whole.train(feed, 4))
    assert_same_state(trainer, whole)


def test_an_error_of_a_worker_reaches_the_caller():
    class Failing(AsynchronousTrainer):
        def _work(self, *arguments):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    with pytest.raises(tf.errors.ResourceExhaustedError, match="no memory"):
        next(make_trainer(Failing, workers=2).train(feed, STEPS))
