"""How long work shows that it goes on: a bar on a terminal, plain lines in a log."""

import sys
import time


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line now and then.

    Args:
        title: What goes on.
        total: Steps in all.
        done: Steps done before.
        unit: What the rate counts, in the plural.
        size: How many of them a step is.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "steps", size: int = 1):
        self._title, self._total, self._unit, self._size = title, total, unit, size
        self._start, self._first, self._warm = time.monotonic(), done, False
        self._next_line = 0.0
        self._bar = _rich_bar(title, total, done) if sys.stderr.isatty() else None

    def update(self, done: int, note: str = "", *, always: bool = False) -> None:
        """Shows that `done` steps are done.

        Args:
            done: Steps done, those before included.
            note: What to show beside it, such as the loss.
            always: Whether to write a line in a log even if the last one was just now.
        """
        rate = self._rate(done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note, rate=rate)
        elif always or done == self._total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 10
            print(" ".join(filter(None, [self._title, f"{done}/{self._total}", note, rate and f"({rate})"])), flush=True)
        if not self._warm:
            # The first step also compiles, which says nothing of the others.
            self._start, self._first, self._warm = time.monotonic(), done, True

    def _rate(self, done: int) -> str:
        if not self._warm:
            return ""
        speed = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = f", {duration((self._total - done) / speed)} left" if speed > 0 and done < self._total else ""
        return f"{speed * self._size:.3g} {self._unit}/s{left}"

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.stop()


def _rich_bar(title: str, total: int, done: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=done, note="", rate="")
    return bar


def duration(seconds: float) -> str:
    """Says how long something takes: `45 s`, `12 min 3 s`, `3 h 25 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.2g} s"
