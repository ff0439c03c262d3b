import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import data as kd
from kerasseg.data import (
    DataSet,
    Example,
    Flip,
    RandomCrop,
    RandomScale,
    Share,
    evaluation_batches,
    open_data,
    training_batches,
    unwrap_error,
)
from kerasseg.errors import KerassegError, UnknownNameError
from kerasseg.labels import LABELS

MEAN = (1.5, 2.5, 3.5)


class Counted(DataSet):
    """Images of one value, their index, and of sizes that differ: (4 + index % 3) × (5 + index % 2)."""

    def __init__(self, length, sizes=True):
        super().__init__(LABELS["voc"], map(str, range(length)), MEAN)
        self.sizes = sizes

    def read(self, index):
        size = (4 + index % 3, 5 + index % 2) if self.sizes else (4, 5)
        return Example(np.full((*size, 3), index, np.uint8), np.full(size, index, np.int32), self.ids[index], None)


class Broken(DataSet):
    def __init__(self, error):
        super().__init__(LABELS["voc"], "ab")
        self.error = error

    def read(self, index):
        raise self.error


def arrays(batches):
    return [(image.numpy(), label.numpy()) for image, label in batches]


def assert_same(one, two):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            assert np.array_equal(x, y)


AUGMENT = (RandomScale(0.5, 1.5), RandomCrop((32, 48)), Flip())


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
def test_any_start_gives_the_same_batches(sampling):
    data = open_data("shapes", length=10)
    settings = {"transforms": AUGMENT, "seed": 5, "sampling": sampling}
    unbroken = arrays(training_batches(data, 4, steps=7, **settings))
    assert_same(unbroken[3:], arrays(training_batches(data, 4, start=3, steps=4, **settings)))
    assert_same(unbroken[5:6], arrays(training_batches(data, 4, start=5, **settings).take(1)))
    other = arrays(training_batches(data, 4, steps=1, **{**settings, "seed": 6}))
    assert not np.array_equal(unbroken[0][0], other[0][0])


@pytest.mark.parametrize("sizes", [True, False])
def test_slices_make_up_the_batch(sizes):
    """Also where sizes differ, as slices are padded like the whole."""
    data = Counted(9, sizes)
    whole = arrays(training_batches(data, 4, steps=5))
    sliced = training_batches(data, 4, steps=5, share=Share(2, 0, 2))
    assert sliced.element_spec[0].shape.as_list() == [2, None, None, 3]
    sliced = arrays(sliced)
    assert len(sliced) == 10
    assert_same(whole, [tuple(map(np.concatenate, zip(sliced[k], sliced[k + 1], strict=True))) for k in range(0, 10, 2)])


def test_a_share_holds_its_parts_of_every_batch():
    data = Counted(13, sizes=False)
    whole = arrays(training_batches(data, 8, transforms=[Flip()], seed=3, start=2, steps=3))
    parts = [arrays(training_batches(data, 8, transforms=[Flip()], seed=3, start=2, steps=3, share=Share(4, k, 2))) for k in (0, 2)]
    for number, batch in enumerate(whole):
        own = [share[2 * number + k] for share in parts for k in (0, 1)]
        assert all(len(image) == 2 for image, _ in own)
        assert_same([batch], [tuple(map(np.concatenate, zip(*own, strict=True)))])


def test_shuffled_epochs_run_into_each_other():
    labels = np.concatenate(
        [label.max(axis=(1, 2), where=label != 255, initial=0) for _, label in arrays(training_batches(Counted(6), 4, steps=6))]
    )
    assert [sorted(labels[k : k + 6].tolist()) for k in range(0, 24, 6)] == [list(range(6))] * 4


def test_examples_meet_their_own_random_numbers():
    def noted(image, label, rng):
        return np.full((1, 1, 3), rng.random() * 255, np.float32), np.full((1, 1), label[0, 0], np.int32)

    [(image, label)] = arrays(training_batches(Counted(5), 3, transforms=[noted], seed=2, start=4, steps=1))
    for k, position in enumerate((12, 13, 14)):
        assert label[k, 0, 0] == kd.example_index(position, 5, 2)
        assert image[k, 0, 0, 0] == np.float32(kd.example_rng(2, position).random() * 255)


def test_shapes_and_types():
    spec = training_batches(open_data("shapes"), 2, transforms=AUGMENT).element_spec
    assert [(s.shape.as_list(), s.dtype) for s in spec] == [([2, 32, 48, 3], tf.float32), ([2, 32, 48], tf.int32)]
    spec = training_batches(open_data("shapes"), 4, transforms=AUGMENT, share=Share(2, 0, 2)).element_spec
    assert [s.shape.as_list() for s in spec] == [[2, 32, 48, 3], [2, 32, 48]]
    spec = training_batches(open_data("shapes"), 2).element_spec
    assert [s.shape.as_list() for s in spec] == [[2, None, None, 3], [2, None, None]]


