"""What a person sees of a training run."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasseg.cli.progress import Progress, duration

# What goes before the first step and through all images → what it is called.
_PREPARATIONS = {"stored": "storing features of {split}", "checked": "checking files", "searched": "searching labels"}


class Display:
    """Takes what `kerasseg.training.train_recipe` reports: a bar for each stage on a terminal, lines in a log; then a summary.

    Example:
        >>> with Display() as display:
        ...     train_recipe(recipe, run, report=display)
        >>> print(display.summary(run.path, run.read_log()))
    """

    def __init__(self):
        # Of the workers of a cluster, one alone reports how the training goes.
        self.reported = False
        self._title, self._progress, self._images_per_step = "step", None, 1
        # What is prepared while the bar is of that, and not of steps.
        self._preparing = None
        # Since the process began, over all stages; the first step of each also compiles and says nothing of the speed.
        self._steps, self._seconds, self._warm_images, self._warm_seconds = 0, 0.0, 0, 0.0
        self._since, self._warm = 0.0, False

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exception):
        self._close()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Shows one report."""
        if not _PREPARATIONS.keys().isdisjoint(record):
            self._show_preparation(record)
            return
        self.reported = True
        if "step" in record:
            self._show_step(record)
        elif "iterations" in record:
            self._open(record)
        elif "stage" in record:
            self._title = record["stage"]
            if record["finished"]:
                self._say(f"stage {record['stage']} is finished: kept as it is")
        elif "notice" in record:
            self._say(record["notice"])
        else:
            self._say(f"started from {', '.join(record['started_from'])}; new: {', '.join(record['new_layers']) or 'nothing'}")

    def summary(self, path: Path, log: list[Mapping[str, Any]], *, keep_best: bool = True) -> str:
        """Says what was trained, how fast and how well, where it is, and what to do next.

        Args:
            path: Directory of the trained model.
            log: The run's log, earlier parts of it included.
            keep_best: Whether the model is the best of the validations, or else the last step.
        """
        lines = [f"trained {self._steps} steps in {duration(self._seconds)}" if self._steps else "nothing was left to train"]
        if self._warm_seconds:
            lines[0] += f", {self._warm_images / self._warm_seconds:.3g} images/s"
        scored = [record for record in log if "mean_iou" in record]
        if scored:
            best = max(scored, key=lambda record: record["mean_iou"])
            last = f"last validation mean IoU: {_score(scored[-1])}, which is kept; best: {_score(best)}"
            lines.append(f"best validation mean IoU: {_score(best)}" if keep_best else last)
        lines.append(f"trained network: {path / 'model.keras'}")
        return "\n".join([*lines, f"evaluate it: python evaluate.py {shlex.quote(str(path))}"])

    def _open(self, record) -> None:
        self._close()
        self._images_per_step, self._since, self._warm = record["images"], time.monotonic(), False
        self._progress = Progress(self._title, record["iterations"], record["done"], "images", record["images"])
        self._progress.__enter__()

    def _close(self) -> None:
        if self._progress:
            self._progress.__exit__(None, None, None)
            self._progress = None
        self._preparing = None

    def _show_step(self, record) -> None:
        passed = time.monotonic() - self._since
        self._steps, self._seconds, self._since = self._steps + 1, self._seconds + passed, self._since + passed
        if self._warm:
            self._warm_images, self._warm_seconds = self._warm_images + self._images_per_step, self._warm_seconds + passed
        self._warm = True
        note = f"loss {record['loss']:.4g}, rate {record['learning_rate']:.3g}"
        if "mean_iou" in record:
            note += f", validation mean IoU {100 * record['mean_iou']:.2f} %"
        self._progress.update(record["step"], note, always="mean_iou" in record)

    def _show_preparation(self, record) -> None:
        """What goes before the first step and goes through all images."""
        kind = next(kind for kind in _PREPARATIONS if kind in record)
        title, done = _PREPARATIONS[kind].format(**record), record[kind]
        if self._preparing != title:
            self._close()
            self._preparing = title
            self._progress = Progress(title, record["of"], unit="images")
            self._progress.__enter__()
        self._progress.update(done)
        if done == record["of"]:
            self._close()

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


def _score(record: Mapping[str, Any]) -> str:
    return f"{100 * record['mean_iou']:.2f} % after step {record['step']}"
