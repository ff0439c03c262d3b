"""DeconvNet against the authors' outputs, files and weights."""

import inspect
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, assert_close, assert_varies, give_random_weights, images, parts, random_model, to_caffe
from test_recipes import runs_of

from kerasseg import KerassegError, load_model
from kerasseg.cli.options import offered_arguments
from kerasseg.data import Flip, ObjectCrops, ProposalCrops, RandomCrop, Resize, open_data, training_batches
from kerasseg.data.object_crops import object_boxes
from kerasseg.export import Target, export_model
from kerasseg.interop import load_caffe
from kerasseg.layers import BatchNormalization, Geometry, MaxPoolingWithMask2D, MaxUnpooling2D
from kerasseg.models import MODELS
from kerasseg.models.deconvnet import load_imagenet
from kerasseg.optimizers import check_multipliers
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import build_network, open_training_data, padding_color, recipe_transforms
from kerasseg.runs import Run
from kerasseg.training import train_recipe

CLASSES = 5
# stage_2_train.prototxt from top to bottom: kind, name, channels; the ReLU's name is that of what it follows.
FILE = """
c conv1_1 64, c conv1_2 64, p pool1, c conv2_1 128, c conv2_2 128, p pool2, c conv3_1 256, c conv3_2 256, c conv3_3 256, p pool3,
c conv4_1 512, c conv4_2 512, c conv4_3 512, p pool4, c conv5_1 512, c conv5_2 512, c conv5_3 512, p pool5, c fc6 4096, c fc7 4096,
d fc6-deconv 512, u unpool5, d deconv5_1 512, d deconv5_2 512, d deconv5_3 512, u unpool4, d deconv4_1 512, d deconv4_2 512,
d deconv4_3 256, u unpool3, d deconv3_1 256, d deconv3_2 256, d deconv3_3 128, u unpool2, d deconv2_1 128, d deconv2_2 64,
u unpool1, d deconv1_1 64, d deconv1_2 64
"""
LAYERS = [entry.split() for entry in FILE.replace("\n", " ").split(",")]
SPECIAL = {"fc6": ("bnfc6", "relu6"), "fc7": ("bnfc7", "relu7"), "fc6-deconv": ("fc6-deconv-bn", "fc6-deconv-relu")}


def behind(name):
    """Names of the batch norm and the ReLU behind a layer: bn1_1 and relu1_1 of conv1_1, debn5_1 and derelu5_1 of deconv5_1."""
    return SPECIAL.get(name) or (name.replace("conv", "bn"), name.replace("conv", "relu"))


def network(**arguments):
    return MODELS["deconvnet"](CLASSES, **{"preprocessing": None, **QUICK, **arguments})


@pytest.fixture(scope="module")
def model():
    return give_random_weights(network())


def blobs_of(oracle):
    blobs = {}
    for key in oracle.files:
        if key.startswith("w_"):
            blobs.setdefault(key[2:].rsplit("_", 1)[0], []).append(oracle[key])
    return blobs


def output_of(model, blob):
    """The layer that holds what a Caffe blob holds in the end: the ReLU writes where the convolution wrote."""
    names = {layer.name for layer in model.layers}
    return behind(blob)[1] if behind(blob)[1] in names and behind(blob)[0] in names else blob


@pytest.mark.parity
def test_every_blob_is_the_authors(oracle_dir):
    oracle = np.load(oracle_dir / "caffe" / "deconvnet.npz")
    model = MODELS["deconvnet"](21, preprocessing=None, **QUICK)
    assert load_caffe(model, blobs_of(oracle)) == []
    blobs = [key[4:] for key in oracle.files if key.startswith("out_")]
    assert len(blobs) == 15
    names = [output_of(model, {"seg-score": "seg-score-voc"}.get(blob, blob)) for blob in blobs]
    tensors = [model.get_layer(name).output for name in names]
    first = [tensor[0] if isinstance(tensor, list | tuple) else tensor for tensor in tensors]
    x = oracle["in_data"].transpose(0, 2, 3, 1)
    for blob, name, output in zip(blobs, names, keras.Model(model.input, first)(x, training=False), strict=True):
        assert "conv" not in name or name == "fc6-deconv-relu"
        output, expected = np.transpose(output, (0, 3, 1, 2)), oracle[f"out_{blob}"]
        # Shown by `pytest -rP`.
        print(f"deconvnet {blob}: {np.abs(output - expected).max() / np.abs(expected).max():.1e}")
        assert_close(output, expected)
        assert expected.std() > 0


