"""ResNet50-GCN and MSRA's own ResNets against plain operations written from their definitions."""

from functools import cache

import caffe_layers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, kernels_at_zero, parts

from kerasseg import KerassegError, transplant
from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import image_input
from kerasseg.backbones.resnet import resnet
from kerasseg.backbones.resnet_gcn import resnet50_gcn
from kerasseg.backbones.resnet_weights import load_resnet_imagenet
from kerasseg.models import MODELS

UNITS = {"res2": "abc", "res3": "abcd", "res4": "abcdef", "res5": "abc"}
PAIRS = {"res4": (5, 85), "res5": (7, 128)}


def build(form="gcn", **arguments):
    image = image_input((None, None, 3))
    levels = resnet(image, **{"depth": 50, "form": form, "width_multiplier": 1 / 16, **arguments})
    return keras.Model(image, levels, name="trunk")


@cache
def shared(**arguments):
    """A trunk with random weights; tests must leave it as it is."""
    return give_random_weights(build(**arguments))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


# MSRA's form, in Caffe's own arithmetic.


def caffe_resnet50(model, x):
    """The published deploy file: pool1 has no border and rounds up; the first 1×1 convolutions of a stage stride."""
    blobs = caffe_layers.Blobs(model)

    def convolve(x, unit, branch, stride=1, pad=0):
        return blobs.batch_norm(blobs.convolution(x, f"res{unit}_{branch}", stride=stride, pad=pad), f"bn{unit}_{branch}")

    relu = caffe_layers.relu
    x = relu(blobs.batch_norm(blobs.convolution(x, "conv1", stride=2, pad=3), "bn_conv1"))
    x = caffe_layers.pooling(x, 3, 2, 0)
    maps = {}
    for stage, letters in UNITS.items():
        for letter in letters:
            unit, stride = f"{stage[3]}{letter}", 2 if letter == "a" and stage != "res2" else 1
            shortcut = convolve(x, unit, "branch1", stride) if letter == "a" else x
            x = relu(convolve(x, unit, "branch2a", stride))
            x = relu(convolve(x, unit, "branch2b", pad=1))
            x = relu(shortcut + convolve(x, unit, "branch2c"))
        maps[stage] = x
    return maps


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (70, 101)])
def test_msras_form_is_its_files(size):
    model, x = shared(form="msra"), noise(1, *size, 3)
    expected = caffe_resnet50(model, x.transpose(0, 3, 1, 2).astype("float64"))
    received = model(x, training=False)
    assert list(received) == [2, 4, 8, 16, 32]
    for stride, stage in zip((4, 8, 16, 32), expected, strict=True):
        assert_varies(received[stride])
        assert_close(received[stride], expected[stage].transpose(0, 2, 3, 1), 1e-5)


def test_msras_maps_have_half_the_cells_each():
    for form, sides in (("msra", [256, 128, 64, 32, 16]), ("gcn", [256, 128, 64, 32, 16]), ("caffe", [256, 129, 65, 33, 17])):
        shapes = shared(form=form).compute_output_shape((1, 512, 512, 3))
        assert [shape[1] for shape in shapes.values()] == sides


def test_msras_form_has_the_layers_of_the_caffe_form():
    described = [[(weight.path, tuple(weight.shape)) for weight in shared(form=form).weights] for form in ("msra", "caffe")]
    assert described[0] == described[1]


def test_imagenet_weights_arrive_as_in_the_caffe_form():
    classifier = give_random_weights(keras.applications.ResNet50(weights=None, include_top=False))
    with kernels_at_zero():
        models = [build(form, width_multiplier=1) for form in ("msra", "caffe")]
    for model in models:
        load_resnet_imagenet(model, classifier)
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        assert np.ptp(ours) > 0
        np.testing.assert_array_equal(ours, theirs)
    assert BACKBONES["resnet152_msra"].load_imagenet is load_resnet_imagenet


# ResNet50-GCN.


