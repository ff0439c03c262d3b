"""`tools/inspect_model.py`: a network's layers as a table."""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from kerasseg.cli.networks import builder_arguments
from kerasseg.cli.opening import open_run_or_model
from kerasseg.cli.options import parse_assignment, parse_size
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS
from kerasseg.runs import write_json

# What builds a network and means nothing for one that is built.
_NAMED = ("width_multiplier", "backbone", "output_stride")
_BUILDING = ("num_classes", *_NAMED, "arguments")
_WHOLE, _UNKNOWN = "image", "?"


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


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/inspect_model.py`."""
    made = make_parser(
        "inspect_model.py",
        "Print each layer of a network: stride of its output against the image, rate, kernel, receptive field, output size, "
        "parameters. No weights are made or downloaded.",
    )
    made.add_argument("model", metavar="ARCH|RUN_OR_MODEL", help="network by its --arch name, run directory, or .keras file")
    made.add_argument("--input-size", type=parse_size, default=(513, 513), help="HEIGHTxWIDTH of the image")
    made.add_argument("--num-classes", type=int, default=None, help="classes of an ARCH (default: 21)")
    made.add_argument("--width-multiplier", type=float, default=None, help="factor for every width of an ARCH (default: 1)")
    made.add_argument("--backbone", default=None, help="trunk of an ARCH (default: its own)")
    made.add_argument(
        "--output-stride", type=int, default=None, help="image pixels per feature pixel of an ARCH (default: its own)"
    )
    made.add_argument(
        "--arguments", nargs="+", type=parse_assignment, default=None, metavar="NAME=VALUE", help="further arguments of an ARCH"
    )
    made.add_argument("--json", default=None, metavar="FILE", help="also write the table to this file")
    return made


def run(arguments: Sequence[str]) -> list[Row]:
    """Inspects as the arguments say, and prints a line for each layer and the totals.

    Returns:
        The rows.
    Raises:
        KerassegError: If the arguments cannot be followed.
    """
    options = parser().parse_args(arguments)
    if options.json is not None and os.path.isdir(options.json):
        raise KerassegError(f"--json {options.json}: expected a file, received a folder: pass --json {options.json}/table.json")
    saved = None
    if options.model not in MODELS:
        if not os.path.exists(options.model):
            MODELS[options.model]
        _refuse_building(options)
        saved = open_run_or_model(options.model).model
    else:
        _check_building(options)
    start_tensorflow()
    import keras

    policy = keras.config.dtype_policy()
    try:
        # Nobody looks at the weights: at full width, making them takes longer than all the rest.
        with keras.StatelessScope(initialize_variables=False):
            model = _at_size(_built(options) if saved is None else saved, options.input_size)
            rows = list(_rows(model))
            name, shape = model.name, [list(x.shape[1:]) for x in model.inputs]
    finally:
        # Keras would make up for it at the next occasion. This forgets the policy, too.
        keras.backend.clear_session()
        keras.config.set_dtype_policy(policy)
    totals = _totals(rows)
    if options.json is not None:
        layers = [row._asdict() for row in rows]
        write_json(options.json, {"network": name, "inputs": shape, "layers": layers, "totals": totals})
    print("\n".join(_table(rows)))
    print(_summary(name, shape, totals))
    return rows


def _refuse_building(options) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _BUILDING if getattr(options, name) is not None]
    if given:
        raise KerassegError(
            f"{given[0]} is for a network by name, and {options.model} is one that is built: omit it, or name an arch, e.g. fcn8s"
        )


def _check_building(options) -> None:
    classes, width = options.num_classes, options.width_multiplier
    if (classes is not None and classes < 1) or (width is not None and not 0 < width < math.inf):
        raise KerassegError(f"--num-classes {classes} --width-multiplier {width}: expected both above 0")


def _built(options):
    """Builds the network for images of any size, so that it is the same graph as in a file."""
    from kerasseg.recipes.building import call_builder

    builder, size = MODELS[options.model], options.input_size
    if min(size) < builder.minimum_size or any(side % builder.divisor for side in size):
        multiples = f", multiples of {builder.divisor}" if builder.divisor > 1 else ""
        raise KerassegError(
            f"--input-size {size[0]}x{size[1]}: {options.model} takes sizes from {builder.minimum_size} pixels{multiples}"
        )
    arguments = builder_arguments(options, _NAMED)
    # None are loaded.
    arguments.pop("weights", None)
    return call_builder(options.model, 21 if options.num_classes is None else options.num_classes, arguments)


def _at_size(model, size: tuple[int, int]):
    """Builds a network anew for images of one size."""
    from kerasseg.backbones.building import first_line

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


def _rows(model) -> Iterator[Row]:
    from kerasseg.layers import Geometry

    geometry = Geometry()
    for operation in model.operations:
        # The network was built from its configuration, which knows no other uses than its own.
        for index, node in enumerate(operation._inbound_nodes):
            yield _row(operation, node, geometry, again=index > 0)


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
    from kerasseg.layers import AtrousPooling2D

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
        return _UNKNOWN, _UNKNOWN
    if len(output.shape) != 4 and None not in field:
        return _UNKNOWN, _UNKNOWN
    try:
        down, across = geometry.strides(output)
    except ValueError:
        return (_WHOLE if None in field else _UNKNOWN), field
    if down != across:
        return f"{down}x{across}", field
    return (int(down) if down.denominator == 1 else str(down)), field


def _multiply_adds(operation, node) -> int | None:
    """Counts those of one image: each kernel is laid on every cell of the output, a transposed one on every cell of the input."""
    import keras

    transposed = isinstance(operation, keras.layers.Conv2DTranspose)
    if not transposed and not isinstance(
        operation, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)
    ):
        return None
    cells = (node.input_tensors if transposed else node.output_tensors)[0].shape[1:-1]
    kernels = (math.prod(weight.shape) for weight in operation.weights if "kernel" in weight.name)
    return None if None in cells else math.prod(cells) * sum(kernels)


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
    # The grid that a squeeze-and-excitation averages over is no map of features.
    coarsest = max((row.stride for row in rows if row.type != "Subsampling2D"), key=_pixels)
    # What cannot be followed may be coarser, and see more.
    if not _pixels(coarsest) or any(row.receptive_field == _UNKNOWN and len(row.output) == 3 for row in rows):
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
    return Fraction(0) if stride in (_WHOLE, _UNKNOWN) else max(map(Fraction, str(stride).split("x")))


_HEADS = ("layer", "type", "stride", "rate", "kernel", "field", "output", "parameters")


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    # Names to the left, numbers to the right.
    return [
        "  ".join(
            f"{cell:{'<' if column < 2 else '>'}{width}}" for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _cells(row: Row) -> tuple[str, ...]:
    rate = "" if row.rate is None else _by(row.rate)
    kernel = "" if row.kernel is None else f"{row.kernel[0]}x{row.kernel[1]}"
    output = "x".join(_UNKNOWN if n is None else str(n) for n in row.output)
    return row.layer, row.type, str(row.stride), rate, kernel, _field(row.receptive_field), output, f"{row.parameters:,}"


def _by(pair) -> str:
    """One number where both are the same."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _field(field) -> str:
    return field if isinstance(field, str) else _WHOLE if None in field else _by(field)


def _summary(name: str, shapes, totals) -> str:
    sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
    field = totals["receptive_field"]
    sees = _UNKNOWN if field is None else "the whole image" if None in field else f"{_by(field)} pixels"
    return (
        f"{name} on {sizes}: {totals['parameters']:,} parameters, {totals['multiply_adds'] / 1e9:.2f} G multiply-adds, "
        f"output stride {totals['output_stride'] or _UNKNOWN} (its coarsest), receptive field there {sees}"
    )


def main() -> int:
    """Runs `tools/inspect_model.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
