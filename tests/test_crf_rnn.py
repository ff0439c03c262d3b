"""CRF-RNN: the network against the authors' file, and the CRF behind other networks."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from caffe_layers import Blobs, convolution, pooling, relu
from crf_reference import bilateral_features, gaussian_kernel, mean_field, normalized_kernel, position_features
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, parts, random_model, to_caffe

import kerasseg
from kerasseg import KerassegError, with_context, with_crf_rnn
from kerasseg.crf import MeanField
from kerasseg.interop import load_caffe, transplant
from kerasseg.layers import AlignedResizeLike, CropLike, Preprocessing
from kerasseg.models import MODELS
from kerasseg.models.dilation import native_network

CLASSES = 4
# Row by row in random colours: small, and no symmetry between rows and columns.
SIZE = (13, 18)


def network(**arguments):
    """As the authors' file has it: the input is BGR with the mean subtracted."""
    return MODELS["crf_rnn"](CLASSES, **{**QUICK, "preprocessing": None, "dropout_rate": 0.0, **arguments})


def small(**arguments):
    """A network that is built in no time: one convolution of the image."""
    image = keras.Input(arguments.pop("input_shape", (None, None, 3)), name="image")
    spec = arguments.pop("preprocessing", "caffe")
    x = image if spec is None else Preprocessing.of(spec)(image)
    return keras.Model(image, keras.layers.Conv2D(CLASSES, 3, padding="same", name="score")(x), name="small")


def deconvolution(blobs, x, name, stride):
    """A dense transposed convolution without padding: each cell adds its weighted kernels to the output."""
    kernel, *bias = blobs.layers[name]
    side, batch, outputs = kernel.shape[0], x.shape[0], kernel.shape[2]
    result = np.zeros((batch, outputs, *((n - 1) * stride + side for n in x.shape[2:])))
    for i, j in np.ndindex(*x.shape[2:]):
        cell = np.einsum("nc,hwoc->nohw", x[:, :, i, j], kernel)
        result[:, :, stride * i : stride * i + side, stride * j : stride * j + side] += cell
    return result + (bias[0][:, None, None] if bias else 0)


def authors_unaries(blobs, x):
    """TVG_CRFRNN_new_deploy.prototxt as far as `coarse`; crops as the sizes of §1 of FCN demand them: 5, 9 and 31."""
    height, width = x.shape[2:]
    levels = {}
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            name = f"conv{block}_{index}"
            x = relu(blobs.convolution(x, name, pad=100 if name == "conv1_1" else 1))
        x = levels[block] = pooling(x, 2, 2, 0)
    x = relu(blobs.convolution(relu(blobs.convolution(x, "fc6")), "fc7"))
    x = deconvolution(blobs, blobs.convolution(x, "score_fr"), "score2", 2)
    for block, crop, name in ((4, 5, "score4"), (3, 9, "upsample")):
        skip = blobs.convolution(levels[block], f"score_pool{block}")
        x = deconvolution(blobs, x + skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]], name, 8 if block == 3 else 2)
    return x[:, :, 31 : 31 + height, 31 : 31 + width]


def test_unaries_are_those_of_the_authors_file():
    model = give_random_weights(network())
    x = images(SIZE, batch=1, block=3).astype("float64") - 110
    expected = authors_unaries(Blobs(model), x.transpose(0, 3, 1, 2))
    received = parts(model, "coarse")(x.astype("float32"), training=False)
    assert_varies(received)
    print(f"coarse: {np.abs(np.transpose(received, (0, 3, 1, 2)) - expected).max() / np.abs(expected).max():.1e}")
    assert_close(np.transpose(received, (0, 3, 1, 2)), expected, 1e-5)
    # The interpreter itself: a kernel of 1 in one place moves a map there.
    moved = convolution(expected, np.eye(CLASSES)[:, :, None, None], 0.0, 1, 0, 1)
    np.testing.assert_array_equal(moved, expected)


