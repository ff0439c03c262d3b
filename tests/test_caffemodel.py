"""Caffe's weight files: read, compared with another reader, refused where they are damaged."""

import cv2
import h5py
import keras
import numpy as np
import pytest
from caffe_files import WRITERS, blob, caffemodel_bytes, fcn8s_layers, field, layer_v1, layer_v2, prototxt
from helpers import QUICK, assert_close, assert_varies, images, random_model, to_caffe
from PIL import Image

from kerasseg import KerassegError
from kerasseg.interop import load_caffe, read_caffemodel
from kerasseg.layers import BatchNormalization, Conv2D
from kerasseg.models import MODELS

CLASSES = 5


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


LAYERS = [
    ("conv1", "Convolution", [numbers(3, 2, 2, 2), numbers(3)]),
    ("inception_3a/1x1", "Convolution", [numbers(2, 3, 1, 1)]),
    ("fc", "InnerProduct", [numbers(5, 8), numbers(5)]),
]


def write(path, content):
    path.write_bytes(content)
    return path


def assert_same(received, layers):
    assert list(received) == [name for name, _, _ in layers]
    for name, _, arrays in layers:
        for one, other in zip(received[name], arrays, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one.reshape(other.shape), other)


# Another reader of the same files


def cv2_output(folder, layers, blobs, image, form):
    """What OpenCV computes from the file and the description, behind the last layer; the image is (1, H, W, C)."""
    kinds = {name: kind for name, kind, _, _ in layers}
    write(folder / "net.caffemodel", caffemodel_bytes([(n, kinds[n], arrays) for n, arrays in blobs.items()], form))
    (folder / "net.prototxt").write_text(prototxt((1, image.shape[3], *image.shape[1:3]), layers))
    network = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    # Fused layers may leave a blob as it was allocated.
    network.enableFusion(False)
    network.setInput(image.transpose(0, 3, 1, 2))
    return network.forward(layers[-1][0])


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_fcn8s_computes_what_opencv_computes_from_the_same_file(tmp_path, form):
    image = images((64, 96), 1)[..., ::-1].astype("float32") - 110
    source = random_model("fcn8s", CLASSES, preprocessing=None)
    expected = cv2_output(tmp_path, fcn8s_layers(CLASSES, 1 / 16), to_caffe(source), image, form).transpose(0, 2, 3, 1)
    model = MODELS["fcn8s"](CLASSES, preprocessing=None, **QUICK)
    assert load_caffe(model, tmp_path / "net.caffemodel") == []
    assert_varies(expected)
    assert_close(model.predict(image, verbose=0), expected, 1e-5)


def little_network():
    """Convolution, batch normalisation, and a fully connected layer as a convolution over the whole map."""
    image = keras.Input((8, 8, 3))
    x = Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(image)
    x = keras.layers.ReLU()(BatchNormalization(epsilon=1e-5, name="bn_conv1")(x))
    return keras.Model(image, Conv2D(5, 8, name="fc")(x), name="little")


LITTLE = [
    (
        "conv1",
        "Convolution",
        "data",
        {"convolution_param": {"num_output": 6, "kernel_size": 3, "pad": 1, "bias_term": "false"}},
    ),
    ("bn_conv1", "BatchNorm", "conv1", {"batch_norm_param": {"use_global_stats": "true"}}),
    ("scale_conv1", "Scale", "bn_conv1", {"scale_param": {"bias_term": "true"}}),
    ("relu1", "ReLU", "scale_conv1", {}),
    ("fc", "InnerProduct", "relu1", {"inner_product_param": {"num_output": 5}}),
]


def little_blobs():
    return {
        "conv1": [numbers(6, 3, 3, 3)],
        "bn_conv1": [numbers(6) * 700, numbers(6) ** 2 * 700 + 100, np.full(1, 700, "float32")],
        "scale_conv1": [numbers(6, seed=1), numbers(6, seed=2)],
        "fc": [numbers(5, 6 * 8 * 8), numbers(5, seed=3)],
    }


