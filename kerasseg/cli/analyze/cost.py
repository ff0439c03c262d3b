"""`tools/analyze.py cost`: speed and size of a network."""

from kerasseg.cli.analyze.common import add_kind
from kerasseg.cli.networks import UNKNOWN, add_network_options, built_network, saved_network, seen_pixels
from kerasseg.cli.running import start_tensorflow
from kerasseg.cli.values import check_json
from kerasseg.errors import KerassegError

NAME = "cost"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "speed and size: parameters, multiply-adds, receptive field, peak memory, latency")
    add_network_options(made)
    made.add_argument("--batch-size", type=int, default=1, help="images of a forward pass")
    made.add_argument("--runs", type=int, default=10, help="forward passes to time, after two that are not")
    made.add_argument("--json", default=None, metavar="FILE", help="also write the figures to this file")


def run(options) -> None:
    """Counts, measures and prints.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    check_json(options.json, "cost.json")
    for name in ("batch_size", "runs"):
        if getattr(options, name) < 1:
            raise KerassegError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1")
    saved = saved_network(options)
    start_tensorflow()
    from kerasseg.evaluation.analysis.expense import network_cost
    from kerasseg.runs import write_json

    model = built_network(options) if saved is None else saved
    cost = network_cost(model, options.input_size, batch_size=options.batch_size, runs=options.runs)
    if options.json is not None:
        write_json(options.json, cost.to_json())
    print("\n".join(f"{name:16} {text}" for name, text in _lines(cost).items()))


def _lines(cost) -> dict[str, str]:
    shapes = ", ".join("x".join(map(str, shape)) for shape in cost.inputs)
    peak = "not measured: the system does not count it" if cost.peak_bytes is None else f"{_megabytes(cost.peak_bytes)} measured"
    runs = f"{len(cost.seconds)} run{'' if len(cost.seconds) == 1 else 's'}"
    spread = f"{1000 * min(cost.seconds):.4g} to {1000 * max(cost.seconds):.4g} ms in {runs}"
    return {
        "network": f"{cost.network} on {shapes}, {cost.batch_size} at once",
        "parameters": f"{cost.parameters:,} ({cost.trainable_parameters:,} trainable), {_megabytes(cost.weight_bytes)}",
        "multiply-adds": f"{cost.multiply_adds / 1e9:.2f} G per image",
        "output stride": f"{cost.output_stride or UNKNOWN} (its coarsest)",
        "receptive field": f"{seen_pixels(cost.receptive_field)}, there",
        "peak memory": f"{peak} beside the weights, one pass on the CPU; {_megabytes(cost.live_map_bytes)} of maps at once",
        "latency": f"{1000 * cost.latency:.4g} ms, the median ({spread})",
        "throughput": f"{cost.images_per_second:.4g} images/s",
    }


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
