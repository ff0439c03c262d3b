"""Networks of several inputs, and of inputs that are no photographs, from the batches to the report."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from cli_helpers import assert_equal, run, states, weights_of
from fixtures.nyud import write_nyud
from helpers import give_random_weights
from PIL import Image

import kerasseg
from kerasseg import KerassegError
from kerasseg.cli import evaluate, export, predict, train
from kerasseg.data import DATA_SETS, DataSet, Example, Share, evaluation_batches, open_data, training_batches
from kerasseg.evaluation import Inference, Windows, predict_batch
from kerasseg.evaluation import evaluate as score
from kerasseg.evaluation.running import network_inputs, run_network
from kerasseg.layers import Conv2D
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.metrics import confusion_matrix
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import padding_color
from kerasseg.runs import Run
from kerasseg.training import train_recipe
from kerasseg.training.diagnosis import find_non_finite
from kerasseg.training.feature_stages import check_channels

# As the inputs are called in the arrays; not in the order of the alphabet.
MEAN = (1.0, 2.0, 3.0, 40.0, 50.0, 60.0)


class Rooms(DataSet):
    """The built-in shapes as colour, and each pixel's coordinates and class as a second image; as `nyud_color_hha` is opened."""

    inputs, channels = {"photo": 3, "cue": 3}, 6

    def __init__(self, data_dir=None, split="train", count: int = 6):
        self._shapes = open_data("shapes", split=split, size=(33, 40), length=count)
        super().__init__(self._shapes.labels, self._shapes.ids, MEAN)

    def read(self, index):
        example = self._shapes[index]
        rows, columns = np.mgrid[:33, :40].astype(np.float32)
        cue = np.stack([5 * rows, 5 * columns, 40.0 * (example.label % 255)], -1)
        image = np.concatenate([example.image.astype(np.float32), cue], -1)
        return Example(image, example.label, example.id, None)


class Colors(Rooms):
    """Its colours alone."""

    inputs, channels = None, 3

    def __init__(self, data_dir=None, split="train"):
        super().__init__(data_dir, split)
        self.mean = MEAN[:3]

    def read(self, index):
        example = super().read(index)
        return Example(example.image[..., :3], example.label, example.id, None)


class Depths(Rooms):
    """Its colours and one more channel, as `nyud_color_d` is opened."""

    inputs, channels = None, 4

    def __init__(self, data_dir=None, split="train"):
        super().__init__(data_dir, split)
        self.mean = MEAN[:4]

    def read(self, index):
        example = super().read(index)
        return Example(
            np.concatenate([example.image[..., :3], np.log(1 + example.image[..., 3:4])], -1), example.label, example.id, None
        )


@pytest.fixture(scope="module", autouse=True)
def offered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS._locations, "paired", "test_inputs:paired")
        for name in ("Rooms", "Colors", "Depths"):
            patch.setitem(DATA_SETS._locations, name.lower(), f"test_inputs:{name}")
        yield


SMALL = {"width_multiplier": 1 / 16}
FUSED = {"late_fusion": ["photo", "cue"], "preprocessing": {"photo": "torch", "cue": "torch"}}
OPTIONS = (
    *("--arch", "paired", "--data", "rooms", "--batch-size", "2", "--schedule", "fixed", "--no-keep-best"),
    # Of one size, which is found out beforehand, and which XLA needs.
    *("--crop-size", "32x40", "--jit-compile", "--checkpoint-every", "1", "--validate-every", "2"),
)