def test_the_layers_are_those_of_the_file():
    names, widths = [], {}
    for kind, name, *width in LAYERS:
        names += [name, *(behind(name) if kind in "cd" else ())]
        widths.update({name: int(width[0])} if width else {})
    model = network(width_multiplier=1 / 32, preprocessing="caffe")
    assert [layer.name for layer in model.layers] == ["image", "minimum_size", "preprocessing", *names, "seg-score-voc"]
    kinds = {"c": keras.layers.Conv2D, "d": keras.layers.Conv2DTranspose, "p": MaxPoolingWithMask2D, "u": MaxUnpooling2D}
    for kind, name, *_ in LAYERS:
        layer = model.get_layer(name)
        assert isinstance(layer, kinds[kind])
        if kind in "cd":
            size, padding = {"fc6": (7, "valid"), "fc6-deconv": (7, "valid"), "fc7": (1, "valid")}.get(name, (3, "same"))
            assert (layer.kernel_size, layer.strides, layer.padding) == ((size, size), (1, 1), padding)
            assert layer.filters == widths[name] // 32 and layer.use_bias
    for block in range(1, 6):
        mask = model.get_layer(f"unpool{block}").input[1]
        assert mask._keras_history.operation.name == f"pool{block}" and mask._keras_history.tensor_index == 1
    assert model.get_layer("seg-score-voc").kernel.shape == (1, 1, 2, CLASSES)


def test_new_layers_start_as_the_file_fills_them():
    keras.utils.set_random_seed(0)
    model = network(width_multiplier=1 / 8)
    for kind, name, *_ in LAYERS:
        if kind not in "cd":
            continue
        kernel, bias = model.get_layer(name).get_weights()
        expected = 0.01 if kind == "d" else np.sqrt(2 / np.prod(kernel.shape[:-1]))
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.15, err_msg=name)
        assert not bias.any()
        norm = model.get_layer(behind(name)[0])
        assert norm.epsilon == 1e-9
        for weight, value in zip(norm.get_weights(), (1, 0.001, 0, 1), strict=True):
            np.testing.assert_array_equal(weight, np.float32(value))
    kernel, bias = model.get_layer("seg-score-voc").get_weights()
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.4)
    assert not bias.any() and len({np.std(weight) for weight in model.get_weights() if weight.ndim == 4}) == 30


def test_published_names_load(model):
    blobs = to_caffe(model)
    # The inference files: statistics folded into gamma and beta.
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            gamma, beta, mean, variance = (value.astype("float64") for value in layer.get_weights())
            folded = gamma / np.sqrt(variance + 1e-9)
            blobs[layer.name] = [folded, beta - folded * mean]
    x = images((224, 224)).astype("float32") - 120
    expected = model(x, training=False)
    for score in ("seg-score-voc", "seg-score"):
        renamed = {score if name == "seg-score-voc" else name: arrays for name, arrays in blobs.items()}
        loaded = network()
        assert load_caffe(loaded, renamed) == []
        assert_close(loaded(x, training=False), expected, 1e-5)
    del blobs["seg-score-voc"]
    with pytest.raises(KerassegError, match="missing layer seg-score-voc"):
        load_caffe(network(), blobs)


