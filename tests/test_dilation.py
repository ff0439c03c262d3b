"""The Dilation networks against the authors' outputs and files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from caffe_layers import Blobs, pooling, relu
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
)
from test_dilated_export import REARRANGING, interpreter, operations  # noqa: F401

from kerasseg import KerassegError, load_model
from kerasseg.backbones import vgg
from kerasseg.export import Target, export_model
from kerasseg.interop import load_caffe
from kerasseg.layers import ReflectionPadding2D, coordinate_map
from kerasseg.models import MODELS
from kerasseg.models.dilation import native_network
from kerasseg.ops import bilinear_kernel

ARCHS = ("dilation_frontend", "dilation7", "dilation8", "dilation10")
CLASSES = 5
# (H, W) of images that carry their margin: 2 × 3 cells, not all of them whole.
WITH_MARGIN = (372 + 16, 372 + 19)


def native(arch, classes=CLASSES, **arguments):
    """As the authors' file has it: the input carries its margin, and is what conv1_1 expects."""
    form = {"margin": None, "preprocessing": None, "upsample_logits": arch == "dilation10"}
    return MODELS[arch](classes, **{**QUICK, **form, **arguments})


@pytest.mark.parity
def test_every_blob_of_dilation7_is_the_authors(oracle_dir):
    oracle = np.load(oracle_dir / "caffe" / "dilation7_kitti.npz")
    blobs = {}
    for key in oracle.files:
        if key.startswith("w_"):
            blobs.setdefault(key[2:].rsplit("_", 1)[0], []).append(oracle[key])
    model = native("dilation7", 11)
    assert load_caffe(model, blobs) == []
    x = oracle["in_data"].transpose(0, 2, 3, 1)
    names = [key[4:] for key in oracle.files if key.startswith("out_")]
    assert sorted(names) == ["ctx_conv4_1", "ctx_final", "final", "prob"]
    outputs = parts(model, "ctx_conv4_1", "ctx_final", "final")(x, training=False)
    outputs = [*outputs, tf.nn.softmax(model(x, training=False))]
    for name, output in zip(sorted(names), outputs, strict=True):
        output, expected = np.transpose(output, (0, 3, 1, 2)), oracle[f"out_{name}"]
        # Shown by `pytest -rP`.
        print(f"dilation7_kitti {name}: {np.abs(output - expected).max() / np.abs(expected).max():.1e}")
        assert_close(output, expected)


# The files' context layers, as (name, pad, dilation), 3×3 but for the last.
KITTI = [("conv1_1", 1, 1), ("conv1_2", 1, 1), ("conv2_1", 2, 2), ("conv3_1", 4, 4), ("conv4_1", 8, 8), ("fc1", 1, 1)]
CAMVID = [*KITTI[:-1], ("conv5_1", 16, 16), ("fc1", 1, 1)]
CITYSCAPES = [*CAMVID[:-1], ("conv6_1", 32, 32), ("conv7_1", 64, 64), ("fc1", 1, 1)]
VOC = [("conv1_1", 33, 1), ("conv1_2", 0, 1), ("conv2_1", 0, 2), ("conv3_1", 0, 4), ("conv4_1", 0, 8), ("conv5_1", 0, 16)]
VOC += [("fc1", 0, 1)]
FILES = {
    "dilation_frontend": ("dilation_frontend", {}, []),
    "kitti": ("dilation7", {}, KITTI),
    "camvid": ("dilation8", {}, CAMVID),
    "voc": ("dilation8", {"context": "large"}, VOC),
    "cityscapes": ("dilation10", {}, CITYSCAPES),
}


def front_end(blobs, x):
    """frontend_vgg16: every convolution without padding, three pools that round up."""
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            x = relu(blobs.convolution(x, f"conv{block}_{index}", hole=2 if block == 5 else 1))
        if block <= 3:
            x = pooling(x, 2, 2, 0)
    x = relu(blobs.convolution(x, "fc6", hole=4))
    return blobs.convolution(relu(blobs.convolution(x, "fc7")), "final")


