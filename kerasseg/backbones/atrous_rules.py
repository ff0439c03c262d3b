"""What becomes of each kind of layer when a classifier is made dense; whatever is not here is refused.

A map of the classifier has stride s. Its dense twin has stride min(s, T) and rate r = max(1, s / T). One statement holds for
every map, by induction over the layers: `dense[:, ::r, ::r]` is the classifier's map, cell for cell and with as many cells. Where
the classifier's map has n cells along a side and the dense one m, n = ⌈m / r⌉, so that what lies outside the one lies outside the
other: zero padding by a, scaled to a · r, is the same zeros.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from kerasseg.errors import KerassegError
from kerasseg.layers import (
    AtrousPadding2D,
    AtrousPooling2D,
    BatchNormalization,
    Conv2D,
    Normalization,
    ScaledAdd,
    Subsampling2D,
)


class Place(NamedTuple):
    """Where a tensor of the classifier stands.

    Args:
        stride: Image pixels per cell; 0 for what is one for the whole image (the squeeze of a squeeze-and-excitation).
        zeros: Rows and columns of explicit padding that it carries.
    """

    stride: int
    zeros: tuple[int, int] = (0, 0)


class Step(NamedTuple):
    """What takes the place of one layer.

    Args:
        kind: Class of the new layer.
        config: Its configuration.
        place: Where its result stands.
        before: A layer to call first, or `None`.
    """

    kind: type
    config: dict
    place: Place
    before: Any = None


def refuse(op, reason: str):
    """Raises the error that names a layer, its kind and the reason."""
    raise KerassegError(
        f"layer '{op.name}' ({type(op).__name__}) {reason}, so that no dense form is known to be exact; "
        "expected a network such as keras.applications.ResNet50(include_top=False)"
    )


def _pair(value) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)


def _rate(place: Place, target: int) -> int:
    return max(1, place.stride // target)


def _only(op, places) -> Place:
    if len(places) != 1:
        refuse(op, f"has {len(places)} inputs instead of 1")
    return places[0]


def _check_function(op) -> None:
    function = getattr(op, "activation", None)
    if function is not None and not getattr(function, "__module__", "").startswith("keras."):
        refuse(op, "has an activation that is not Keras' own, of unknown reach")


def _unchanged(op, place: Place) -> Step:
    return Step(type(op), op.get_config(), place)


def _pointwise(op, places: list[Place], target: int) -> Step:
    """Cell for cell and channel by channel; several maps must be of one stride."""
    _check_function(op)
    strides = {place.stride for place in places if place.stride}
    if len(strides) > 1:
        refuse(op, f"joins maps of strides {sorted(strides)}")
    axes = getattr(op, "axis", -1)
    if strides and not set(axes if isinstance(axes, (tuple, list)) else [axes]) <= {-1, 3}:
        refuse(op, f"works along axis {axes} instead of the last")
    maps = [place for place in places if place.stride]
    zeros = maps[0].zeros if len(maps) == 1 else (0, 0)
    step = _unchanged(op, Place(strides.pop() if strides else 0, zeros))
    return step._replace(kind=_OURS.get(step.kind, step.kind))


def _scaled_add(op, places, target) -> Step:
    # Keras does not register its own layer: a file with it could not be opened.
    return _pointwise(op, places, target)._replace(kind=ScaledAdd)


def _window(op, place: Place, target: int, size) -> tuple[dict | None, Place]:
    """Gives the arguments of the dense window, or `None` where the layer stays as it is, and where the result stands."""
    stride = set(_pair(op.strides))
    if len(stride) > 1:
        refuse(op, f"has strides {op.strides}, different in height and width")
    stride, rate = stride.pop(), _rate(place, target)
    after = Place(place.stride * stride)
    if after.stride <= target or (rate == stride == 1):
        return None, after
    if place.stride < target and stride > 1 or place.stride * stride % target:
        refuse(op, f"has stride {stride} at stride {place.stride}, which passes over stride {target}")
    # What the window takes off the map, less what explicit padding had put on.
    spare = [max(0, k - 1 - zeros) if stride > 1 else 0 for k, zeros in zip(size, place.zeros, strict=True)]
    return {"size": size, "strides": stride, "rate": rate, "padding": op.padding, "spare": tuple(spare)}, after


def _convolution(op, places, target) -> Step:
    _check_function(op)
    place, kind = _only(op, places), type(op)
    kind = Conv2D if kind is keras.layers.Conv2D else kind
    if place.stride == 0:
        return Step(kind, op.get_config(), place)
    size = _pair(op.kernel_size)
    window, after = _window(op, place, target, size)
    if window is None:
        return Step(kind, op.get_config(), after)
    config = {**op.get_config(), "strides": (1, 1)}
    if max(size) == 1:
        # A window of one cell knows no padding and no rate.
        return Step(kind, config, after)
    config["dilation_rate"] = (window["rate"],) * 2
    centred = op.padding == "same" and window["strides"] == 1 and all(k % 2 for k in size)
    if centred or (op.padding == "valid" and window["spare"] == (0, 0)):
        return Step(kind, config, after)
    config["padding"] = "valid"
    return Step(kind, config, after, AtrousPadding2D(**window, name=f"{op.name}_atrous_pad", dtype=op.dtype_policy))


def _pooling(op, places, target) -> Step:
    place, size = _only(op, places), _pair(op.pool_size)
    if place.stride == 0:
        refuse(op, "pools what is one value for the whole image")
    window, after = _window(op, place, target, size)
    if window is None:
        return _unchanged(op, after)
    kind = "max" if isinstance(op, keras.layers.MaxPooling2D) else "average"
    base = {name: op.get_config()[name] for name in ("name", "trainable", "dtype")}
    return Step(AtrousPooling2D, {**base, **window, "kind": kind}, after)


def _border(op, places, target) -> Step:
    """Explicit padding and cropping: as many coarse cells, each of `rate` cells."""
    place = _only(op, places)
    name = "padding" if isinstance(op, keras.layers.ZeroPadding2D) else "cropping"
    sides, rate = getattr(op, name), _rate(place, target)
    scaled = tuple(tuple(cells * rate for cells in side) for side in sides)
    sign = 1 if name == "padding" else -1
    zeros = tuple(had + sign * sum(side) for had, side in zip(place.zeros, sides, strict=True))
    return Step(type(op), {**op.get_config(), name: scaled}, Place(place.stride, zeros))


def _squeeze(op, places, target) -> Step:
    """Squeeze-and-excitation was trained on the average over the coarse map."""
    place = _only(op, places)
    rate = _rate(place, target)
    sampling = Subsampling2D(rate, name=f"{op.name}_atrous_grid", dtype=op.dtype_policy) if rate > 1 else None
    return Step(type(op), op.get_config(), Place(0), sampling)


def _whole_image(op, places, target) -> Step:
    if any(place.stride for place in places):
        refuse(op, "mixes the cells of a map")
    _check_function(op)
    return _unchanged(op, Place(0))


_LAYERS = keras.layers
# The same layers with the same weights, as they must be here.
_OURS = {_LAYERS.BatchNormalization: BatchNormalization, _LAYERS.Normalization: Normalization}
_RULES: dict[type, Callable] = {
    **dict.fromkeys((_LAYERS.Conv2D, Conv2D, _LAYERS.DepthwiseConv2D, _LAYERS.SeparableConv2D), _convolution),
    **dict.fromkeys((_LAYERS.MaxPooling2D, _LAYERS.AveragePooling2D), _pooling),
    **dict.fromkeys((_LAYERS.ZeroPadding2D, _LAYERS.Cropping2D), _border),
    **dict.fromkeys((_LAYERS.Dense, _LAYERS.Reshape, _LAYERS.Flatten), _whole_image),
    **dict.fromkeys((_LAYERS.BatchNormalization, BatchNormalization, _LAYERS.Normalization, Normalization), _pointwise),
    **dict.fromkeys(
        (_LAYERS.Rescaling, _LAYERS.Activation, _LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.ELU, _LAYERS.Dropout), _pointwise
    ),
    **dict.fromkeys((_LAYERS.Add, _LAYERS.Multiply, _LAYERS.Average, _LAYERS.Maximum, _LAYERS.Concatenate), _pointwise),
    _LAYERS.GlobalAveragePooling2D: _squeeze,
}
# Written as x + 3 or x * y in a classifier, these are no layers.
_OPERATIONS = ("Add", "Multiply", "Subtract")


def rule_of(op) -> Callable:
    """Finds how a layer is treated.

    Args:
        op: Layer or operation of a classifier's graph.
    Returns:
        Function of the layer, the places of its inputs and the target stride that gives a `Step`.
    Raises:
        KerassegError: If there is no exact treatment.
    """
    kind = type(op)
    if isinstance(op, keras.Model):
        refuse(op, "is a model inside the model")
    if max(_pair(getattr(op, "dilation_rate", 1))) > 1:
        refuse(op, f"is dilated already, by {op.dilation_rate}")
    if getattr(op, "data_format", "channels_last") == "channels_first":
        refuse(op, "has its channels first")
    if kind in _RULES:
        return _RULES[kind]
    if kind.__module__.startswith("keras.src."):
        if kind.__name__ in _OPERATIONS and not isinstance(op, keras.Layer):
            return _pointwise
        if kind.__name__ == "CustomScaleLayer":
            return _scaled_add
    return refuse(op, "is of a kind without a known treatment")
