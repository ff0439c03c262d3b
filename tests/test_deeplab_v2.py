"""DeepLab v2 against the authors' outputs, files and tables."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from caffe_layers import Blobs, interp, pooling, relu
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, parts, random_model, to_caffe

from kerasseg import KerassegError
from kerasseg.interop import load_caffe
from kerasseg.layers import PadToGrid
from kerasseg.models import MODELS

CLASSES = 5
SCALES = ("fusion", "scale_1", "scale_075", "scale_05")


def vgg16(**arguments):
    return MODELS["deeplab_v2_vgg16"](CLASSES, preprocessing=None, **QUICK, **arguments)


def resnet101(**arguments):
    return MODELS["deeplab_v2_resnet101"](CLASSES, preprocessing=None, **QUICK, **arguments)


@pytest.mark.parity
def test_every_blob_of_aspp_is_the_authors(oracle_dir):
    oracle = np.load(oracle_dir / "caffe" / "deeplabv2-vgg16-aspp.npz")
    blobs = {}
    for key in oracle.files:
        if key.startswith("w_"):
            blobs.setdefault(key[2:].rsplit("_", 1)[0], []).append(oracle[key])
    model = MODELS["deeplab_v2_vgg16"](21, preprocessing=None, **QUICK)
    assert load_caffe(model, blobs) == []
    names = [key[4:] for key in oracle.files if key.startswith("out_")]
    assert len(names) == 7
    x = oracle["in_data"].transpose(0, 2, 3, 1)
    outputs = parts(model, *(name.replace("EXP", "voc12") for name in names))(x, training=False)
    for name, output in zip(names, outputs, strict=True):
        output, expected = np.transpose(output, (0, 3, 1, 2)), oracle[f"out_{name}"]
        # Shown by `pytest -rP`.
        print(f"deeplabv2-vgg16-aspp {name}: {np.abs(output - expected).max() / np.abs(expected).max():.1e}")
        assert_close(output, expected)
    np.testing.assert_array_equal(model(x, training=False), outputs[-1])


@pytest.mark.parametrize("rates", [(2, 4, 8, 12), (3,), (1, 2, 30), [6, 12]], ids=str)
def test_aspp_sums_branches_of_the_rates_asked_for(rates):
    model = give_random_weights(vgg16(atrous_rates=rates, upsample_logits=False))
    x = images((65, 97)).astype("float32") - 120
    pool5 = parts(model, "pool5", "score")(x, training=False)[0]
    pool5, blobs = np.transpose(pool5, (0, 3, 1, 2)).astype("float64"), Blobs(model)
    expected = 0
    for index, rate in enumerate(rates, start=1):
        fc6 = relu(blobs.convolution(pool5, f"fc6_{index}", pad=rate, hole=rate))
        expected = expected + blobs.convolution(relu(blobs.convolution(fc6, f"fc7_{index}")), f"fc8_voc12_{index}")
    logits = model(x, training=False)
    assert logits.dtype == "float32"
    assert_varies(logits)
    assert_close(np.transpose(logits, (0, 3, 1, 2)), expected, 1e-5)
    assert len([layer for layer in model.layers if layer.name.startswith("fc6_")]) == len(rates)


@pytest.mark.parametrize("build", [vgg16, resnet101])
@pytest.mark.parametrize("rates", [(), (0, 6), (-6,), (6, 1.5), 6, "6", None, (True,), ("6",)], ids=str)
def test_rates_without_meaning_are_one_line(build, rates):
    with pytest.raises(
        KerassegError, match=r"^atrous_rates=.*expected one or more whole numbers from 1.*atrous_rates=\(6, 12, 18, 24\)$"
    ):
        build(atrous_rates=rates)


@pytest.mark.parametrize("experiment", ["EXP", "pascal", "voc12", "voc_2012", "${EXP}"])
def test_the_scores_names_are_those_of_the_experiment(experiment):
    source = random_model("deeplab_v2_vgg16")
    blobs = {name.replace("voc12", experiment): values for name, values in to_caffe(source).items()}
    assert f"fc8_{experiment}_4" in blobs
    target = vgg16()
    assert load_caffe(target, blobs) == []
    for received, expected in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("experiment", ["EXP", "voc12_aug"])
def test_the_files_names_of_three_scales_fill_one_network(source, experiment):
    blobs = {}
    for layer in (layer for layer in source.layers if layer.weights):
        values, name = layer.get_weights(), layer.name
        for scale in ("", "_res05", "_res075"):
            if name.startswith("bn"):
                gamma, beta, mean, variance = values
                blobs[f"{name}{scale}"] = [mean * 999.0, variance * 999.0, np.float32([999.0])]
                blobs[f"scale{name.removeprefix('bn')}{scale}"] = [gamma, beta]
            else:
                blobs[f"{name.replace('voc12', experiment)}{scale}"] = [values[0].transpose(3, 2, 0, 1), *values[1:]]
    assert {"scale_conv1_res05", "scale4b22_branch2c", f"fc1_{experiment}_c3_res075", "bn_conv1"} <= set(blobs)
    target = resnet101(multi_scale=True)
    assert load_caffe(target, blobs) == []
    for received, expected in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5)
    kernel, bias = blobs[f"fc1_{experiment}_c0"]
    blobs[f"fc1_{experiment}_c0_res05"] = [kernel + 1, bias]
    with pytest.raises(KerassegError, match=f"fc1_{experiment}_c0_res05 is a second source for layer fc1_voc12_c0"):
        load_caffe(target, blobs)


# The units of ResNet-101 by the names of the file: res2 to res5 with their rates.
UNITS = {
    2: (1, ["a", "b", "c"]),
    3: (1, ["a", "b1", "b2", "b3"]),
    4: (2, ["a", *(f"b{i}" for i in range(1, 23))]),
    5: (4, ["a", "b", "c"]),
}


def unit(blobs, x, name, stride, hole, projects):
    """One bottleneck: the stride in both convolutions of 1×1 that see its input."""

    def normalized(x, branch, **geometry):
        return blobs.batch_norm(blobs.convolution(x, f"res{name}_{branch}", **geometry), f"bn{name}_{branch}")

    shortcut = normalized(x, "branch1", stride=stride) if projects else x
    x = relu(normalized(x, "branch2a", stride=stride))
    x = relu(normalized(x, "branch2b", pad=hole, hole=hole))
    return relu(shortcut + normalized(x, "branch2c"))


def scores(blobs, x):
    """One scale of the file, from the image to fc1_voc12."""
    x = relu(blobs.batch_norm(blobs.convolution(x, "conv1", stride=2, pad=3), "bn_conv1"))
    x = pooling(x, 3, 2, 1)
    for stage, (hole, letters) in UNITS.items():
        for letter in letters:
            x = unit(blobs, x, f"{stage}{letter}", 2 if (stage, letter) == (3, "a") else 1, hole, letter == "a")
    return sum(blobs.convolution(x, f"fc1_voc12_c{i}", pad=rate, hole=rate) for i, rate in enumerate((6, 12, 18, 24)))


def by_the_file(blobs, x):
    """fc1_voc12 of the three scales, each as the file computes it before anything is put together."""
    return {"1": scores(blobs, x), "075": scores(blobs, interp(x, 3, 4)), "05": scores(blobs, interp(x, 1, 2))}


@pytest.fixture(scope="module")
def source():
    """A network at one scale whose numbers stay in range over a hundred layers."""
    model = give_random_weights(resnet101(upsample_logits=False))
    for layer in model.layers:
        if layer.name.startswith("bn") and layer.name.endswith("branch2c"):
            layer.gamma.assign(layer.gamma * 0.2)
    return model


@pytest.fixture(scope="module")
def x():
    return images((65, 97)).astype("float32") - 120


@pytest.fixture(scope="module")
def expected(source, x):
    return by_the_file(Blobs(source), x.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def like(source):
    """The same weights in other forms of the network, which tests leave as they are."""

    @cache
    def build(**arguments):
        model = resnet101(**arguments)
        model.set_weights(source.get_weights())
        return model

    return build


FOUR = {"multi_scale": True, "auxiliary_outputs": True}


def channels_first(logits):
    assert logits.dtype == "float32"
    return np.transpose(logits, (0, 3, 1, 2))


def test_one_scale_is_the_files(source, like, x, expected):
    logits = source(x, training=False)
    assert_varies(logits)
    assert_close(channels_first(logits), expected["1"], 1e-5)
    assert_close(channels_first(like()(x, training=False)), interp(expected["1"], 8), 1e-5)


def test_three_scales_are_the_files(like, x, expected):
    # 65×97: 9×13 cells; 49×73: 7×10; 33×49: 5×7.
    assert [expected[key].shape[2:] for key in ("1", "075", "05")] == [(9, 13), (7, 10), (5, 7)]
    larger = {"1": expected["1"], "075": interp(expected["075"], 4, 3), "05": interp(expected["05"], 2)}
    fusion = np.maximum.reduce(list(larger.values()))
    # Each scale wins somewhere.
    assert all((fusion == value).mean() > 0.05 for value in larger.values())
    training = {"fusion": fusion, "scale_1": larger["1"], "scale_075": larger["075"], "scale_05": expected["05"]}
    test = {"fusion": fusion, **{f"scale_{key}": value for key, value in larger.items()}}
    for upsample_logits, wanted in ((False, training), (True, {key: interp(value, 8) for key, value in test.items()})):
        logits = like(**FOUR, upsample_logits=upsample_logits)(x, training=False)
        assert tuple(logits) == SCALES
        for key in SCALES:
            assert_varies(logits[key])
            assert_close(channels_first(logits[key]), wanted[key], 1e-5)
    assert_close(channels_first(like(multi_scale=True)(x, training=False)), interp(fusion, 8), 1e-5)
    coarse = like(multi_scale=True, upsample_logits=False)
    fused, logits = parts(coarse, "fc_fusion", "score")(x, training=False)
    assert_close(channels_first(fused), fusion, 1e-5)
    np.testing.assert_array_equal(logits, fused)


def test_three_scales_share_the_weights_of_one(source, like, tmp_path):
    model = like(**FOUR, upsample_logits=True)
    assert [w.path for w in model.weights] == [w.path for w in source.weights]
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    x = images((33, 33)).astype("float32")
    expected = model(x, training=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    received = loaded(x, training=False)
    assert len(loaded.weights) == len(source.weights)
    for key in SCALES:
        np.testing.assert_array_equal(received[key], expected[key])


def test_every_scale_has_a_gradient_on_the_shared_weights(like):
    model = like(**FOUR, upsample_logits=False)
    kernels = [model.get_layer(name).kernel.value for name in ("conv1", "res4b11_branch2b", "fc1_voc12_c2")]
    x = images((33, 33)).astype("float32")
    with tf.GradientTape(persistent=True) as tape:
        losses = {key: tf.reduce_mean(value**2) for key, value in model(x, training=False).items()}
    gradients = [[np.array(g) for g in tape.gradient(losses[key], kernels)] for key in SCALES[1:]]
    for a, b, c in zip(*gradients, strict=True):
        assert np.any(a) and np.any(b) and np.any(c)
        assert not np.allclose(a, b, rtol=0.01) and not np.allclose(b, c, rtol=0.01)


def test_maps_have_the_sizes_of_the_file(like):
    model, aspp = like(**FOUR, upsample_logits=False), vgg16(upsample_logits=False)
    smaller = parts(model, "data_res05", "data_res075")
    for n, cells, half, scaled in ((321, 41, 21, (161, 241)), (513, 65, 33, (257, 385))):
        shapes = model.compute_output_shape((1, n, n, 3))
        assert {key: shape[1] for key, shape in shapes.items()} == dict(zip(SCALES, (cells, cells, cells, half), strict=True))
        assert tuple(shape[1] for shape in smaller.compute_output_shape((1, n, n, 3))) == scaled
        assert aspp.compute_output_shape((1, n, n, 3)) == (1, cells, cells, CLASSES)


@pytest.mark.parametrize("arch", ["deeplab_v2_vgg16", "deeplab_v2_resnet101"])
def test_every_size_gets_logits_of_its_own(arch, like):
    model, name = (vgg16(), "fc8_interp") if arch == "deeplab_v2_vgg16" else (like(), "fc1_interp")
    zoomed = keras.Model(model.input, model.get_layer(name).output)
    # Height and width at once.
    for n in (*range(1, 19, 2), *range(64, 74, 2), 513):
        _, *shape, _ = zoomed.compute_output_shape((1, n, n + 1, 3))
        assert all(side <= received < side + 8 for side, received in zip((n, n + 1), shape, strict=True))


def test_every_size_gets_every_output(like):
    for upsample_logits in (True, False):
        model = like(**FOUR, upsample_logits=upsample_logits)
        traced = tf.function(lambda x, model=model: model(x, training=False), [tf.TensorSpec((None, None, None, 3))])
        for size in ((1, 1), (2, 3), (33, 34), (66, 70)):
            logits = traced(images(size).astype("float32"))
            if upsample_logits:
                assert {key: value.shape for key, value in logits.items()} == dict.fromkeys(SCALES, (2, *size, CLASSES))
            assert all(np.isfinite(value).all() for value in logits.values())


def test_padding_reaches_the_grid_only_where_a_cell_would_be_missing():
    layer = PadToGrid(8, slack=2)
    sizes = {1: 1, 2: 9, 6: 9, 7: 7, 8: 8, 9: 9, 10: 17, 64: 64, 65: 65, 66: 73, 70: 73, 71: 71, 321: 321, 514: 521}
    for n, expected in sizes.items():
        assert layer.compute_output_shape((2, n, None, 3)) == (2, expected, None, 3)
    x = np.ones((1, 10, 8, 2), "float32")
    traced = tf.function(layer.call, [tf.TensorSpec((None, None, None, 2))])
    for y in (layer(x), traced(x)):
        assert y.shape == (1, 17, 8, 2)
        np.testing.assert_array_equal(y[:, :10], x)
        assert not np.any(y[:, 10:])
    clone = PadToGrid.from_config(layer.get_config())
    assert (clone.stride, clone.slack) == (8, 2)


def test_an_input_of_known_size_is_scaled_too():
    """Files for devices have one size."""
    arguments = {"width_multiplier": 1 / 32, "multi_scale": True}
    fixed = MODELS["deeplab_v2_resnet101"](CLASSES, input_shape=(33, 41, 3), **arguments)
    free = MODELS["deeplab_v2_resnet101"](CLASSES, **arguments)
    give_random_weights(free)
    fixed.set_weights(free.get_weights())
    assert fixed.output_shape == (None, 33, 41, CLASSES)
    assert_close(fixed(images((33, 41)), training=False), free(images((33, 41)), training=False), 1e-6)


def test_auxiliary_outputs_need_scales():
    with pytest.raises(KerassegError, match="auxiliary_outputs=True .* pass multi_scale=True") as error:
        resnet101(auxiliary_outputs=True)
    assert "\n" not in str(error.value)


def test_score_layers_start_as_the_files_fill_them():
    keras.utils.set_random_seed(0)
    for model, names in ((vgg16(), [f"fc8_voc12_{i}" for i in range(1, 5)]), (resnet101(), [f"fc1_voc12_c{i}" for i in range(4)])):
        for name in names:
            kernel, bias = model.get_layer(name).get_weights()
            # 320 numbers at least: their deviation is known to 4 %.
            np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.15)
            assert not bias.any()


@pytest.mark.parametrize("build", [vgg16, resnet101])
def test_training_logits_are_float32_under_mixed_precision(build):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(upsample_logits=False)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("fc8_voc12_1" if build is vgg16 else "fc1_voc12_c0").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
    assert model(images((33, 33)), training=False).dtype == "float32"


def test_dropout_follows_every_hidden_layer_of_the_branches():
    rates = {layer.name: layer.rate for layer in vgg16(dropout_rate=0.3).layers if "drop" in layer.name}
    assert rates == {f"drop{n}_{i}": 0.3 for n in (6, 7) for i in (1, 2, 3, 4)}


def test_kernels_and_rates_are_those_of_the_files(source):
    # On maps as small as those above, rates of 18 and 24 do the same.
    aspp = vgg16()

    def described(model, name):
        layer = model.get_layer(name)
        return layer.kernel_size[0], layer.dilation_rate[0], layer.filters

    assert [described(aspp, f"fc6_{i}") for i in (1, 2, 3, 4)] == [(3, rate, 64) for rate in (6, 12, 18, 24)]
    assert [described(source, f"fc1_voc12_c{i}") for i in (0, 1, 2, 3)] == [(3, rate, CLASSES) for rate in (6, 12, 18, 24)]
    assert {described(aspp, f"{name}_{i}") for name in ("fc7", "fc8_voc12") for i in (1, 4)} == {(1, 1, 64), (1, 1, CLASSES)}
