"""`tools/tune_crf.py`: search the parameters of a dense CRF behind a network."""

import argparse
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kerasseg.cli.inference import (
    add_inference_options,
    check_inference_options,
    check_out,
    chosen_inference,
    search_folder,
    search_split,
)
from kerasseg.cli.opening import (
    Opened,
    add_data_options,
    check_classes,
    chosen_arguments,
    chosen_data,
    open_chosen,
    open_run_or_model,
)
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.cli.values import parse_values
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean, import_lazily

# Of kerasseg.evaluation.SEARCHES, for which TensorFlow need not be imported.
_SEARCHES = ("deeplab_v1", "deeplab_v2")
_SEARCHED = ("bilateral_weight", "theta_alpha", "theta_beta", "spatial_weight", "theta_gamma")
_SHOWN = 20


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/tune_crf.py`."""
    made = make_parser(
        "tune_crf.py",
        "Search the parameters of a dense CRF behind a network on a few held-out images, as DeepLab's authors did: the network "
        "runs once, then every set of parameters is scored. What was interrupted goes on. evaluate.py --crf search, or --crf "
        "OUT/best.json, uses what was found.",
    )
    made.add_argument("model", nargs="?", default=None, metavar="RUN_OR_MODEL", help="default: the newest run under runs/")
    add_data_options(made)
    made.add_argument("--images", type=int, default=100, help="images drawn from it")
    made.add_argument("--seed", type=int, default=0, help="decides which images are drawn")
    made.add_argument("--out", default=None, help="folder for logits, results.jsonl and best.json (default: crf/SPLIT in the run)")
    made.add_argument("--workers", type=int, default=None, help="processes, each of which tries a set (default: half the cores)")
    sets = made.add_argument_group("what is tried; ranges are lists (5,10) or first:step:last (50:10:100)")
    sets.add_argument("--search", default="deeplab_v1", help=f"ranges and all that is not searched: {' or '.join(_SEARCHES)}")
    for name in _SEARCHED:
        sets.add_argument(f"--{name.replace('_', '-')}", default=None, metavar="RANGE", help="instead of the search's")
    sets.add_argument("--crf-iterations", type=int, default=None, help="mean field steps (default: the search's, 10)")
    sets.add_argument("--normalization", default=None, help="symmetric, after, before or none (default: the search's, after)")
    sets.add_argument("--refine", type=int, default=1, help="rounds of half the step around the best set")
    add_inference_options(made, crf=False)
    return made


def run(arguments: Sequence[str]) -> None:
    """Searches as the arguments say.

    Raises:
        KerassegError: If they cannot be followed.
    """
    options = parser().parse_args(arguments)
    _check(options)
    opened = open_run_or_model(options.model, options.output_stride, exported=True)
    best = tune(opened, options)
    print(f"best: {best}\nuse it: python evaluate.py {opened.path} --crf {best}")


def search_for(opened: Opened, options) -> Path:
    """Searches, with the defaults of `tune_crf.py`, the parameters for a network that `evaluate.py` is to run.

    Args:
        opened: The network.
        options: Those of `evaluate.py`: data and way of running count, its split does not.
    Returns:
        The file with the best set.
    Raises:
        KerassegError: If that is impossible.
    """
    own = parser().parse_args([str(opened.path)])
    for name, value in vars(options).items():
        if name in vars(own) and name not in ("model", "split"):
            setattr(own, name, value)
    print("CRF parameters were not searched yet for this run: tools/tune_crf.py does so now")
    return tune(opened, own)


def _check(options) -> None:
    """Refuses what is impossible before anything is opened."""
    check_inference_options(options)
    if options.search not in _SEARCHES:
        raise KerassegError(f"--search {options.search}: {did_you_mean(options.search, _SEARCHES)}")
    for name, least in (("images", 1), ("workers", 1), ("seed", 0), ("refine", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise KerassegError(f"--{name} {value}: expected {least} or more")
    _ranges(options)
    if options.out is not None:
        check_out(options.out)


def _ranges(options) -> dict[str, tuple[float, ...]]:
    """The ranges that the options name."""
    given = {name: getattr(options, name) for name in _SEARCHED if getattr(options, name) is not None}
    ranges = {}
    for name, text in given.items():
        option = f"--{name.replace('_', '-')}"
        ranges[name] = parse_values(text, option, "5,10 or 50:10:100")
        if ranges[name][0] <= 0:
            raise KerassegError(f"{option} {text}: expected numbers above 0, such as 5,10 or 50:10:100")
    return ranges


def _search(options):
    """The search that the options describe."""
    from kerasseg.evaluation import SEARCHES

    search = SEARCHES[options.search]
    changes = {"iterations": options.crf_iterations, "normalization": options.normalization}
    base = dataclasses.replace(search.base, **{name: value for name, value in changes.items() if value is not None})
    return dataclasses.replace(search, base=base, ranges={**search.ranges, **_ranges(options)}, rounds=options.refine)


def tune(opened: Opened, options) -> Path:
    """Searches and prints what was found.

    Args:
        opened: The network.
        options: What the parser of `tune_crf.py` gave.
    Returns:
        The file with the best set.
    Raises:
        KerassegError: If the options cannot be followed.
    """
    from kerasseg.evaluation import Inference, draw_images, search_parameters, store_logits, write_best
    from kerasseg.evaluation.evaluator import scored_head
    from kerasseg.evaluation.exported import check_has_scores

    search = _search(options)
    # The recipe may have a CRF, which this command has no option to leave out.
    check_has_scores(opened.model, Inference(output=options.output), crf=True)
    name, data_dir, _ = chosen_data(opened, options)
    split = options.split or search_split(opened, options)
    data = scored_head(open_chosen(opened, options, split), opened.model, options.output)
    check_classes(opened, data, options.output)
    if not data.photographs:
        raise KerassegError(f"data set '{name}' holds maps of a network: a CRF needs photographs, such as --data camvid")
    if not len(data):
        raise KerassegError(f"data set '{name}' has no images in split '{split}': name another by --split")
    inference = chosen_inference(opened, options)
    folder = Path(options.out) if options.out else search_folder(opened, options, split)
    images = draw_images(len(data), options.images, options.seed)
    about = {"data": name, "data_dir": data_dir and os.path.abspath(data_dir), "split": split}
    arguments = chosen_arguments(opened, options)
    about |= {"data_arguments": arguments} if arguments else {}
    inference.method.check_names([data.ids[index] for index in images])
    with Progress("running the network", len(images), unit="images") as progress:
        files = store_logits(opened.model, data, images, inference, folder, about, progress=lambda done, _: progress.update(done))
    size = sum(file.stat().st_size for file in files)
    print(f"scores of {len(files)} images of {split}: {folder / 'logits'} ({size / 1e6:.3g} MB)")
    with _executor(options.workers) as executor, _Rounds() as report:
        tried = search_parameters(files, data.labels.num_classes, search, folder, executor=executor, report=report)
    print(_table(tried, folder))
    return write_best(folder, tried, f"{len(images)} images of {name} {split}")


class _Rounds:
    """Shows how each round of a search goes."""

    def __init__(self):
        self._title, self._progress = None, None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._progress:
            self._progress.__exit__(*exception)

    def __call__(self, title: str, done: int, total: int, best: float) -> None:
        if title != self._title:
            self.__exit__(None, None, None)
            self._title, self._progress = title, Progress(title, total, done, unit="sets").__enter__()
        if done:
            self._progress.update(done, f"best mean IoU {100 * best:.2f} %")


def _table(tried, folder: Path) -> str:
    """The best sets, and where no CRF stands among them."""
    names = ("iterations", *_SEARCHED)
    heads = ("steps", "w bilateral", "θα px", "θβ colour", "w spatial", "θγ px")
    lines = ["  ".join(["rank", "mean IoU %", "accuracy %", *heads])]
    for rank, each in enumerate(tried, start=1):
        if rank > _SHOWN and each.parameters is not None:
            continue
        rates = f"{rank:>4}  {100 * each.mean_iou:>10.2f}  {100 * each.pixel_accuracy:>10.2f}"
        if each.parameters is None:
            lines.append(f"{rates}  without CRF")
        else:
            values = (f"{getattr(each.parameters, name):>{len(head)}g}" for name, head in zip(names, heads, strict=True))
            lines.append("  ".join([rates, *values]))
    if len(tried) > _SHOWN:
        lines.append(f"all {len(tried)}: {folder / 'results.jsonl'}")
    return "\n".join(lines)


@contextmanager
def _executor(workers: int | None):
    """Processes to try sets in; none where one alone is wanted, which is then this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // 2) if workers is None else workers
    if workers == 1:
        yield None
        return
    # Forked, TensorFlow would hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _start_worker, (max(1, cores // workers),))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """Makes a process one of several that share a machine."""
    # Ctrl-C is for the parent, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    start_tensorflow()
    tf = import_lazily("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # Each would take the memory of all of it.
    tf.config.set_visible_devices([], "GPU")


def _follow_parent() -> None:
    """Ends this process with its parent, even if that was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def main() -> int:
    """Runs `tools/tune_crf.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
