"""The context module: its window, its first weights, and what it is plugged behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, assert_close, give_random_weights, images, parts, random_model

import kerasseg
from kerasseg import KerassegError, load_model, with_context
from kerasseg.backbones.context import context_module
from kerasseg.interop import transplant
from kerasseg.layers import Conv2D, IdentityInitializer
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS

BASIC, LARGE = "basic", "large"


def module(context=BASIC, classes=3, layers=8, **arguments):
    """The context module alone."""
    more = {"context": context} if layers == 8 else {}
    return MODELS[f"dilation{layers}"](classes, from_features=True, **more, **arguments)


def scores(size=(9, 11), classes=3, batch=2, seed=0):
    """Multiples of 1/1024 below 8: 13 bits, so that sums of 32 shares of them are exact, in any order."""
    return np.random.default_rng(seed).integers(0, 8 * 1024, (batch, *size, classes)).astype("float32") / 1024


@pytest.mark.parametrize(
    ("layers", "windows"),
    [
        (7, [3, 5, 9, 17, 33, 35, 35]),
        # Table 1.
        (8, [3, 5, 9, 17, 33, 65, 67, 67]),
        (10, [3, 5, 9, 17, 33, 65, 129, 257, 259, 259]),
    ],
)
def test_windows_are_table_1(layers, windows):
    """One cell changes, and so does a square of cells around it, as wide as the window; a cell further out nothing does."""
    model = module(layers=layers)
    for layer in model.layers:
        # Positive weights and scores: nothing is truncated, nothing cancels.
        layer.set_weights([np.full(weight.shape, 0.1 if weight.ndim == 4 else 0.0, "float32") for weight in layer.get_weights()])
    names = [layer.name for layer in model.layers if isinstance(layer, Conv2D)]
    size = windows[-1] + 4
    x = np.ones((2, size, size, 3), "float32")
    x[1, size // 2, size // 2] = 2
    for output, window in zip(parts(model, *names)(x), windows, strict=True):
        rows, columns = np.nonzero(np.any(output[0] != output[1], axis=-1))
        for places in (rows, columns):
            assert (places.min(), places.max()) == (size // 2 - window // 2, size // 2 + window // 2)


def test_parameters_of_the_basic_module():
    """§3: about 64 C²."""
    for classes in (11, 21):
        assert module(classes=classes).count_params() == 64 * classes**2 + 8 * classes
    # Table 1's widths by hand: C = 21 to 2C, 2C, 4C, 8C, 16C, 32C, 32C, and 1×1 to C; one bias a channel.
    pairs = [(1, 2), (2, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 32)]
    expected = sum(9 * 21 * i * 21 * o + 21 * o for i, o in pairs) + 32 * 21 * 21 + 21
    assert module(LARGE, 21).count_params() == expected


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 6), (6, 6), (6, 12), (12, 3)])
def test_first_weights_are_equation_5(inputs, outputs):
    kernel = np.asarray(IdentityInitializer(3, stddev=1e-3, seed=1)((3, 3, inputs, outputs), "float32"))
    noise = []
    for i, j, a, b in np.ndindex(kernel.shape):
        if i == j == 1 and a * 3 // inputs == b * 3 // outputs:
            np.testing.assert_allclose(kernel[i, j, a, b], 3 / outputs, rtol=1e-7)
        else:
            noise.append(kernel[i, j, a, b])
    assert abs(np.std(noise) / 1e-3 - 1) < 0.2 and abs(np.mean(noise)) < 3e-4
    still = np.asarray(IdentityInitializer(3, stddev=0.0)((1, 1, inputs, outputs)))
    assert sorted(np.unique(still)) == [0, np.float32(3 / outputs)] and still.sum() == inputs


def test_equation_4_is_one_at_the_centre_of_its_own_map():
    kernel = np.zeros((3, 3, 5, 5))
    kernel[1, 1] = np.eye(5)
    np.testing.assert_array_equal(IdentityInitializer(5, stddev=0.0)((3, 3, 5, 5)), kernel)


def test_noise_of_two_layers_differs_and_a_config_keeps_it():
    keras.utils.set_random_seed(0)
    model = module(classes=11, noise=0.02)
    one, other = (model.get_layer(name).kernel.numpy() for name in ("ctx_conv1_1", "ctx_conv1_2"))
    assert (one != other).mean() > 0.95 and 0.018 < np.std(one[0]) < 0.022
    initializer = model.get_layer("ctx_conv1_1").kernel_initializer
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(initializer))
    assert type(twin) is IdentityInitializer and twin.get_config() == {"groups": 11, "stddev": 0.02, "seed": None}
    seeded = [np.asarray(IdentityInitializer(3, seed=4)((3, 3, 3, 3))) for _ in range(2)]
    np.testing.assert_array_equal(*seeded)


def test_channels_that_are_no_multiple_of_the_classes_follow_the_same_rule():
    kernel = np.asarray(IdentityInitializer(3, stddev=0)((3, 3, 5, 4)))
    # ⌊3a / 5⌋ = 0 0 1 1 2 and ⌊3b / 4⌋ = 0 0 1 2.
    expected = 0.75 * np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(kernel[1, 1], expected)
    assert np.count_nonzero(kernel) == np.count_nonzero(expected)
    widths = [layer.filters for layer in module((5, 7, 4, 9, 3, 8, 2)).layers if isinstance(layer, Conv2D)]
    assert widths == [5, 7, 4, 9, 3, 8, 2, 3]


@pytest.mark.parametrize(("context", "classes"), [(BASIC, 21), (LARGE, 21), (LARGE, 3), ((6, 3, 3, 12, 6, 3, 24), 3)])
def test_without_noise_scores_pass_as_they_are(context, classes):
    """Bit for bit: C / c is a power of two, so that shares are exact, and the scores leave room for their sums within a group."""
    model, x = module(context, classes, noise=0.0), scores(classes=classes)
    np.testing.assert_array_equal(model(x), x)
    # In between, each of the c maps of a layer holds C / c of its class's score, where it is not beyond the border.
    for name in ("ctx_conv1_2", "ctx_conv2_1", "ctx_fc1"):
        layer = model.get_layer(name)
        maps = parts(model, name)(x).numpy()
        edge = (maps.shape[1] - x.shape[1]) // 2
        inner = maps[:, edge : edge + 9, edge : edge + 11]
        share = classes / layer.filters
        np.testing.assert_array_equal(inner, np.repeat(x, layer.filters // classes, axis=-1) * np.float32(share))
        assert np.count_nonzero(maps) == np.count_nonzero(inner)
    # Truncation takes what is negative, in the first layer.
    np.testing.assert_array_equal(model(x - 3), np.maximum(x - 3, 0))
    # Where scores leave no room, sums of three shares and more round.
    full = np.random.default_rng(0).random(x.shape, "float32")
    np.testing.assert_allclose(model(full), full, rtol=0 if context == BASIC else 2e-6)


@pytest.mark.parametrize("layers", [7, 10])
def test_without_noise_the_other_depths_pass_scores_too(layers):
    x = scores()
    np.testing.assert_array_equal(module(layers=layers, noise=0.0)(x), x)


@pytest.mark.parametrize("context", [BASIC, LARGE])
def test_noise_changes_scores_within_the_derived_bound(context):
    """How far the noise can carry the module from the identity, derived.

    Let X be the largest score, x ≥ 0 a cell's score of some class, c and c' the channels in front of and behind a layer, s = C / c
    and s' = C / c' the shares that maps hold without noise, and n the largest sum of the absolute noise in the kernel of one output
    channel. Say every map in front lies within s · d of its share s · x. The identity part of an output, C / c' times the sum of a
    group's c / C maps, then lies within C / c' · c / C · s · d = s' · d of s' · x; the noise part is at most n times the largest
    map, s · (X + d). Truncation brings no value further from s' · x ≥ 0. So behind the layer it is s' · d' with

        d' ≤ d + n · s / s' · (X + d),   that is   X + d' ≤ (X + d) · (1 + n · c' / c).

    From d = 0 on, the last layer's error is at most X · (Π (1 + n · c' / c) − 1).
    """
    keras.utils.set_random_seed(0)
    model, x = module(context, noise=5e-5), scores((13, 14))
    growth = 1.0
    for layer in (layer for layer in model.layers if isinstance(layer, Conv2D)):
        kernel = layer.kernel.numpy().astype("float64")
        inputs, outputs = kernel.shape[2:]
        still = np.zeros_like(kernel)
        for a, b in np.ndindex(inputs, outputs):
            if a // (inputs // 3) == b // (outputs // 3):
                still[kernel.shape[0] // 2, kernel.shape[1] // 2, a, b] = 3 / outputs
        noise = np.abs(kernel - still).sum(axis=(0, 1, 2)).max()
        assert 0 < noise < 9 * inputs * 1e-4
        growth *= 1 + noise * outputs / inputs
    error, largest = np.abs(model(x) - x).max(), x.max()
    print(f"{context}: error {error / largest:.2e} of the largest score, bound {growth - 1:.2e}")
    assert 1e-4 * largest < error <= (growth - 1) * largest < 0.25 * largest


@pytest.mark.parametrize("context", [BASIC, LARGE])
def test_from_the_identity_both_train(context):
    """Labels are blocks, scores are them with errors: what is around a cell tells more than itself."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, (4, 3, 3)).repeat(4, axis=1).repeat(4, axis=2)
    x = (2 * np.eye(3)[label] + generator.normal(0, 1.5, (4, 12, 12, 3))).astype("float32")
    model = module(context)
    model.compile(keras.optimizers.Adam(2e-3), SegmentationCrossEntropy(), jit_compile=False)
    losses = model.fit(x, label.astype("int32"), batch_size=4, epochs=25, verbose=0).history["loss"]
    start = float(SegmentationCrossEntropy()(label, np.maximum(x, 0)))
    assert abs(losses[0] / start - 1) < 0.35
    assert losses[-1] < 0.75 * losses[0]


