"""Caffe's blobs, and other networks' weights, into ours."""

import keras
import numpy as np
import pytest
from helpers import QUICK, diagonal, give_random_weights, random_model, to_caffe

from kerasseg import KerassegError
from kerasseg.interop import load_caffe, transplant
from kerasseg.layers import Conv2D
from kerasseg.models import MODELS
from kerasseg.ops import bilinear_kernel

CLASSES = 5


def fcn(arch="fcn8s", **arguments):
    return MODELS[arch](CLASSES, padding="same", **QUICK, **arguments)


@pytest.fixture
def model():
    return fcn()


@pytest.fixture
def blobs():
    return to_caffe(random_model("fcn8s", CLASSES, padding="same"))


def assert_unchanged(model, before):
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value, weight.path)


@pytest.mark.parametrize("arch", MODELS)
def test_every_network_takes_its_own_weights(arch):
    source = random_model(arch, CLASSES)
    target = MODELS[arch](CLASSES, **QUICK)
    assert load_caffe(target, to_caffe(source)) == []
    assert_unchanged(target, source.get_weights())


def test_a_kernel_lands_where_it_belongs(model, blobs):
    # Caffe is (out, in, row, column).
    blobs["conv1_2"][0] = np.arange(4 * 4 * 9, dtype="float32").reshape(4, 4, 3, 3)
    # Caffe's transposed convolution is (in, out, row, column), Keras' (row, column, out, in).
    blobs["upscore2"][0] = np.arange(5 * 5 * 16, dtype="float32").reshape(5, 5, 4, 4)
    load_caffe(model, blobs)
    assert model.get_layer("conv1_2").kernel[1, 2, 3, 0] == blobs["conv1_2"][0][0, 3, 1, 2]
    assert model.get_layer("upscore2").kernel[1, 2, 3, 0] == blobs["upscore2"][0][0, 3, 1, 2]


def spoil(blobs):
    """Two mis-shaped layers, one unknown, one missing, one too many blobs, one none."""
    del blobs["conv2_1"]
    blobs["fc8"] = [np.zeros((5, 3))]
    blobs["conv3_1"][0] = np.zeros((16, 8, 5, 5))
    blobs["score_fr"][1] = np.zeros(6)
    blobs["conv4_1"].append(np.zeros(1))
    blobs["conv4_2"] = []
    blobs["drop6"] = [np.zeros(1)]


PROBLEMS = [
    "unknown layer fc8",
    "missing layer conv2_1",
    "conv3_1: ",
    "score_fr: ",
    "conv4_1: ",
    "conv4_2: ",
    "drop6: Dropout takes no",
]


def test_every_problem_is_told_at_once_and_nothing_is_changed(model, blobs):
    give_random_weights(model, seed=1)
    before = model.get_weights()
    spoil(blobs)
    with pytest.raises(KerassegError) as error:
        load_caffe(model, blobs)
    message = str(error.value)
    assert "\n" not in message and "skip_mismatch=True" in message
    for problem in PROBLEMS:
        assert message.count(problem) == 1, problem
    # What was received and what was expected, in one layout.
    assert "(5, 5, 8, 16)" in message and "(3, 3, 8, 16)" in message
    assert_unchanged(model, before)


def test_skip_mismatch_loads_the_rest(model, blobs):
    give_random_weights(model, seed=1)
    before = {w.path: w.numpy() for w in model.weights}
    spoil(blobs)
    problems = load_caffe(model, blobs, skip_mismatch=True)
    assert len(problems) == len(PROBLEMS)
    assert all(any(line.startswith(problem) for line in problems) for problem in PROBLEMS)
    kept = {w.path.split("/")[0] for w in model.weights if np.array_equal(w, before[w.path])}
    assert kept == {"conv2_1", "conv3_1", "score_fr", "conv4_1", "conv4_2"}


@pytest.mark.parametrize("shape", [(2, -1), (4, 1, 1, -1)], ids=["out-in", "1-1-out-in"])
def test_fully_connected_blobs_become_kernels(model, blobs, shape):
    expected = model.get_layer("fc6").kernel.shape
    for name in ("fc6", "fc7"):
        kernel = blobs[name][0]
        flat = kernel.reshape(len(kernel), -1)
        blobs[name][0] = flat if len(shape) == 2 else flat[None, None]
    load_caffe(model, blobs)
    kernel = model.get_layer("fc6").kernel.numpy()
    assert kernel.shape == expected
    # Flattened as (in, row, column): channel 3, row 2, column 1.
    np.testing.assert_array_equal(kernel[2, 1, 3], blobs["fc6"][0].reshape(256, -1)[:, 3 * 49 + 2 * 7 + 1])
    blobs["fc6"][0] = np.zeros((256, 7))
    with pytest.raises(KerassegError, match="fc6: received shape"):
        load_caffe(model, blobs)


