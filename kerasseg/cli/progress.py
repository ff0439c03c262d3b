"""How long work shows that it goes on: a bar on a terminal, plain lines in a log."""

import sys
import time


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line now and then.

    Args:
        title: What goes on.
        total: Steps in all.
        done: Steps done before.
        unit: What a step is, in the plural.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "steps"):
        self._title, self._total, self._unit = title, total, unit
        self._start, self._first, self._next_line = time.monotonic(), done, 0.0
        self._bar = _rich_bar(title, total, done) if sys.stderr.isatty() else None

    def update(self, done: int, note: str = "", *, always: bool = False) -> None:
        """Shows that `done` steps are done.

        Args:
            done: Steps done, those before included.
            note: What to show beside it, such as the loss.
            always: Whether to write a line in a log even if the last one was just now.
        """
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note, rate=f"{self._speed(done):.2f} {self._unit}/s")
        elif always or done == self._total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 10
            print(f"{self._title} {done}/{self._total} {note} {self._rate(done)}".rstrip(), flush=True)

    def _speed(self, done: int) -> float:
        seconds = time.monotonic() - self._start
        return (done - self._first) / seconds if seconds > 0 else 0.0

    def _rate(self, done: int) -> str:
        rate = self._speed(done)
        left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 and done < self._total else ""
        return f"({rate:.2f} {self._unit}/s{left})"

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.stop()


def _rich_bar(title: str, total: int, done: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=done, note="", rate="")
    return bar
