"""`evaluate.py`: score a run or model on a data set."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.compare import write_page
from kerasseg.cli.inference import add_inference_options, as_name, check_inference_options, chosen_inference, inference_name
from kerasseg.cli.opening import (
    RUN_OR_FILE,
    Opened,
    add_data_options,
    check_classes,
    chosen_data,
    open_chosen,
    open_run_or_model,
    output_classes,
    root_of,
)
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.cli.scoring import add_scoring_options, chosen_scoring, scoring_name
from kerasseg.cli.tune_crf import search_for
from kerasseg.errors import KerassegError
from kerasseg.runtimes import is_exported


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `evaluate.py`."""
    made = make_parser("evaluate.py", "Score a network: the four metrics of the FCN paper, per class and per image, with pictures.")
    made.add_argument("model", nargs="?", default=None, metavar="RUN_OR_MODEL", help=f"{RUN_OR_FILE} (default: the newest run)")
    add_data_options(made)
    made.add_argument(
        "--against",
        default=None,
        metavar="RUN_OR_MODEL",
        help="a second network, scored on the same images: by how much the first differs, and whether by more than chance",
    )
    add_inference_options(made)
    add_scoring_options(made)
    made.add_argument("--batch-size", type=int, default=None, help="images of one size in a run (default: one for each replica)")
    made.add_argument("--strategy", default="one", choices=("one", "mirrored"), help="one device, or a replica on every GPU")
    made.add_argument("--replicas", type=int, default=None, help="of --strategy mirrored without GPU: parts of the CPU")
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
    scoring = chosen_scoring(options)
    if options.batch_size is not None and options.batch_size < 1:
        raise KerassegError(f"--batch-size {options.batch_size}: expected at least 1 image")
    if options.strategy != "one" and any(is_exported(path) for path in (options.model, options.against) if path is not None):
        raise KerassegError(f"--strategy {options.strategy}: an exported file runs on one device, omit it")
    with _strategy(options) as replicas:
        scoring["batch_size"] = options.batch_size or replicas
        opened = open_run_or_model(options.model, options.output_stride, exported=True)
        second = _second(opened, options)
    data, name, split = _open_data(opened, options)
    networks = [opened] if second is None else [opened, second]
    for each in networks:
        check_classes(each, data, options.output)
    inferences = [chosen_inference(each, options, functools.partial(search_for, each, options)) for each in networks]
    names, evaluations = _names(networks), []
    folders = _folders(networks, names, name, split, options)
    for opened, inference, folder in zip(networks, inferences, folders, strict=True):
        if evaluations:
            print(f"\nagainst {opened.path}:")
        evaluations.append(_evaluate(opened, inference, data, split, options, scoring))
        _write(opened, data, evaluations[-1], folder, options)
    if second is not None:
        _compare(names, evaluations, folders[0])


@contextlib.contextmanager
def _strategy(options):
    """Lets what is opened inside live on the devices that were asked for; gives the number of replicas."""
    if options.strategy == "one":
        if options.replicas is not None:
            raise KerassegError(f"--replicas {options.replicas}: means something only with --strategy mirrored")
        yield 1
        return
    start_tensorflow()
    from kerasseg.training import make_strategy

    strategy = make_strategy(options.strategy, replicas=options.replicas)
    with strategy.scope():
        yield strategy.num_replicas_in_sync


def _second(opened: Opened, options) -> Opened | None:
    """Opens the network of `--against`, which must have the classes of the first."""
    if options.against is None:
        return None
    second = open_run_or_model(options.against, options.output_stride, exported=True)
    if second.path.resolve() == opened.path.resolve():
        raise KerassegError(f"--against {options.against}: is the network itself, expected another one")
    from kerasseg.evaluation.running import selected_output

    counts = [output_classes(selected_output(each.model, options.output)) for each in (opened, second)]
    tables = [each.labels_of(options.output) for each in (opened, second)]
    if counts[0] != counts[1]:
        raise KerassegError(
            f"--against {second.path} has {counts[1]} classes, {opened.path} {counts[0]}: expected the same classes"
        )
    if None not in tables and tables[0].classes != tables[1].classes:
        from kerasseg.evaluation.comparison import different_classes

        differing = different_classes(tables[1].classes, tables[0].classes)
        raise KerassegError(
            f"--against {second.path} has other classes than {opened.path} ({differing}): expected the same, in the same order"
        )
    return second


