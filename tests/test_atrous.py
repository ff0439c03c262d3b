"""Classifiers of keras.applications made dense: the same features, at more places."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_helpers import difference, features, picture, randomized, rescales
from helpers import assert_close, assert_varies

import kerasseg.backbones.atrous
from kerasseg import KerassegError, load_model
from kerasseg.backbones import atrous_rules
from kerasseg.backbones.atrous import atrous
from kerasseg.export import Target, trace
from kerasseg.export.tflite import convert_tflite
from kerasseg.layers import AtrousPadding2D, AtrousPooling2D, BatchNormalization, Conv2D

NETWORKS = keras.applications
# The smallest of each family; Inception, whose rounding alone comes near the tolerance, is in benchmarks/atrous_consistency.py.
FAMILIES = {
    "VGG16": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.25},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "DenseNet121": {},
    "Xception": {},
}
every_family = pytest.mark.parametrize("name", FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore:`input_shape` is undefined")


def classifier(name, **arguments):
    net = getattr(NETWORKS, name)(include_top=False, weights=None, input_shape=(None, None, 3), **FAMILIES[name], **arguments)
    return randomized(net, picture(224, rescales=rescales(net)))


def dense_check(net, monkeypatch):
    """Strides 16 and 8 on an even and an odd image; then the control."""
    for output_stride in (16, 8):
        extractor = atrous(net, output_stride)
        step = 32 // output_stride
        for size in (224, 193):
            image = picture(size, rescales=rescales(net))
            expected = features(net, image)
            assert_varies(expected)
            assert difference(features(extractor, image)[:, ::step, ::step], expected) <= 1e-5
    names = [layer.name for layer in extractor.layers if not layer.name.endswith(("_atrous_pad", "_atrous_grid"))]
    assert sorted(names) == sorted(layer.name for layer in net.layers)
    for layer in net.layers:
        for value, expected_value in zip(extractor.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(value, expected_value)
    monkeypatch.setattr(atrous_rules, "_rate", lambda place, target: 1)
    monkeypatch.setattr(kerasseg.backbones.atrous, "_check_sizes", lambda *_: None)
    control = features(atrous(net, 8), image)[:, ::4, ::4]
    rows, columns = (min(n, m) for n, m in zip(control.shape[1:3], expected.shape[1:3], strict=True))
    assert difference(control[:, :rows, :columns], expected[:, :rows, :columns]) > 0.01


@every_family
def test_every_step_th_cell_is_the_classifiers(name, monkeypatch):
    dense_check(classifier(name), monkeypatch)


_L = keras.layers


def separable(filters, strides, padding):
    return _L.SeparableConv2D(filters, 3, strides, padding)


STRIDED = {
    "same 3": lambda: [_L.Conv2D(6, 3, 2, "same")],
    "same 2": lambda: [_L.Conv2D(6, 2, 2, "same")],
    "same 4": lambda: [_L.Conv2D(6, 4, 2, "same")],
    "same 1": lambda: [_L.Conv2D(6, 1, 2, "same")],
    "valid 3": lambda: [_L.ZeroPadding2D(((0, 1), (1, 0))), _L.Conv2D(6, 3, 2)],
    "valid 5": lambda: [_L.ZeroPadding2D(((1, 2), (2, 2))), _L.DepthwiseConv2D(5, 2)],
    "valid 1 x 3": lambda: [_L.Conv2D(6, (1, 3), 2)],
    "separable": lambda: [separable(6, 2, "same")],
    "max same": lambda: [_L.MaxPooling2D(3, 2, "same")],
    "max valid": lambda: [_L.MaxPooling2D(2, 2)],
    "average same": lambda: [_L.AveragePooling2D(3, 2, "same")],
    "average valid": lambda: [_L.AveragePooling2D((2, 3), 2)],
    "shifted": lambda: [_L.Cropping2D(((1, 0), (0, 1))), _L.ZeroPadding2D(1), _L.AveragePooling2D(1, 2)],
}


def strided_net(kind):
    """Stride 32 by one kind of layer alone; between them what moves cells about at stride 1, even kernels among it."""
    x = image = keras.Input((None, None, 3))
    for index in range(5):
        for layer in STRIDED[kind]():
            x = layer(x)
        x = _L.Conv2D(6, 2 if index == 4 else 3, padding="same", activation="relu")(x)
        x = _L.AveragePooling2D(3, 1, "same")(x)
        gate = _L.Conv2D(6, 1, activation="sigmoid")(_L.GlobalAveragePooling2D(keepdims=True)(x))
        x = _L.MaxPooling2D((2, 3), 1, "same")(x) * gate
    return randomized(keras.Model(image, x, name="strided"), picture(96))


@pytest.mark.parametrize("kind", STRIDED)
def test_every_kind_of_stride_at_every_remainder(kind):
    net = strided_net(kind)
    extractors = {output_stride: atrous(net, output_stride) for output_stride in (16, 4)}
    for size in ((97, 98), (103, 112), (127, 126)):
        image = picture(size)
        expected = features(net, image)
        for output_stride, extractor in extractors.items():
            step = 32 // output_stride
            assert difference(features(extractor, image)[:, ::step, ::step], expected) <= 1e-5, (size, output_stride)


def test_the_map_is_as_large_as_the_classifier_leaves_room_for():
    for name in ("MobileNet", "VGG16"):
        net = getattr(NETWORKS, name)(include_top=False, weights=None, input_shape=(None, None, 3), **FAMILIES[name])
        for output_stride in (16, 4):
            levels = atrous(net, output_stride).compute_output_shape((1, 224, 224, 3))
            shapes = {int(stride): tuple(shape[1:3]) for stride, shape in levels.items()}
            expected = {stride: (224 // stride,) * 2 for stride in (1, 2, 4, 8, 16) if stride <= output_stride}
            if name == "MobileNet":
                del expected[1]
            assert shapes == expected


def test_levels_are_the_last_map_of_each_stride():
    net = NETWORKS.MobileNetV2(include_top=False, weights=None, input_shape=(None, None, 3), alpha=0.35)
    # By hand, from the network: a block's stride is in its depthwise layer, behind the expansion.
    expansions = {"2": "block_1_expand_relu", "4": "block_3_expand_relu", "8": "block_6_expand_relu", "16": "block_13_expand_relu"}
    for output_stride in (32, 8):
        extractor = atrous(net, output_stride)
        expected = {stride: name for stride, name in expansions.items() if int(stride) < output_stride}
        expected[str(output_stride)] = "out_relu"
        received = {stride: level._keras_history.operation.name for stride, level in extractor.output.items()}
        assert received == expected
    # The image that a network rescales is no level.
    rescaling = NETWORKS.MobileNetV3Small(include_top=False, weights=None, input_shape=(None, None, 3), alpha=0.25)
    assert set(atrous(rescaling, 8).output) == {"2", "4", "8"}


def test_convolutions_and_normalisation_are_our_own():
    net = strided_net("same 3")
    extractor = atrous(keras.Model(net.input, _L.BatchNormalization(name="norm")(net.output)), 8)
    kinds = {layer.name: type(layer) for layer in extractor.layers}
    assert kinds["norm"] is BatchNormalization
    assert {kind for kind in kinds.values() if issubclass(kind, keras.layers.Conv2D)} == {Conv2D}
    assert {layer.dilation_rate for layer in extractor.layers if isinstance(layer, Conv2D)} == {(1, 1), (2, 2), (4, 4)}


@pytest.mark.parametrize("head", ["flat", "average"])
def test_a_head_is_left_out(head):
    if head == "flat":
        net = NETWORKS.VGG16(weights=None, input_shape=(64, 64, 3), classes=3)
        bare = NETWORKS.VGG16(weights=None, include_top=False, input_shape=(None, None, 3))
    else:
        net = NETWORKS.MobileNetV3Small(weights=None, classes=3)
        bare = NETWORKS.MobileNetV3Small(weights=None, include_top=False, input_shape=(None, None, 3))
    randomized(net, picture(64, rescales=rescales(net)))
    bare.set_weights(net.get_weights()[: len(bare.weights)])
    image = picture(97, rescales=rescales(net))
    assert_close(features(atrous(net, 8), image), features(atrous(bare, 8), image), 1e-6)


@pytest.mark.parametrize("layer", ["depthwise", "separable", "convolution"])
def test_gradients_of_dilated_layers(layer):
    """Against the gradient of the same sum written out tap by tap."""
    net = strided_net({"depthwise": "valid 5", "separable": "separable", "convolution": "same 3"}[layer])
    kinds = {"depthwise": _L.DepthwiseConv2D, "separable": _L.SeparableConv2D, "convolution": Conv2D}
    dense = [found for found in atrous(net, 8).layers if type(found) is kinds[layer] and max(found.dilation_rate) > 1]
    assert dense
    for found in dense:
        channels = found.input.shape[-1]
        x = tf.constant(np.random.default_rng(0).normal(0, 1, (2, 23, 26, channels)), "float32")
        watched = [x, *(weight.value for weight in found.trainable_weights)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            outputs = [found(x), tap_by_tap(found, x)]
            weights = tf.constant(np.random.default_rng(1).normal(0, 1, outputs[0].shape), "float32")
            losses = [tf.reduce_sum(output * weights) for output in outputs]
        assert_close(*outputs, 1e-5)
        for received, expected in zip(*(tape.gradient(loss, watched) for loss in losses), strict=True):
            assert_close(received, expected, 1e-5)


def tap_by_tap(layer, x):
    """A dilated convolution as a sum of shifted maps."""
    rate, size = layer.dilation_rate[0], layer.kernel_size
    if layer.padding == "same":
        x = tf.pad(x, [[0, 0], *([(k - 1) * rate // 2] * 2 for k in size), [0, 0]])
    height, width = (n - (k - 1) * rate for n, k in zip(x.shape[1:3], size, strict=True))
    kernel = getattr(layer, "depthwise_kernel", None)
    kernel = layer.kernel if kernel is None else kernel
    total = 0.0
    for i, j in np.ndindex(*size):
        part = x[:, i * rate : i * rate + height, j * rate : j * rate + width]
        total += part @ kernel[i, j] if type(layer) is Conv2D else part * kernel[i, j, :, 0]
    if isinstance(layer, _L.SeparableConv2D):
        total = total @ layer.pointwise_kernel[0, 0]
    return layer.activation(total + layer.bias)


def test_a_saved_extractor_opens_and_agrees(tmp_path):
    net = strided_net("max valid")
    extractor = atrous(net, 8)
    extractor.save(tmp_path / "model.keras")
    opened = load_model(tmp_path / "model.keras")
    image = picture((97, 120))
    received, expected = opened(image), extractor(image)
    assert received.keys() == expected.keys() == {"2", "4", "8"}
    for stride in expected:
        np.testing.assert_array_equal(received[stride], expected[stride])


def test_mixed_precision_stays_the_classifiers():
    exact = strided_net("same 3")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = strided_net("same 3")
    finally:
        keras.config.set_dtype_policy("float32")
    net.set_weights(exact.get_weights())
    image = picture((97, 120))
    extractor = atrous(net, 8)
    received = extractor(image)["8"]
    assert received.dtype == "bfloat16"
    added = {layer.name: layer.compute_dtype for layer in extractor.layers if "_atrous_" in layer.name}
    assert added and set(added.values()) == {"bfloat16"}
    assert_close(tf.cast(received, "float32"), atrous(exact, 8)(image)["8"], 0.05)


def test_a_network_trains_densely_in_a_graph_of_unknown_size():
    extractor = atrous(strided_net("valid 5"), 8)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
    def gradients(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.cast(extractor(image, training=True)["8"], "float32") ** 2)
        return tape.gradient(loss, extractor.trainable_variables)

    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients(picture((97, 98))))


def test_exported_files_keep_the_dilated_convolutions():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    net = NETWORKS.MobileNetV2(include_top=False, weights=None, input_shape=(None, None, 3), alpha=0.35)
    image = picture(97)
    extractor = atrous(randomized(net, image), 8)
    fixed = keras.Input((97, 97, 3), batch_size=1)
    # At a static size the borders are constants.
    function = trace(keras.Model(fixed, extractor(fixed)["8"]), Target(input_size=(97, 97)))
    interpreter = litert.Interpreter(model_content=convert_tflite(function).content)
    operations = [operation["op_name"] for operation in interpreter._get_ops_details()]
    assert operations.count("DEPTHWISE_CONV_2D") == 17
    assert not any("BATCH" in name for name in operations)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    assert_close(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), extractor(image)["8"], 1e-4)


def refusals():
    image = keras.Input((None, None, 3))
    conv = _L.Conv2D(3, 3, padding="same", name="conv")
    inner = keras.Sequential([_L.Conv2D(3, 1)], name="inner")
    two = [image, keras.Input((None, None, 3))]
    x = _L.Conv2D(3, 3, 2, "same")(image)
    return {
        "unknown kind": (keras.Model(image, _L.UpSampling2D(name="up")(x)), "'up' .UpSampling2D. is of a kind without"),
        "normalises over cells": (keras.Model(image, _L.LayerNormalization(name="norm")(x)), "'norm' .LayerNormalization."),
        "other axis": (keras.Model(image, _L.Concatenate(1, name="join")([x, x])), "'join' .Concatenate. works along axis 1"),
        "nested": (keras.Model(image, inner(x)), "'inner' .Sequential. is a model inside"),
        "dilated": (keras.Model(image, _L.Conv2D(3, 3, dilation_rate=2, name="far")(x)), "'far' .Conv2D. is dilated already"),
        "shared": (keras.Model(image, conv(conv(x))), "called more than once"),
        "strides": (keras.Model(image, _L.Conv2D(3, 3, (1, 2), name="wide")(x)), "'wide' .Conv2D. has strides"),
        "passes over": (keras.Model(image, _L.Conv2D(3, 4, 4, name="patch")(x)), "'patch' .Conv2D. has stride 4 at stride 2"),
        "own activation": (keras.Model(image, _L.Activation(lambda x: x[:, ::-1], name="flip")(x)), "'flip' .Activation. has an"),
        "two inputs": (keras.Model(two, _L.Add()(two)), "2 inputs and 1 outputs"),
        "two outputs": (keras.Model(image, [x, x * 2.0]), "1 inputs and 2 outputs"),
        "sequential": (keras.Sequential([image, conv]), "received a Sequential, expected a functional"),
        "no model": ("resnet50", "received a str, expected a functional"),
        "too coarse": (keras.Model(image, x), "output_stride=4, but functional.* has stride 2"),
        "a vector": (keras.Model(image, _L.GlobalAveragePooling2D(keepdims=True)(x)), "ends without a map"),
    }


@pytest.mark.parametrize("case", sorted(refusals()))
def test_what_cannot_be_exact_is_refused(case):
    net, message = refusals()[case]
    with pytest.raises(KerassegError, match=message) as caught:
        atrous(net, 4)
    assert "\n" not in str(caught.value)


def test_convnext_is_refused():
    with pytest.raises(KerassegError, match="stem.*Sequential.*model inside"):
        atrous(NETWORKS.ConvNeXtTiny(include_top=False, weights=None, input_shape=(None, None, 3)), 16)


@pytest.mark.parametrize("output_stride", [7, 64, 2, 0, True, 16.0, "8", None])
def test_strides_that_cannot_be_had(output_stride):
    with pytest.raises(
        KerassegError, match=f"^output_stride={output_stride!r}: expected one of 4, 8, 16, 32, e.g. output_stride=16$"
    ):
        atrous(strided_net("same 1"), output_stride)


def test_the_plan_is_made_once(monkeypatch):
    plans, plan = [], kerasseg.backbones.atrous._plan
    monkeypatch.setattr(kerasseg.backbones.atrous, "_plan", lambda *args: plans.append(args) or plan(*args))
    assert set(atrous(strided_net("same 1"), np.int64(8)).output) == {"2", "4", "8"}
    assert len(plans) == 1


def test_windows_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="padding='full'"):
        AtrousPadding2D((3, 3), padding="full")
    with pytest.raises(ValueError, match="kind='sum'"):
        AtrousPooling2D((3, 3), kind="sum")
