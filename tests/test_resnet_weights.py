"""Keras' ImageNet weights in our ResNets: the same function."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_varies, give_random_weights, kernels_at_zero

from kerasseg import KerassegError
from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import image_input, preprocess
from kerasseg.backbones.resnet import resnet
from kerasseg.backbones.resnet_weights import load_resnet_imagenet


def build(*, preprocessing=None, **arguments):
    image = image_input((None, None, 3))
    levels = resnet(preprocess(image, preprocessing), **{"depth": 50, "width_multiplier": 1, **arguments})
    return keras.Model(image, levels, name="trunk")


@pytest.fixture(scope="module")
def classifier():
    """Keras' ResNet50 with statistics and biases that matter."""
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3))
    return give_random_weights(model)


@pytest.mark.parametrize("form", ["caffe", "slim"])
def test_resnet50_is_keras_with_the_same_weights(form, classifier):
    # Caffe's form takes BGR, DeepLab v3's RGB; Keras' classifier takes BGR.
    model = build(form=form, preprocessing="caffe" if form == "caffe" else {"mean": (123, 116, 103)})
    load_resnet_imagenet(model, classifier)
    for size in ((225, 225), (97, 129)):
        image = np.random.default_rng(1).uniform(0, 255, (1, *size, 3)).astype("float32")
        mean = np.float32([104.00699, 116.66877, 122.67892] if form == "caffe" else [103, 116, 123])
        expected = classifier(image[..., ::-1] - mean, training=False)
        assert_varies(expected)
        assert_close(model(image, training=False)[32], expected, 1e-5)


def test_without_preprocessing_each_form_takes_its_own_order_of_colours(classifier):
    x = np.random.default_rng(0).normal(0, 60, (1, 33, 65, 3)).astype("float32")
    expected = classifier(x, training=False)
    for form, image in (("caffe", x), ("slim", x[..., ::-1])):
        model = build(form=form)
        load_resnet_imagenet(model, classifier)
        assert_close(model(image, training=False)[32], expected, 1e-5)


@pytest.mark.parametrize(("depth", "source", "target"), [(101, "conv4_block23_2", "res4b22"), (152, "conv3_block8_2", "res3b7")])
def test_deeper_networks_find_their_layers(depth, source, target):
    with kernels_at_zero():
        deeper = getattr(keras.applications, f"ResNet{depth}")(weights=None, include_top=False)
        model = build(depth=depth, form="caffe")
    kernel = np.random.default_rng(0).normal(size=deeper.get_layer(f"{source}_conv").kernel.shape).astype("float32")
    deeper.get_layer(f"{source}_conv").set_weights([kernel, np.zeros(kernel.shape[-1])])
    load_resnet_imagenet(model, deeper)
    filled = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and np.any(layer.kernel)]
    assert filled == [f"{target}_branch2b"]
    np.testing.assert_array_equal(model.get_layer(filled[0]).kernel, kernel)


def test_weights_that_do_not_fit_are_one_line(monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure\nand more")

    monkeypatch.setattr(keras.applications, "ResNet50", fail)
    with kernels_at_zero():
        models = {
            "Keras publishes none for trunk with a torchvision or beta": build(form="torchvision"),
            "pass weights=None, a file's path, or a backbone such as 'resnet101'": build(form="slim", root="beta"),
            r"conv1 of trunk has a kernel of shape \(7, 7, 3, 4\)": build(form="caffe", width_multiplier=1 / 16),
            "preprocessing scales by": build(form="caffe", preprocessing="torch"),
            r"could not be downloaded \(URL fetch failure\); pass weights=None": build(form="slim"),
        }
    for message, model in models.items():
        with pytest.raises(KerassegError, match=message) as error:
            load_resnet_imagenet(model)
        assert "\n" not in str(error.value)
    forms = [f"resnet{depth}{form}" for depth in (50, 101, 152) for form in ("", "_beta", "_caffe", "_msra", "_torchvision")]
    published = {name for name in forms if BACKBONES[name].load_imagenet}
    assert published == {f"resnet{depth}{form}" for depth in (50, 101, 152) for form in ("", "_caffe", "_msra")}
