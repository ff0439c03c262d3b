"""The networks of keras.applications as trunks: preprocessing, names, weights, smallest images."""

import keras
import numpy as np
import pytest
from dense_helpers import difference, features, picture, randomized, rescales
from helpers import assert_close, images

from kerasseg import KerassegError
from kerasseg.backbones import BACKBONES
from kerasseg.backbones.applications import stable_names
from kerasseg.evaluation.loading import copy_weights
from kerasseg.layers import BatchNormalization, Normalization, Preprocessing
from kerasseg.models import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:`input_shape` is undefined")
# Ours aside.
NAMES = [name for name in BACKBONES if not name.startswith(("resnet50", "resnet101", "resnet152")) or name.endswith("_v2")]
# The beginning of the names of those rows that a module of keras.applications serves, the first that fits.
MODULES = {
    "vgg16": "vgg16",
    "vgg19": "vgg19",
    "keras_resnet": "resnet",
    "resnet": "resnet_v2",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3",
    "mobilenet": "mobilenet",
    "densenet": "densenet",
    "efficientnet_v2": "efficientnet_v2",
    "efficientnet": "efficientnet",
    "xception": "xception",
    "inception_v3": "inception_v3",
    "inception_resnet_v2": "inception_resnet_v2",
}


def module_of(name):
    return getattr(keras.applications, next(module for prefix, module in MODULES.items() if name.startswith(prefix)))


def test_the_rows_are_all_here():
    assert len(NAMES) == 33 and {module_of(name) for name in NAMES} == {getattr(keras.applications, m) for m in MODULES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_that_of_the_module(name):
    image = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    expected = module_of(name).preprocess_input(image.copy())
    preset = BACKBONES[name].preprocessing
    received = image if preset is None else np.asarray(Preprocessing.of(preset)(image))
    # The authors' mean of red is 122.679, Keras' 123.68; the other presets span a few units.
    np.testing.assert_allclose(received, expected, rtol=0, atol={"caffe": 1.01, "tf": 1e-5, "torch": 1e-5, None: 0.0}[preset])


# One of each family, and the size from which on its last map has a cell, worked out from its layers. A convolution or pool with a
# window of k and a stride of 2 without padding gives ⌊(n − k) / 2⌋ + 1 cells, so that n must be 2 · cells + k − 2.
# VGG: five pools of 2. MobileNet: a padded stride (n = 2 · 16 − 1 gives 16), then four of one zero row in front of 3: 16 → 1.
# EfficientNet: five of the latter. DenseNet: 29 → 15 → 8 with padding, then three pools of 2. Inception: 3 of stride 2, 3 without
# padding, pools of 3, two more windows of 3 with stride 2. Xception: 7 → 3 → 1, then padding throughout.
SMALLEST = {
    "vgg16": 32,
    "vgg19": 32,
    "keras_resnet50": 1,
    "resnet50_v2": 1,
    "mobilenet": 31,
    "mobilenet_v2": 31,
    "mobilenet_v3_small": 31,
    "mobilenet_v3_large": 31,
    "densenet121": 29,
    "efficientnet_b0": 32,
    "efficientnet_v2_b0": 1,
    "xception": 7,
    "inception_v3": 75,
    "inception_resnet_v2": 75,
}
QUICKLY = ("vgg16", "mobilenet_v2", "mobilenet_v3_small", "keras_resnet50", "densenet121", "efficientnet_b0", "xception")


def test_every_size_of_a_family_has_its_familys_minimum():
    families = {module_of(name): size for name, size in SMALLEST.items()}
    assert {name: BACKBONES[name].minimum_size for name in NAMES} == {name: families[module_of(name)] for name in NAMES}


@pytest.mark.parametrize("name", QUICKLY)
def test_the_smallest_size_is_the_first_that_leaves_a_cell(name):
    least = SMALLEST[name]
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, BACKBONES[name].build(image, output_stride=8)[8])
    assert trunk.compute_output_shape((1, least, 300, 3))[1] >= 1
    assert trunk(np.zeros((1, least, least, 3), "float32")).shape[1] >= 1
    if least > 1:
        for shape in ((1, least - 1, 300, 3), (1, 300, least - 1, 3)):
            try:
                cells = min(trunk.compute_output_shape(shape)[1:3])
            except ValueError as error:
                assert "zero or negative" in str(error)
            else:
                assert cells < 1


