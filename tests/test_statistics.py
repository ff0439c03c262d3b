"""Statistics of batch normalization by forward passes, against NumPy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import finish, run, write_camvid
from helpers import QUICK, assert_close, give_random_weights, images

from kerasseg import KerassegError, load_model
from kerasseg.cli import recompute_batch_norm
from kerasseg.cli.opening import Opened
from kerasseg.data import training_batches
from kerasseg.layers import BatchNormalization, Conv2D, Dropout
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.recipes.building import open_training_data, recipe_transforms
from kerasseg.runs import write_json
from kerasseg.training.statistics import recompute_statistics

EPSILON = 1e-3


def network(kind=BatchNormalization, size=(None, None)):
    image = keras.Input((*size, 3))
    x = Conv2D(4, 1, name="first")(image)
    x = keras.layers.Activation("relu")(kind(momentum=0.9, epsilon=EPSILON, name="norm1")(x))
    x = Dropout(0.5, seed=3, name="drop")(x)
    x = Conv2D(5, 1, name="second")(x)
    x = kind(momentum=0.5, epsilon=EPSILON, name="norm2")(x)
    return give_random_weights(keras.Model(image, x, name="small"))


def batches(count, size=(4, 5)):
    return [np.random.default_rng(seed).normal(seed, 1, (3, *size, 3)).astype("float32") for seed in range(count)]


def by_numpy(model, given):
    """Means and biased variances of each batch in both layers, averaged."""
    found = {"norm1": [], "norm2": []}
    for batch in given:
        x = batch.astype("float64")
        for layer, norm in (("first", "norm1"), ("second", "norm2")):
            kernel, bias = (value.astype("float64") for value in model.get_layer(layer).get_weights())
            x = x @ kernel[0, 0] + bias
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            found[norm].append((mean, variance))
            gamma, beta = (value.astype("float64") for value in model.get_layer(norm).get_weights()[:2])
            x = np.maximum((x - mean) / np.sqrt(variance + EPSILON) * gamma + beta, 0)
    return {norm: np.mean(pairs, axis=0) for norm, pairs in found.items()}


@pytest.mark.parametrize("kind", [BatchNormalization, keras.layers.BatchNormalization])
def test_statistics_are_the_means_over_all_batches(kind):
    model, given = network(kind), batches(4)
    model.get_layer("norm1").trainable = False
    before = {weight.path: np.array(weight) for weight in model.variables}
    expected, told = by_numpy(model, given), []
    # As data sets give them: an image and a label; and more than are asked for.
    assert recompute_statistics(model, [(x, None) for x in [*given, given[0] * 9]], 4, lambda *of: told.append(of)) is None
    for norm, (mean, variance) in expected.items():
        layer = model.get_layer(norm)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # Nothing else has changed, random state included.
    for weight in model.variables:
        assert ("moving" in weight.path) == (not np.array_equal(weight, before[weight.path])), weight.path
    kept = [(layer.momentum, layer.trainable) for layer in map(model.get_layer, ("norm1", "norm2"))]
    assert kept == [(0.9, False), (0.5, True)] and model.get_layer("drop").rate == 0.5
    # Twice is once: what was there before does not count.
    once = model.get_weights()
    recompute_statistics(model, given, 4)
    for one, two in zip(once, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_batches_of_other_sizes_count_alike():
    model, given = network(), [*batches(1, (2, 3)), *batches(2, (6, 4))[1:]]
    expected = by_numpy(model, given)
    recompute_statistics(model, (tf.constant(x) for x in given), 2)
    np.testing.assert_allclose(model.get_layer("norm2").moving_variance, expected["norm2"][1], rtol=1e-5)


def test_mistakes_leave_the_network_as_it_was():
    model, given = network(), batches(3)
    before = model.get_weights()
    broken = [given[0], given[1] * np.nan]
    for action, message in (
        (lambda: recompute_statistics(model, given, 4), "received 3 batches for 4 passes"),
        (lambda: recompute_statistics(model, given, 0), "passes=0: expected 1 or more"),
        (lambda: recompute_statistics(model, broken, 2), "norm1/moving_mean of small is not finite [(]4 of 4"),
    ):
        with pytest.raises(KerassegError, match=message):
            action()
        for one, two in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
        assert model.get_layer("norm1").momentum == 0.9 and model.get_layer("drop").rate == 0.5
    for net, size in ((MODELS["deconvnet"](5, **QUICK), (33, 224)), (network(size=(8, 8)), (8, 9))):
        with pytest.raises(
            KerassegError, match=f"{net.name} cannot take images of {size[0]}x{size[1]} .* --resize and --crop-size"
        ) as e:
            recompute_statistics(net, batches(1, size), 1)
        assert "\n" not in str(e.value)
    plain = keras.Sequential([keras.Input((4, 4, 3)), Conv2D(2, 1)], name="plain")
    with pytest.raises(KerassegError, match="plain has no batch normalization"):
        recompute_statistics(plain, given, 1)


def test_deconvnet_normalises_by_them_as_in_training():
    model = give_random_weights(MODELS["deconvnet"](5, **QUICK))
    # Behind fc6 an image is one cell: of two images, hardly differing ones would differ by what rounding says.
    x = images((224, 224), batch=4).astype("float32")
    recompute_statistics(model, [x], 1)
    for name in ("relu5_3", "derelu5_1", "derelu1_2"):
        part = keras.Model(model.input, model.get_layer(name).output)
        ours, theirs = (np.asarray(part(x, training=training)) for training in (False, True))
        assert_close(ours, theirs, 1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, a network whose statistics are nonsense, and a run that ended with it."""
    root = tmp_path_factory.mktemp("statistics")
    write_camvid(root / "camvid")
    network().save(root / "net.keras")
    (root / "run").mkdir()
    network().save(root / "run/model.keras")
    recipe = RECIPES["shapes"].override(data="camvid", data_dir=str(root / "camvid"), crop_size=(17, 9), examples="objects", seed=7)
    write_json(root / "run/recipe.json", recipe.to_json())
    return root