def test_the_large_module_pads_the_scores_alone():
    """Padded once by 33, it sees what it would see of scores that lie in zeros without end; the basic one does not."""
    x = scores((6, 7))
    wide = np.pad(x, [(0, 0), (40, 40), (40, 40), (0, 0)])
    for context, same in ((LARGE, True), ((3,) * 7, True), (BASIC, False)):
        # With offsets, what a layer makes of zeros is not zero.
        model = give_random_weights(module(context))
        inner = model(wide)[:, 40:-40, 40:-40]
        if same:
            assert_close(model(x), inner, 1e-5)
        else:
            assert np.abs(model(x) - inner).max() > 0.1 * np.abs(inner).max()
    padding = module(LARGE).get_layer("ctx_conv1_1_pad")
    assert padding.padding == ((33, 33), (33, 33))
    # What the seven layers take off, by hand: two cells for every unit of rate.
    assert 2 * (1 + 1 + 2 + 4 + 8 + 16 + 1) == 2 * 33


def test_the_basic_module_keeps_the_size_by_zeros_in_every_layer():
    model = give_random_weights(module())
    x = scores((6, 7))
    for layer in (layer for layer in model.layers if isinstance(layer, Conv2D)):
        rate = layer.dilation_rate[0] if layer.kernel_size[0] > 1 else 0
        padded = np.pad(x, [(0, 0), (rate, rate), (rate, rate), (0, 0)])
        expected = tf.nn.convolution(padded, layer.kernel, padding="VALID", dilations=max(rate, 1)) + layer.bias
        x = np.maximum(expected, 0) if layer.name != "ctx_final" else expected
    assert_close(model(scores((6, 7))), x, 1e-5)