def test_pairs_stand_for_the_first_two_convolutions_of_res4_and_res5():
    model = build(width_multiplier=1)
    kernels = {layer.name: tuple(layer.kernel.shape) for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    expected = {name: shape for name, shape in kernels.items() if name.startswith(("conv1", "res2", "res3"))}
    original = {layer.name: tuple(layer.kernel.shape) for layer in shared(form="msra").layers if hasattr(layer, "kernel")}
    assert set(expected) == {name for name in original if name.startswith(("conv1", "res2", "res3"))}
    inputs = 512
    for stage, (k, width) in PAIRS.items():
        out = {"res4": 1024, "res5": 2048}[stage]
        expected[f"{stage}a_branch1"] = (1, 1, inputs, out)
        for letter in UNITS[stage]:
            for branch, (first, second) in {"a": ((k, 1), (1, k)), "b": ((1, k), (k, 1))}.items():
                expected[f"{stage}{letter}_gcn_{branch}1"] = (*first, inputs, width)
                expected[f"{stage}{letter}_gcn_{branch}2"] = (*second, width, width)
            expected[f"{stage}{letter}_branch2c"] = (1, 1, width, out)
            inputs = out
    assert kernels == expected
    # A batch norm for each, and ReLU behind all but the last of a unit and the shortcuts.
    norms = [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert sorted(norms) == sorted(f"bn_{name}" if name == "conv1" else f"bn{name[3:]}" for name in kernels)
    activated = {layer.name.removesuffix("_relu") for layer in model.layers if layer.name.endswith("_relu")}
    assert activated == {name for name in kernels if not name.endswith(("branch1", "branch2c"))}


def trunk_parameters():
    """Weights that train: kernels, and scale and offset of each batch norm."""
    total, inputs = 49 * 3 * 64 + 2 * 64, 64
    for width, units in ((64, 3), (128, 4)):
        for unit in range(units):
            total += inputs * width + 9 * width * width + 4 * width * width + 2 * (width + width + 4 * width)
            total += 4 * inputs * width + 2 * 4 * width if unit == 0 else 0
            inputs = 4 * width
    for k, width, out, units in ((5, 85, 1024, 6), (7, 128, 2048, 3)):
        for unit in range(units):
            total += 2 * (k * inputs * width + k * width * width) + width * out + 2 * (4 * width + out)
            total += inputs * out + 2 * out if unit == 0 else 0
            inputs = out
    return total


def test_parameters_at_full_width():
    with kernels_at_zero():
        classifier = resnet50_gcn()
        trunk = resnet50_gcn(include_top=False)
    counts = [sum(np.prod(weight.shape) for weight in model.trainable_weights) for model in (classifier, trunk)]
    assert counts == [trunk_parameters() + 2048 * 1000 + 1000, trunk_parameters()]
    # "Similar": ResNet-50 has 25,557,032.
    assert counts[0] == 22_545_780 and 0.85 < counts[0] / 25_557_032 < 1
    assert classifier.get_layer("fc1000").units == 1000


class Plain:
    """Convolutions and batch norms on a trunk's weights, every cell computed and those thrown away that a stride skips."""

    def __init__(self, model):
        self.weights = {layer.name: layer.get_weights() for layer in model.layers}

    def convolve(self, x, name, stride=1, rate=1, relu=True):
        (kernel,) = self.weights[name]
        rows, columns = (rate * (n - 1) // 2 for n in kernel.shape[:2])
        x = tf.pad(x, [[0, 0], [rows, rows], [columns, columns], [0, 0]])
        x = tf.nn.convolution(x, kernel, dilations=rate)[:, ::stride, ::stride]
        gamma, beta, mean, variance = self.weights["bn_conv1" if name == "conv1" else f"bn{name[3:]}"]
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        return tf.nn.relu(x) if relu else x


def plain_gcn(model, x, output_stride, multi_grid):
    plain = Plain(model)
    x = plain.convolve(x, "conv1", 2)
    # Caffe's rounding up: windows that begin on the map.
    bottom, right = ((n - 3) % 2 for n in x.shape[1:3])
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [0, bottom], [0, right], [0, 0]]), 3, 2, "VALID")
    current, rate = 4, 1
    for stage, letters in UNITS.items():
        for letter, grid in zip(letters, multi_grid if stage == "res5" else [1] * 6, strict=False):
            unit, wanted = f"{stage}{letter}", 2 if letter == "a" and stage != "res2" else 1
            stride, left_out = (wanted, 1) if current < output_stride else (1, wanted)
            current *= stride
            shortcut = plain.convolve(x, f"{unit}_branch1", stride, relu=False) if letter == "a" else x
            if stage in PAIRS:
                branches = ([f"{unit}_gcn_{branch}{n}" for n in (1, 2)] for branch in "ab")
                # The stride at the very end, of the sum.
                y = [
                    plain.convolve(plain.convolve(x, first, rate=rate * grid), second, rate=rate * grid)
                    for first, second in branches
                ]
                x = (y[0] + y[1])[:, ::stride, ::stride]
                rate *= left_out
            else:
                rate *= left_out
                x = plain.convolve(plain.convolve(x, f"{unit}_branch2a", stride), f"{unit}_branch2b", rate=rate)
            x = tf.nn.relu(shortcut + plain.convolve(x, f"{unit}_branch2c", relu=False))
    return x


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "size"),
    [
        (32, (1, 1, 1), (96, 128)),
        (32, (1, 1, 1), (97, 129)),
        # The unit that strides has a unit rate, too.
        (32, (2, 1, 4), (97, 129)),
        (16, (1, 2, 4), (64, 97)),
        (8, (1, 1, 1), (65, 64)),
        (4, (1, 1, 1), (64, 96)),
    ],
)
def test_resnet50_gcn_is_its_definition(output_stride, multi_grid, size):
    model, x = shared(output_stride=output_stride, multi_grid=multi_grid), noise(1, *size, 3)
    expected = plain_gcn(model, x, output_stride, multi_grid)
    received = model(x, training=False)
    assert max(received) == output_stride
    assert_varies(expected)
    assert_close(received[output_stride], expected, 1e-5)


