import re

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.data import (
    Bootstrapped,
    Cached,
    ColorJitter,
    DataSet,
    Example,
    Flip,
    MaskCues,
    MaskedData,
    Subset,
    compose,
    training_batches,
    unwrap_error,
)
from kerasseg.data.layouts.nyud import NyudColorD, NyudColorHHA, NyudHHA
from kerasseg.data.views.union import Union
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


class Depth(DataSet):
    """Three channels that are no colours."""

    colors = 0

    def read(self, index):
        return Example(np.zeros((3 + index, 4, 3), np.uint8), np.zeros((3 + index, 4), np.int32), self.ids[index], None)


def test_colours_are_changed_only_of_photographs():
    data = Depth(LABELS["nyud"], "ab")
    views = data, Subset(data, [1]), Bootstrapped(data, [0]), MaskedData(data, MaskCues()), Cached(data, "memory"), Union([data])
    for view in views:
        for transforms in ([ColorJitter()], [compose([Flip(), ColorJitter()])]):
            with pytest.raises(KerassegError, match="^data set 'nyud' has no colours to change: leave ColorJitter out") as error:
                training_batches(view, 1, transforms=transforms)
            assert "\n" not in str(error.value)
        training_batches(view, 1, transforms=[Flip()])
    maps = NyudColors(LABELS["nyud"], "ab")
    training_batches(maps, 1, transforms=[ColorJitter()])
    maps.photographs = False
    with pytest.raises(KerassegError, match="has no colours to change"):
        training_batches(maps, 1, transforms=[ColorJitter()])
    assert (NyudHHA.colors, NyudColorHHA.colors, NyudColorD.colors) == (0, 3, 3)
    with pytest.raises(KerassegError, match="differ in their colors, 0 and 3"):
        Union({"depth": data, "color": NyudColors(LABELS["nyud"], "c")})


class NyudColors(Depth):
    colors = 3


def test_the_colour_of_padding_may_be_an_array():
    for fill in ((1, 2, 3), [1, 2, 3], np.array([1, 2, 3])):
        image, _ = next(iter(training_batches(Depth(LABELS["nyud"], "ab"), 2, fill=fill, steps=1)))
        assert sorted({tuple(pixel) for pixel in image.numpy().reshape(-1, 3).tolist()}) == [(0, 0, 0), (1, 2, 3)]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/data/a.raw"),
            "^/data/a.raw cannot be read: No such file or directory$",
        ),
        (OSError("too\nshort"), "^a file cannot be read: too short$"),
    ],
)
def test_what_the_system_says_of_a_file_is_told_in_one_line(mistake, message):
    class Lost(Depth):
        def read(self, index):
            raise mistake

    with pytest.raises(tf.errors.OpError) as error:
        next(iter(training_batches(Lost(LABELS["nyud"], "ab"), 1, steps=1)))
    told = unwrap_error(error.value)
    assert told is not None
    assert re.search(message, str(told))