def test_stored_scores_go_in_at_their_size():
    for layers in (7, 8, 10):
        model = module(layers=layers, classes=4)
        assert model.name == f"dilation{layers}" and [tensor.name for tensor in model.inputs] == ["features"]
        assert model.input_shape == model.output_shape == (None, None, None, 4)
        whole = random_model(f"dilation{layers}", 4)
        names = [layer.name for layer in model.layers if layer.weights]
        assert names == [layer.name for layer in whole.layers if layer.name.startswith("ctx_") and layer.weights]
        assert transplant(whole, model) == []
        x = images((33, 42))
        maps = parts(whole, "final", "ctx_final")(x, training=False)
        np.testing.assert_allclose(model(maps[0]), maps[1], rtol=1e-5, atol=1e-6)


# Where each network's scores are made, and the layer of an offset that makes all of them positive.
NETWORKS = {
    "fcn8s": ("fuse_pool3", "score_pool3"),
    "fcn32s": ("score_fr", "score_fr"),
    "deeplab_v1_largefov": ("fc8_voc12", "fc8_voc12"),
    "deeplab_v3": ("logits_semantic", "logits_semantic"),
    "dilation_frontend": ("final", "final"),
}


def positive(arch, classes=3, **arguments):
    """A network whose scores are above 0, so that an identity behind them changes nothing."""
    more = {"backbone": "resnet50"} if arch == "deeplab_v3" else {}
    model = random_model(arch, classes, **more, **arguments)
    layer = model.get_layer(NETWORKS[arch][1])
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel, bias + 2**18])
    return model


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("context", [BASIC, LARGE])
def test_plugged_behind_a_network_the_identity_changes_nothing(arch, context, tmp_path):
    model, x = positive(arch), images((40, 56))
    expected = model(x, training=False)
    extended = with_context(model, context, noise=0.0)
    np.testing.assert_allclose(extended(x, training=False), expected, rtol=0 if context == BASIC else 2e-6)
    # On the scores at their own stride, not on the image's.
    assert extended.get_layer("ctx_final").output.name != extended.output.name
    first = extended.get_layer("ctx_conv1_1" if context == BASIC else "ctx_conv1_1_pad")
    assert first.input is model.get_layer(NETWORKS[arch][0]).output
    # One flat graph, whose layers but for the module's and the weightless last ones are the network's own.
    new = {layer.name for layer in extended.layers} - {layer.name for layer in model.layers}
    assert new and all(name.startswith("ctx_") for name in new) and extended.name == model.name
    assert not any(isinstance(layer, keras.Model) for layer in extended.layers)
    for layer in model.layers:
        assert extended.get_layer(layer.name) is layer or not layer.weights
    # The module counts, a file keeps it, and the network without it is as it was.
    give_random_weights(extended)
    changed = extended(x, training=False)
    assert np.abs(changed - model(x, training=False)).max() > 0.01 * np.abs(changed).max()
    extended.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(load_model(tmp_path / "model.keras")(x), changed)
    np.testing.assert_array_equal(parts(extended, "ctx_final", extended.layers[-1].name)(x)[1], changed)


