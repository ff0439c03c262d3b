"""`tools/inspect_model.py`: a network's layers as a table."""

import argparse
import sys
from collections.abc import Sequence

from kerasseg.cli.networks import (
    UNKNOWN,
    add_network_options,
    built_network,
    saved_network,
    seen_pixels,
    shown_field,
    shown_pair,
)
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.cli.values import check_json
from kerasseg.runs import write_json


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/inspect_model.py`."""
    made = make_parser(
        "inspect_model.py",
        "Print each layer of a network: stride of its output against the image, rate, kernel, receptive field, output size, "
        "parameters. No weights are made or downloaded.",
    )
    add_network_options(made)
    made.add_argument("--json", default=None, metavar="FILE", help="also write the table to this file")
    return made


def run(arguments: Sequence[str]) -> list:
    """Inspects as the arguments say, and prints a line for each layer and the totals.

    Returns:
        The rows, `kerasseg.evaluation.analysis.Row`.
    Raises:
        KerassegError: If the arguments cannot be followed.
    """
    options = parser().parse_args(arguments)
    check_json(options.json, "table.json")
    saved = saved_network(options)
    start_tensorflow()
    from kerasseg.evaluation.analysis.layer_table import at_size, layer_table, table_totals, without_weights

    # Nobody looks at the weights: at full width, making them takes longer than all the rest.
    with without_weights():
        model = at_size(built_network(options) if saved is None else saved, options.input_size)
        rows, name, shape = layer_table(model), model.name, [list(x.shape[1:]) for x in model.inputs]
    totals = table_totals(rows)
    if options.json is not None:
        layers = [row._asdict() for row in rows]
        write_json(options.json, {"network": name, "inputs": shape, "layers": layers, "totals": totals})
    print("\n".join(_table(rows)))
    print(_summary(name, shape, totals))
    return rows


_HEADS = ("layer", "type", "stride", "rate", "kernel", "field", "output", "parameters")


def _table(rows: Sequence) -> list[str]:
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    # Names to the left, numbers to the right.
    return [
        "  ".join(
            f"{cell:{'<' if column < 2 else '>'}{width}}" for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _cells(row) -> tuple[str, ...]:
    rate = "" if row.rate is None else shown_pair(row.rate)
    kernel = "" if row.kernel is None else f"{row.kernel[0]}x{row.kernel[1]}"
    output = "x".join(UNKNOWN if n is None else str(n) for n in row.output)
    return row.layer, row.type, str(row.stride), rate, kernel, shown_field(row.receptive_field), output, f"{row.parameters:,}"


def _summary(name: str, shapes, totals) -> str:
    sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
    sees = seen_pixels(totals["receptive_field"])
    return (
        f"{name} on {sizes}: {totals['parameters']:,} parameters, {totals['multiply_adds'] / 1e9:.2f} G multiply-adds, "
        f"output stride {totals['output_stride'] or UNKNOWN} (its coarsest), receptive field there {sees}"
    )


def main() -> int:
    """Runs `tools/inspect_model.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
