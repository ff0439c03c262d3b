"""Caffe's blobs, and other networks' weights, into ours."""

import keras
import numpy as np
import pytest
from helpers import QUICK, diagonal, give_random_weights, random_model, to_caffe

from kerasseg import KerassegError
from kerasseg.interop import load_caffe, transplant
from kerasseg.layers import BatchNormalization, Conv2D
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
    with pytest.raises(KerassegError, match="score-fr is a second source for layer score_fr, other than score_fr"):
        load_caffe(fcn(), {**source, "score-fr": [array + 1 for array in source["score_fr"]]})
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


@pytest.mark.parametrize("wrong", [None, 5, [("conv1_1", [])]])
def test_a_source_that_is_none(wrong):
    with pytest.raises(KerassegError, match="expected the path of a .caffemodel or a mapping of layer name"):
        load_caffe(fcn(), wrong)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (5, [np.ones(3)], "received 5 as a layer's name, expected text, such as 'conv1_1'"),
        ("conv1_1", None, "layer conv1_1: received NoneType, expected a list of arrays"),
        ("conv1_1", np.ones((4, 3, 3, 3)), "layer conv1_1: received ndarray, expected a list of arrays"),
        ("conv1_1", ["kernel"], "layer conv1_1: received what is no array of numbers"),
        ("conv1_1", [[1.0, [2.0]]], "layer conv1_1: received what is no array of numbers"),
        ("conv1_1", [np.array([1, np.nan])], "layer conv1_1 has weights that are not finite"),
        ("conv1_1", [np.array([1, 1e300])], "layer conv1_1 has weights that are not finite"),
    ],
)
@pytest.mark.parametrize("skip_mismatch", [False, True])
def test_a_mapping_of_something_else(model, blobs, name, arrays, message, skip_mismatch):
    before = model.get_weights()
    with pytest.raises(KerassegError, match=message) as error:
        load_caffe(model, {**blobs, name: arrays}, skip_mismatch=skip_mismatch)
    assert "\n" not in str(error.value)
    assert_unchanged(model, before)


def test_where_nothing_fits_skipping_is_an_error(blobs):
    with pytest.raises(KerassegError, match="unknown layer x/conv1_1;.*nothing of them fits"):
        load_caffe(fcn(), {f"x/{name}": values for name, values in blobs.items()}, skip_mismatch=True)


# Layers that share their weights


def test_layers_that_share_their_weights_fill_one_of_ours(blobs):
    """DeepLab v2's file holds every layer once for each of its three scales."""
    copies = {f"{name}{scale}": [v.copy() for v in values] for name, values in blobs.items() for scale in ("", "_res05", "_res075")}
    aliases, model = {r"(.+)_res0(?:5|75)": r"\1"}, fcn()
    assert load_caffe(model, copies, aliases=aliases) == []
    assert_unchanged(model, random_model("fcn8s", CLASSES, padding="same").get_weights())
    before = model.get_weights()
    copies["conv1_2_res075"][1][3] += 1e-6
    with pytest.raises(
        KerassegError, match="^[^\n;]*: conv1_2_res075 is a second source for layer conv1_2, other than conv1_2 [(]"
    ):
        load_caffe(model, copies, aliases=aliases)
    assert load_caffe(model, copies, aliases=aliases, skip_mismatch=True) == [
        "conv1_2_res075 is a second source for layer conv1_2, other than conv1_2"
    ]
    assert_unchanged(model, before)


# Batch normalisation, Caffe's two layers for one of ours

C = 4
MEAN, VARIANCE = np.array([1, -2, 3, 0.5], "float32"), np.array([4, 1, 0.25, 9], "float32")
GAMMA, BETA = np.array([1, 2, -3, 4], "float32"), np.array([0.5, 0, -1, 2], "float32")
BN_ALIASES = {r"scale(.+)": r"bn\1"}