def paired(num_classes, *, names=("photo", "cue"), preprocessing="torch", width_multiplier=1.0, weights=None, input_shape=None):
    """A convolution for each input, and their sum; or for one of `input_shape`. Built and compiled in no time."""
    shapes = dict.fromkeys(names, (None, None, 3)) if input_shape is None else {"image": tuple(input_shape)}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    layers = [Conv2D(4, 3, padding="same", activation="relu", name=f"first_{name}") for name in inputs]
    x = [layer(keras.layers.Rescaling(1 / 255)(image)) for layer, image in zip(layers, inputs.values(), strict=True)]
    x = keras.layers.Dropout(0.2, name="drop")(keras.layers.add(x) if len(x) > 1 else x[0])
    outputs = Conv2D(num_classes, 1, name="score")(x)
    return keras.Model(inputs if len(inputs) > 1 else inputs["image"], outputs, name="paired")


@pytest.fixture(scope="module")
def network():
    return give_random_weights(paired(6))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "run"
    assert run(train, *OPTIONS, "--iterations", "2", "--run-dir", path) == 0
    return path


def test_batches_name_the_inputs():
    data = Rooms()
    for batches in (training_batches(data, 2, steps=1), evaluation_batches(data, 2)):
        image, label = next(iter(batches))
        assert {name: each.shape for name, each in image.items()} == {"photo": (2, 33, 40, 3), "cue": (2, 33, 40, 3)}
    np.testing.assert_array_equal(np.concatenate([image["photo"][1], image["cue"][1]], -1), data[1].image)
    assert label.shape == (2, 33, 40)


def test_keras_own_loop_trains_on_them():
    keras.utils.set_random_seed(1)
    inputs = {name: keras.Input((None, None, 3), name=name) for name in ("photo", "cue")}
    scaled = keras.layers.concatenate([keras.layers.Rescaling(1 / 255)(each) for each in inputs.values()])
    model = keras.Model(inputs, keras.layers.Conv2D(6, 1)(scaled))
    model.compile(keras.optimizers.Adam(0.1), SegmentationCrossEntropy())
    history = model.fit(training_batches(Rooms(), 3), steps_per_epoch=6, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
    assert np.isfinite(model.evaluate(evaluation_batches(Rooms(), 2), verbose=0))


def test_an_array_is_cut_in_the_order_in_which_the_network_was_built(network):
    """Which is not that of Keras' list of inputs, sorted by name."""
    assert [tensor.name for tensor in network.inputs] == ["cue", "photo"]
    assert [tensor.name for tensor in network_inputs(network)] == ["photo", "cue"]
    images = np.stack([Rooms()[index].image for index in range(2)])
    expected = np.asarray(network({"photo": images[..., :3], "cue": images[..., 3:]}))
    np.testing.assert_allclose(run_network(network, images), expected, rtol=1e-5, atol=1e-5)
    found = predict_batch(network, list(images), Inference())
    np.testing.assert_array_equal(np.stack([each.classes for each in found]), expected.argmax(-1))
    swapped = run_network(network, images[..., [3, 4, 5, 0, 1, 2]])
    assert np.abs(swapped - expected).max() > 0.1 * np.abs(expected).max() > 0


@pytest.mark.parametrize("inference", [Inference((0.5, 1.0), flip=True), Inference(method=Windows((32, 32)))], ids=str)
def test_it_is_scaled_mirrored_and_cut_into_windows(network, inference):
    found = score(network, Rooms(), inference, limit=2)
    assert found.matrix.sum() == sum(int((Rooms()[index].label != 255).sum()) for index in range(2))


def test_it_is_saved_and_opened_in_that_order(network, tmp_path):
    network.save(tmp_path / "model.keras")
    again = kerasseg.load_model(tmp_path / "model.keras")
    assert [tensor.name for tensor in network_inputs(again)] == ["photo", "cue"]
    image = Rooms()[0].image
    np.testing.assert_array_equal(kerasseg.predict(again, image), kerasseg.predict(network, image))


def test_training_sees_and_resumes_both(finished, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(finished, broken)
    # As if killed in the second step.
    (broken / "model.keras").unlink()
    (broken / "checkpoints" / states(broken)[-1]).unlink()
    assert len(states(broken)) > 0
    assert run(train, "--run-dir", broken) == 0
    assert [record["step"] for record in Run(broken).read_log()] == [1, 2]
    assert_equal(weights_of(broken), weights_of(finished))
    keras.utils.set_random_seed(RECIPES["shapes"].seed)
    first = paired(6)
    for name in ("first_photo", "first_cue", "score"):
        assert np.abs(first.get_layer(name).get_weights()[0] - weights_of(finished, name)[0]).max() > 1e-4


def test_a_run_is_scored_and_shown(finished, capsys):
    assert run(evaluate, finished, "--pictures", "2") == 0
    found = json.loads((finished / "report/val/scores.json").read_text())
    model, matrix = kerasseg.load_model(finished), 0
    for example in Rooms(split="val"):
        guess = np.asarray(model({"photo": example.image[None, ..., :3], "cue": example.image[None, ..., 3:]})).argmax(-1)[0]
        matrix = matrix + confusion_matrix(example.label, guess, 6)
    assert found["confusion_matrix"] == matrix.tolist()
    assert (finished / "report/val/pictures.png").is_file() and "pixel_accuracy" in capsys.readouterr().out


def test_an_array_of_both_is_labelled_and_a_photograph_refused(finished, tmp_path, capsys):
    image = Rooms()[0].image
    np.save(tmp_path / "room.npy", image)
    assert run(predict, finished, tmp_path / "room.npy", "--out", tmp_path / "out", "--windows", "33x40") == 0
    expected = kerasseg.predict(kerasseg.load_model(finished), image, method=Windows((33, 40)))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "index" / "room.npy"), expected)
    Image.fromarray(image[..., :3].astype(np.uint8)).save(tmp_path / "photo.png")
    assert run(predict, finished, tmp_path / "photo.png", "--out", tmp_path / "out") == 2
    message = "the network has the inputs photo (3), cue (3), received an image of 3 channels: expected an array (height, width, 6)"
    assert message in capsys.readouterr().err


def test_no_file_for_devices_has_two_inputs(finished, tmp_path, capsys):
    for kind, name in (("saved_model", "file"), ("tflite", "file.tflite"), ("onnx", "file.onnx")):
        assert run(export, finished, "--format", kind, "--out", tmp_path / name) == 2
        assert "paired has 2 inputs: expected one, the image, that a file can take" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_the_first_bad_number_is_found(network):
    image, _ = next(iter(training_batches(Rooms(), 1, steps=1)))
    assert find_non_finite(network, image) is None
    bad = {**image, "cue": np.full((1, 33, 40, 3), np.nan, np.float32)}
    assert find_non_finite(network, bad) == "the images"


def test_other_inputs_than_the_datas_are_refused(tmp_path, capsys):
    for name, given in (("rooms", "photo (3 channels), cue (3 channels)"), ("colors", "one image")):
        arguments = ("--arguments", 'names=["cue","photo"]', "--data", name, "--run-dir", tmp_path / "run")
        assert run(train, *OPTIONS, *arguments, "--iterations", "1") == 2
        message = f"paired takes the inputs cue (3 channels), photo (3 channels), data set 'shapes' gives {given}: pass --arguments"
        assert message in capsys.readouterr().err
    with pytest.raises(KerassegError, match="takes the inputs image .3 channels., data set 'shapes' gives photo .3 channels., cue"):
        check_channels(paired(6, input_shape=(None, None, 3)), Rooms())
    assert not (tmp_path / "run").exists()


