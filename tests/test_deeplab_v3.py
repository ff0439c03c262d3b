"""DeepLab v3 against its paper: every configuration of Tables 1 to 10, Figure 4, and keras-hub's pyramid."""

import warnings
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_varies, give_random_weights, images

from kerasseg import KerassegError
from kerasseg.errors import DegenerateRateWarning
from kerasseg.layers import BatchNormalization, RateCheck
from kerasseg.models import MODELS

NONE = (1, 1, 1)


@cache
def build(arch="deeplab_v3", **arguments):
    """A configuration as it is built; tests must leave its weights as they are."""
    return MODELS[arch](**{"width_multiplier": 1 / 16, **arguments})


def cascade(**arguments):
    return build("deeplab_v3_cascade", **arguments)


def small(**arguments):
    """One with random weights, for numbers."""
    return give_random_weights(MODELS["deeplab_v3"](5, width_multiplier=1 / 16, backbone="resnet50", **arguments))


def read(model, what):
    """The rates or strides of the 3×3 convolutions of each block's units, read off the layers."""
    found = {}
    for layer in model.layers:
        if layer.name.endswith("_bottleneck_v1_conv2"):
            block, unit = (int(part) for part in layer.name.removesuffix("_bottleneck_v1_conv2")[5:].split("_unit_"))
            (value, again) = getattr(layer, what)
            assert value == again and layer.kernel_size == (3, 3)
            found.setdefault(block, {})[unit] = value
    return {block: [values[unit] for unit in sorted(values)] for block, values in found.items()}


def assert_rates(model, last, units=23, **unlike_one):
    """Demands these rates, by block, and 1 everywhere else; one number is that of all units of its block."""
    counts = {1: 3, 2: 4, 3: units, 4: 3, 5: 3, 6: 3, 7: 3}
    expected = {block: [1] * counts[block] for block in range(1, last + 1)}
    for name, value in unlike_one.items():
        block = int(name.removeprefix("block"))
        expected[block] = list(value) if isinstance(value, tuple) else [value] * counts[block]
    assert read(model, "dilation_rate") == expected
    elsewhere = {
        layer.name
        for layer in model.layers
        if getattr(layer, "dilation_rate", (1, 1)) != (1, 1) and not layer.name.startswith(("block", "aspp"))
    }
    assert elsewhere == set()


def assert_strides(model, *blocks):
    """Demands that the last unit of these blocks, and no other, strides by 2; the root does by 4."""
    strides = read(model, "strides")
    assert [block for block, values in strides.items() if values[-1] == 2] == list(blocks)
    assert all(value == 1 for values in strides.values() for value in values[:-1])
    assert model.get_layer("conv1").strides == model.get_layer("pool1").strides == (2, 2)


def map_side(model, pixels=513):
    """Cells along one side of the map that the logits are computed on."""
    shape = model.get_layer("logits_semantic").output.shape
    assert shape[1:3] == (None, None)
    end = keras.Model(model.input, model.get_layer("logits_semantic").output)
    return end.compute_output_shape((16, pixels, pixels, 3))[1]


# Blocks that stride, rates by hand: Figure 3 and §3.2, rates double with every block behind the last stride.
TABLE_1 = {
    256: ((1, 2, 3, 4, 5, 6), {}, 3),
    128: ((1, 2, 3, 4, 5), {"block7": 2}, 5),
    64: ((1, 2, 3, 4), {"block6": 2, "block7": 4}, 9),
    32: ((1, 2, 3), {"block5": 2, "block6": 4, "block7": 8}, 17),
    16: ((1, 2), {"block4": 2, "block5": 4, "block6": 8, "block7": 16}, 33),
    8: ((1,), {"block3": 2, "block4": 4, "block5": 8, "block6": 16, "block7": 32}, 65),
    # Appendix C evaluates at 4.
    4: ((), {"block2": 2, "block3": 4, "block4": 8, "block5": 16, "block6": 32, "block7": 64}, 129),
}


@pytest.mark.parametrize("output_stride", TABLE_1)
def test_table_1_output_strides_of_resnet50_with_block7(output_stride):
    strided, rates, side = TABLE_1[output_stride]
    model = cascade(backbone="resnet50", output_stride=output_stride, multi_grid=NONE)
    assert_rates(model, 7, units=6, **rates)
    assert_strides(model, *strided)
    assert map_side(model) == side
    assert model.count_params() == cascade(backbone="resnet50", output_stride=16, multi_grid=NONE).count_params()


