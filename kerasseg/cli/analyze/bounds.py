"""`tools/analyze.py bounds`: how well predictions at coarse resolutions could do at best."""

import dataclasses
from pathlib import Path

from kerasseg.cli.analyze.common import add_kind, parse_counts
from kerasseg.cli.opening import add_data_arguments
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import start_tensorflow
from kerasseg.cli.values import check_json
from kerasseg.errors import KerassegError
from kerasseg.runs import write_json

NAME = "bounds"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "upper bounds of mean IoU by downsampling factor (FCN, section 6.3)")
    made.add_argument("--data", default=None, help="data set (default: a folder of masks, with lists of their names)")
    made.add_argument("--data-dir", default=None, metavar="FOLDER", help="its folder; photographs need not be there")
    add_data_arguments(made)
    made.add_argument("--split", default="val", help="part of the data set, such as seg11valid of a folder of masks")
    made.add_argument("--factors", default="128,64,32,16,8,4", help="image pixels per cell along a side")
    made.add_argument("--all-protocols", action="store_true", help="every way of shrinking and enlarging, the chosen last")
    made.add_argument("--limit", type=int, default=None, help="only the first so many label maps")
    made.add_argument("--json", default=None, metavar="FILE", help="where to write the tables as well")


def run(options) -> None:
    """Prints one line for each factor, by the default protocol.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    factors = parse_counts("--factors", options.factors, smallest=1, example="128,64,32,16,8,4")
    if options.limit is not None and options.limit < 1:
        raise KerassegError(f"--limit {options.limit}: expected at least 1 label map")
    check_json(options.json, "bounds.json")
    start_tensorflow()
    from kerasseg.data.class_counts import check_one_map
    from kerasseg.evaluation.analysis.bounds import PROTOCOLS, upper_bounds

    data = _open_data(options)
    check_one_map(data)
    background, default, note = _default(data.labels)
    others = [protocol for protocol in PROTOCOLS if protocol != default] if options.all_protocols else []
    total = min(len(data), options.limit or len(data))
    with Progress(f"bounds of {options.split}", total, unit="label maps") as progress:
        labels = _labels(data, total, progress)
        matrices = upper_bounds(labels, data.labels.num_classes, factors, [*others, default], background=background)
    found = [
        (protocol, [protocol.mean_iou(matrix, background) for matrix in of_factors])
        for protocol, of_factors in zip([*others, default], matrices, strict=True)
    ]
    if options.all_protocols:
        _print_table(found, factors)
    print(f"protocol: {default}{note}")
    for factor, score in zip(factors, found[-1][1], strict=True):
        print(f"factor {factor} mean IoU {score:.1f}")
    if options.json:
        _write(Path(options.json), options, found, factors, total)


def _open_data(options):
    from kerasseg.data import open_data
    from kerasseg.evaluation.analysis.bounds import mask_folder

    if options.data is not None:
        return open_data(options.data, options.data_dir, options.split, **dict(options.data_arguments))
    return mask_folder(options.data_dir, options.split)


def _default(labels):
    """Which class is background, how to measure by default, and a note for data sets that have no such class."""
    from kerasseg.evaluation.analysis.bounds import DEFAULT, default_protocol

    found = default_protocol(labels)
    background = labels.classes.index("background") if "background" in labels.classes else 0
    return background, found, "" if found == DEFAULT else f" (data set '{labels.name}' has no class called background)"


def _labels(data, total: int, progress: Progress):
    for index in range(total):
        label = data.read_label(index)
        if label is None:
            raise KerassegError(f"example '{data.ids[index]}' of data set '{data.labels.name}' has no label: choose another split")
        yield label
        progress.update(index + 1)


def _print_table(found, factors) -> None:
    """A line for each protocol, the closest to the published table first, if all its factors are asked for."""
    from kerasseg.evaluation.analysis.bounds import distance

    rows = sorted(((distance(scores, factors), str(protocol), scores) for protocol, scores in found), key=lambda row: row[:2])
    width = max(len(row[1]) for row in rows)
    print(f"{'protocol':<{width}}  " + " ".join(f"{factor:>6}" for factor in factors) + "  distance")
    for apart, name, scores in rows:
        print(f"{name:<{width}}  " + " ".join(f"{score:>6.2f}" for score in scores) + f"  {apart:>8.2f}")


def _write(path: Path, options, found, factors, total: int) -> None:
    from kerasseg.evaluation.analysis.bounds import PUBLISHED

    write_json(
        path,
        {
            "split": options.split,
            "num_images": total,
            "factors": factors,
            "published": [PUBLISHED.get(factor) for factor in factors],
            "protocols": [_protocol_json(protocol, scores, factors) for protocol, scores in found],
        },
    )


def _protocol_json(protocol, scores, factors) -> dict:
    from kerasseg.evaluation.analysis.bounds import distance

    return {**dataclasses.asdict(protocol), "mean_iou": scores, "distance": distance(scores, factors)}
