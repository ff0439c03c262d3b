import sys

import keras
import numpy as np
import pytest
from helpers import images, random_model

from kerasseg import KerassegError
from kerasseg.export.calibration import check_calibration, draw
from kerasseg.export.forms import Target
from kerasseg.export.graph import trace
from kerasseg.export.quantization import _batches
from kerasseg.export.tflite import convert_tflite
from kerasseg.layers import CeilMaxPooling2D, Conv2D, MaxPoolingWithMask2D, MaxUnpooling2D

SIZE = (32, 48)


@pytest.fixture
def interpreter():
    missing = "is not installed: pip install 'kerasseg[lite]'"
    pytest.importorskip("ai_edge_quantizer", reason=f"ai-edge-quantizer {missing}")
    return pytest.importorskip("ai_edge_litert.interpreter", reason=f"ai-edge-litert {missing}")


def network(*layers, channels=3):
    """Layers one after the other, with random weights of both signs."""
    keras.utils.set_random_seed(3)
    x = image = keras.Input((None, None, channels))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    for layer in layers:
        x = layer(x)
    return keras.Model(image, x, name="chain")


def convolution(filters, activation=None, name=None):
    return Conv2D(filters, 3, padding="same", activation=activation, bias_initializer="random_normal", name=name)


def converted(model, quantize="int8", size=SIZE, **target):
    function = trace(model, Target(input_size=size, **target))
    channels = model.inputs[0].shape[-1]
    return convert_tflite(function, quantize=quantize, calibration=images(size, batch=8, channels=channels, block=4))


class File:
    """A file as the interpreter shows it, operations not taken over by a delegate."""

    def __init__(self, module, content):
        resolver = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.interpreter = module.Interpreter(model_content=content, experimental_op_resolver_type=resolver)
        self.interpreter.allocate_tensors()
        self.tensors = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        self.operations = self.interpreter._get_ops_details()
        (self.input,) = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def named(self, kind):
        return [operation for operation in self.operations if operation["op_name"] == kind]

    def scale(self, index):
        """Scale and zero point of a tensor of one scale."""
        return self.tensors[index]["quantization"]

    def run(self, image):
        self.interpreter.set_tensor(self.input["index"], image)
        self.interpreter.invoke()
        (output,) = self.outputs
        scale, zero = output["quantization"]
        result = self.interpreter.get_tensor(output["index"])
        return result if not scale else (result.astype("float32") - zero) * np.float32(scale)


def logits(model, x):
    return np.asarray(model(x.astype("float32"), training=False))


