import numpy as np
import pytest

from kerasseg.data import Bootstrapped, DataSet, Example, example_index, example_rng
from kerasseg.data.sampling import Sampler, class_balance
from kerasseg.errors import KerassegError
from kerasseg.labels import generic_table

PINNED_SHUFFLE = [5, 0, 6, 1, 7, 2, 4, 3]
PINNED_REPLACEMENT = [72, 82, 48, 54, 16, 98, 1, 98]
PINNED_WEIGHTED = [58, 37, 77, 89, 46, 49, 76, 67]


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
    assert [example_index(k, 100, 0, "replacement", np.arange(100)) for k in range(8)] == PINNED_WEIGHTED


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


def test_weights_are_odds():
    weights = np.array([0, 2, 0.5, 0, 1.5, 0])
    sampler = Sampler(6, 3, "replacement", weights)
    drawn = [sampler(position) for position in range(8000)]
    counts = np.bincount(drawn, minlength=6)
    assert counts[weights == 0].sum() == 0
    # Standard deviation is at most √(8000 / 4) = 45.
    assert np.abs(counts - 8000 * weights / 4).max() < 5 * 45
    assert drawn[::-7] == [example_index(position, 6, 3, "replacement", 100 * weights) for position in range(7999, -1, -7)]
    assert {Sampler(3, seed, "replacement", [0, 0, 1])(0) for seed in range(50)} == {2}
    # A draw that rounding would put beyond the end.
    assert max(Sampler(2, seed, "replacement", [1e-300, 5e-324])(0) for seed in range(50)) <= 1


def test_balance_is_a_draw_of_a_class_and_then_of_an_image():
    """Worked by hand: ground is in a, b, d; cat in a and c; dog in b and d; cow in d; owl nowhere. Each class has a quarter."""
    seen = []
    weights = class_balance(Listed(), lambda done, total: seen.append((done, total)))
    expected = np.array([1 / 3 + 1 / 2, 1 / 3 + 1 / 2, 1 / 2, 1 / 3 + 1 / 2 + 1, 0]) / 4
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert seen == [(done, 5) for done in range(1, 6)]
    sampler = Sampler(5, 0, "balanced", weights)
    counts = np.bincount([sampler(position) for position in range(6000)], minlength=5)
    assert np.abs(counts - 6000 * expected).max() < 5 * np.sqrt(1500) and counts[4] == 0


def test_balance_of_several_heads_is_that_of_the_first():
    class Two(Listed):
        def read(self, index):
            example = super().read(index)
            label = np.stack([example.label, np.zeros_like(example.label)], axis=-1)
            return Example(example.image, label, example.id, None)

    assert np.array_equal(class_balance(Two()), class_balance(Listed()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shuffle", [1, 1]), "sampling 'shuffle' received weights: .* use 'replacement'"),
        (("balanced", None), "sampling 'balanced' received no weights: pass weights=kerasseg.data.sampling.class_balance"),
        (("replacement", [1, 1, 1]), r"weights of shape \(3,\) for 2 examples: expected one number for each"),
        (("replacement", [1, -1]), "weights must be finite, 0 or more, and not all 0"),
        (("replacement", [0, 0]), "weights must be finite, 0 or more, and not all 0"),
        (("replacement", [1, np.nan]), "weights must be finite, 0 or more, and not all 0"),
    ],
)
def test_weights_that_cannot_be(arguments, message):
    with pytest.raises(KerassegError, match=message):
        Sampler(2, 0, *arguments)


def test_nothing_to_balance():
    class Void(Listed):
        def read(self, index):
            return Example(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 255, np.int32), self.ids[index], None)

    with pytest.raises(KerassegError, match="no label map of data set 'folder' holds a class: nothing to balance"):
        class_balance(Void())
