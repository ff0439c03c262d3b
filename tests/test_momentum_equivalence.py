"""Momentum against batch size: Shelhamer et al. 2017, §6.2."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import run

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.evaluation.analysis.momentum import Regime, equivalent, expanded_step, rate_factor
from kerasseg.training import CaffeSGD


def recursion(gradients, momentum, batch, rate):
    """The first equation of §6.2, step by step."""
    step = np.zeros(gradients.shape[1:])
    for start in range(0, len(gradients), batch):
        step = -rate * gradients[start : start + batch].sum(0) + momentum * step
    return step


@pytest.mark.parametrize(("momentum", "batch"), [(0.9, 4), (0.99, 1), (0.0, 3), (0.5, 12)])
def test_the_expanded_sum_is_the_recursion(momentum, batch):
    gradients = np.random.default_rng(batch).normal(size=(24, 2, 3))
    expected = recursion(gradients, momentum, batch, 0.3)
    np.testing.assert_allclose(expanded_step(gradients, Regime(momentum, batch), 0.3), expected, rtol=1e-12)


def test_the_expanded_sum_is_what_the_optimizer_does():
    gradients, regime = np.random.default_rng(0).normal(size=(20, 5)), Regime(0.8, 4)
    weight, optimizer, before = keras.Variable(np.zeros(5, np.float32)), CaffeSGD(0.1, 0.8), None
    for start in range(0, 20, 4):
        before = weight.numpy().copy()
        optimizer.apply([tf.constant(gradients[start : start + 4].sum(0), tf.float32)], [weight])
    np.testing.assert_allclose(weight.numpy() - before, expanded_step(gradients, regime, 0.1), atol=1e-6)


def test_coefficients_are_those_of_the_paper():
    regime = Regime(0.5, 3)
    np.testing.assert_array_equal(regime.coefficients(8), [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(regime.smooth_coefficients(7)[[0, 3, 6]], [1, 0.5, 0.25])
    assert regime.total() == pytest.approx(regime.coefficients(300).sum())
    assert regime.smooth_total() == pytest.approx(regime.smooth_coefficients(300).sum())


def test_the_papers_example():
    heavy = equivalent(Regime(0.9, 20))
    assert heavy == (pytest.approx(0.9 ** (1 / 20)), 1) and round(heavy.momentum, 2) == 0.99
    # Both have the same smooth coefficients, and back again.
    np.testing.assert_allclose(heavy.coefficients(99), Regime(0.9, 20).smooth_coefficients(99))
    assert equivalent(heavy, 20) == (pytest.approx(0.9), 20)
    assert equivalent(Regime(0.9, 20), 5).momentum == pytest.approx(0.9**0.25)


def test_the_learning_rate_keeps_the_total_step():
    first = Regime(0.9, 20)
    second = equivalent(first, 5)
    gradients = np.ones((4000, 1))
    one, other = expanded_step(gradients, first, 0.1), expanded_step(gradients, second, 0.1 * rate_factor(first, second))
    np.testing.assert_allclose(one, other)
    # Of averaged losses each gradient is divided by the batch size.
    averaged = expanded_step(gradients / 5, second, 0.1 * rate_factor(first, second, averaged=True))
    np.testing.assert_allclose(averaged, one / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--momentum", "1"), "momentum 1.0: expected 0 or more and below 1"),
        (("--batch", "0"), "batch size 0: expected a whole number"),
        (("--to-batch", "-1"), "batch size -1: expected a whole number"),
        (("--momentum", "0.9999999999999999"), "momentum 0.9999999999999999 at batch size 20: at 1 it would be too close to 1"),
    ],
)
def test_mistakes_are_one_line(capsys, options, message):
    assert run(analyze, "momentum", *options) == 2
    assert message in capsys.readouterr().err


def test_gradients_must_be_whole_batches():
    with pytest.raises(KerassegError, match="received 5 gradients: expected whole batches of 2"):
        expanded_step(np.zeros((5, 1)), Regime(0.9, 2), 1.0)


def test_the_command_prints_and_draws(tmp_path, capsys):
    assert run(analyze, "momentum", "--momentum", "0.9", "--batch", "20", "--out", tmp_path) == 0
    text = capsys.readouterr().out
    assert "is about momentum 0.9947 at 1" in text and "times 1.051" in text and "200.00          190.32          190.32" in text
    assert (tmp_path / "momentum.png").read_bytes().startswith(b"\x89PNG")
    assert run(analyze, "momentum", "--momentum", "0", "--batch", "3") == 0
    assert run(analyze, "momentum", "--batch", 10**11) == 0
