"""Every network of MODELS through one set of checks; a new network is checked by being listed there."""

import inspect
from functools import cache, partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, kernels_at_zero, parts, random_model, supported
from test_fcn_googlenet import WIDTHS as GOOGLENET_WIDTHS

from kerasseg import KerassegError
from kerasseg.layers import BilinearUpsampling
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.models.fcn import PADDINGS

CLASSES = 5
CASES = [
    pytest.param(arch, arguments, id="-".join((arch, *arguments.values())))
    for arch in MODELS
    for arguments in ([{"padding": padding} for padding in PADDINGS] if supported(MODELS[arch], padding=0) else [{}])
]
every_network = pytest.mark.parametrize(("arch", "arguments"), CASES)
# Their score layers start at zero: no other family need do so.
ZERO_AT_FIRST = [case for case in CASES if case.values[0].startswith("fcn")]
SIZES = ((64, 96), (65, 97), (1, 1), (2, 3), (31, 33))


def allowed(arch, sizes):
    builder = MODELS[arch]
    return [size for size in sizes if min(size) >= builder.minimum_size and not any(n % builder.divisor for n in size)]


def sizes_of(arch):
    """The sizes that it takes; of one whose smallest is larger than all of them, that and the next."""
    builder = MODELS[arch]
    return allowed(arch, SIZES) or [(builder.minimum_size,) * 2, (builder.minimum_size, builder.minimum_size + builder.divisor)]


def build(arch, **arguments):
    """The network as it is started, but for dropout, so that two runs can be compared."""
    # The smallest of the trunks that a network offers, and steps of a CRF that do what ten of them do.
    quick = supported(MODELS[arch], dropout_rate=0.0, backbone="resnet50", iterations=2, training_iterations=2)
    arguments = {**quick, **arguments}
    return MODELS[arch](CLASSES, **QUICK, **arguments)


# At this width some of its branches are two channels, which the first draw leaves dead on every image.
SEEDS = {"fcn_googlenet": 1}


@cache
def _shared(arch, arguments):
    return give_random_weights(build(arch, **dict(arguments)), SEEDS.get(arch, 0))


def shared(arch, arguments):
    """A network with random weights; tests must leave it as it is."""
    return _shared(arch, tuple(arguments.items()))


def labels(x):
    """Five shades of red, below an ignored first row."""
    label = x[..., 0].astype("int32") * CLASSES // 256
    label[:, 0] = 255
    return label


def size_of(arch):
    return sizes_of(arch)[0]


@every_network
def test_logits_are_float32_at_the_size_of_the_image(arch, arguments):
    model = shared(arch, arguments)
    # One graph for every size, as `fit` and `predict` trace it.
    traced = tf.function(partial(model, training=False), [tf.TensorSpec((None, None, None, 3))])
    for size in sizes_of(arch):
        logits = traced(tf.constant(images(size), "float32"))
        assert logits.shape == (2, *size, CLASSES)
        assert logits.dtype == "float32"
        if min(size) > 31:
            assert_varies(logits)


@every_network
def test_every_trainable_weight_has_a_gradient(arch, arguments):
    model = shared(arch, arguments)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images(size_of(arch)), training=False) ** 2)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    without = [w.path for w, g in zip(model.trainable_weights, gradients, strict=True) if g is None or not np.any(g)]
    assert without == []
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_network
def test_layer_names_are_unique_and_come_out_the_same_each_time(arch, arguments):
    names = [layer.name for layer in shared(arch, arguments).layers]
    assert len(set(names)) == len(names)
    assert names == [layer.name for layer in build(arch, **arguments).layers]


@pytest.mark.parametrize(("arch", "arguments"), ZERO_AT_FIRST)
def test_logits_are_zero_at_first(arch, arguments):
    logits = build(arch, **arguments)(images(size_of(arch)), training=False)
    assert not np.any(logits)


# Thirty layers, of which the last fourteen start near zero: in eight steps their statistics must have followed, too. A CRF makes
# much of small differences.
RATES = {"deconvnet": 1e-2, "crf_rnn": 1e-4}
MOMENTA = {"deconvnet": {"batch_norm_momentum": 0.5}}


