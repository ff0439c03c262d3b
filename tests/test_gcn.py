"""GCN against the arithmetic of its paper, and against NumPy written from its figures: there is no network of the authors'."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, kernels_at_zero, parts

from kerasseg import KerassegError
from kerasseg.export import Target, export_model
from kerasseg.layers import Conv2D, FitLike
from kerasseg.models import MODELS

CLASSES = 5
HEADS = {"gcn": {"kernel_size": 7}, "none": {}, "conv": {"kernel_size": 5}, "stack": {"kernel_size": 7, "stack_width": 96}}


def build(num_classes=CLASSES, **arguments):
    return MODELS["gcn"](num_classes, **{**QUICK, "backbone": "resnet50_msra", **arguments})


@cache
def _shared(head, backbone, boundary_refinement, preprocessing):
    arguments = {"head": head, "backbone": backbone, "boundary_refinement": boundary_refinement, **HEADS[head]}
    return give_random_weights(build(preprocessing=preprocessing, **arguments), 3)


def shared(head="gcn", backbone="resnet50_msra", boundary_refinement=True, preprocessing="caffe"):
    """A network with random weights; tests must leave it as it is."""
    return _shared(head, backbone, boundary_refinement, preprocessing)


# The network by its figures, in float64.


class Plain:
    """The layers of a network by name, as NumPy functions of maps (B, h, w, C)."""

    def __init__(self, model):
        self.weights = {layer.name: [value.astype("float64") for value in layer.get_weights()] for layer in model.layers}

    def convolve(self, x, name):
        kernel, bias = self.weights[name]
        rows, columns = kernel.shape[:2]
        padded = np.pad(x, [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)])
        height, width = x.shape[1:3]
        taps = (padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in np.ndindex(rows, columns))
        return sum(taps) + bias

    def deconvolve(self, x, name):
        """Every cell adds its 4×4 patch at twice its place; one cell is cut off on each side."""
        (kernel,) = self.weights[name]
        batch, height, width, channels = x.shape
        result = np.zeros((batch, 2 * height + 2, 2 * width + 2, channels))
        for i, j in np.ndindex(4, 4):
            result[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += x @ kernel[i, j].T
        return result[:, 1:-1, 1:-1]

    def refine(self, x, name):
        if f"{name}1" not in self.weights:
            return x
        return x + self.convolve(np.maximum(self.convolve(x, f"{name}1"), 0), f"{name}2")

    def head(self, x, level, head):
        if head == "gcn":
            first = self.convolve(self.convolve(x, f"gcn{level}_a1"), f"gcn{level}_a2")
            return first + self.convolve(self.convolve(x, f"gcn{level}_b1"), f"gcn{level}_b2")
        if head == "stack":
            for index in (1, 2, 3):
                x = self.convolve(x, f"stack{level}_{index}")
            return x
        return self.convolve(x, {"none": f"score{level}", "conv": f"large{level}"}[head])

    def decode(self, maps, head):
        """Figure 2 A, from maps by their level to logits of four times the finest one's size."""
        x = None
        for level in (5, 4, 3, 2):
            score = self.refine(self.head(maps[level], level, head), f"level{level}_br")
            if x is not None:
                x = self.deconvolve(x, f"up{level}")[:, : score.shape[1], : score.shape[2]]
                score = self.refine(x + score, f"sum{level}_br")
            x = score
        x = self.refine(self.deconvolve(x, "up1"), "up1_br")
        return self.refine(self.deconvolve(x, "up0"), "up0_br")


ENDS = {"resnet50_msra": "res5c res4f res3d res2c", "resnet50_caffe": "res5c res4f res3d res2c"}
BUILT = [(head, "resnet50_msra", True) for head in HEADS] + [("gcn", "resnet50_caffe", True), ("gcn", "resnet50_msra", False)]