def test_the_image_goes_in_unchanged_and_weights_have_a_scale_for_each_channel(interpreter):
    model = network(convolution(8, "relu"), convolution(5, "relu"), convolution(4))
    # Even of images that hold few of the 256 values.
    dark = [image // 3 for image in images(SIZE, batch=8, block=4)]
    content, kept = convert_tflite(trace(model, Target(input_size=SIZE)), quantize="int8", calibration=dark)
    file = File(interpreter, content)
    assert file.input["dtype"] == np.uint8 and file.input["quantization"] == (1.0, 0)
    assert [output["dtype"] for output in file.outputs] == [np.int8]
    weights = [file.tensors[operation["inputs"][1]] for operation in file.named("CONV_2D")]
    assert [weight["dtype"] for weight in weights] == [np.int8, np.int8, np.float32]
    for weight, filters in zip(weights, (8, 5), strict=False):
        parameters = weight["quantization_parameters"]
        assert len(set(parameters["scales"].tolist())) == filters and not parameters["zero_points"].any()
    assert len(kept) == 1 and kept[0].startswith("CONV_2D ")


@pytest.mark.parametrize(
    ("quantize", "result", "given", "made"),
    [
        ("int8", "logits", np.uint8, np.int8),
        ("int8", "probabilities", np.uint8, np.int8),
        ("int8", "labels", np.uint8, np.uint8),
        ("int8-float-io", "logits", np.float32, np.float32),
        ("int8-float-io", "labels", np.float32, np.uint8),
    ],
)
def test_what_goes_in_and_comes_out(interpreter, quantize, result, given, made):
    model = network(convolution(8, "relu"), convolution(8, "relu"), convolution(4))
    content, kept = converted(model, quantize, result=result, batch_size=3)
    file = File(interpreter, content)
    assert file.input["dtype"] == given and file.outputs[0]["dtype"] == made
    # It takes floats, and makes none.
    assert any(name.startswith("ARG_MAX ") for name in kept) == (result == "labels")
    x = images(SIZE, batch=3, block=4, seed=1)
    received, expected = file.run(x.astype(given)), logits(model, x)
    if result == "labels":
        assert len(np.unique(expected.argmax(-1))) > 2 and (received == expected.argmax(-1)).mean() > 0.97
    else:
        expected = expected if result == "logits" else keras.ops.softmax(expected)
        assert np.abs(received - expected).max() < 0.05 * np.abs(expected).max()


def pooled(*pools, activation):
    return network(convolution(6, activation), *pools, convolution(6, "relu"), convolution(3))


@pytest.mark.parametrize("pool", [(3, 2), (3, 2, 1)])
@pytest.mark.parametrize("activation", ["relu", None])
def test_what_lies_around_a_map_for_pooling_is_no_part_of_its_range(interpreter, activation, pool):
    model = pooled(CeilMaxPooling2D(*pool), activation=activation)
    file = File(interpreter, converted(model).content)
    (pooling,) = file.named("MAX_POOL_2D")
    (padding,) = file.named("PAD" if activation else "PADV2")
    whole, bordered, maxima = padding["inputs"][0], padding["outputs"][0], pooling["outputs"][0]
    # The same numbers mean the same on either side: a step of 1/255 of what the convolution makes.
    assert file.scale(whole) == file.scale(bordered) == file.scale(maxima)
    assert 0 < file.scale(whole)[0] < 0.1
    x = images(SIZE, batch=1, block=4, seed=1)
    received, expected = file.run(x), logits(model, x)
    # Away from the border and at it.
    assert np.abs(received - expected).max() < 0.06 * np.abs(expected).max() and np.ptp(expected) > 1


def test_after_a_relu_zeros_do_and_the_float_file_is_the_same(interpreter):
    keras.utils.set_random_seed(3)
    # An inception module's and a classifier's: through a pool, a concatenation and a normalisation nothing becomes negative.
    x = image = keras.Input((None, None, 3))
    x = Conv2D(6, 3, activation="relu", bias_initializer="random_normal")(x)
    x = CeilMaxPooling2D(3, 2)(keras.ops.concatenate([x, CeilMaxPooling2D(3, 1, 1)(x)], -1))
    x = Conv2D(3, 1, bias_initializer="random_normal")(CeilMaxPooling2D(3, 2, 1)(x))
    model = keras.Model(image, x, name="chain")
    file = File(interpreter, converted(model, "none").content)
    assert len(file.named("PAD")) == 2 and not file.named("PADV2")
    x = images(SIZE, batch=1, block=4)
    np.testing.assert_allclose(file.run(x.astype("float32")), logits(model, x), rtol=0, atol=1e-5 * np.abs(logits(model, x)).max())


LOWEST = float(np.finfo("float32").min)


def dark(x):
    """A map of no value above zero."""
    return keras.layers.Activation(lambda x: -keras.ops.relu(x))(Conv2D(4, 3, padding="same")(x))


def bordered(x, value=LOWEST):
    return keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def bright(x):
    return Conv2D(4, 3, activation="relu", padding="same")(x)


# What stands between an image and the last convolution.
MAY_BE_NEGATIVE = {
    "pool": lambda x: CeilMaxPooling2D(3, 2)(dark(x)),
    # The padding is nobody's largest value but the other map's.
    "maximum": lambda x: keras.ops.maximum(bordered(bright(x)), bordered(dark(x), -2.0)),
    # Whether it may be zero depends on what is made of it.
    "itself": lambda x: keras.ops.maximum(x := bordered(bright(x)), keras.layers.MaxPooling2D(3, 1, "same")(x)),
    # A padding of another number below zero; the pool's first window holds nothing else.
    "padding": lambda x: CeilMaxPooling2D(3, 2, 1)(bordered(bordered(bright(x), -2.0), -2.0)),
}


@pytest.mark.parametrize("kind", MAY_BE_NEGATIVE)
def test_where_values_may_be_negative_the_lowest_number_stays(interpreter, kind):
    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3))
    model = keras.Model(image, Conv2D(3, 1)(MAY_BE_NEGATIVE[kind](keras.layers.Rescaling(1 / 127.5, -1.0)(image))))
    file = File(interpreter, converted(model, "none").content)
    lowest = [operation for operation in file.named("PADV2") if file.interpreter.get_tensor(operation["inputs"][2]) == LOWEST]
    assert len(lowest) == 1 and not file.named("PAD")
    x = images(SIZE, batch=1, block=4)
    np.testing.assert_allclose(file.run(x.astype("float32")), logits(model, x), rtol=0, atol=1e-5 * np.abs(logits(model, x)).max())


