"""The papers' search for a CRF's parameters on a few held-out images, one set of them after another."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from kerasseg.crf import PARAMETERS, Parameters
from kerasseg.errors import KerassegError
from kerasseg.evaluation.crf_store import Tried, score_parameters
from kerasseg.runs import atomic_path, write_json
from kerasseg.runs.files import naming

SEARCHED = ("bilateral_weight", "theta_alpha", "theta_beta", "spatial_weight", "theta_gamma")
"""The parameters that a search may vary."""
# Sets of one round: a day of work, and nobody means more.
_MOST = 10_000


@dataclasses.dataclass(frozen=True)
class Search:
    """Which parameters to try.

    Args:
        base: What is not searched is as here.
        ranges: Names among `SEARCHED` → the values to try, ascending; all combinations are tried.
        rounds: Refinements: around the best set so far all combinations of each value, it minus and it plus half its step, the
            step being halved in each further round. Values with a single entry stay.
    Raises:
        KerassegError: If a range is empty, does not ascend, has another name, or a value that is impossible, or the combinations
            are more than 10,000.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, §5: a coarse search by cross-validation on 100 images of the validation set, then smaller
        steps around the best values of the first round. How many rounds and how much smaller, it does not say.
    """

    base: Parameters
    ranges: Mapping[str, tuple[float, ...]]
    rounds: int = 1

    def __post_init__(self):
        for name, values in self.ranges.items():
            if name not in SEARCHED:
                raise KerassegError(f"search over '{name}': expected some of {', '.join(SEARCHED)}")
            if not values or list(values) != sorted(set(values)):
                received = ", ".join(f"{value:g}" for value in values) or "none"
                raise KerassegError(f"values of {name}: received {received}, expected ascending ones, such as 5, 10")
            for value in values:
                dataclasses.replace(self.base, **{name: value})
        if self.rounds < 0:
            raise KerassegError(f"{self.rounds} rounds of refinement: expected 0 or more, such as 1")
        if (count := math.prod(map(len, self.ranges.values()))) > _MOST:
            counts = " x ".join(str(len(values)) for values in self.ranges.values())
            raise KerassegError(f"the ranges make {count} sets ({counts}): expected at most {_MOST}, such as fewer values of each")

    def first(self) -> list[Parameters]:
        """All combinations of the ranges."""
        return self._combinations(self.ranges)

    def around(self, best: Parameters, number: int) -> list[Parameters]:
        """All combinations around a set of parameters in the refinement of that number, from 1."""
        ranges = {}
        for name, values in self.ranges.items():
            value, step = getattr(best, name), _step(values, getattr(best, name)) / 2**number
            near = (value - step, value, value + step) if step else (value,)
            ranges[name] = tuple(round(each, 6) for each in near if each > 0)
        return self._combinations(ranges)

    def _combinations(self, ranges) -> list[Parameters]:
        base = dataclasses.replace(self.base, source="")
        return [dataclasses.replace(base, **dict(zip(ranges, each, strict=True))) for each in itertools.product(*ranges.values())]


def _step(values: Sequence[float], value: float) -> float:
    """How far the values lie apart around one of them, or one between; 0 of a single one."""
    gaps = zip(values, values[1:], strict=False)
    low, high = min(gaps, key=lambda gap: abs(sum(gap) / 2 - value), default=(0.0, 0.0))
    return high - low


SEARCHES = {
    # θγ and its weight are fixed in both papers. "w1 in [5, 10]" is read as MATLAB reads it: two values.
    "deeplab_v1": Search(
        dataclasses.replace(PARAMETERS["deeplab_v1"], spatial_weight=3.0, theta_gamma=3.0),
        {
            "bilateral_weight": (5.0, 10.0),
            "theta_alpha": tuple(float(value) for value in range(50, 101, 10)),
            "theta_beta": tuple(float(value) for value in range(3, 11)),
        },
    ),
    "deeplab_v2": Search(
        dataclasses.replace(PARAMETERS["deeplab_v2_resnet101"], spatial_weight=3.0, theta_gamma=3.0),
        {
            "bilateral_weight": (3.0, 4.0, 5.0, 6.0),
            "theta_alpha": tuple(float(value) for value in range(30, 101, 10)),
            "theta_beta": (3.0, 4.0, 5.0, 6.0),
        },
    ),
}
"""Name → the search that Chen et al. describe (arXiv:1412.7062, §5; arXiv:1606.00915, §4.1), with one refinement."""


def search_parameters(
    files: Sequence[Path],
    num_classes: int,
    search: Search,
    folder,
    *,
    executor: Executor | None = None,
    report: Callable[[str, int, int, float], None] | None = None,
) -> list[Tried]:
    """Tries the sets of a search; those that `results.jsonl` in the folder holds are not tried again.

    Args:
        files: What `store_logits` gave.
        num_classes: C.
        search: Which sets.
        folder: Where each result is added to `results.jsonl`, on the disk before the next.
        executor: Runs several sets at once; `None`: one after the other, in this process.
        report: Called with the name of the round, (sets done, sets in all) of it, and the best mean IoU of these so far: when the
            round begins (NaN, where none is done), and after each set.
    Returns:
        All that was tried for this search, the best first; among equals the earlier in the search. No CRF is one of them.
    Raises:
        KerassegError: If a process of the executor ended.
    """
    results = _Results(Path(folder) / "results.jsonl")
    found: list[Tried] = []

    def complete(title: str, candidates: Sequence[Parameters | None]) -> None:
        known = {each: results.known[each] for each in candidates if each in results.known}

        def tell():
            if report:
                best = max((tried.mean_iou for tried in known.values()), default=float("nan"))
                report(title, len(known), len(candidates), best)

        tell()
        for tried in _each(files, num_classes, [each for each in candidates if each not in known], executor):
            results.add(tried)
            known[tried.parameters] = tried
            tell()
        # In the order of the search, so that of equals the first wins, whichever process was faster; the best of before is in
        # each refinement again.
        found.extend(known[each] for each in candidates if known[each] not in found)

    complete("without CRF", [None])
    complete("first round", search.first())
    for number in range(1, search.rounds + 1):
        best = next(each for each in _best_first(found) if each.parameters is not None)
        complete(f"refinement {number}", search.around(best.parameters, number))
    return _best_first(found)


def _each(files, num_classes, candidates, executor) -> Iterator[Tried]:
    if executor is None:
        for candidate in candidates:
            yield score_parameters(files, num_classes, candidate)
        return
    futures = [executor.submit(score_parameters, files, num_classes, candidate) for candidate in candidates]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise KerassegError(
            "a worker was ended by the system, perhaps for want of memory: run the command again with fewer --workers; what was "
            "tried is kept"
        ) from error
    finally:
        for future in futures:
            future.cancel()


def _best_first(tried: Iterable[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda each: -each.mean_iou)


class _Results:
    """The lines of results.jsonl. One that a crash cut short is left out."""

    def __init__(self, path: Path):
        self._path, self.known = path, {}
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        for tried in filter(None, map(_tried, lines)):
            self.known[tried.parameters] = tried
        # Else the next line would be appended to what is left of one.
        with atomic_path(path) as temporary:
            temporary.write_text("".join(_line(tried) for tried in self.known.values()))

    def add(self, tried: Tried) -> None:
        self.known[tried.parameters] = tried
        with naming(self._path), open(self._path, "a") as file:
            file.write(_line(tried))
            file.flush()
            os.fsync(file.fileno())


def _line(tried: Tried) -> str:
    return json.dumps(dataclasses.asdict(tried)) + "\n"


def _tried(line: str) -> Tried | None:
    try:
        values = json.loads(line)
        parameters = values["parameters"] and Parameters(**values["parameters"])
        return Tried(parameters, float(values["mean_iou"]), float(values["pixel_accuracy"]))
    except (ValueError, TypeError, KeyError, RecursionError, KerassegError):
        return None


def write_best(folder, tried: Sequence[Tried], about: str) -> Path:
    """Writes the best set of a search as `best.json`, which `crf_parameters` reads.

    Args:
        folder: Where to.
        tried: What `search_parameters` gave.
        about: What it was searched on, for the source of the parameters.
    Returns:
        The file.
    """
    best = next(each for each in tried if each.parameters is not None)
    without = next(each for each in tried if each.parameters is None)
    source = f"best of {len(tried) - 1} sets, searched on {about}: mean IoU {best.mean_iou:.4f}, without CRF {without.mean_iou:.4f}"
    values = {
        "parameters": dataclasses.asdict(dataclasses.replace(best.parameters, source=source)),
        "mean_iou": best.mean_iou,
        "pixel_accuracy": best.pixel_accuracy,
        "without_crf": {"mean_iou": without.mean_iou, "pixel_accuracy": without.pixel_accuracy},
        "sets": len(tried) - 1,
    }
    write_json(Path(folder) / "best.json", values)
    return Path(folder) / "best.json"