@pytest.mark.parametrize(("head", "backbone", "refined"), BUILT)
def test_the_decoder_is_the_papers(head, backbone, refined):
    model = shared(head, backbone, refined)
    names = ENDS[backbone].split()
    for size in ((64, 96), (65, 97)):
        *maps, logits = parts(model, *names, "logits")(images(size).astype("float32"), training=False)
        maps = {level: np.float64(x) for level, x in zip((5, 4, 3, 2), maps, strict=True)}
        expected = Plain(model).decode(maps, head)[:, : size[0], : size[1]]
        assert_varies(expected)
        assert_close(logits, expected, 1e-5)


def test_every_layer_with_weights_is_in_the_figure():
    """Nine refinements, five deconvolutions, four heads; the rest is the backbone."""
    for head, count in (("gcn", 4 * 4), ("none", 4), ("conv", 4), ("stack", 4 * 3)):
        layers = [layer for layer in shared(head).layers if layer.weights]
        ours = [layer for layer in layers if not layer.name.startswith(("res", "bn", "conv1"))]
        refinements = [layer for layer in ours if "_br" in layer.name]
        upsamplings = [layer.name for layer in ours if isinstance(layer, keras.layers.Conv2DTranspose)]
        assert len(refinements) == 2 * 9 and upsamplings == ["up4", "up3", "up2", "up1", "up0"]
        assert len(ours) == count + 2 * 9 + 5
    plain = [layer.name for layer in shared(boundary_refinement=False).layers]
    assert not any(name.endswith(("_br", "_br1", "_br2")) for name in plain) and "up0" in plain


def test_nothing_but_the_refinement_has_a_nonlinearity():
    for head in HEADS:
        layers = [layer for layer in shared(head).layers if isinstance(layer, Conv2D) and layer.use_bias]
        activated = {layer.name for layer in layers if layer.activation is not keras.activations.linear}
        assert activated == {layer.name for layer in layers if layer.name.endswith("_br1")}


# Kernels after res5 with 21 classes, without biases: the thousands of the tables, of which the first is cut off and not rounded,
# and the product worked by hand.
TABLES = [
    ("gcn", 3, None, 260, 2 * 3 * (2048 + 21) * 21),
    ("gcn", 5, None, 434, 2 * 5 * (2048 + 21) * 21),
    ("gcn", 7, None, 608, 2 * 7 * (2048 + 21) * 21),
    ("gcn", 9, None, 782, 2 * 9 * (2048 + 21) * 21),
    ("conv", 3, None, 387, 9 * 2048 * 21),
    ("conv", 5, None, 1075, 25 * 2048 * 21),
    ("conv", 7, None, 2107, 49 * 2048 * 21),
    ("conv", 9, None, 3484, 81 * 2048 * 21),
    ("stack", 7, 2048, 75_885, 9 * 2048 * (2048 + 2048 + 21)),
    ("stack", 7, None, 75_885, 9 * 2048 * (2048 + 2048 + 21)),
    ("stack", 7, 1024, 28_505, 9 * 1024 * (2048 + 1024 + 21)),
    ("stack", 7, 210, 4_307, 9 * 210 * (2048 + 210 + 21)),
]


@pytest.mark.parametrize(("head", "k", "m", "thousands", "exact"), TABLES)
def test_parameters_after_res5_are_those_of_tables_2_and_4(head, k, m, thousands, exact):
    with kernels_at_zero():
        model = build(21, width_multiplier=1.0, head=head, kernel_size=k, stack_width=m, boundary_refinement=False)
    names = ("gcn5_", "large5", "stack5_")
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, Conv2D) and layer.name.startswith(names)]
    assert all(kernel.shape[2] in (2048, 21, m) for kernel in kernels)
    assert sum(np.prod(kernel.shape) for kernel in kernels) == exact
    assert abs(exact - 1000 * thousands) < 700


def test_a_stack_is_no_wider_than_its_level():
    model = build(head="stack", kernel_size=5, stack_width=1024, width_multiplier=1 / 8)
    # 1024 / 8 between; res3 and res2 have 512 / 8 and 256 / 8.
    widths = {level: model.get_layer(f"stack{level}_1").filters for level in (5, 4, 3, 2)}
    assert widths == {5: 128, 4: 128, 3: 64, 2: 32}
    assert all(model.get_layer(f"stack{level}_2").filters == CLASSES for level in widths)


