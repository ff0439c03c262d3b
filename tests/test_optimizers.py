"""Every rule against a loop in NumPy, in float64 and from the formula; several steps, since one cannot see a momentum."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.optimizers import Adam, AdamW, CaffeSGD, check_multipliers
from kerasseg.recipes import RECIPES
from kerasseg.schedules import WarmUp, make_schedule
from kerasseg.training.freezing import freeze
from kerasseg.training.optimizers import make_optimizer

SHAPES = {"conv1/kernel": (3, 4), "conv1/bias": (4,), "score/kernel": (4, 2), "score/bias": (2,)}
# DeepLab's: the last layer at ten times the rate, biases at twice and without decay.
MULTIPLIERS = {r"score/kernel": (10.0, 1.0), r"score/bias": (20.0, 0.0), r".*/bias": (2.0, 0.0), r"conv1/.*": (1.0, 0.5)}
FACTORS = {"conv1/kernel": (1.0, 0.5), "conv1/bias": (2.0, 0.0), "score/kernel": (10.0, 1.0), "score/bias": (20.0, 0.0)}
STEPS = 5


def variables_of(values):
    made = []
    for path, value in values.items():
        layer, name = path.split("/")
        with keras.name_scope(layer):
            made.append(keras.Variable(value, dtype="float32", name=name))
    assert [variable.path for variable in made] == list(values)
    return made


def problem(seed=0):
    """Values and a gradient for each step, of which the early ones are far larger: what a momentum keeps of them shows."""
    generator = np.random.default_rng(seed)
    values = {path: generator.normal(size=shape) for path, shape in SHAPES.items()}
    gradients = [{path: generator.normal(size=shape) * 4.0**-step for path, shape in SHAPES.items()} for step in range(STEPS)]
    return values, gradients


def trained(optimizer, values, gradients):
    """What the optimizer makes of the values, by path, as float32."""
    variables = variables_of(values)
    for step in gradients:
        optimizer.apply([tf.constant(step[path], tf.float32) for path in values], variables)
    return {path: np.asarray(variable) for path, variable in zip(values, variables, strict=True)}


def caffe_loop(values, gradients, rates, momentum, decay, factors):
    values = {path: value.copy() for path, value in values.items()}
    history = {path: np.zeros_like(value) for path, value in values.items()}
    for rate, step in zip(rates, gradients, strict=True):
        for path, (r, d) in factors.items():
            # Caffe's SGDSolver: Regularize, then ComputeUpdateValue.
            local_rate, local_decay = rate * r, decay * d
            history[path] = local_rate * (step[path] + local_decay * values[path]) + momentum * history[path]
            values[path] = values[path] - history[path]
    return values


def adam_loop(values, gradients, rates, factors, *, l2_decay=0.0, weight_decay=0.0, epsilon=1e-7):
    values = {path: value.copy() for path, value in values.items()}
    first, second = ({path: np.zeros_like(value) for path, value in values.items()} for _ in range(2))
    for t, (rate, step) in enumerate(zip(rates, gradients, strict=True), start=1):
        for path, (r, d) in factors.items():
            gradient = step[path] + l2_decay * d * values[path]
            first[path] = 0.9 * first[path] + 0.1 * gradient
            second[path] = 0.999 * second[path] + 0.001 * gradient**2
            # Kingma & Ba, the form just before §2.1, epsilon hat outside the correction of the bias.
            change = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * first[path] / (np.sqrt(second[path]) + epsilon)
            values[path] = values[path] - rate * r * (change + weight_decay * d * values[path])
    return values


def assert_same(received, expected, tolerance=2e-6):
    for path, value in expected.items():
        np.testing.assert_allclose(received[path], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=path)


# Caffe's rule


def test_five_steps_are_caffes():
    values, gradients = problem()
    rates = [0.05 * (1 - step / STEPS) ** 0.9 for step in range(STEPS)]
    optimizer = CaffeSGD(make_schedule("poly", 0.05, iterations=STEPS), 0.9, 0.05, MULTIPLIERS)
    received = trained(optimizer, values, gradients)
    assert_same(received, caffe_loop(values, gradients, rates, 0.9, 0.05, FACTORS))
    # What it would be with one thing left out, for each: the test can tell.
    for other in (
        caffe_loop(values, gradients, [0.05] * STEPS, 0.9, 0.05, FACTORS),
        caffe_loop(values, gradients, rates, 0.0, 0.05, FACTORS),
        caffe_loop(values, gradients, rates, 0.9, 0.0, FACTORS),
        caffe_loop(values, gradients, rates, 0.9, 0.05, dict.fromkeys(FACTORS, (1.0, 1.0))),
    ):
        with pytest.raises(AssertionError):
            assert_same(received, other, 1e-3)


def test_the_rate_is_inside_the_velocity():
    # Keras' and torch's other form, w ← w − rate · v with v ← μ v + g, differs only where the rate changes.
    values, gradients = problem()
    rates = [0.1, 0.1, 0.01, 0.01, 0.01]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
    received = trained(CaffeSGD(schedule, 0.9), values, gradients)
    assert_same(received, caffe_loop(values, gradients, rates, 0.9, 0.0, dict.fromkeys(SHAPES, (1.0, 1.0))))
    for path, value in values.items():
        velocity = 0
        for rate, step in zip(rates, gradients, strict=True):
            velocity = 0.9 * velocity + step[path]
            value = value - rate * velocity
        assert np.abs(received[path] - value).max() > 0.1


def test_a_network_trains_as_by_hand():
    """Two layers, the squared error, gradients from a tape; by hand in float64, the gradients too."""
    generator = np.random.default_rng(1)
    inputs, targets = generator.normal(size=(8, 3)), generator.normal(size=(8, 2))
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(2, name="score")(keras.layers.Dense(4, "relu", name="conv1")(x)))
    values = problem()[0]
    model.set_weights(list(values.values()))
    optimizer = CaffeSGD(make_schedule("poly", 0.02, iterations=STEPS), 0.9, 0.05, MULTIPLIERS)
    history = {path: np.zeros_like(value) for path, value in values.items()}
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs.astype("float32")) - targets.astype("float32")) ** 2)
        optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]), model.trainable_variables)
        before = inputs @ values["conv1/kernel"] + values["conv1/bias"]
        hidden = np.maximum(before, 0)
        error = 2 * (hidden @ values["score/kernel"] + values["score/bias"] - targets) / targets.size
        back = error @ values["score/kernel"].T * (before > 0)
        gradients = {
            "conv1/kernel": inputs.T @ back,
            "conv1/bias": back.sum(0),
            "score/kernel": hidden.T @ error,
            "score/bias": error.sum(0),
        }
        rate = 0.02 * (1 - step / STEPS) ** 0.9
        for path, (r, d) in FACTORS.items():
            history[path] = 0.9 * history[path] + rate * r * (gradients[path] + 0.05 * d * values[path])
            values[path] = values[path] - history[path]
    assert [weight.path for weight in model.weights] == list(SHAPES)
    assert_same({weight.path: np.asarray(weight) for weight in model.weights}, values, 5e-6)


# Adam and AdamW


@pytest.mark.parametrize(
    ("ours", "keras_own", "arguments"),
    [
        (Adam, keras.optimizers.Adam, {}),
        (Adam, keras.optimizers.Adam, {"weight_decay": 0.05, "amsgrad": True}),
        (AdamW, keras.optimizers.AdamW, {}),
        (AdamW, keras.optimizers.AdamW, {"weight_decay": 0.05, "beta_2": 0.99, "clipnorm": 0.5}),
    ],
)
def test_without_multipliers_it_is_keras_own(ours, keras_own, arguments):
    values, gradients = problem()
    rate = make_schedule("poly", 0.1, iterations=STEPS)
    made, reference = ours(rate, **arguments), keras_own(rate, **arguments)
    assert isinstance(made, keras_own)
    received, expected = trained(made, values, gradients), trained(reference, values, gradients)
    for path in SHAPES:
        np.testing.assert_array_equal(received[path], expected[path])
    # Nothing more to keep than Keras has: a checkpoint of one fits the other.
    assert [v.shape for v in made.variables] == [v.shape for v in reference.variables]
    for one, other in zip(made.variables, reference.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(("kind", "decay"), [(Adam, "l2_decay"), (Adam, "weight_decay"), (AdamW, "weight_decay")])
def test_adam_with_multipliers_is_its_formula(kind, decay):
    values, gradients = problem()
    rates = [0.01 * (1 - step / STEPS) ** 0.9 for step in range(STEPS)]
    optimizer = kind(make_schedule("poly", 0.01, iterations=STEPS), multipliers=MULTIPLIERS, **{decay: 0.5})
    received = trained(optimizer, values, gradients)
    assert_same(received, adam_loop(values, gradients, rates, FACTORS, **{decay: 0.5}), 5e-6)
    for other in (
        adam_loop(values, gradients, rates, FACTORS),
        adam_loop(values, gradients, rates, dict.fromkeys(FACTORS, (1.0, 1.0)), **{decay: 0.5}),
    ):
        with pytest.raises(AssertionError):
            assert_same(received, other, 1e-3)


def test_keras_own_exclusions_from_decay_hold():
    values, gradients = problem()
    optimizer = AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    factors = {path: (1.0, float("bias" not in path)) for path in SHAPES}
    expected = adam_loop(values, gradients, [0.01] * STEPS, factors, weight_decay=0.5)
    assert_same(trained(optimizer, values, gradients), expected, 5e-6)


# All of them

ALL = [
    lambda rate, multipliers: CaffeSGD(rate, 0.9, 0.05, multipliers),
    lambda rate, multipliers: Adam(rate, l2_decay=0.05, multipliers=multipliers),
    lambda rate, multipliers: AdamW(rate, weight_decay=0.05, multipliers=multipliers),
]
NAMES = ["CaffeSGD", "Adam", "AdamW"]


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_rate_zero_freezes(make):
    values, gradients = problem()
    received = trained(make(0.1, {"conv1/.*": (0.0, 1.0)}), values, gradients)
    for path, value in values.items():
        assert np.array_equal(received[path], value.astype("float32")) == path.startswith("conv1"), path


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_a_multiplier_without_a_variable_is_one_line(make):
    values, gradients = problem()
    with pytest.raises(KerassegError, match=r"^multiplier 'scor/bias' matches .* no variable: did you mean 'score/bias'\?$"):
        trained(make(0.1, {"scor/bias": (20.0, 0.0)}), values, gradients)
    # Whole paths: a part of one is no match.
    with pytest.raises(KerassegError, match="multiplier 'bias' matches the whole path of no variable"):
        trained(make(0.1, {"bias": (2.0, 0.0)}), values, gradients)
    with pytest.raises(KerassegError, match=r"multiplier '\(' is not a regular expression: "):
        check_multipliers({"(": (1.0, 1.0)}, values)


def network():
    keras.utils.set_random_seed(3)
    image = keras.Input((5, 7, 3))
    x = keras.layers.Conv2D(4, 1, name="conv1")(image)
    return keras.Model(image, keras.layers.Conv2D(3, 1, name="score")(x))


def examples(count=4):
    generator = np.random.default_rng(0)
    return generator.random((count, 5, 7, 3), np.float32), generator.integers(0, 3, (count, 5, 7)).astype(np.int32)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_a_compiled_model_keeps_its_optimizer(make, tmp_path):
    model = network()
    optimizer = make(make_schedule("poly", 0.1, iterations=10, warmup_steps=2), MULTIPLIERS)
    model.compile(optimizer, loss=SegmentationCrossEntropy())
    images, labels = examples()
    model.fit(images, labels, batch_size=2, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    opened = kerasseg.load_model(tmp_path / "model.keras")
    assert type(opened.optimizer) is type(optimizer) and opened.optimizer.get_config() == optimizer.get_config()
    slots = ("velocity",) if isinstance(optimizer, CaffeSGD) else ("momentum", "velocity")
    pairs = list(zip(optimizer.variables, opened.optimizer.variables, strict=True))
    assert sum(np.abs(np.asarray(before)).max() > 0 for before, _ in pairs if before.path.endswith(slots)) == 4 * len(slots)
    for before, after in pairs:
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    for each in (model, opened):
        each.fit(images, labels, batch_size=4, shuffle=False, verbose=0)
    for before, after in zip(model.get_weights(), opened.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_misspelt_multiplier_stops_fit():
    model = network()
    model.compile(CaffeSGD(0.1, multipliers={"scores/bias": (20.0, 0.0)}), loss=SegmentationCrossEntropy())
    with pytest.raises(KerassegError, match="did you mean 'score/bias'"):
        model.fit(*examples(), verbose=0)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_mirrored_variables_get_the_same_steps(make):
    values, gradients = problem()
    expected = trained(make(0.01, MULTIPLIERS), values, gradients)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        variables, optimizer = variables_of(values), make(0.01, MULTIPLIERS)
        optimizer.build(variables)
    assert all(isinstance(v.value, tf.distribute.DistributedValues) for v in variables)

    @tf.function(autograph=False)
    def step(*slopes):
        # The identity gives them a device, which Keras' reduction over replicas needs.
        strategy.run(lambda *g: optimizer.apply([tf.identity(each) for each in g], variables), slopes)

    for slopes in gradients:
        step(*[tf.constant(slopes[path], tf.float32) for path in values])
    for path, variable in zip(values, variables, strict=True):
        np.testing.assert_allclose(np.asarray(variable.value.values[0]), expected[path], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_gradients_of_half_precision_train_float32_weights(make):
    values, gradients = problem()
    # Representable in bfloat16, so that both get the same numbers.
    rounded = [{path: np.asarray(tf.cast(g, tf.bfloat16), "float32") for path, g in step.items()} for step in gradients]
    expected = trained(make(0.01, MULTIPLIERS), values, rounded)
    variables, optimizer = variables_of(values), make(0.01, MULTIPLIERS)
    for step in rounded:
        optimizer.apply([tf.constant(step[path], tf.bfloat16) for path in values], variables)
    for path, variable in zip(values, variables, strict=True):
        assert variable.dtype == "float32"
        np.testing.assert_array_equal(np.asarray(variable), expected[path])


# What recipes ask for


def test_a_recipe_makes_its_optimizer():
    caffe = make_optimizer(RECIPES["fcn_alexnet_voc"])
    assert type(caffe) is CaffeSGD and (caffe.momentum, caffe.l2_decay) == (0.9, 5e-4)
    assert caffe.multipliers_of("score_fr/bias") == (2.0, 0.0) and caffe.multipliers_of("conv1/bias") == (1.0, 1.0)
    assert caffe.multipliers_of("score_fr/bias_of_another") == (1.0, 1.0)
    shapes = RECIPES["shapes"]
    adam = make_optimizer(shapes.override(weight_decay=0.1, multipliers={".*/bias": (2.0, 0.0)}))
    assert type(adam) is Adam and (adam.l2_decay, adam.weight_decay) == (0.1, None) and adam.multipliers_of("a/bias") == (2.0, 0.0)
    adamw = make_optimizer(shapes.override(optimizer="adamw", weight_decay=0.1, multipliers={".*/bias": (2.0, 0.0)}))
    assert type(adamw) is AdamW and (adamw.l2_decay, adamw.weight_decay) == (0.0, 0.1)
    assert adamw.multipliers_of("a/bias") == (2.0, 0.0)
    assert make_optimizer(shapes.override(optimizer="adamw")).weight_decay == 0.0
    with pytest.raises(KerassegError, match="^optimizer='lion': expected one of sgd, adam, adamw$"):
        make_optimizer(shapes.override(optimizer="lion"))


def test_a_recipe_makes_its_warm_up():
    plain = make_optimizer(RECIPES["shapes"])
    assert type(plain._learning_rate) is keras.optimizers.schedules.PolynomialDecay
    slow = RECIPES["shapes"].override(warmup="constant", warmup_steps=10, warmup_rate=1e-4)
    schedule = make_optimizer(slow)._learning_rate
    assert type(schedule) is WarmUp and (schedule.kind, schedule.steps, schedule.rate) == ("constant", 10, 1e-4)
    assert schedule.schedule.decay_steps == RECIPES["shapes"].iterations - 10


def test_multipliers_of_frozen_layers_are_left_out():
    model = network()
    freeze(model, ["conv1"])
    recipe = RECIPES["fcn32s_voc"].override(multipliers={"conv1/kernel": (0.1, 1.0), ".*/bias": (2.0, 0.0)})
    optimizer = make_optimizer(recipe, model)
    optimizer.build(model.trainable_variables)
    assert optimizer.multipliers == {".*/bias": (2.0, 0.0)}
    with pytest.raises(KerassegError, match="multiplier 'conv2/kernel' .* did you mean 'conv1/kernel'"):
        make_optimizer(recipe.override(multipliers={"conv2/kernel": (0.1, 1.0)}), model)
