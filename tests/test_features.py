"""Stored features: how they are made, what their files say, and what is refused."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import give_random_weights, random_model

from kerasseg import KerassegError
from kerasseg.cli.options import check_names, resolve_recipe
from kerasseg.cli.train import parser
from kerasseg.data import Bootstrapped, DataSet, Example, evaluation_batches, open_data, training_batches, unwrap_error
from kerasseg.data.features import StoredFeatures
from kerasseg.labels import generic_table
from kerasseg.layers import Conv2D, Preprocessing, ReflectionPadding2D
from kerasseg.models.dilation import native_network
from kerasseg.training.features import TILE, FeatureExtractor, fingerprint, store_features

LABELS = generic_table(["a", "b", "c"])


class Photographs(DataSet):
    """Images of several sizes."""

    def __init__(self, *sizes, labels=LABELS, with_labels=True):
        super().__init__(labels, [f"photo{index}" for index in range(len(sizes))])
        self.sizes, self.with_labels = sizes, with_labels

    def read(self, index):
        generator = np.random.default_rng(index)
        image = generator.integers(0, 256, (*self.sizes[index], 3)).astype(np.uint8)
        label = generator.integers(0, 3, self.sizes[index]).astype(np.int32)
        label[:2] = 255
        return Example(image, label if self.with_labels else None, self.ids[index], None)


def margin_network(margin=3, stride=4, padding="valid"):
    """As Dilation's: the image is continued inside, and nothing after it is padded; then back to the image."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3), name="image")
    x = ReflectionPadding2D(margin, name="margin")(Preprocessing.of("torch")(image))
    x = Conv2D(4, 2 * margin + 1, padding=padding, activation="relu", name="conv")(x)
    x = keras.layers.MaxPooling2D(stride, name="pool")(x)
    x = keras.layers.Dropout(0.5)(Conv2D(5, 1, name="final")(x))
    return keras.Model(image, keras.layers.UpSampling2D(stride, name="up")(x), name="toy_margin")


def plain_network(stride=1):
    image = keras.Input((None, None, 3), name="image")
    return keras.Model(image, Conv2D(3, 3, strides=stride, padding="same", name="score")(image), name="plain")


def border(indices, size):
    """OpenCV's BORDER_REFLECT_101, place by place."""
    places = []
    for place in indices:
        while not 0 <= place < size:
            place = -place if place < 0 else 2 * (size - 1) - place
        places.append(place)
    return places


# What is computed


