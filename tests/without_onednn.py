"""Compares our layers with loops and formulas in float64, and prints the differences. Run by test_convolution.py in a process of
its own with TF_ENABLE_ONEDNN_OPTS=0, where the CPU has no native gradients of dilated convolutions.
"""

import json

import numpy as np
import tensorflow as tf

from kerasseg.layers import BatchNormalization, Conv2D
from kerasseg.layers.convolution import has_native_dilation

RATE, SHAPE = 2, (2, 6, 7, 3)


def windows(shape):
    """For each weight of a 3×3 kernel: where its outputs lie, and the inputs it meets there."""
    _, height, width, _ = shape
    for row, column in np.ndindex(3, 3):
        down, right = (row - 1) * RATE, (column - 1) * RATE
        y = slice(max(0, -down), min(height, height - down)), slice(max(0, -right), min(width, width - right))
        x = slice(max(0, down), min(height, height + down)), slice(max(0, right), min(width, width + right))
        yield row, column, (slice(None), *y), (slice(None), *x)


def convolution_by_hand(x, kernel, weights):
    """Output, and the gradients of Σ output · weights for x and the kernel."""
    y, to_x, to_kernel = np.zeros((*x.shape[:3], kernel.shape[-1])), np.zeros(x.shape), np.zeros(kernel.shape)
    for row, column, out, into in windows(x.shape):
        y[out] += x[into] @ kernel[row, column]
        to_x[into] += weights[out] @ kernel[row, column].T
        to_kernel[row, column] = np.einsum("bhwi,bhwo->io", x[into], weights[out])
    return {"y": y, "to_x": to_x, "to_kernel": to_kernel}


def normalization_by_hand(x, weights, epsilon):
    """The same of batch normalisation with gamma 1 and beta 0, and what its moving variance becomes."""
    axes, variance = (0, 1, 2), x.var((0, 1, 2))
    deviation = np.sqrt(variance + epsilon)
    y = (x - x.mean(axes)) / deviation
    to_x = (weights - weights.mean(axes) - y * (weights * y).mean(axes)) / deviation
    return {"y": y, "to_x": to_x, "to_gamma": (weights * y).sum(axes), "to_beta": weights.sum(axes), "moving": 0.9 + 0.1 * variance}


def difference(received, expected):
    return float(np.abs(np.asarray(received, "float64") - expected).max() / np.abs(expected).max())


def run(layer, x, weights):
    x = tf.constant(x, "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True) if isinstance(layer, BatchNormalization) else layer(x)
        loss = tf.reduce_sum(y * tf.constant(weights, "float32"))
    return [y, *tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])]


def main():
    generator = np.random.default_rng(0)
    x, weights = generator.normal(0.5, 1, SHAPE), generator.normal(0, 1, (*SHAPE[:3], 5))
    convolution = Conv2D(5, 3, padding="same", dilation_rate=RATE, use_bias=False)
    convolution.build(SHAPE)
    convolution.set_weights([generator.normal(0, 1, (3, 3, 3, 5))])
    expected = convolution_by_hand(x, convolution.get_weights()[0].astype("float64"), weights)
    differences = [difference(*pair) for pair in zip(run(convolution, x, weights), expected.values(), strict=True)]
    normalization = BatchNormalization(momentum=0.9, epsilon=1e-5)
    expected = normalization_by_hand(x, weights[..., :3], 1e-5)
    received = [*run(normalization, x, weights[..., :3]), normalization.moving_variance.value]
    differences += [difference(*pair) for pair in zip(received, expected.values(), strict=True)]
    print(json.dumps({"native": has_native_dilation("float32"), **dict(enumerate(differences))}))


if __name__ == "__main__":
    main()
