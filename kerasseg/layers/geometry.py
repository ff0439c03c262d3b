"""Where the cells of a feature map lie in the image, and what they see of it: the source of every crop offset."""

import math
from fractions import Fraction
from typing import NamedTuple

import keras

from kerasseg.layers.dilation import AtrousPadding2D, AtrousPooling2D
from kerasseg.layers.resizing import AlignedResize, AlignedResizeLike

# Layers whose output cell (i, j) depends on input cells (i, j) alone.
_POINTWISE = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.BatchNormalization,
    keras.layers.Concatenate,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.Identity,
    keras.layers.LayerNormalization,
    keras.layers.LeakyReLU,
    keras.layers.Maximum,
    keras.layers.Minimum,
    keras.layers.Multiply,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Rescaling,
    keras.layers.Softmax,
    keras.layers.SpatialDropout2D,
    keras.layers.Subtract,
)
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_POOLINGS = (keras.layers.AveragePooling2D, keras.layers.MaxPooling2D)
_GLOBAL_POOLINGS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
# What stands for such a layer where it is written as x + y.
_POINTWISE_OPERATIONS = ("Add", "Divide", "Maximum", "Minimum", "Multiply", "Subtract")
# In the place of a place: made of the whole image; the same everywhere, since one cell was spread out.
_WHOLE, _CONSTANT = "whole", "constant"


class _Step(NamedTuple):
    """What a layer does along one axis: its output cell i is made of the input cells within reach of scale · i + shift."""

    scale: Fraction
    shift: Fraction
    reach: Fraction


def coordinate_map(tensor) -> tuple[Fraction, Fraction]:
    """Follows a feature map back through its graph to the image.

    Args:
        tensor: Symbolic output of a layer, shape `(B, h, w, C)`.
    Returns:
        `(scale, shift)`: the centre of cell i lies at image pixel scale · i + shift; scale is the stride.
    Raises:
        ValueError: If maps that are not aligned meet in one layer, a layer's geometry is not known, not that of a square, or
            depends on a size that is not, or the map is made of the whole image.
    Reference:
        Shelhamer et al. 2017, §3 (the transformation rule for kernel size and stride) and §4.3 (crops).
    """
    return Geometry().coordinate_map(tensor)


def receptive_field(tensor) -> tuple[int | None, int | None]:
    """Counts the pixels of the image that one cell of a feature map depends on, the image being without end.

    Maps of one stride that meet without being aligned count as what they are: the field reaches as far as either does.

    Args:
        tensor: Symbolic output of a layer, shape `(B, h, w, C)`.
    Returns:
        Height and width in pixels, of the cells that see most where upsampling makes them differ; `None` where a global pooling
        is on the way: the cell sees the whole image.
    Raises:
        ValueError: If maps of different strides meet in one layer, a layer's geometry is not known, or depends on a size that is
            not.
    Reference:
        Shelhamer et al. 2017, §3 and Table 1 ("rf size").
    """
    return Geometry().receptive_field(tensor)


def crop_offset(tensor, reference) -> int:
    """Derives at which cell of one map the other begins.

    Args:
        tensor: The map to crop.
        reference: The map to align it with, of the same stride.
    Returns:
        Rows and columns of `tensor` before the first cell of `reference`; negative if `reference` begins earlier.
    Raises:
        ValueError: If the strides differ or the cells of the two maps do not coincide.
    """
    scale, shift = coordinate_map(tensor)
    reference_scale, reference_shift = coordinate_map(reference)
    offset = (reference_shift - shift) / scale
    if scale != reference_scale or offset.denominator != 1:
        raise ValueError(
            f"maps of stride {scale} at {shift} and stride {reference_scale} at {reference_shift} do not coincide cell on cell"
        )
    return int(offset)