def test_a_branch_without_inner_bias_is_one_convolution_of_the_outer_product():
    model = shared()
    plain = Plain(model)
    x = np.random.default_rng(0).normal(size=(1, 12, 13, 128))
    for branch, order in (("a", "yio,xop->yxip"), ("b", "xio,yop->yxip")):
        (first, bias), (second, _) = (plain.weights[f"gcn5_{branch}{n}"] for n in (1, 2))
        first, second = (kernel.reshape(7, *kernel.shape[2:]) for kernel in (first, second))
        plain.weights["whole"] = [np.einsum(order, first, second), plain.weights[f"gcn5_{branch}2"][1]]
        layers = [model.get_layer(f"gcn5_{branch}{n}") for n in (1, 2)]
        one = tf.nn.conv2d(np.float32(x), layers[0].kernel, 1, "SAME")
        received = tf.nn.bias_add(tf.nn.conv2d(one, layers[1].kernel, 1, "SAME"), layers[1].bias)
        expected = plain.convolve(x, "whole")
        assert_close(received, expected, 1e-5)
        # With the inner bias the layers give something else: it was random.
        assert np.abs(bias).max() > 0.1
        assert np.abs(layers[1](layers[0](np.float32(x))) - expected).max() > 0.01 * np.abs(expected).max()


def test_at_first_the_network_adds_bilinear_maps_and_refines_nothing():
    model = build(head="none")
    x = images((64, 96)).astype("float32")
    names = [f"level{level}_br" for level in (5, 4, 3, 2)] + [f"score{level}" for level in (5, 4, 3, 2)]
    *scores, logits = parts(model, *names, "logits")(x, training=False)
    for refined, plain in zip(scores[:4], scores[4:], strict=True):
        np.testing.assert_array_equal(refined, plain)
    total = np.float64(scores[0])
    line = np.array([0.25, 0.75, 0.75, 0.25])
    for score in (*scores[1:4], 0, 0):
        wide = np.zeros((total.shape[0], *(2 * n + 2 for n in total.shape[1:3]), CLASSES))
        for i, j in np.ndindex(4, 4):
            wide[:, i : i + 2 * total.shape[1] : 2, j : j + 2 * total.shape[2] : 2] += line[i] * line[j] * total
        total = wide[:, 1:-1, 1:-1] + np.float64(score)
    assert_varies(total)
    assert_close(logits, total, 1e-5)


# Sizes.


@pytest.mark.parametrize(("pixels", "cells"), [(512, 16), (640, 20), (800, 25)])
def test_maps_have_the_sizes_of_the_paper(pixels, cells):
    names = ("padding", "res5c", "res4f", "res3d", "res2c", "up1", "up0", "logits")
    for given in (pixels, pixels - 31):
        shapes = parts(shared(), *names).compute_output_shape((1, given, given, 3))
        sides = [shape[1] for shape in shapes]
        assert sides == [pixels, cells, 2 * cells, 4 * cells, 8 * cells, 16 * cells, pixels, given]
        assert all(shape[1] == shape[2] for shape in shapes)


def test_off_the_grid_is_padding_with_zeros_and_cutting():
    model, fixed = shared(preprocessing=None), images((65, 97)).astype("float32") - 128
    padded = np.zeros((2, 96, 128, 3), "float32")
    padded[:, :65, :97] = fixed
    expected = model(padded, training=False)[:, :65, :97]
    assert_varies(expected)
    assert_close(model(fixed, training=False), expected, 1e-6)
    # Behind the preprocessing: what is padded is the mean, not black.
    model, image = shared(), images((65, 97)).astype("float32")
    mean = np.float32([122.67892, 116.66877, 104.00699])
    grey = np.broadcast_to(mean, (2, 96, 128, 3)).copy()
    grey[:, :65, :97] = image
    assert_close(model(image, training=False), model(grey, training=False)[:, :65, :97], 1e-5)
    grey[:, 65:] = 0
    with pytest.raises(AssertionError):
        assert_close(model(image, training=False), model(grey, training=False)[:, :65, :97], 1e-3)


