"""`evaluate.py`: score a run or model on a data set."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.inference import add_inference_options, as_name, check_inference_options, chosen_inference, inference_name
from kerasseg.cli.opening import Opened, chosen_data, open_run_or_model
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.cli.tune_crf import search_for
from kerasseg.cli.values import parse_values
from kerasseg.errors import KerassegError

# kerasseg.metrics.TRIMAP_BOUNDARIES, for which TensorFlow need not be imported.
_BOUNDARIES = ("labels", "classes", "void")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `evaluate.py`."""
    made = make_parser("evaluate.py", "Score a network: the four metrics of the FCN paper, per class and per image, with pictures.")
    made.add_argument("model", nargs="?", default=None, metavar="RUN_OR_MODEL", help="default: the newest run under runs/")
    made.add_argument("--data", default=None, help="data set (default: the run's)")
    made.add_argument("--data-dir", default=None, help="folder of the data set (default: the run's)")
    made.add_argument("--split", default=None, help="part of the data set (default: the run's validation split, or val)")
    add_inference_options(made)
    made.add_argument(
        "--boundary",
        type=float,
        default=None,
        metavar="PIXELS",
        help="score pixels so close to a boundary, and the others, apart; GCN: 7",
    )
    made.add_argument(
        "--trimap",
        default=None,
        metavar="WIDTHS",
        help="score the pixels in bands around the true boundaries, of these widths in pixels: 1,2,4,8 or, as DeepLab, 1:40",
    )
    made.add_argument(
        "--trimap-boundary",
        default=None,
        help="labels (beside another label, ignored ones too; default), classes (ignored ones are none), or void (around "
        "ignored pixels, by squares: DeepLab's script for VOC)",
    )
    made.add_argument("--limit", type=int, default=None, help="only the first so many images")
    made.add_argument("--pictures", type=int, default=6, help="images in the picture of image, truth and prediction")
    made.add_argument("--report", default=None, help="folder for scores and pictures (default: report/SPLIT in the run)")
    return made


def run(arguments: Sequence[str]) -> None:
    """Evaluates as the arguments say.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    check_inference_options(options)
    trimap = _trimap(options)
    opened = open_run_or_model(options.model, options.output_stride)
    data, split = _open_data(opened, options)
    inference = chosen_inference(opened, options, lambda: search_for(opened, options))
    from kerasseg.evaluation import evaluate, predict, write_report

    total = min(len(data), options.limit or len(data))
    with Progress(f"evaluating {split}", total, unit="images") as progress:
        evaluation = evaluate(
            opened.model,
            data,
            inference,
            progress=lambda done, _: progress.update(done),
            limit=options.limit,
            boundary=options.boundary,
            **trimap,
        )
    print(evaluation.table())
    print(inference)
    directory = Path(options.report) if options.report else _report_path(opened, split, options)
    # Maps of a network, which stored features are, make no pictures.
    shown = [data[i] for i in _spread(total, options.pictures if data.photographs else 0)]
    run_on = {"scales": inference.scales, "flip": inference.flip, "method": inference.method, "crf": inference.crf}
    pictures = [(example, predict(opened.model, example.image, name=example.id, **run_on)) for example in shown]
    write_report(directory, evaluation, pictures)
    print(f"report: {directory}")
    if trimap and not (directory / "trimap.png").is_file():
        print("trimap.png is not in it, which needs matplotlib: pip install matplotlib")


def _trimap(options) -> dict:
    """What `evaluate` needs of the bands; wrong ones are refused before anything is opened."""
    if options.trimap is None:
        if options.trimap_boundary is not None:
            raise KerassegError(f"--trimap-boundary {options.trimap_boundary}: means something only with --trimap, such as 1:40")
        return {}
    widths = parse_values(options.trimap, "--trimap", "1,2,4,8 or 1:40")
    if widths[0] < 1:
        raise KerassegError(f"--trimap {options.trimap}: expected widths of at least 1 pixel, such as 1,2,4,8 or 1:40")
    boundary = options.trimap_boundary or "labels"
    if boundary not in _BOUNDARIES:
        raise KerassegError(f"--trimap-boundary {boundary}: expected one of {', '.join(_BOUNDARIES)}")
    return {"trimap": widths, "trimap_boundary": boundary}


def _open_data(opened: Opened, options):
    from kerasseg.data import open_data

    name, data_dir, same = chosen_data(opened, options)
    split = options.split or (opened.recipe.validation_split if same else None) or "val"
    return open_data(name, data_dir, split), split


def _report_path(opened: Opened, split: str, options) -> Path:
    """One folder for each way of evaluating, so that none overwrites another."""
    name = split + inference_name(options) + (f"-boundary-{options.boundary:g}" if options.boundary is not None else "")
    if options.trimap is not None:
        name += f"-trimap-{as_name(options.trimap)}" + (f"-{options.trimap_boundary}" if options.trimap_boundary else "")
    name += f"-first-{options.limit}" if options.limit else ""
    return opened.path / "report" / name if opened.path.is_dir() else opened.path.with_suffix("") / "report" / name


def _spread(total: int, count: int) -> list[int]:
    """Picks images evenly over the data set: neighbours are often frames of one scene."""
    count = max(0, min(count, total))
    return [index * total // count for index in range(count)]


def main() -> int:
    """Runs `evaluate.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