def test_length_is_known():
    data = Counted(5)
    assert training_batches(data, 2).cardinality() == tf.data.INFINITE_CARDINALITY
    assert training_batches(data, 2, steps=3, start=7).cardinality() == 3
    assert evaluation_batches(data, 2).cardinality() == 3


def test_evaluation_gives_every_example_once_and_pads():
    batches = arrays(evaluation_batches(Counted(5), 2))
    # Sizes are 4×5, 5×6, 6×5, 4×6, 5×5.
    assert [label.shape for _, label in batches] == [(2, 5, 6), (2, 6, 6), (1, 5, 5)]
    image, label = batches[0]
    assert (image.dtype, label.dtype) == (np.float32, np.int32)
    assert label[0].tolist() == [[0] * 5 + [255]] * 4 + [[255] * 6]
    assert label[1].tolist() == [[1] * 6] * 5
    assert image[0, 4, 5].tolist() == list(MEAN)
    assert image[0, 3, 4].tolist() == [0, 0, 0]
    assert [int(label[0, 0, 0]) for _, label in arrays(evaluation_batches(Counted(5)))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "error", [KerassegError("mask a.png is odd: expected 3, save it"), UnknownNameError("mask a.png is odd: expected 3, save it")]
)
def test_mistakes_in_the_data_arrive_in_one_line(error):
    for batches in (
        training_batches(Broken(error), 2),
        training_batches(Broken(error), 2, share=Share(2, 0, 2)),
        evaluation_batches(Broken(error)),
    ):
        with pytest.raises(tf.errors.OpError) as raised:
            next(iter(batches))
        mistake = unwrap_error(raised.value)
        assert type(mistake) is KerassegError
        assert str(mistake) == "mask a.png is odd: expected 3, save it"