def given(recipe, batch_size, seed):
    data = open_training_data(recipe)
    return training_batches(data, batch_size, transforms=recipe_transforms(recipe, data.mean), seed=seed)


def test_a_run_knows_its_examples(place):
    assert run(recompute_batch_norm, place / "run", "--passes", "2", "--batch-size", "3", "--crop-size", "9x9") == 0
    written, expected = load_model(place / "run/model_statistics.keras"), network()
    recipe = Recipe.from_json(json.loads((place / "run/recipe.json").read_text())).override(crop_size=(9, 9))
    recompute_statistics(expected, given(recipe, 3, 7), 2)
    for one, two in zip(written.weights, expected.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=one.path)
    # What the run had is still there.
    np.testing.assert_array_equal(load_model(place / "run/model.keras").get_weights()[4], network().get_weights()[4])


def test_the_tool_writes_a_file_beside(place, capsys):
    words = ["--data", "camvid", "--data-dir", place / "camvid", "--crop-size", "33x33", "--passes", "3", "--batch-size", "2"]
    assert run(recompute_batch_norm, place / "net.keras", *words, "--seed", "4") == 0
    assert f"{place / 'net_statistics.keras'}: statistics of 3 passes of 2 images" in capsys.readouterr().out
    written, expected = load_model(place / "net_statistics.keras"), load_model(place / "net.keras")
    recipe = RECIPES["shapes"].override(flip=False, data="camvid", data_dir=str(place / "camvid"), crop_size=(33, 33))
    recompute_statistics(expected, given(recipe, 2, 4), 3)
    for one, two in zip(written.weights, expected.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=one.path)
    original = load_model(place / "net.keras")
    changed = {one.path for one, two in zip(written.weights, original.weights, strict=True) if not np.array_equal(one, two)}
    assert changed == {weight.path for weight in original.weights if "moving" in weight.path}


def test_other_data_have_another_folder(place, tmp_path):
    recipe = RECIPES["deconvnet_voc"].final().override(data_dir=str(place), boxes="b.json", bootstrap_classes=("cat",))
    opened = Opened(None, place / "run", recipe, None)

    def found(*words):
        return recompute_batch_norm._recipe(opened, recompute_batch_norm.parser().parse_args(["x", *words]))

    other = found("--data", "camvid")
    assert (other.data_dir, other.split, other.boxes, other.bootstrap_classes) == (None, "train", None, ())
    assert (other.examples, other.resize) == ("proposals", (224, 224))
    assert found("--data", "camvid", "--data-dir", "x", "--split", "val").split == "val"
    assert found() == found("--data", "voc") == recipe


def test_mistakes_of_the_command_line_are_one_line(place, capsys):
    data = ("--data", "camvid", "--data-dir", place / "camvid")
    for words, message in (
        ((place / "net.keras",), "does not say what it was trained on: pass --data"),
        ((place / "net.keras", *data, "--out", "x.h5"), "--out x.h5: expected a file name that ends in .keras"),
        ((place / "net.keras", *data, "--passes", "0"), "--passes 0: expected 1 or more"),
        ((place / "net.keras", *data, "--batch-size", "-1"), "--batch-size -1: expected 1 or more"),
        ((place / "net.keras", *data, "--examples", "thing"), "examples='thing'"),
        ((place / "none.keras", *data), "no model at"),
    ):
        assert run(recompute_batch_norm, *words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [message in line for line in lines if line.startswith("error: ")] == [True]


def test_the_script_says_what_it_takes():
    code, out, _ = finish("tools/recompute_batch_norm.py", "--help")
    assert code == 0 and "--passes" in out and "default: 501" in out and "default: 28" in out