# At output stride 16, by hand: block4 at twice the unit rates, block5 at 4 times, block6 at 8 times, block7 at 16 times.
TABLE_3 = {
    (1, 1, 1): [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)],
    (1, 2, 1): [(2, 4, 2), (4, 8, 4), (8, 16, 8), (16, 32, 16)],
    (1, 2, 3): [(2, 4, 6), (4, 8, 12), (8, 16, 24), (16, 32, 48)],
    (1, 2, 4): [(2, 4, 8), (4, 8, 16), (8, 16, 32), (16, 32, 64)],
    (2, 2, 2): [(4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)],
}


@pytest.mark.parametrize("last_block", [4, 5, 6, 7])
@pytest.mark.parametrize(("backbone", "units"), [({"backbone": "resnet50"}, 6), ({}, 23)], ids=["resnet50", "resnet101"])
def test_table_2_blocks_in_cascade(backbone, units, last_block):
    model = cascade(**backbone, last_block=last_block, multi_grid=NONE)
    rates = {f"block{block}": rates for block, rates in enumerate(TABLE_3[NONE][: last_block - 3], start=4)}
    assert_rates(model, last_block, units, **rates)
    assert_strides(model, 1, 2)


@pytest.mark.parametrize("last_block", [4, 5, 6, 7])
@pytest.mark.parametrize("multi_grid", TABLE_3)
def test_table_3_multi_grid_in_cascade(multi_grid, last_block):
    model = cascade(last_block=last_block, multi_grid=multi_grid)
    rates = {f"block{block}": rates for block, rates in enumerate(TABLE_3[multi_grid][: last_block - 3], start=4)}
    assert_rates(model, last_block, **rates)
    assert_strides(model, 1, 2)


def test_table_4_the_best_cascade_trains_at_16_and_runs_at_8():
    # Table 3's best is the default.
    train, run = cascade(), cascade(output_stride=8)
    assert read(train, "dilation_rate") == read(cascade(last_block=7, multi_grid=(1, 2, 1)), "dilation_rate")
    assert_rates(run, 7, block3=2, block4=(4, 8, 4), block5=(8, 16, 8), block6=(16, 32, 16), block7=(32, 64, 32))
    assert_strides(run, 1)
    assert_same_weights(train, run)


def assert_same_weights(one, other):
    assert one.count_params() == other.count_params()
    assert [(w.path, tuple(w.shape)) for w in one.weights] == [(w.path, tuple(w.shape)) for w in other.weights]


def aspp(model):
    """Kernel side and rate of each branch in the order of concatenation; the pooled branch as `"pool"`."""
    branches = []
    for tensor in model.get_layer("aspp_concat")._inbound_nodes[0].input_tensors:
        name = tensor._keras_history.operation.name
        if name == "image_pooling_resize":
            branches.append("pool")
        else:
            layer = model.get_layer(name.removesuffix("_relu"))
            branches.append((layer.name, layer.kernel_size[0], layer.dilation_rate[0]))
    return branches


PYRAMID = [("aspp0", 1, 1), ("aspp1", 3, 6), ("aspp2", 3, 12), ("aspp3", 3, 18)]
TABLE_5 = [
    ((1, 1, 1), (6, 12, 18), False, (2, 2, 2), PYRAMID),
    ((1, 2, 1), (6, 12, 18), False, (2, 4, 2), PYRAMID),
    ((1, 2, 4), (6, 12, 18), False, (2, 4, 8), PYRAMID),
    ((1, 2, 4), (6, 12, 18, 24), False, (2, 4, 8), [*PYRAMID, ("aspp4", 3, 24)]),
    ((1, 2, 4), (6, 12, 18), True, (2, 4, 8), ["pool", *PYRAMID]),
]


@pytest.mark.parametrize(("multi_grid", "rates", "pooling", "block4", "branches"), TABLE_5)
def test_table_5_atrous_spatial_pyramids(multi_grid, rates, pooling, block4, branches):
    model = build(multi_grid=multi_grid, atrous_rates=rates, image_pooling=pooling)
    assert_rates(model, 4, block4=block4)
    assert_strides(model, 1, 2)
    assert aspp(model) == branches
    if pooling:
        # Table 5's best is the default.
        assert (aspp(build()), read(build(), "dilation_rate")) == (branches, read(model, "dilation_rate"))


