"""Pooling that remembers its maxima, and unpooling, against TensorFlow's own argmax and a scatter."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import KerassegError
from kerasseg.layers import Geometry, MaxPoolingWithMask2D, MaxUnpooling2D
from kerasseg.ops import max_pool_with_mask, max_unpool

SHAPE = (2, 6, 8, 3)


def values(shape=SHAPE, seed=0, ties=True):
    """Mostly negative; few different values, so that most windows have several maxima, some all four."""
    generator = np.random.default_rng(seed)
    x = generator.integers(-3, 2, shape) if ties else generator.normal(-1, 1, shape)
    x = x.astype("float32")
    x[0, :2, :2] = -1
    return x


def by_argmax(x, y):
    """Pooled values, and y scattered to where they stood."""
    pooled, argmax = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID", include_batch_in_index=True)
    scattered = tf.scatter_nd(tf.reshape(argmax, [-1, 1]), tf.reshape(y, [-1]), [tf.size(x, tf.int64)])
    return pooled, tf.reshape(scattered, tf.shape(x))


def both(x, y):
    pooled, mask = MaxPoolingWithMask2D()(x)
    return pooled, MaxUnpooling2D()([y, mask])


def bits(x):
    x = np.asarray(x)
    return x.view({2: "uint16", 4: "uint32"}[x.itemsize])


def check(received, expected):
    for ours, theirs in zip(received, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(bits(ours), bits(theirs))


def small(shape=SHAPE):
    return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])


FORMS = {
    "eager": both,
    "xla": tf.function(both, jit_compile=True),
    "dynamic": tf.function(both, [tf.TensorSpec((None, None, None, 3))] * 2),
    "dynamic_xla": tf.function(both, [tf.TensorSpec((None, None, None, 3))] * 2, jit_compile=True),
}


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_both_equal_argmax_and_scatter_bit_for_bit(form, ties):
    for seed, shape in enumerate((SHAPE, (1, 2, 2, 3), (3, 2, 4, 3))):
        x, y = values(shape, seed, ties), values(small(shape), 9, ties=False)
        check(FORMS[form](x, y), by_argmax(x, y))


def test_half_precision_is_the_same_bits():
    x, y = (tf.cast(value, "bfloat16") for value in (values(ties=False), values(small(), 9, ties=False)))
    pooled, mask = max_pool_with_mask(x)
    # TensorFlow's argmax has no bfloat16 here; the numbers are exact in float32.
    check(
        (tf.cast(pooled, "float32"), tf.cast(max_unpool(y, mask), "float32")), by_argmax(*(tf.cast(v, "float32") for v in (x, y)))
    )
    assert pooled.dtype == "bfloat16" and mask.dtype == "bool"


def test_zeros_of_both_signs_and_infinities():
    cells = np.float32([[0.0, -0.0, -0.0, 0.0], [-0.0, -0.0, -np.inf, -np.inf], [-np.inf, -np.inf, -np.inf, -0.0]])
    x = cells.reshape(1, 6, 2, 1)
    y = values((1, 3, 1, 1), ties=False)
    check(both(x, y), by_argmax(x, y))


def test_in_tflite():
    from ai_edge_litert.interpreter import Interpreter

    x, y = values(), values(small(), 9, ties=False)
    traced = tf.function(both, [tf.TensorSpec(x.shape, name="x"), tf.TensorSpec(y.shape, name="y")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    interpreter = Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        interpreter.set_tensor(given["index"], x if tuple(given["shape"]) == x.shape else y)
    interpreter.invoke()
    outputs = [interpreter.get_tensor(result["index"]) for result in interpreter.get_output_details()]
    check(sorted(outputs, key=np.size), by_argmax(x, y))


def test_the_mask_names_one_cell_of_each_window():
    x = np.float32([[1, 2, 5, 5], [3, 0, 5, 5], [-4, -4, 0, 0], [-4, -3, 0, 1]]).reshape(1, 4, 4, 1)
    pooled, mask = max_pool_with_mask(x)
    np.testing.assert_array_equal(pooled[0, ..., 0], [[3, 5], [-3, 1]])
    np.testing.assert_array_equal(np.argmax(mask[0], axis=-1), [[2, 0], [3, 3]])
    assert np.all(np.sum(mask, axis=-1) == 1)
    unpooled = max_unpool(tf.constant([[[[10.0], [-20]], [[30], [0]]]]), mask)
    np.testing.assert_array_equal(unpooled[0, ..., 0], [[0, 0, -20, 0], [10, 0, 0, 0], [0, 0, 0, 0], [0, 30, 0, 0]])


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_gather_and_scatter(compiled):
    x, y, weights = values(), values(small(), 9, ties=False), values(SHAPE, 5, ties=False)
    pool_weights = values(small(), 6, ties=False)

    def gradients(function):
        def run(x, y):
            with tf.GradientTape() as tape:
                tape.watch([x, y])
                pooled, unpooled = function(x, y)
                loss = tf.reduce_sum(pooled * pool_weights) + tf.reduce_sum(unpooled * weights)
            return tape.gradient(loss, [x, y])

        return run

    # By hand: what a maximum gets goes to its cell, what lies on that cell goes back to the value put there.
    _, argmax = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID", include_batch_in_index=True)
    to_x = np.zeros(x.size, "float32")
    to_x[np.asarray(argmax).ravel()] = pool_weights.ravel()
    to_y = weights.ravel()[np.asarray(argmax)]
    ours = tf.function(gradients(both), jit_compile=compiled)(tf.constant(x), tf.constant(y))
    np.testing.assert_array_equal(ours[0], to_x.reshape(x.shape))
    np.testing.assert_array_equal(ours[1], to_y)
    check(ours, gradients(by_argmax)(tf.constant(x), tf.constant(y)))


def test_gradients_can_be_derived_again():
    x = tf.constant(values(ties=False))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            pooled, mask = max_pool_with_mask(x)
            loss = tf.reduce_sum(max_unpool(pooled**3, mask))
        (gradient,) = inner.gradient(loss, [x])
    second = outer.gradient(gradient, x)
    np.testing.assert_allclose(second, 6 * max_unpool(pooled, mask), rtol=1e-6)


@pytest.mark.parametrize("size", [(5, 8), (6, 3), (3, 3)])
def test_odd_sides_are_refused(size):
    with pytest.raises(KerassegError, match=f"map of {size[0]}x{size[1]} cells: windows of 2x2 need even sides"):
        MaxPoolingWithMask2D()(tf.zeros((1, *size, 1)))
    with pytest.raises(KerassegError, match="need even sides"):
        MaxPoolingWithMask2D()(keras.Input((*size, 1)))
    for form in ("dynamic", "dynamic_xla"):
        # Else one row against two would be spread out, in silence.
        with pytest.raises(tf.errors.InvalidArgumentError):
            FORMS[form](tf.zeros((1, *size, 3)), tf.zeros((1, size[0] // 2, size[1] // 2, 3)))


def test_masks_of_another_width_are_refused():
    with pytest.raises(KerassegError, match=r"expected values \(B, h, w, C\) and the mask"):
        MaxUnpooling2D()([tf.zeros((1, 2, 2, 3)), tf.zeros((1, 2, 2, 3))])
    with pytest.raises(KerassegError, match="expected values"):
        MaxUnpooling2D()(tf.zeros((1, 2, 2, 3)))


def test_the_pair_in_a_network_of_any_size(tmp_path):
    image = keras.Input((None, None, 2))
    pooled, mask = MaxPoolingWithMask2D(name="pool")(image)
    assert pooled.shape == (None, None, None, 2) and mask.shape == (None, None, None, 8)
    assert (pooled.dtype, mask.dtype) == ("float32", "bool")
    model = keras.Model(image, [pooled, MaxUnpooling2D(name="unpool")([pooled + 0.5, mask])])
    assert model.compute_output_shape((1, 6, 4, 2)) == [(1, 3, 2, 2), (1, 6, 4, 2)]
    model.save(tmp_path / "pair.keras")
    loaded = keras.models.load_model(tmp_path / "pair.keras")
    for size in ((6, 4), (2, 10)):
        x = values((2, *size, 2))
        received = loaded.predict(x, verbose=0)
        check(received, by_argmax(x, received[0] + 0.5))


def test_under_mixed_precision_the_mask_is_that_of_the_rounded_values():
    x = np.float32([[1.0, 1.001], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    assert np.argmax(MaxPoolingWithMask2D()(x)[1]) == 1
    pooled, mask = MaxPoolingWithMask2D(dtype="mixed_bfloat16")(x)
    assert pooled.dtype == "bfloat16" and np.argmax(mask) == 0
    outputs = MaxPoolingWithMask2D(dtype="mixed_bfloat16")(keras.Input((2, 2, 1)))
    assert [output.dtype for output in outputs] == ["bfloat16", "bool"]


def test_where_the_cells_lie():
    image = keras.Input((None, None, 1))
    pooled, mask = MaxPoolingWithMask2D()(image)
    unpooled = MaxUnpooling2D()([pooled, mask])
    geometry = Geometry()
    assert geometry.coordinate_map(pooled) == geometry.coordinate_map(mask) == (2, 0.5)
    assert geometry.coordinate_map(unpooled) == (1, 0)
    # A cell shows a value made of the window that it lies in.
    assert geometry.receptive_field(pooled) == geometry.receptive_field(unpooled) == (2, 2)
    blurred = keras.layers.AveragePooling2D(3, 1, "same")(pooled)
    assert geometry.receptive_field(MaxUnpooling2D()([blurred, mask])) == (6, 6)
