"""FCN-GoogLeNet against the numbers of the paper and against OpenCV's reading of the public definition."""

import keras
import numpy as np
import pytest
from caffe_files import caffemodel_bytes, prototxt
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, kernels_at_zero, parts, to_caffe

from kerasseg import KerassegError
from kerasseg.interop import load_caffe
from kerasseg.layers import Conv2D, CropLike, coordinate_map, receptive_field
from kerasseg.models import MODELS

CLASSES = 5
MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
# The public definition's table, at full width: 1×1 | 3×3 reduce, 3×3 | 5×5 reduce, 5×5 | projection.
WIDTHS = dict(
    zip(
        MODULES,
        [
            (64, 96, 128, 16, 32, 32),
            (128, 128, 192, 32, 96, 64),
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
            (256, 160, 320, 32, 128, 128),
            (384, 192, 384, 48, 128, 128),
        ],
        strict=True,
    )
)
BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")


def build(**arguments):
    return MODELS["fcn_googlenet"](CLASSES, **{**QUICK, **arguments})


@pytest.fixture(scope="module")
def full_width():
    with kernels_at_zero():
        return MODELS["fcn_googlenet"]()


def test_six_million_parameters_in_22_layers(full_width):
    assert round(full_width.count_params() / 1e6, 1) == 6.0
    convolutions = {layer.name: layer for layer in full_width.layers if isinstance(layer, Conv2D)}
    assert len(convolutions) == 3 + 9 * 6 + 1
    for module, widths in WIDTHS.items():
        names = [f"inception_{module}_{branch}" for branch in BRANCHES]
        assert tuple(convolutions[name].filters for name in names) == widths
        assert [convolutions[name].kernel_size[0] for name in names] == [1, 1, 3, 1, 5, 1]
    assert longest_path(full_width.get_layer("score_fr").output, {}) == 22


def longest_path(tensor, known):
    """The most convolutions that a path from the image to here goes through."""
    if id(tensor) not in known:
        layer, node, _ = tensor._keras_history
        before = [longest_path(x, known) for x in layer._inbound_nodes[node].input_tensors]
        known[id(tensor)] = max(before, default=0) + isinstance(layer, Conv2D)
    return known[id(tensor)]


def test_the_receptive_field_is_715_and_that_of_table_1_with_the_average_pool(full_width):
    score = full_width.get_layer("score_fr").output
    assert receptive_field(score) == (715, 715)
    assert receptive_field(keras.layers.AveragePooling2D(7, 1)(score)) == (907, 907)
    # From the left: 3 of the padding's 100 belong to the first window; the pools add 2 · (1 + 2 + 4 + 8) and half a window each.
    assert coordinate_map(score) == (32, 3 - 100 + 2 + 4 + 8 + 16)


@pytest.mark.parametrize(("padding", "offset"), [("authors", 98), ("same", 1)])
def test_crops(padding, offset):
    model = build(padding=padding)
    assert {layer.name: layer.offset for layer in model.layers if isinstance(layer, CropLike)} == {"score": offset}
    assert coordinate_map(model.output) == (1, 0)
    assert (model.get_layer("upscore").kernel_size, model.get_layer("upscore").strides) == (63, 32)
    assert coordinate_map(model.get_layer("upscore").output) == (1, -offset)


# Caffe's sizes: 7 + 2·pad − 7 halved and floored, each pool (n − 3) / 2 + 1 with the half up.
@pytest.mark.parametrize(
    ("padding", "size", "expected"),
    [("same", 224, (112, 56, 28, 14, 7)), ("authors", 500, (347, 173, 86, 43, 21)), ("same", 31, (16, 8, 4, 2, 1))],
)
def test_maps_have_caffes_sizes(padding, size, expected):
    names = ("conv1_7x7_s2", "pool1_3x3_s2", "pool2_3x3_s2", "pool3_3x3_s2", "pool4_3x3_s2")
    shapes = parts(build(padding=padding), *names).compute_output_shape((1, size, size, 3))
    assert tuple(shape[1] for shape in shapes) == expected


@pytest.mark.parametrize("padding", ["authors", "same"])
def test_every_size_gives_logits(padding):
    model = give_random_weights(build(padding=padding))
    # Below 31 pixels the classifier's own geometry ends before the last pool; one window is left then.
    for size in ((1, 1), (2, 7), (14, 30), (31, 62), (63, 95)):
        logits = model(images(size), training=False)
        assert logits.shape == (2, *size, CLASSES) and np.all(np.isfinite(logits)) and np.any(logits)


def convolution(name, bottom, width, kernel, stride=1, pad=0):
    parameters = {"num_output": width, "kernel_size": kernel, "stride": stride, "pad": pad}
    return [(name, "Convolution", bottom, {"convolution_param": parameters}), (f"{name}/relu", "ReLU", name, {})]


def pooling(name, bottom, stride, pad=0):
    return [(name, "Pooling", bottom, {"pooling_param": {"pool": "MAX", "kernel_size": 3, "stride": stride, "pad": pad}})]


def normalization(name, bottom):
    return [(name, "LRN", bottom, {"lrn_param": {"local_size": 5, "alpha": 0.0001, "beta": 0.75}})]