@every_network
def test_learns_and_goes_on_learning_after_a_round_trip(arch, arguments, tmp_path):
    size = size_of(arch)
    x = images(size, block=size[0] // 2)
    y = labels(x)
    keras.utils.set_random_seed(0)
    model = build(arch, preprocessing="tf", **arguments, **MOMENTA.get(arch, {}))
    # To trace a deep network takes longer than eight steps of it.
    eagerly = not arch.startswith("fcn")
    optimizer = keras.optimizers.Adam(RATES.get(arch, 3e-3))
    model.compile(optimizer, SegmentationCrossEntropy(), jit_compile=False, run_eagerly=eagerly)
    losses = model.fit(x, y, batch_size=2, epochs=8, verbose=0).history["loss"]
    if arch.startswith("fcn"):
        np.testing.assert_allclose(losses[0], np.log(CLASSES), rtol=1e-5)
    # By a tenth where scores start at zero; behind as many batch norms as a ResNet has, the first steps are slower.
    assert losses[-1] < (0.9 if arch.startswith("fcn") else 0.95) * losses[0]
    expected = model(x, training=False)
    assert_varies(expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=False), expected)
    # The optimizer's moments came along: the next step is the same step.
    assert loaded.optimizer.iterations == 8
    for network in (model, loaded):
        network.compile(network.optimizer, network.loss, run_eagerly=True)
    steps = [network.train_on_batch(x, y) for network in (model, loaded)]
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


@every_network
def test_xla_compiles_static_shapes(arch, arguments):
    model = shared(arch, arguments)
    x = images(size_of(arch)).astype("float32")
    compiled = tf.function(lambda batch: model(batch, training=False), jit_compile=True)
    assert_close(compiled(tf.constant(x)), model(x, training=False))


@every_network
def test_bfloat16_gives_float32_logits_near_the_exact_ones(arch, arguments):
    x, exact = images(size_of(arch)), shared(arch, arguments)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(arch, **arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)).compute_dtype == "bfloat16"
    logits = model(x, training=False)
    assert logits.dtype == "float32"
    if arch == "deconvnet":
        # Where two cells of a window nearly tie, rounding moves the maximum, and its value by a pixel: most stay.
        expected = np.array(exact(x, training=False))
        assert np.abs(logits - expected).mean() <= 0.03 * np.abs(expected).max()
    else:
        assert_close(logits, exact(x, training=False), 0.05)
    # Interpolated in float32, not merely cast to it.
    assert np.mean(tf.cast(tf.cast(logits, "bfloat16"), "float32") != logits) > 0.5


@every_network
def test_uint8_and_float32_images_give_the_same(arch, arguments):
    model, x = shared(arch, arguments), images(size_of(arch))
    expected = model(x.astype("float32"), training=False)
    np.testing.assert_array_equal(model(x, training=False), expected)
    np.testing.assert_array_equal(model(tf.constant(x), training=False), expected)


MAPPING = {"mean": (123.15, 115.90, 103.06), "scale": 0.5}


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("spec", ["caffe", "tf", "torch", MAPPING], ids=["caffe", "tf", "torch", "mapping"])
def test_preprocessing_is_the_first_thing_the_network_does(arch, spec):
    x = images(size_of(arch)).astype("float32")
    fixed = {
        "caffe": lambda: x[..., ::-1] - np.float32([104.00699, 116.66877, 122.67892]),
        "tf": lambda: x / np.float32(127.5) - 1,
        "torch": lambda: (x / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
        "mapping": lambda: (x - np.float32(MAPPING["mean"])) / 2,
    }["mapping" if spec is MAPPING else spec]()
    plain = shared(arch, {"preprocessing": None})
    model = build(arch, preprocessing=spec)
    model.set_weights(plain.get_weights())
    if arch == "crf_rnn":
        # The CRF behind it compares the colours of the image where the network sees others.
        model, plain = (parts(each, "coarse") for each in (model, plain))
    assert_close(model(x, training=False), plain(fixed, training=False))


@pytest.mark.parametrize("arch", MODELS)
def test_unknown_preprocessing_is_one_line(arch):
    with pytest.raises(KerassegError, match="unknown preprocessing 'cafe': did you mean 'caffe'") as error:
        build(arch, preprocessing="cafe")
    assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="2 channels"):
        build(arch, preprocessing={"mean": (1.0, 2.0)})


@pytest.mark.parametrize("arch", [arch for arch in MODELS if supported(MODELS[arch], padding=0)])
def test_paddings_share_their_weights(arch):
    authors, same = (shared(arch, {"padding": padding}) for padding in PADDINGS)
    described = [[(w.path, tuple(w.shape)) for w in model.weights] for model in (authors, same)]
    assert described[0] == described[1]
    with pytest.raises(KerassegError, match="padding='sane': expected one of 'authors', 'same'"):
        build(arch, padding="sane")