def built(name, output_stride=16, **arguments):
    image = keras.Input((None, None, 3), name="image")
    # Behind another layer, as in a network: the graph is continued, not nested.
    x = keras.layers.Rescaling(1.0, name="before")(image)
    levels = BACKBONES[name].build(x, output_stride=output_stride, **arguments)
    return keras.Model(image, levels[output_stride])


def test_backbones_extend_a_graph_with_names_that_last():
    first, second = (built("mobilenet_v3_small", width_multiplier=1 / 16) for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert not any(isinstance(layer, keras.Model) for layer in first.layers)
    assert first.get_layer("expanded_conv_depthwise").input.shape[-1] == 16
    assert first(picture(65)).shape == (1, 4, 4, 48)
    eight = built("mobilenet_v3_small", 8, width_multiplier=1 / 16)
    eight.set_weights(first.get_weights())
    assert stable_names(["conv2d_7", "stem_conv", "conv2d_10", "add_2"]) == {
        "conv2d_7": "conv2d",
        "conv2d_10": "conv2d_1",
        "stem_conv": "stem_conv",
        "add_2": "add",
    }


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("xception", {"width_multiplier": 0.5}, "width_multiplier=0.5, but keras.applications.Xception has one width"),
        ("mobilenet", {"width_multiplier": 0}, "width_multiplier=0: expected a number above 0"),
        ("mobilenet", {"multi_grid": (1, 2, 4)}, "multi_grid=.1, 2, 4. for MobileNet"),
        ("mobilenet", {"output_stride": 64}, "output_stride=64: expected one of 4, 8, 16, 32, e.g."),
    ],
)
def test_backbones_refuse(name, arguments, message):
    with pytest.raises(KerassegError, match=message):
        built(name, **arguments)


def published(monkeypatch):
    """Keras' download, without a network: the published graph with random weights."""
    nets = []
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: "")

    def load(net, *_, **__):
        nets.append(randomized(net, picture(96, rescales=True)))

    monkeypatch.setattr(keras.Model, "load_weights", load)
    return nets


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_published_weights_arrive_in_the_layers_of_their_names(name, monkeypatch):
    nets = published(monkeypatch)
    model = built(name, 32)
    BACKBONES[name].load_imagenet(model)
    # EfficientNet's published form has one layer more, which rescales.
    image = picture(97, rescales=rescales(nets[0]))
    assert difference(features(model, image), features(nets[0], image)) <= 1e-5
    if name == "mobilenet_v2":
        with pytest.raises(KerassegError, match="in layer Conv1, .* they are for width_multiplier=1"):
            BACKBONES[name].load_imagenet(built(name, width_multiplier=1 / 4))


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure\non https://…")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", fail)
    with pytest.raises(KerassegError, match=r"could not be downloaded \(URL fetch failure\); pass weights=None"):
        BACKBONES["mobilenet"].load_imagenet(built("mobilenet", width_multiplier=1 / 4))


def test_every_listed_backbone_exists():
    for name in BACKBONES:
        assert callable(BACKBONES[name].build)


def test_loading_demands_the_preprocessing_that_the_weights_know(monkeypatch):
    def with_preprocessing(name, preprocessing):
        image = keras.Input((None, None, 3))
        x = image if preprocessing is None else Preprocessing.of(preprocessing)(image)
        return keras.Model(image, BACKBONES[name].build(x, output_stride=32)[32])

    def fail(*_, **__):
        raise Exception("would be downloaded")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", fail)
    wrong = [
        ("mobilenet_v2", "torch"),
        ("mobilenet_v2", "caffe"),
        ("vgg16", "tf"),
        ("vgg16", {"mean": (123.68, 116.779, 103.939)}),
        ("efficientnet_b0", "tf"),
    ]
    for name, preprocessing in wrong:
        with pytest.raises(KerassegError, match="expect .* but preprocessing has order=.* pass preprocessing='backbone'") as error:
            BACKBONES[name].load_imagenet(with_preprocessing(name, preprocessing))
        assert "\n" not in str(error.value)
    right = [("mobilenet_v2", "tf"), ("mobilenet_v2", None), ("efficientnet_b0", None)]
    right.append(("vgg16", {"order": (2, 1, 0), "mean": (103.939, 116.779, 123.68)}))
    for name, preprocessing in right:
        with pytest.raises(KerassegError, match="would be downloaded"):
            BACKBONES[name].load_imagenet(with_preprocessing(name, preprocessing))


