"""Networks that train with the arithmetic of an int8 file simulated."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import TOY, finish, run, toy_offered, weights_of
from helpers import QUICK, assert_close, give_random_weights, images, random_model, supported

from kerasseg import KerassegError, load_model
from kerasseg.backbones.quantizing import float_layers, with_simulated_int8
from kerasseg.cli import train as train_command
from kerasseg.data import open_data
from kerasseg.evaluation import Inference, evaluate
from kerasseg.evaluation.loading import check_forms, copy_weights
from kerasseg.export.forms import Target
from kerasseg.export.graph import trace
from kerasseg.export.tflite import convert_tflite
from kerasseg.layers import BatchNormalization, Conv2D, quantization
from kerasseg.layers.quantization import FakeQuantization, Int8Conv2D, Int8Conv2DTranspose, fake_quantize_kernel, fake_quantize_map
from kerasseg.models import MODELS
from kerasseg.recipes import Recipe
from kerasseg.runs import Run
from kerasseg.training import train_recipe
from kerasseg.training.parts import make_trainer

AXES = {Int8Conv2D: (0, 1, 2), Int8Conv2DTranspose: (0, 1, 3), quantization.Int8DepthwiseConv2D: (0, 1)}
DECONVNET = ("conv", "bn", "relu")
# One of each line, shallow where there is such a form.
EVERY = {
    **dict.fromkeys(("fcn8s", "fcn_alexnet", "deeplab_v1_largefov", "deeplab_v2_vgg16", "dilation8", "deconvnet", "crf_rnn"), {}),
    "deeplab_v3": {"backbone": "resnet50"},
    "gcn": {"backbone": "resnet50_msra"},
}
SHORT = {"crop_size": (33, 33), "iterations": 4, "accumulation": 2, "validate_every": 2, "validation_images": 2}
RECIPE = Recipe(name="simulated", **{**TOY, **SHORT, "quantization_aware": True, "checkpoint_every": 2})


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered():
        yield


def rounded_kernel(kernel, axes):
    """From the definition, in float64."""
    step = np.abs(kernel.astype("float64")).max(axes, keepdims=True) / 127
    return np.round(kernel / step) * step


def rounded_map(x):
    """Asymmetric, from the definition: 256 values of which one is zero."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step, step, (-zero * step, (255 - zero) * step)