class Geometry:
    """The functions `coordinate_map` and `receptive_field` for many maps of one network, following each layer once."""

    def __init__(self):
        # By the identity of tensors, which live as long as their network; they are kept here, too.
        self._places, self._steps, self._spans, self._kept = {}, {}, {}, []
        # Why a map that has a stride lies nowhere in particular.
        self._misaligned = {}

    def coordinate_map(self, tensor) -> tuple[Fraction, Fraction]:
        """As the function of that name."""
        place, name = self._located(tensor), tensor._keras_history.operation.name
        if id(tensor) in self._misaligned:
            raise self._misaligned[id(tensor)]
        if place[0] != place[1]:
            raise ValueError(f"{name}: different geometry in height and width ({_shown(place[0])}, {_shown(place[1])})")
        return place[0]

    def strides(self, tensor) -> tuple[Fraction, Fraction]:
        """Counts the image pixels from one cell of a map to the next, down and across, also where maps met unaligned.

        Raises:
            ValueError: As `receptive_field`, or if the map is made of the whole image.
        """
        return tuple(scale for scale, _ in self._located(tensor))

    def receptive_field(self, tensor) -> tuple[int | None, int | None]:
        """As the function of that name."""
        self._follow(tensor)
        if isinstance(self._places[id(tensor)], ValueError):
            raise self._places[id(tensor)]
        return tuple(self._field(tensor, axis) for axis in (0, 1))

    def _located(self, tensor) -> tuple:
        self._follow(tensor)
        place = self._places[id(tensor)]
        if isinstance(place, ValueError):
            raise place
        if isinstance(place, str):
            made_of = "whole image" if place is _WHOLE else "same cell"
            raise ValueError(f"{tensor._keras_history.operation.name}: each of its cells is made of the {made_of}")
        return place

    def _follow(self, tensor) -> None:
        """Places a map, all that it is made of first, each once: the paths through n residual units are 2ⁿ."""
        for each in _sorted(tensor, self._places):
            self._kept.append(each)
            self._places[id(each)] = self._place(each)
            if (spans := self._regular_spans(each)) is not None:
                self._spans[id(each)] = spans

    def _place(self, tensor):
        """Scale and shift along both axes; or `_WHOLE`, `_CONSTANT`, or the error that says why they are not known."""
        layer = tensor._keras_history.operation
        if isinstance(layer, keras.layers.InputLayer):
            return ((Fraction(1), Fraction(0)),) * 2
        if isinstance(layer, _GLOBAL_POOLINGS):
            return _WHOLE
        places = [self._places[id(source)] for source in _sources(tensor)]
        errors = [place for place in places if isinstance(place, ValueError)]
        if errors or all(place is _WHOLE for place in places):
            return errors[0] if errors else _WHOLE
        try:
            steps = self._steps[id(tensor)] = _steps(layer, _sources(tensor)[0], tensor)
        except ValueError as error:
            return error
        located = sorted({place for place in places if not isinstance(place, str)})
        if not located or any(step.scale == 0 for step in steps):
            return _CONSTANT
        causes = [self._misaligned[id(source)] for source in _sources(tensor) if id(source) in self._misaligned]
        if len(located) > 1:
            shown = [tuple(map(_shown, place)) for place in located]
            causes.append(ValueError(f"{layer.name}: its inputs lie at different places in the image: {shown}"))
        if len({tuple(scale for scale, _ in place) for place in located}) > 1:
            return causes[-1]
        if causes:
            self._misaligned[id(tensor)] = causes[0]
        place = located[0]
        return tuple((scale * step.scale, scale * step.shift + shift) for (scale, shift), step in zip(place, steps, strict=True))

    def _regular_spans(self, tensor):
        """Along both axes, first and last pixel below cell 0, `None` for the whole image.

        Below cell i it is the same, moved by i strides; of maps for which that does not hold there is nothing.
        """
        layer = tensor._keras_history.operation
        if isinstance(layer, keras.layers.InputLayer):
            return ((0, 0),) * 2
        # What aligns its output with its input, and yet makes each cell of all others, says so.
        if self._places[id(tensor)] is _WHOLE or getattr(layer, "sees_everything", False):
            return None, None
        sources, steps = _sources(tensor), self._steps.get(id(tensor))
        if steps is None or any(step.scale.denominator > 1 for step in steps) or any(id(x) not in self._spans for x in sources):
            return None
        return tuple(self._span({id(x): _cells(step, 0, 0) for x in sources}, sources, axis) for axis, step in enumerate(steps))

    def _field(self, tensor, axis: int) -> int | None:
        ancestors = _sorted(tensor, self._spans)
        if not ancestors:
            spans = [self._spans[id(tensor)][axis]]
        else:
            ancestors += [source for each in ancestors for source in _sources(each) if id(source) in self._spans]
            positions = range(self._period(tensor, ancestors, axis))
            spans = [self._span({id(tensor): (position, position)}, ancestors, axis) for position in positions]
        return None if None in spans else max(last - first + 1 for first, last in spans)

    def _period(self, tensor, ancestors: list, axis: int) -> int:
        """After how many cells every map on the way is met in the same way again."""
        places = [self._places[id(each)] for each in (tensor, *ancestors)]
        if isinstance(places[0], str):
            return 1
        ratios = [places[0][axis][0] / place[axis][0] for place in places if not isinstance(place, (str, ValueError))]
        period, size = math.lcm(*(ratio.denominator for ratio in ratios)), tensor.shape[1 + axis]
        return period if size is None else min(period, size)

    def _span(self, reached: dict, ancestors: list, axis: int) -> tuple[int, int] | None:
        """First and last pixel below some cells, first and last of each map; `None` if the whole image is."""
        pixels = []
        # Consumers first: maps that are regular stand at the end, and nothing below them is looked at.
        regular = [each for each in ancestors if id(each) in self._spans]
        for each in (*(each for each in reversed(ancestors) if id(each) not in self._spans), *regular):
            if id(each) not in reached:
                continue
            first, last = reached[id(each)]
            if id(each) not in self._spans:
                cells = _cells(self._steps[id(each)][axis], first, last)
                for source in _sources(each):
                    low, high = reached.get(id(source), cells)
                    reached[id(source)] = min(low, cells[0]), max(high, cells[1])
                continue
            span, place = self._spans[id(each)][axis], self._places[id(each)]
            if span is None:
                return None
            stride = 0 if isinstance(place, str) else place[axis][0]
            pixels += [stride * first + span[0], stride * last + span[1]]
        return int(min(pixels)), int(max(pixels))


