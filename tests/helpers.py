"""What several test files share: networks with weights worth comparing, images, Caffe's layout."""

import gc
from contextlib import contextmanager

import keras
import numpy as np
import pytest

from kerasseg.backbones.building import accepts
from kerasseg.layers import BilinearUpsampling
from kerasseg.models import MODELS
from kerasseg.ops import bilinear_kernel

QUICK = {"width_multiplier": 1 / 16}


def images(size=(64, 96), batch=2, channels=3, seed=0, block=16):
    """Random flat blocks, uint8: white noise would average out to the same logits everywhere."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (batch, *(-(-n // block) for n in size), channels), np.uint8)
    return coarse.repeat(block, axis=1).repeat(block, axis=2)[:, : size[0], : size[1]]


def give_random_weights(model, seed=0):
    """Replaces every weight: freshly built score layers are zero, and comparing 0 with 0 proves nothing."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        shape, kind = tuple(weight.shape), weight.name.rsplit("/")[-1]
        if len(shape) > 1:
            # He: as much comes out of a ReLU as goes in.
            value = generator.standard_normal(shape, "float32") * float(np.sqrt(2 / np.prod(shape[:-1])))
        elif kind in ("bias", "beta", "moving_mean"):
            value = generator.normal(0, 0.5, shape)
        else:
            value = generator.uniform(0.5, 1.5, shape)
        weight.assign(value.astype("float32"))
    return model


@contextmanager
def kernels_at_zero():
    """Builds at full width without 134 million random numbers that nobody looks at, and without the last such network, a cycle."""
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        for initializer in (keras.initializers.HeNormal, keras.initializers.GlorotUniform, keras.initializers.RandomNormal):
            patch.setattr(initializer, "__call__", keras.initializers.Zeros().__call__)
        yield


def random_model(arch, num_classes=5, seed=0, **arguments):
    return give_random_weights(MODELS[arch](num_classes, **QUICK, **arguments), seed)


def assert_close(received, expected, tolerance=1e-4):
    """Compares relative to the largest expected value, which must not be 0."""
    received, expected = np.asarray(received, "float64"), np.asarray(expected, "float64")
    assert received.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.isfinite(expected).all() and largest > 0
    difference = np.abs(received - expected).max() / largest
    assert difference <= tolerance, f"differs by {difference:.2e} of the largest value {largest:.3g}"


def assert_varies(logits):
    """Demands that logits differ from image to image, place to place and class to class, and are finite."""
    logits = np.asarray(logits, "float64")
    assert np.isfinite(logits).all()
    for axis in range(4):
        if logits.shape[axis] > 1:
            assert np.ptp(logits, axis=axis).max() > 0.01 * np.abs(logits).max(), f"constant along axis {axis}"


def parts(model, *names):
    """The same network with other outputs, by layer name."""
    return keras.Model(model.input, [model.get_layer(name).output for name in names])


def supported(builder, **arguments):
    """Those arguments that the builder takes."""
    return {name: value for name, value in arguments.items() if accepts(builder, name)}


def diagonal(kernel, channels):
    """One (k, k) kernel a channel, as a dense one in Keras' layout."""
    return np.einsum("hw,oi->hwoi", kernel, np.eye(channels)).astype("float32")


def transposed_convolution(x, kernel_size, stride):
    """Bilinear upsampling in the literal form: each cell adds a scaled tent, written from the formula, to the output."""
    factor = -(-kernel_size // 2)
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    tent = np.array([1 - abs(i - centre) / factor for i in range(kernel_size)])
    x = np.asarray(x, "float64")
    _, height, width, _ = x.shape
    rows, columns = (np.zeros((n, (n - 1) * stride + kernel_size)) for n in (height, width))
    for matrix in (rows, columns):
        for cell, row in enumerate(matrix):
            row[cell * stride : cell * stride + kernel_size] = tent
    return np.einsum("bhwc,hy,wx->byxc", x, rows, columns)


def to_caffe(model):
    """A model's weights as a Caffe file would hold them, fixed bilinear kernels included."""
    blobs = {}
    for layer in model.layers:
        if layer.weights:
            values = layer.get_weights()
            blobs[layer.name] = [value.transpose(3, 2, 0, 1) if value.ndim == 4 else value for value in values]
        elif isinstance(layer, BilinearUpsampling):
            kernel = diagonal(bilinear_kernel(layer.kernel_size), layer.output.shape[-1])
            blobs[layer.name] = [kernel.transpose(3, 2, 0, 1)]
    return blobs
