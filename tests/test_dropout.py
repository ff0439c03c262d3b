import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.layers import Dropout
from kerasseg.layers.dropout import _uniform

SHAPE = (16, 12, 12, 8)


def masks(layer, times, shape=SHAPE):
    return [np.asarray(layer(tf.ones(shape), training=True)) for _ in range(times)]


def test_the_right_share_is_dropped_and_the_rest_scaled():
    for mask in masks(Dropout(0.3, seed=1), 3):
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        # Of 18,432 values the share has a standard deviation of 0.0034.
        assert (mask == 0).mean() == pytest.approx(0.3, abs=0.014)


def test_draws_are_new_each_time_and_repeat_by_their_state():
    layer = Dropout(0.5, seed=2)
    (state,) = layer.variables
    before = state.numpy()
    first, second = masks(layer, 2)
    # Independent draws of one half agree in one half.
    assert (first == second).mean() == pytest.approx(0.5, abs=0.02)
    state.assign(before)
    np.testing.assert_array_equal(masks(layer, 1)[0], first)
    keras_state = keras.layers.Dropout(0.5, seed=2).variables[0].numpy()
    np.testing.assert_array_equal(before, keras_state)


def test_nothing_is_dropped_outside_training():
    x = tf.random.normal((2, 3, 4, 5))
    np.testing.assert_array_equal(Dropout(0.5)(x), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)
    np.testing.assert_array_equal(Dropout(1.0)(x, training=True), tf.zeros_like(x))


def test_a_noise_shape_is_keras_own_affair():
    for mask in masks(Dropout(0.5, noise_shape=(None, 1, 1, None), seed=3), 2):
        assert (np.ptp(mask, axis=(1, 2)) == 0).all() and len(np.unique(mask)) == 2


@pytest.mark.parametrize("values", [64, 61])
def test_replicas_take_consecutive_parts_of_one_draw(monkeypatch, values):
    """Exactly where the count divides by four; else they skip the rest of a block, and never overlap."""

    class Replica:
        num_replicas_in_sync, replica_id_in_sync_group = 4, 0

    seed = tf.constant([9, 3])
    whole = _uniform((4 * 64,), seed).numpy()
    parts = []
    for number in range(4):
        Replica.replica_id_in_sync_group = number
        monkeypatch.setattr(tf.distribute, "get_replica_context", Replica)
        parts.append(_uniform((values,), seed).numpy())
    monkeypatch.undo()
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[64 * number : 64 * number + values])