def numbers(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype("float32")


def test_a_kernel_by_hand():
    # A step of 1/127 in the first channel and 2/127 in the second: -63.5 and 31.75 steps, and 0.4 of one.
    kernel = np.float32([[1, -0.5, 0.4 / 127], [-2, 0.5, 0.8 / 127]]).T
    factors = tf.constant(numbers(3, 2))
    with tf.GradientTape() as tape:
        variable = tf.Variable(kernel)
        received = fake_quantize_kernel(variable, (0,))
        total = tf.reduce_sum(factors * received)
    np.testing.assert_allclose(tape.gradient(total, variable), factors, rtol=1e-6)
    received = received.numpy()
    np.testing.assert_allclose(received.T, [[1, -64 / 127, 0], [-2, 32 * 2 / 127, 0]], rtol=1e-6)
    assert not fake_quantize_kernel(np.zeros((3, 3, 2, 4), "float32"), (0, 1, 2)).numpy().any()


@pytest.mark.parametrize("kind", AXES)
def test_kernels_have_a_scale_for_each_output_channel(kind):
    arguments = {} if kind is quantization.Int8DepthwiseConv2D else {"filters": 5}
    layer = kind(kernel_size=3, use_bias=False, padding="same", **arguments)
    x = numbers(1, 7, 8, 6)
    layer(x)
    (kernel,) = layer.get_weights()
    # As uneven as can be, along every axis.
    kernel = kernel * np.exp(2 * numbers(*kernel.shape[2:]))
    layer.set_weights([kernel])
    plain = kind.__bases__[1].from_config(layer.get_config())
    plain.build(x.shape)
    expected = rounded_kernel(kernel, AXES[kind])
    # Where a number lies half-way between two steps, float32 and float64 may differ: here none does.
    plain.set_weights([expected])
    assert_close(layer(x), plain(x), 1e-5)
    plain.set_weights([kernel])
    assert np.abs(layer(x) - plain(x)).max() > 1e-3 * np.abs(plain(x)).max()


def test_rounding_before_batch_normalization_is_folded_is_rounding_after():
    x, image = numbers(2, 9, 10, 4), keras.Input((None, None, 4))
    y = BatchNormalization(name="bn")(Conv2D(7, 3, name="conv")(image))
    plain = give_random_weights(keras.Model(image, keras.layers.Activation("relu", name="relu")(y)))
    gamma, *others = plain.get_layer("bn").get_weights()
    gamma[::2] *= -30
    plain.get_layer("bn").set_weights([gamma, *others])
    beta, mean, variance = others
    kernel, bias = plain.get_layer("conv").get_weights()
    factor = gamma / np.sqrt(variance + plain.get_layer("bn").epsilon)
    folded = rounded_kernel(kernel * factor, (0, 1, 2)).astype("float32")
    expected = tf.nn.conv2d(x, folded, 1, "VALID") + (bias - mean) * factor + beta
    # Of the simulated network, what is rounded behind this layer is left out.
    plain = keras.Model(image, keras.layers.Conv2DTranspose(3, 1, name="score")(plain.output))
    model = with_simulated_int8(keras.Model(image, plain.output))
    relu = keras.Model(model.input, model.get_layer("relu").output)
    for layer in ("conv", "bn"):
        relu.get_layer(layer).set_weights({"conv": [kernel, bias], "bn": [gamma, *others]}[layer])
    assert type(relu.get_layer("conv")) is Int8Conv2D
    assert_close(relu(x), tf.nn.relu(expected), 1e-5)
    unlike = tf.nn.relu(tf.nn.conv2d(x, kernel * factor, 1, "VALID") + (bias - mean) * factor + beta)
    assert np.abs(relu(x) - unlike).max() > 1e-3 * np.abs(unlike).max()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shift", [-1, 0.3, 5])
def test_maps_are_rounded_to_256_values(shift, compiled):
    x = numbers(2, 9, 11, 3, scale=2)
    # Of values that are all far above zero, the range begins at zero all the same.
    x = np.abs(x) + np.float32(shift) if shift > 1 else x + np.float32(shift)
    x[0, 0, 0, 0] *= shift > 1
    expected, step, (low, high) = rounded_map(x.astype("float64"))

    @tf.function(jit_compile=compiled)
    def compute(given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            result = fake_quantize_map(given)
        return result, tape.gradient(result, given, output_gradients=given)

    received, gradient = (value.numpy() for value in compute(tf.constant(x)))
    # All but the few that lie half-way.
    assert (np.abs(received - expected) < 1e-5).mean() > 0.99 and np.abs(received - expected).max() < 1.001 * step
    # XLA computes the least of the values and so many steps: zero but for rounding.
    assert len(np.unique(received)) <= 256 and (shift > 1 or abs(received[0, 0, 0, 0]) < 1e-6)
    inside = (x >= low - 1e-6) & (x <= high + 1e-6)
    np.testing.assert_allclose(gradient[inside], x[inside])
    assert not gradient[(x < low - 1e-5) | (x > high + 1e-5)].any()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_map_of_zeros_stays_and_what_is_not_finite_is_not_hidden(compiled):
    compute = tf.function(fake_quantize_map, jit_compile=compiled)
    assert not compute(tf.zeros((1, 2, 3, 1))).numpy().any()
    for value in (np.nan, np.inf, -np.inf):
        assert not np.isfinite(compute(tf.constant([1.0, value, -2.0])).numpy()).all()


def test_half_precision_rounds_in_float32():
    layer = Int8Conv2D(4, 3, use_bias=False, dtype="mixed_bfloat16")
    x = tf.cast(numbers(1, 6, 6, 8), "bfloat16")
    layer(x)
    kernel = layer.get_weights()[0]
    expected = tf.nn.conv2d(x, tf.cast(rounded_kernel(kernel, (0, 1, 2)), "bfloat16"), 1, "VALID")
    # What bfloat16 rounds first ends on other steps.
    other = rounded_kernel(tf.cast(tf.cast(kernel, "bfloat16"), "float32").numpy(), (0, 1, 2))
    assert np.abs(other - rounded_kernel(kernel, (0, 1, 2))).max() > 1e-3 * np.abs(kernel).max()
    with keras.src.backend.AutocastScope("bfloat16"):
        received = layer(x)
    assert received.dtype == tf.bfloat16 and np.array_equal(received, expected)
    assert FakeQuantization(dtype="bfloat16")(x).dtype == tf.bfloat16


def branching():
    """One of each kind of place."""
    image = keras.Input((None, None, 3), name="image")
    x = Conv2D(4, 3, padding="same", name="conv_bn_relu")(keras.layers.Rescaling(1 / 255, name="rescaled")(image))
    x = keras.layers.ReLU(name="relu")(BatchNormalization(name="bn")(x))
    x = keras.layers.MaxPooling2D(2, 1, "same", name="pool")(x)
    one = Conv2D(4, 1, name="linear")(x)
    two = Conv2D(4, 1, name="seen_twice")(x)
    two = keras.layers.Add(name="sum")([BatchNormalization(name="second_bn")(two), two, one])
    two = keras.layers.Activation("relu", name="sum_relu")(two)
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="mean")(two)
    gate = Conv2D(4, 1, activation="sigmoid", name="gate")(mean)
    x = keras.layers.Multiply(name="gated")([two, gate])
    x = keras.layers.Concatenate(name="joined")([x, one])
    x = keras.layers.Conv2DTranspose(4, 2, 2, activation="swish", name="up")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    score = Conv2D(3, 1, name="score")(x)
    return keras.Model(image, keras.layers.UpSampling2D(2, interpolation="bilinear", name="resized")(score))


def test_what_a_file_stores_is_rounded_and_nothing_else():
    model = branching()
    simulated = with_simulated_int8(model)
    rounded = {layer.name.removesuffix("_int8") for layer in simulated.layers if isinstance(layer, FakeQuantization)}
    # Not: conv_bn_relu and bn, which its ReLU takes in; sum, likewise; pool, which moves; mean, gate, score and resized: in float.
    expected = {"rescaled", "relu", "linear", "seen_twice", "second_bn", "sum_relu", "gated", "joined", "up", "depthwise"}
    assert rounded == expected
    assert {layer.name for layer in float_layers(model)} == {"mean", "gate", "score", "resized"}
    kernels = {layer.name for layer in simulated.layers if type(layer).__name__.startswith("Int8")}
    assert kernels == {"conv_bn_relu", "linear", "seen_twice", "up", "depthwise"}
    assert simulated.name == model.name and simulated.output_shape == model.output_shape
    assert [x.name for x in simulated.inputs] == ["image"]


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("fcn8s", {"score", "upscore8", "fuse_pool3", "score_pool3", "score_pool3c", "upscore_pool4"}),
        ("deeplab_v1", {"fc8_voc12", "fc8_interp", "fc8_crop"}),
        ("crf_rnn", {"inference1", "coarse", "upsample"}),
        # The scores, and what unpooling's switches are found in.
        ("deconvnet", {"seg-score-voc"} | {f"{kind}{at}" for at in ("1_2", "2_2", "3_3", "4_3", "5_3") for kind in DECONVNET}),
    ],
)
def test_scores_stay_in_float(arch, expected):
    assert {layer.name for layer in float_layers(MODELS[arch](3, **QUICK))} == expected