@pytest.mark.parametrize("size", [(256, 256), (224, 288)])
def test_larger_sizes_slide_over_the_image(model, size):
    names = ["relu6", "fc6-deconv-relu", "unpool5", "derelu3_3", "derelu1_2"]
    x = images(size, batch=1)
    cells = [(n // 32 - 6, n // 32, n // 16, n // 4, n) for n in size]
    inner = dict(zip(names, zip(*cells, strict=True), strict=True))
    shapes = {name: tuple(output.shape[1:3]) for name, output in zip(names, parts(model, *names)(x, training=False), strict=True)}
    assert shapes == inner
    logits = model(x, training=False)
    assert logits.shape == (1, *size, CLASSES)
    assert_varies(logits)


def test_one_graph_serves_every_size(model):
    traced = tf.function(lambda x: model(x, training=False), [tf.TensorSpec((None, None, None, 3))])
    for size in ((224, 224), (256, 224)):
        x = images(size, batch=1).astype("float32")
        assert_close(traced(x), model(x, training=False), 1e-6)


@pytest.mark.parametrize("size", [(192, 224), (224, 240), (250, 250), (65, 97)])
def test_other_sizes_are_one_line(model, size):
    expected = "expected height and width of at least 224, multiples of 32"
    with pytest.raises(KerassegError, match=expected) as error:
        model(np.zeros((1, *size, 3), "float32"))
    assert "\n" not in str(error.value) and f"images of {size[0]}x{size[1]} pixels" in str(error.value)
    with pytest.raises(KerassegError, match="at least 224, and a multiple of 32"):
        network(input_shape=(*size, 3))
    traced = tf.function(lambda x: model(x, training=False), [tf.TensorSpec((None, None, None, 3))])
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        traced(tf.zeros((1, *size, 3)))


def test_every_weight_learns_at_256(model):
    x = images((256, 256), batch=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=False) ** 2)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    assert all(np.any(gradient) and np.isfinite(gradient).all() for gradient in gradients)


def test_gradients_in_training_are_finite_and_biases_before_a_batch_norm_have_none():
    keras.utils.set_random_seed(0)
    fresh = network(preprocessing="caffe")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(fresh(images((224, 224), batch=4), training=True) ** 2)
    gradients = dict(zip((w.path for w in fresh.trainable_weights), tape.gradient(loss, fresh.trainable_variables), strict=True))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    kernels = {path: np.abs(gradient).max() for path, gradient in gradients.items() if path.endswith("kernel")}
    assert min(kernels.values()) > 0
    # The mean takes every constant away: all that is left is rounding.
    for path, gradient in gradients.items():
        if path.endswith("bias") and not path.startswith("seg-score"):
            assert np.abs(gradient).max() < 1e-3 * kernels[path.replace("bias", "kernel")] + 1e-6, path


@pytest.mark.parametrize(("deviation", "mean"), [(1e-4, 0.0), (1e-5, 0.0), (1e-3, 1.0), (0.0, 0.0)])
def test_the_epsilon_is_the_authors_and_not_what_the_kernels_prefer(deviation, mean):
    generator = np.random.default_rng(0)
    x = (generator.normal(0, 1, (4, 5, 6, 3)) * deviation + mean).astype("float32")
    weights = generator.normal(size=x.shape).astype("float32")
    layer = network().get_layer("bn1_1").from_config({"name": "norm", "epsilon": 1e-9, "dtype": "float32"})
    with tf.GradientTape() as tape:
        tape.watch(given := tf.constant(x))
        y = layer(given, training=True)
        loss = tf.reduce_sum(y * weights)
    exact, cells = x.astype("float64"), (0, 1, 2)
    inverse = 1 / np.sqrt(exact.var(cells) + 1e-9)
    normalized = (exact - exact.mean(cells)) * inverse
    gradient = (weights - weights.mean(cells) - normalized * (weights * normalized).mean(cells)) * inverse
    assert_close(tape.gradient(loss, given), gradient, 1e-3)
    if deviation:
        assert_close(y, normalized, 1e-3)


def test_the_decoder_undoes_the_encoders_geometry():
    model, geometry = network(), Geometry()
    place = geometry.coordinate_map
    assert place(model.get_layer("pool5").output[0]) == (32, 15.5)
    assert place(model.get_layer("fc6").output) == (32, 15.5 + 3 * 32)
    for block in range(5, 0, -1):
        stride = 2 ** (block - 1)
        assert place(model.get_layer(f"unpool{block}").output) == (stride, (stride - 1) / 2)
    assert place(model.output) == (1, 0)


def test_built_in_images_are_enlarged_for_it(tmp_path):
    """Without a recipe it trains on the built-in data, as every network does; where they stay too small, that is one line."""
    small = RECIPES["shapes"].override(arch="deconvnet", width_multiplier=1 / 16, iterations=1, batch_size=1, validate_every=None)
    recipe = offered_arguments(small)
    assert recipe.crop_size == (224, 224) and int(96 * recipe.image_scale) >= 224
    assert np.isfinite(train_recipe(recipe, Run(tmp_path / "fits")).get_weights()[0]).all()
    with pytest.raises(
        KerassegError, match="do not fit the network: expected height and width of at least 224.* --crop-size"
    ) as error:
        train_recipe(small, Run(tmp_path / "small"))
    assert "\n" not in str(error.value) and not (tmp_path / "small").exists()


def test_imagenet_weights_fill_the_first_half(monkeypatch):
    monkeypatch.setattr("kerasseg.models.deconvnet._FULLY_CONNECTED", 32)
    monkeypatch.setattr("kerasseg.models.deconvnet.scaled_width", lambda width, _: 32 if width == 4096 else width)
    for initializer in (keras.initializers.HeNormal, keras.initializers.GlorotUniform, keras.initializers.RandomNormal):
        monkeypatch.setattr(initializer, "__call__", keras.initializers.Zeros().__call__)
    model = MODELS["deconvnet"](CLASSES)
    classifier = _narrow_vgg16()
    before = {layer.name: layer.get_weights() for layer in model.layers}
    load_imagenet(model, classifier)
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 512)).astype("float32")
    flat = x.reshape(2, -1) @ classifier.get_layer("fc1").kernel + classifier.get_layer("fc1").bias
    assert_close(model.get_layer("fc6")(x)[:, 0, 0], flat, 1e-5)
    np.testing.assert_array_equal(model.get_layer("conv4_2").kernel, classifier.get_layer("block4_conv2").kernel)
    changed = {name for name, old in before.items() if any(map(_differ, old, model.get_layer(name).get_weights()))}
    assert changed == {name for kind, name, *_ in LAYERS if kind == "c"}
    with pytest.raises(KerassegError, match="weights='imagenet' of VGG16 expect unscaled BGR minus the mean"):
        load_imagenet(MODELS["deconvnet"](CLASSES, preprocessing="torch"), classifier)