def _sorted(tensor, known) -> list:
    """A map and those that it is made of, sources first, but for the known ones and what is behind them."""
    ordered, seen, stack = [], set(), [(tensor, False)]
    # Not by recursion, whose depth ends before the deepest networks do.
    while stack:
        each, sources_done = stack.pop()
        if sources_done:
            ordered.append(each)
        elif id(each) not in seen and id(each) not in known:
            seen.add(id(each))
            stack.append((each, True))
            stack.extend((source, False) for source in _sources(each))
    return ordered


def _cells(step: _Step, first: int, last: int) -> tuple[int, int]:
    """The first and last input cell below some output cells."""
    return math.ceil(step.scale * first + step.shift - step.reach), math.floor(step.scale * last + step.shift + step.reach)


def _sources(tensor) -> list:
    """The maps whose values a map is made of; others that its layer is given say a size alone."""
    layer, node_index, _ = tensor._keras_history
    if isinstance(layer, keras.layers.InputLayer):
        return []
    count = 1 if isinstance(layer, AlignedResizeLike) else getattr(layer, "aligned_inputs", None)
    return layer._inbound_nodes[node_index].input_tensors[:count]


def _shown(place) -> str:
    scale, shift = place
    return f"stride {scale} at {shift}"


def _steps(layer, source, output) -> tuple[_Step, _Step]:
    """What a layer does along the two axes, or a ValueError."""
    # Resizing by a factor is not exactly that for every size.
    by_size = isinstance(layer, AlignedResize) and None not in (*source.shape[1:3], *output.shape[1:3])
    if hasattr(layer, "coordinate_map") and not by_size:
        return (_own_step(layer),) * 2
    if isinstance(layer, _POINTWISE) or (not isinstance(layer, keras.Layer) and type(layer).__name__ in _POINTWISE_OPERATIONS):
        if getattr(layer, "axis", -1) not in (-1, 3, [-1], [3], (-1,), (3,)):
            raise ValueError(f"{layer.name}: the geometry of {type(layer).__name__} along axis {layer.axis} is not known")
        return (_shift(0),) * 2
    for kinds, step in _STEPS:
        if isinstance(layer, kinds):
            return tuple(step(layer, axis, source.shape[1 + axis], output.shape[1 + axis]) for axis in (0, 1))
    raise ValueError(f"{layer.name}: the geometry of {type(layer).__name__} is not known; give it a coordinate_map()")