@pytest.mark.parametrize("grouped", [False, True])
def test_fixed_upsampling_accepts_only_the_bilinear_kernel(model, blobs, grouped):
    dense = diagonal(bilinear_kernel(16), CLASSES).transpose(3, 2, 0, 1)
    kernel = np.stack([bilinear_kernel(16)] * CLASSES)[:, None] if grouped else dense
    blobs["upscore8"] = [kernel]
    assert load_caffe(model, blobs) == []
    del blobs["upscore8"]
    assert load_caffe(model, blobs) == [], "a file may leave a fixed kernel out"
    before = model.get_weights()
    other = kernel.copy()
    other[1, 0 if grouped else 2, 7, 7] += 0.01
    smaller = kernel[..., 1:-1, 1:-1]
    filled = np.broadcast_to(bilinear_kernel(16), (CLASSES, CLASSES, 16, 16))
    for wrong in ([other], [smaller], [filled], [kernel, np.zeros(CLASSES)], [], [np.zeros((CLASSES, 16))]):
        blobs["upscore8"] = wrong
        with pytest.raises(KerassegError, match="upscore8: received kernel .* it is fixed in this network"):
            load_caffe(model, blobs)
    assert_unchanged(model, before)


def test_fixed_upsampling_checks_the_channels(model, blobs):
    blobs["upscore8"] = [diagonal(bilinear_kernel(16), CLASSES + 1).transpose(3, 2, 0, 1)]
    with pytest.raises(KerassegError, match="upscore8"):
        load_caffe(model, blobs)


def test_grouped_kernels_land_on_the_diagonal_of_learned_ones(model, blobs):
    kernel = np.random.default_rng(0).normal(size=(CLASSES, 1, 4, 4)).astype("float32")
    blobs["upscore2"] = [kernel]
    load_caffe(model, blobs)
    loaded = model.get_layer("upscore2").kernel.numpy()
    for i, o in np.ndindex(CLASSES, CLASSES):
        np.testing.assert_array_equal(loaded[:, :, o, i], kernel[i, 0] if i == o else np.zeros((4, 4)))


def test_biases_of_old_files_have_four_axes(model, blobs):
    expected = {name: values[1] for name, values in blobs.items() if len(values) == 2}
    for values in blobs.values():
        values[1:] = [value.reshape(1, 1, 1, -1) for value in values[1:]]
    load_caffe(model, blobs)
    for name, bias in expected.items():
        np.testing.assert_array_equal(model.get_layer(name).bias, bias)


def test_names_of_other_releases(blobs):
    source, model = blobs, fcn()
    renamed = {name.replace("_", "-") if name.startswith("score") else name: values for name, values in source.items()}
    assert set(renamed) - set(source) == {"score-fr", "score-pool4", "score-pool3"}
    load_caffe(model, renamed)
    np.testing.assert_array_equal(model.get_layer("score_pool4").bias, source["score_pool4"][1])
    with pytest.raises(KerassegError, match="score-fr is a second source for layer score_fr"):
        load_caffe(fcn(), {**source, "score-fr": source["score_fr"]})
    # One's own names, instead of the network's: Keras forbids the slash.
    own = {f"trunk/{name}": values for name, values in source.items()}
    load_caffe(fcn(), own, aliases={r"trunk_(.+)": r"\1"})
    with pytest.raises(KerassegError, match="unknown layer trunk/conv1_1"):
        load_caffe(fcn(), own)


def test_a_model_of_ones_own_takes_weights_too():
    x = keras.Input((None, None, 4))
    model = keras.Model(x, Conv2D(6, 3, groups=2, name="mine")(x), name="no_network")
    kernel, bias = np.random.default_rng(0).normal(size=(6, 2, 3, 3)).astype("float32"), np.ones(6, "float32")
    load_caffe(model, {"mine": [kernel, bias]})
    np.testing.assert_array_equal(model.get_layer("mine").kernel, kernel.transpose(2, 3, 1, 0))


def test_transplant_skips_what_has_another_shape():
    source, target = random_model("fcn32s", CLASSES + 1, padding="same"), random_model("fcn32s", CLASSES, seed=1, padding="same")
    score = target.get_layer("score_fr").get_weights()
    assert transplant(source, target) == ["score_fr"]
    for name in ("conv1_1", "conv5_3", "fc7"):
        for received, expected in zip(target.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)
    for received, expected in zip(target.get_layer("score_fr").get_weights(), score, strict=True):
        np.testing.assert_array_equal(received, expected)


def test_transplant_by_a_suffix_fills_one_of_two_trunks():
    image = keras.Input((None, None, 3))
    source = keras.Model(image, Conv2D(4, 3, name="conv1")(image))
    target = keras.Model(image, [Conv2D(4, 3, name=name)(image) for name in ("conv1", "conv1color", "conv1hha")])
    for model, seed in ((source, 1), (target, 2)):
        give_random_weights(model, seed)
    before = target.get_weights()
    assert transplant(source, target, suffix="color") == ["conv1", "conv1hha"]
    for received, expected in zip(target.get_weights(), [*before[:2], *source.get_weights(), *before[4:]], strict=True):
        np.testing.assert_array_equal(received, expected)


def test_files_are_not_read_yet():
    with pytest.raises(KerassegError, match="expected a mapping of layer name"):
        load_caffe(fcn(), "fcn8s-heavy-pascal.caffemodel")