DOUBLED = ["pool", ("aspp0", 1, 1), ("aspp1", 3, 12), ("aspp2", 3, 24), ("aspp3", 3, 36)]


def test_tables_6_and_7_the_best_pyramid_runs_at_8():
    # Table 7's figures on the test set are this network's.
    run = build(output_stride=8)
    assert_rates(run, 4, block3=2, block4=(4, 8, 16))
    assert_strides(run, 1)
    assert aspp(run) == DOUBLED
    assert map_side(run) == 65
    assert_same_weights(build(), run)


def test_table_8_hyper_parameters():
    upsampled, coarse = build(), build(upsample_logits=False)
    for pixels, cells in ((513, 33), (321, 21)):
        assert upsampled.compute_output_shape((16, pixels, pixels, 3)) == (16, pixels, pixels, 21)
        assert coarse.compute_output_shape((16, pixels, pixels, 3)) == (16, cells, cells, 21)
    assert_same_weights(upsampled, coarse)
    # Batch norm: 104 in ResNet-101 (three a unit, four projections, the root), and five branches and their projection.
    norms = [layer for layer in upsampled.layers if isinstance(layer, BatchNormalization)]
    assert len(norms) == 3 * 33 + 4 + 1 + 6
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9997, 1e-5)}
    other = build(backbone="resnet50", batch_norm_momentum=0.95, batch_norm_epsilon=1e-3)
    assert {(n.momentum, n.epsilon) for n in other.layers if isinstance(n, BatchNormalization)} == {(0.95, 1e-3)}


@pytest.mark.parametrize("batch", [4, 8, 12, 16])
def test_table_9_batches(batch):
    assert build().compute_output_shape((batch, 513, 513, 3)) == (batch, 513, 513, 21)


# Output stride → rates of block3, of block4, of ASPP, blocks that stride.
TABLE_10 = {
    8: (2, (4, 8, 16), (12, 24, 36), (1,)),
    16: (1, (2, 4, 8), (6, 12, 18), (1, 2)),
    32: (1, (1, 2, 4), (3, 6, 9), (1, 2, 3)),
    # Appendix C: evaluated at 4, where block2 is at 2.
    4: (4, (8, 16, 32), (24, 48, 72), ()),
}


@pytest.mark.parametrize("train", [8, 16, 32])
@pytest.mark.parametrize("run", [16, 8, 4])
def test_table_10_trained_at_one_stride_run_at_another(train, run):
    for output_stride in (train, run):
        block3, block4, pyramid, strided = TABLE_10[output_stride]
        model = build(output_stride=output_stride)
        assert_rates(model, 4, block2=2 if output_stride == 4 else 1, block3=block3, block4=block4)
        assert [branch[2] for branch in aspp(model)[2:]] == list(pyramid)
        assert_strides(model, *strided)
    assert_same_weights(build(output_stride=train), build(output_stride=run))


def test_weights_trained_at_16_give_the_same_features_at_8():
    x = images((129, 161), seed=3)
    coarse = small()
    dense = MODELS["deeplab_v3"](5, width_multiplier=1 / 16, backbone="resnet50", output_stride=8)
    dense.set_weights(coarse.get_weights())
    features = [
        keras.Model(model.input, model.get_layer("block4_unit_3_bottleneck_v1").output)(x, training=False)
        for model in (coarse, dense)
    ]
    assert_varies(features[0])
    assert_close(features[1][:, ::2, ::2], features[0], 1e-5)


# Figure 4.


@pytest.mark.parametrize("rate", [1, 6, 12, 18, 24, 32, 33, 48, 63, 64, 65, 96])
def test_figure_4_valid_weights_on_a_map_of_65(rate):
    layer = build(backbone="resnet50", atrous_rates=(rate,), output_stride=8).get_layer("aspp1")
    # The layer as it was built, over one channel: a kernel of ones on a map of ones counts.
    alone = type(layer).from_config({**layer.get_config(), "filters": 1, "kernel_initializer": "ones"})
    counts = np.rint(alone(tf.ones((1, 65, 65, 1)))).astype(int)
    assert counts.shape == (1, 65, 65, 1)
    # Along one side: positions with three, two and one valid weights.
    three, one = max(0, 65 - 2 * rate), min(65, max(0, 2 * rate - 65))
    two = 65 - three - one
    expected = {9: three**2, 6: 2 * three * two, 4: two**2, 3: 2 * three * one, 2: 2 * two * one, 1: one**2}
    values, numbers = np.unique(counts, return_counts=True)
    assert dict(zip(values.tolist(), numbers.tolist(), strict=True)) == {k: n for k, n in expected.items() if n}


