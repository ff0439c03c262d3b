"""The ResNets against plain operations written from the forms' definitions, against each other, and against themselves."""

import re
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_varies, give_random_weights, kernels_at_zero

from kerasseg import KerassegError
from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import image_input
from kerasseg.backbones.resnet import resnet
from kerasseg.layers import BatchNormalization

FORMS = ("caffe", "slim", "torchvision")
every_form = pytest.mark.parametrize("form", FORMS)
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def build(**arguments):
    image = image_input((None, None, 3))
    levels = resnet(image, **{"depth": 50, "width_multiplier": 1 / 16, **arguments})
    return keras.Model(image, levels, name="trunk")


@cache
def shared(**arguments):
    """A trunk with random weights; tests must leave it as it is."""
    return give_random_weights(build(**arguments))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


# Names, as the published files have them.


def caffe_units(depth):
    return {
        50: "2a 2b 2c 3a 3b 3c 3d 4a 4b 4c 4d 4e 4f 5a 5b 5c",
        101: " ".join(["2a 2b 2c 3a 3b1 3b2 3b3 4a", *(f"4b{n}" for n in range(1, 23)), "5a 5b 5c"]),
        152: "2a 2b 2c 3a "
        + " ".join(f"3b{n}" for n in range(1, 8))
        + " 4a "
        + " ".join(f"4b{n}" for n in range(1, 36))
        + " 5a 5b 5c",
    }[depth].split()


@pytest.mark.parametrize("depth", UNITS)
def test_layers_of_the_caffe_form_are_named_as_in_msras_files(depth):
    expected = {"conv1", "bn_conv1"}
    for unit in caffe_units(depth):
        branches = ["branch2a", "branch2b", "branch2c"] + ["branch1"] * (unit in ("2a", "3a", "4a", "5a"))
        expected |= {f"res{unit}_{branch}" for branch in branches} | {f"bn{unit}_{branch}" for branch in branches}
    model = build(depth=depth, form="caffe")
    assert {layer.name for layer in model.layers if layer.weights} == expected
    assert {"pool1", *(f"res{unit}" for unit in caffe_units(depth))} <= {layer.name for layer in model.layers}


def test_layers_of_the_other_forms_are_named_as_in_their_files():
    slim = {layer.name for layer in shared(form="slim").layers if layer.weights}
    scope = "block3_unit_6_bottleneck_v1"
    assert {"conv1", "conv1_BatchNorm", f"{scope}_conv1", f"{scope}_conv3_BatchNorm"} <= slim
    assert {"block4_unit_1_bottleneck_v1_shortcut", "block4_unit_1_bottleneck_v1_shortcut_BatchNorm"} <= slim
    assert f"{scope}_shortcut" not in slim
    beta = {layer.name for layer in shared(form="slim", root="beta").layers if layer.weights}
    assert beta - slim == {f"conv1_{n}{end}" for n in (1, 2, 3) for end in ("", "_BatchNorm")}
    torchvision = {layer.name for layer in shared(form="torchvision").layers if layer.weights}
    assert {"conv1", "bn1", "layer1_0_conv1", "layer1_0_bn3", "layer4_0_downsample_0", "layer4_0_downsample_1"} <= torchvision
    assert len(slim) == len(torchvision) == 2 * 53


# torchvision's published totals, less the classifier's 2048 · 1000 + 1000.
TRAINABLE = {50: 25_557_032 - 2_049_000, 101: 44_549_160 - 2_049_000, 152: 60_192_808 - 2_049_000}
# Three 3×3 convolutions (3 → 64 → 64 → 128) and their batch norms instead of 7×7; twice the inputs of block1's first 1×1s.
BETA = 27 * 64 + 576 * 64 + 576 * 128 + 2 * (64 + 64 + 128) - (147 * 64 + 2 * 64) + 64 * (64 + 256)