def test_mistakes_in_the_data_pass_through_fit():
    model = keras.Sequential([keras.layers.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    with pytest.raises(tf.errors.OpError) as raised:
        model.fit(training_batches(Broken(KerassegError("x: y, z")), 2), steps_per_epoch=1, shuffle=False, verbose=0)
    assert str(unwrap_error(raised.value)) == "x: y, z"


def test_other_errors_are_not_taken_for_mistakes():
    with pytest.raises(tf.errors.OpError) as raised:
        next(iter(evaluation_batches(Broken(RuntimeError("no KerassegError")))))
    assert unwrap_error(raised.value) is None
    assert unwrap_error(ValueError("KerassegError: not from TensorFlow")) is None
    mistake = KerassegError("mine")
    assert unwrap_error(mistake) is mistake
    outer = RuntimeError("outer")
    outer.__cause__ = mistake
    assert unwrap_error(outer) is mistake


def test_examples_without_labels_are_refused():
    class Bare(Counted):
        def read(self, index):
            return Example(np.zeros((2, 2, 3), np.uint8), None, "photo_7", None)

    with pytest.raises(tf.errors.OpError) as raised:
        next(iter(evaluation_batches(Bare(1))))
    assert "'photo_7' has no label map" in str(unwrap_error(raised.value))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 3, "share": Share(2)}, "batch_size 3 does not divide into 2 slices"),
        ({"batch_size": 2, "share": Share(0)}, "slices=0"),
        ({"batch_size": 2, "share": Share(2, 1, 2)}, "expected first from 0 on and first . count at most slices"),
        ({"batch_size": 2, "start": -1}, "start=-1"),
        ({"batch_size": 2, "sampling": "random"}, "unknown sampling 'random'"),
        ({"batch_size": 2, "seed": -4}, "seed -4"),
        ({"batch_size": 2, "threads": 0}, "received threads=0: expected 1 or more, or None"),
        ({"batch_size": 2, "weights": [1, 1, 1]}, "sampling 'shuffle' received weights"),
        ({"batch_size": 2, "sampling": "replacement", "weights": [1, 1]}, r"weights of shape \(2,\) for 3 examples"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(KerassegError, match=message):
        training_batches(Counted(3), **settings)


class TwoInputsTwoHeads(DataSet):
    """Channel k of example n is 10 n + k, its two label maps n and n + 1; sizes differ."""

    channels, inputs = 5, {"color": 3, "depth": 2}
    heads = {"semantic": LABELS["voc"], "geometric": LABELS["camvid"]}

    def __init__(self, length=4):
        super().__init__(LABELS["voc"], map(str, range(length)), (1.0, 2.0, 3.0, 4.0, 5.0))

    def read(self, index):
        size = (4 + index % 2, 5)
        image = np.broadcast_to(np.float32(10 * index + np.arange(5)), (*size, 5))
        return Example(image, np.broadcast_to(np.int32([index, index + 1]), (*size, 2)), self.ids[index], None)


@pytest.mark.parametrize("transforms", [(), (RandomCrop((5, 6), (1.0, 2.0, 3.0, 4.0, 5.0)), Flip())])
def test_several_inputs_and_heads_are_dicts(transforms):
    data = TwoInputsTwoHeads()
    size = [5, 6] if transforms else [None, None]
    batches = training_batches(data, 4, transforms=transforms, steps=2)
    image, label = batches.element_spec
    assert {name: spec.shape.as_list() for name, spec in image.items()} == {"color": [4, *size, 3], "depth": [4, *size, 2]}
    assert {name: spec.shape.as_list() for name, spec in label.items()} == {"semantic": [4, *size], "geometric": [4, *size]}
    for image, label in batches:
        assert sorted(np.unique(label["semantic"])) == [0, 1, 2, 3, 255] and label["geometric"].dtype == tf.int32
        known = label["semantic"].numpy() != 255
        numbers = label["semantic"].numpy()[known]
        assert np.array_equal(label["geometric"].numpy()[known], numbers + 1)
        assert (label["geometric"].numpy()[~known] == 255).all()
        for name, first in (("color", 0), ("depth", 3)):
            value, count = image[name].numpy(), image[name].shape[-1]
            assert np.array_equal(value[known], 10 * numbers[:, None] + np.arange(first, first + count))
            assert (value[~known] == 1 + np.arange(first, first + count)).all()
    sliced = list(training_batches(data, 4, transforms=transforms, steps=1, share=Share(2, 0, 2)))
    assert [each[0]["depth"].shape[0] for each in sliced] == [2, 2] and sliced[0][1]["geometric"].shape[0] == 2
    image, label = next(iter(evaluation_batches(data, 3)))
    assert image["color"].shape == (3, 5, 5, 3) and label["semantic"][:, 0, 0].numpy().tolist() == [0, 1, 2]


def test_examples_of_other_channels_than_said_are_refused():
    class Odd(Counted):
        channels = 4

    for transforms in ((), (RandomCrop((4, 5), MEAN),)):
        with pytest.raises(tf.errors.OpError) as raised:
            next(iter(training_batches(Odd(3, sizes=False), 2, transforms=transforms)))
        if transforms:
            assert "its data set says 4 channels" in str(unwrap_error(raised.value))


def test_weights_say_how_often():
    weights = [0, 1, 0, 3, 0]
    batches = training_batches(Counted(5, sizes=False), 20, sampling="replacement", weights=weights, steps=30, seed=1)
    drawn = np.bincount(np.concatenate([label[:, 0, 0] for _, label in arrays(batches)]), minlength=5)
    assert drawn[[0, 2, 4]].sum() == 0 and abs(drawn[3] - 450) < 5 * np.sqrt(600 * 3 / 16)
    # Without weights the classes of each label are looked at: here each image is one.
    batches = training_batches(Counted(5), 20, sampling="balanced", steps=1)
    assert len(arrays(batches)) == 1


def test_pipelines_share_their_threads():
    def running():
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("kerasseg")}

    for _ in range(3):
        next(iter(training_batches(open_data("shapes", size=(16, 16)), 8, threads=3)))
    before = running()
    for _ in range(3):
        next(iter(training_batches(open_data("shapes", size=(16, 16)), 8, threads=3)))
        next(iter(evaluation_batches(open_data("shapes", size=(16, 16)), 8, threads=3)))
    assert running() == before and len(before) >= 2


def test_empty_data_is_refused():
    with pytest.raises(KerassegError, match="no example"):
        evaluation_batches(Counted(0))


def test_replicas_are_dealt_the_slices_in_turn():
    data = Counted(8, sizes=False)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    dealt = strategy.distribute_datasets_from_function(lambda context: training_batches(data, 4, steps=2))
    assert_same([(i.numpy(), x.numpy()) for i, x in dealt], arrays(training_batches(data, 4, steps=2)))


def test_fit_and_evaluate():
    data = open_data("shapes", length=6, size=(16, 24))
    model = keras.Sequential(
        [keras.layers.Input((None, None, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(6, 3, padding="same")]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    history = model.fit(
        training_batches(data, 2),
        steps_per_epoch=3,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=evaluation_batches(data, 4),
    )
    assert len(history.history["val_loss"]) == 2
    assert np.isfinite(model.evaluate(evaluation_batches(data, 4), verbose=0))


_ENDS_EARLY = """
import sys, time
from kerasseg.data import open_data, training_batches

class Slow:
    shapes = open_data("shapes", length=64)
    labels, mean, ids = shapes.labels, shapes.mean, shapes.ids
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(0.02)
        return self.shapes[index]

class Cycle:
    pass

cycle = Cycle()
cycle.own, cycle.batches = cycle, iter(training_batches(Slow(), 8))
next(cycle.batches)
del cycle
sys.exit(3)
"""


def test_a_program_that_ends_with_an_iterator_alive_does_not_hang():
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2"}
    ended = subprocess.run([sys.executable, "-c", _ENDS_EARLY], env=environment, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr
