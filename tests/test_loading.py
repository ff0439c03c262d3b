import keras
import numpy as np
import pytest

from kerasseg import KerassegError, runs
from kerasseg.evaluation import load_model, predict
from kerasseg.labels import generic_table
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.metrics import SegmentationMetrics
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import build_network

LABELS = generic_table(("ground", "cat", "dog"))


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs)))


def photograph():
    return np.random.default_rng(5).integers(0, 256, (11, 14, 3), np.uint8)


def test_load_model_opens_a_run_by_its_model_file(tmp_path):
    model = make_model()
    run = runs.Run(tmp_path)
    with pytest.raises(KerassegError, match="not a run directory"):
        load_model(tmp_path)
    run.save_model(model.save)
    np.testing.assert_array_equal(predict(load_model(tmp_path), photograph()), predict(model, photograph()))


def test_load_model_opens_an_unfinished_run_by_its_newest_checkpoint(tmp_path):
    recipe = RECIPES["shapes"].override(arch="fcn32s", width_multiplier=1 / 16)
    run = runs.Run(tmp_path)
    run.begin(recipe.to_json(), LABELS)
    with pytest.raises(KerassegError, match="neither model.keras nor a checkpoint"):
        load_model(tmp_path)
    model = build_network(recipe, LABELS.num_classes)
    values = [np.random.default_rng(7).normal(size=v.shape) if "seed" not in v.path else v.numpy() for v in model.variables]
    for shift, step in ((1.0, 5), (0.0, 9)):
        arrays = {f"model/{i:04d}/name": value + shift for i, value in enumerate(values)}
        run.checkpoints().save(step, arrays)
    for found, value in zip(load_model(tmp_path).variables, values, strict=True):
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-6)


def test_load_model_opens_what_was_saved(tmp_path):
    model = make_model()
    model.compile("sgd", loss=SegmentationCrossEntropy("sum"), metrics=[SegmentationMetrics(3)])
    path = tmp_path / "model.keras"
    model.save(path)
    again = load_model(str(path))
    np.testing.assert_array_equal(predict(again, photograph()), predict(model, photograph()))
    assert again.loss.normalization == "sum"


def test_load_model_errors_are_one_line(tmp_path):
    broken, other = tmp_path / "broken.keras", tmp_path / "weights.txt"
    make_model().save(tmp_path / "model.keras")
    whole = (tmp_path / "model.keras").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    other.write_text("no model")
    inside = tmp_path / "inside.keras"
    inside.write_bytes(whole.replace(b'"Conv2D"', b'"Conv9D"').replace(b"config.json", b"konfig.json"))
    for path, message in (
        (tmp_path / "missing.keras", "no model at"),
        (other, "is not a .keras file"),
        (broken, "damaged one"),
        (inside, "cannot open"),
    ):
        with pytest.raises(KerassegError, match=message) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
