"""Images that a backbone is too deep for, told before any of its layers runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import images

from kerasseg import KerassegError, load_model, predict
from kerasseg.layers import MinimumSize
from kerasseg.models import MODELS

EXPECTED = "expected height and width of at least 32"


def build(**arguments):
    return MODELS["deeplab_v3"](5, backbone="vgg16", **arguments)


@pytest.fixture(scope="module")
def model():
    return build()


def refused(action, *parts):
    with pytest.raises(KerassegError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and "\x1b" not in text and len(text) < 300
    for part in (EXPECTED, *parts):
        assert part in text


def test_a_size_that_is_known_is_refused_where_it_is_known(model):
    small = np.zeros((1, 16, 31, 3), "float32")
    refused(
        lambda: model(small),
        "received images of 16x31 pixels: ",
        "use larger ones, or another network or backbone (resnet101 takes any)",
    )
    refused(lambda: model.predict(small, verbose=0), "16x31")
    refused(lambda: model.compute_output_shape((1, 40, 31, 3)), "40x31")
    refused(lambda: build(input_shape=(16, 31, 3)), "16x31")
    refused(lambda: build(input_shape=(None, 31, 3)), "?x31")
    traced = tf.function(model, [tf.TensorSpec((None, None, 31, 3))], autograph=False)
    refused(traced.get_concrete_function, "?x31")


def test_a_size_that_shows_in_a_running_graph_is_refused_before_anything_runs(model):
    # Without the layer, oneDNN divides by zero here, and the process is gone.
    refused(lambda: predict(model, np.zeros((16, 31, 3), "uint8")), "deeplab_v3 cannot take an image of 16x31 pixels (scale 1): ")
    refused(lambda: predict(model, np.zeros((64, 64, 3), "uint8"), scales=(1.0, 0.25)), "16x16 pixels (scale 0.25)")
    assert predict(model, np.zeros((32, 33, 3), "uint8")).shape == (32, 33)
    watch = MinimumSize(5)
    ran = []

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
    def traced(x):
        return tf.py_function(lambda y: (ran.append(1), y)[1], [watch(x)], tf.float32)

    for size in ((4, 5), (5, 4)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected height and width of at least 5"):
            traced(tf.zeros((1, *size, 3)))
    assert ran == []
    traced(tf.zeros((1, 5, 5, 3)))
    assert len(ran) == 1


def test_sizes_that_are_no_multiples_are_refused_too():
    watch = MinimumSize(64, divisor=32)
    expected = "expected height and width of at least 64, multiples of 32"
    for size, fitting in (((64, 95), "64x96"), ((63, 64), "64x64"), ((130, 128), "160x128"), ((32, 256), "64x256")):
        with pytest.raises(KerassegError) as error:
            watch(tf.zeros((1, *size, 3)))
        message = f"received images of {size[0]}x{size[1]} pixels: {expected}; resize, pad or crop them, e.g. to {fitting}"
        assert str(error.value) == message
    with pytest.raises(KerassegError, match="of [?]x70 pixels: .* e.g. to 64x96"):
        watch(keras.Input((None, 70, 3)))
    traced = tf.function(watch, [tf.TensorSpec((None, None, None, 3))])
    for size in ((64, 96), (128, 64)):
        assert traced(tf.zeros((2, *size, 3))).shape == (2, *size, 3)
        assert watch(tf.zeros((2, *size, 3))).shape == (2, *size, 3)
    for size in ((64, 95), (97, 64), (32, 64), (64, 32)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
            traced(tf.zeros((2, *size, 3)))


def test_files_without_a_divisor_open():
    config = MinimumSize(7, name="old").get_config()
    assert config.pop("divisor") == 1
    old = MinimumSize.from_config(config)
    assert (old.minimum, old.divisor) == (7, 1)
    assert old(tf.zeros((1, 7, 9, 3))).shape == (1, 7, 9, 3)


def operations(model, size):
    function = tf.function(lambda x: model(x, training=False))
    return {operation.type for operation in function.get_concrete_function(tf.TensorSpec((1, *size, 3))).graph.get_operations()}


def test_a_graph_of_known_size_stays_as_it_is():
    image = keras.Input((None, None, 3))
    alone = keras.Model(image, MinimumSize(32, dtype="float32")(image))
    assert operations(alone, (32, 40)) == {"Placeholder", "Identity"}
    assert "Assert" in operations(alone, (32, None))


def test_xla_compiles_and_files_open(model, tmp_path):
    x = tf.constant(images((33, 40)), "float32")
    expected = model(x, training=False)
    compiled = tf.function(lambda x: model(x, training=False), [tf.TensorSpec((None, None, None, 3))], jit_compile=True)
    np.testing.assert_allclose(compiled(x), expected, atol=1e-5)
    keras.Model(model.input, model.get_layer("minimum_size").output).save(tmp_path / "start.keras")
    refused(lambda: load_model(tmp_path / "start.keras")(np.zeros((1, 31, 64, 3), "float32")), "31x64")


def test_only_backbones_with_a_minimum_have_the_layer():
    for backbone, minimum in (("resnet50", None), ("mobilenet_v2", 31)):
        built = MODELS["deeplab_v3"](5, backbone=backbone, width_multiplier=1 / 4)
        assert [layer.minimum for layer in built.layers if isinstance(layer, MinimumSize)] == ([minimum] if minimum else [])
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        built = MODELS["deeplab_v3"](5, backbone="mobilenet_v2", width_multiplier=1 / 4)
    finally:
        keras.config.set_dtype_policy("float32")
    # Images of 0 to 255 do not survive bfloat16.
    assert isinstance(built.layers[1], MinimumSize) and built.layers[1].output.dtype == "float32"
