"""Networks that train in another form than they are evaluated in: DeepLab's logits at an eighth, several losses, other strides."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import TOY, run, toy_offered, weights_of
from PIL import Image

from kerasseg import KerassegError, load_model
from kerasseg.backbones.building import image_input, preprocess
from kerasseg.cli import evaluate as evaluate_command
from kerasseg.cli import predict as predict_command
from kerasseg.data import open_data
from kerasseg.evaluation import Inference, evaluate, predict
from kerasseg.layers import AlignedResizeLike, Conv2D
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import recipe_transforms
from kerasseg.runs import Run
from kerasseg.training import Trainer, dry_run, recording, train_recipe
from kerasseg.training.recording import validate
from kerasseg.training.step import label_dict


def formed(
    num_classes=6,
    *,
    preprocessing="torch",
    width_multiplier=1.0,
    weights=None,
    output_stride=4,
    upsample_logits=True,
    auxiliary_outputs=False,
    extra=False,
    num_features=4,
    input_shape=(None, None, 3),
):
    """Two convolutions at a stride and their scores, as one output or as two."""
    image = image_input(input_shape)
    x = preprocess(image, preprocessing)
    first = Conv2D(num_features, 3, strides=output_stride, padding="same", activation="relu", name="first")(x)
    outputs = {"fine": Conv2D(num_classes, 1, name="score")(Conv2D(4, 1, activation="relu", name="second")(first))}
    if extra:
        outputs["fine"] = Conv2D(num_classes, 1, name="extra")(outputs["fine"])
    if auxiliary_outputs:
        # Shared, as DeepLab v2's scales share theirs.
        outputs["coarse"] = outputs["fine"]
    if upsample_logits:
        resize = AlignedResizeLike(dtype="float32", name="logits")
        outputs = {key: resize([value, image]) for key, value in outputs.items()}
    return keras.Model(image, outputs if auxiliary_outputs else outputs["fine"], name="formed")


# The name in the room is the function's.
dry_run_module = sys.modules["kerasseg.training.dry_run"]

# Crops of 33: logits of 9 at stride 4, labels at every fourth pixel.
RECIPE = Recipe(
    name="formed",
    **{
        **TOY,
        "arch": "formed",
        "image_scale": 0.5,
        "crop_size": (33, 33),
        "training_arguments": {"upsample_logits": False, "auxiliary_outputs": True},
        "validate_every": 2,
        "validation_images": 2,
        "checkpoint_every": 2,
    },
)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(formed="test_training_forms:RECIPE"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS._locations, "formed", "test_training_forms:formed")
        yield


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("forms") / "run"
    records = []
    train_recipe(RECIPE.override(precision=request.param), Run(path), report=records.append)
    return path, records


def test_what_is_kept_is_the_form_that_is_evaluated(trained):
    path, records = trained
    model = load_model(path)
    assert model.output_shape == (None, None, None, 6)
    assert model(np.zeros((1, 31, 40, 3), "float32")).shape == (1, 31, 40, 6)
    assert np.isfinite([record["loss"] for record in records if "loss" in record]).all()
    # The best validation's score is that of the network kept, run as the recipe says.
    best = max(record["mean_iou"] for record in records if "mean_iou" in record)
    again = evaluate(model, open_data("shapes", split="val"), Inference(scales=(0.5,)), limit=2)
    assert again.summary()["mean_iou"] == pytest.approx(best, abs=2e-3)


def test_an_unfinished_run_opens_in_that_form(trained, tmp_path):
    path, _ = trained
    unfinished = Run(tmp_path)
    unfinished.begin(Run(path).recipe(), open_data("shapes").labels)
    step, state = Run(path).checkpoints().last()[:2]
    unfinished.checkpoints().save(step, state)
    model = load_model(tmp_path)
    assert model.output_shape == (None, None, None, 6)
    expected = [value for name, value in state.items() if name.startswith("model/") and "seed" not in name]
    assert len(expected) == len(model.get_weights()) == 6
    for received in model.get_weights():
        assert any(received.shape == value.shape and np.array_equal(received, value) for value in expected)


def test_another_output_stride_has_the_same_weights(trained, tmp_path, capsys):
    path, _ = trained
    model, finer = load_model(path), load_model(path, output_stride=2)
    assert [w.shape for w in model.weights] == [w.shape for w in finer.weights]
    for one, other in zip(model.get_weights(), finer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.get_layer("first").strides == (4, 4) and finer.get_layer("first").strides == (2, 2)
    options = ("--output-stride", "2", "--limit", "2", "--pictures", "0")
    assert run(evaluate_command, path, *options) == 0
    assert (path / "report" / "val-stride-2-first-2" / "scores.json").is_file()
    expected = evaluate(finer, open_data("shapes", split="val"), Inference(scales=(0.5,)), limit=2)
    assert f"{100 * expected.summary()['mean_iou']:.2f}" in capsys.readouterr().out
    file = tmp_path / "model.keras"
    model.save(file)
    with pytest.raises(
        KerassegError, match=f"'{file}' keeps the output stride it was saved at, received 2: pass the run directory"
    ):
        load_model(file, output_stride=2)


def test_a_dry_run_evaluates_that_form(monkeypatch):
    shapes = []

    def note(recipe, model, data, limit):
        shapes.append(model.output_shape)
        return validate(recipe, model, data, limit)

    monkeypatch.setattr(dry_run_module, "validate", note)
    assert dry_run(RECIPE).evaluation_image > 0
    assert set(shapes) == {(None, None, None, 6)}


@pytest.mark.parametrize("arguments", [{"extra": True}, {"num_features": 5}])
def test_weights_of_one_form_alone_are_refused_before_a_step_is_done(arguments, tmp_path):
    recipe = RECIPE.override(training_arguments={"upsample_logits": False, **arguments}, validate_every=None)
    names = "extra" if "extra" in arguments else "first, second"
    for train in (lambda: train_recipe(recipe, Run(tmp_path / "run")), lambda: dry_run(recipe)):
        with pytest.raises(
            KerassegError, match=rf"formed has other weights while it trains than in evaluation \({names}\): .* upsample"
        ):
            train()
    assert not (tmp_path / "run").exists()


def test_every_validation_scores_the_weights_of_its_step(tmp_path):
    """Two validations of a training whose rate is far too high, so that no two of its networks predict alike."""
    seen = []

    def note(recipe, model, data, limit):
        seen.append([weight.copy() for weight in model.get_weights()])
        return validate(recipe, model, data, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "validate", note)
        train_recipe(RECIPE.override(keep_checkpoints=3, keep_best=False), Run(tmp_path))
    assert len(seen) == 2
    for weights, step in zip(seen, (2, 4), strict=True):
        with np.load(tmp_path / "checkpoints" / f"step-{step:08d}.npz") as state:
            saved = [state[name] for name in state.files if name.startswith("model/") and "seed" not in name]
        assert len(weights) == 6
        for weight in weights:
            assert any(weight.shape == value.shape and np.array_equal(weight, value) for value in saved)
    assert any(not np.array_equal(one, other) for one, other in zip(*seen, strict=True))


@pytest.mark.parametrize(
    "changes",
    [{"training_arguments": {"upsample_logits": False}}, {"output_stride": 2}, {"label_offset": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_keeps_its_form(changes, trained, tmp_path):
    path, _ = trained
    precision = Run(path).recipe()["precision"]
    with pytest.raises(KerassegError, match=f"was begun with {next(iter(changes))}="):
        train_recipe(RECIPE.override(precision=precision, iterations=6, **changes), Run(path))


def test_one_label_map_is_that_of_all_outputs():
    model = formed(auxiliary_outputs=True)
    label = tf.zeros((1, 4, 4), tf.int32)
    assert label_dict(label, model, ["fine", "coarse"]) == {"fine": label, "coarse": label}
    assert label_dict({"fine": 1}, model, ["fine"]) == {"fine": 1}
    x = image_input((None, None, 3))
    heads = keras.Model(x, {name: Conv2D(count, 1)(x) for name, count in (("semantic", 33), ("geometric", 3))})
    with pytest.raises(
        KerassegError, match=r"one label map for outputs of different classes, semantic \(33\), geometric \(3\): give a dict"
    ):
        label_dict(label, heads, ["semantic", "geometric"])


def test_several_losses_of_one_label_add_up():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 6, (2, 9, 9)).astype("int32")
    labels[0, :5] = 255

    def feed(start, share):
        return tf.data.Dataset.from_tensors((images, labels)).repeat()

    keras.utils.set_random_seed(0)
    model = formed(auxiliary_outputs=True, upsample_logits=False)
    logits = np.asarray(model(images)["fine"], "float64")
    small = labels[:, ::4, ::4]
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    valid = small != 255
    own = np.take_along_axis(probability, np.where(valid, small, 0)[..., None], -1)[..., 0]
    expected = -np.log(own[valid]).mean() * (1 + 0.5)
    trainer = Trainer(
        model, optimizer=keras.optimizers.SGD(0.1), loss=SegmentationCrossEntropy(), loss_weights={"coarse": 0.5}, accumulation=1
    )
    (step,) = trainer.train(feed, 1)
    assert step.loss == pytest.approx(expected, rel=1e-5)


def test_labels_and_scales_of_the_recipe_reach_the_loss_and_the_loader(tmp_path):
    # Crops of 34: with the first row and column cut off, every fourth of 33.
    recipe = RECIPE.override(crop_size=(34, 34), training_arguments={"upsample_logits": False}, iterations=1, validate_every=None)
    with pytest.raises(KerassegError, match="label of 34 pixels cannot be subsampled to logits of 9"):
        train_recipe(recipe, Run(tmp_path / "a"))
    train_recipe(recipe.override(label_offset=1), Run(tmp_path / "b"))
    assert weights_of(tmp_path / "b")
    scale = recipe_transforms(RECIPE.override(random_scale=(0.5, 1.5), random_scale_step=0.25), (0, 0, 0))[0]
    assert scale.scales() == (0.25, 0.375, 0.5, 0.625, 0.75)


def test_photographs_are_predicted_at_another_stride(trained, tmp_path):
    path, _ = trained
    image = open_data("shapes", split="val")[0].image
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = {stride: predict(load_model(path, output_stride=stride), image, scales=(0.5,)) for stride in (2, 4)}
    assert np.any(expected[2] != expected[4])
    for stride in (2, 4):
        out = tmp_path / str(stride)
        assert run(predict_command, path, tmp_path / "photo.png", "--out", out, "--output-stride", stride) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(out / "index" / "photo.png")), expected[stride])
