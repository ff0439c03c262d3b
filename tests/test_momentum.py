"""Shelhamer et al. 2017, §6.2: momentum p at batch size k weighs examples as p' = p^(1/k) at batch size 1."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.training import CaffeSGD

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