def context(blobs, x, layers):
    for name, pad, hole in layers:
        x = relu(blobs.convolution(x, f"ctx_{name}", pad=pad, hole=hole))
    return blobs.convolution(x, "ctx_final")


def deconvolution(x):
    """ctx_upsample: kernel 16, stride 8, pad 4, one group a channel; each cell adds its tent to the output."""
    line = bilinear_kernel(16)[7] / bilinear_kernel(16)[7].max() * 15 / 16
    np.testing.assert_allclose(np.outer(line, line), bilinear_kernel(16), rtol=1e-6)
    batch, channels, height, width = x.shape
    wide = np.zeros((batch, channels, 8 * height + 8, 8 * width + 8))
    for i, j in np.ndindex(height, width):
        wide[:, :, 8 * i : 8 * i + 16, 8 * j : 8 * j + 16] += x[:, :, i, j, None, None] * np.outer(line, line)
    return wide[:, :, 4:-4, 4:-4]


@pytest.mark.parametrize("file", FILES)
def test_networks_compute_what_their_files_say(file):
    arch, arguments, layers = FILES[file]
    model = give_random_weights(native(arch, **arguments))
    blobs, x = Blobs(model), images(WITH_MARGIN, batch=1).astype("float64") - 100
    expected = front_end(blobs, x.transpose(0, 3, 1, 2))
    assert expected.shape == (1, CLASSES, 2, 3)
    if layers:
        expected = context(blobs, expected, layers)
    if arch == "dilation10":
        expected = deconvolution(expected)
    received = model(x.astype("float32"), training=False)
    assert_varies(received)
    received_nchw = np.transpose(received, (0, 3, 1, 2))
    print(f"{file}: {np.abs(received_nchw - expected).max() / np.abs(expected).max():.1e}")
    assert_close(received_nchw, expected, 1e-5)
    # Seven widths are the large layout, too.
    if file == "voc":
        widths = tuple(layer.filters for layer in model.layers if layer.name.startswith("ctx_") and hasattr(layer, "filters"))
        assert widths == (10, 10, 20, 40, 80, 160, 160, 5)
        twin = native(arch, context=widths[:-1])
        twin.set_weights(model.get_weights())
        np.testing.assert_array_equal(twin(x.astype("float32"), training=False), received)


def test_context_widths_of_the_published_voc_network():
    model = native("dilation8", 21, context="large", width_multiplier=1 / 16)
    layers = [layer for layer in model.layers if layer.name.startswith("ctx_") and layer.weights]
    assert [layer.filters for layer in layers] == [42, 42, 84, 168, 336, 672, 672, 21]
    # Only the front end is thinned out.
    assert (model.get_layer("fc6").filters, model.get_layer("conv1_1").filters) == (256, 4)


def test_published_names_load():
    """The VOC file calls its layers ct_… and the front end's score fc-final; Cityscapes' upsampling has one kernel a channel."""
    model = give_random_weights(native("dilation8", context="large"))
    blobs = {"fc-final" if name == "final" else name.replace("ctx_", "ct_"): each for name, each in to_caffe(model).items()}
    assert {"ct_conv1_1", "ct_fc1", "ct_final", "fc-final", "conv5_3"} < set(blobs)
    twin = native("dilation8", context="large")
    assert load_caffe(twin, blobs) == []
    for ours, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model = give_random_weights(native("dilation10"))
    blobs = {**to_caffe(model), "ctx_upsample": [np.repeat(bilinear_kernel(16)[None, None], CLASSES, axis=0)]}
    assert blobs["ctx_upsample"][0].shape == (CLASSES, 1, 16, 16)
    twin = native("dilation10")
    assert load_caffe(twin, blobs) == []
    for ours, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(KerassegError, match=r"ctx_upsample: .*expected the bilinear one of size 16 for 5 channels"):
        load_caffe(twin, {**blobs, "ctx_upsample": [0.5 * blobs["ctx_upsample"][0]]})


