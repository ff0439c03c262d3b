"""Networks of several heads, each with a label map of its own, from the batches to the report."""

import json
import shutil

import keras
import numpy as np
import pytest
from cli_helpers import assert_equal, run, states, weights_of
from fixtures.sift_flow import TEST, write_sift_flow
from PIL import Image

import kerasseg
from kerasseg import KerassegError
from kerasseg.cli import analyze, class_weights, evaluate, predict, store_features, train
from kerasseg.data import DATA_SETS, Bootstrapped, DataSet, Example, Flip, evaluation_batches, open_data, training_batches
from kerasseg.data.class_counts import check_one_map
from kerasseg.data.views.heads import OneHead
from kerasseg.evaluation import Inference
from kerasseg.evaluation import evaluate as score
from kerasseg.labels import LabelTable
from kerasseg.layers import Conv2D, Preprocessing
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.metrics import confusion_matrix, scores
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

GEOMETRIC = LabelTable("ground", ("sky", "middle", "floor"), ((1, 2, 3), (40, 5, 6), (7, 80, 9)))


class Scenes(DataSet):
    """The built-in shapes, and above, in the middle or below as a second label map; as `sift_flow` is opened."""

    def __init__(self, data_dir=None, split="train", head=None):
        self._shapes = open_data("shapes", split=split, size=(32, 40), length=6)
        tables = {"semantic": self._shapes.labels, "geometric": GEOMETRIC}
        self.heads = None if head else tables
        self._head = head and list(tables).index(head)
        super().__init__(tables[head or "semantic"], self._shapes.ids)

    def read(self, index):
        example = self._shapes[index]
        thirds = np.broadcast_to((3 * np.arange(32) // 32 + index % 2)[:, np.newaxis] % 3, (32, 40))
        maps = np.stack([example.label, np.where(example.label == 255, 255, thirds)], -1).astype(np.int32)
        return Example(example.image, maps if self._head is None else maps[..., self._head], example.id, None)


def forked(num_classes, *, preprocessing="torch", width_multiplier=1.0, weights=None):
    """One convolution, then a score layer for each head; built and compiled in no time."""
    image = keras.Input((None, None, 3), name="image")
    x = Conv2D(4, 3, padding="same", activation="relu", name="first")(Preprocessing.of(preprocessing)(image))
    x = keras.layers.Dropout(0.2, name="drop")(x)
    heads = num_classes.items() if isinstance(num_classes, dict) else [("", num_classes)]
    outputs = {name: Conv2D(count, 1, name=f"score_{name}")(x) for name, count in heads}
    return keras.Model(image, outputs if isinstance(num_classes, dict) else outputs[""], name="forked")


def forked_at_first(num_classes: int, *, preprocessing="torch", width_multiplier=1.0, weights=None):
    """A network of one head."""
    return forked(num_classes)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA_SETS._locations, "scenes", "test_heads:Scenes")
        patch.setitem(MODELS._locations, "forked", "test_heads:forked")
        patch.setitem(MODELS._locations, "single", "test_heads:forked_at_first")
        yield


OPTIONS = ("--arch", "forked", "--data", "scenes", "--crop-size", "none", "--batch-size", "2", "--optimizer", "sgd")
STEPS = ("--learning-rate", "0.01", "--schedule", "fixed", "--checkpoint-every", "2", "--validate-every", "4")


def trained(path, *options, iterations=4):
    assert run(train, *OPTIONS, *STEPS, "--iterations", iterations, "--run-dir", path, *options) == 0
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("heads") / "run", "--loss-weights", "geometric=0.5")


def test_batches_name_the_label_maps():
    data = Scenes()
    for batches in (training_batches(data, 3, steps=1), evaluation_batches(data, 3)):
        image, label = next(iter(batches))
        assert image.shape == (3, 32, 40, 3) and list(label) == ["semantic", "geometric"]
        assert all(each.shape == (3, 32, 40) for each in label.values())
    np.testing.assert_array_equal(np.stack([label["semantic"][2], label["geometric"][2]], -1), data[2].label)


