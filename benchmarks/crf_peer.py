"""pydensecrf in an environment of its own: how it is built there, and the process that answers benchmarks/crf.py.

Only NumPy is needed here, so that both environments can read this file. A message is a dictionary of arrays, as npz, behind its
length; seconds are taken inside the process that computes, so that sending counts for neither side.
"""

import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPOSITORY = "https://github.com/lucasb-eyer/pydensecrf"
COMMIT = "2723c7fa4f2e"
# Newer ones refuse its .pyx files; and the .cpp files that lie in the repository are of an older one than Python 3.11 needs.
CYTHON = "cython==0.29.37"
STALE = ("densecrf.cpp", "eigen.cpp")


def send(stream, **arrays) -> None:
    """Writes a message."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(struct.pack("<Q", buffer.tell()) + buffer.getvalue())
    stream.flush()


def receive(stream) -> dict | None:
    """Reads a message; `None` at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    with np.load(io.BytesIO(stream.read(struct.unpack("<Q", head)[0]))) as arrays:
        return {name: arrays[name][()] for name in arrays}


def resident(peak: bool = False) -> float:
    """MiB of memory that this process holds now, or held at most since `forget_peak`; NaN where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:"))


def forget_peak() -> None:
    """Starts the peak of `resident` anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def answer(solve, start: float) -> None:
    """Answers requests on standard input until it ends.

    Args:
        solve: Function of the names in a request to a dictionary of arrays, `seconds` among them.
        start: MiB that the process held before the first one.
    """
    # What a library prints must not get between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (request := receive(sys.stdin.buffer)) is not None:
        forget_peak()
        answer = solve(**request)
        send(answers, **answer, peak=resident(peak=True) - start)


def solve(image, logits, parameters, iterations, want_marginals=False) -> dict:
    """One image by pydensecrf: the lattices built, `iterations` steps, the marginals as an array.

    Args:
        image: Shape `(H, W, 3)`, uint8, RGB.
        logits: Shape `(H, W, C)`, float32.
        parameters: Spatial weight, θγ, bilateral weight, θα, θβ.
        iterations: Mean-field steps.
        want_marginals: Whether to send them, not the labels alone.
    """
    import pydensecrf.densecrf

    height, width, classes = logits.shape
    spatial_weight, gamma, bilateral_weight, alpha, beta = map(float, parameters)
    # As its users hold it: labels first.
    energy = np.ascontiguousarray(-logits.reshape(-1, classes).T)
    start = time.perf_counter()
    crf = pydensecrf.densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(energy)
    if spatial_weight:
        crf.addPairwiseGaussian(sxy=gamma, compat=spatial_weight)
    crf.addPairwiseBilateral(sxy=alpha, srgb=beta, rgbim=np.ascontiguousarray(image), compat=bilateral_weight)
    marginals = np.array(crf.inference(int(iterations)))
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "labels": marginals.argmax(0).reshape(height, width).astype(np.int32)}
    if want_marginals:
        found["marginals"] = marginals.T.reshape(logits.shape)
    return found


def build(cache: Path, repository: str = REPOSITORY) -> Path:
    """Builds pydensecrf into `cache` unless it is there.

    Args:
        cache: Folder for the sources and the environment.
        repository: Address or folder to clone from.
    Returns:
        The Python that has it.
    Raises:
        RuntimeError: If it cannot be built here, with the reason in one line.
    """
    python = cache / "venv" / "bin" / "python"
    if works(python):
        return python
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    source = cache / "source"
    _step("git", "clone", "--quiet", repository, source)
    _step("git", "-C", source, "checkout", "--quiet", COMMIT)
    for name in STALE:
        (source / "pydensecrf" / name).unlink(missing_ok=True)
    _step(sys.executable, "-m", "venv", cache / "venv")
    _step(python, "-m", "pip", "install", "--quiet", CYTHON, "numpy", "setuptools<66", "wheel")
    _step(python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", source)
    if not works(python):
        raise RuntimeError(f"pydensecrf was installed into {cache}, and cannot be imported there")
    return python


def works(python: Path) -> bool:
    """Whether a Python has pydensecrf."""
    if not python.is_file():
        return False
    return subprocess.run([python, "-c", "import pydensecrf.densecrf"], capture_output=True).returncode == 0


def _step(*command) -> None:
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} … failed: {last}")


if __name__ == "__main__":
    import pydensecrf.densecrf  # noqa: F401  (what it takes is no part of the first image)

    answer(solve, resident())