def normalizing(layer=BatchNormalization, **arguments):
    x = keras.Input((None, None, C))
    return keras.Model(x, layer(name="bn2a_branch2a", **{"epsilon": 1e-3, **arguments})(x), name="normalizing")


def normalized(model, sources, x=10.0):
    load_caffe(model, sources, aliases=BN_ALIASES)
    return model(np.full((1, 1, 1, C), x, "float32"), training=False).numpy()[0, 0, 0]


@pytest.mark.parametrize("layer", [BatchNormalization, keras.layers.BatchNormalization], ids=["ours", "keras"])
@pytest.mark.parametrize("axes", [1, 4])
def test_batch_norm_and_scale_become_one_layer(layer, axes):
    shape = (1,) * (axes - 1) + (-1,)
    statistics = [array.reshape(shape) for array in (MEAN * 500, VARIANCE * 500, np.array([500.0]))]
    sources = {"bn2a_branch2a": statistics, "scale2a_branch2a": [array.reshape(shape) for array in (GAMMA, BETA)]}
    expected = GAMMA * (10 - MEAN) / np.sqrt(VARIANCE + 1e-3) + BETA
    np.testing.assert_allclose(normalized(normalizing(layer), sources), expected, rtol=1e-5)
    backwards = dict(reversed(sources.items()))
    np.testing.assert_allclose(normalized(normalizing(layer), backwards), expected, rtol=1e-5)
    # Once for each of three scales.
    copies = {f"{name}{scale}": values for name, values in sources.items() for scale in ("", "_res05", "_res075")}
    model = normalizing(layer)
    assert load_caffe(model, copies, aliases={r"(.+)_res0(5|75)": r"\1", **BN_ALIASES}) == []
    for received, value in zip(model.get_weights(), (GAMMA, BETA, MEAN, VARIANCE), strict=True):
        np.testing.assert_allclose(received, value, rtol=1e-6)


def test_a_factor_of_zero_means_statistics_of_zero():
    sources = {"bn2a_branch2a": [MEAN, VARIANCE, np.zeros(1)], "scale2a_branch2a": [GAMMA, BETA]}
    np.testing.assert_allclose(normalized(normalizing(), sources), GAMMA * 10 / np.sqrt(1e-3) + BETA, rtol=1e-5)


def test_folded_batch_norm_scales_and_shifts_alone():
    """DeconvNet's layers have two arrays; no epsilon may come between."""
    folded = normalized(normalizing(epsilon=0.1), {"bn2a_branch2a": [GAMMA, BETA]})
    np.testing.assert_allclose(folded, GAMMA * 10 + BETA, rtol=1e-6)


def test_batch_norm_of_four_arrays():
    """The BN layer of other forks: gamma, beta, mean, variance."""
    received = normalized(normalizing(), {"bn2a_branch2a": [GAMMA, BETA, MEAN, VARIANCE]})
    np.testing.assert_allclose(received, GAMMA * (10 - MEAN) / np.sqrt(VARIANCE + 1e-3) + BETA, rtol=1e-5)


def test_batch_norm_without_gamma_and_beta_needs_no_scale():
    plain = normalizing(scale=False, center=False)
    received = normalized(plain, {"bn2a_branch2a": [MEAN, VARIANCE, np.ones(1)]})
    np.testing.assert_allclose(received, (10 - MEAN) / np.sqrt(VARIANCE + 1e-3), rtol=1e-5)
    shifting = normalizing(scale=False)
    received = normalized(shifting, {"bn2a_branch2a": [MEAN, VARIANCE, np.ones(1)], "scale2a_branch2a": [BETA]})
    np.testing.assert_allclose(received, (10 - MEAN) / np.sqrt(VARIANCE + 1e-3) + BETA, rtol=1e-5)


