"""Every layer through one checker, then each against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, diagonal, transposed_convolution

import kerasseg.layers
from kerasseg import KerassegError, layers
from kerasseg.layers import (
    PREPROCESSING,
    BilinearInitializer,
    BilinearUpsampling,
    CeilMaxPooling2D,
    Conv2D,
    CropLike,
    Preprocessing,
)
from kerasseg.ops import bilinear_kernel, upsample_bilinear

# Layer, arguments, shapes of its inputs.
CASES = [
    (layers.Conv2D, {"filters": 6, "kernel_size": 3, "strides": 2, "activation": "relu", "name": "plain"}, [(2, 7, 6, 4)]),
    (layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 2, "padding": "same", "name": "grouped"}, [(2, 7, 6, 4)]),
    (layers.Conv2D, {"filters": 6, "kernel_size": 3, "dilation_rate": 2, "padding": "same", "name": "dilated"}, [(2, 7, 6, 4)]),
    (layers.BatchNormalization, {"momentum": 0.9, "epsilon": 1e-5, "name": "batch_norm"}, [(2, 3, 4, 5)]),
    (layers.Dropout, {"rate": 0.3, "seed": 4, "name": "dropout"}, [(2, 7, 6, 4)]),
    (layers.CropLike, {"offset": 2, "name": "crop"}, [(2, 9, 8, 3), (2, 5, 6, 1)]),
    (layers.LocalResponseNormalization, {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0, "name": "norm"}, [(2, 3, 4, 7)]),
    (layers.NullBackground, {"name": "background"}, [(2, 3, 4, 5)]),
    (layers.CeilMaxPooling2D, {"name": "pool2"}, [(2, 7, 6, 3)]),
    (layers.CeilMaxPooling2D, {"pool_size": 3, "strides": 2, "padding": 1, "name": "pool3"}, [(2, 7, 6, 3)]),
    (layers.RateCheck, {"rates": (2, 6), "output_stride": 8, "name": "rate_check"}, [(2, 3, 4, 5)]),
    (layers.AtrousPadding2D, {"size": (3, 3), "strides": 2, "rate": 2, "padding": "same", "name": "pad_same"}, [(2, 9, 8, 3)]),
    (layers.AtrousPadding2D, {"size": (2, 3), "strides": 2, "padding": "valid", "spare": (1, 1), "name": "pad"}, [(2, 8, 9, 3)]),
    (layers.AtrousPooling2D, {"size": (3, 2), "strides": 2, "rate": 2, "name": "dilated_max"}, [(2, 9, 8, 3)]),
    (layers.AtrousPooling2D, {"size": (2, 3), "rate": 2, "kind": "average", "name": "dilated_average"}, [(2, 9, 8, 3)]),
    (layers.Subsampling2D, {"rate": 3, "name": "subsampling"}, [(2, 7, 6, 3)]),
    (layers.ScaledAdd, {"scale": 0.25, "name": "scaled_add"}, [(2, 3, 4, 5), (2, 3, 4, 5)]),
    (layers.ChannelScale, {"value": 0.25, "name": "scale"}, [(2, 3, 4, 5)]),
    (layers.Preprocessing, {"order": (2, 0), "mean": (3.0, 4.0), "scale": (0.5, 2.0), "name": "preprocessing"}, [(2, 3, 4, 3)]),
    (layers.ReflectionPadding2D, {"margin": 7, "name": "reflection"}, [(2, 3, 9, 4)]),
    (layers.MinimumSize, {"minimum": 5, "name": "minimum_size"}, [(2, 5, 6, 3)]),
    (layers.MinimumSize, {"minimum": 4, "divisor": 2, "name": "multiples"}, [(2, 4, 6, 3)]),
    (layers.MaxUnpooling2D, {"name": "unpool"}, [(2, 3, 4, 5), (2, 3, 4, 20)]),
    (layers.Normalization, {"axis": (-1,), "name": "standardization"}, [(2, 3, 4, 5)]),
    (layers.PadToGrid, {"stride": 8, "slack": 2, "remainder": 3, "name": "pad_to_grid"}, [(2, 9, 6, 3)]),
    (layers.FitLike, {"name": "fit_like"}, [(2, 9, 6, 3), (2, 7, 8, 1)]),
    (layers.AlignedResize, {"zoom": 3, "shrink": 2, "name": "interp"}, [(2, 9, 8, 3)]),
    (layers.AlignedResizeLike, {"name": "resize_like"}, [(2, 3, 4, 5), (2, 9, 6, 1)]),
    (layers.BilinearUpsampling, {"kernel_size": 4, "strides": 2, "name": "up2"}, [(2, 3, 4, 5)]),
    (layers.BilinearUpsampling, {"kernel_size": 5, "strides": 3, "name": "up3"}, [(2, 3, 4, 5)]),
]
# Keras writes one number as two.
PAIRS = ("kernel_size", "strides", "dilation_rate")
every_layer = pytest.mark.parametrize(("kind", "arguments", "shapes"), CASES, ids=[case[1]["name"] for case in CASES])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def inputs_of(shapes):
    values = [tf.constant(random(*shape, seed=index)) for index, shape in enumerate(shapes)]
    return values[0] if len(values) == 1 else values


def test_every_layer_is_checked():
    kinds = {value for value in vars(kerasseg.layers).values() if isinstance(value, type) and issubclass(value, keras.layers.Layer)}
    # Two outputs, one of them boolean: tests/test_unpooling.py.
    assert kinds == {case[0] for case in CASES} | {layers.MaxPoolingWithMask2D}


@every_layer
def test_a_layer_is_rebuilt_from_its_config(kind, arguments, shapes):
    layer, x = kind(**arguments), inputs_of(shapes)
    expected = layer(x)
    config = layer.get_config()
    assert {name: config[name] for name in arguments if name != "activation"} == {
        name: (value, value) if isinstance(layer, keras.layers.Conv2D) and name in PAIRS else value
        for name, value in arguments.items()
        if name != "activation"
    }
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(twin) is kind and twin.get_config() == config
    twin(x)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(x), expected)


@every_layer
def test_shapes_are_told_before_and_kept_when_unknown(kind, arguments, shapes):
    layer, x = kind(**arguments), inputs_of(shapes)
    expected = layer(x)
    assert layer.compute_output_shape(shapes if len(shapes) > 1 else shapes[0]) == expected.shape
    unknown = [(None, None, None, shape[-1]) for shape in shapes]
    assert layer.compute_output_shape(unknown if len(unknown) > 1 else unknown[0]) == (None, None, None, expected.shape[-1])
    specs = [tf.TensorSpec(shape) for shape in unknown]
    traced = tf.function(lambda *x: layer(list(x) if len(x) > 1 else x[0]), specs)
    received = traced(*(x if len(shapes) > 1 else [x]))
    np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-6)
    # What follows needs to know the channels while it is traced.
    assert traced.get_concrete_function().structured_outputs.shape[-1] == expected.shape[-1]
    symbolic = [keras.Input(shape[1:], batch_size=shape[0]) for shape in shapes]
    assert layer(symbolic if len(shapes) > 1 else symbolic[0]).shape == expected.shape


@every_layer
def test_mixed_precision_computes_in_bfloat16_and_stores_float32(kind, arguments, shapes):
    x = inputs_of(shapes)
    exact = kind(**arguments)
    expected = exact(x)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = kind(**arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    layer.build(shapes if len(shapes) > 1 else shapes[0])
    layer.set_weights(exact.get_weights())
    received = layer(x)
    # Means of 123.675 do not survive bfloat16: neither must the image be rounded before.
    exempt = kind is Preprocessing
    assert received.dtype == ("float32" if exempt else "bfloat16")
    assert all(weight.dtype == "float32" for weight in layer.weights if weight.name != "count")
    assert_close(tf.cast(received, "float32"), expected, 1e-6 if exempt else 0.03)


@every_layer
def test_gradients_reach_input_and_weights(kind, arguments, shapes):
    layer, x = kind(**arguments), inputs_of(shapes)
    first = x[0] if len(shapes) > 1 else x
    with tf.GradientTape() as tape:
        tape.watch(first)
        loss = tf.reduce_sum(layer(x) ** 2)
    for gradient in tape.gradient(loss, [first, *(w.value for w in layer.trainable_weights)]):
        assert np.any(gradient) and np.isfinite(gradient).all()


def caffe_max_pool(x, k, s, p):
    """caffe/src/caffe/layers/pooling_layer.cpp, loop for loop."""
    batch, height, width, channels = x.shape
    counts = []
    for n in (height, width):
        count = int(np.ceil((n + 2 * p - k) / s)) + 1
        if p and (count - 1) * s >= n + p:
            count -= 1
        counts.append(count)
    y = np.empty((batch, *counts, channels), x.dtype)
    for b, i, j, c in np.ndindex(y.shape):
        top, left = i * s - p, j * s - p
        bottom, right = min(top + k, height), min(left + k, width)
        y[b, i, j, c] = max(x[b, r, q, c] for r in range(max(top, 0), bottom) for q in range(max(left, 0), right))
    return y


@pytest.mark.parametrize("geometry", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 2, 1), (3, 1, 1), (2, 1, 0)])
@pytest.mark.parametrize("height", range(1, 10))
def test_pooling_is_caffes(geometry, height):
    width = 10 - height
    if min(height, width) + 2 * geometry[2] <= geometry[0] - geometry[1]:
        return  # No window: Caffe has no output either.
    x = random(1, height, width, 2) - 5
    layer, expected = CeilMaxPooling2D(*geometry), caffe_max_pool(x, *geometry)
    np.testing.assert_array_equal(layer(x), expected)
    # And where the size is known only when the graph runs.
    traced = tf.function(layer, [tf.TensorSpec((None, None, None, 2))], autograph=False)
    np.testing.assert_array_equal(traced(x), expected)


def test_local_response_normalization_is_the_formula():
    x = random(2, 3, 4, 9) * 100
    for size, alpha, beta, bias in ((5, 1e-4, 0.75, 1.0), (3, 0.5, 0.6, 2.0)):
        wide = np.pad(x.astype("float64") ** 2, [(0, 0)] * 3 + [(size // 2, size // 2)])
        energy = sum(wide[..., shift : shift + 9] for shift in range(size))
        expected = x / (bias + alpha / size * energy) ** beta
        assert_close(layers.LocalResponseNormalization(size, alpha, beta, bias)(x), expected, 1e-5)


def test_bilinear_kernels_written_out():
    even = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    np.testing.assert_allclose(bilinear_kernel(4), even, rtol=1e-6)
    np.testing.assert_allclose(bilinear_kernel(3), np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(bilinear_kernel(63)[31], np.concatenate([np.arange(1, 33), np.arange(31, 0, -1)]) / 32, rtol=1e-6)
    np.testing.assert_allclose([bilinear_kernel(2 * s).sum() for s in (2, 8, 16, 32)], [4, 64, 256, 1024], rtol=1e-5)
    kernel = BilinearInitializer()((4, 4, 2, 2))
    np.testing.assert_allclose(kernel, np.stack([np.stack([even, 0 * even], -1), np.stack([0 * even, even], -1)], -2), rtol=1e-6)
    for shape in ((4, 3, 2, 2), (4, 4, 2, 3)):
        with pytest.raises(ValueError, match="bilinear upsampling needs"):
            BilinearInitializer()(shape)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (16, 8), (32, 16), (64, 32), (63, 32), (3, 2), (5, 3)])
def test_upsampling_is_a_transposed_convolution(kernel_size, stride):
    for height, width in ((3, 5), (1, 2)):
        x = tf.constant(random(2, height, width, 3))
        dense = keras.layers.Conv2DTranspose(3, kernel_size, stride, use_bias=False)
        dense.build(x.shape)
        dense.set_weights([diagonal(bilinear_kernel(kernel_size), 3)])
        weights = random(*dense.compute_output_shape(x.shape), seed=1)
        values, gradients = [], []
        for layer in (BilinearUpsampling(kernel_size, stride), dense):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                loss = tf.reduce_sum(y * weights)
            values.append(y)
            gradients.append(tape.gradient(loss, x))
        assert_close(values[0], values[1], 1e-5)
        assert_close(values[0], transposed_convolution(x, kernel_size, stride), 1e-5)
        assert_close(gradients[0], gradients[1], 1e-5)


@pytest.mark.parametrize(("kernel_size", "stride", "remedy"), [(5, 2, "use kernel_size=3 or 4"), (6, 3, "use kernel_size=5$")])
def test_other_kernels_do_not_interpolate(kernel_size, stride, remedy):
    with pytest.raises(ValueError, match=remedy):
        upsample_bilinear(tf.zeros((1, 2, 2, 1)), kernel_size, stride)


@pytest.mark.parametrize("arguments", [{"padding": "same"}, {"strides": 2}, {"dilation_rate": 2, "use_bias": False}])
def test_groups_are_convolutions_side_by_side(arguments):
    x = tf.constant(random(2, 9, 8, 6))
    layer = Conv2D(9, 3, groups=3, **arguments)
    layer.build(x.shape)
    give = [random(*w.shape, seed=7) for w in layer.weights]
    layer.set_weights(give)
    weights = random(*layer.compute_output_shape(x.shape), seed=1)
    watched = [x, *(w.value for w in layer.weights)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * weights)
    gradients = tape.gradient(loss, watched)
    for group in range(3):
        inputs, outputs = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
        alone = keras.layers.Conv2D(3, 3, **arguments)
        part = x[..., inputs]
        alone.build(part.shape)
        alone.set_weights([value[..., outputs] for value in give])
        with tf.GradientTape() as tape:
            tape.watch(part)
            expected = alone(part)
            loss = tf.reduce_sum(expected * weights[..., outputs])
        assert_close(y[..., outputs], expected, 1e-5)
        by_part = tape.gradient(loss, [part, *(w.value for w in alone.weights)])
        assert_close(gradients[0][..., inputs], by_part[0], 1e-5)
        for whole, gradient in zip(gradients[1:], by_part[1:], strict=True):
            assert_close(whole[..., outputs], gradient, 1e-5)


# Red 200, green 100, blue 50 (and depth e⁸: its logarithm is the input), by hand.
PIXEL = {
    "caffe": (50 - 104.00699, 100 - 116.66877, 200 - 122.67892),
    "tf": (0.568627, -0.215686, -0.607843),
    "torch": (1.307047, -0.285014, -0.932985),
    "hha": (67.569, 5.924, -68.477),
    "nyud": (-66.190, 2.797, 107.682),
    "nyud_rgbd": (-66.190, 2.797, 107.682, 0.156),
    "dilation_voc": (-52.93, -11.36, 83.48),
    "dilation_camvid": (-60.70313, -8.77809, 94.58787),
    "dilation_kitti": (-46.1943, 4.44863, 108.65308),
    "dilation_cityscapes": (-22.39, 17.09, 126.84),
}


@pytest.mark.parametrize("preset", PREPROCESSING)
def test_one_pixel_preprocessed_by_hand(preset):
    pixel = np.array([200, 100, 50, 8][: len(PIXEL[preset])]).reshape(1, 1, 1, -1)
    for kind in ("uint8", "int32", "float32"):
        received = Preprocessing.of(preset)(tf.constant(pixel, kind))
        assert received.dtype == "float32"
        np.testing.assert_allclose(received[0, 0, 0], PIXEL[preset], rtol=1e-5, atol=1e-5)


def test_preprocessing_mappings():
    x = np.float32([[[[10, 20]]]])
    np.testing.assert_allclose(Preprocessing.of({"mean": (1, 2)})(x)[0, 0, 0], [9, 18])
    np.testing.assert_allclose(Preprocessing.of({"mean": (1, 2), "scale": 2, "order": (1, 0)})(x)[0, 0, 0], [38, 16])
    for wrong, message in (
        ({"means": (1, 2)}, "expected mean, and optionally order and scale"),
        ({"scale": 1}, "expected mean"),
        ({"mean": (1, 2), "order": (0,)}, "1 channels in order, 2 in mean, 2 in scale"),
        ("torhc", "did you mean 'torch'"),
    ):
        with pytest.raises(KerassegError, match=message):
            Preprocessing.of(wrong)


def test_crop_cuts_at_its_offset():
    x = np.arange(2 * 6 * 7).reshape(2, 6, 7, 1).astype("float32")
    np.testing.assert_array_equal(CropLike(2)([x, np.zeros((2, 3, 4, 9))]), x[:, 2:5, 2:6])
    np.testing.assert_array_equal(CropLike(0)([x, x]), x)
    with pytest.raises(ValueError, match="offset=-1"):
        CropLike(-1)


def test_scale_starts_at_its_value_and_is_not_trained():
    layer = layers.ChannelScale(0.25)
    np.testing.assert_array_equal(layer(np.float32([[[[4, 8]]]]))[0, 0, 0], [1, 2])
    assert layer.trainable_weights == [] and layer.count_params() == 2
