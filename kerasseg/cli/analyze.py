"""`tools/analyze.py`: pictures of what a network does with a photograph."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.inference import check_out
from kerasseg.cli.opening import label_table, open_run_or_model, output_classes
from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/analyze.py`."""
    made = make_parser("analyze.py", "Draw what a network does with a photograph.")
    kinds = made.add_subparsers(dest="kind", required=True, metavar="KIND")
    activations = _add(kinds, "activations", "the strongest activation of each stage (DeconvNet, Figure 4)")
    activations.add_argument("--layers", nargs="+", default=None, help="names of layers (default: one of each resolution)")
    proposals = _add(kinds, "proposals", "labels from more and more boxes, the largest first (DeconvNet, Figure 6)")
    proposals.add_argument("--proposals", default="dense", metavar="FILE", help="file of boxes; dense; or selective_search")
    proposals.add_argument("--counts", default="1,5,10,50", help="after how many boxes to look")
    proposals.add_argument("--max-proposals", type=int, default=50, help="how many boxes count")
    proposals.add_argument("--min-side", type=int, default=112, help="pixels that both sides of a box must have")
    proposals.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")
    return made


def _add(kinds, name: str, text: str) -> argparse.ArgumentParser:
    made = kinds.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    made.add_argument("image", metavar="IMAGE", help="photograph")
    made.add_argument("--out", required=True, help=f"folder for {name}.png")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def run(arguments: Sequence[str]) -> None:
    """Draws what the arguments ask for.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    counts = _counts(options.counts) if options.kind == "proposals" else None
    if options.kind == "proposals" and not options.proposals.strip():
        raise KerassegError("--proposals '': expected a file of boxes, such as boxes.json, or dense, or selective_search")
    if not Path(options.image).is_file():
        raise KerassegError(f"no such photograph: {options.image}")
    check_out(options.out)
    opened = open_run_or_model(options.model)
    from kerasseg.data import decode_image

    image, scale = decode_image(options.image), opened.recipe.image_scale if opened.recipe else 1.0
    path = Path(options.out) / f"{options.kind}.png"
    if options.kind == "activations":
        _draw_activations(opened, image, scale, options, path)
    else:
        _draw_proposals(opened, image, scale, counts, options, path)
    print(f"picture: {path}")


def _draw_activations(opened, image, scale: float, options, path: Path) -> None:
    from kerasseg.evaluation.analysis import activation_picture, activations, scaled_image

    image = scaled_image(image, scale)
    found = activations(opened.model, image, options.layers)
    activation_picture(image, found, path)
    for layer, channel, values in found:
        print(f"{layer}: channel {channel}, {values.shape[0]}x{values.shape[1]}, {values.min():.4g} to {values.max():.4g}")


def _draw_proposals(opened, image, scale: float, counts, options, path: Path) -> None:
    from kerasseg.data.boxes import by_size
    from kerasseg.evaluation import Proposals, View, overlay, progressive
    from kerasseg.evaluation.analysis import proposal_picture

    labels = label_table(opened, output_classes(opened.model), options.labels)
    method = Proposals(options.proposals, options.max_proposals, options.min_side)
    used = by_size(method.boxes_of(View(image, image, name=Path(options.image).stem)))
    # Counts beyond the boxes that there are would draw the last column again.
    counts = sorted({min(count, len(used)) for count in counts})
    # Those that count are chosen already.
    found = progressive(opened.model, image, used, counts, dataclasses.replace(method, minimum_side=1), scale=scale)
    proposal_picture(image, used, counts, [overlay(image, label, labels) for label in found], path)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise KerassegError(f"--counts {text}: expected positive numbers, such as 1,5,10,50")
    return [int(part) for part in parts]


def main() -> int:
    """Runs `tools/analyze.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
