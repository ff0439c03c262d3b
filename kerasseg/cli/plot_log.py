"""`tools/plot_log.py`: draw a run's loss and validation mean IoU over its steps."""

import argparse
import sys
from collections.abc import Sequence

from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError
from kerasseg.recipes import Recipe
from kerasseg.runs import Run, atomic_path


def smoothed(values: list[float], window: int) -> list[float]:
    """Averages each value with those before it, at most `window` of them."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / len(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/plot_log.py`."""
    made = make_parser("plot_log.py", "Draw a run's loss and validation mean IoU, of all its stages.")
    made.add_argument("run", help="run directory")
    made.add_argument("--out", default="curve.png", help="PNG to write")
    return made


def run(arguments: Sequence[str]) -> None:
    """Draws what the arguments ask for.

    Raises:
        KerassegError: If the run has no log.
    """
    options = parser().parse_args(arguments)
    records, borders = _read(Run(options.run))
    if not records:
        raise KerassegError(f"{options.run} has no log.jsonl with steps: name a run directory that train.py made")
    # Without pyplot: no figure of the process's own, no window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    steps = [r["step"] for r in records]
    axis.plot(steps, smoothed([r["loss"] for r in records], 50), color="tab:blue", label="training loss, mean of 50 steps")
    axis.set(xlabel="optimiser step", ylabel="loss", ylim=(0, None))
    for border in borders:
        axis.axvline(border, color="tab:gray", linestyle=":")
    scored = [(r["step"], 100 * r["mean_iou"]) for r in records if _is_number(r.get("mean_iou"))]
    if scored:
        right = axis.twinx()
        right.plot(*zip(*scored, strict=True), "o-", color="tab:orange", label="validation mean IoU")
        right.set(ylabel="mean IoU, %", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=2)
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    print(options.out)


def _read(run: Run) -> tuple[list[dict], list[int]]:
    """A run's log; those of its stages one behind the other, and the steps at which one follows another."""
    logs = [run.read_log()]
    if not logs[0] and run.exists:
        stages = Recipe.from_json(run.recipe()).stages
        logs = [run.stage(number, stage.name).read_log() for number, stage in enumerate(stages, start=1)]
    records, borders = [], []
    for log in filter(None, logs):
        if records:
            borders.append(records[-1]["step"])
        offset = borders[-1] if borders else 0
        records += [{**record, "step": record["step"] + offset} for record in log if _is_number(record.get("loss"))]
    return records, borders


def _is_number(value) -> bool:
    return isinstance(value, int | float)


def main() -> int:
    """Runs `tools/plot_log.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
