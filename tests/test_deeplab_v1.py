"""DeepLab v1 against the authors' outputs, files and tables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from caffe_layers import Blobs, interp, pooling, relu
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, parts, random_model, to_caffe

from kerasseg.interop import load_caffe
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS

ARCHS = ("deeplab_v1", "deeplab_v1_largefov")
BRANCHES = ("data", "pool1", "pool2", "pool3", "pool4")
CLASSES = 5


def network(arch, **arguments):
    return MODELS[arch](CLASSES, preprocessing=None, **QUICK, **arguments)


@pytest.mark.parity
def test_every_blob_of_largefov_is_the_authors(oracle_dir):
    oracle = np.load(oracle_dir / "caffe" / "deeplabv1-largefov.npz")
    blobs = {}
    for key in oracle.files:
        if key.startswith("w_"):
            blobs.setdefault(key[2:].rsplit("_", 1)[0], []).append(oracle[key])
    model = MODELS["deeplab_v1_largefov"](21, preprocessing=None, **QUICK)
    assert load_caffe(model, blobs) == []
    names = [key[4:] for key in oracle.files if key.startswith("out_")]
    assert len(names) == 8
    outputs = parts(model, *(name.replace("EXP", "voc12") for name in names))(
        oracle["in_data"].transpose(0, 2, 3, 1), training=False
    )
    for name, output in zip(names, outputs, strict=True):
        output, expected = np.transpose(output, (0, 3, 1, 2)), oracle[f"out_{name}"]
        # Shown by `pytest -rP`.
        print(f"deeplabv1-largefov {name}: {np.abs(output - expected).max() / np.abs(expected).max():.1e}")
        assert_close(output, expected)
    # On 32k + 1 there is nothing to cut off.
    np.testing.assert_array_equal(model(oracle["in_data"].transpose(0, 2, 3, 1), training=False), outputs[-1])


# The files' pools, as (kernel, stride, pad) of pool1 … pool5. DeepLab, test and training; LargeFOV and both multi-scale nets.
TEST_FILE = ((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, 1), (3, 1, 1))
TRAINING_FILE = ((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, 0), (3, 1, 1))
WINDOWS_OF_3 = ((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1))


def trunk(blobs, x, windows):
    """conv1_1 … pool5 as the files list them; every pool is a level."""
    levels = {"data": x}
    for block, (count, window) in enumerate(zip((2, 2, 3, 3, 3), windows, strict=True), start=1):
        hole = 2 if block == 5 else 1
        for index in range(1, count + 1):
            x = relu(blobs.convolution(x, f"conv{block}_{index}", pad=hole, hole=hole))
        x = levels[f"pool{block}"] = pooling(x, *window)
    return levels


def scores_of(arch, blobs, x):
    if arch == "deeplab_v1_largefov":
        x = relu(blobs.convolution(pooling(x, 3, 1, 1, average=True), "fc6", pad=12, hole=12))
    else:
        x = relu(blobs.convolution(x, "fc6", pad=6, hole=4))
    return blobs.convolution(relu(blobs.convolution(x, "fc7")), "fc8_voc12")


def branch(blobs, x, name, stride):
    x = relu(blobs.convolution(x, f"{name}_conv", stride=stride, pad=1))
    return blobs.convolution(relu(blobs.convolution(x, f"{name}_fc")), f"{name}_ms")


def by_the_files(arch, blobs, x, multi_scale, upsample_logits):
    """What Caffe computes from the authors' files, test or training."""
    windows = TEST_FILE if upsample_logits else TRAINING_FILE
    levels = trunk(blobs, x, WINDOWS_OF_3 if multi_scale or arch == "deeplab_v1_largefov" else windows)
    scores = scores_of(arch, blobs, levels["pool5"])
    if multi_scale and upsample_logits:
        zooms = dict(zip(BRANCHES, (1, 2, 4, 8, 8), strict=True))
        return sum(interp(branch(blobs, levels[name], name, 1), zoom) for name, zoom in zooms.items()) + interp(scores, 8)
    if multi_scale:
        strides = dict(zip(BRANCHES, (8, 4, 2, 1, 1), strict=True))
        return sum(branch(blobs, levels[name], name, stride) for name, stride in strides.items()) + scores
    if not upsample_logits:
        return scores
    scores = interp(scores, 8)
    return scores[:, :, 7:-8, 7:-8] if arch == "deeplab_v1" else scores


