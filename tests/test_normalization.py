"""Batch normalisation against Keras' own layer in float64, on one device and on several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from kerasseg.backbones.building import batch_norm
from kerasseg.layers import BatchNormalization, Conv2D, coordinate_map

SCRIPT = Path(__file__).with_name("replicated_batch_norm.py")
DYNAMIC = tf.TensorSpec((None, None, None, 4))


def twins(dtype="float32", reference_dtype="float64", shape=(None, None, None, 4), **arguments):
    """Ours and Keras' layer with the same weights, none of them 0 or 1."""
    pair = BatchNormalization(dtype=dtype, **arguments), keras.layers.BatchNormalization(dtype=reference_dtype, **arguments)
    generator = np.random.default_rng(1)
    for layer in pair:
        layer.build(shape)
    values = [generator.uniform(0.5, 1.5, weight.shape) for weight in pair[0].weights]
    for layer in pair:
        layer.set_weights(values)
    return pair


def image(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(0, 1, shape) * [0.5, 1, 2, 3] + [3, -2, 1, 0]).astype("float32")


def step(layer, x, training=True):
    """Output, and the gradients of a sum of weighted squares: for x, then for gamma and beta."""
    weights = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        wide = tf.cast(y, "float64")
        loss = tf.reduce_sum(wide**2 * tf.cast(tf.reshape(tf.range(tf.size(y)) % 7 - 2, tf.shape(y)), "float64"))
    return [y, *tape.gradient(loss, [x, *weights])]


def kinds(layer, spec=DYNAMIC, training=True):
    graph = tf.function(lambda x: step(layer, x, training), [spec], autograph=False).get_concrete_function().graph
    return {operation.type for operation in graph.get_operations()}


def assert_same(received, expected, tolerance):
    for got, wanted in zip(received, expected, strict=True):
        assert_close(tf.cast(got, "float64"), tf.cast(wanted, "float64"), tolerance)


@pytest.mark.parametrize("unknown", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"scale": False}, {"center": False}, {"momentum": 0.5, "epsilon": 1e-5, "axis": 3}, {"synchronized": True}],
    ids=lambda arguments: "-".join(arguments) or "default",
)
def test_several_steps_are_keras(arguments, unknown):
    ours, keras_own = twins(**arguments)
    spec = DYNAMIC if unknown else tf.TensorSpec((2, 5, 4, 4))
    traced = tf.function(lambda x: step(ours, x), [spec], autograph=False)
    for number in range(3):
        x = tf.constant(image(2, 5, 4, 4, seed=number))
        assert_same(traced(x), step(keras_own, tf.cast(x, "float64")), 5e-6)
        assert_same(ours.get_weights(), keras_own.get_weights(), 2e-6)
    assert_same(step(ours, x, training=False), step(keras_own, tf.cast(x, "float64"), training=False), 5e-6)
    assert_same(ours.get_weights(), keras_own.get_weights(), 2e-6)


def test_one_step_by_hand():
    ours, _ = twins(momentum=0.75, epsilon=0.1)
    gamma, beta, mean, variance = (weight.astype("float64") for weight in ours.get_weights())
    # Two cells: their sample variance would be twice their variance.
    x = image(1, 1, 2, 4).astype("float64")
    y = ours(x.astype("float32"), training=True)
    assert_close(y, gamma * (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 0.1) + beta, 2e-6)
    assert_close(ours.moving_mean.value, 0.75 * mean + 0.25 * x.mean((0, 1, 2)), 1e-6)
    assert_close(ours.moving_variance.value, 0.75 * variance + 0.25 * x.var((0, 1, 2)), 1e-6)


def test_a_small_epsilon_is_not_raised():
    ours, keras_own = twins(epsilon=1e-7)
    x = tf.constant(image(2, 5, 4, 4) * 1e-4)
    for training in (True, False):
        expected = keras_own(tf.cast(x, "float64"), training=training)
        assert_close(ours(x, training=training), expected, 1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "xla"])