def test_behind_the_front_end_it_is_dilation8():
    model = MODELS["dilation_frontend"](3, **QUICK)
    for layers, context in ((7, BASIC), (8, BASIC), (8, LARGE), (10, BASIC)):
        whole = random_model(f"dilation{layers}", 3, **({"context": context} if layers == 8 else {}))
        extended = with_context(model, context, layers=layers)
        described = [{w.path: tuple(w.shape) for w in each.weights} for each in (extended, whole)]
        assert described[0] == described[1]
        assert transplant(whole, extended) == []
        x = images((21, 30))
        preprocessed = whole.get_layer("preprocessing").mean
        if preprocessed == extended.get_layer("preprocessing").mean:
            np.testing.assert_array_equal(extended(x, training=False), whole(x, training=False))


def test_a_network_that_ends_otherwise_gets_it_on_its_output():
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Softmax()(Conv2D(4, 3, padding="same", name="score")(image))
    model = keras.Model(image, x, name="probabilities")
    extended, picture = with_context(model, noise=0.0), images((9, 10)).astype("float32") / 255
    np.testing.assert_array_equal(extended(picture), model(picture))
    assert extended.get_layer("ctx_conv1_1").input is model.output
    # At stride 8, where a network ends with its scores in float32.
    small = with_context(MODELS["dilation_frontend"](3, upsample_logits=False, **QUICK))
    assert small.get_layer("ctx_conv1_1").input is small.get_layer("final").output
    assert [layer.name for layer in small.layers][-1] == "logits"


def test_logits_stay_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        image = keras.Input((None, None, 3))
        bare = with_context(keras.Model(image, Conv2D(4, 1, name="score")(image)))
        network = with_context(MODELS["dilation_frontend"](3, **QUICK))
    finally:
        keras.config.set_dtype_policy("float32")
    for model in (bare, network):
        assert model(images((9, 10)).astype("float32")).dtype == "float32"
        assert model.get_layer("ctx_fc1").compute_dtype == "bfloat16"


def test_what_it_cannot_be_plugged_behind_is_one_line():
    two_heads = MODELS["fcn8s"]({"semantic": 3, "geometric": 2}, **QUICK)
    front_end = MODELS["dilation_frontend"](3, **QUICK)
    classifier = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    for build, message in (
        (lambda: with_context(two_heads), r"fcn8s has several outputs \(semantic, geometric\): with_context expects one"),
        (lambda: with_context(MODELS["dilation7"](3, **QUICK)), "dilation7 has a context module already"),
        (lambda: with_context(with_context(front_end)), "dilation_frontend has a context module already"),
        (lambda: with_context(front_end, layers=9), "layers=9: expected one of 7, 8, 10"),
        (lambda: with_context(front_end, LARGE, layers=10), "context='large' with 10 layers: the paper has it for 8"),
        (lambda: with_context(front_end, "basics"), "context='basics': expected 'basic', 'large' or seven widths"),
        (lambda: with_context(front_end, (3, 3, 6, 0, 7, 6, 6)), r"context=.*: expected .* seven widths, whole numbers from 1"),
        (lambda: with_context("fcn8s"), r"received 'fcn8s': expected a built keras.Model"),
        (lambda: with_context(keras.Sequential([keras.layers.Dense(3)])), "expected a built keras.Model"),
        (lambda: with_context(classifier), r"gives shape \(None, 3\): with_context expects scores"),
        (lambda: with_context(MODELS["fcn8s"](3, null_background=True, **QUICK)), "scores its background 0"),
    ):
        with pytest.raises(KerassegError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


def test_names_are_there_before_they_are_used():
    assert "with_context" in dir(kerasseg) and kerasseg.with_context is with_context
    features = keras.Input((None, None, 6))
    assert context_module(features, layers=7).shape == (None, None, None, 6)