def test_keras_own_loop_trains_on_them():
    keras.utils.set_random_seed(1)
    data = Scenes()
    model = forked(data.num_classes)
    loss = {name: SegmentationCrossEntropy() for name in data.heads}
    model.compile(keras.optimizers.Adam(0.1), loss)
    history = model.fit(training_batches(data, 3), steps_per_epoch=6, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
    assert np.isfinite(model.evaluate(evaluation_batches(data, 2), verbose=0)).all()


def test_the_loss_is_the_weighted_sum_of_the_heads(finished):
    """Of the first step, by hand, from the first state that the run saved."""
    (first, *_) = Run(finished).read_log()
    keras.utils.set_random_seed(RECIPES["shapes"].seed)
    model = forked({"semantic": 6, "geometric": 3})
    # As the built-in recipe mirrors them.
    image, label = next(iter(training_batches(Scenes(), 2, transforms=[Flip()], seed=RECIPES["shapes"].seed, steps=1)))
    logits = model(image, training=True)
    expected = 0
    for name, factor in (("semantic", 1.0), ("geometric", 0.5)):
        valid = np.asarray(label[name]) != 255
        each = np.asarray(logits[name], np.float64)[valid]
        right = each[np.arange(len(each)), np.asarray(label[name])[valid]]
        expected += factor * np.mean(np.log(np.exp(each).sum(-1)) - right)
    assert first["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_knows_the_classes_of_each_head(finished):
    record = Run(finished)
    assert record.num_classes() == {"semantic": 6, "geometric": 3} and record.labels().classes == Scenes().labels.classes
    assert record.heads()["geometric"].palette == GEOMETRIC.palette
    one = Run(finished.parent / "one")
    one.begin({"name": "x"}, GEOMETRIC)
    assert one.heads() is None and one.num_classes() == 3 and Run(finished.parent / "none").num_classes() is None


def test_an_unfinished_run_can_be_opened(finished, tmp_path):
    path = trained(tmp_path / "run", iterations=2)
    (path / "model.keras").unlink()
    outputs = kerasseg.load_model(path).output
    assert {name: output.shape[-1] for name, output in outputs.items()} == {"semantic": 6, "geometric": 3}


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    """With accumulation, whose normalisers are known before the first pass."""
    options = ("--accumulation", "2", "--checkpoint-every", "1")
    whole = trained(tmp_path / "whole", *options, iterations=2)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    # As if killed in the second step.
    (broken / "model.keras").unlink()
    (broken / "checkpoints" / states(broken)[-1]).unlink()
    trained(broken, *options, iterations=2)
    assert [record["step"] for record in Run(broken).read_log()] == [1, 2]
    assert_equal(weights_of(broken), weights_of(whole))


@pytest.mark.parametrize("output", [None, "semantic", "geometric"])
def test_each_head_is_scored_by_its_own_label_map(finished, capsys, output):
    asked = ("--output", output) if output else ()
    assert run(evaluate, finished, *asked, "--pictures", "2") == 0
    table = GEOMETRIC if output == "geometric" else Scenes().labels
    model, data = kerasseg.load_model(finished), Scenes(split="val")
    matrix = np.zeros((table.num_classes,) * 2, np.int64)
    for example in data:
        guess = np.asarray(model(example.image[np.newaxis])[output or "semantic"]).argmax(-1)[0]
        matrix += confusion_matrix(example.label[..., int(output == "geometric")], guess, table.num_classes)
    folder = finished / "report" / ("val" + (f"-output-{output}" if output else ""))
    found = json.loads((folder / "scores.json").read_text())
    assert found["confusion_matrix"] == matrix.tolist() and found["classes"] == list(table.classes)
    assert found["task"] == (output or "semantic")
    assert found["pixel_accuracy"] == scores(matrix)["pixel_accuracy"]
    assert f"{100 * found['pixel_accuracy']:.2f}" in capsys.readouterr().out
    assert (folder / "report.html").is_file() and (folder / "pictures.png").is_file()


def test_the_geometric_accuracy_of_table_6_is_a_command(tmp_path, capsys):
    """The recipe of SIFT Flow, but short and of a network that is built in no time, on a miniature of the data."""
    path, examples = tmp_path / "run", write_sift_flow(tmp_path / "sift_flow")
    short = ("--arch", "forked", "--weights", "none", "--iterations", "1", "--validate-every", "none")
    assert run(train, "--recipe", "fcn32s_siftflow", *short, "--data-dir", tmp_path / "sift_flow", "--run-dir", path) == 0
    assert run(evaluate, path, "--output", "geometric", "--pictures", "0") == 0
    model, right, counted = kerasseg.load_model(path), 0, 0
    for image, label in (examples[name] for name in TEST):
        guess = np.asarray(model(image[np.newaxis])["geometric"]).argmax(-1)[0]
        right += int((guess == label[..., 1])[label[..., 1] != 255].sum())
        counted += int((label[..., 1] != 255).sum())
    found = json.loads((path / "report/test-output-geometric/scores.json").read_text())
    assert found["pixel_accuracy"] == pytest.approx(right / counted, abs=1e-6) and found["excluded"] == []
    assert run(evaluate, path, "--pictures", "0") == 0
    semantic = json.loads((path / "report/test/scores.json").read_text())
    # What the test images lack, as the paper leaves it out.
    assert semantic["excluded"] == ["cow", "desert", "moon"] and len(semantic["classes"]) == 33


def test_validation_scores_the_first_head(finished):
    logged = Run(finished).read_log()[-1]
    model = kerasseg.load_model(finished)
    by_hand = score(model, OneHead(Scenes(split="val"), "semantic")).scores
    assert logged["mean_iou"] == pytest.approx(by_hand["mean_iou"], abs=1e-6)
    assert score(model, Scenes(split="val"), Inference(output="geometric")).task == "geometric"


def test_the_data_alone_of_one_head_score_a_network_of_that_head(finished):
    model = kerasseg.load_model(finished)
    single = keras.Model(model.input, model.output["geometric"])
    alone = score(single, Scenes(split="val", head="geometric"))
    together = score(model, Scenes(split="val"), Inference(output="geometric"))
    np.testing.assert_array_equal(alone.matrix, together.matrix)


def test_masks_are_painted_as_their_head(finished, tmp_path):
    photo = tmp_path / "photo.png"
    image = Scenes()[0].image
    Image.fromarray(image).save(photo)
    assert run(predict, finished, photo, "--out", tmp_path / "masks", "--output", "geometric") == 0
    classes = np.asarray(kerasseg.load_model(finished)(image[np.newaxis])["geometric"])[0].argmax(-1)
    painted = np.asarray(Image.open(tmp_path / "masks" / "color" / "photo.png").convert("RGB"))
    np.testing.assert_array_equal(painted, np.array(GEOMETRIC.palette, np.uint8)[classes])


def test_one_head_alone_trains_a_network_of_one(tmp_path, capsys):
    path = tmp_path / "run"
    assert run(train, *OPTIONS, "--arch", "single", "--iterations", "1", "--run-dir", path) == 2
    message = "single has one head, received classes for semantic, geometric: pass one number, e.g. 6; of data with several label"
    assert message in capsys.readouterr().err and not path.exists()
    options = ("--arch", "single", "--data-arguments", "head=geometric", "--validate-every", "1", "--iterations", "1")
    assert run(train, *OPTIONS, *options, "--run-dir", path) == 0
    assert Run(path).labels().classes == GEOMETRIC.classes
    # The run's own arguments.
    assert run(evaluate, path) == 0 and json.loads((path / "report/val/scores.json").read_text())["classes"][0] == "sky"


def test_a_dry_run_counts_the_classes_of_each(capsys, tmp_path):
    assert run(train, *OPTIONS, "--iterations", "4", "--dry-run", "--run-dir", tmp_path / "run") == 0
    assert "forked, 6 images of 6 semantic and 3 geometric classes" in capsys.readouterr().out


def test_what_needs_one_label_map_says_so(finished, tmp_path, capsys):
    message = "data set 'shapes' has several label maps (semantic, geometric): expected one, open it with head='semantic'"
    refused = [
        (class_weights, "--data", "scenes"),
        (store_features, finished, "--layer", "first", "--out", tmp_path / "features"),
        (analyze, "bounds", "--data", "scenes", "--split", "val"),
        (train, *OPTIONS, "--examples", "objects", "--run-dir", tmp_path / "run"),
    ]
    for command in refused:
        assert run(*command) == 2, command
        assert message in capsys.readouterr().err
    weights = ("--class-weights", "1,1,1,1,1,1", "--run-dir", tmp_path / "run")
    assert run(train, *OPTIONS, *weights) == 2
    assert "class_weights has 6 numbers, the heads semantic, geometric have classes of their own" in capsys.readouterr().err
    assert run(train, *OPTIONS, "--background", "mask", "--run-dir", tmp_path / "run") == 2
    assert "data set 'shapes' has several label maps: foreground and background are hidden by one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(class_weights, "--data", "scenes", "--data-arguments", "head=geometric") == 0
    assert capsys.readouterr().out.count(",") == 2
    check_one_map(Scenes(head="semantic"))


def test_images_of_rare_classes_are_those_of_the_first_head():
    data, alone = Scenes(), Scenes(head="semantic")
    twice = Bootstrapped(data, ["golden"])
    assert twice.ids == Bootstrapped(alone, ["golden"]).ids and twice.heads == data.heads
    np.testing.assert_array_equal(twice[len(twice) - 1].label, data[data.ids.index(twice.ids[-1])].label)
    assert twice.place(len(twice) - 1) == (data, data.ids.index(twice.ids[-1])) and len(data) < len(twice)


def test_a_head_that_is_not_there_is_named():
    with pytest.raises(KerassegError, match=r"has no label map 'geometry': did you mean 'geometric'\?"):
        OneHead(Scenes(), "geometry")
    with pytest.raises(KerassegError, match="has no label map 'geometric': it has one label map, so name none"):
        OneHead(open_data("shapes"), "geometric")
    with pytest.raises(KerassegError, match="output 'depth' has no labels in these data"):
        score(forked({"semantic": 6, "geometric": 3}), Scenes(), Inference(output="depth"))
