"""Resizing with aligned corners against its formula."""

from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from kerasseg.layers import AlignedResize, AlignedResizeLike, coordinate_map
from kerasseg.ops import resize_aligned


def weights(size, new_size):
    """The matrix of one side: output i lies at input i · (size − 1) / (new_size − 1), in exact fractions."""
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        position = Fraction(i * (size - 1), max(new_size - 1, 1))
        before = int(position)
        matrix[i, before] += 1 - (position - before)
        if before + 1 < size:
            matrix[i, before + 1] += position - before
    return matrix


def aligned(x, height, width):
    rows, columns = weights(x.shape[1], height), weights(x.shape[2], width)
    return np.einsum("bhwc,yh,xw->byxc", np.asarray(x, "float64"), rows, columns)


def maps(*size):
    return np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype("float32")


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (2, 1), (1, 1)])
@pytest.mark.parametrize("new_size", [(5, 7), (33, 49), (3, 4), (1, 2)])
def test_corners_coincide_and_the_rest_lies_between_them(size, new_size):
    x = maps(*size)
    expected = aligned(x, *new_size)
    assert_close(resize_aligned(tf.constant(x), *new_size), expected, 1e-5)


# What Caffe's Interp makes of 321: FACTS of the three scales of DeepLab v2, and the zooms of the scores.
@pytest.mark.parametrize(
    ("arguments", "size", "expected"),
    [
        ({"shrink": 2}, 321, 161),
        ({"zoom": 3, "shrink": 4}, 321, 241),
        ({"zoom": 8}, 41, 321),
        ({"zoom": 8}, 67, 529),
        ({"zoom": 2}, 21, 41),
        ({"zoom": 4, "shrink": 3}, 31, 41),
        ({"shrink": 2}, 64, 32),
        ({}, 13, 13),
    ],
)
def test_sizes_are_interps(arguments, size, expected):
    layer = AlignedResize(**arguments)
    assert layer.compute_output_shape((1, size, None, 3)) == (1, expected, None, 3)
    assert layer(np.zeros((1, size, 9, 1), "float32")).shape[1] == expected


def test_layers_resample_once_and_gradients_flow():
    x, reference = tf.constant(maps(9, 8)), tf.zeros((2, 12, 5, 1))
    assert_close(AlignedResize(zoom=3, shrink=2)(x), aligned(x, 13, 10), 1e-6)
    assert_close(AlignedResizeLike()([x, reference]), aligned(x, 12, 5), 1e-6)
    upstream = maps(12, 5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(AlignedResizeLike()([x, reference]) * upstream)
    rows, columns = weights(9, 12), weights(8, 5)
    assert_close(tape.gradient(value, x), np.einsum("byxc,yh,xw->bhwc", upstream, rows, columns), 1e-5)


def test_type_and_place():
    x = maps(3, 3)
    assert AlignedResize(zoom=2, dtype="mixed_bfloat16")(x).dtype == "bfloat16"
    logits = AlignedResize(zoom=2, dtype="float32")(tf.cast(x, "bfloat16"))
    assert logits.dtype == "float32"
    image = keras.Input((None, None, 3))
    assert coordinate_map(AlignedResize(zoom=3, shrink=4)(image)) == (Fraction(4, 3), 0)
    with pytest.raises(ValueError, match="received zoom=0, shrink=1: expected whole numbers from 1"):
        AlignedResize(zoom=0)


@pytest.mark.parametrize(("size", "new_size"), [((4, 6), (64, 96)), ((9, 10), (14, 64)), ((3, 3), (65, 9)), ((1, 5), (1, 33))])
def test_compiled_by_xla_the_values_are_the_same(size, new_size):
    x, upstream = tf.constant(maps(*size)), maps(*new_size)

    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = AlignedResizeLike()([x, upstream])
            loss = tf.reduce_sum(y * upstream)
        return y, tape.gradient(loss, x)

    received, gradient = tf.function(value_and_gradient, jit_compile=True)(x)
    assert_close(received, aligned(x, *new_size), 1e-5)
    rows, columns = weights(size[0], new_size[0]), weights(size[1], new_size[1])
    assert_close(gradient, np.einsum("byxc,yh,xw->bhwc", upstream, rows, columns), 1e-5)


@pytest.mark.parametrize(("size", "new_size"), [((4, 6), (64, 96)), ((33, 5), (97, 65)), ((5, 7), (9, 25)), ((1, 1), (15, 9))])
def test_what_was_traced_before_is_right_when_xla_compiles_it_later(size, new_size, tmp_path):
    """XLA's own operation is wrong by the size of the values for the first two: a saved network must not hold it."""
    x = tf.constant(maps(*size))
    inner = tf.function(lambda x: resize_aligned(x, *new_size))
    inner(x)
    free = tf.function(lambda x: resize_aligned(x, *new_size), [tf.TensorSpec((None, None, None, 3))])
    for traced in (inner, free):
        module = tf.Module()
        module.resize = traced
        tf.saved_model.save(module, tmp_path / "saved", signatures=traced.get_concrete_function(tf.TensorSpec(x.shape)))
        for function in (traced, tf.saved_model.load(tmp_path / "saved").resize):
            compiled = tf.function(lambda x, function=function: function(x), jit_compile=True)
            assert_close(compiled(x), aligned(x, *new_size), 1e-5)