def _shift(cells: int) -> _Step:
    return _Step(Fraction(1), Fraction(cells), Fraction(0))


def _interpolation(scale: Fraction, shift: Fraction) -> _Step:
    """Bilinear: the cells less than one cell away, where positions are multiples of one over their common denominator."""
    return _Step(scale, shift, 1 - Fraction(1, math.lcm(scale.denominator, shift.denominator)))


def _own_step(layer) -> _Step:
    """That of a layer which says where its cells lie: it pools the window around each, or interpolates."""
    scale, shift = (Fraction(value).limit_denominator(10**6) for value in layer.coordinate_map())
    if hasattr(layer, "reach"):
        return _Step(scale, shift, Fraction(layer.reach))
    if not hasattr(layer, "pool_size"):
        return _interpolation(scale, shift)
    reach = (_along(layer.pool_size, 0) - 1) * _along(getattr(layer, "dilation_rate", 1), 0)
    return _Step(scale, shift, Fraction(reach, 2))


def _along(value, axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


def _window(layer, axis: int, size: int | None, _) -> _Step:
    """That of a convolution or pooling."""
    kernel = layer.pool_size if isinstance(layer, _POOLINGS) else layer.kernel_size
    stride, reach = layer.strides[axis], (kernel[axis] - 1) * _along(getattr(layer, "dilation_rate", 1), axis)
    before = 0 if layer.padding == "valid" else _same_padding(layer, reach, stride, size)
    return _Step(Fraction(stride), Fraction(reach, 2) - before, Fraction(reach, 2))


def _same_padding(layer, reach: int, stride: int, size: int | None) -> int:
    """Cells before the map; TensorFlow puts the odd one after it, and of a stride no more than the size needs."""
    least, most = max(reach + 1 - stride, 0), reach
    if size is not None:
        least = most = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    if least // 2 != most // 2:
        raise ValueError(f"{layer.name}: padding='same' with stride {stride} shifts with the image size; pad explicitly")
    return most // 2


def _transposed_convolution(layer, axis: int, *_) -> _Step:
    stride, reach = layer.strides[axis], (layer.kernel_size[axis] - 1) * _along(layer.dilation_rate, axis)
    cut = 0 if layer.padding == "valid" else max(reach + 1 - stride, 0) // 2
    return _Step(Fraction(1, stride), (cut - Fraction(reach, 2)) / stride, Fraction(reach, 2 * stride))


def _atrous_padding(layer, axis: int, size: int | None, _) -> _Step:
    return _shift(-layer.cells_before(axis, size))


def _atrous_pooling(layer, axis: int, size: int | None, _) -> _Step:
    half = Fraction((layer.size[axis] - 1) * layer.rate, 2)
    return _Step(Fraction(1), half - layer.cells_before(axis, size), half)


def _upsampling(layer, axis: int, *_) -> _Step:
    size = layer.size[axis]
    scale, shift = Fraction(1, size), -Fraction(size - 1, 2 * size)
    if layer.interpolation == "bilinear":
        return _interpolation(scale, shift)
    if layer.interpolation != "nearest":
        raise ValueError(f"{layer.name}: the geometry of {layer.interpolation} interpolation is not known")
    return _Step(scale, shift, -shift)


def _aligned_resizing(layer, axis: int, size: int | None, result: int | None) -> _Step:
    if size is None or result is None:
        raise ValueError(f"{layer.name}: its scale depends on sizes that are not known; give the input a fixed size")
    # One cell spread out has scale 0; of several brought to one, that is the first.
    return _interpolation(Fraction(size - 1, result - 1), Fraction(0)) if result > 1 else _shift(0)


_STEPS = (
    (_CONVOLUTIONS + _POOLINGS, _window),
    (keras.layers.Conv2DTranspose, _transposed_convolution),
    (AtrousPadding2D, _atrous_padding),
    (AtrousPooling2D, _atrous_pooling),
    (keras.layers.ZeroPadding2D, lambda layer, axis, *_: _shift(-layer.padding[axis][0])),
    (keras.layers.Cropping2D, lambda layer, axis, *_: _shift(layer.cropping[axis][0])),
    (keras.layers.UpSampling2D, _upsampling),
    ((AlignedResize, AlignedResizeLike), _aligned_resizing),
)