def _differ(one, other):
    return np.any(one != other)


def _narrow_vgg16():
    """Keras' layer names, random weights, and 32 channels in fc1 and fc2 instead of 4096."""
    generator = np.random.default_rng(1)
    image = x = keras.Input((224, 224, 3))
    for block, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3), start=1):
        for index, width in enumerate(widths, start=1):
            x = keras.layers.Conv2D(width, 3, padding="same", name=f"block{block}_conv{index}")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    for name in ("fc1", "fc2"):
        x = keras.layers.Dense(32, name=name)(x)
    model = keras.Model(image, x)
    for weight in model.weights:
        weight.assign(generator.standard_normal(tuple(weight.shape), "float32"))
    return model


def test_full_width_is_needed_for_imagenets_weights():
    with pytest.raises(KerassegError, match="256 channels in fc6 instead of 4096"):
        load_imagenet(random_model("deconvnet"))


def test_the_tflite_file_computes_the_same(tmp_path):
    model = random_model("deconvnet")
    # Not of flat areas, where cells of a window are equal but for rounding, so that any of them may be the maximum.
    exported = export_model(model, tmp_path / "deconvnet.tflite", Target(input_size=(224, 224)), measure_latency=False)
    parity = exported.description.parity
    assert parity["relative_error"] <= 1e-4 and parity["images"] == 2
    print(f"deconvnet TFLite: {parity}")


def test_defaults_are_the_authors():
    defaults = {name: p.default for name, p in inspect.signature(MODELS["deconvnet"]).parameters.items()}
    assert (defaults["num_classes"], defaults["preprocessing"], defaults["batch_norm_epsilon"]) == (21, "caffe", 1e-9)
    assert (MODELS["deconvnet"].minimum_size, MODELS["deconvnet"].divisor) == (224, 32)