def test_a_kernel_of_an_unknown_layer_is_refused():
    class Own(keras.layers.Conv2D):
        pass

    image = keras.Input((None, None, 3))
    model = keras.Model(image, Conv2D(2, 1)(Own(4, 3, name="mine")(image)))
    with pytest.raises(KerassegError, match=r"layer 'mine' \(Own\) has a kernel whose int8 form is not known: expected conv.*omit"):
        with_simulated_int8(model)


def gradients_and_outputs(model, x):
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(x, training=False))
        # Random factors: the sum of what is normalised depends on nothing.
        loss = tf.add_n([tf.reduce_sum(y * numbers(*y.shape)) for y in outputs])
    return tape.gradient(loss, [variable.value for variable in model.trainable_variables]), outputs


@pytest.mark.parametrize("arch", EVERY)
def test_every_kind_of_network_has_the_form(arch, monkeypatch):
    model = random_model(arch, 3, **supported(MODELS[arch], padding="same"), **EVERY[arch])
    x = images((max(MODELS[arch].minimum_size, 33),) * 2).astype("float32")
    simulated = with_simulated_int8(model)
    check_forms(simulated, model)
    names = [layer.name for layer in simulated.layers]
    assert len(set(names)) == len(names)
    found, outputs = gradients_and_outputs(simulated, x)
    expected = keras.tree.flatten(model(x))
    for variable, gradient in zip(simulated.trainable_variables, found, strict=True):
        assert gradient is not None and np.isfinite(gradient).all() and np.any(gradient), variable.path
    for received, wanted in zip(outputs, expected, strict=True):
        error = np.sqrt(np.mean((received - wanted) ** 2) / np.mean(wanted**2))
        # DeconvNet's switches, of a network that has learned nothing, flip where what stands before them is rounded.
        assert 1e-4 < error < (0.8 if arch == "deconvnet" else 0.15)
    monkeypatch.setattr(quantization, "fake_quantize_kernel", lambda kernel, axes: tf.convert_to_tensor(kernel))
    monkeypatch.setattr(quantization, "fake_quantize_map", lambda x: x)
    for received, wanted in zip(keras.tree.flatten(simulated(x)), expected, strict=True):
        assert np.array_equal(received, wanted)


