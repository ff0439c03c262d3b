"""How long a file takes."""

import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

from kerasseg.export.graph import Plan
from kerasseg.export.parity import random_batches
from kerasseg.runtimes import open_file
from kerasseg.runtimes.files import default_threads

# Seconds that timing may take, and the fewest and most runs.
_SECONDS, _FEWEST, _MOST = 2.0, 3, 20


def measure_latency(path: str | Path, made: Plan, threads: int | None = None) -> dict[str, Any]:
    """Times a file on this machine, one batch of random pixels.

    Args:
        path: The file.
        made: What it was made of.
        threads: How many to compute with; `None`: as many as this process has processors. TensorFlow keeps its own number, for a
            SavedModel.
    Returns:
        `milliseconds`: median of the runs after the first; `input`: shape of what it ran on; `runs`; `threads`, `None` of a
        SavedModel; `processor`.
    """
    threads = threads or default_threads()
    network, batch = open_file(path, threads=threads, check=False), random_batches(made)[0]
    network.run(batch)
    seconds: list[float] = []
    while len(seconds) < _FEWEST or (len(seconds) < _MOST and sum(seconds) < _SECONDS):
        start = time.perf_counter()
        network.run(batch)
        seconds.append(time.perf_counter() - start)
    milliseconds = float(f"{1000 * median(seconds):.4g}")
    known = None if network.format == "saved_model" else threads
    timed = {"milliseconds": milliseconds, "input": list(batch.shape), "runs": len(seconds)}
    return {**timed, "threads": known, "processor": processor()}


def processor() -> str:
    """Names this machine's processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