@pytest.mark.parametrize("file", [name for name, (_, _, layers) in FILES.items() if layers])
def test_context_modules_reach_as_far_as_their_files_say(file):
    """On a map on which every tap of every rate meets scores, which no image of a size for tests has."""
    arch, arguments, layers = FILES[file]
    model = give_random_weights(MODELS[arch](2, from_features=True, **arguments))
    x = np.random.default_rng(0).random((1, 67, 69, 2))
    received = np.transpose(model(x.astype("float32"), training=False), (0, 3, 1, 2))
    assert_close(received, context(Blobs(model), x.transpose(0, 3, 1, 2), layers), 1e-5)


# Sizes of FACTS and of the authors' tiles, and KITTI's width, which is no whole number of cells.
@pytest.mark.parametrize(("pixels", "cells"), [(500, 16), (900, 66), (852, 60), (1396, 128), (1100, 91), (1640, 159), (373, 1)])
def test_sizes_are_the_files(pixels, cells):
    model = native("dilation_frontend", input_shape=(pixels, 388, 3))
    assert model.output_shape == (None, cells, 2, CLASSES)


@pytest.mark.parametrize("beyond", range(1, 18, 3))
def test_cells_are_counted_up(beyond):
    """Three pools that round up leave ⌈n / 8⌉ cells, also where the size is known only when the graph runs."""
    x = np.zeros((1, 372 + beyond, 372 + 9, 3), "float32")
    assert native("dilation_frontend")(x).shape == (1, -(-beyond // 8), 2, CLASSES)
    small = random_model("dilation_frontend", upsample_logits=False)
    assert small(images((beyond, 9)), training=False).shape == (2, -(-beyond // 8), 2, CLASSES)


def seeing_centres(classes=1):
    """A front end whose every kernel has its centre alone: cell i is the largest red value of the pixels that it covers."""
    model = native("dilation_frontend", classes)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.zeros(layer.kernel.shape, "float32")
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2, 0, 0] = 1
            layer.set_weights([kernel, np.zeros(layer.filters)])
    return model


def test_cells_cover_their_eight_pixels():
    """A bright pixel anywhere in 186 + 8i … 186 + 8i + 7 lights up cell i, and nothing else does."""
    model = seeing_centres()
    for row, column in ((0, 0), (7, 7), (8, 15), (15, 16), (3, 23), (12, 8)):
        x = np.zeros((1, 372 + 16, 372 + 24, 3), "float32")
        x[0, 186 + row, 186 + column, 0] = 1
        expected = np.zeros((2, 3))
        expected[row // 8, column // 8] = 1
        np.testing.assert_array_equal(model(x)[0, ..., 0], expected)
    final = model.get_layer("final").output
    assert coordinate_map(final) == (8, 186 + 3.5)


@pytest.mark.parametrize(
    ("arch", "size"), [*((arch, (13, 21)) for arch in ARCHS), ("dilation_frontend", (16, 24)), ("dilation8", (3, 200))]
)
def test_the_margin_is_numpys_reflection(arch, size):
    x = images(size, block=5)
    carried = np.pad(x, [(0, 0), (186, 186), (186, 186), (0, 0)], mode="reflect")
    for upsample in (True, False):
        model = random_model(arch, upsample_logits=upsample)
        without = MODELS[arch](CLASSES, margin=None, upsample_logits=upsample, **QUICK)
        without.set_weights(model.get_weights())
        expected = without(carried, training=False)
        assert expected.shape[1:3] == tuple(-(-n // 8) * (8 if upsample else 1) for n in size)
        height, width = size if upsample else expected.shape[1:3]
        assert_close(model(x, training=False), expected[:, :height, :width], 1e-6)


def test_logits_are_interpolated_between_the_middles_of_cells():
    model = random_model("dilation_frontend")
    cells, x = parts(model, "final"), images((32, 40))
    expected = deconvolution(np.transpose(cells(x, training=False), (0, 3, 1, 2)).astype("float64"))
    assert_close(np.transpose(model(x, training=False), (0, 3, 1, 2)), expected, 1e-5)
    # The border fades for all classes alike: no label changes by it.
    labels = np.argmax(expected, axis=1)
    for edge, cell in ((labels[:, 0, 4], 0), (labels[:, -1, 4], -1)):
        np.testing.assert_array_equal(edge, np.argmax(expected[:, :, 4 if cell == 0 else -5, 4], axis=1))


@pytest.mark.parametrize("arch", ARCHS)
def test_native_networks_are_the_authors_form(arch, tmp_path):
    model = random_model(arch)
    network, zoom = native_network(model)
    assert zoom == (1 if arch == "dilation10" else 8)
    x = images((13, 21), block=5)
    carried = np.pad(x, [(0, 0), (186, 186), (186, 186), (0, 0)], mode="reflect")
    received = network(carried, training=False)
    small = MODELS[arch](CLASSES, upsample_logits=zoom == 1, **QUICK)
    small.set_weights(model.get_weights())
    assert received.shape == (2, *((13, 21) if zoom == 1 else (2, 3)), CLASSES) and received.dtype == "float32"
    assert_close(received, small(x, training=False), 1e-6)
    assert network.get_layer("final") is model.get_layer("final")
    # What the model learns later it knows; and both can still be saved, and the model taken apart.
    last = next(layer for layer in reversed(model.layers) if layer.weights)
    last.set_weights([2 * value for value in last.get_weights()])
    assert_close(network(carried, training=False), 2 * received, 1e-6)
    for each, given in ((model, x), (network, carried)):
        each.save(tmp_path / "model.keras")
        np.testing.assert_array_equal(load_model(tmp_path / "model.keras")(given), each(given, training=False))
    assert parts(model, "final")(x).shape == (2, 2, 3, CLASSES)


def test_native_networks_take_tiles_of_any_size():
    model = random_model("dilation7", input_shape=(64, 64, 3))
    network, _ = native_network(model)
    assert network(np.zeros((1, 388, 400, 3), "float32")).shape == (1, 2, 4, CLASSES)
    for other in (native("dilation7"), MODELS["fcn32s"](CLASSES, **QUICK)):
        with pytest.raises(
            KerassegError, match=r"has no margin of its own: expected a Dilation network built with margin='reflect'"
        ):
            native_network(other)


def test_training_and_evaluation_forms_share_their_weights():
    for arch in ARCHS:
        described = [
            [(w.path, tuple(w.shape)) for w in MODELS[arch](CLASSES, **QUICK, margin=margin, upsample_logits=upsample).weights]
            for margin in ("reflect", None)
            for upsample in (True, False)
        ]
        assert all(each == described[0] for each in described)


def test_mistakes_are_one_line():
    for build, message in (
        (lambda: native("dilation8", margin="mirror"), r"margin='mirror': expected 'reflect', or None"),
        (lambda: native("dilation8", margin=0), r"margin=0: expected 'reflect', or None"),
        (lambda: native("dilation8", context="huge"), r"context='huge': expected 'basic', 'large' or seven widths"),
        (lambda: native("dilation8", context=(10,) * 6), r"context=\(10, 10, 10, 10, 10, 10\): expected .* seven widths"),
        (lambda: native("dilation8", context=None), r"context=None: expected 'basic', 'large' or seven widths"),
        (lambda: native("dilation8", noise=-1), r"noise=-1: expected a number that is not negative"),
        (lambda: MODELS["dilation8"]({"a": 3, "b": 4}), r"dilation8 received num_classes=.*: expected a whole number from 1"),
        (lambda: native("dilation8", from_features=True, weights="imagenet"), r"'imagenet' are the front end's"),
        (lambda: native("dilation_frontend", input_shape=(372, 400, 3)), r"received images of 372x400 pixels: expected .* 373"),
        (lambda: MODELS["dilation8"](5, weights="imagenet", **QUICK), r"weights='imagenet' are for width_multiplier=1"),
    ):
        with pytest.raises(KerassegError, match=message) as error:
            build()
        assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="372x400 pixels: expected height and width of at least 373"):
        native("dilation_frontend").predict(np.zeros((1, 372, 400, 3)), verbose=0)


def test_dropout_and_fillers_are_the_files():
    model = MODELS["dilation8"](CLASSES, width_multiplier=1 / 4)
    assert {layer.name: layer.rate for layer in model.layers if "drop" in layer.name} == {"drop6": 0.5, "drop7": 0.5}
    assert model.get_layer("drop6").input is model.get_layer("fc6").output
    quiet = MODELS["dilation8"](CLASSES, dropout_rate=0.25, **QUICK)
    assert quiet.get_layer("drop7").rate == 0.25
    # σ 0.001, from 5120 draws; biases 0.
    kernel, bias = model.get_layer("final").get_weights()
    np.testing.assert_allclose(kernel.std(), 0.001, rtol=0.05)
    assert not bias.any()


def test_weights_of_imagenet_are_the_classifiers(monkeypatch):
    with kernels_at_zero():
        classifier = keras.applications.VGG16(weights=None)
        monkeypatch.setattr(vgg, "download_vgg16", lambda: classifier)
        for name in ("block1_conv1", "block5_conv3", "fc1", "fc2"):
            layer = classifier.get_layer(name)
            layer.set_weights([np.random.default_rng(0).random(w.shape, "float32") for w in layer.weights])
        model = MODELS["dilation8"](CLASSES, weights="imagenet")
    # Keras flattens rows, columns, channels.
    kernel = classifier.get_layer("fc1").get_weights()[0]
    np.testing.assert_array_equal(model.get_layer("fc6").get_weights()[0][3, 5, 100], kernel[(3 * 7 + 5) * 512 + 100])
    np.testing.assert_array_equal(model.get_layer("fc7").get_weights()[0][0, 0], classifier.get_layer("fc2").get_weights()[0])
    for ours, theirs in (("conv1_1", "block1_conv1"), ("conv5_3", "block5_conv3")):
        for received, expected in zip(model.get_layer(ours).get_weights(), classifier.get_layer(theirs).get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("margin", [0, 1, 7, 186])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 8), (200, 9)])
def test_reflection_is_numpys(size, margin):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    expected = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode="reflect")
    layer = ReflectionPadding2D(margin)
    np.testing.assert_array_equal(layer(x), expected)
    for compiled in (False, True):
        traced = tf.function(layer, [tf.TensorSpec(x.shape if compiled else (None, None, None, 3))], jit_compile=compiled)
        np.testing.assert_array_equal(traced(x), expected)
    with pytest.raises(ValueError, match="margin=-1"):
        ReflectionPadding2D(-1)


def test_reflection_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    for size in ((1, 1), (3, 50), (40, 60)):
        x = images(size, batch=1, block=3)
        expected = cv2.copyMakeBorder(x[0], 186, 186, 186, 186, cv2.BORDER_REFLECT_101)
        np.testing.assert_array_equal(ReflectionPadding2D(186)(x.astype("float32"))[0], expected)


@pytest.mark.parametrize("arch", ARCHS[1:])
def test_exported_files_compute_what_keras_does(arch, interpreter, tmp_path):  # noqa: F811
    model = random_model(arch)
    target, photographs = Target(input_size=(33, 47)), list(images((33, 47), block=8))
    parity = export_model(model, tmp_path / "model.tflite", target, images=photographs, measure_latency=False).description.parity
    print(f"{arch}: {parity}")
    assert parity["relative_error"] < 1e-4 and parity["argmax_agreement"] > 0.999
    counted = operations(interpreter, (tmp_path / "model.tflite").read_bytes())
    # VGG16's 13, fc6, fc7 and final, and the module's.
    assert counted["CONV_2D"] == 16 + int(arch.removeprefix("dilation")) and not REARRANGING & set(counted), counted