# The pyramid in numbers.


@pytest.mark.parity
def test_the_pyramid_is_keras_hubs(oracle_dir):
    oracle = np.load(oracle_dir / "kerashub" / "spp.npz")
    model = build(batch_norm_epsilon=1e-3, width_multiplier=1 / 8, backbone="resnet50")
    pyramid, channels = _pyramid_alone(model), oracle["in_data"].shape[-1]
    assert channels == 64
    blobs = [oracle[f"w_{index}"] for index in range(30)]
    names = ["aspp0", "aspp1", "aspp2", "aspp3", "image_pooling", "concat_projection"]
    for index, name in enumerate(names):
        kernel, *norm = blobs[5 * index : 5 * index + 5]
        if name == "concat_projection":
            # Theirs: 1×1, three atrous, pooling; the authors': pooling first.
            kernel = np.concatenate([kernel[:, :, 128:], kernel[:, :, :128]], axis=2)
        pyramid.get_layer(name).set_weights([kernel])
        pyramid.get_layer(f"{name}_BatchNorm").set_weights(norm)
    received = pyramid(oracle["in_data"], training=False)
    assert_varies(oracle["out"])
    assert_close(received, oracle["out"], 1e-5)


def _pyramid_alone(model):
    """The layers between the backbone and the last features, on a map of 64 channels."""
    from kerasseg.models.deeplab_v3 import _conv_bn_relu, _pyramid

    options = {"momentum": 0.9997, "epsilon": 1e-3}
    assert {layer.epsilon for layer in model.layers if isinstance(layer, BatchNormalization)} == {1e-3}
    x = keras.Input((None, None, 64))
    y = _conv_bn_relu(_pyramid(x, 32, (6, 12, 18), True, options), 32, 1, "concat_projection", options)
    return keras.Model(x, y)


def test_logits_are_resized_with_aligned_corners():
    model, x = small(), images((129, 97))
    end = keras.Model(model.input, [model.get_layer("logits_semantic").output, model.output])
    coarse, fine = end(x, training=False)
    assert coarse.shape[1:3] == (9, 7)
    # 129 = 16 · 8 + 1: every sixteenth pixel is a cell.
    assert_close(fine[:, ::16, ::16], coarse, 1e-5)
    assert_close(fine[:, 8::16, ::16], (coarse[:, 1:] + coarse[:, :-1]) / 2, 1e-5)
    coarser = MODELS["deeplab_v3"](5, width_multiplier=1 / 16, backbone="resnet50", upsample_logits=False)
    coarser.set_weights(model.get_weights())
    assert_close(coarser(x, training=False), coarse, 1e-6)
    assert coarser.output.dtype == "float32"


def test_backbones_bring_their_preprocessing():
    firsts = {}
    for backbone in ("resnet50", "resnet50_beta", "resnet50_caffe", "resnet50_torchvision"):
        layer = build(backbone=backbone).layers[1]
        firsts[backbone] = (layer.order, layer.mean[0], round(layer.scale[0], 5))
    assert firsts == {
        "resnet50": ((0, 1, 2), 123.15, 1.0),
        "resnet50_beta": ((0, 1, 2), 127.5, 0.00784),
        "resnet50_caffe": ((2, 1, 0), 104.00699, 1.0),
        "resnet50_torchvision": ((0, 1, 2), 123.675, 0.01712),
    }
    assert build(backbone="resnet50_caffe").get_layer("res5c_branch2b").dilation_rate == (8, 8)


def test_widths_scale():
    model = build(width_multiplier=1 / 8, backbone="resnet50")
    widths = {name: model.get_layer(name).filters for name in ("aspp0", "aspp3", "image_pooling", "concat_projection")}
    assert set(widths.values()) == {32}
    assert model.get_layer("logits_semantic").filters == 21


# Maps that are too small.


def degenerate(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(warning.message) for warning in caught if warning.category is DegenerateRateWarning]