def test_a_tiny_epsilon_bears_a_deviation_that_is_nearly_none(compiled):
    ours, keras_own = twins(epsilon=1e-9)
    # E[x²] − E[x]², which XLA's own kernel takes for the variance, is below zero here.
    x = tf.constant(image(4, 6, 5, 4) * 1e-4 + 3)
    received = tf.function(lambda x: step(ours, x), jit_compile=compiled, autograph=False)(x)
    expected = step(keras_own, tf.cast(x, "float64"))
    for mine, theirs in zip(received, expected, strict=True):
        assert_close(mine, theirs, 0.02)
    assert_same(ours.get_weights(), keras_own.get_weights(), 1e-5)


def test_one_cell_is_normalised_to_beta():
    ours, keras_own = twins()
    x = tf.constant(image(1, 1, 1, 4))
    np.testing.assert_allclose(ours(x, training=True)[0, 0, 0], ours.beta, rtol=1e-6)
    keras_own(tf.cast(x, "float64"), training=True)
    assert_same(ours.get_weights(), keras_own.get_weights(), 1e-6)


@pytest.mark.parametrize("frozen", [False, True], ids=["inference", "frozen"])
def test_frozen_statistics_do_not_move(frozen):
    ours, keras_own = twins()
    ours.trainable = keras_own.trainable = not frozen
    before, x = ours.get_weights(), tf.constant(image(2, 5, 4, 4))
    received = step(ours, x, training=frozen)
    assert len(received) == (2 if frozen else 4)
    assert_same(received, step(keras_own, tf.cast(x, "float64"), training=frozen), 2e-6)
    for value, old in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert "AssignVariableOp" not in kinds(ours, training=frozen)


def test_frozen_gamma_and_beta_give_their_gradients_to_who_asks():
    found = []
    for layer in twins():
        layer.trainable = False
        with tf.GradientTape() as tape:
            tape.watch([layer.gamma.value, layer.beta.value])
            loss = tf.reduce_sum(layer(image(2, 5, 4, 4).astype(layer.dtype), training=True) ** 2)
        found.append(tape.gradient(loss, [layer.gamma.value, layer.beta.value]))
    assert_same(*found, 2e-6)