@pytest.mark.parametrize("upsample_logits", [True, False], ids=["test", "training"])
@pytest.mark.parametrize(("arch", "multi_scale"), [("deeplab_v1", False), ("deeplab_v1", True), ("deeplab_v1_largefov", True)])
def test_numbers_are_those_of_the_files_layers(arch, multi_scale, upsample_logits):
    # 8k + 2 for the pools with windows of 2, 8k + 1 for those of 3: where the files' maps meet.
    size = (65, 97) if multi_scale else (66, 98)
    x = images(size).astype("float32") - 120
    model = give_random_weights(network(arch, multi_scale=multi_scale, upsample_logits=upsample_logits))
    expected = by_the_files(arch, Blobs(model), x.transpose(0, 3, 1, 2), multi_scale, upsample_logits)
    logits = model(x, training=False)
    assert logits.dtype == "float32"
    assert_varies(logits)
    assert_close(np.transpose(logits, (0, 3, 1, 2)), expected, 1e-5)


def test_every_branch_counts():
    model = random_model("deeplab_v1_largefov", multi_scale=True)
    x = images((33, 33))
    before = np.array(model(x, training=False))
    for name in BRANCHES:
        bias = model.get_layer(f"{name}_ms").bias
        bias.assign(bias + 1000.0)
        after = np.array(model(x, training=False))
        assert_close(after - before, np.full_like(before, 1000), 1e-3)
        before = after


def size_of(model, name, n):
    _, height, width, _ = keras.Model(model.input, model.get_layer(name).output).compute_output_shape((1, n, n, 3))
    assert height == width
    return height


@pytest.mark.parametrize(
    ("arch", "arguments", "n", "expected"),
    [
        ("deeplab_v1", {}, 514, {"pool1": 258, "pool2": 130, "pool3": 66, "pool4": 67, "fc8_voc12": 67, "fc8_interp": 529}),
        ("deeplab_v1", {"upsample_logits": False}, 306, {"pool1": 154, "pool2": 78, "pool3": 40, "pool4": 39, "score": 39}),
        ("deeplab_v1_largefov", {"upsample_logits": False}, 321, {"pool1": 161, "pool2": 81, "pool3": 41, "score": 41}),
        ("deeplab_v1_largefov", {}, 513, {"pool1": 257, "pool2": 129, "pool3": 65, "fc8_voc12": 65, "fc8_interp": 513}),
        *(
            (arch, arguments, n, dict(zip((f"{name}_ms" for name in BRANCHES), sizes, strict=True)))
            for arch in ARCHS
            for arguments, n, sizes in (
                ({"multi_scale": True}, 513, (513, 257, 129, 65, 65)),
                ({"multi_scale": True, "upsample_logits": False}, 321, (41, 41, 41, 41, 41)),
            )
        ),
    ],
)
def test_maps_have_the_sizes_of_the_files(arch, arguments, n, expected):
    model = network(arch, **arguments)
    assert {name: size_of(model, name, n) for name in expected} == expected
    side = n if arguments.get("upsample_logits", True) else {306: 39, 321: 41}[n]
    assert model.compute_output_shape((1, n, n, 3)) == (1, side, side, CLASSES)


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_size_gets_logits_of_its_own(arch, multi_scale):
    model = network(arch, multi_scale=multi_scale)
    zoomed = {layer.name: layer.output for layer in model.layers if layer.name.endswith("_interp")}
    assert len(zoomed) == (5 if multi_scale else 1)
    sizes = keras.Model(model.input, zoomed)
    offset = 7 if arch == "deeplab_v1" and not multi_scale else 0
    # Height and width at once.
    for n in (*range(1, 19, 2), *range(64, 74, 2), 513):
        for _, *shape, _ in sizes.compute_output_shape((1, n, n + 1, 3)).values():
            # Enough to cut from, and no cell more than the files have.
            assert all(
                side <= zoomed - offset < side + (9 if offset else 8) for side, zoomed in zip((n, n + 1), shape, strict=True)
            )
        assert model.compute_output_shape((1, n, n + 1, 3)) == (1, n, n + 1, CLASSES)
    traced = tf.function(lambda x: model(x, training=False), [tf.TensorSpec((None, None, None, 3))])
    for size in ((1, 1), (2, 3), (9, 16), (34, 31)):
        assert traced(images(size).astype("float32")).shape == (2, *size, CLASSES)


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_both_files_forms_share_their_weights(arch, multi_scale):
    test, training = (random_model(arch, seed=seed, multi_scale=multi_scale, upsample_logits=seed == 0) for seed in (0, 1))
    assert [w.path for w in test.weights] == [w.path for w in training.weights]
    training.set_weights(test.get_weights())
    x = images((65, 97))
    if arch == "deeplab_v1_largefov" or multi_scale:
        # Every eighth pixel of the zoomed logits is a cell, but for the branches' strides.
        coarse, fine = training(x, training=False), test(x, training=False)
        assert_close(coarse, fine[:, ::8, ::8], 1e-5)
    # Off the grid the branches still meet.
    assert training(images((66, 71)), training=False).shape[-1] == CLASSES


