"""Fully Convolutional Networks against the authors' outputs, tables and sentences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    QUICK,
    assert_close,
    assert_varies,
    give_random_weights,
    images,
    kernels_at_zero,
    parts,
    random_model,
    to_caffe,
    transposed_convolution,
)

from kerasseg import KerassegError
from kerasseg.backbones.alexnet import caffenet
from kerasseg.backbones.vgg import load_vgg16_classifier, vgg16
from kerasseg.interop import load_caffe, transplant
from kerasseg.layers import CeilMaxPooling2D, ChannelScale, Conv2D, CropLike, Preprocessing, coordinate_map
from kerasseg.models import MODELS

CLASSES = 5
ON_VGG = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")
ORACLES = {
    "voc-fcn32s": ("fcn32s", 4),
    "voc-fcn8s": ("fcn8s", 9),
    "voc-fcn8s-atonce": ("fcn8s_atonce", 5),
    "voc-fcn-alexnet": ("fcn_alexnet", 11),
}


def weights_by_name(source, target, rename=lambda name: name):
    """Copies every layer's weights; none may be left over."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(rename(layer.name)).get_weights())


@pytest.mark.parity
@pytest.mark.parametrize("file", ORACLES)
def test_every_blob_is_the_authors(file, oracle_dir):
    arch, count = ORACLES[file]
    oracle = np.load(oracle_dir / "caffe" / f"{file}.npz")
    blobs = {}
    for key in oracle.files:
        if key.startswith("w_"):
            blobs.setdefault(key[2:].rsplit("_", 1)[0], []).append(oracle[key])
    model = MODELS[arch](21, preprocessing=None, **QUICK)
    assert load_caffe(model, blobs) == []
    names = [key[4:] for key in oracle.files if key.startswith("out_")]
    assert len(names) == count
    outputs = parts(model, *names)(oracle["in_data"].transpose(0, 2, 3, 1), training=False)
    for name, output in zip(names, outputs, strict=True):
        output, expected = np.transpose(output, (0, 3, 1, 2)), oracle[f"out_{name}"]
        # Shown by `pytest -rP`.
        print(f"{file} {name}: {np.abs(output - expected).max() / np.abs(expected).max():.1e}")
        assert_close(output, expected)
    assert model.output is model.get_layer("score").output


@pytest.mark.parametrize(
    ("arch", "offsets"),
    [
        ("fcn32s", {"score": 19}),
        ("fcn16s", {"score_pool4c": 5, "score": 27}),
        ("fcn8s", {"score_pool4c": 5, "score_pool3c": 9, "score": 31}),
        ("fcn8s_atonce", {"score_pool4c": 5, "score_pool3c": 9, "score": 31}),
        ("fcn_alexnet", {"score": 18}),
        # Cell i of pool k lies at s·i + (s − 1)/2 − 99, its upsampling adds (2s − 1)/2: the image begins at 99 + s/2.
        ("fcn_pool5", {"score": 115}),
        ("fcn_pool4", {"score": 107}),
        ("fcn_pool3", {"score": 103}),
    ],
)
def test_crop_offsets_are_the_authors(arch, offsets):
    model = MODELS[arch](CLASSES, **QUICK)
    assert {layer.name: layer.offset for layer in model.layers if isinstance(layer, CropLike)} == offsets


# The authors' sizes: conv1_1, pool1 … pool5, fc6, up2, up4, up32 / up16 / up8.
VGG_SIZES = {
    500: (698, 349, 175, 88, 44, 22, 16, 34, 70, 544, 560, 568),
    256: (454, 227, 114, 57, 29, 15, 9, 20, 42, 320, 336, 344),
    224: (422, 211, 106, 53, 27, 14, 8, 18, 38, 288, 304, 312),
}
TRUNK = ("conv1_1", "pool1", "pool2", "pool3", "pool4", "pool5", "fc6")


def sizes(model, names, size):
    shapes = parts(model, *names).compute_output_shape((1, size, size, 3))
    assert all(shape[1] == shape[2] for shape in shapes)
    return tuple(shape[1] for shape in shapes)