def test_the_kernels_are_fused():
    for arguments in ({}, {"synchronized": True}):
        for training in (True, False):
            found = kinds(twins(**arguments)[0], training=training)
            assert {"FusedBatchNormV3", "FusedBatchNormGradV3"} <= found and "Rsqrt" not in found
    frozen = twins(trainable=False)[0]
    assert "FusedBatchNormV3" in kinds(frozen) and "FusedBatchNormGradV3" not in kinds(frozen)
    assert "FusedBatchNormV3" not in kinds(twins()[1], tf.TensorSpec((None, None, None, 4), "float64"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_float32_statistics(dtype):
    ours, keras_own = twins(dtype=f"mixed_{dtype}", reference_dtype=f"mixed_{dtype}")
    # A mean that half precision could not hold to the third digit.
    x = tf.cast(image(2, 16, 16, 4) + 20, dtype)
    received = step(ours, x)
    assert received[0].dtype == received[1].dtype == dtype and received[2].dtype == received[3].dtype == "float32"
    assert_same(received, step(keras_own, x), 0.01 if dtype == "bfloat16" else 0.002)
    assert_same(ours.get_weights(), keras_own.get_weights(), 1e-5)
    assert all(weight.dtype == "float32" for weight in ours.weights)
    assert_same([ours(x, training=False)], [keras_own(x, training=False)], 0.01 if dtype == "bfloat16" else 0.002)
    ours.trainable = keras_own.trainable = False
    assert_same(step(ours, x), step(keras_own, x), 0.01 if dtype == "bfloat16" else 0.002)


def test_compiled_by_xla():
    ours, keras_own = twins()
    x = tf.constant(image(2, 5, 4, 4))
    received = tf.function(lambda x: step(ours, x), jit_compile=True, autograph=False)(x)
    assert_same(received, step(keras_own, tf.cast(x, "float64")), 5e-6)
    assert_same(ours.get_weights(), keras_own.get_weights(), 2e-6)


@pytest.mark.parametrize(
    ("shape", "arguments", "dtype"),
    [
        ((6, 4), {}, "float32"),
        ((2, 3, 5, 6, 4), {}, "float32"),
        ((2, 4, 6, 4), {"axis": 1}, "float32"),
        ((2, 5, 6, 4), {"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}}, "float32"),
        ((2, 5, 6, 4), {}, "float64"),
    ],
    ids=["rank 2", "rank 5", "axis 1", "renorm", "float64"],
)
def test_what_cannot_be_fused_is_keras_own(shape, arguments, dtype):
    ours, keras_own = twins(dtype=dtype, shape=shape, **arguments)
    x = tf.constant(image(*shape))
    expected = step(keras_own, tf.cast(x, "float64"))
    assert_same(step(ours, tf.cast(x, dtype)), expected, 1e-5)
    assert_same(ours.get_weights(), keras_own.get_weights(), 1e-5)
    assert "FusedBatchNormV3" not in kinds(ours, tf.TensorSpec(shape, dtype))


def test_a_mask_leaves_cells_out():
    ours, keras_own = twins()
    x, mask = image(2, 5, 4, 4), np.random.default_rng(3).random((2, 5, 4)) > 0.4
    received, expected = ours(x, training=True, mask=mask), keras_own(x.astype("float64"), training=True, mask=mask)
    assert_same([received, *ours.get_weights()], [expected, *keras_own.get_weights()], 1e-5)
    assert_close(ours.moving_mean.value - twins()[0].moving_mean.value * 0.99, 0.01 * x[mask].mean(0), 1e-4)


def test_configuration_and_weights_are_keras(tmp_path):
    ours, keras_own = twins(reference_dtype="float32", name="bn1", momentum=0.9, gamma_regularizer="l2", synchronized=True)
    assert ours.get_config() == keras_own.get_config()
    assert BatchNormalization(name="a").get_config() == keras.layers.BatchNormalization(name="a").get_config()
    assert [(w.path, w.shape, w.trainable) for w in ours.weights] == [(w.path, w.shape, w.trainable) for w in keras_own.weights]
    inputs, x = keras.Input((None, None, 4)), image(2, 5, 4, 4)
    model = keras.Model(inputs, ours(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[1]) is BatchNormalization and again.layers[1].synchronized
    np.testing.assert_array_equal(again(x), model(x))
    # And Keras' network takes the weights as they are.
    theirs = keras.Model(inputs, keras_own(inputs))
    model.save_weights(tmp_path / "all.weights.h5")
    keras_own.set_weights([np.ones(w.shape) for w in keras_own.weights])
    theirs.load_weights(tmp_path / "all.weights.h5")
    assert_close(theirs(x), model(x), 1e-6)


def test_networks_normalise_over_all_replicas():
    inputs = keras.Input((None, None, 3))
    x = batch_norm(Conv2D(4, 3, 2, name="conv")(inputs), "bn", momentum=0.9)
    layer = x._keras_history.operation
    assert type(layer) is BatchNormalization and layer.name == "bn" and layer.synchronized and layer.momentum == 0.9
    assert not BatchNormalization().synchronized
    assert coordinate_map(x) == (2, 1)


@pytest.mark.parametrize("count", [2, 4])
def test_replicas_are_one_batch(count):
    paths = os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, str(SCRIPT), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    alone = results.pop("not synchronized")
    assert set(results) == {"float32", "bfloat16", "frozen"}
    for result in results.values():
        assert result["replicas"] == count and result["spread"] == 0.0
        assert result["differences"].keys() == {"y", "to_x", "to_gamma", "to_beta", "moving_mean", "moving_variance"}
        assert max(result["differences"].values()) < result["tolerance"], result
    assert results["frozen"]["moved"] == 0.0 and results["float32"]["moved"] > 1
    # The comparison can fail: each replica by its own statistics.
    assert min(alone["differences"][name] for name in ("y", "to_x", "moving_mean", "moving_variance")) > 0.01