def test_maxima_of_padded_maps_that_are_never_negative(interpreter):
    keras.utils.set_random_seed(3)
    x = image = keras.Input((None, None, 3))
    x = bright(x)
    x = keras.ops.maximum(keras.ops.maximum(bordered(x)[:, 2:, 2:], bordered(bright(x))[:, :-2, :-2]), x)
    model = keras.Model(image, Conv2D(3, 1)(x))
    file = File(interpreter, converted(model, "none").content)
    assert len(file.named("PAD")) == 2 and not file.named("PADV2")
    x = images(SIZE, batch=1, block=4)
    np.testing.assert_allclose(file.run(x.astype("float32")), logits(model, x), rtol=0, atol=1e-5 * np.abs(logits(model, x)).max())


def test_a_network_of_many_pools_loses_little(interpreter):
    model, size = random_model("fcn_googlenet"), (65, 97)
    content, kept = converted(model, size=size)
    file = File(interpreter, content)
    assert not file.named("PADV2") and len(file.named("PAD")) >= 3
    assert sum(name.startswith("LOCAL_RESPONSE_NORMALIZATION ") for name in kept) == 2
    ranges = [
        d["quantization"][0] * 255 for d in file.tensors.values() if d["dtype"] in (np.int8, np.uint8) and d["quantization"][0]
    ]
    assert len(ranges) > 60 and max(ranges) < 1e5
    x = images(size, batch=1, seed=2)
    received, expected = file.run(x), logits(model, x)
    assert np.sqrt(((received - expected) ** 2).mean() / (expected**2).mean()) < 0.1


def test_what_is_kept_in_float_does_not_go_by_names(interpreter):
    # Named as what they are not.
    keras.utils.set_random_seed(3)
    x = image = keras.Input((None, None, 3))
    x = Conv2D(8, 3, activation="relu", padding="same", name="logits")(x)
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="conv1")(x)
    pooled = Conv2D(8, 1, activation="relu", bias_initializer="random_normal", name="conv2")(pooled)
    x = Conv2D(8, 3, activation="relu", padding="same", name="image_pooling")(keras.layers.Add()([x, pooled]))
    scores = keras.layers.Add()([Conv2D(3, 1, name="middle")(x), Conv2D(3, 1, name="first")(x)])
    model = keras.Model(image, keras.layers.UpSampling2D(2, interpolation="bilinear")(scores), name="chain")
    kept = [name.split()[0] for name in converted(model).kept_float]
    assert sorted(kept) == ["ADD", "CONV_2D", "CONV_2D", "CONV_2D", "MEAN", "RESIZE_BILINEAR"]
    assert converted(model, "none").kept_float == []


def test_the_scores_of_several_scales_stay(interpreter):
    keras.utils.set_random_seed(3)
    x = image = keras.Input((None, None, 3))
    x = Conv2D(8, 3, activation="relu", padding="same")(x)
    scores = keras.layers.Maximum()([Conv2D(3, 1)(x), Conv2D(3, 3, padding="same")(x)])
    model = keras.Model(image, keras.layers.UpSampling2D(2, interpolation="bilinear")(scores), name="chain")
    kept = [name.split()[0] for name in converted(model).kept_float]
    assert sorted(kept) == ["CONV_2D", "CONV_2D", "MAXIMUM", "RESIZE_BILINEAR"]


def test_of_deeplab_v3_the_image_pooling_and_the_scores_stay(interpreter):
    # Of a size whose scores are resized by products with matrices.
    model = random_model("deeplab_v3", backbone="resnet50", output_stride=16)
    content, kept = converted(model, size=(60, 80))
    convolutions = [name for name in kept if name.startswith("CONV_2D")]
    assert len(convolutions) == 2 and "image_pooling" in convolutions[0] and "logits" in convolutions[1]
    assert sum(name.startswith("MEAN") for name in kept) == 1
    weights = [file["dtype"] for file in File(interpreter, content).tensors.values() if len(file["shape"]) == 4]
    assert weights.count(np.int8) > 50


def test_maps_whose_cells_are_compared_stay(interpreter):
    keras.utils.set_random_seed(3)
    x = image = keras.Input((None, None, 3))
    x = convolution(6, "relu", name="before")(x)
    x, mask = MaxPoolingWithMask2D()(convolution(6, "relu", name="compared")(x))
    x = MaxUnpooling2D()([convolution(6, "relu", name="coarse")(x), mask])
    model = keras.Model(image, convolution(3, name="scores")(convolution(6, "relu", name="fine")(x)), name="chain")
    content, kept = converted(model)
    # A comparison makes no floats, but is one of floats.
    assert {"CONV_2D", "GREATER", "LESS_EQUAL"} < {name.split()[0] for name in kept}
    assert [name for name in kept if "compared" in name] and not [name for name in kept if "before" in name or "coarse" in name]
    x = images(SIZE, batch=1, block=4, seed=1)
    file = File(interpreter, content)
    received, expected = file.run(x), logits(model, x)
    assert np.sqrt(((received - expected) ** 2).mean() / (expected**2).mean()) < 0.15
    # Operations with gradients of their own would cost a file its names.
    assert file.interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}