def test_layers_are_those_of_the_authors_file():
    model = network()
    crops = {layer.name: layer.offset for layer in model.layers if isinstance(layer, CropLike)}
    assert crops == {"score_pool4c": 5, "score_pool3c": 9, "coarse": 31}
    described = {layer.name: [tuple(w.shape) for w in layer.weights] for layer in model.layers}
    c = CLASSES
    assert described["score2"] == [(4, 4, c, c), (c,)] and described["score4"] == [(4, 4, c, c)]
    assert described["upsample"] == [(16, 16, c, c)] and not model.get_layer("upsample").trainable
    assert {w.path for w in model.weights} - {w.path for w in model.trainable_weights} == {"upsample/kernel"}
    crf = model.get_layer("inference1")
    weights = {weight.path: np.array(weight) for weight in crf.trainable_weights}
    assert list(weights) == ["inference1/spatial_weight", "inference1/bilateral_weight", "inference1/compatibility"]
    for value, factor in zip(weights.values(), (3, 5, -1), strict=True):
        np.testing.assert_array_equal(value, factor * np.eye(CLASSES))
    assert (crf.theta_alpha, crf.theta_beta, crf.theta_gamma, crf.normalization) == (160, 3, 3, "after")
    assert (crf.iterations, crf.training_iterations, crf.method) == (10, 5, "lattice")
    unary, colours = crf.input
    assert unary is model.get_layer("coarse").output and colours is model.inputs[0]
    assert MODELS["crf_rnn"](CLASSES, **QUICK, iterations=3, training_iterations=None).get_layer("inference1").iterations == 3
    # Upsampling begins bilinear, and no class sees another.
    for name in ("score2", "score4", "upsample"):
        kernel = np.array(model.get_layer(name).kernel)
        np.testing.assert_allclose(kernel.sum((0, 1)), kernel.shape[0] ** 2 / 4 * np.eye(CLASSES), rtol=1e-6)


def published(model):
    """Its weights under the names of the published file, without those of the CRF."""
    blobs = to_caffe(model)
    blobs.pop("inference1")
    return {name.replace("score_", "score-"): arrays for name, arrays in blobs.items()}


def matrices(seed=0):
    """Three matrices that are not symmetric, as old files hold them."""
    return [np.random.default_rng(seed + index).normal(size=(1, 1, CLASSES, CLASSES)).astype("float32") for index in range(3)]