@pytest.mark.parametrize(("depth", "form"), [(50, "caffe"), (50, "slim"), (50, "torchvision"), (101, "slim"), (152, "caffe")])
def test_parameters_at_full_width(depth, form):
    with kernels_at_zero():
        model = build(depth=depth, form=form, width_multiplier=1)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == TRAINABLE[depth]


def test_parameters_of_the_beta_root():
    with kernels_at_zero():
        beta = build(form="slim", root="beta", width_multiplier=1)
    assert sum(np.prod(weight.shape) for weight in beta.trainable_weights) == TRAINABLE[50] + BETA


# The forms, by plain operations.


class Plain:
    """Convolutions and batch norms on a trunk's weights, by its layer names."""

    def __init__(self, model):
        self.weights = {layer.name: layer.get_weights() for layer in model.layers}

    def convolve(self, x, name, norm, stride=1, rate=1, relu=True):
        (kernel,) = self.weights[name]
        pad = rate * (kernel.shape[0] - 1) // 2
        x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        # Every cell, of which the strided convolution keeps some.
        x = tf.nn.convolution(x, kernel, dilations=rate)[:, ::stride, ::stride]
        gamma, beta, mean, variance = self.weights[norm]
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        return tf.nn.relu(x) if relu else x


def plain_slim(model, x, output_stride, multi_grid, blocks, beta=False):
    """tensorflow/models: a block's last unit strides; what is left out multiplies the rates behind the unit."""
    plain = Plain(model)
    root = [("conv1_1", 2), ("conv1_2", 1), ("conv1_3", 1)] if beta else [("conv1", 2)]
    for name, stride in root:
        x = plain.convolve(x, name, f"{name}_BatchNorm", stride)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    current, rate = 4, 1
    for block, units in enumerate((3, 4, 6, 3, 3, 3, 3)[:blocks], start=1):
        for unit in range(1, units + 1):
            wanted = 2 if unit == units and block < blocks else 1
            stride, following = (1, rate * wanted) if current == output_stride else (wanted, rate)
            current *= stride
            scope = f"block{block}_unit_{unit}_bottleneck_v1"
            grid = multi_grid[unit - 1] if block > 3 else 1
            if f"{scope}_shortcut" in plain.weights and plain.weights[f"{scope}_shortcut"]:
                assert stride == 1
                shortcut = plain.convolve(x, f"{scope}_shortcut", f"{scope}_shortcut_BatchNorm", relu=False)
            else:
                shortcut = x[:, ::stride, ::stride]
            x = plain.convolve(x, f"{scope}_conv1", f"{scope}_conv1_BatchNorm")
            x = plain.convolve(x, f"{scope}_conv2", f"{scope}_conv2_BatchNorm", stride, rate * grid)
            x = tf.nn.relu(shortcut + plain.convolve(x, f"{scope}_conv3", f"{scope}_conv3_BatchNorm", relu=False))
            rate = following
    return x


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "last_block", "root"),
    [
        (32, (1, 1, 1), 4, "plain"),
        (16, (1, 2, 4), 4, "plain"),
        (8, (1, 2, 4), 4, "beta"),
        (4, (1, 2, 1), 5, "plain"),
        (256, (1, 1, 1), 7, "plain"),
        # The unit that strides has a unit rate, too.
        (64, (1, 2, 4), 6, "plain"),
    ],
)
def test_the_slim_form_is_its_definition(output_stride, multi_grid, last_block, root):
    model = shared(form="slim", output_stride=output_stride, multi_grid=multi_grid, last_block=last_block, root=root)
    x = noise(1, 96, 129, 3)
    expected = plain_slim(model, x, output_stride, multi_grid, last_block, root == "beta")
    received = model(x, training=False)[output_stride]
    assert_varies(expected)
    assert_close(received, expected, 1e-5)


