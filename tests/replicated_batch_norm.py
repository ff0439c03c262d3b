"""Normalises one batch on several logical devices, unevenly divided, and compares with Keras' layer in float64 on the whole batch.
Prints the differences. Run by test_normalization.py, alone in its process: the CPU can be split only before TensorFlow starts,
and TensorFlow's collectives then know one number of replicas.

    python replicated_batch_norm.py 2|4
"""

import json
import sys
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from kerasseg.layers import BatchNormalization

STEPS, SHAPE = 3, (8, 5, 6, 4)
PARTS = {2: (5, 3), 4: (3, 2, 2, 1)}
ARGUMENTS = {"momentum": 0.7, "epsilon": 1e-3, "name": "bn"}


def batch(number, dtype):
    """Images whose mean is large against their spread and differs from one to the next, and weights of the loss."""
    generator = np.random.default_rng(number)
    images = generator.normal(0, [0.5, 1, 2, 3], SHAPE) + 30 + np.arange(8).reshape(8, 1, 1, 1)
    # As rounded: the reference sees the same images.
    rounded = np.asarray(tf.cast(tf.cast(images, dtype), "float64"))
    return rounded, generator.normal(0, 1, SHAPE)


def give_weights(layer):
    layer.set_weights([np.random.default_rng(9).uniform(0.5, 1.5, weight.shape) for weight in layer.weights])


def gradients(layer, x, weights):
    """Output, and the gradients of a weighted sum of its squares."""
    x, weights = tf.cast(x, layer.compute_dtype), tf.cast(weights, "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, "float32") ** 2 * weights)
    return y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])


def whole(dtype, trainable):
    """All steps on one device, by Keras' layer: each step's results, and the statistics after the last."""
    layer = keras.layers.BatchNormalization(dtype="float64", trainable=trainable, **ARGUMENTS)
    layer.build((None, None, None, 4))
    give_weights(layer)
    results = [gradients(layer, *batch(number, dtype)) for number in range(STEPS)]
    return results[-1], layer.moving_mean.value, layer.moving_variance.value


def divided(array, count):
    return np.split(array, np.cumsum(PARTS[count])[:-1])


def replicated(strategy, dtype, trainable, synchronized):
    """All steps on several devices; the last one's results, every replica's statistics, and the moving mean before."""
    count = strategy.num_replicas_in_sync
    with strategy.scope():
        layer = BatchNormalization(dtype=dtype, trainable=trainable, synchronized=synchronized, **ARGUMENTS)
        layer.build((None, None, None, 4))
        give_weights(layer)
    before = np.asarray(layer.moving_mean.value)

    @tf.function(autograph=False)
    def step(x, weights):
        y, to_x, to_gamma, to_beta = strategy.run(partial(gradients, layer), (x, weights))
        return y, to_x, strategy.reduce("SUM", to_gamma, None), strategy.reduce("SUM", to_beta, None)

    def spread_out(array):
        parts = divided(array, count)
        return strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])

    for number in range(STEPS):
        y, to_x, to_gamma, to_beta = step(*map(spread_out, batch(number, layer.compute_dtype)))
    y, to_x = (tf.concat(strategy.experimental_local_results(value), 0) for value in (y, to_x))
    statistics = [
        [np.asarray(value) for value in strategy.experimental_local_results(moving.value)]
        for moving in (layer.moving_mean, layer.moving_variance)
    ]
    return (y, to_x, to_gamma, to_beta), *statistics, before


def difference(received, expected):
    received, expected = np.asarray(tf.cast(received, "float64")), np.asarray(expected)
    assert received.shape == expected.shape
    return float(np.abs(received - expected).max() / np.abs(expected).max())


def compare(strategy, dtype="float32", trainable=True, synchronized=True, tolerance=2e-5):
    received, means, variances, before = replicated(strategy, dtype, trainable, synchronized)
    expected, mean, variance = whole(dtype.removeprefix("mixed_"), trainable)
    pairs = zip((*received, means[0], variances[0]), (*expected, mean, variance), strict=True)
    names = ("y", "to_x", "to_gamma", "to_beta", "moving_mean", "moving_variance")
    return {
        "replicas": len(means),
        "differences": {name: difference(*pair) for name, pair in zip(names, pairs, strict=True)},
        "tolerance": tolerance,
        "spread": max(float(np.ptp(values, axis=0).max()) for values in (means, variances)),
        "moved": float(np.abs(means[0] - before).max()),
    }


def main(count: int):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(count)])
    results = {
        "float32": compare(strategy),
        "bfloat16": compare(strategy, "mixed_bfloat16", tolerance=0.01),
        "frozen": compare(strategy, trainable=False),
        "not synchronized": compare(strategy, synchronized=False),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