def test_published_names_load_and_the_crf_may_be_missing():
    model = give_random_weights(network())
    blobs = published(model)
    assert {"score-fr", "score2", "score-pool4", "score4", "score-pool3", "upsample", "fc6"} < set(blobs)
    twin = network()
    before = twin.get_layer("inference1").get_weights()
    assert load_caffe(twin, blobs) == []
    for ours, theirs in zip(parts(twin, "coarse").get_weights(), parts(model, "coarse").get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(twin.get_layer("inference1").get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    blobs["score"] = blobs.pop("score-fr")
    assert load_caffe(network(), blobs) == []
    del blobs["score2"]
    with pytest.raises(KerassegError, match="missing layer score2 "):
        load_caffe(twin, blobs)


def test_published_weights_of_the_crf_load_in_the_authors_order():
    model, given = network(), matrices()
    load_caffe(model, {**published(model), "inference1": given})
    crf = model.get_layer("inference1")
    for weight, matrix in zip((crf.weights[0], crf.weights[1], crf.compatibility), given, strict=True):
        np.testing.assert_array_equal(weight, matrix[0, 0])
    assert [weight.name for weight in crf.weights[:2]] == ["spatial_weight", "bilateral_weight"]
    for wrong, message in (
        (given[:2], "inference1: received 2 arrays, expected spatial_weight, bilateral_weight, compatibility"),
        ([each[..., 1:] for each in given], r"inference1: received shapes \[\(4, 3\)"),
        ([np.ones((2, 1, 4, 4))] * 3, "inference1: "),
    ):
        with pytest.raises(KerassegError, match=message):
            load_caffe(model, {**published(model), "inference1": wrong})


@pytest.mark.parametrize("training", [False, True])
def test_the_crf_computes_the_papers_recurrence(training):
    """By dense matrices, on an image of few pixels, with matrices that are not symmetric."""
    model = with_crf_rnn(small(), theta_alpha=6.0, theta_beta=30.0, theta_gamma=2.0, iterations=4, training_iterations=2)
    exact = keras.models.clone_model(model, clone_function=lambda layer: _exact(layer))
    spatial, bilateral, compatibility = (matrix[0, 0] for matrix in matrices(3))
    for network in (model, exact):
        network.get_layer("score").set_weights([0.02 * w for w in give_random_weights(small()).get_weights()])
        network.get_layer("inference1").set_weights([spatial, bilateral, compatibility])
    x = images((6, 7), block=2).astype("float32")
    unary = parts(model, "score")(x).numpy()
    received = exact(x, training=training)
    for index in range(2):
        colours = x[index, ..., ::-1]
        kernels = (
            (normalized_kernel(gaussian_kernel(position_features((6, 7), 2.0)), "after"), spatial),
            (normalized_kernel(gaussian_kernel(bilateral_features(colours, 6.0, 30.0)), "after"), bilateral),
        )
        states = mean_field(unary[index].reshape(-1, CLASSES), kernels, 2 if training else 4, compatibility)
        assert_close(received[index], states[-1].reshape(6, 7, CLASSES), 1e-4)
        # One step more or less is another result, and so are the unaries alone.
        assert min(np.abs(states[-1] - state).max() for state in states[:-1]) > 0.01
    # The lattice is an approximation.
    assert np.abs(model(x, training=training) - received).mean() < 0.2 * np.abs(received).mean()


def _exact(layer):
    config = layer.get_config()
    return layer.__class__.from_config({**config, "method": "exact"} if isinstance(layer, MeanField) else config)


def colours_of(model):
    """Names of the layers whose outputs the CRF is called on, and which of their channels."""
    logits, colours = model.get_layer("inference1").input
    return logits._keras_history.operation.name, colours._keras_history.operation.name


@pytest.mark.parametrize(
    ("arch", "arguments", "expected"),
    [
        # Means alone: what the authors' layer sees. Else the image.
        ("fcn8s", {"padding": "same"}, ("score", "preprocessing")),
        ("fcn8s", {"preprocessing": "torch"}, ("score", "image")),
        ("fcn8s", {"preprocessing": "tf"}, ("score", "image")),
        ("fcn8s", {"preprocessing": None}, ("score", "image")),
        ("deeplab_v1_largefov", {}, ("fc8_crop", "preprocessing")),
        ("dilation8", {}, ("logits", "preprocessing")),
        # Behind a layer that looks at the size.
        ("deconvnet", {}, ("seg-score-voc", "preprocessing")),
        ("fcn32s", {"input_shape": (None, None, 4)}, ("score", "crf_colours")),
        ("fcn32s", {"late_fusion": ("color", "hha")}, ("score", "preprocessing_color")),
    ],
)
def test_any_network_gets_a_crf_and_stays_what_it_is(arch, arguments, expected):
    plain = MODELS[arch](CLASSES, **QUICK, **arguments)
    model = with_crf_rnn(plain)
    assert colours_of(model) == expected
    assert (model.name, model.output_shape, model.output.dtype) == (plain.name, plain.output_shape, "float32")
    names = [layer.name for layer in plain.layers]
    assert [layer.name for layer in model.layers if layer.name in names] == names
    assert {layer.name for layer in model.layers} - set(names) <= {"inference1", "crf_colours"}
    assert all(model.get_layer(name) is plain.get_layer(name) for name in names)
    assert [w.path for w in model.weights][:-3] == [w.path for w in plain.weights]
    assert keras.tree.map_structure(lambda t: t.name, model.input) == keras.tree.map_structure(lambda t: t.name, plain.input)


def test_the_colours_are_the_first_three_channels_of_the_input_that_is_named():
    depth = with_crf_rnn(MODELS["fcn32s"](CLASSES, input_shape=(None, None, 4), **QUICK))
    x = np.random.default_rng(0).random((1, 4, 5, 4), "float32")
    blue_green_red = keras.Model(depth.input, depth.get_layer("inference1").input[1])(x)
    np.testing.assert_allclose(blue_green_red, x[..., 2::-1] - np.float32([116.190, 97.203, 92.318]), rtol=1e-6)
    fusion = MODELS["fcn32s"](CLASSES, late_fusion=("color", "hha"), **QUICK)
    hha = with_crf_rnn(fusion, image="hha").get_layer("inference1").input[1]
    assert hha is fusion.get_layer("preprocessing_hha").output


def test_logits_are_those_of_the_layer_on_the_networks_own():
    plain = random_model("dilation8", CLASSES)
    x = images((24, 33), block=6)
    unary = plain(x, training=False)
    model = with_crf_rnn(plain, iterations=2)
    bgr = x[..., ::-1].astype("float32") - np.float32([102.93, 111.36, 116.52])
    layer = MeanField(2, 160.0, 3.0, 3.0, 5.0, 3.0, "matrix", "after", kernel_weights="matrix")
    received = model(x, training=False)
    assert_close(received, layer([unary, bgr]), 1e-5)
    assert np.abs(received - unary).max() > 1


def test_of_several_outputs_the_first_or_the_named_one_gets_the_crf():
    plain = random_model("fcn32s", {"semantic": 4, "geometric": 3}, padding="same")
    x = images((16, 20), block=4)
    before = plain(x, training=False)
    for arguments, changed, kept in (({}, "semantic", "geometric"), ({"output": "geometric"}, "geometric", "semantic")):
        model = with_crf_rnn(plain, iterations=1, **arguments)
        after = model(x, training=False)
        assert list(after) == list(before) == ["semantic", "geometric"]
        np.testing.assert_array_equal(after[kept], before[kept])
        assert np.abs(after[changed] - before[changed]).max() > 1
        assert model.get_layer("inference1").weights[0].shape == (before[changed].shape[-1],) * 2


def test_training_takes_fewer_steps_with_the_same_weights(tmp_path):
    plain = give_random_weights(small())
    plain.get_layer("score").set_weights([0.02 * w for w in plain.get_weights()])
    model, five = with_crf_rnn(plain), with_crf_rnn(plain, iterations=5)
    x = images((9, 12), block=3)
    trained, tested = model(x, training=True), model(x, training=False)
    assert_close(trained, five(x, training=False), 1e-6)
    assert np.abs(trained - tested).max() > 0.01
    same = with_crf_rnn(plain, training_iterations=None)
    assert_close(same(x, training=True), tested, 1e-6)
    model.save(tmp_path / "model.keras")
    loaded = kerasseg.load_model(tmp_path / "model.keras")
    for training, expected in ((True, trained), (False, tested)):
        np.testing.assert_array_equal(loaded(x, training=training), expected)


def test_half_precision_is_the_networks_alone():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = with_crf_rnn(small())
    finally:
        keras.config.set_dtype_policy("float32")
    crf = model.get_layer("inference1")
    assert (model.get_layer("score").compute_dtype, crf.compute_dtype) == ("bfloat16", "float32")
    assert model(images((8, 9), block=3)).dtype == "float32" and {w.dtype for w in crf.weights} == {"float32"}


def test_fcn8s_weights_move_in_and_compute_the_same():
    """The layers that have the same names; FCN-8s with fixed upsampling is what `coarse` begins as."""
    source = random_model("fcn8s", CLASSES, learn_upsampling=False)
    model = MODELS["crf_rnn"](CLASSES, **QUICK)
    assert sorted(transplant(source, model)) == ["inference1", "score2", "score4", "upsample"]
    x = images((31, 33), block=8)
    assert_close(parts(model, "coarse")(x, training=False), source(x, training=False), 1e-5)


def test_mistakes_are_one_line():
    heads = keras.Model(image := keras.Input((8, 8, 3)), [keras.layers.Conv2D(2, 1)(image), keras.layers.Conv2D(2, 1)(image)])
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="pooled")
    grey, wrapped = small(input_shape=(None, None, 1), preprocessing=None), with_crf_rnn(small())
    halved = keras.Model(image, keras.layers.AveragePooling2D(2)(image), name="halved")
    dilation, v1 = ("dilation8", {"margin": None}), ("deeplab_v1", {"upsample_logits": False})
    for build, message in (
        (lambda: with_crf_rnn("fcn8s"), r"with_crf_rnn received 'fcn8s': expected a built keras.Model, e.g. with_crf_rnn\(fcn8s"),
        (lambda: with_crf_rnn(wrapped), "small has a CRF already"),
        (lambda: with_context(wrapped), "small has a CRF: .* first"),
        (lambda: with_crf_rnn(heads), "has 2 outputs without names: give them names"),
        (lambda: with_crf_rnn(small(), output="x"), "output='x': small has 1 output without names: omit output"),
        (lambda: with_crf_rnn(small(), image="images"), "image='images': small has no such input: did you mean 'image'"),
        (lambda: with_crf_rnn(pooled), r"pooled gives shape \(None, 3\): with_crf_rnn expects logits"),
        (lambda: with_crf_rnn(grey), r"the input 'image' of small has shape \(None, None, None, 1\): .* an image"),
        (lambda: with_crf_rnn(MODELS["dilation8"](5, from_features=True)), "the input 'features' of dilation8 has shape"),
        (lambda: with_crf_rnn(halved), "halved gives logits of 4x4 for an image of 8x8: .* upsample_logits=True"),
        (lambda: with_crf_rnn(MODELS[dilation[0]](5, **QUICK, **dilation[1])), "logits of 80x112 .* margin='reflect'"),
        (lambda: with_crf_rnn(MODELS[v1[0]](5, **QUICK, **v1[1])), "logits of 56x60 for an image of 448x480"),
        (lambda: with_crf_rnn(small(), theta_beta=0), "theta_beta"),
        (lambda: with_crf_rnn(small(), spatial_weight=[1.0, 2.0]), r"spatial_weight has shape \(2,\)"),
        (lambda: with_crf_rnn(small(), iterations=-1), "iterations"),
        (lambda: network(padding="sane"), "padding='sane': expected one of 'authors', 'same'"),
        (lambda: native_network(with_crf_rnn(MODELS["dilation7"](5, **QUICK))), "has a CRF-RNN, which sees whole images"),
    ):
        with pytest.raises(KerassegError, match=message) as error:
            build()
        assert "\n" not in str(error.value)
    two = MODELS["fcn32s"]({"semantic": 4, "geometric": 3}, **QUICK)
    with pytest.raises(KerassegError, match=r"output='semantics': fcn32s has no such output: did you mean 'semantic'\?"):
        with_crf_rnn(two, output="semantics")


@pytest.mark.parametrize("name", ["spatial_weight", "bilateral_weight", "compatibility"])
@pytest.mark.parametrize(
    "value", ["abc", None, float("nan"), 1e300, [[1.0, 2.0], [3.0]], {}, [[[1.0]]], [1.0, float("inf")]], ids=str
)
def test_weights_that_are_no_numbers_are_refused(name, value):
    for form in ("scalar", "class", "matrix"):
        with pytest.raises(KerassegError, match=f"^{name} .*: expected") as error:
            MeanField(**{name: value}, kernel_weights=form)
        assert "\n" not in str(error.value)


def test_weights_have_the_shape_of_their_form():
    for arguments, message in (
        ({"spatial_weight": [1.0, 2.0]}, r"spatial_weight has shape \(2,\): expected one number, of kernel_weights='scalar'"),
        ({"spatial_weight": [[1.0]], "kernel_weights": "class"}, r"shape \(1, 1\): expected \(C\) or one number, of .*'class'"),
        ({"compatibility": [[1.0, 2.0]]}, r"compatibility has shape \(1, 2\): expected classes x classes"),
        ({"compatibility": "pots"}, "compatibility 'pots': expected potts, matrix, or an array of classes x classes"),
    ):
        with pytest.raises(KerassegError, match=message):
            MeanField(**arguments)
    layer = MeanField(spatial_weight=np.float32(2), bilateral_weight=[1, 2], kernel_weights="class", compatibility=-np.eye(2))
    same = MeanField.from_config(layer.get_config())
    assert same.initial_weights == layer.initial_weights == {"spatial": 2.0, "bilateral": [1.0, 2.0]}
    assert same.compatibility_start == [[-1, 0], [0, -1]]


def test_a_sequential_network_gets_a_crf():
    score = keras.layers.Conv2D(CLASSES, 3, padding="same", name="score")
    plain = give_random_weights(keras.Sequential([keras.Input((None, None, 3)), score], name="row"))
    model = with_crf_rnn(plain, iterations=2)
    x = images((8, 9), block=3)
    layer = MeanField(2, 160.0, 3.0, 3.0, 5.0, 3.0, "matrix", "after", kernel_weights="matrix")
    assert_close(model(x, training=False), layer([plain(x, training=False), x]), 1e-5)
    assert model.name == "row" and model.get_layer("score") is score and "inference1" not in [one.name for one in plain.layers]
    with pytest.raises(KerassegError, match="with_crf_rnn received <Sequential.*expected a built keras.Model"):
        with_crf_rnn(keras.Sequential([keras.layers.Conv2D(2, 1)]))


def test_weights_of_a_file_with_a_crf_are_refused_in_one_line_also_by_a_fresh_process(tmp_path):
    with_crf_rnn(small()).save(tmp_path / "model.keras")
    code = (
        "import sys\nfrom kerasseg import KerassegError\nfrom kerasseg.models.fcn import fcn8s\n"
        "assert 'kerasseg.crf.layer' not in sys.modules\n"
        "try:\n    fcn8s(5, width_multiplier=1 / 16, weights=sys.argv[1])\n"
        "except KerassegError as error:\n    print(error)\n"
    )
    paths = os.pathsep.join([str(Path(kerasseg.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    given = [sys.executable, "-c", code, tmp_path / "model.keras"]
    done = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    # It was opened: what is wrong is how many weights there are.
    assert "do not fit fcn8s: You called `set_weights(weights)`" in line


def test_networks_of_layers_that_hide_their_size_are_looked_at_when_they_run():
    """Where Keras cannot tell the size of the logits beforehand, the layer compares it with the image's."""

    class Halved(keras.layers.Layer):
        def call(self, x):
            return x[:, ::2, ::2]

        def compute_output_spec(self, x):
            return keras.KerasTensor((None, None, None, 3))

    image = keras.Input((None, None, 3))
    hidden = keras.layers.Conv2D(2, 1)(Halved()(image))
    with pytest.raises((KerassegError, ValueError), match=r"1x4x4 and .*1x8x8"):
        with_crf_rnn(keras.Model(image, hidden))(np.zeros((1, 8, 8, 3), "float32"))
    resized = with_crf_rnn(keras.Model(image, AlignedResizeLike()([hidden, image])))
    assert resized(tf.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 2)
    # And networks for images that are larger than what the size is tried with.
    large = with_crf_rnn(keras.Model(image, AlignedResizeLike()([keras.layers.Conv2D(2, (600, 1))(image), image])))
    assert large.output_shape == (None, None, None, 2)
