"""The layers of a network as a table: what each sees, makes, holds and computes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import keras

from kerasseg.errors import KerassegError, first_line
from kerasseg.layers import AtrousPooling2D, Geometry

WHOLE, UNKNOWN = "image", "?"
"""Instead of a stride: each cell is made of the whole image; it cannot be told."""


class Row(NamedTuple):
    """One layer, or one use of a layer that is used several times.

    Args:
        layer: Its name.
        type: Its class.
        stride: Image pixels per cell of its output: a number; in text, a fraction such as `"32/3"`, or `"2x1"` where height and
            width differ; `"image"` where a cell is made of the whole image, `"?"` where it cannot be told.
        rate: Its dilation, `None` where it has none.
        kernel: Height and width of its kernel or window, likewise.
        receptive_field: Height and width in pixels, each `None` for the whole image; `"?"` where it cannot be told.
        output: Shape of its output without the batch.
        parameters: Numbers in its weights; 0 where they were counted at an earlier use.
        multiply_adds: For one image, of convolutions and dense layers; `None` of others, or where a size is not known.
    """

    layer: str
    type: str
    stride: int | str
    rate: tuple[int, int] | None
    kernel: tuple[int, int] | None
    receptive_field: tuple[int | None, int | None] | str
    output: tuple[int | None, ...]
    parameters: int
    multiply_adds: int | None


def layer_table(model) -> list[Row]:
    """Lists the layers of a network.

    Args:
        model: Network that was built from its configuration, as `at_size` does; of one whose size is open, output sizes and
            multiply-adds are `None`.
    Returns:
        A row for each use of a layer, in the order of the network.
    """
    geometry = Geometry()
    # The network was built from its configuration, which knows no other uses than its own.
    return [
        _row(operation, node, geometry, again=index > 0)
        for operation in model.operations
        for index, node in enumerate(operation._inbound_nodes)
    ]


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks that are built inside hold no numbers, and must not be used outside; all else of Keras' state stays as it was."""
    policy = keras.config.dtype_policy()
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would make up for it at the next occasion. This forgets the policy, too.
        keras.backend.clear_session()
        keras.config.set_dtype_policy(policy)


def at_size(model, size: tuple[int, int]):
    """Builds a network anew for images of one size: the same graph, without the weights' values.

    Args:
        model: The network.
        size: Height and width of its images.
    Returns:
        Another network.
    Raises:
        KerassegError: If it cannot be built for images of that size.
    """
    config = model.get_config()
    for layer in config["layers"]:
        shape = layer["config"].get("batch_shape") if layer["class_name"] == "InputLayer" else None
        if shape and len(shape) == 4:
            layer["config"]["batch_shape"] = [shape[0], *size, shape[3]]
    try:
        return type(model).from_config(config)
    except ValueError as error:
        raise KerassegError(
            f"--input-size {size[0]}x{size[1]}: {model.name} cannot be built for it: {first_line(error)}"
        ) from error


def _row(operation, node, geometry, *, again: bool) -> Row:
    output = node.output_tensors[0]
    kernel, rate = _window(operation)
    stride, field = _geometry(geometry, output)
    return Row(
        layer=operation.name + (" (again)" if again else ""),
        type=type(operation).__name__,
        stride=stride,
        rate=rate,
        kernel=kernel,
        receptive_field=field,
        output=tuple(output.shape[1:]),
        parameters=0 if again else sum(math.prod(weight.shape) for weight in getattr(operation, "weights", ())),
        multiply_adds=_multiply_adds(operation, node),
    )


def _window(operation) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    if isinstance(operation, AtrousPooling2D):
        return _pair(operation.size), _pair(operation.rate)
    kernel = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
    return _pair(kernel), _pair(getattr(operation, "dilation_rate", None)) if kernel else None


def _pair(value) -> tuple[int, int] | None:
    return None if value is None else (value, value) if isinstance(value, int) else tuple(value)


def _geometry(geometry, output) -> tuple[Any, Any]:
    """Stride and receptive field of an output; what is no map has none."""
    try:
        field = geometry.receptive_field(output)
    except ValueError:
        return UNKNOWN, UNKNOWN
    if len(output.shape) != 4 and None not in field:
        return UNKNOWN, UNKNOWN
    try:
        down, across = geometry.strides(output)
    except ValueError:
        return (WHOLE if None in field else UNKNOWN), field
    if down != across:
        return f"{down}x{across}", field
    return (int(down) if down.denominator == 1 else str(down)), field


def _multiply_adds(operation, node) -> int | None:
    """Counts those of one image: each kernel is laid on every cell of the output, a transposed one on every cell of the input."""
    transposed = isinstance(operation, keras.layers.Conv2DTranspose)
    if not transposed and not isinstance(
        operation, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)
    ):
        return None
    cells = (node.input_tensors if transposed else node.output_tensors)[0].shape[1:-1]
    kernels = (math.prod(weight.shape) for weight in operation.weights if "kernel" in weight.name)
    return None if None in cells else math.prod(cells) * sum(kernels)


def table_totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Sums a table up.

    Args:
        rows: What `layer_table` listed.
    Returns:
        `parameters`; `multiply_adds` for one image; `output_stride`, that of the coarsest map, as in a row; and `receptive_field`
        there. The last two are `None` where they cannot be told.
    """
    # The grid that a squeeze-and-excitation averages over is no map of features.
    coarsest = max((row.stride for row in rows if row.type != "Subsampling2D"), key=_pixels)
    # What cannot be followed may be coarser, and see more.
    if not _pixels(coarsest) or any(row.receptive_field == UNKNOWN and len(row.output) == 3 for row in rows):
        coarsest = None
    # Upsampling adds a cell or two to what the coarsest map sees: that is the number papers give.
    fields = [row.receptive_field for row in rows if row.stride == coarsest]
    return {
        "parameters": sum(row.parameters for row in rows),
        "multiply_adds": sum(row.multiply_adds or 0 for row in rows),
        "output_stride": coarsest,
        "receptive_field": fields[-1] if fields else None,
    }


def _pixels(stride: int | str) -> Fraction:
    """The larger of both strides; 0 where there is none."""
    return Fraction(0) if stride in (WHOLE, UNKNOWN) else max(map(Fraction, str(stride).split("x")))
