import numpy as np
import pytest

from kerasseg.data import Bootstrapped, DataSet, Example, example_index, example_rng
from kerasseg.errors import KerassegError
from kerasseg.labels import generic_table

PINNED_SHUFFLE = [5, 0, 6, 1, 7, 2, 4, 3]
PINNED_REPLACEMENT = [72, 82, 48, 54, 16, 98, 1, 98]


def sequence(positions, length=50, seed=3, sampling="shuffle"):
    return [example_index(position, length, seed, sampling) for position in positions]


def test_shuffle_is_a_fresh_permutation_each_epoch():
    epochs = [sequence(range(50 * k, 50 * k + 50)) for k in range(6)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert sequence(range(50), seed=4) != epochs[0]


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
def test_pure_function_of_the_position(sampling):
    forwards = sequence(range(300), sampling=sampling)
    backwards = sequence(range(299, -1, -1), sampling=sampling)
    assert forwards == backwards[::-1]


def test_replacement_is_uniform_and_repeats():
    drawn = np.bincount(sequence(range(20000), length=10, sampling="replacement"), minlength=10)
    # Standard deviation is √(20000 · 0.1 · 0.9) = 42.
    assert np.abs(drawn - 2000).max() < 5 * 42
    assert len(set(sequence(range(50), sampling="replacement"))) < 45


def test_augmentation_is_independent_of_the_draw():
    draws = [example_rng(3, position).random() for position in range(2000)]
    assert draws == [example_rng(3, position).random() for position in range(2000)]
    assert abs(np.mean(draws) - 0.5) < 5 * np.sqrt(1 / 12 / 2000)
    chosen = sequence(range(2000), length=1000, sampling="replacement")
    like_chosen = [example_rng(3, position).integers(1000) for position in range(2000)]
    assert abs(np.corrcoef(like_chosen, chosen)[0, 1]) < 5 / np.sqrt(2000)
    assert example_rng(4, 0).random() != draws[0]


def test_numbers_do_not_drift():
    """Written down once: a run of last year must resume with the same sequence."""
    assert sequence(range(8), length=8, seed=0) == PINNED_SHUFFLE
    assert sequence(range(8), length=100, seed=0, sampling="replacement") == PINNED_REPLACEMENT


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 5, 0, "shufle"), "did you mean 'shuffle'"),
        ((0, 5, -1, "shuffle"), "seed -1"),
        ((0, 0, 0, "shuffle"), "data set of 0"),
        ((-1, 5, 0, "shuffle"), "position -1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(KerassegError, match=message):
        example_index(*arguments)


# The classes of each label map; 2 is in the second and fourth, 3 in the fourth alone, 4 nowhere.
CLASSES_OF = ([0, 1], [0, 2], [1, 255], [0, 2, 3], [255])


class Listed(DataSet):
    def __init__(self, labelled=True):
        super().__init__(generic_table(["ground", "cat", "dog", "cow", "owl"]), "abcde", (1.0, 2.0, 3.0))
        self.labelled = labelled

    def read(self, index):
        label = np.array([CLASSES_OF[index]], np.int32) if self.labelled else None
        return Example(np.full((1, len(CLASSES_OF[index]), 3), index, np.uint8), label, self.ids[index], None)


@pytest.mark.parametrize(
    ("classes", "twice"),
    [(["dog"], "bd"), ([2], "bd"), (["2"], "bd"), (["cow"], "d"), (["cat", "cow"], "acd"), (["dog", "owl"], "bd")],
)
def test_images_of_rare_classes_come_twice(classes, twice):
    seen = []
    data = Bootstrapped(Listed(), classes, report=lambda done, total: seen.append((done, total)))
    assert "".join(data.ids) == "abcde" + twice and len(data) == 5 + len(twice)
    assert [example.id for example in data] == list(data.ids)
    for index, name in enumerate(data.ids):
        assert data[index].image.max() == "abcde".index(name)
        assert np.array_equal(data.read_label(index), data[index].label)
    assert (data.mean, data.labels.classes) == ((1.0, 2.0, 3.0), Listed().labels.classes)
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize(
    ("data", "classes", "message"),
    [
        (Listed(), ["cag"], r"^data set 'folder' has no class 'cag': did you mean 'cat'\?$"),
        (Listed(), [5], "^data set 'folder' has no class '5': known: ground, cat, dog, cow, owl$"),
        (Listed(), [-1], "^data set 'folder' has no class '-1': known: "),
        (Listed(), ["owl"], "^no image of data set 'folder' holds owl: nothing to list twice$"),
        (Listed(labelled=False), ["cat"], "^example 'a' of data set 'folder' has no label: choose a split with masks$"),
    ],
)
def test_bootstrapping_refuses(data, classes, message):
    with pytest.raises(KerassegError, match=message):
        Bootstrapped(data, classes)