def test_padding_is_nothing_to_either_input():
    """Zero after what each input's preprocessing subtracts; the data's mean where it is not known."""
    base = RECIPES["shapes"].override(arch="fcn32s")
    torch = (123.675, 116.28, 103.53)
    assert padding_color(base.override(arguments=FUSED), Rooms()) == (*torch, *torch)
    one = base.override(arguments={**FUSED, "preprocessing": {"cue": "hha"}})
    assert padding_color(one, Rooms()) == (1.0, 2.0, 3.0, 132.431, 94.076, 118.477)
    assert padding_color(base.override(arguments={}), Rooms()) == MEAN
    # Four channels: that of RGB-D is in the network's order, BGR and depth.
    early = base.override(arguments={"preprocessing": "nyud_rgbd", "input_shape": [None, None, 4]})
    assert padding_color(early, Depths()) == (92.318, 97.203, 116.190, 7.844)
    assert padding_color(early.override(arguments={"input_shape": [None, None, 4]}), Depths()) == MEAN[:4]


def test_four_channels_train_and_show_their_colours(tmp_path):
    """With crops and padding, of images larger and smaller than these."""
    options = (*OPTIONS, "--data", "depths", "--arguments", "input_shape=[null,null,4]")
    path = tmp_path / "run"
    assert (
        run(train, *options, "--iterations", "1", "--validate-every", "1", "--crop-size", "32x48", "--flip", "--run-dir", path) == 0
    )
    assert run(evaluate, path, "--pictures", "1") == 0
    shown = np.asarray(Image.open(path / "report/val/pictures.png"))
    colors = Depths(split="val")[0].image[..., :3].astype(np.uint8)
    assert any((shown[top : top + 33, 8:48] == colors).all() for top in range(shown.shape[0] - 33)) or _stands_in(shown, colors)


def _stands_in(page, picture) -> bool:
    height, width = picture.shape[:2]
    corners = np.argwhere((page[: -height + 1, : -width + 1] == picture[0, 0]).all(-1))
    return any((page[top : top + height, left : left + width] == picture).all() for top, left in corners)


def test_late_fusion_of_nyud_trains_in_its_three_stages(tmp_path):
    """The recipe as it is, but narrow and short, on a miniature of the data: two nets of their own, and both as one."""
    path, recipe = tmp_path / "run", RECIPES["fcn32s_nyud_color_hha"]
    write_nyud(tmp_path / "nyud")
    own = {"iterations": 1, "weights": None}
    stages = tuple(dataclasses.replace(stage, changes={**stage.changes, **own}) for stage in recipe.stages)
    short = {"checkpoint_every": 1, "validate_every": None, "data_dir": str(tmp_path / "nyud"), "stages": stages}
    model = train_recipe(recipe.override(**SMALL, **own, **short), Run(path))
    assert [tensor.name for tensor in network_inputs(model)] == ["color", "hha"]
    # Each stream of the last begins with what its own net had learnt; one step at 1e-12 is far below rounding.
    for stream, suffix in (("1-color", "color"), ("2-hha", "hha")):
        before = kerasseg.load_model(path / "stages" / stream)
        for layer in ("conv1_1", "conv5_3", "fc7"):
            one, other = before.get_layer(layer), model.get_layer(layer + suffix)
            np.testing.assert_allclose(one.get_weights()[0], other.get_weights()[0], rtol=1e-5)


def test_replicas_share_what_has_names():
    """Two inputs and two heads: each replica's half of every batch. What replicas train on them, test_replicas.py compares."""
    data = Rooms()
    data.heads = {"one": data.labels, "two": data.labels}
    data.read_plain, data.read = data.read, lambda index: _doubled(data.read_plain(index))
    whole = list(training_batches(data, 4, seed=3, steps=2))
    halves = list(training_batches(data, 4, seed=3, steps=2, share=Share(2, 0, 2)))
    assert len(halves) == 4
    for number, batch in enumerate(whole):
        for place, kind in enumerate(batch):
            pair = [half[place] for half in halves[2 * number : 2 * number + 2]]
            for name, expected in kind.items():
                assert [len(half[name]) for half in pair] == [2, 2]
                np.testing.assert_array_equal(np.concatenate([half[name] for half in pair]), expected)


def _doubled(example):
    return Example(example.image, np.stack([example.label, example.label // 2], -1), example.id, None)
