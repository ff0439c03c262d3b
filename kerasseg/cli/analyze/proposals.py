"""`tools/analyze.py proposals`: the labels of a photograph, box by box."""

import dataclasses
from pathlib import Path

from kerasseg.cli.analyze.common import add_kind, add_network_and_image, check_files, parse_counts, scale_of
from kerasseg.cli.opening import label_table, open_run_or_model, output_classes
from kerasseg.errors import KerassegError

NAME = "proposals"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "labels from more and more boxes, the largest first (DeconvNet, Figure 6)")
    add_network_and_image(made, NAME)
    made.add_argument("--proposals", default="dense", metavar="FILE", help="file of boxes; dense; or selective_search")
    made.add_argument("--counts", default="1,5,10,50", help="after how many boxes to look")
    made.add_argument("--max-proposals", type=int, default=50, help="how many boxes count")
    made.add_argument("--min-side", type=int, default=112, help="pixels that both sides of a box must have")
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")


def run(options) -> None:
    """Draws the labels after so many boxes.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    counts = parse_counts("--counts", options.counts, smallest=1, example="1,5,10,50")
    if not options.proposals.strip():
        raise KerassegError("--proposals '': expected a file of boxes, such as boxes.json, or dense, or selective_search")
    check_files(options)
    opened = open_run_or_model(options.model)
    from kerasseg.data import decode_image
    from kerasseg.data.boxes import by_size
    from kerasseg.evaluation import Proposals, View, overlay, progressive
    from kerasseg.evaluation.analysis import proposal_picture

    image, path = decode_image(options.image), Path(options.out) / f"{NAME}.png"
    labels = label_table(opened, output_classes(opened.model), options.labels)
    method = Proposals(options.proposals, options.max_proposals, options.min_side)
    used = by_size(method.boxes_of(View(image, image, name=Path(options.image).stem)))
    # Counts beyond the boxes that there are would draw the last column again.
    counts = sorted({min(count, len(used)) for count in counts})
    # Those that count are chosen already.
    once = dataclasses.replace(method, minimum_side=1)
    found = progressive(opened.model, image, used, counts, once, scale=scale_of(opened))
    proposal_picture(image, used, counts, [overlay(image, label, labels) for label in found], path)
    print(f"picture: {path}")