def test_a_map_is_brought_to_another_size_at_its_end():
    x = np.arange(2 * 3 * 4).reshape(1, 3, 4, 2).astype("float32")
    for height, width in ((2, 3), (3, 4), (5, 4), (2, 6), (5, 7)):
        rows, columns = np.minimum(np.arange(height), 2), np.minimum(np.arange(width), 3)
        expected = x[:, rows][:, :, columns]
        reference = np.zeros((1, height, width, 1), "float32")
        np.testing.assert_array_equal(FitLike()([x, reference]), expected)
        unknown = [tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, 1))]
        traced = tf.function(lambda x, reference: FitLike()([x, reference]), unknown)
        np.testing.assert_array_equal(traced(x, reference), expected)


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet_v2", "xception", "inception_v3", "resnet50", "resnet50_torchvision"])
def test_any_backbone_gives_logits_of_the_images_size(backbone):
    width = 1.0 if backbone in ("vgg16", "xception", "inception_v3") else 0.35
    with kernels_at_zero():
        model = build(backbone=backbone, width_multiplier=width, kernel_size=3)
    for size in ((96, 131), (128, 160)):
        assert model(images(size, batch=1), training=False).shape == (1, *size, CLASSES)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)


# The narrow network as a file.


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_the_narrow_network_is_a_tflite_file(size, tmp_path):
    pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed: pip install 'kerasseg[lite]'")
    exported = export_model(shared(), tmp_path / "gcn.tflite", Target(input_size=size), measure_latency=False)
    parity = exported.description.parity
    assert 0 < parity["relative_error"] < 1e-4 and parity["argmax_agreement"] > 0.99


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 14}, "kernel_size=14: expected an odd number from 1 for head='gcn', .* e.g. kernel_size=15$"),
        ({"kernel_size": 0}, "kernel_size=0: expected an odd number"),
        ({"kernel_size": -3}, "kernel_size=-3: expected an odd number"),
        ({"kernel_size": 7.0}, "kernel_size=7.0: expected an odd number"),
        ({"kernel_size": True}, "kernel_size=True: expected an odd number"),
        ({"kernel_size": (7, 7)}, r"kernel_size=\(7, 7\): expected an odd number"),
        ({"head": "stack", "kernel_size": 1}, "kernel_size=1: expected an odd number from 3 for head='stack'"),
        ({"head": "gnc"}, "head='gnc': expected one of 'gcn', 'none', 'conv', 'stack'"),
        ({"head": "stack", "stack_width": 0}, "stack_width=0: expected a number of channels from 1, or None for the level's own"),
        ({"stack_width": 64}, "stack_width=64 has no meaning for head='gcn': pass head='stack', or stack_width=None"),
        ({"head": "stack", "stack_width": 2.5}, "stack_width=2.5: expected a number of channels"),
        ({"backbone": "resnet50_mrsa"}, "unknown backbone 'resnet50_mrsa': did you mean 'resnet50_msra'"),
        ({"weights": "imagenet", "backbone": "resnet50_gcn"}, "weights='imagenet': Keras publishes none for gcn"),
        ({"weights": "imagenet"}, r"weights='imagenet' are for three colours and width_multiplier=1"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    with pytest.raises(KerassegError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_a_backbone_without_one_of_the_levels_is_named(monkeypatch):
    from kerasseg.models import gcn

    trunk = gcn.BACKBONES["resnet50_msra"]
    short = trunk._replace(build=lambda x, **arguments: {k: v for k, v in trunk.build(x, **arguments).items() if k != 8})
    monkeypatch.setattr(gcn, "BACKBONES", {"short": short})
    with pytest.raises(KerassegError, match="backbone='short' has no map of stride 8: pass another, e.g. backbone='resnet50_msra'"):
        build(backbone="short")