def plain_torchvision(model, x, dilated=(False, False, False)):
    """torchvision's models/resnet.py: `_make_layer` with `replace_stride_with_dilation`."""
    plain = Plain(model)
    x = plain.convolve(x, "conv1", "bn1", 2)
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf), 3, 2, "VALID")
    dilation = 1
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        stride, previous = (1 if layer == 1 else 2), dilation
        if layer > 1 and dilated[layer - 2]:
            dilation, stride = dilation * stride, 1
        for index in range(blocks):
            scope, step, rate = f"layer{layer}_{index}", stride if index == 0 else 1, previous if index == 0 else dilation
            shortcut = x
            if index == 0:
                shortcut = plain.convolve(x, f"{scope}_downsample_0", f"{scope}_downsample_1", step, relu=False)
            x = plain.convolve(x, f"{scope}_conv1", f"{scope}_bn1")
            x = plain.convolve(x, f"{scope}_conv2", f"{scope}_bn2", step, rate)
            x = tf.nn.relu(shortcut + plain.convolve(x, f"{scope}_conv3", f"{scope}_bn3", relu=False))
    return x


@pytest.mark.parametrize(
    ("output_stride", "dilated"),
    [(32, (False, False, False)), (16, (False, False, True)), (8, (False, True, True)), (4, (True, True, True))],
)
def test_the_torchvision_form_is_its_definition(output_stride, dilated):
    model, x = shared(form="torchvision", output_stride=output_stride), noise(1, 96, 129, 3)
    expected = plain_torchvision(model, x, dilated)
    assert_varies(expected)
    assert_close(model(x, training=False)[output_stride], expected, 1e-5)


def place(name):
    """Block, unit, part (0: the shortcut) and whether it is a batch norm, from a layer's name in any form."""
    roots = {"conv1": False, "bn_conv1": True, "bn1": True, "conv1_BatchNorm": True}
    if name in roots:
        return 0, 0, 0, roots[name]
    if found := re.fullmatch(r"(res|bn)(\d)([a-f])_branch(1|2a|2b|2c)", name):
        kind, stage, letter, branch = found.groups()
        return int(stage) - 1, "abcdef".index(letter), ["1", "2a", "2b", "2c"].index(branch), kind == "bn"
    if found := re.fullmatch(r"block(\d)_unit_(\d)_bottleneck_v1_(?:shortcut|conv(\d))(_BatchNorm)?", name):
        block, unit, part, norm = found.groups()
        return int(block), int(unit) - 1, int(part or 0), norm is not None
    layer, block, kind, number = re.fullmatch(r"layer(\d)_(\d)_(conv|bn|downsample_)(\d)", name).groups()
    if kind == "downsample_":
        return int(layer), int(block), 0, number == "1"
    return int(layer), int(block), int(number), kind == "bn"


def moved(source, target):
    """The target with the source's weights, by place."""
    weights = {place(layer.name): layer.get_weights() for layer in source.layers if layer.weights}
    layers = {place(layer.name): layer for layer in target.layers if layer.weights}
    assert set(weights) == set(layers) and len(layers) == 2 * 53
    for key, layer in layers.items():
        layer.set_weights(weights[key])
    return target


@pytest.mark.parametrize("output_stride", [32, 16, 8, 4])
def test_caffe_and_slim_are_one_function_on_odd_maps(output_stride):
    source = shared(form="caffe", output_stride=output_stride)
    x = noise(1, 97, 129, 3)
    expected = source(x, training=False)[output_stride]
    assert_varies(expected)
    slim = moved(source, build(form="slim", output_stride=output_stride))
    assert_close(slim(x, training=False)[output_stride], expected, 1e-5)
    other = moved(source, build(form="torchvision", output_stride=output_stride))
    with pytest.raises(AssertionError):
        assert_close(other(x, training=False)[output_stride], expected, 1e-2)


def test_caffe_rounds_pooled_sizes_up():
    # conv1's map: 112 × 113. pool1's: ⌈(112 + 2 − 3) / 2⌉ + 1 = 57 rows, where the others have 56.
    x = keras.KerasTensor((1, 224, 225, 3))
    for form, rows in (("caffe", 57), ("slim", 56), ("torchvision", 56)):
        levels = build(form=form).compute_output_shape(x.shape)
        assert levels[4][1:3] == (rows, 57)