def test_batch_norms_take_the_momentum_and_keep_their_epsilon():
    for batch_norm, momentum in ((None, 0.999), ({"epsilon": 0.5}, 0.999), ({"momentum": 0.9, "epsilon": 0.5}, 0.9)):
        layers = built("mobilenet_v2", width_multiplier=1 / 4, batch_norm=batch_norm).layers
        received = {
            (layer.momentum, layer.epsilon, layer.synchronized) for layer in layers if isinstance(layer, BatchNormalization)
        }
        assert received == {(momentum, 1e-3, True)}
    arguments = {"batch_norm_momentum": 0.9, "batch_norm_epsilon": 0.5}
    model = MODELS["deeplab_v3"](5, backbone="mobilenet_v2", width_multiplier=1 / 4, **arguments)
    received = {(layer.momentum, layer.epsilon) for layer in model.layers if isinstance(layer, BatchNormalization)}
    assert received == {(0.9, 1e-3), (0.9, 0.5)}


@pytest.fixture(scope="module")
def efficient():
    """DeepLab v3 on a network that begins with statistics of its own, and its logits."""
    model = MODELS["deeplab_v3"](5, backbone="efficientnet_b0")
    (layer,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    assert type(layer) is Normalization
    mean, variance = np.float32([0.485, 0.456, 0.406]), np.float32([0.0524, 0.0502, 0.0506])
    layer.set_weights([mean, variance, *layer.get_weights()[2:]])
    image = images((65, 97))
    # By NumPy, so that not all copies below are wrong together.
    received = keras.Model(model.input, layer.output)(image)
    np.testing.assert_allclose(received, (image / np.float32(255) - mean) / np.sqrt(variance), rtol=1e-4, atol=1e-4)
    return model, image, model(image, training=False)


def test_statistics_of_the_image_move_with_the_weights(efficient, tmp_path):
    model, image, expected = efficient

    def another(**arguments):
        return MODELS["deeplab_v3"](5, backbone="efficientnet_b0", **arguments)

    other = another(output_stride=16)
    first = other.get_weights()
    # Traced before: what a graph holds must not be the old numbers.
    other.predict(image, verbose=0)
    with pytest.raises(AssertionError):
        assert_close(other(image, training=False), expected, 0.01)
    other.set_weights(model.get_weights())
    assert_close(other(image, training=False), expected, 1e-6)
    assert_close(other.predict(image, verbose=0), expected, 1e-5)
    other.set_weights(first)
    for weight, value in zip(other.weights, model.get_weights(), strict=True):
        weight.assign(value)
    assert_close(other(image, training=False), expected, 1e-6)
    other.set_weights(first)
    copy_weights(model, other)
    assert_close(other(image, training=False), expected, 1e-6)
    model.save(tmp_path / "model.keras")
    assert_close(another(weights=tmp_path / "model.keras")(image, training=False), expected, 1e-6)


@pytest.mark.parametrize("given", [{}, {"mean": (1.0, 2.0, 3.0), "variance": (4.0, 0.25, 1.0)}], ids=["weights", "constants"])
@pytest.mark.parametrize("invert", [False, True])
def test_normalisation_is_keras(invert, given):
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 3)).astype("float32")
    ours, keras_own = (kind(axis=-1, invert=invert, **given) for kind in (Normalization, keras.layers.Normalization))
    for layer in (ours, keras_own):
        layer.build(x.shape)
        if not given:
            layer.adapt(x)
    np.testing.assert_allclose(ours(x), keras_own(x), rtol=1e-6, atol=1e-6)
    assert [(w.name, w.shape, w.dtype) for w in ours.weights] == [(w.name, w.shape, w.dtype) for w in keras_own.weights]
    assert ours.get_config() == {**keras_own.get_config(), "name": ours.name}