def test_a_map_smaller_than_every_rate_warns_once():
    model = build(backbone="resnet50")
    check = RateCheck.from_config(model.get_layer("aspp_rate_check").get_config())
    traced = tf.function(lambda x: check(x) * 2)
    message = r"on a map of 6×4 cells the atrous rates 6, 12, 18 reach nothing but padding.*use images of more than 96 pixels"
    # 7 cells see at least one weight beside the centre; sizes that are not known yet say nothing.
    assert degenerate(lambda: traced(tf.zeros((1, 4, 7, 2)))) == []
    assert degenerate(lambda: tf.function(check).get_concrete_function(tf.TensorSpec((1, None, 4, 2)))) == []
    with pytest.warns(DegenerateRateWarning, match=message) as caught:
        traced(tf.zeros((1, 6, 4, 2)))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert degenerate(lambda: traced(tf.zeros((1, 5, 4, 2)))) == []


def test_a_network_built_for_small_images_warns():
    small_images = {"backbone": "resnet50", "width_multiplier": 1 / 16}
    assert len(degenerate(lambda: MODELS["deeplab_v3"](input_shape=(96, 96, 3), **small_images))) == 1
    assert degenerate(lambda: MODELS["deeplab_v3"](input_shape=(97, 97, 3), **small_images)) == []
    assert degenerate(lambda: MODELS["deeplab_v3"](input_shape=(96, 96, 3), atrous_rates=(2, 18), **small_images)) == []
    # Of unknown size: when it is used.
    model = MODELS["deeplab_v3"](**small_images)
    x = np.zeros((1, 96, 96, 3), "uint8")
    assert [len(degenerate(lambda: model(x))) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        (
            "deeplab_v3",
            {"atrous_rates": (6, 0)},
            r"atrous_rates=\(6, 0\): expected one or more whole numbers from 1, e.g. atrous_rates=\(6, 12, 18\)$",
        ),
        ("deeplab_v3", {"atrous_rates": (-6,)}, "expected one or more whole"),
        ("deeplab_v3", {"atrous_rates": (1.5, 3)}, "expected one or more whole"),
        ("deeplab_v3", {"atrous_rates": ()}, "expected one or more whole"),
        ("deeplab_v3", {"atrous_rates": 6}, "atrous_rates=6: expected one or more whole"),
        ("deeplab_v3", {"atrous_rates": (True, 3)}, "expected one or more whole"),
        ("deeplab_v3", {"atrous_rates": "612"}, "expected one or more whole"),
        ("deeplab_v3", {"output_stride": 16.0}, "output_stride=16.0: expected one of .* e.g. output_stride=16$"),
        ("deeplab_v3", {"backbone": "keras_resnet50", "output_stride": True, "width_multiplier": 1}, "e.g. output_stride=16$"),
        ("deeplab_v3", {"multi_grid": "papers"}, "multi_grid='papers': expected 3 whole numbers"),
        ("deeplab_v3", {"width_multiplier": 0}, "width_multiplier=0: expected a number above 0"),
        ("deeplab_v3", {"output_stride": 12}, "output_stride=12: expected one of 4, 8, 16, 32"),
        ("deeplab_v3", {"output_stride": 64}, "output_stride=64: expected one of 4, 8, 16, 32"),
        ("deeplab_v3", {"multi_grid": (1, 2)}, "multi_grid"),
        ("deeplab_v3", {"backbone": "resnet60"}, "resnet50"),
        ("deeplab_v3_cascade", {"output_stride": 512}, "output_stride=512: expected one of 4, 8, 16, 32, 64, 128, 256"),
        ("deeplab_v3_cascade", {"last_block": 5, "output_stride": 128}, "expected one of 4, 8, 16, 32, 64 for"),
        ("deeplab_v3_cascade", {"last_block": 3}, "last_block=3: expected one of 4, 5"),
        ("deeplab_v3_cascade", {"backbone": "resnet50_caffe"}, "'caffe' has only 4 and 'plain'"),
        ("deeplab_v3", {"backbone": "resnet50_beta", "weights": "imagenet"}, "Keras publishes none for deeplab_v3"),
    ],
)
def test_what_cannot_be_is_one_line(arch, arguments, message):
    with pytest.raises(KerassegError, match=message) as error:
        MODELS[arch](**{"width_multiplier": 1 / 16, "backbone": "resnet50", **arguments})
    assert "\n" not in str(error.value)
