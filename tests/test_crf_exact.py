"""Gaussian kernels as dense matrices, against worked examples, float64 NumPy and the stored oracles."""

import json

import crf_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from kerasseg import KerassegError
from kerasseg.crf import dense_crf, exact
from kerasseg.crf.parameters import NORMALIZATIONS, Parameters


def some_features(d=3, pixels=20, seed=0):
    return np.random.default_rng(seed).normal(0, 1.5, (d, pixels))


def test_kernel_worked_by_hand():
    # Pixels at (0, 0), (1, 0), (0, 2): squared distances 1, 4 and 5.
    kernel = exact.kernel(tf.constant([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    a, b, c = np.exp([-0.5, -2.0, -2.5])
    np.testing.assert_allclose(kernel, [[1, a, b], [a, 1, c], [b, c, 1]], rtol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 5, 6])
def test_kernel_is_the_formula(d):
    features = some_features(d)
    assert_close(exact.kernel(features), reference.gaussian_kernel(features), 1e-12)
    assert_close(exact.kernel(features.astype("float32")), reference.gaussian_kernel(features), 1e-6)


def test_far_from_the_origin_the_kernel_keeps_its_digits():
    # Column 4000 at theta 1: the squares are 1.6e7, and float32 has seven digits.
    features = some_features() + 4000
    expected = reference.gaussian_kernel(features.astype("float32"))
    assert_close(exact.kernel(features.astype("float32")), expected, 1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalization_is_the_formula(normalization):
    features, values = some_features(), np.random.default_rng(1).normal(size=(20, 4))
    matrix = reference.normalized_kernel(reference.gaussian_kernel(features), normalization)
    assert_close(exact.normalized(exact.kernel(features), normalization), matrix, 1e-12)
    assert_close(exact.filtered(features, values, normalization), matrix @ values, 1e-12)


def test_what_each_normalization_keeps():
    kernel = exact.kernel(some_features())
    assert_close(tf.reduce_sum(exact.normalized(kernel, "after"), 1), np.ones(20), 1e-12)
    assert_close(tf.reduce_sum(exact.normalized(kernel, "before"), 0), np.ones(20), 1e-12)
    symmetric = exact.normalized(kernel, "symmetric")
    assert_close(symmetric, tf.transpose(symmetric), 1e-12)
    # The square root of the row sums is its eigenvector of value 1.
    root = np.sqrt(np.sum(kernel, 1, keepdims=True))
    assert_close(symmetric @ root, root, 1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_are_finite_differences(normalization):
    features, values = some_features(2, 6), np.random.default_rng(1).normal(size=(6, 2))
    factors = np.random.default_rng(2).normal(size=(6, 2))

    def loss(features, values):
        matrix = reference.normalized_kernel(reference.gaussian_kernel(features), normalization)
        return np.sum(factors * (matrix @ values))

    inputs = [tf.constant(features), tf.constant(values)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(factors * exact.filtered(*inputs, normalization))
    for index, received in enumerate(tape.gradient(total, inputs)):
        expected = np.zeros(tuple(received.shape))
        for place in np.ndindex(*received.shape):
            step = np.zeros(tuple(received.shape))
            step[place] = 1e-5
            ahead, behind = ([features, values] for _ in range(2))
            ahead[index], behind[index] = ahead[index] + step, behind[index] - step
            expected[place] = (loss(*ahead) - loss(*behind)) / 2e-5
        assert_close(received, expected, 1e-7)


def test_too_many_pixels_are_one_line():
    features = np.zeros((2, exact.MAXIMUM_PIXELS + 1), "float32")
    with pytest.raises(KerassegError, match=r"^20001 pixels are too many for method='exact'.*method='lattice'$"):
        exact.kernel(features)
    unknown_size = tf.function(exact.kernel, input_signature=[tf.TensorSpec((2, None))])
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many for method"):
        unknown_size(features)
    np.testing.assert_allclose(unknown_size(features[:, :3]), np.ones((3, 3)))


def test_unknown_normalization_is_one_line():
    with pytest.raises(KerassegError, match="'pixel': expected one of symmetric, after, before, none"):
        exact.normalized(tf.eye(2), "pixel")


def test_compiled_by_xla_it_is_the_same():
    features, values = (each.astype("float32") for each in (some_features(), np.random.default_rng(1).normal(size=(20, 4))))
    compiled = tf.function(exact.filtered, jit_compile=True)
    assert_close(compiled(features, values, "symmetric"), exact.filtered(features, values, "symmetric"), 1e-6)


def oracle(oracle_dir, name):
    """Image, logits (H, W, C), parameters, and the arrays of one file, put (H, W, C)."""
    with np.load(oracle_dir / "crf" / f"{name}.npz") as stored:
        note = json.loads(str(stored["note"]))
        arrays = {key: stored[key].transpose(1, 2, 0) for key in stored.files if key.startswith("Q_")}
        image, score = stored["image"], stored["score"].transpose(1, 2, 0)
    parameters = Parameters(
        note["bi_w"], note["bi_xy"], note["bi_rgb"], note["pos_w"], note["pos_xy"], iterations=note["it"], normalization="after"
    )
    return image, score, parameters, arrays


@pytest.mark.parity
@pytest.mark.parametrize("name", ["deeplabv1-largefov", "crfrnn-train"])
def test_marginals_are_those_of_the_dense_oracle(oracle_dir, name):
    image, score, parameters, expected = oracle(oracle_dir, name)
    received = dense_crf(image, score, parameters, method="exact")
    assert received.dtype == np.float32
    difference = np.abs(received - expected["Q_exact"]).max()
    # Shown by `pytest -rP`.
    print(f"{name} Q_exact: {difference:.1e}")
    assert difference <= 1e-5
    # The pixel's own contribution counts: without it these are other numbers.
    assert np.abs(received - expected["Q_exact_noself"]).max() > 1e-3
