"""Gradients of kerasseg.crf.MeanField against float64 finite differences, against autodiff of dense matrices, and at work."""

import crf_reference as reference
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, images

from kerasseg.crf import MeanField
from kerasseg.crf.filters import filter_of
from kerasseg.crf.lattice import build
from kerasseg.crf.parameters import NORMALIZATIONS

SIZE, CLASSES, BATCH = (5, 6), 3, 2
THETAS = {"theta_alpha": 6.0, "theta_beta": 40.0, "theta_gamma": 1.5}
METHODS = ("exact", "lattice")
VALUES = ("logits", "bilateral_weight", "spatial_weight", "compatibility")


def some_values(kernel_weights="matrix", seed=0):
    """Logits of two images, both kernels' weights in one of three forms, and a compatibility, in float64."""
    generator = np.random.default_rng(seed)
    shape = {"scalar": (), "class": (CLASSES,), "matrix": (CLASSES, CLASSES)}[kernel_weights]
    middle = np.eye(CLASSES) if kernel_weights == "matrix" else 1.0
    weights = [scale * middle + generator.normal(0, 0.3, shape) for scale in (1.5, 1.0)]
    compatibility = -np.eye(CLASSES) + generator.normal(0, 0.2, (CLASSES, CLASSES))
    values = [generator.normal(0, 1.5, (BATCH, *SIZE, CLASSES)), *weights, compatibility]
    # As the layer will see them, so that both sides start from the same numbers.
    return dict(zip(VALUES, (np.asarray(value, "float32").astype("float64") for value in values), strict=True))


def some_photos():
    return images(SIZE, BATCH, block=2)


def operators(photo, method, normalization):
    """The two kernels as matrices: by the formula, or what the lattice does to each pixel alone, read off column by column."""
    bilateral = reference.bilateral_features(photo, THETAS["theta_alpha"], THETAS["theta_beta"])
    spatial = reference.position_features(SIZE, THETAS["theta_gamma"])
    if method == "exact":
        matrices = [reference.gaussian_kernel(features) for features in (bilateral, spatial)]
    else:
        pixels = np.eye(SIZE[0] * SIZE[1], dtype="float32")
        built = [build(tf.constant(features, tf.float32)) for features in (bilateral, spatial)]
        matrices = [np.asarray(filter_of(each).apply(tf.constant(pixels)), "float64") for each in built]
    return [reference.normalized_kernel(matrix, normalization) for matrix in matrices]


class Problem:
    """A layer, and the same function in float64: a sum of output logits with random factors."""

    def __init__(self, method, iterations=5, normalization="symmetric", kernel_weights="matrix", layer_arguments=None):
        self.values = some_values(kernel_weights)
        self.iterations = iterations
        self.photos = some_photos()
        self.factors = np.random.default_rng(9).normal(size=(BATCH, *SIZE, CLASSES))
        self.matrices = [operators(photo, method, normalization) for photo in self.photos]
        self.layer = MeanField(
            **{"iterations": iterations, **(layer_arguments or {})},
            **THETAS,
            bilateral_weight=self.values["bilateral_weight"],
            spatial_weight=self.values["spatial_weight"],
            compatibility=self.values["compatibility"],
            normalization=normalization,
            method=method,
            kernel_weights=kernel_weights,
            trainable=True,
        )

    def outputs(self, values):
        """Output logits (B, H, W, C) by the equations."""
        made = []
        for logits, (bilateral, spatial) in zip(values["logits"], self.matrices, strict=True):
            kernels = [(bilateral, values["bilateral_weight"]), (spatial, values["spatial_weight"])]
            flat = logits.reshape(-1, CLASSES)
            made.append(reference.mean_field(flat, kernels, self.iterations, values["compatibility"])[-1].reshape(logits.shape))
        return np.stack(made)

    def finite_differences(self, step=1e-5):
        def loss(name, place, change):
            values = {key: value.copy() for key, value in self.values.items()}
            values[name][place] += change
            return np.sum(self.factors * self.outputs(values))

        return {
            name: np.array([(loss(name, at, step) - loss(name, at, -step)) / (2 * step) for at in np.ndindex(value.shape)])
            for name, value in self.values.items()
        }

    def of_layer(self, jit_compile=None, training=None):
        """Output and gradients of the layer."""
        inputs = [tf.constant(self.values["logits"], tf.float32), tf.constant(self.photos, tf.float32)]

        def run(logits, photos):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                output = self.layer([logits, photos], training=training)
                total = tf.reduce_sum(tf.cast(self.factors, tf.float32) * output)
            variables = {variable.name: variable.value for variable in self.layer.trainable_variables}
            return output, tape.gradient(total, {"logits": logits, **variables})

        if not self.layer.built:
            self.layer.build([each.shape for each in inputs])
        output, gradients = (run if jit_compile is None else tf.function(run, jit_compile=jit_compile))(*inputs)
        assert set(gradients) == set(VALUES)
        return output.numpy(), {name: gradient.numpy() for name, gradient in gradients.items()}

    def check(self, tolerance=2e-5, **arguments):
        output, gradients = self.of_layer(**arguments)
        assert_close(output, self.outputs(self.values), tolerance)
        for name, expected in self.finite_differences().items():
            assert gradients[name].shape == self.values[name].shape
            assert_close(gradients[name].reshape(-1), expected, tolerance)


