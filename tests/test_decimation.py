"""VGG16's fully connected layers thinned out for DeepLab."""

import keras
import numpy as np
import pytest
from helpers import QUICK, kernels_at_zero

from kerasseg import KerassegError
from kerasseg.backbones.decimation import decimate_fc6, decimate_fc7, load_decimated_vgg16
from kerasseg.models import MODELS


def test_fc6_is_thinned_out_evenly_and_fc7_follows():
    # Entry (row, column, input, channel) says where it comes from.
    rows, columns, inputs, channels = np.ogrid[:7, :7, :2, :10]
    kernel, bias = rows * 1000 + columns * 100 + inputs * 10 + channels, np.arange(10.0)
    for size, cells in ((4, [0, 2, 4, 6]), (3, [0, 3, 6]), (7, list(range(7))), (2, [0, 6]), (1, [3])):
        thin, thin_bias, kept = decimate_fc6(kernel, bias, size=size, outputs=4)
        assert thin.shape == (size, size, 2, 4)
        np.testing.assert_array_equal(thin[:, 0, 0, 0] // 1000, cells)
        np.testing.assert_array_equal(thin[0, :, 0, 0] // 100 % 10, cells)
        np.testing.assert_array_equal(thin[0, 0, 1] - thin[0, 0, 0], np.full(4, 10))
        np.testing.assert_array_equal(thin[0, 0, 0] % 10, kept)
        np.testing.assert_array_equal(thin_bias, kept)
        assert len(set(kept)) == 4 and sorted(kept) == list(kept)
    np.testing.assert_array_equal(decimate_fc6(kernel, bias, size=3, outputs=10)[2], np.arange(10))
    subsets = [tuple(decimate_fc6(kernel, bias, size=3, outputs=4, seed=seed)[2]) for seed in (0, 0, 1, 2, 3)]
    assert subsets[0] == subsets[1] and len(set(subsets)) > 1
    seven, seven_bias = 100.0 * np.arange(10)[:, None] + np.arange(10), np.arange(10.0)
    thin, thin_bias = decimate_fc7(seven[None, None], seven_bias, inputs=np.array([1, 5, 6]), outputs=4)
    np.testing.assert_array_equal(thin[0, 0, :, 0] // 100, [1, 5, 6])
    np.testing.assert_array_equal(thin[0, 0, 0] % 100, thin_bias)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5, "outputs": 4}, "size=5: a kernel of 7×7 can be thinned out to sides of 1, 2, 3, 4, 7"),
        ({"size": 9, "outputs": 4}, "size=9"),
        ({"size": 0, "outputs": 4}, "size=0"),
        ({"size": 3, "outputs": 11}, "outputs=11: expected 1 to 10"),
        ({"size": 3, "outputs": 0}, "outputs=0: expected 1 to 10"),
    ],
)
def test_what_cannot_be_thinned_out_is_one_line(arguments, message):
    with pytest.raises(KerassegError, match=message) as error:
        decimate_fc6(np.zeros((7, 7, 2, 10)), np.zeros(10), **arguments)
    assert "\n" not in str(error.value)


class Classifier:
    """Weights under the names and in the shapes of Keras' VGG16, but for the number of channels of fc1 and fc2."""

    def __init__(self, channels):
        generator = np.random.default_rng(0)
        self.weights, inputs = {}, 3
        for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
            for index in range(1, count + 1):
                kernel = generator.standard_normal((3, 3, inputs, width), "float32")
                self.weights[f"block{block}_conv{index}"] = [kernel, generator.standard_normal(width, "float32")]
                inputs = width
        for name, rows in (("fc1", 7 * 7 * 512), ("fc2", channels)):
            # Their rows and columns by number: 0.001 · row + column would not fit float32 for all.
            kernel = np.broadcast_to(np.arange(rows, dtype="float32")[:, None], (rows, channels))
            self.weights[name] = [kernel, np.arange(channels, dtype="float32")]

    def get_layer(self, name):
        class Layer:
            get_weights = staticmethod(lambda: self.weights[name])

        return Layer


@pytest.mark.parametrize(
    ("arch", "channels", "branches", "cells"),
    [
        ("deeplab_v1", 4096, [""], [0, 2, 4, 6]),
        ("deeplab_v1_largefov", 1500, [""], [0, 3, 6]),
        ("deeplab_v2_vgg16", 1500, ["_1", "_2", "_3", "_4"], [0, 3, 6]),
    ],
)
def test_a_network_starts_from_the_classifier(arch, channels, branches, cells):
    with kernels_at_zero():
        model = MODELS[arch]()
    score = {layer.name: layer.get_weights() for layer in model.layers if layer.name.startswith("fc8_voc12") and layer.weights}
    classifier = Classifier(channels)
    load_decimated_vgg16(model, classifier)
    for ours, theirs in (("conv1_1", "block1_conv1"), ("conv5_3", "block5_conv3")):
        for received, expected in zip(model.get_layer(ours).get_weights(), classifier.weights[theirs], strict=True):
            np.testing.assert_array_equal(received, expected)
    for suffix in branches:
        (kernel, bias), (kernel7, bias7) = (model.get_layer(f"{name}{suffix}").get_weights() for name in ("fc6", "fc7"))
        # Row number of fc1 = (row · 7 + column) · 512 + input.
        rows, columns, inputs = np.array(cells)[:, None, None], np.array(cells)[:, None], np.arange(512)
        np.testing.assert_array_equal(kernel[..., 5], (rows * 7 + columns) * 512 + inputs)
        # fc7 reads those channels of fc6 that are there.
        np.testing.assert_array_equal(kernel7[0, 0, :, 3], bias)
        width = kernel.shape[-1]
        for kept in (bias, bias7):
            assert len(set(kept)) == width and set(kept) <= set(range(channels))
    assert len(score) == len(branches)
    for name, values in score.items():
        for received, expected in zip(model.get_layer(name).get_weights(), values, strict=True):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("arch", ["deeplab_v1", "deeplab_v1_largefov", "deeplab_v2_vgg16"])
def test_imagenet_weights_that_do_not_fit_are_one_line(arch, monkeypatch):
    with pytest.raises(KerassegError, match=f"are for width_multiplier=1; {arch} has 4 channels in conv1_1 instead of 64"):
        MODELS[arch](weights="imagenet", **QUICK)
    if arch != "deeplab_v1_largefov":
        return

    def unreachable(**arguments):
        raise Exception("URL fetch failure on vgg16.h5\nsecond line")

    monkeypatch.setattr(keras.applications, "VGG16", unreachable)
    for preprocessing, message in (
        ("torch", "pass preprocessing='caffe'"),
        ("caffe", r"downloaded \(URL fetch failure on vgg16.h5\)"),
    ):
        with pytest.raises(KerassegError, match=f"weights='imagenet'.*{message}") as error, kernels_at_zero():
            MODELS[arch](weights="imagenet", preprocessing=preprocessing)
        assert "\n" not in str(error.value)