def test_an_image_is_continued_by_the_margin_and_then_to_the_tile(tmp_path):
    """Against the authors' order written as loops: first the margin around, of which then the rest is the mirror image."""
    model, data = give_random_weights(margin_network()), Photographs((10, 13), (12, 16))
    store_features(model, "final", data, tmp_path / "train", size=(22, 26))
    stored = open_data("features", tmp_path, "train")
    rest = keras.Model(model.get_layer("margin").output, model.get_layer("final").output)
    for example, photo in zip(stored, data, strict=True):
        rows, columns = (border(range(-3, size + 3), size) for size in photo.label.shape)
        rows, columns = ([known[i] for i in border(range(tile), len(known))] for known, tile in ((rows, 22), (columns, 26)))
        image = photo.image[rows][:, columns].astype(np.float32)
        expected = rest((image[None] - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375], training=False)[0]
        assert example.image.shape == (4, 5, 5) and example.image.dtype == np.float32
        np.testing.assert_allclose(example.image, expected, rtol=1e-4, atol=1e-4)
        label = [[photo.label[4 * i, 4 * j] if 4 * i < len(photo.label) and 4 * j < photo.label.shape[1] else 255
                  for j in range(5)] for i in range(4)]  # fmt: skip
        np.testing.assert_array_equal(example.label, label)
        assert (example.label < 3).any() and (example.label == 255).any()
        # Over the image they are what the network itself computes there.
        whole = keras.Model(model.input, model.get_layer("final").output)(photo.image[None], training=False)[0]
        cells = [size // 4 for size in photo.label.shape]
        np.testing.assert_allclose(example.image[: cells[0], : cells[1]], whole[: cells[0], : cells[1]], rtol=1e-4, atol=1e-4)
    assert stored.header["margin"] == 3 and stored.header["stride"] == [4, 4] and stored.labels.classes == ("a", "b", "c")


def test_the_front_end_of_dilation_gives_66_cells_of_a_tile_of_900():
    """FACTS: 900 → 66, and what lies beyond an image of CamVid's size, 360×480, is 255."""
    model = random_model("dilation_frontend")
    photo = Photographs((360, 480))[0]
    extractor = FeatureExtractor(model, "final")
    assert (TILE, extractor.margin, extractor.stride, extractor.channels) == ((900, 900), 186, (8, 8), 5)
    features, label = extractor(photo)
    assert features.shape == (66, 66, 5) and features.std() > 0
    np.testing.assert_array_equal(label[:45, :60], photo.label[::8, ::8])
    assert (label[45:] == 255).all() and (label[:, 60:] == 255).all()
    image = np.pad(photo.image, [(186, 186), (186, 186), (0, 0)], mode="reflect")
    image = np.pad(image, [(0, 168), (0, 48), (0, 0)], mode="reflect")
    scores = native_network(model)[0](image[None].astype(np.float32), training=False)[0]
    np.testing.assert_allclose(features, scores, rtol=1e-4, atol=1e-4)


def test_a_network_without_margin_takes_images_as_they_are(tmp_path):
    data = Photographs((9, 13), (5, 5))
    for stride, layer in ((1, "score"), (4, "score")):
        model = give_random_weights(plain_network(stride))
        store_features(model, layer, data, tmp_path / f"{stride}")
        for example, photo in zip(StoredFeatures(tmp_path, f"{stride}"), data, strict=True):
            np.testing.assert_allclose(example.image, model(photo.image[None].astype(np.float32))[0], rtol=1e-4, atol=1e-3)
            np.testing.assert_array_equal(example.label, photo.label[::stride, ::stride])
    with pytest.raises(
        KerassegError, match="images of 9x10 pixels give layer 'score' of plain 5x5 cells, .*: pass --pad-size 9x11"
    ):
        store_features(plain_network(2), "score", Photographs((9, 10)), tmp_path / "c")


def test_images_are_scaled_before(tmp_path):
    model, data = give_random_weights(plain_network()), Photographs((20, 31))
    store_features(model, "score", data, tmp_path / "half", scale=0.5)
    (example,) = open_data("features", tmp_path, "half")
    assert example.image.shape == (10, 15, 3) and example.label.shape == (10, 15)


def test_a_fingerprint_is_of_every_weight_and_of_nothing_else():
    model = margin_network()
    prints = [fingerprint(model), fingerprint(margin_network())]
    # Dropout's random state is no weight.
    model(np.zeros((1, 8, 8, 3), np.float32), training=True)
    prints.append(fingerprint(model))
    assert len(set(prints)) == 1 and len(prints[0]) == 64
    model.get_layer("conv").bias.assign([0, 0, 1e-6, 0])
    assert fingerprint(model) != prints[0]


# Storing: interrupted, repeated, of something else


def interrupt(after):
    def report(done, total):
        if done == after:
            raise KeyboardInterrupt

    return report


def test_what_was_interrupted_goes_on_and_counts_no_half_written_file(tmp_path, monkeypatch):
    model, data = margin_network(), Photographs(*((8 + index, 12) for index in range(5)))
    store_features(model, "final", data, tmp_path / "whole", size=(22, 22))
    with pytest.raises(KeyboardInterrupt):
        store_features(model, "final", data, tmp_path / "train", size=(22, 22), report=interrupt(2))
    with pytest.raises(KerassegError, match="train is not finished: go on by the command that stores its features"):
        open_data("features", tmp_path, "train")
    # Killed while a file is written: only the temporary one is there.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("numpy.savez", lambda file, **arrays: (file.write(b"PK"), interrupt(0)(0, 0)))
        store_features(model, "final", data, tmp_path / "train", size=(22, 22))
    (tmp_path / "train/.unfinished-x.npz").write_bytes(b"PK")
    seen, calls = [], []
    original = FeatureExtractor.__call__
    monkeypatch.setattr(FeatureExtractor, "__call__", lambda self, example: (calls.append(example.id), original(self, example))[1])
    store_features(model, "final", data, tmp_path / "train", size=(22, 22), report=lambda *counts: seen.append(counts))
    assert calls == ["photo2", "photo3", "photo4"] and seen == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert sorted(os.listdir(tmp_path / "train")) == [*(f"{index:06d}.npz" for index in range(5)), "features.json"]
    for one, other in zip(open_data("features", tmp_path, "train"), open_data("features", tmp_path, "whole"), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
    # A second time nothing is left; of a file that was removed, only that.
    (tmp_path / "train/000001.npz").unlink()
    with pytest.raises(KerassegError, match=r"lacks 1 of its 5 files \(000001.npz …\): store them again by the command"):
        open_data("features", tmp_path, "train")
    calls.clear()
    for _ in range(2):
        store_features(model, "final", data, tmp_path / "train", size=(22, 22))
    assert calls == ["photo1"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """One network's features of three photographs, and half of another's."""
    root = tmp_path_factory.mktemp("stored")
    data = Photographs((9, 13), (5, 5), (7, 7))
    store_features(plain_network(), "score", data, root / "train")
    with pytest.raises(KeyboardInterrupt):
        store_features(plain_network(), "score", data, root / "half", report=interrupt(1))
    return root


def other_classes():
    return Photographs((9, 13), (5, 5), (7, 7), labels=generic_table(["a", "b", "d"]))


OTHERS = {
    "weights": (lambda: give_random_weights(plain_network(), 3), {}, "another network in .*: found weights [0-9a-f]{12}, expected"),
    "scale": (plain_network, {"scale": 0.5}, "other data in .*: found image scale 1.0, expected 0.5"),
    "size": (plain_network, {"size": (20, 20)}, r"other data in .*: found tile size None, expected \[20, 20\]"),
    "classes": (plain_network, {"data": other_classes()}, r"other data in .*: found classes \['a', 'b', 'c'\], expected"),
    "examples": (
        plain_network,
        {"data": Photographs((9, 13))},
        r"other data in .*: found examples .*'photo2'\], expected \['photo0'",
    ),
}


@pytest.mark.parametrize("folder", ["train", "half"])
@pytest.mark.parametrize("what", OTHERS)
def test_features_of_another_network_or_other_data_are_refused(stored, folder, what):
    make, arguments, message = OTHERS[what]
    arguments = {"data": Photographs((9, 13), (5, 5), (7, 7)), **arguments}
    keras.utils.set_random_seed(0)
    model = make()
    if what != "weights":
        # The fixture's weights, which are random.
        header = next(path for path in (stored / folder).glob("*.json"))
        found = json.loads(header.read_text())["fingerprint"]
        patch = pytest.MonkeyPatch()
        patch.setattr("kerasseg.training.features.fingerprint", lambda model: found)
    before = sorted(os.listdir(stored / folder))
    with pytest.raises(KerassegError, match=f"^stored features of {message}.*; remove {stored / folder} to store them anew$"):
        store_features(model, "score", directory=stored / folder, **arguments)
    if what != "weights":
        patch.undo()
    assert sorted(os.listdir(stored / folder)) == before


def test_files_of_nobody_are_not_taken_for_ones_own(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/000000.npz").write_bytes(b"")
    with pytest.raises(KerassegError, match="holds .npz files but neither features.json nor unfinished.json"):
        store_features(plain_network(), "score", Photographs((5, 5)), tmp_path / "train")


def two_inputs():
    inputs = [keras.Input((None, None, 3), name=name) for name in "ab"]
    return keras.Model(inputs, keras.layers.add(inputs), name="two")


def twice():
    image, layer = keras.Input((None, None, 3)), Conv2D(3, 1, name="score")
    return keras.Model(image, layer(layer(image)), name="twice")


def pooled():
    image = keras.Input((None, None, 3))
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="score")(image), name="pooled")


def infinite():
    model = plain_network()
    model.get_layer("score").bias.assign([np.inf] * 3)
    return model


MISTAKES = {
    "unknown layer": (plain_network, "scores", (5, 5), {}, "plain has no layer 'scores' to store .*: did you mean 'score'"),
    "two inputs": (two_inputs, "add", (5, 5), {}, "two takes inputs of shape .* no photographs"),
    "maps": (lambda: keras.Model(*[keras.Input((None, None, 5))] * 2), "x", (5, 5), {}, "no photographs"),
    "used twice": (twice, "score", (5, 5), {}, "layer 'score' of twice is used 2 times"),
    "no map": (pooled, "score", (5, 5), {}, r"'score' of pooled gives shape \(None, 3\): expected maps \(B, h, w, C\)"),
    "before the margin": (margin_network, "preprocessing", (5, 5), {}, "without its reflection margin: name one behind the margin"),
    "too large": (margin_network, "final", (893, 900), {}, "the largest image is 893x900 pixels, 899x906 with the network's "
                  "margin: larger than 22x22, .*; pass --pad-size 902x906"),
    "not whole": (margin_network, "final", (8, 8), {"size": (25, 22)}, "25x22 pixels give layer 'final' of toy_margin 4x4 cells, "
                  "no whole number of the 19x16 pixels .* pass --pad-size 26x22"),
    "too small": (margin_network, "final", (1, 1), {"size": (4, 4)}, "pass a larger --pad-size|no whole number"),
    "not finite": (infinite, "score", (5, 5), {}, "layer 'score' of plain gives infinite values for 'photo0': train it anew"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_stored_is_one_line_and_leaves_no_folder(tmp_path, mistake):
    make, layer, size, arguments, message = MISTAKES[mistake]
    arguments = arguments or ({"size": (22, 22)} if mistake == "too large" else {})
    with pytest.raises(KerassegError, match=message) as error:
        store_features(make(), layer, Photographs(size), tmp_path / "train", **arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("train/*.npz")) and not (tmp_path / "train/features.json").exists()


def test_labels_and_photographs_are_needed(tmp_path, stored):
    with pytest.raises(KerassegError, match="example 'photo0' of data set 'folder' has no label: choose a split with masks"):
        store_features(plain_network(), "score", Photographs((5, 5), with_labels=False), tmp_path / "train")
    with pytest.raises(KerassegError, match="data set 'folder' holds features already: name the data set that they come from"):
        store_features(plain_network(), "score", open_data("features", stored), tmp_path / "train")


# The data set


def test_batches_carry_any_number_of_channels_and_pad_with_zero_and_255(tmp_path):
    store_features(margin_network(), "final", Photographs((8, 8), (8, 4)), tmp_path / "train", size=(14, 14))
    store_features(plain_network(), "score", Photographs((9, 13), (5, 5)), tmp_path / "val")
    data = open_data("features", tmp_path)
    ((image, label),) = training_batches(data, 2, steps=1)
    assert image.shape == (2, 2, 2, 5) and image.dtype == tf.float32 and label.dtype == tf.int32
    by_id = {example.label.tobytes(): example.image for example in data}
    for one, mask in zip(image.numpy(), label.numpy(), strict=True):
        np.testing.assert_array_equal(one, by_id[mask.tobytes()])
    unequal = open_data("features", tmp_path, "val")
    ((image, label),) = evaluation_batches(unequal, 2)
    assert image.shape == (2, 9, 13, 3)
    np.testing.assert_array_equal(image[1, :5, :5], unequal[1].image)
    assert not image[1, 5:].numpy().any() and not image[1, :, 5:].numpy().any()
    assert (label[1, 5:].numpy() == 255).all() and (label[1, :, 5:].numpy() == 255).all()
    twice = Bootstrapped(data, ["a"])
    assert not twice.photographs and twice.channels == 5 and len(twice) > 2
    ((image, _),) = training_batches(twice, 4, steps=1)
    assert image.shape[-1] == 5


def damaged(stored, tmp_path, name, write):
    import shutil

    shutil.copytree(stored / "train", tmp_path / "train")
    write(tmp_path / "train" / name)
    return tmp_path


DAMAGES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "BadZipFile"),
    "a bit": (lambda path: path.write_bytes(path.read_bytes()[:400] + b"\x07" + path.read_bytes()[401:]), "BadZipFile"),
    "empty": (lambda path: path.write_bytes(b""), "EOFError"),
    "text": (lambda path: path.write_text("features"), "ValueError|UnpicklingError"),
    "other arrays": (lambda path: np.savez(path, a=np.zeros(3)), "KeyError"),
    "channels": (
        lambda path: np.savez(path, features=np.zeros((5, 5, 4), np.float32), label=np.zeros((5, 5), np.uint8)),
        r"holds features \(5, 5, 4\) float32, label \(5, 5\) uint8; expected float32 \(h, w, 3\)",
    ),
    "classes": (
        lambda path: np.savez(path, features=np.zeros((5, 5, 3), np.float32), label=np.full((5, 5), 9, np.uint8)),
        "label 9 of 3 classes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(stored, tmp_path, damage):
    write, message = DAMAGES[damage]
    data = open_data("features", damaged(stored, tmp_path, "000001.npz", write))
    with pytest.raises(
        KerassegError, match=f"000001.npz is damaged .*({message}).*: remove it and run the command that stored it"
    ) as e:
        data[1]
    assert "\n" not in str(e.value) and data[0].image.shape == (9, 13, 3)
    with pytest.raises(tf.errors.OpError) as error:
        list(evaluation_batches(data))
    assert str(e.value) in str(unwrap_error(error.value))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layer": 3}'])
def test_a_damaged_header_is_named(stored, tmp_path, text):
    root = damaged(stored, tmp_path, "features.json", lambda path: path.write_text(text))
    with pytest.raises(KerassegError, match="features.json is damaged .*: remove .*/train and store the features again"):
        open_data("features", root)


def test_a_folder_without_features_is_named(stored, tmp_path):
    cases = {
        (None, "train"): "data set 'features' received no data_dir: expected a folder with <split>/features.json",
        (tmp_path, "train"): "holds no train/features.json: expected what tools/store_features.py --out",
        (stored, "val"): "holds no features of split 'val': known: train",
        (stored, "trian"): "holds no features of split 'trian': did you mean 'train'?",
        (stored / "train", "train"): f"is one split of a data set: pass --data-dir {stored} --split train",
        (stored, "half"): "half is not finished",
    }
    for (folder, split), message in cases.items():
        with pytest.raises(KerassegError, match=message.replace("?", r"\?")):
            open_data("features", folder, split)


def test_the_default_recipe_does_not_crop_features():
    options = parser().parse_args(["--arch", "fcn8s", "--data", "features", "--data-dir", "x", "--margin", "186"])
    options.stage = None
    recipe = resolve_recipe(options)
    assert recipe.crop_size is None and recipe.data == "features"
    check_names(recipe)
    for option, value in (("--margin", "-1"), ("--label-margin", "20000")):
        with pytest.raises(KerassegError, match="expected 0 to 10000 pixels"):
            check_names(resolve_recipe(parser().parse_args([option, value])))