STATISTICS, AFFINE = [MEAN, VARIANCE, np.ones(1)], [GAMMA, BETA]
BAD_NORMS = {
    "no scale": ({"bn2a_branch2a": STATISTICS}, {}, "bn2a_branch2a: is a BatchNorm without the Scale"),
    "no statistics": ({"scale2a_branch2a": AFFINE}, {}, "scale2a_branch2a: is a Scale without the BatchNorm"),
    "no beta": (
        {"bn2a_branch2a": STATISTICS, "scale2a_branch2a": [GAMMA]},
        {},
        "bn2a_branch2a [+] scale2a_branch2a: received shapes",
    ),
    "scale for none": (
        {"bn2a_branch2a": STATISTICS, "scale2a_branch2a": AFFINE},
        {"scale": False, "center": False},
        "bn2a_branch2a [+] scale2a_branch2a: received shapes",
    ),
    "two statistics": (
        {"bn2a_branch2a": STATISTICS, "scale2a_branch2a": STATISTICS[:2] + [np.full(1, 2)]},
        {},
        "scale2a_branch2a is a second source for layer bn2a_branch2a, other than bn2a_branch2a",
    ),
    "two scales": (
        {"bn2a_branch2a": AFFINE, "scale2a_branch2a": [BETA, GAMMA]},
        {},
        "scale2a_branch2a is a second source for layer bn2a_branch2a, other than bn2a_branch2a",
    ),
    "scale for a whole one": (
        {"bn2a_branch2a": [*AFFINE, MEAN, VARIANCE], "scale2a_branch2a": AFFINE},
        {},
        "scale2a_branch2a is a second source for layer bn2a_branch2a, other than bn2a_branch2a",
    ),
    "factor": ({"bn2a_branch2a": [MEAN, VARIANCE, MEAN], "scale2a_branch2a": AFFINE}, {}, "a factor of shape"),
    "negative": ({"bn2a_branch2a": [MEAN, -VARIANCE, np.ones(1)], "scale2a_branch2a": AFFINE}, {}, "a variance of -9"),
    "width": ({"bn2a_branch2a": [MEAN[:3], VARIANCE[:3], np.ones(1)], "scale2a_branch2a": AFFINE}, {}, "received shapes"),
    "none": ({"bn2a_branch2a": []}, {}, "bn2a_branch2a: received shapes"),
}


@pytest.mark.parametrize("case", BAD_NORMS)
def test_a_batch_norm_that_does_not_fit_is_told(case):
    sources, arguments, message = BAD_NORMS[case]
    model = normalizing(**arguments)
    before = model.get_weights()
    with pytest.raises(KerassegError, match=f"^the weights do not fit normalizing: [^;]*{message}[^;]*$"):
        load_caffe(model, sources, aliases=BN_ALIASES)
    assert_unchanged(model, before)


def test_the_three_scales_of_deeplab_v2_fill_one_network():
    """A file as its authors' program writes it: each of the three trunks with all its layers, BatchNorm and Scale apart."""
    source = random_model("deeplab_v2_resnet101", CLASSES)
    blobs = {}
    for name, values in to_caffe(source).items():
        for scale in ("", "_res05", "_res075"):
            if name.startswith("bn"):
                gamma, beta, mean, variance = values
                blobs[name + scale] = [mean * 999, variance * 999, np.full(1, 999, "float32")]
                blobs[name.replace("bn", "scale", 1) + scale] = [gamma, beta]
            else:
                blobs[name + scale] = values
    target = MODELS["deeplab_v2_resnet101"](CLASSES, **QUICK)
    assert load_caffe(target, blobs) == []
    for weight, value in zip(target.weights, source.get_weights(), strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-6, err_msg=weight.path)
    assert {"bn_conv1", "bn2a_branch1", "scale_conv1_res05", "scale5c_branch2c_res075", "fc1_voc12_c3_res05"} <= set(blobs)
    blobs["scale4b22_branch2b_res05"] = [array + 1 for array in blobs["scale4b22_branch2b_res05"]]
    with pytest.raises(
        KerassegError, match="101: scale4b22_branch2b_res05 is a second source for layer bn4b22_branch2b, other than "
    ):
        load_caffe(target, blobs)