@pytest.mark.parametrize("arch", [arch for arch in MODELS if supported(MODELS[arch], learn_upsampling=0)])
def test_fixed_upsampling_has_no_weights_and_equals_the_start_of_learned(arch):
    learned, fixed = (random_model(arch, CLASSES, learn_upsampling=learn, padding="same") for learn in (True, False))
    kinds = (BilinearUpsampling, keras.layers.Conv2DTranspose)
    upsampling, others = ([layer for layer in model.layers if isinstance(layer, kinds)] for model in (learned, fixed))
    assert [layer.name for layer in upsampling] == [layer.name for layer in others]
    for layer in upsampling:
        assert not fixed.get_layer(layer.name).weights
        if layer is upsampling[-1]:
            assert isinstance(layer, BilinearUpsampling)
        else:
            start = layer.kernel_initializer((4, 4, CLASSES, CLASSES), "float32")
            line = np.array([0.25, 0.75, 0.75, 0.25])
            np.testing.assert_allclose(start, np.multiply.outer(np.outer(line, line), np.eye(CLASSES)), rtol=1e-6)
            layer.set_weights([start])
    learned_weights = {w.path: w for w in learned.weights}
    for weight in fixed.weights:
        weight.assign(learned_weights[weight.path])
    x = images()
    assert_close(learned(x, training=False), fixed(x, training=False), 1e-5)


