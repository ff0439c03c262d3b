"""Keeping parts of a network as they are while the rest trains."""

import re
from collections.abc import Iterable

import keras

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def freeze(model: keras.Model, patterns: Iterable[str] = (), batch_norm: bool = False) -> list[str]:
    """Freezes layers: their weights get no gradient and no decay, and the optimizer keeps nothing of them.

    A frozen batch normalization normalises by its moving statistics, in training too, and keeps them. To be called before the
    optimizer is built or the model compiled.

    Args:
        model: The network, changed in place.
        patterns: Regular expressions on the names of layers, each matched whole: `block4.*`; `conv.*|fc.*` for VGG16's trunk.
        batch_norm: Whether to freeze every batch normalization, its statistics, scale and offset.
    Returns:
        Names of the layers chosen; one that consists of others freezes them all.
    Raises:
        KerassegError: If a pattern is no regular expression or matches no layer with weights, or nothing would be left to train;
            the model is as it was then.
    Reference:
        Shelhamer et al. 2017, Table 3 (FCN-32s "fixed"); Chen et al. 2017, arXiv:1706.05587, §4.1 (batch normalization).
    Example:
        >>> freeze(model, ["conv.*|fc.*"])  # of FCN-32s, only score_fr trains
    """
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    chosen = [layer for layer in layers if batch_norm and isinstance(layer, keras.layers.BatchNormalization)]
    for pattern in patterns:
        matching = _matching(pattern, layers)
        if not matching:
            names = [layer.name for layer in layers]
            raise KerassegError(
                f"freeze='{pattern}' matches the whole name of no layer with weights: {did_you_mean(pattern, names)}"
            )
        chosen += matching
    frozen = {id(weight) for layer in chosen for weight in layer.weights}
    if all(id(weight) in frozen for weight in model.trainable_variables):
        raise KerassegError(f"freeze={tuple(patterns)} leaves nothing of {model.name} to train: leave out at least one layer")
    for layer in chosen:
        layer.trainable = False
    return [layer.name for layer in layers if layer in chosen]


def _matching(pattern: str, layers) -> list:
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise KerassegError(f"freeze='{pattern}' is not a regular expression: {error}") from error
    return [layer for layer in layers if matches(layer.name)]