def test_strides_of_a_pair_are_those_of_one_large_kernel():
    """Where neither batch norm nor ReLU does anything, each branch is a k×k convolution with stride 2."""
    model = give_random_weights(build())
    generator = np.random.default_rng(0)
    kernels = {}
    for branch in "ab":
        for n in (1, 2):
            layer, norm = model.get_layer(f"res4a_gcn_{branch}{n}"), model.get_layer(f"bn4a_gcn_{branch}{n}")
            kernels[branch, n] = generator.uniform(0.1, 1, layer.kernel.shape)
            layer.set_weights([kernels[branch, n].astype("float32")])
            channels = layer.filters
            norm.set_weights([np.ones(channels), np.zeros(channels), np.zeros(channels), np.ones(channels) - norm.epsilon])
    before, after = parts(model, "res3d", "res4a_gcn")(noise(1, 96, 130, 3), training=False)
    total = 0
    for branch, rows, columns in (("a", 1, 2), ("b", 2, 1)):
        order = "yio,xop->yxip" if branch == "a" else "yop,xio->yxip"
        down, across = (kernels[branch, n].reshape(5, *kernels[branch, n].shape[2:]) for n in (rows, columns))
        kernel = np.einsum(order, down, across)
        total = total + tf.nn.conv2d(tf.pad(before, [[0, 0], [2, 2], [2, 2], [0, 0]]), kernel.astype("float32"), 2, "VALID")
    assert_varies(before)
    assert_close(after, total, 1e-5)


def test_dense_maps_contain_the_coarse_one():
    coarse = shared()
    for output_stride, size in ((16, (96, 129)), (8, (64, 96)), (4, (97, 65))):
        x, step = noise(1, *size, 3, seed=2), 32 // output_stride
        expected = coarse(x, training=False)[32]
        dense = build(output_stride=output_stride)
        dense.set_weights(coarse.get_weights())
        assert_varies(expected)
        received = dense(x, training=False)[output_stride][:, ::step, ::step]
        assert_close(received[:, : expected.shape[1], : expected.shape[2]], expected, 1e-5)