def test_maps_have_the_sizes_of_the_table():
    models = [MODELS[arch](CLASSES, **QUICK) for arch in ("fcn8s", "fcn32s", "fcn16s")]
    for size, expected in VGG_SIZES.items():
        received = sizes(models[0], (*TRUNK, "upscore2", "upscore_pool4"), size)
        received += sizes(models[1], ("upscore", "score"), size)[:1] + sizes(models[2], ("upscore16", "score"), size)[:1]
        assert received + sizes(models[0], ("upscore8", "score"), size)[:1] == expected
        assert sizes(models[0], ("fuse_pool4", "fuse_pool3"), size) == expected[7:9]
        assert all(model.compute_output_shape((1, size, size, 3)) == (1, size, size, CLASSES) for model in models)
    alexnet = MODELS["fcn_alexnet"](CLASSES, **QUICK)
    assert sizes(alexnet, ("conv1", "pool1", "pool2", "pool5", "fc6", "upscore"), 500) == (173, 86, 43, 21, 16, 543)


def test_unpadded_alexnet_gives_one_score_for_227_and_ten_by_ten_for_500():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, caffenet(image, first_padding=0, **QUICK)["fc7"])
    for size, cells in ((227, 1), (500, 10)):
        assert model.compute_output_shape((1, size, size, 3)) == (1, cells, cells, 256)
        assert model(np.zeros((1, size, size, 3), "float32")).shape == (1, cells, cells, 256)


def check_receptive_field(arch, score, field):
    model = random_model(arch, 1, preprocessing=None)
    for weight in model.weights:
        # Every path counts, and no two cancel.
        weight.assign(abs(weight) if weight.name == "kernel" else 0 * weight)
    scores = keras.Model(model.input, model.get_layer(score).output)
    scale, shift = coordinate_map(scores.output)
    cell = int((320 - shift) / scale)
    touched = np.zeros((640, 640), bool)
    for seed in range(4):
        x = tf.constant(np.random.default_rng(seed).uniform(0, 1, (1, 640, 640, 3)).astype("float32"))
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = scores(x, training=False)[0, cell, cell, 0]
        touched |= np.any(tape.gradient(value, x)[0] != 0, axis=-1)
    for axis in (0, 1):
        reached = np.flatnonzero(touched.any(axis=axis))
        assert reached[0] > 0 and reached[-1] < 639, "the field must lie inside the image"
        assert reached[-1] - reached[0] + 1 == field
        # And its centre is where the crop offsets are derived from.
        assert (reached[0] + reached[-1]) / 2 == scale * cell + shift


@pytest.mark.parametrize(("arch", "field"), [("fcn32s", 404), ("fcn_alexnet", 355)])
def test_receptive_fields_are_those_of_table_1(arch, field):
    check_receptive_field(arch, "score_fr", field)


# Each 3×3 convolution adds 2, each pool 1 times the stride before it: 1 + 2·2 + 1 = 6 behind pool1, 6 + 2·2·2 + 2 = 16 behind
# pool2, 16 + 3·2·4 + 4 = 44, 44 + 3·2·8 + 8 = 100, 100 + 3·2·16 + 16 = 212; and fc6 would make it 212 + 6·32 = 404.
@pytest.mark.parametrize(("pool", "field", "stride"), [("pool3", 44, 8), ("pool4", 100, 16), ("pool5", 212, 32)])
def test_truncated_networks_see_what_the_layers_before_the_pool_see(pool, field, stride):
    check_receptive_field(f"fcn_{pool}", f"score_{pool}", field)
    model = MODELS[f"fcn_{pool}"](CLASSES, **QUICK)
    assert coordinate_map(model.get_layer(f"score_{pool}").output) == (stride, (stride - 1) / 2 - 99)
    assert coordinate_map(model.output) == (1, 0)