def test_training_scores_meet_every_eighth_label_from_the_second():
    model, x = random_model("deeplab_v1", upsample_logits=False, preprocessing=None), images((66, 98))
    logits = np.array(model(x, training=False), "float64") / 1000
    label = np.random.default_rng(0).integers(0, CLASSES, (2, 66, 98)).astype("int32")
    assert logits.shape == (2, 9, 13, CLASSES)
    # The cross-entropy by its definition, on label[1::8].
    likely = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    expected = -np.take_along_axis(likely, label[:, 1::8, 1::8, None], axis=-1).mean()
    received = SegmentationCrossEntropy(label_offset=1)(label, logits.astype("float32"))
    np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_and_rates_are_those_of_the_files(arch):
    model = MODELS[arch](21, **QUICK, multi_scale=True)

    def described(name):
        layer = model.get_layer(name)
        return layer.kernel_size[0], layer.dilation_rate[0], layer.filters

    fc6 = (4, 4, 256) if arch == "deeplab_v1" else (3, 12, 64)
    assert described("fc6") == fc6
    assert described("fc7") == (1, 1, fc6[2])
    assert {described(f"conv5_{i}") for i in (1, 2, 3)} == {(3, 2, 32)}
    assert {described(f"conv{b}_{i}")[:2] for b, i in ((1, 1), (2, 2), (3, 3), (4, 3))} == {(3, 1)}
    # 128 channels scaled, scores not.
    assert [described(f"data_{part}") for part in ("conv", "fc", "ms")] == [(3, 1, 8), (1, 1, 8), (1, 1, 21)]


def test_new_layers_start_as_the_files_fill_them():
    keras.utils.set_random_seed(0)
    model = MODELS["deeplab_v1_largefov"](21, width_multiplier=1 / 2, multi_scale=True)
    deviations = {"fc8_voc12": 0.01, "pool4_fc": 0.005}
    for name in BRANCHES:
        deviations = {f"{name}_conv": 0.001, f"{name}_fc": 0.001, f"{name}_ms": 0.01, **deviations}
    deviations["pool3_ms"] = 0.0
    assert len(deviations) == 16
    for name, deviation in deviations.items():
        kernel, bias = model.get_layer(name).get_weights()
        # data_conv has 1728 numbers: their deviation is known to 2 %.
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.1, err_msg=name)
        assert abs(kernel.mean()) <= deviation / 5 and not bias.any()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_scores_name_is_that_of_the_experiment(arch):
    for seed, name in enumerate(("fc8_EXP", "fc8_pascal", "fc8_voc12", "fc8_voc_2012", "fc8_${EXP}")):
        source, target = random_model(arch, seed=seed), network(arch)
        blobs = to_caffe(source)
        blobs[name] = blobs.pop("fc8_voc12")
        assert load_caffe(target, blobs) == []
        np.testing.assert_array_equal(target.get_layer("fc8_voc12").kernel, source.get_layer("fc8_voc12").kernel)


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_dropout_follows_every_hidden_layer_of_the_heads(arch, multi_scale):
    rates = {
        layer.name: layer.rate for layer in network(arch, dropout_rate=0.3, multi_scale=multi_scale).layers if "drop" in layer.name
    }
    branches = {f"drop_{name}_{part}": 0.3 for name in BRANCHES for part in ("conv", "fc")} if multi_scale else {}
    assert rates == {"drop6": 0.3, "drop7": 0.3, **branches}


@pytest.mark.parametrize("arguments", [{}, {"multi_scale": True}], ids=["plain", "multi_scale"])
def test_training_logits_are_float32_under_mixed_precision(arguments):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network("deeplab_v1", upsample_logits=False, **arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("fc8_voc12").compute_dtype == "bfloat16"
    assert model(images((33, 33)), training=False).dtype == "float32"