def caffe_layers(first_padding, offset):
    """The network for Caffe, written from the public definition's table, every width but the score's by 16."""
    layers = convolution("conv1/7x7_s2", "data", 4, 7, 2, first_padding) + pooling("pool1/3x3_s2", "conv1/7x7_s2/relu", 2)
    layers += normalization("pool1/norm1", "pool1/3x3_s2") + convolution("conv2/3x3_reduce", "pool1/norm1", 4, 1)
    layers += convolution("conv2/3x3", "conv2/3x3_reduce/relu", 12, 3, pad=1) + normalization("conv2/norm2", "conv2/3x3/relu")
    layers += pooling("pool2/3x3_s2", "conv2/norm2", 2)
    bottom = "pool2/3x3_s2"
    for module, widths in WIDTHS.items():
        name, (plain, reduce3, wide3, reduce5, wide5, projected) = f"inception_{module}", (width // 16 for width in widths)
        layers += convolution(f"{name}/1x1", bottom, plain, 1) + convolution(f"{name}/3x3_reduce", bottom, reduce3, 1)
        layers += convolution(f"{name}/3x3", f"{name}/3x3_reduce/relu", wide3, 3, pad=1)
        layers += convolution(f"{name}/5x5_reduce", bottom, reduce5, 1)
        layers += convolution(f"{name}/5x5", f"{name}/5x5_reduce/relu", wide5, 5, pad=2)
        layers += pooling(f"{name}/pool", bottom, 1, 1) + convolution(f"{name}/pool_proj", f"{name}/pool", projected, 1)
        tops = [f"{name}/{branch}/relu" for branch in ("1x1", "3x3", "5x5", "pool_proj")]
        bottom = f"{name}/output"
        layers += [(bottom, "Concat", tops, {})]
        if module in ("3b", "4e"):
            pool = f"pool{3 if module == '3b' else 4}/3x3_s2"
            layers += pooling(pool, bottom, 2)
            bottom = pool
    upsampling = {"num_output": CLASSES, "kernel_size": 63, "stride": 32, "bias_term": "false"}
    layers += convolution("score_fr", bottom, CLASSES, 1)[:1] + [
        ("upscore", "Deconvolution", "score_fr", {"convolution_param": upsampling})
    ]
    return [*layers, ("score", "Crop", ["upscore", "data"], {"crop_param": {"axis": 2, "offset": offset}})]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("padding", "first_padding", "offset", "size"), [("authors", 100, 98, (97, 130)), ("same", 3, 1, (225, 161))]
)
def test_every_blob_is_opencvs(padding, first_padding, offset, size, tmp_path):
    dnn = pytest.importorskip("cv2", reason="opencv-python-headless is not installed: pip install 'kerasseg[dev]'").dnn
    source = give_random_weights(build(preprocessing=None, padding=padding), seed=1)
    # Values of thousands before the normalisations, which leave small ones as they are.
    source.get_layer("conv1_7x7_s2").kernel.assign(30 * source.get_layer("conv1_7x7_s2").kernel)
    layers = caffe_layers(first_padding, offset)
    kinds, blobs = (
        {name: kind for name, kind, *_ in layers},
        {caffe_name(name): values for name, values in to_caffe(source).items()},
    )
    weights = caffemodel_bytes([(name, kinds[name], values) for name, values in blobs.items()])
    (tmp_path / "googlenet.caffemodel").write_bytes(weights)
    ours = build(preprocessing=None, padding=padding)
    assert load_caffe(ours, tmp_path / "googlenet.caffemodel") == []
    definition = prototxt((1, 3, *size), layers).encode()
    net = dnn.readNetFromCaffe(np.frombuffer(definition, np.uint8), np.frombuffer(weights, np.uint8))
    # Fused, a convolution writes straight into the concatenation behind it, and its own blob stays as it was allocated.
    net.enableFusion(False)
    x = images(size, batch=1).astype("float32") - 110
    net.setInput(x.transpose(0, 3, 1, 2))
    # Behind its ReLU, where there is one, a convolution is one layer of ours.
    names = {name.removesuffix("/relu"): name for name in kinds}
    assert len(names) == 7 + 9 * 8 + 2 + 3
    outputs = parts(ours, *(name.replace("/", "_") for name in names))(x, training=False)
    expected = dict(zip(names, net.forward(list(names.values())), strict=True))
    for name, output in zip(names, outputs, strict=True):
        output = np.transpose(output, (0, 3, 1, 2))
        # Shown by `pytest -rP`.
        print(f"{name}: {np.abs(output - expected[name]).max() / np.abs(expected[name]).max():.1e}")
        assert_close(output, expected[name])
    normalized, pooled = (expected[name] for name in ("pool1/norm1", "pool1/3x3_s2"))
    assert np.abs(normalized - pooled).max() > 0.1 * np.abs(pooled).max()
    assert_varies(outputs[-1])


def caffe_name(name):
    """The public file's spelling: the first underscore behind the block or module is a slash."""
    for block in (*(f"inception_{module}" for module in MODULES), "conv1", "conv2"):
        if name.startswith(f"{block}_"):
            return f"{block}/{name.removeprefix(f'{block}_')}"
    return name


def test_imagenet_weights_are_refused_in_one_line():
    with pytest.raises(KerassegError, match="^weights='imagenet': Keras publishes none for fcn_googlenet; pass None or the path"):
        build(weights="imagenet")


def test_a_share_of_0_4_is_dropped_before_the_scores():
    dropouts = [layer for layer in build().layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.4]
    assert [layer.rate for layer in build(dropout_rate=0.1).layers if isinstance(layer, keras.layers.Dropout)] == [0.1]


def test_two_heads():
    model = MODELS["fcn_googlenet"]({"semantic": 33, "geometric": 3}, **QUICK)
    assert {key: output.shape[-1] for key, output in model.output.items()} == {"semantic": 33, "geometric": 3}
    assert {"score_fr_semantic", "upscore_geometric"} <= {layer.name for layer in model.layers}
