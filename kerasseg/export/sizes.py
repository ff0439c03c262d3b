"""Which sizes of images a network takes."""

from collections.abc import Sequence

import keras

from kerasseg.layers import MinimumSize

# Sizes that a file for images of any size is run at; odd, and no square.
_ANY_SIZES = ((65, 97), (97, 65), (129, 161), (225, 257))


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Finds the layers of a network, also of networks that are layers of it.

    Args:
        model: The network.
    """
    return list(model._flatten_layers(include_self=False))


def fitting(model: keras.Model, size: Sequence[int]) -> tuple[int, int]:
    """Rounds a size up to one that a network takes: some refuse small ones, and what is no multiple of something.

    Args:
        model: The network.
        size: Height and width in pixels.
    """
    size = tuple(size)
    for layer in all_layers(model):
        if isinstance(layer, MinimumSize):
            size = tuple(map(layer.fitting, size))
    return size


def some_sizes(model: keras.Model) -> list[tuple[int, int]]:
    """Gives two sizes that a network takes, to try it at.

    Args:
        model: The network, of images of any size.
    """
    return list(dict.fromkeys(fitting(model, size) for size in _ANY_SIZES))[:2]