@pytest.mark.parametrize("channels", [1, 6])
def test_other_numbers_of_channels(interpreter, channels):
    model = network(convolution(8, "relu"), convolution(2), channels=channels)
    file = File(interpreter, converted(model).content)
    x = images(SIZE, batch=1, block=4, channels=channels, seed=1)
    assert np.abs(file.run(x) - logits(model, x)).max() < 0.06 * np.abs(logits(model, x)).max()


WRONG = {
    "one": (lambda x: x[:1], "received 1 calibration image: expected several, such as 100"),
    "none": (lambda x: x[:0], "received 0 calibration images: expected several"),
    "unit": (lambda x: x / np.float32(255), "go from 0 to 1: expected 0 to 255; multiply images of 0 to 1 by 255"),
    "negative": (lambda x: x.astype("float32") - 128, "go from -128 to 127: expected 0 to 255"),
    "bright": (lambda x: x * np.float32(2), "go from 0 to 510: expected 0 to 255"),
    "grey": (lambda x: x[..., :1], r"image 0 has shape \(32, 48, 1\): expected \(32, 48, 3\)"),
    "large": (lambda x: np.repeat(x, 2, 1), r"image 0 has shape \(64, 48, 3\): expected \(32, 48, 3\)"),
    "nan": (lambda x: np.where(x == 0, np.nan, x), "image 0 holds float64 that are no numbers"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_calibration_images_that_would_give_wrong_ranges_are_refused(wrong):
    change, message = WRONG[wrong]
    x = images(SIZE, batch=4, block=4)
    x[:, 0, 0], x[:, 1, 1] = 0, 255
    # As they are: copies in float32 would be four times as large.
    given = list(x)
    assert all(one is other for one, other in zip(given, check_calibration(given, (*SIZE, 3)), strict=True))
    with pytest.raises(KerassegError, match=message) as caught:
        check_calibration(list(change(x)), (*SIZE, 3))
    assert "\n" not in str(caught.value)


def test_rounding_is_no_wrong_range():
    resized = images(SIZE, batch=3, block=4).astype("float32")
    resized[0, 0, 0], resized[1, 0, 0] = -1e-4, 255.001
    first, second = _batches(check_calibration(list(resized), (*SIZE, 3)), 2)
    assert (first.min(), first.max(), first.dtype, first.shape) == (0, 255, np.float32, (2, *SIZE, 3))
    # Filled up from the start.
    assert np.array_equal(second[0], resized[2]) and np.array_equal(second[1], first[0])


def test_they_are_looked_at_before_the_conversion(monkeypatch):
    monkeypatch.setattr("tensorflow.lite.TFLiteConverter.from_concrete_functions", None)
    with pytest.raises(KerassegError, match="received 0 calibration images"):
        convert_tflite(trace(network(convolution(2)), Target(input_size=SIZE)), quantize="int8")


def test_the_draw():
    assert draw(3, 10, 0) == draw(3, 10, 0) != draw(3, 10, 1)
    assert draw(20, 5, 3) == [0, 1, 2, 3, 4] and len(set(draw(50, 60, 1))) == 50
    assert {index for seed in range(40) for index in draw(1, 3, seed)} == {0, 1, 2}


def test_without_the_quantizer_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(KerassegError, match=r"int8 needs ai-edge-quantizer: run `pip install 'kerasseg\[lite\]'`"):
        converted(network(convolution(2)))


def test_what_the_quantizer_refuses_is_one_line(monkeypatch, interpreter):
    quantizer = pytest.importorskip("ai_edge_quantizer.quantizer")

    def fail(self, *args, **arguments):
        raise ValueError("Failed to get quantization parameters\nand two pages more")

    monkeypatch.setattr(quantizer.Quantizer, "quantize", fail)
    with pytest.raises(KerassegError, match="cannot quantize the file to int8: Failed to get quantization parameters$"):
        converted(network(convolution(2)))


def test_a_map_that_is_zero_everywhere_has_a_scale(interpreter):
    dead = convolution(8, "relu", name="dead")
    model = network(dead, convolution(5, name="score"))
    dead.bias.assign(np.full(8, -1e3))
    content = converted(model).content
    assert all((detail["quantization_parameters"]["scales"] > 1e-9).all() for detail in File(interpreter, content).tensors.values())
    # With its delegate, as it is run: it refuses scales of zero.
    interpreter.Interpreter(model_content=content).allocate_tensors()