def test_an_int8_file_computes_what_the_form_simulates():
    pytest.importorskip("ai_edge_quantizer", reason="not installed: pip install 'kerasseg[lite]'")
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="not installed: pip install 'kerasseg[lite]'")
    model, x = random_model("fcn_pool3", 3), images((65, 65), batch=1).astype("float32")
    # The network stays the same, but most channels of a map are left a few of its 256 values.
    factors = np.float32([1, 30, 900, 30])
    kernel, bias = model.get_layer("conv1_1").get_weights()
    model.get_layer("conv1_1").set_weights([kernel * factors, bias * factors])
    kernel, bias = model.get_layer("conv1_2").get_weights()
    model.get_layer("conv1_2").set_weights([kernel / factors[:, None], bias])
    function = trace(model, Target(quantize="int8-float-io", input_size=(65, 65)))
    interpreter = litert.Interpreter(
        model_content=convert_tflite(function, quantize="int8-float-io", calibration=[x[0], x[0]]).content
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    file = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    plain, simulated = np.asarray(model(x)), np.asarray(with_simulated_int8(model)(x))
    lost = np.sqrt(np.mean((file - plain) ** 2) / np.mean(plain**2))
    assert lost > 0.1 and np.sqrt(np.mean((file - simulated) ** 2) / np.mean(plain**2)) < lost / 3


def test_the_form_is_saved_and_opened(tmp_path):
    model = with_simulated_int8(give_random_weights(branching()))
    model.save(tmp_path / "simulated.keras")
    again, x = load_model(tmp_path / "simulated.keras"), images((12, 16))
    assert np.array_equal(again(x), model(x))
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path, records = tmp_path_factory.mktemp("simulated") / "run", []
    train_recipe(RECIPE, Run(path), report=records.append)
    return path, records


@pytest.mark.parametrize("aware", [False, True])
def test_what_trains_is_the_form(aware):
    # A strategy of replicas refuses a model that was made outside of it.
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"]) if aware else tf.distribute.get_strategy()
    trainer = make_trainer(RECIPE.override(quantization_aware=aware), 6, strategy, initial=False)
    kinds = {type(layer) for layer in trainer.model.layers}
    # The score, too, is a convolution, but in float.
    assert (Int8Conv2D in kinds) == (FakeQuantization in kinds) == aware and Conv2D in kinds


def test_what_is_kept_is_the_plain_network(trained):
    path, records = trained
    model = load_model(path)
    assert not any(isinstance(layer, FakeQuantization | Int8Conv2D) for layer in model.layers)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    best = max(record["mean_iou"] for record in records if "mean_iou" in record)
    again = evaluate(model, open_data("shapes", split="val"), Inference(scales=(0.25,)), limit=2)
    assert again.summary()["mean_iou"] == pytest.approx(best, abs=1e-6)


def test_a_run_resumes_exactly_and_opens_unfinished(trained, tmp_path):
    path, _ = trained
    recipe = Recipe.from_json(Run(path).recipe())
    train_recipe(recipe.override(iterations=2), Run(tmp_path))
    first = weights_of(tmp_path)
    Run(tmp_path).model_path.unlink()
    unfinished = load_model(tmp_path)
    assert not any(isinstance(layer, FakeQuantization | Int8Conv2D) for layer in unfinished.layers)
    assert all(np.array_equal(a, b) for a, b in zip(unfinished.get_weights(), first, strict=True))
    train_recipe(recipe, Run(tmp_path))
    states = [Run(each).checkpoints().last()[1] for each in (path, tmp_path)]
    # Keras numbers what it names by itself through the whole process.
    assert all(np.array_equal(one, other) for one, other in zip(states[0].values(), states[1].values(), strict=True))
    assert any(name.startswith("optimizer") for name in states[0])
    with pytest.raises(KerassegError, match="was begun with quantization_aware=True, received False"):
        train_recipe(recipe.override(quantization_aware=False), Run(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"freeze_batch_norm": True, "precision": "float16"}, {"jit_compile": True, "precision": "bfloat16"}]
)
def test_other_ways_to_train(changes, trained, tmp_path):
    records = []
    train_recipe(
        RECIPE.override(iterations=1, validate_every=None, **changes), Run(tmp_path), init=trained[0], report=records.append
    )
    assert any("started_from" in record and not record["new_layers"] for record in records)
    assert np.isfinite([record["loss"] for record in records if "loss" in record]).all()
    model, before = load_model(tmp_path), weights_of(trained[0])
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    kept = {weight.path for weight, value in zip(model.weights, before, strict=True) if np.array_equal(weight, value)}
    frozen = {weight.path for weight in model.get_layer("bn").weights}
    assert kept == (frozen if "freeze_batch_norm" in changes else set())