def test_the_recipe_is_that_of_the_solver_files():
    recipe = RECIPES["deconvnet_voc"]
    objects, proposals = runs = runs_of(recipe)
    assert [run.name for run in runs] == ["deconvnet_voc-objects", "deconvnet_voc-proposals"] and recipe.final() == proposals
    for run in runs:
        assert (run.arch, run.width_multiplier, run.data, run.split) == ("deconvnet", 1.0, "voc", "trainvalaug")
        assert (run.optimizer, run.learning_rate, run.momentum, run.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
        assert (run.schedule, run.gamma, run.batch_size, run.accumulation) == ("step", 0.1, 8, 8)
        assert (run.loss, run.loss_normalization, run.sampling) == ("cross_entropy", "valid", "shuffle")
        assert (run.validation_split, run.validate_every, run.keep_best, run.checkpoint_every) == (None, None, False, 500)
        assert not run.freeze and not run.freeze_batch_norm and run.hard_pixel_share == 1
    assert (objects.examples, objects.step_size, objects.iterations, objects.weights) == ("objects", 9000, 20_000, "imagenet")
    assert (proposals.examples, proposals.step_size, proposals.iterations, proposals.weights) == ("proposals", 10_000, 40_000, None)
    # 250 → a crop of 224 → mirrored; then straight to 224 → mirrored.
    color = padding_color(proposals, open_data("shapes", length=1))
    assert color == (122.675, 116.669, 104.008)
    assert recipe_transforms(objects, color) == (Resize(size=(250, 250)), RandomCrop((224, 224), color), Flip())
    assert recipe_transforms(proposals, color) == (Resize(size=(224, 224)), Flip())
    assert re.findall(r"\d+\.\d", proposals.expected) == ["72.5"] and objects.expected is None


def test_multipliers_are_those_of_the_net_files():
    for run in runs_of(RECIPES["deconvnet_voc"]):
        model = build_network(run.override(width_multiplier=1 / 32, weights=None), CLASSES)
        paths = [weight.path for weight in model.trainable_weights]
        check_multipliers(run.multipliers, paths)
        factors = {path: next((f for p, f in run.multipliers.items() if re.fullmatch(p, path)), (1.0, 1.0)) for path in paths}
        assert {path for path, pair in factors.items() if pair != (1.0, 1.0)} == {path for path in paths if path.endswith("/bias")}
        assert factors["fc6-deconv/bias"] == (2.0, 0.0) and factors["fc6-deconv-bn/beta"] == (1.0, 1.0)
        assert model.get_layer("preprocessing").mean == (104.008, 116.669, 122.675)


def test_examples_of_both_stages_train(tmp_path, monkeypatch):
    data, boxes = open_data("shapes", length=16), tmp_path / "boxes.json"
    monkeypatch.setattr("kerasseg.recipes.building.open_data", lambda *_, **__: data)
    labels = (data.read_label(index) for index in range(len(data)))
    boxes.write_text(
        json.dumps({name: object_boxes(label, data.labels).tolist() for name, label in zip(data.ids, labels, strict=True)})
    )
    changes = {"data": "shapes", "split": "train", "width_multiplier": 1 / 32, "weights": None, "boxes": str(boxes)}
    objects, proposals = (run.override(**changes, batch_size=2, accumulation=1) for run in runs_of(RECIPES["deconvnet_voc"]))
    for run, kind in ((objects, ObjectCrops), (proposals, ProposalCrops)):
        crops = open_training_data(run)
        assert type(crops) is kind and len(crops) > 10
        transforms = recipe_transforms(run, (0.0, 0.0, 0.0))
        for image, label in training_batches(crops, 2, transforms=transforms, steps=2):
            assert image.shape == (2, 224, 224, 3) and label.shape == (2, 224, 224)
            assert set(np.unique(label)) <= {*range(6), 255} and len(np.unique(label)) > 1
    run = Run(tmp_path / "run")
    train_recipe(proposals.override(iterations=1), run)
    assert [np.isfinite(record["loss"]) for record in run.read_log() if "loss" in record] == [True]
    assert load_model(run.path).name == "deconvnet"