def _open_data(opened: Opened, options):
    from kerasseg.evaluation.evaluator import scored_head

    name, _, same = chosen_data(opened, options)
    split = options.split or (opened.recipe.validation_split if same else None) or "val"
    # Of several label maps that of the output: pictures and page are then of it as well.
    return scored_head(open_chosen(opened, options, split), opened.model, options.output), name, split


def _evaluate(opened: Opened, inference, data, split: str, options, scoring: dict):
    """Scores one network and prints what was found."""
    from kerasseg.evaluation import evaluate

    total = min(len(data), options.limit or len(data))
    with Progress(f"evaluating {split}", total, unit="images") as progress:
        evaluation = evaluate(
            opened.model,
            data,
            inference,
            progress=lambda done, _: progress.update(done),
            limit=options.limit,
            **scoring,
        ).of_split(split)
    print(evaluation.table())
    print(inference)
    return evaluation


def _write(opened: Opened, data, evaluation, directory: Path, options) -> None:
    """Writes the report, for whose pictures a few images go through the network once more."""
    from kerasseg.evaluation import predict_with_classes, ranked, write_report

    # Maps of a network, which stored features are, make no pictures.
    count = max(0, options.pictures if data.photographs else 0)
    made = {}

    def picture(index):
        if index not in made:
            example = data[index]
            made[index] = (example, predict_with_classes(opened.model, example.image, evaluation.inference, example.id).classes)
        return made[index]

    pictures = [picture(index) for index in _spread(len(evaluation.images), count)]
    chosen = ranked(evaluation, min(4, max(1, count // 2)) if count else 0)
    extremes = [
        (kind, [(*picture(index), evaluation.images[index]) for index in indices]) for kind, indices in chosen.items() if indices
    ]
    write_report(directory, evaluation, pictures, extremes)
    print(f"report: {directory}")


def _names(networks: Sequence[Opened]) -> list[str]:
    """What to call the networks: their last names, or what tells them apart."""
    from kerasseg.evaluation.comparison import distinct_names

    # Of the folder that one is in, "." would be no name.
    roots = [root_of(each.path).resolve() for each in networks]
    longer = [f"{root.parent.name}/{root.name}" for root in roots]
    return distinct_names([root.name for root in roots], longer, [each.path.resolve() for each in networks])


def _folders(networks: Sequence[Opened], names: Sequence[str], data: str, split: str, options) -> list[Path]:
    """Where the reports go: with the networks, or all together."""
    if not options.report:
        return [_report_path(each, data, split, options) for each in networks]
    return [Path(options.report), *(Path(options.report) / f"against-{as_name(name)}" for name in names[1:])]


def _compare(names: Sequence[str], evaluations: Sequence, directory: Path) -> None:
    """Says by how much the first network differs from the second."""
    from kerasseg.evaluation.comparison import Report, compare

    comparison = compare([Report.of(each, name) for each, name in zip(evaluations, names, strict=True)], baseline=1)
    print()
    print(comparison.table())
    write_page(directory / f"against-{as_name(names[1])}.html", comparison)


def _report_path(opened: Opened, data: str, split: str, options) -> Path:
    """One folder for each way of evaluating, so that none overwrites another; other data than the run's are part of its name."""
    own = opened.recipe is not None and opened.recipe.data == data
    name = ("" if own else f"{as_name(data)}-") + split
    name += "".join(f"-{as_name(f'{key}-{value}')}" for key, value in options.data_arguments)
    name += inference_name(options) + scoring_name(options)
    name += f"-first-{options.limit}" if options.limit else ""
    return root_of(opened.path) / "report" / name


def _spread(total: int, count: int) -> list[int]:
    """Picks images evenly over the data set: neighbours are often frames of one scene."""
    count = max(0, min(count, total))
    return [index * total // count for index in range(count)]


def main() -> int:
    """Runs `evaluate.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
