"""Where the cells of a feature map lie in the image: the source of every crop offset."""

from fractions import Fraction

import keras

# Layers whose output cell (i, j) depends on input cell (i, j) alone.
_POINTWISE = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.ReLU,
)


def _pair(value) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)


def _square(value, layer) -> int:
    first, second = _pair(value)
    if first != second:
        raise ValueError(f"{layer.name}: different geometry in height and width ({first}, {second}) is not supported")
    return first


def _convolution(layer) -> tuple:
    kernel, stride, dilation = (_square(v, layer) for v in (layer.kernel_size, layer.strides, layer.dilation_rate))
    reach = dilation * (kernel - 1)
    if layer.padding == "valid":
        return stride, Fraction(reach, 2)
    if stride > 1:
        raise ValueError(f"{layer.name}: padding='same' with stride {stride} shifts with the image size; pad explicitly")
    # TensorFlow puts the odd cell of padding after the map.
    return 1, Fraction(reach, 2) - reach // 2


def _transposed_convolution(layer) -> tuple:
    kernel, stride = _square(layer.kernel_size, layer), _square(layer.strides, layer)
    cut = 0 if layer.padding == "valid" else (kernel - stride) // 2
    return Fraction(1, stride), (cut - Fraction(kernel - 1, 2)) / stride


def _layer_map(layer) -> tuple:
    """Gives (a, b) with: input position = a · output position + b, in cells."""
    if hasattr(layer, "coordinate_map"):
        return layer.coordinate_map()
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return _transposed_convolution(layer)
    if isinstance(layer, keras.layers.Conv2D):
        return _convolution(layer)
    if isinstance(layer, keras.layers.ZeroPadding2D):
        (top, _), (left, _) = layer.padding
        return 1, -_square((top, left), layer)
    if isinstance(layer, _POINTWISE):
        return 1, 0
    raise ValueError(f"{layer.name}: the geometry of {type(layer).__name__} is not known; give it a coordinate_map()")


def coordinate_map(tensor) -> tuple[Fraction, Fraction]:
    """Follows a feature map back through its graph to the image.

    Args:
        tensor: Symbolic output of a layer, shape `(B, h, w, C)`.
    Returns:
        `(scale, shift)`: the centre of cell i lies at image pixel scale · i + shift; scale is the stride.
    Raises:
        ValueError: If maps that are not aligned meet in one layer, or a layer's geometry is not known.
    Reference:
        Shelhamer et al. 2017, §3 (the transformation rule for kernel size and stride) and §4.3 (crops).
    """
    return _follow(tensor, {})


def _follow(tensor, known: dict) -> tuple[Fraction, Fraction]:
    """Visits each tensor once: the paths through n residual units are 2ⁿ."""
    layer, node_index, _ = tensor._keras_history
    if isinstance(layer, keras.layers.InputLayer):
        return Fraction(1), Fraction(0)
    if id(tensor) in known:
        return known[id(tensor)]
    inputs = layer._inbound_nodes[node_index].input_tensors
    maps = {_follow(x, known) for x in inputs[: getattr(layer, "aligned_inputs", None)]}
    if len(maps) > 1:
        raise ValueError(f"{layer.name}: its inputs lie at different places in the image: {sorted(maps)}")
    (scale, shift) = maps.pop()
    a, b = (Fraction(v) for v in _layer_map(layer))
    known[id(tensor)] = scale * a, scale * b + shift
    return known[id(tensor)]


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