def test_batch_norm_and_inner_product_compute_what_opencv_computes(tmp_path):
    image = numbers(1, 8, 8, 3, seed=4)
    expected = cv2_output(tmp_path, LITTLE, little_blobs(), image, "v2")
    model = little_network()
    assert load_caffe(model, tmp_path / "net.caffemodel", aliases={r"scale(.+)": r"bn\1"}) == []
    assert_close(model(image)[:, 0, 0], expected, 1e-5)


def test_inner_product_of_an_old_file(tmp_path):
    """Its kernel has the shape (1, 1, out, in)."""
    image, layers = numbers(1, 8, 8, 6, seed=4), [(*LITTLE[-1][:2], "data", LITTLE[-1][3])]
    expected = cv2_output(tmp_path, layers, {"fc": little_blobs()["fc"]}, image, "v1")
    assert read_caffemodel(tmp_path / "net.caffemodel")["fc"][0].shape == (1, 1, 5, 384)
    x = keras.Input((8, 8, 6))
    model = keras.Model(x, Conv2D(5, 8, name="fc")(x))
    load_caffe(model, tmp_path / "net.caffemodel")
    assert_close(model(image)[:, 0, 0], expected, 1e-5)


# Forms of the file

FORMS = {
    "plain": {},
    "one by one": {"packed": False},
    "double": {"double": True},
    "double, one by one": {"double": True, "packed": False},
    "with gradients": {"diff": True},
    "old shapes": {"old": True},
    "new shapes": {"old": False},
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("options", FORMS)
def test_every_form_holds_the_same(tmp_path, form, options):
    path = write(tmp_path / "a.caffemodel", caffemodel_bytes(LAYERS, form, **FORMS[options]))
    received = read_caffemodel(str(path))
    assert_same(received, LAYERS)
    old = FORMS[options].get("old", form != "v2")
    assert received["conv1"][1].shape == ((1, 1, 1, 3) if old else (3,))


def test_layers_of_both_generations_and_fields_of_forks(tmp_path):
    fork = field(9, "an engine") + field(10, 3) + bytes([11 << 3 | 5, 1, 2, 3, 4]) + bytes([12 << 3 | 1, *range(8)])
    content = fork + layer_v1(*LAYERS[0]) + layer_v2(*LAYERS[1]) + layer_v2(*LAYERS[2])
    assert_same(read_caffemodel(write(tmp_path / "a.caffemodel", content)), LAYERS)


def test_layers_of_one_name_are_one_if_they_hold_the_same(tmp_path):
    """A layer that stands in both phases, train and test, and data layers, which have one name and no weights."""
    twice = [LAYERS[0], ("data", "Data", []), ("data", "Data", []), *LAYERS]
    assert_same(read_caffemodel(write(tmp_path / "a.caffemodel", caffemodel_bytes(twice))), LAYERS)
    other = (LAYERS[0][0], LAYERS[0][1], [LAYERS[0][2][0], LAYERS[0][2][1] + 1])
    path = write(tmp_path / "b.caffemodel", caffemodel_bytes([*LAYERS, other]))
    with pytest.raises(KerassegError, match="two layers are called conv1 and have different weights"):
        read_caffemodel(path)


def test_an_array_without_axes_is_a_number(tmp_path):
    path = write(tmp_path / "a.caffemodel", caffemodel_bytes([("s", "Scale", [np.float32(3)])]))
    assert read_caffemodel(path)["s"][0] == 3 and read_caffemodel(path)["s"][0].shape == ()


# What is no caffemodel


def with_blob(content):
    return field(100, field(1, "conv1") + field(7, content))


def shape(*axes):
    return field(7, b"".join(field(1, n) for n in axes))


def png(path):
    Image.new("RGB", (9, 9)).save(path, format="png")


def keras_file(path):
    tiny_network().save(path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


SIX = np.arange(6, dtype="<f4").tobytes()
HUGE = 2**62
WRONG = {
    "missing": (None, "no file at '{path}'"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (b"", "is empty"),
    "png": (png, "is a PNG image"),
    "keras": (keras_file, "is a zip archive"),
    "h5": (lambda path: h5py.File(path, "w").close(), "is an HDF5 file"),
    "prototxt": (prototxt((1, 3, 8, 8), LITTLE).encode(), 'is text (\'layer { name: "data"'),
    "web page": ("<!DOCTYPE html><title>404 – página no encontrada</title>".encode() * 20, "is text ('<!DOCTYPE html>"),
    "noise": (np.random.default_rng(0).bytes(4000), "is no caffemodel, or a damaged one"),
    "zeros": (bytes(4000), "is no caffemodel, or a damaged one: at byte 0"),
    "mean image": (field(1, 1) + field(2, 3) + field(5, SIX), "is no caffemodel, or a damaged one: at byte 0"),
    "no layer": (field(1, "net"), "holds 0 layers and no weights"),
    "no weights": (caffemodel_bytes([]), "holds 1 layers and no weights"),
    "cut behind": (caffemodel_bytes(LAYERS) + bytes([12 << 3 | 1, 1, 2, 3]), "it ends within the field at byte"),
    "group": (field(1, "net") + bytes([100 << 3 & 127 | 128 | 3, 6]), "at byte 5 stands what is no part of a network"),
    "endless number": (bytes([10]) + b"\xff" * 11, "a number does not end"),
    "no name": (field(100, field(7, blob(LAYERS[0][2][0]))), "the layer at byte 0 has no readable name"),
    "bad name": (field(100, field(1, b"\xff\xfe") + field(7, blob(LAYERS[0][2][0]))), "has no readable name"),
    "layer": (field(100, field(1, "conv1") + b"\x3a\x7f"), "the layer at byte 0 cannot be parsed"),
    "shape": (with_blob(shape(2, 4) + field(5, SIX)), "layer conv1 has an array of shape (2, 4) with 6 numbers"),
    "old shape": (with_blob(field(1, 2) + field(2, 4) + field(5, SIX)), "an array of shape (2, 4, 0, 0) with 6 numbers"),
    "no shape": (with_blob(field(5, SIX)), "an array of shape () with 6 numbers"),
    "no shape, one number": (with_blob(field(5, SIX[:4])), "an array of shape () with 1 numbers"),
    "negative": (with_blob(shape(2**64 - 2, 2**64 - 3) + field(5, SIX)), "an array of shape (-2, -3) with 6 numbers"),
    "huge": (with_blob(shape(HUGE, HUGE, 6) + field(5, SIX)), f"an array of shape ({HUGE}, {HUGE}, 6) with 6 numbers"),
    "nothing": (with_blob(shape(0)), "an array of shape (0,) with 0 numbers"),
    "odd bytes": (with_blob(shape(6) + field(5, SIX[:-1])), "has 23 bytes of numbers of 4 bytes each"),
    "nan": (caffemodel_bytes([("conv1", "Convolution", [np.array([1, np.nan])])]), "conv1 has weights that are not finite"),
    "infinity": (caffemodel_bytes([("conv1", "Convolution", [np.array([1, -np.inf])])]), "not finite"),
    "too large": (caffemodel_bytes([("conv1", "Convolution", [np.array([1, 1e300])])], double=True), "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_caffemodel_is_told_in_one_line(tmp_path, case):
    content, message = WRONG[case]
    path = tmp_path / "a.caffemodel"
    if callable(content):
        content(path)
    elif content is not None:
        write(path, content)
    for read in (read_caffemodel, lambda path: load_caffe(little_network(), path)):
        with pytest.raises(KerassegError) as error:
            read(path)
        text = str(error.value)
        assert message.replace("{path}", str(path)) in text and str(path) in text and "caffe" in text and "\n" not in text


# Damage


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_cut_anywhere_is_refused_or_whole_as_far_as_it_goes(tmp_path, form):
    content, path = caffemodel_bytes(LAYERS, form), tmp_path / "a.caffemodel"
    counts = {}
    for end in range(1, len(content)):
        path.write_bytes(content[:end])
        try:
            received = read_caffemodel(path)
        except KerassegError as error:
            assert "\n" not in str(error)
            continue
        # Between two layers, or among the fields behind the last: what was read is what was written.
        assert_same(received, LAYERS[: len(received)])
        counts[len(received)] = counts.get(len(received), 0) + 1
    behind = 0 if form == "v2" else 5
    assert counts == {1: 1, 2: 1, **({3: behind} if behind else {})}


def test_a_network_misses_what_was_cut_off(tmp_path):
    blobs = little_blobs()
    content = caffemodel_bytes([(name, "any", arrays) for name, arrays in blobs.items()])
    last = layer_v2("fc", "any", blobs["fc"])
    path = write(tmp_path / "a.caffemodel", content.removesuffix(last))
    assert len(content) - path.stat().st_size == len(last)
    with pytest.raises(KerassegError, match="the weights do not fit little: missing layer fc [(]"):
        load_caffe(little_network(), path, aliases={r"scale(.+)": r"bn\1"})


def tiny_network():
    image = keras.Input((2, 2, 2))
    x = BatchNormalization(name="bn1")(Conv2D(3, 1, name="conv1")(image))
    return keras.Model(image, Conv2D(2, 2, name="fc")(x), name="tiny")


@pytest.mark.parametrize("form", ["v1", "v2"])
@pytest.mark.parametrize("change", [1, 128, 255])
def test_a_changed_byte_is_refused_or_changes_one_number_or_none(tmp_path, form, change):
    """Only a change of one finite number into another cannot be told: the format has no checksum."""
    norm, path = [numbers(3, seed=9), numbers(3, seed=8) ** 2 + 1, np.full(1, 2, "float32")], tmp_path / "a.caffemodel"
    layers = [
        ("conv1", [numbers(3, 2, 1, 1, seed=1), numbers(3, seed=2)]),
        ("bn1", norm),
        ("scale1", [numbers(3, seed=3), numbers(3, seed=4)]),
    ]
    layers += [("fc", [numbers(2, 12, seed=5), numbers(2, seed=6)])]
    content = caffemodel_bytes([(name, "Convolution", arrays) for name, arrays in layers], form)
    positions = set()
    for _, arrays in layers:
        for array in arrays:
            assert content.count(array.tobytes()) == 1
            positions |= set(range(content.index(array.tobytes()), content.index(array.tobytes()) + array.nbytes))
    model, aliases = tiny_network(), {r"scale(.+)": r"bn\1"}
    original = read_caffemodel(write(path, content))
    load_caffe(model, original, aliases=aliases)
    outcomes = {"refused": 0, "one number": 0, "none": 0}
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= change
        path.write_bytes(damaged)
        try:
            received = read_caffemodel(path)
            load_caffe(model, received, aliases=aliases)
        except KerassegError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        pairs = zip(original.values(), received.values(), strict=True)
        changed = sum(np.sum(a != b) for old, new in pairs for a, b in zip(old, new, strict=True))
        assert changed == (position in positions), position
        outcomes["one number" if changed else "none"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_a_file_of_another_network_is_told_layer_by_layer_in_one_line(tmp_path):
    source = random_model("fcn_alexnet", CLASSES)
    path = write(tmp_path / "a.caffemodel", caffemodel_bytes([(n, "any", a) for n, a in to_caffe(source).items()]))
    model = MODELS["fcn8s"](CLASSES, **QUICK)
    before = model.get_weights()
    with pytest.raises(KerassegError) as error:
        load_caffe(model, path)
    text = str(error.value)
    assert "\n" not in text and text.startswith("the weights do not fit fcn8s: ")
    for problem in (
        "unknown layer conv1;",
        "unknown layer conv5;",
        "fc6: received shapes",
        "missing layer conv3_2",
        "unknown layer upscore",
    ):
        assert problem in text
    for received, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, expected)