@pytest.mark.parametrize(
    ("pool", "kernel_size", "stride", "new"), [("pool3", 16, 8, []), ("pool4", 32, 16, []), ("pool5", 64, 32, ["score_pool5"])]
)
def test_truncated_networks_take_the_weights_of_fcn8s_by_name(pool, kernel_size, stride, new):
    source, target = random_model("fcn8s"), MODELS[f"fcn_{pool}"](CLASSES, **QUICK)
    assert transplant(source, target) == new
    assert not {"fc6", "fc7", f"conv{int(pool[-1]) + 1}_1"} & {layer.name for layer in target.layers}
    x = images()
    level = parts(source, pool, "score")(x, training=False)[0].numpy()
    for layer in map(target.get_layer, new):
        give_random_weights(layer)
    kernel, bias = target.get_layer(f"score_{pool}").get_weights()
    logits = target(x, training=False)
    assert_varies(logits)
    assert_close(logits, final_scores(level @ kernel[0, 0] + bias, kernel_size, stride, 99 + stride // 2, logits), 1e-5)


@pytest.fixture(scope="module")
def classifier():
    """Keras' VGG16 with random weights, class scores before the softmax."""
    with kernels_at_zero():
        return give_random_weights(keras.applications.VGG16(weights=None, classifier_activation=None))


def test_a_classifier_and_its_convolutional_form_give_the_same_scores(classifier):
    x = np.random.default_rng(0).normal(0, 50, (1, 224, 224, 3)).astype("float32")
    image = keras.Input((None, None, 3))
    with kernels_at_zero():
        model = keras.Model(image, Conv2D(1000, 1, name="score_fr")(vgg16(image, first_padding=1)["fc7"]))
    load_vgg16_classifier(model, classifier)
    kernel, bias = classifier.get_layer("predictions").get_weights()
    model.get_layer("score_fr").set_weights([kernel[None, None], bias])
    expected = classifier(x, training=False)
    assert np.std(expected) > 1
    assert_close(model(x, training=False)[:, 0, 0], expected)
    # §3.1: on a larger image, a map of the same scores.
    wider = model(np.concatenate([x, x[:, :, :32]], axis=2), training=False)
    assert wider.shape == (1, 1, 2, 1000)


def test_early_fusion_starts_depth_at_the_mean_of_the_colours(classifier):
    image = keras.Input((None, None, 4))
    with kernels_at_zero():
        model = keras.Model(image, vgg16(image, first_padding=1, first_name="conv1_1_bgrd")["fc7"])
    load_vgg16_classifier(model, classifier)
    kernel, (expected, bias) = model.get_layer("conv1_1_bgrd").kernel.numpy(), classifier.get_layer("block1_conv1").get_weights()
    np.testing.assert_array_equal(kernel[:, :, :3], expected)
    np.testing.assert_allclose(
        kernel[:, :, 3], (expected[:, :, 0] + expected[:, :, 1] + expected[:, :, 2]) / 3, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(model.get_layer("conv1_1_bgrd").bias, bias)
    np.testing.assert_array_equal(model.get_layer("conv5_3").kernel, classifier.get_layer("block5_conv3").kernel)


def test_a_truncated_network_starts_from_the_classifier_too(classifier, monkeypatch):
    monkeypatch.setattr(keras.applications, "VGG16", lambda weights: classifier)
    with kernels_at_zero():
        model = MODELS["fcn_pool4"](weights="imagenet")
    for ours, theirs in (("conv1_1", "block1_conv1"), ("conv4_3", "block4_conv3")):
        for received, expected in zip(model.get_layer(ours).get_weights(), classifier.get_layer(theirs).get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)
    with pytest.raises(KerassegError, match="are for width_multiplier=1; fcn_pool4 has 256 channels in fc6 instead of 4096"):
        MODELS["fcn_pool4"](weights="imagenet", **QUICK)


def test_imagenet_weights_that_cannot_be_had_are_one_line(monkeypatch):
    def unreachable(**arguments):
        raise Exception("URL fetch failure on vgg16.h5: None -- no route\nsecond line")

    monkeypatch.setattr(keras.applications, "VGG16", unreachable)
    for arch, arguments, message in (
        ("fcn32s", {}, r"could not be downloaded \(URL fetch failure on vgg16.h5: None -- no route\); pass weights=None"),
        ("fcn8s", QUICK, "are for width_multiplier=1; fcn8s has 256 channels in fc6 instead of 4096"),
        ("fcn_alexnet", QUICK, "Keras publishes none for fcn_alexnet"),
    ):
        with pytest.raises(KerassegError, match=f"weights='imagenet'.*{message}") as error, kernels_at_zero():
            MODELS[arch](weights="imagenet", **arguments)
        assert "\n" not in str(error.value)


def test_shift_and_stitch_equals_dilation():
    """§3.2: the pooled net on every shift of the image, interlaced, is the net without stride and with a rarefied filter."""

    def net(stride):
        first, pool = Conv2D(4, 3, activation="relu"), CeilMaxPooling2D(2, stride)
        return keras.Sequential([keras.Input((None, None, 3)), first, pool, Conv2D(2, 3, dilation_rate=2 // stride)])

    coarse, fine = give_random_weights(net(2)), net(1)
    fine.set_weights(coarse.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 18, 22, 3)).astype("float32")
    expected = fine(x).numpy()
    stitched = np.full_like(expected, np.nan)
    for row, column in np.ndindex(2, 2):
        part = coarse(x[:, row:, column:]).numpy()
        rows, columns = stitched[:, row::2, column::2].shape[1:3]
        stitched[:, row::2, column::2] = part[:, :rows, :columns]
    assert_varies(expected)
    assert_close(stitched, expected, 1e-5)


def test_at_once_scales_the_skips_as_the_authors_do():
    model = MODELS["fcn8s_atonce"](CLASSES, **QUICK)
    scales = {layer.name: layer.scale for layer in model.layers if isinstance(layer, ChannelScale)}
    assert {name: scale.shape for name, scale in scales.items()} == {"scale_pool4": (32,), "scale_pool3": (16,)}
    np.testing.assert_allclose(scales["scale_pool4"], 0.01)
    np.testing.assert_allclose(scales["scale_pool3"], 0.0001)
    assert not any(scale.trainable for scale in scales.values())
    give_random_weights(model)
    names = ("pool4", "pool3", "score_pool4", "score_pool3")
    outputs = dict(zip(names, parts(model, *names)(images(), training=False), strict=True))
    for pool in ("pool4", "pool3"):
        kernel, bias = model.get_layer(f"score_{pool}").get_weights()
        assert_close(outputs[f"score_{pool}"], (outputs[pool].numpy() * scales[f"scale_{pool}"].numpy()) @ kernel[0, 0] + bias)


HEADS = {"semantic": 33, "geometric": 3}


def test_a_truncated_network_may_have_two_heads():
    x, model, alone = images(batch=1), random_model("fcn_pool4", HEADS), MODELS["fcn_pool4"](HEADS["geometric"], **QUICK)
    weights_by_name(model, alone, lambda name: f"{name}_geometric" if name == "score_pool4" else name)
    logits = model(x, training=False)
    assert set(logits) == set(HEADS) and logits["semantic"].shape == (1, 64, 96, 33)
    assert_close(logits["geometric"], alone(x, training=False), 1e-5)


@pytest.mark.parametrize("arch", ["fcn32s", "fcn16s", "fcn8s"])
def test_two_heads_share_the_trunk_and_take_the_authors_names(arch):
    source = random_model(arch, HEADS)
    x = images(batch=1)
    expected = source(x, training=False)
    assert {key: value.shape for key, value in expected.items()} == {key: (1, 64, 96, count) for key, count in HEADS.items()}
    short = {key: key[:3] for key in HEADS}
    blobs = to_caffe(source)
    for key in HEADS:
        head = [name for name in blobs if name.endswith(f"_{key}")]
        assert {"fcn32s": 2, "fcn16s": 4, "fcn8s": 6}[arch] == len(head)
        blobs |= {name.replace(key, short[key]): blobs.pop(name) for name in head}
        # Each head is the network of its own.
        alone = MODELS[arch](HEADS[key], **QUICK)
        names = {layer.name for layer in source.layers}
        weights_by_name(source, alone, lambda name, key=key, names=names: name if name in names else f"{name}_{key}")
        assert_close(expected[key], alone(x, training=False), 1e-5)
    assert "score_fr_sem" in blobs and "score_fr_geo" in blobs
    target = MODELS[arch](HEADS, **QUICK)
    assert load_caffe(target, blobs) == []
    for key, logits in target(x, training=False).items():
        assert_varies(logits)
        np.testing.assert_array_equal(logits, expected[key])


def test_late_fusion_averages_the_scores_of_two_networks():
    streams = ("color", "hha")
    model = random_model("fcn32s", late_fusion=streams, preprocessing=None)
    x = {name: images(seed=seed).astype("float32") for seed, name in enumerate(streams)}
    scores = []
    for name in streams:
        alone = MODELS["fcn32s"](CLASSES, preprocessing=None, **QUICK)
        weights_by_name(model, alone, lambda layer, name=name: layer + name)
        scores.append(alone(x[name], training=False).numpy())
    assert np.abs(scores[0] - scores[1]).max() > 0.1 * np.abs(scores[0]).max()
    assert_close(model(x, training=False), (scores[0] + scores[1]) / 2)
    by_default = MODELS["fcn32s"](CLASSES, late_fusion=streams, **QUICK)
    means = {layer.name: layer.mean for layer in by_default.layers if isinstance(layer, Preprocessing)}
    assert means == {"preprocessing_color": (116.190, 97.203, 92.318), "preprocessing_hha": (132.431, 94.076, 118.477)}
    own = MODELS["fcn32s"](CLASSES, late_fusion=streams, preprocessing={"color": {"mean": (1, 2, 3)}, "hha": None}, **QUICK)
    assert [layer.mean for layer in own.layers if isinstance(layer, Preprocessing)] == [(1, 2, 3)]


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        ("fcn16s", {"late_fusion": ("color", "hha")}, "late_fusion.*received fcn16s"),
        ("fcn32s", {"late_fusion": ("color", "hha"), "num_classes": HEADS}, "late_fusion.*one head"),
        ("fcn32s", {"late_fusion": ("color", "hha"), "null_background": True}, "late_fusion.*null_background"),
        ("fcn8s", {"fusion": "mean"}, "fusion='mean': expected one of 'sum', 'max'"),
    ],
)
def test_arguments_without_meaning_are_refused(arch, arguments, message):
    with pytest.raises(KerassegError, match=message):
        MODELS[arch](**arguments, **QUICK)


def final_scores(x, kernel_size, stride, offset, like):
    height, width = like.shape[1:3]
    return transposed_convolution(x, kernel_size, stride)[:, offset : offset + height, offset : offset + width]


@pytest.mark.parametrize(("fusion", "combine"), [("sum", np.add), ("max", np.maximum)])
def test_fusion_is_elementwise(fusion, combine):
    model = random_model("fcn8s", fusion=fusion)
    x = images()
    names = ("upscore2", "score_pool4", "upscore_pool4", "score_pool3", "fuse_pool4", "score")
    up2, skip4, up4, skip3, fused4, logits = parts(model, *names)(x, training=False)
    fourth = combine(up2, skip4[:, 5 : 5 + up2.shape[1], 5 : 5 + up2.shape[2]])
    np.testing.assert_array_equal(fused4, fourth)
    third = combine(up4, skip3[:, 9 : 9 + up4.shape[1], 9 : 9 + up4.shape[2]])
    assert_close(logits, final_scores(third, 16, 8, 31, logits), 1e-5)


@pytest.mark.parametrize("arch", ON_VGG)
def test_null_background_scores_zero(arch, tmp_path):
    model = random_model(arch, null_background=True)
    x = images()
    logits = model(x, training=False).numpy()
    assert logits.shape == (2, 64, 96, CLASSES) and logits.dtype == "float32"
    assert not logits[..., 0].any()
    alone = MODELS[arch](CLASSES - 1, **QUICK)
    weights_by_name(model, alone)
    assert_varies(logits[..., 1:])
    np.testing.assert_array_equal(logits[..., 1:], alone(x, training=False))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x, training=False), logits)


def test_each_stage_starts_from_the_one_before():
    x = images()
    coarse, middle, fine = (MODELS[arch](CLASSES, **QUICK) for arch in ("fcn32s", "fcn16s", "fcn8s"))
    give_random_weights(coarse)
    assert sorted(transplant(coarse, middle)) == ["score_pool4", "upscore2"]
    # The new score is zero and the new upsampling bilinear: the coarse scores, twice upsampled.
    scores = parts(coarse, "score_fr", "fc7")(x, training=False)[0]
    logits = middle(x, training=False)
    assert_varies(logits)
    assert_close(logits, final_scores(transposed_convolution(scores, 4, 2), 32, 16, 27, logits), 1e-5)
    give_random_weights(middle, seed=1)
    assert sorted(transplant(middle, fine)) == ["score_pool3", "upscore_pool4"]
    fused, expected = parts(middle, "fuse_pool4", "score")(x, training=False)
    logits = fine(x, training=False)
    assert_close(logits, final_scores(transposed_convolution(fused, 4, 2), 16, 8, 31, logits), 1e-5)
    # Which is nearly, but not to the last digit, what the coarser network says.
    assert_close(logits, expected, 0.3)


def test_imagenet_weights_refuse_an_input_they_were_not_made_for():
    model = MODELS["fcn32s"](2, width_multiplier=1 / 16, preprocessing="torch")
    with pytest.raises(KerassegError, match="width_multiplier=1"):
        load_vgg16_classifier(model, model)
    for layer in model.layers:
        if layer.name == "fc6":
            layer.filters = 4096
    with pytest.raises(KerassegError, match="expect unscaled BGR minus the mean: pass preprocessing='caffe'"):
        load_vgg16_classifier(model, model)
