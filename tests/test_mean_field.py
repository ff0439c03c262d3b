"""kerasseg.crf.MeanField beyond its numbers: masks, batches, XLA, loops, saving; and pydensecrf on random parameters."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import images

from kerasseg.crf import MeanField, dense_crf
from kerasseg.crf.parameters import NORMALIZATIONS, Parameters

GOLDEN = Path(__file__).with_name("golden") / "pydensecrf.npz"
OPTIONS = {"iterations": 3, "theta_alpha": 6.0, "theta_beta": 30.0, "theta_gamma": 1.5, "normalization": "after"}
FORMS = [("scalar", "potts"), ("class", "potts"), ("scalar", "matrix"), ("matrix", "matrix")]


def pair(batch=1, size=(7, 9), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (batch, *size, classes)).astype("float32"), images(size, batch=batch, seed=seed, block=3).astype(
        "float32"
    )


def compiled(layer):
    return tf.function(lambda *inputs: layer(list(inputs)), jit_compile=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_marginals_are_pydensecrfs_on_random_parameters(normalization):
    with np.load(GOLDEN) as golden:
        image, logits, parameters, expected = (
            golden[f"{normalization}_{key}"] for key in ("image", "logits", "parameters", "marginals")
        )
    settings = Parameters(*parameters, iterations=5, normalization=normalization)
    difference = np.abs(dense_crf(image, logits, settings) - expected).max()
    print(f"{normalization}: {difference:.1e}")
    assert difference <= 1e-5
    layer = MeanField(**settings.layer_arguments())
    for run in (layer, tf.function(layer), tf.function(layer, jit_compile=True)):
        received = tf.nn.softmax(run([tf.constant(logits[None]), tf.constant(image[None])]))[0].numpy()
        assert np.abs(received - expected).max() <= 1e-5


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_masked_pixels_take_no_part_whatever_they_hold(method):
    layer = MeanField(**OPTIONS, method=method)
    logits, image = pair(batch=2)
    padding = ((0, 0), (0, 2), (0, 5), (0, 0))
    padded = [np.pad(each, padding, constant_values=np.nan) for each in (logits, image)]
    mask = np.zeros(padded[0].shape[:3], "uint8")
    mask[:, :7, :9] = 1
    expected = layer([logits, image]).numpy()
    for run in (lambda *inputs: layer(list(inputs)), compiled(layer)):
        received = run(*map(tf.constant, (*padded, mask))).numpy()
        np.testing.assert_allclose(received[:, :7, :9], expected, rtol=1e-5, atol=1e-5)
        assert np.isnan(received[:, 7:]).all()


@pytest.mark.parametrize("form", ["eager", "xla"])
def test_images_of_a_batch_know_nothing_of_each_other(form):
    layer = MeanField(**OPTIONS)
    run = compiled(layer) if form == "xla" else lambda *inputs: layer(list(inputs))
    logits, image = pair(batch=3)
    # Not compiled, which takes long for each size of a batch, and computes the same.
    alone = np.concatenate([layer([logits[i : i + 1], image[i : i + 1]]) for i in range(3)])
    np.testing.assert_allclose(run(logits, image), alone, rtol=1e-5, atol=1e-5)
    image[0, 0, 0] = np.nan
    received = run(logits, image).numpy()
    assert np.isnan(received[0]).any()
    np.testing.assert_allclose(received[1:], alone[1:], rtol=1e-5, atol=1e-5)


def test_colours_too_far_apart_for_xla_are_told():
    layer = MeanField(**OPTIONS)
    logits, image = pair()
    image[0, 0, 0] = 600
    assert np.isfinite(layer([logits, image])).all()
    assert np.isnan(compiled(layer)(logits, image)).all()


def test_unknown_sizes_are_one_line_under_xla():
    run = tf.function(
        lambda a, b: MeanField(**OPTIONS)([a, b]),
        jit_compile=True,
        input_signature=[tf.TensorSpec([None, 7, 9, 3]), tf.TensorSpec([None, 7, 9, 3])],
    )
    # TensorFlow wraps what is raised while it traces.
    with pytest.raises(Exception, match="unknown size or number: XLA"):
        run(*map(tf.constant, pair()))


@pytest.mark.parametrize(("kernel_weights", "compatibility"), FORMS)
def test_it_can_be_saved_for_serving(kernel_weights, compatibility, tmp_path):
    layer = MeanField(**OPTIONS, kernel_weights=kernel_weights, compatibility=compatibility, trainable=True)
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    model = keras.Model(inputs, layer(inputs))
    model.export(tmp_path / "served", verbose=False)
    logits, image = pair()
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(
        served.serve([tf.constant(logits), tf.constant(image)]), model([logits, image]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kernel_weights", "compatibility"), FORMS)
def test_gradients_pass_through_a_loop_around_it(kernel_weights, compatibility):
    layer = MeanField(**OPTIONS, kernel_weights=kernel_weights, compatibility=compatibility, trainable=True)
    logits, image = map(tf.constant, pair(batch=2))
    layer([logits, image])

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.reduce_sum(run() ** 2)
        return tape.gradient(loss, [logits, *layer.trainable_variables])

    def one(inputs):
        return layer([each[tf.newaxis] for each in inputs])[0]

    expected = gradients(lambda: layer([logits, image]))
    received = tf.function(lambda: gradients(lambda: tf.map_fn(one, (logits, image), fn_output_signature=tf.float32)))()
    for got, want in zip(received, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_a_kernel_that_begins_at_zero_trains():
    layer = MeanField(**OPTIONS, bilateral_weight=0.0, trainable=True)
    logits, image = pair()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer([logits, image]) ** 2)
    assert [weight.name for weight in layer.trainable_variables] == ["spatial_weight", "bilateral_weight"]
    assert all(np.abs(gradient) > 1e-3 for gradient in tape.gradient(loss, layer.trainable_variables))


def test_without_onednn_the_numbers_are_the_same(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_mean_field import pair, OPTIONS, MeanField, tf, np
run = tf.function(MeanField(**OPTIONS))
np.save({str(tmp_path / "result.npy")!r}, run(list(map(tf.constant, pair()))))
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"})
    expected = tf.function(MeanField(**OPTIONS))(list(map(tf.constant, pair())))
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), expected, rtol=1e-5, atol=1e-5)
