"""Every step of 20,000 against the papers' formulas in float64; one vectorised call each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.schedules import SCHEDULES, WarmUp, make_schedule

ITERATIONS = 20_000
STEPS = np.arange(ITERATIONS)
# Half the distance between float32 numbers near 1.
ROUNDING = 2.0**-24


def rates_of(schedule, steps=STEPS):
    """The schedule's rates at all steps at once, traced as it is inside a training step."""
    rates = tf.function(lambda step: schedule(step) + tf.zeros(step.shape), autograph=False)(tf.constant(steps, tf.int64))
    assert rates.dtype == tf.float32 and rates.shape == steps.shape
    return rates.numpy().astype(np.float64)


def relative(received, expected):
    return np.abs(received - expected) / expected


def poly(steps, rate, iterations, power):
    return rate * (1 - steps / iterations) ** power


@pytest.mark.parametrize(
    ("rate", "power", "iterations"), [(0.007, 0.9, ITERATIONS), (2.5e-4, 0.9, ITERATIONS), (1e-10, 1.0, 30_000)]
)
def test_poly_is_the_papers_at_every_step(rate, power, iterations):
    # Chen et al. 2016, §4.1.2: the rate times (1 − iter/max_iter)^power.
    expected = poly(STEPS, rate, iterations, power)
    error = relative(rates_of(make_schedule("poly", rate, iterations=iterations, power=power)), expected)
    # float32: iter/max_iter is rounded, and what is left of 1 after its subtraction is off by as much, which weighs more and
    # more as less is left; the power and the products round a few times more.
    allowed = ROUNDING * (power / (1 - STEPS / iterations) + 6)
    assert (error <= allowed).all(), f"step {np.argmax(error / allowed)}: {error.max():.2e}"
    # In parts of the first rate it is nothing at any step.
    assert np.abs(error * expected).max() <= 2e-7 * rate
    assert error[: iterations // 2].max() <= 1e-6


def test_poly_ends_at_zero_and_stays_there():
    schedule = make_schedule("poly", 0.007, iterations=ITERATIONS)
    assert rates_of(schedule, np.array([ITERATIONS, ITERATIONS + 1, 10**6])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("step_size", "gamma"), [(2000, 0.1), (9000, 0.1), (10_000, 0.1), (7, 0.999)])
def test_step_is_the_papers_at_every_step(step_size, gamma):
    # Caffe's policy: base_lr · gamma^floor(iter / stepsize); integers, so that a drop is never a step early or late.
    expected = 0.01 * gamma ** (STEPS // step_size).astype(np.float64)
    received = rates_of(make_schedule("step", 0.01, iterations=ITERATIONS, step_size=step_size, gamma=gamma))
    # A product of up to n float32 factors.
    assert (relative(received, expected) <= ROUNDING * (STEPS // step_size + 4)).all()
    np.testing.assert_array_equal(np.flatnonzero(np.diff(received)), np.flatnonzero(np.diff(STEPS // step_size)))


def plain(kind, steps, iterations):
    if kind == "fixed":
        return np.full(len(steps), 0.007)
    return poly(steps, 0.007, iterations, 0.9) if kind == "poly" else 0.007 * 0.1 ** (steps // 3000)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("first", [0.0, 1e-4])
def test_linear_warm_up_rises_to_the_schedule(kind, first):
    n = 1500
    schedule = make_schedule(kind, 0.007, iterations=ITERATIONS, step_size=3000, warmup="linear", warmup_steps=n, warmup_rate=first)
    received = rates_of(schedule)
    assert received[0] == np.float32(first)
    np.testing.assert_allclose(received[:n], first + (0.007 - first) * STEPS[:n] / n, rtol=3e-7, atol=0)
    assert received[n] == np.float32(0.007)
    rest = ITERATIONS - n
    allowed = ROUNDING * (0.9 / (1 - STEPS[:rest] / rest) + 6)
    assert (relative(received[n:], plain(kind, STEPS[:rest], rest)) <= allowed).all()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_slow_start_keeps_its_rate(kind):
    # TensorFlow's DeepLab: the small rate for the first steps, then poly over the iterations that are left.
    n = 3001
    schedule = make_schedule(
        kind, 0.007, iterations=ITERATIONS, step_size=3000, warmup="constant", warmup_steps=n, warmup_rate=1e-4
    )
    received, rest = rates_of(schedule), ITERATIONS - n
    assert (received[:n] == np.float32(1e-4)).all()
    allowed = ROUNDING * (0.9 / (1 - STEPS[:rest] / rest) + 6)
    assert (relative(received[n:], plain(kind, STEPS[:rest], rest)) <= allowed).all()
    if kind == "poly":
        assert rates_of(schedule, np.array([ITERATIONS])) == 0


def test_an_optimizer_goes_through_it():
    schedule = make_schedule("poly", 0.5, iterations=8, warmup_steps=3, warmup_rate=0.2)
    variable, optimizer = keras.Variable(np.zeros(1, "float32")), keras.optimizers.SGD(schedule)
    moves = []
    for _ in range(8):
        before = float(variable.numpy()[0])
        optimizer.apply([tf.constant([-1.0])], [variable])
        moves.append(float(variable.numpy()[0]) - before)
    expected = [0.2, 0.3, 0.4, *(0.5 * (1 - t / 5) ** 0.9 for t in range(5))]
    np.testing.assert_allclose(moves, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_a_warm_up_comes_back_from_its_config(kind, warmup):
    made = make_schedule(kind, 0.5, iterations=50, step_size=9, warmup=warmup, warmup_steps=7, warmup_rate=0.01)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(again) is WarmUp and again.get_config() == made.get_config()
    steps = np.arange(60)
    np.testing.assert_array_equal(rates_of(again, steps), rates_of(made, steps))


def test_without_a_warm_up_it_is_keras_own():
    assert make_schedule("fixed", 0.5, iterations=100) == 0.5
    for kind, expected in (("poly", "PolynomialDecay"), ("step", "ExponentialDecay")):
        made = make_schedule(kind, 0.5, iterations=100, step_size=30, warmup="constant")
        assert type(made) is getattr(keras.optimizers.schedules, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cosine"}, "^schedule='cosine': expected one of fixed, step, poly$"),
        ({"kind": "step"}, "^schedule='step' with step_size=None: pass the optimiser steps between drops, 1 or more$"),
        ({"kind": "step", "step_size": -10}, "with step_size=-10: pass the optimiser steps"),
        ({"warmup_rate": 0.1}, "^warmup_rate=0.1 without a warm-up: pass warmup_steps=…$"),
        ({"warmup": "linaer"}, r"^warmup='linaer': did you mean 'linear'\?$"),
        ({"warmup_steps": 100}, "^warmup_steps=100 of iterations=100: expected 0 to 99$"),
        ({"warmup_steps": -1}, "^warmup_steps=-1 of iterations=100: expected 0 to 99$"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    with pytest.raises(KerassegError, match=message):
        make_schedule(**{"kind": "poly", "learning_rate": 0.5, "iterations": 100, **arguments})
    with pytest.raises(KerassegError, match="at least 1, or no warm-up"):
        WarmUp(0.5, 0)