def test_each_kernel_dilates_along_its_own_axis():
    model = shared(output_stride=8)
    rates = {layer.name: tuple(layer.dilation_rate) for layer in model.layers if "_gcn_" in layer.name and hasattr(layer, "kernel")}
    assert rates["res4a_gcn_a1"] == (1, 1) and rates["res4f_gcn_a1"] == (2, 1) and rates["res4f_gcn_b1"] == (1, 2)
    assert rates["res5a_gcn_b2"] == (2, 1) and rates["res5c_gcn_a2"] == (1, 4)


# The classifier, from its training to the segmentation network.


def test_the_classifier_trains_and_its_trunk_moves():
    keras.utils.set_random_seed(1)
    x, y = images((64, 64), batch=6, block=32), np.int32([0, 1, 2, 0, 1, 2])
    classifier = resnet50_gcn(3, **QUICK, input_shape=(64, 64, 3), batch_norm_momentum=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    losses = classifier.fit(x, y, batch_size=6, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    network = MODELS["gcn"](4, **QUICK, backbone="resnet50_gcn", kernel_size=3)
    names = ("res2c", "res3d", "res4f", "res5c")
    x = x.astype("float32")
    expected = parts(classifier, *names)(x, training=False)
    for before, trained in zip(parts(network, *names)(x, training=False), expected, strict=True):
        with pytest.raises(AssertionError):
            assert_close(before, trained, 0.1)
    kept = transplant(classifier, network)
    assert kept and not any(name.startswith(("conv1", "res", "bn")) for name in kept)
    for moved, trained in zip(parts(network, *names)(x, training=False), expected, strict=True):
        assert_varies(trained)
        np.testing.assert_array_equal(moved, trained)


def test_the_classifiers_forms():
    narrow = resnet50_gcn(7, **QUICK)
    assert narrow.name == "resnet50_gcn" and narrow.layers[-1].name == "fc7"
    assert narrow(images((64, 96)), training=False).shape == (2, 7)
    assert resnet50_gcn(**QUICK, include_top=False)(images((64, 96)), training=False).shape == (2, 2, 3, 128)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = resnet50_gcn(7, **QUICK)
    finally:
        keras.config.set_dtype_policy("float32")
    assert mixed(images((64, 96)), training=False).dtype == "float32" and mixed.get_layer("res5c").compute_dtype == "bfloat16"


def test_the_backbone_is_listed():
    entry = BACKBONES["resnet50_gcn"]
    assert entry.build.keywords == {"depth": 50, "form": "gcn", "root": "plain"}
    assert entry.preprocessing == "caffe" and entry.load_imagenet is None and entry.supports_multi_grid


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(depth=101), "depth=101: form 'gcn' is defined for 50 alone; pass depth=50"),
        (lambda: build(last_block=5), "a ResNet of form 'gcn' has only 4 and 'plain'"),
        (lambda: build(output_stride=64), "output_stride=64: expected one of 4, 8, 16, 32"),
        (lambda: build(form="mrsa"), "form='mrsa': expected one of 'caffe', 'slim', 'torchvision', 'msra', 'gcn'$"),
        (lambda: resnet50_gcn(**QUICK, weights="imagenet"), "weights='imagenet': Keras publishes none for resnet50_gcn"),
        (lambda: resnet50_gcn(**QUICK, weights="none.keras"), "weights='none.keras': expected None, 'imagenet', or an existing"),
    ],
)
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises(KerassegError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_imagenet_weights_of_resnet50_are_not_for_resnet50_gcn():
    with pytest.raises(KerassegError, match="Keras publishes none for trunk with a torchvision or beta ResNet, or a ResNet50-GCN"):
        load_resnet_imagenet(shared())