def vgg16_parameters(last="fc7"):
    # in → out of every 3×3 convolution, then fc6 (7×7) and fc7; one bias an output.
    widths = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    widths += [(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
    counts = [3 * 3 * i * o + o for i, o in widths]
    assert sum(counts) == 14_714_688
    fully_connected = 7 * 7 * 512 * 4096 + 4096 + 4096 * 4096 + 4096 if last == "fc7" else 0
    return sum(counts[: {"pool3": 7, "pool4": 10}.get(last)]) + fully_connected


def caffenet_parameters():
    # kernel², in / groups, out.
    layers = [(121, 3, 96), (25, 48, 256), (9, 256, 384), (9, 192, 384), (9, 192, 256), (36, 256, 4096), (1, 4096, 4096)]
    return sum(k * i * o + o for k, i, o in layers)


def googlenet_parameters():
    # A 7×7, a 1×1 and a 3×3; then of each module the six widths of the paper's table, from the channels before it.
    total = 49 * 3 * 64 + 64 + 64 * 64 + 64 + 9 * 64 * 192 + 192
    inputs = 192
    for a, b, c, d, e, f in GOOGLENET_WIDTHS.values():
        total += inputs * (a + b + d + f) + 9 * b * c + 25 * d * e + a + b + c + d + e + f
        inputs = a + c + e + f
    assert inputs == 1024
    return total


def score(width):
    return width * 21 + 21


def vgg16_atrous_parameters(kernel, width, branches=1):
    # Each branch has its own fc6, fc7 and fc8.
    return 14_714_688 + branches * (kernel * kernel * 512 * width + width + width * width + width + score(width))


def resnet_parameters(depth=101):
    # No biases; four numbers a channel in each batch norm.
    total, inputs = 49 * 3 * 64 + 4 * 64, 64
    for width, units in zip((64, 128, 256, 512), {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth], strict=True):
        for unit in range(units):
            total += inputs * width + 9 * width * width + width * 4 * width + 4 * (width + width + 4 * width)
            total += inputs * 4 * width + 4 * 4 * width if unit == 0 else 0
            inputs = 4 * width
    return total


def gcn_parameters(k):
    # On each level two pairs of convolutions with biases; nine refinements of two 3×3 each; five deconvolutions of 4×4 without.
    heads = sum(2 * (k * width * 21 + 21 + k * 21 * 21 + 21) for width in (2048, 1024, 512, 256))
    return heads + 9 * 2 * (9 * 21 * 21 + 21) + 5 * 16 * 21 * 21


def pyramid_parameters():
    # Pooling and aspp0, three atrous, the projection of all five; four numbers a channel in each batch norm.
    return 2 * (2048 * 256 + 4 * 256) + 3 * (9 * 2048 * 256 + 4 * 256) + 5 * 256 * 256 + 4 * 256


def deconvnet_parameters():
    # Deconvolutions: 7×7, then 3×3; four numbers a channel in the batch norm behind everything but the score.
    widths = [(512, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 256), (256, 256), (256, 256), (256, 128)]
    widths += [(128, 128), (128, 64), (64, 64), (64, 64)]
    total = 7 * 7 * 4096 * 512 + 512 + sum(3 * 3 * i * o + o for i, o in widths)
    channels = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096 + 512 + sum(o for _, o in widths)
    return vgg16_parameters() + total + 4 * channels + score(64)


def context_parameters(classes, layers):
    # 3×3 convolutions that keep the channels, and a 1×1 one.
    return (layers - 1) * (9 * classes**2 + classes) + classes**2 + classes


# 1×1, 3×3 and 1×1 convolutions, without a projection.
UNIT_OF_BLOCK5 = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 4 * (512 + 512 + 2048)
UPSCORE = 4 * 4 * 21 * 21
PARAMETERS = {
    "fcn32s": vgg16_parameters() + score(4096),
    "fcn16s": vgg16_parameters() + score(4096) + score(512) + UPSCORE,
    "fcn8s": vgg16_parameters() + score(4096) + score(512) + score(256) + 2 * UPSCORE,
    # And a constant for each channel of pool4 and pool3.
    "fcn8s_atonce": vgg16_parameters() + score(4096) + score(512) + score(256) + 2 * UPSCORE + 512 + 256,
    "fcn_pool5": vgg16_parameters("pool5") + score(512),
    "fcn_pool4": vgg16_parameters("pool4") + score(512),
    "fcn_pool3": vgg16_parameters("pool3") + score(256),
    "fcn_alexnet": caffenet_parameters() + score(4096),
    "fcn_googlenet": googlenet_parameters() + score(1024),
    "deeplab_v1": vgg16_atrous_parameters(4, 4096),
    "deeplab_v1_largefov": vgg16_atrous_parameters(3, 1024),
    "deeplab_v2_vgg16": vgg16_atrous_parameters(3, 1024, branches=4),
    # Four 3×3 score layers.
    "deeplab_v2_resnet101": resnet_parameters() + 4 * (9 * 2048 * 21 + 21),
    "deeplab_v3": resnet_parameters() + pyramid_parameters() + score(256),
    "deconvnet": deconvnet_parameters(),
    "deeplab_v3_cascade": resnet_parameters() + 3 * 3 * UNIT_OF_BLOCK5 + score(2048),
    "dilation_frontend": vgg16_parameters() + score(4096),
    "dilation7": vgg16_parameters() + 4096 * 11 + 11 + context_parameters(11, 7),
    "dilation8": vgg16_parameters() + score(4096) + context_parameters(21, 8),
    "dilation10": vgg16_parameters() + 4096 * 19 + 19 + context_parameters(19, 10),
    "gcn": resnet_parameters(152) + gcn_parameters(15),
    # Dense upsampling, the first with a bias, the last of 16×16; and three matrices between classes.
    "crf_rnn": vgg16_parameters() + score(4096) + score(512) + score(256) + 2 * UPSCORE + 21 + 16 * UPSCORE + 3 * 21 * 21,
}


def test_the_tables_are_the_papers():
    assert set(PARAMETERS) == set(MODELS)
    # Table 1: 57 M, 134 M and 6 M.
    assert round(PARAMETERS["fcn_googlenet"] / 1e6) == 6
    assert round(PARAMETERS["fcn_alexnet"] / 1e6) == 57
    assert round(PARAMETERS["fcn32s"] / 1e6, 1) == 134.3
    # DeepLab v1, Table 2: 65.1 M for the kernel of 4×4, 20.5 M for 3×3.
    assert round(PARAMETERS["deeplab_v1"] / 1e6, 1) == 65.1
    assert round(PARAMETERS["deeplab_v1_largefov"] / 1e6, 1) == 20.5


@pytest.mark.parametrize("arch", MODELS)
def test_parameters_at_full_width_are_the_authors(arch):
    with kernels_at_zero():
        assert MODELS[arch]().count_params() == PARAMETERS[arch]


@pytest.mark.parametrize("arch", MODELS)
def test_builders_say_what_they_take(arch):
    builder = MODELS[arch]
    parameters = inspect.signature(builder).parameters
    assert {"num_classes", "input_shape", "preprocessing", "weights", "width_multiplier"} <= set(parameters)
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())
    assert builder.__name__ == build(arch).name == arch
    for name in parameters:
        assert f"\n    {name}: " in inspect.getdoc(builder), f"{name} is not in the docstring"


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_come_from_files(arch, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    model = shared(arch, {})
    (model.save if suffix == ".keras" else model.save_weights)(path)
    for received, expected in zip(build(arch, weights=path).get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    for wrong in (tmp_path / "none.keras", "imagenet21k"):
        with pytest.raises(KerassegError, match="expected None, 'imagenet', or an existing .keras or .weights.h5 file"):
            build(arch, weights=wrong)
    with pytest.raises(KerassegError, match=f"do not fit {arch}") as error:
        MODELS[arch](CLASSES + 1, **QUICK, weights=path)
    assert "\n" not in str(error.value)