# Dense maps.


@every_form
def test_dense_maps_contain_the_coarse_one(form):
    coarse = shared(form=form)
    # Compared first as they are; the control, without dilation, must fail.
    for output_stride, size in ((16, (97, 129)), (8, (64, 96)), (4, (97, 65))):
        x, step = noise(1, *size, 3, seed=2), 32 // output_stride
        expected = coarse(x, training=False)[32]
        assert_varies(expected)
        dense = build(form=form, output_stride=output_stride)
        dense.set_weights(coarse.get_weights())
        received = dense(x, training=False)
        assert max(received) == output_stride
        assert_close(received[output_stride][:, ::step, ::step], expected, 1e-5)
        for layer in convolutions(dense):
            layer.dilation_rate = (1, 1)
        with pytest.raises(AssertionError):
            assert_close(dense(x, training=False)[output_stride][:, ::step, ::step], expected, 1e-2)


@every_form
def test_levels_are_the_last_map_at_each_stride(form):
    for output_stride in (32, 8):
        model = shared(form=form, output_stride=output_stride)
        levels = {stride: tensor._keras_history.operation.name for stride, tensor in model.output.items()}
        strides = [stride for stride in (2, 4, 8, 16, 32) if stride <= output_stride]
        assert list(levels) == strides
        shapes = model.compute_output_shape((1, 97, 161, 3))
        assert {stride: shape[1:3] for stride, shape in shapes.items()} == {
            stride: (96 // stride + 1, 160 // stride + 1) for stride in strides
        }
        ends = {
            ("caffe", 32): {2: "conv1", 4: "res2c", 8: "res3d", 16: "res4f", 32: "res5c"},
            ("caffe", 8): {2: "conv1", 4: "res2c", 8: "res5c"},
            ("torchvision", 32): {2: "conv1", 4: "layer1_2", 8: "layer2_3", 16: "layer3_5", 32: "layer4_2"},
            ("torchvision", 8): {2: "conv1", 4: "layer1_2", 8: "layer4_2"},
            ("slim", 32): {2: "conv1", 4: "block1_unit_2", 8: "block2_unit_3", 16: "block3_unit_5", 32: "block4_unit_3"},
            ("slim", 8): {2: "conv1", 4: "block1_unit_2", 8: "block4_unit_3"},
        }[form, output_stride]
        ends = {stride: name + ("_relu" if stride == 2 else "_bottleneck_v1" * ("block" in name)) for stride, name in ends.items()}
        assert levels == ends


def test_a_unit_has_the_name_that_its_blob_has_in_the_files():
    """Caffe's `res5c` and slim's end point `block4/unit_3/bottleneck_v1` are what the ReLU leaves, there in place."""
    for form, name in (("caffe", "res5c"), ("slim", "block4_unit_3_bottleneck_v1"), ("torchvision", "layer4_2")):
        model = shared(form=form)
        outputs = [model.get_layer(name).output, model.get_layer(f"{name}_sum").output, model.output[32]]
        blob, total, level = keras.Model(model.input, outputs)(noise(1, 65, 97, 3), training=False)
        assert np.min(total) < 0
        np.testing.assert_array_equal(blob, np.maximum(total, 0))
        np.testing.assert_array_equal(blob, level)


def rates(model, pattern):
    return [layer.dilation_rate[0] for layer in convolutions(model) if re.fullmatch(pattern, layer.name)]


def test_first_units_of_dilated_blocks():
    # DeepLab v2: every unit of res4 at 2 and of res5 at 4, the first included; torchvision keeps the rate before.
    caffe = shared(form="caffe", output_stride=8)
    assert rates(caffe, "res3._branch2b") == [1] * 4
    assert rates(caffe, "res4._branch2b") == [2] * 6
    assert rates(caffe, "res5._branch2b") == [4] * 3
    torchvision = shared(form="torchvision", output_stride=8)
    assert rates(torchvision, "layer3_._conv2") == [1, 2, 2, 2, 2, 2]
    assert rates(torchvision, "layer4_._conv2") == [2, 4, 4]
    assert rates(shared(form="caffe", output_stride=8, multi_grid=(1, 2, 4)), "res5._branch2b") == [4, 8, 16]


@every_form
def test_batch_norm_takes_arguments(form):
    model = build(form=form, batch_norm={"momentum": 0.95, "trainable": False})
    norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    assert {(norm.momentum, norm.epsilon, norm.trainable, norm.synchronized) for norm in norms} == {(0.95, 1e-5, False, True)}
    assert {norm.momentum for norm in build(form=form).layers if isinstance(norm, BatchNormalization)} == {0.9997}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, "depth=18: expected one of 50, 101, 152"),
        ({"form": "torch"}, "form='torch': expected one of 'caffe', 'slim', 'torchvision'"),
        ({"output_stride": 64}, "output_stride=64: expected one of 4, 8, 16, 32 for a ResNet to block4"),
        ({"output_stride": 2, "last_block": 6}, "output_stride=2: expected one of 4, 8, 16, 32, 64, 128 for a ResNet to block6"),
        ({"last_block": 8}, "last_block=8: expected one of 4, 5, 6, 7, 4 being ResNet as it is, e.g. last_block=4"),
        ({"form": "caffe", "last_block": 5}, "a ResNet of form 'caffe' has only 4 and 'plain'; pass form='slim'"),
        ({"form": "torchvision", "root": "beta"}, "root='beta': a ResNet of form 'torchvision'"),
        ({"last_block": True}, "last_block=True: expected one of 4, 5, 6, 7"),
        ({"output_stride": 16.0}, r"output_stride=16.0: expected one of 4, 8, 16, 32 .* e.g. output_stride=16$"),
        ({"output_stride": True}, "output_stride=True: expected one of 4, 8, 16, 32 .* e.g. output_stride=16$"),
        ({"output_stride": "16"}, "output_stride='16': expected one of"),
        ({"multi_grid": (1, 2)}, r"multi_grid=\(1, 2\): expected 3 whole numbers from 1, e.g. multi_grid=\(1, 2, 4\)$"),
        ({"multi_grid": (1, 0, 1)}, "expected 3 whole numbers"),
        ({"multi_grid": (1, True, 1)}, "expected 3 whole numbers"),
        ({"multi_grid": (1, 1.0, 1)}, "expected 3 whole numbers"),
        ({"multi_grid": 2}, "expected 3 whole numbers"),
        ({"multi_grid": "124"}, "expected 3 whole numbers"),
        *(
            ({"width_multiplier": width}, f"width_multiplier={width!r}: expected a number above 0, e.g. width_multiplier=1.0$")
            for width in (0, -0.5, float("nan"), float("inf"), True, "1")
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    with pytest.raises(KerassegError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_numbers_may_be_numpys():
    model = build(output_stride=np.int64(8), multi_grid=list(np.array([1, 2, 4])))
    assert list(model.output) == [2, 4, 8]
    assert rates(model, "block4_.*_conv2") == [4, 8, 16]
    assert all(type(rate) is int for layer in convolutions(model) for rate in layer.dilation_rate)


@pytest.mark.parametrize(
    "name", [f"resnet{depth}{form}" for depth in UNITS for form in ("", "_beta", "_caffe", "_msra", "_torchvision")]
)
def test_backbones_are_listed(name):
    backbone = BACKBONES[name]
    depth, _, form = name.removeprefix("resnet").partition("_")
    built = {"form": form if form in (*FORMS, "msra") else "slim", "root": "beta" if form == "beta" else "plain"}
    assert backbone.build.func is resnet and backbone.build.keywords == {"depth": int(depth), **built}
    msra = {"caffe": "caffe", "msra": "caffe"}
    expected = {"": {"mean": (123.15, 115.90, 103.06)}, "beta": "tf", "torchvision": "torch", **msra}
    assert backbone.preprocessing == expected[form] and backbone.supports_multi_grid