def test_the_simulation_trains_away_what_rounding_costs():
    """Where one channel is much larger than the others, these share a few of the 256 values: training finds better weights."""
    image = keras.Input((8, 8, 2))
    hidden = Conv2D(8, 1, activation="relu", name="hidden")(image)
    score = Conv2D(3, 1, name="score")(Conv2D(8, 1, activation="relu", name="next")(hidden))
    model, factors = give_random_weights(keras.Model(image, score)), np.float32([100] + 7 * [1])
    kernel, bias = model.get_layer("hidden").get_weights()
    model.get_layer("hidden").set_weights([kernel * factors, bias * factors])
    kernel, bias = model.get_layer("next").get_weights()
    model.get_layer("next").set_weights([kernel / factors[:, None], bias])
    x = np.random.default_rng(1).random((8, 8, 8, 2), np.float32)
    wanted, simulated = model(x), with_simulated_int8(model)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.02, 300, 0.0))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((simulated(x, training=True) - wanted) ** 2) / tf.math.reduce_variance(wanted)
        variables = simulated.trainable_variables
        optimizer.apply(tape.gradient(error, [variable.value for variable in variables]), variables)
        return error

    errors = [float(step()) for _ in range(300)]
    # Steps go to and fro between two of the 256 values.
    assert np.median(errors[-50:]) < errors[0] / 2
    # The plain network takes the weights back, and is as good.
    copy_weights(simulated, model)
    assert np.mean((model(x) - wanted) ** 2) / np.var(wanted) < errors[0] / 2


def test_the_command_line(tmp_path, capsys):
    tiny = ("--arch", "toy", "--batch-size", "2", "--iterations", "1", "--validate-every", "none", "--run-dir", tmp_path)
    assert run(train_command, *tiny, "--quantization-aware") == 0
    assert Run(tmp_path).recipe()["quantization_aware"]
    assert run(train_command, "--run-dir", tmp_path, "--iterations", "2", "--no-quantization-aware") == 2
    assert "quantization_aware=True, received False" in capsys.readouterr().err


def test_each_of_two_replicas_rounds_by_ranges_of_its_own():
    code, out, err = finish("tests/quantized_replicas.py")
    assert code == 0, out + err
    found = {name: np.array(value) for name, value in json.loads(out.splitlines()[-1]).items()}
    assert np.isfinite(found["loss"]) and np.array_equal(found["first"], found["second"])
    moved, together = found["apart"] - found["start"], np.abs(found["apart"] - found["together"]).max()
    # What one range for all images would make of it is far from that.
    assert np.abs(moved).max() > 1e-3 and together > 3e-5
    np.testing.assert_allclose(found["first"], found["apart"], rtol=0, atol=1e-6)