@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_through_iterations(method, iterations):
    Problem(method, iterations).check()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_normalization(method, normalization):
    # Unscaled sums over 30 pixels drown the logits, except over few iterations.
    Problem(method, 2 if normalization == "none" else 5, normalization).check()


@pytest.mark.parametrize("kernel_weights", ["scalar", "class"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_form_of_weights(method, kernel_weights):
    Problem(method, kernel_weights=kernel_weights).check()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_in_graphs_and_under_xla(method):
    Problem(method, 3).check(jit_compile=False)
    # Not symmetric, so that the transposed kernel is another one.
    Problem(method, 3, "after").check(jit_compile=True)


def test_gradients_through_the_iterations_of_training():
    problem = Problem("lattice", 2, layer_arguments={"iterations": 7, "training_iterations": 2})
    problem.check(training=True)
    problem.iterations = 7
    output, _ = problem.of_layer(training=False)
    assert_close(output, problem.outputs(problem.values), 2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_autodiff(method):
    problem = Problem(method, 5)
    inputs = {name: tf.constant(value) for name, value in problem.values.items()}
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = 0.0
        for index, (bilateral, spatial) in enumerate(problem.matrices):
            logits = tf.reshape(inputs["logits"][index], [-1, CLASSES])
            state = logits
            for _ in range(problem.iterations):
                q = tf.nn.softmax(state)
                message = tf.matmul(bilateral @ q, inputs["bilateral_weight"], transpose_b=True)
                message += tf.matmul(spatial @ q, inputs["spatial_weight"], transpose_b=True)
                state = logits - tf.matmul(message, inputs["compatibility"], transpose_b=True)
            total += tf.reduce_sum(problem.factors[index].reshape(-1, CLASSES) * state)
    expected = tape.gradient(total, inputs)
    _, received = problem.of_layer()
    for name in VALUES:
        assert_close(received[name], expected[name], 2e-5)


def coloured_regions(seed, size=16):
    """Images of three flat colours, the class of each pixel, and logits that are wrong at a third of the pixels."""
    generator = np.random.default_rng(seed)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    labels = generator.integers(0, 3, (4, 4, 4)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    logits = np.eye(3)[labels] + generator.normal(0, 1, (4, size, size, 3))
    return logits.astype("float32"), colours[labels].astype("float32"), labels


def test_what_only_a_crf_can_solve_is_learnt():
    classes, colours = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    layer = MeanField(
        3, 8.0, 20.0, 1.5, bilateral_weight=0.1, spatial_weight=0.1, compatibility="matrix", normalization="after", trainable=True
    )
    model = keras.Model([classes, colours], layer([classes, colours]))
    model.compile(keras.optimizers.Adam(0.2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def errors(seed):
        logits, photos, labels = coloured_regions(seed)
        return [np.mean(each.argmax(-1) != labels) for each in (logits, model.predict_on_batch([logits, photos]))]

    noisy, untrained = errors(1)
    assert noisy > 0.2 and untrained > 0.8 * noisy
    for step in range(12):
        logits, photos, labels = coloured_regions(2 + step % 4)
        model.train_on_batch([logits, photos], labels)
    noisy, trained = errors(1)
    # Shown by `pytest -rP`.
    print(f"wrong pixels: {noisy:.3f} without, {trained:.3f} with the trained CRF")
    assert trained <= noisy / 2
    assert len(layer.trainable_variables) == 3
