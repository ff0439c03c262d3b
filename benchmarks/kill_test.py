"""Kills a training at random moments, restarts it by the same command until it is done, and compares it with an undisturbed one.

Trained weights, last checkpoint and log must be equal bit for bit, and nothing temporary may be left. What a process was doing is
seen from outside, while it stands still between SIGSTOP and `kill -9`: from the run directory's files alone. With --workers 2, one
of the processes of a cluster is killed, the others end by themselves or after a while are killed too, and all start again.

    python benchmarks/kill_test.py                            about 10 minutes on two free cores
    python benchmarks/kill_test.py --workers 2 --kills 10
"""

import argparse
import collections
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from kerasseg.runs import Run

ROOT = Path(__file__).resolve().parents[1]
VALIDATE_EVERY, CHECKPOINT_EVERY = 20, 4
# A step of the smallest network takes milliseconds; nearly all of a process's life is TensorFlow's start.
TRAINING = (
    *("--arch", "fcn8s", "--width-multiplier", "0.0625", "--crop-size", "32x32", "--batch-size", "2"),
    *("--checkpoint-every", str(CHECKPOINT_EVERY), "--validate-every", str(VALIDATE_EVERY), "--validation-images", "8"),
)
# What a kill waits for, and how often; a step is hit by those that wait for nothing.
TARGETS = {"start-up": 0.2, "anything": 0.35, "save": 0.3, "validation": 0.15}
# Seconds that a process may take in all, and that the other workers get to see that one is gone.
LIMIT, GRACE = 600, 60


class Kill(NamedTuple):
    """One kill: which process, what it was doing, the last step in the log, seconds after its start, how the others ended."""

    worker: int
    phase: str
    step: int
    seconds: float
    others: str


class Observer:
    """Tells from a run directory what the training in it is doing.

    Args:
        run: The run.
        iterations: How many steps it will take.
    """

    def __init__(self, run: Run, iterations: int):
        self.run, self.iterations = run, iterations
        self.times: list[float] = []
        # The log is written anew at the start, and each step adds a line.
        self._log = self._log_now()
        # What an earlier kill left says nothing about this process.
        self._left = self._unfinished()

    def _unfinished(self) -> set[Path]:
        return set(self.run.path.glob(".unfinished-*")) | set(self.run.path.glob("checkpoints/.unfinished-*"))

    def _log_now(self) -> tuple[int, int]:
        try:
            status = self.run.log_path.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_size

    @property
    def step(self) -> int:
        """The last step in the log."""
        return max((record["step"] for record in self.run.read_log()), default=0)

    def phase(self) -> str:
        """What the process is doing; to be called all the time, for only so it knows how long a step takes."""
        now = self._log_now()
        if now != self._log:
            if now[0] == self._log[0] and now[1] > self._log[1]:
                self.times.append(time.perf_counter())
            self._log = now
        unfinished = self._unfinished() - self._left
        if any(path.suffix == ".keras" for path in unfinished):
            return "finish"
        if any(path.parent.name == "checkpoints" for path in unfinished):
            return "save"
        if not self.times:
            return "start-up"
        step = self.step
        if step == self.iterations:
            return "finish"
        waiting = time.perf_counter() - self.times[-1]
        usual = statistics.median(np.diff(self.times)) if len(self.times) > 5 else 0.1
        return "validation" if (step + 1) % VALIDATE_EVERY == 0 and waiting > 3 * usual else "step"


def command(run: Run, iterations: int, workers: int) -> list[str]:
    """The command line that begins the run, and goes on with it."""
    strategy = ("--strategy", "multiworker") if workers > 1 else ()
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *TRAINING,
        "--iterations",
        str(iterations),
        "--run-dir",
        str(run.path),
        *strategy,
    ]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(arguments: Sequence[str], workers: int, output: Path) -> list[subprocess.Popen]:
    """Starts every worker; what they print is added to a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    with open(output, "a") as file:
        for index in range(workers):
            if workers > 1:
                task = {"type": "worker", "index": index}
                environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
            processes.append(subprocess.Popen(arguments, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL))
    return processes


def wait_and_kill(
    processes: list[subprocess.Popen], observer: Observer, target: str, delay: float, steps: int
) -> tuple[Kill | None, float]:
    """Kills one process at a moment of a kind.

    Args:
        processes: The workers; the first is the one that writes.
        observer: Sees what it does.
        target: A phase, or "anything".
        delay: Seconds to wait, after the start for "start-up" and after the last of the steps for "anything".
        steps: How many steps it may do before, where the target is not "start-up" or "finish".
    Returns:
        The kill, `None` if the training ended before it; and the seconds until the first step.
    """
    began = time.perf_counter()
    chosen = 0 if target in ("save", "finish") else random.randrange(len(processes))
    first = None
    while all(process.poll() is None for process in processes) and time.perf_counter() - began < LIMIT:
        phase, now = observer.phase(), time.perf_counter() - began
        first = first or (now if observer.times else None)
        due = now > delay if target == "start-up" else target == "finish" or len(observer.times) >= steps
        if due and target in (phase, "anything", "start-up"):
            if target == "anything":
                time.sleep(delay)
            stop(processes[0])
            phase = observer.phase()
            if target in (phase, "anything", "start-up"):
                processes[chosen].kill()
                processes[0].send_signal(signal.SIGCONT)
                return Kill(chosen, phase, observer.step, now, end_others(processes, chosen)), first or now
            processes[0].send_signal(signal.SIGCONT)
        time.sleep(0.0003)
    end_others(processes, -1)
    return None, first or 0.0


def stop(process: subprocess.Popen) -> None:
    """Makes a process stand still, and waits until it does or has ended."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None and Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.0003)


def end_others(processes: list[subprocess.Popen], killed: int) -> str:
    """Waits until all have ended, and says how those did that nobody killed."""
    ends = []
    for index, process in enumerate(processes):
        try:
            process.wait(GRACE if killed >= 0 else LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if index != killed:
            ends.append(f"exit {process.returncode}" if process.returncode >= 0 else "hung, killed")
    return ", ".join(ends)


def undisturbed(run: Run, iterations: int, workers: int, output: Path) -> float:
    """Trains to the end and gives the seconds until the first step.

    Raises:
        SystemExit: If it fails.
    """
    observer = Observer(run, iterations)
    processes = start(command(run, iterations, workers), workers, output)
    first = wait_and_kill(processes, observer, "never", 0, 0)[1]
    if any(process.returncode for process in processes):
        sys.exit(f"the undisturbed run failed:\n{output.read_text()[-2000:]}")
    return first


def kill_and_restart(run: Run, iterations: int, targets: Sequence[str], workers: int, start_up: float, output: Path) -> list[Kill]:
    """Starts the training once for every target, and kills it there; "never" lets it end.

    Raises:
        SystemExit: If a process ends with an error that is not another worker's death.
    """
    kills = []
    for target in targets:
        observer = Observer(run, iterations)
        processes = start(command(run, iterations, workers), workers, output)
        delay = random.uniform(0, start_up if target == "start-up" else 0.05)
        # In steps and not in seconds, so that a busy machine gets on, too.
        steps = random.randint(1, iterations // len(targets))
        kill, _ = wait_and_kill(processes, observer, target, delay, steps)
        if kill:
            kills.append(kill)
            print(f"kill {len(kills):3}: {kill.phase:10} after step {kill.step:5}, {kill.seconds:5.1f} s after the start", end="")
            print(f"; worker {kill.worker}, the others: {kill.others}" if workers > 1 else "", flush=True)
        elif any(process.returncode for process in processes):
            sys.exit(f"FAIL: a restart ended in an error:\n{output.read_text()[-2000:]}")
    return kills


def trained_weights(path: Path) -> dict[str, np.ndarray]:
    """Every array in a .keras file."""
    found = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = np.array(item)

    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as weights:
        weights.visititems(add)
    return found


def differences(run: Run, other: Run) -> list[str]:
    """Compares two finished runs.

    Returns:
        What differs, and what was left lying about; nothing if all is well.
    """
    found = [f"{path} was left" for path in run.path.rglob(".unfinished-*")]
    pairs = {"model.keras": [trained_weights(one.model_path) for one in (run, other)]}
    (step, state), (other_step, other_state) = run.checkpoints().last(found.append), other.checkpoints().last(found.append)
    # By number: the names that Keras makes up depend on what the process built before.
    pairs["checkpoint"] = [{"/".join(k.split("/")[:2]): v for k, v in values.items()} for values in (state, other_state)]
    for name, (one, two) in pairs.items():
        if set(one) != set(two) or not one:
            found.append(f"{name} holds other variables")
        else:
            found += [f"{name}: {key} differs" for key in one if not np.array_equal(one[key], two[key], equal_nan=True)]
    if step != other_step or run.read_log() != other.read_log():
        found.append(f"the logs differ, or end at steps {step} and {other_step}")
    if {path.name for path in run.path.iterdir()} != {path.name for path in other.path.iterdir()}:
        found.append("other files lie in the run directory")
    return found


def plan(kills: int, generator: random.Random) -> list[str]:
    """What each kill waits for: every target in its share, in any order, and a few times the very end."""
    last = kills // 16
    targets = [target for target, share in TARGETS.items() for _ in range(round(share * (kills - last)))]
    targets = (targets + ["anything"] * kills)[: kills - last]
    generator.shuffle(targets)
    return targets + ["finish"] * last


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the test and prints its table; the exit code says whether it passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many times to kill it (default 50)")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together (default 1)")
    parser.add_argument("--iterations", type=int, default=None, help="steps of the training (default: 16 for each kill)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("--dir", type=Path, default=None, help="where to train (default: a temporary folder)")
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    iterations = options.iterations or 16 * options.kills
    folder = options.dir or Path(tempfile.mkdtemp(prefix="kill_test-"))
    output, began = folder / "output.txt", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed = Run(folder / "whole"), Run(folder / "killed")
    start_up = undisturbed(whole, iterations, options.workers, output)
    print(
        f"undisturbed: {iterations} steps, first step after {start_up:.1f} s, {time.perf_counter() - began:.0f} s in all",
        flush=True,
    )
    targets = [*plan(options.kills, random), "never"]
    kills = kill_and_restart(killed, iterations, targets, options.workers, start_up, output)
    wrong = differences(killed, whole)
    counts = collections.Counter(kill.phase for kill in kills)
    print("phase       kills\n" + "".join(f"{phase:10} {count:6}\n" for phase, count in counts.most_common()), end="")
    print(f"{len(kills)} kills, {time.perf_counter() - began:.0f} s, in {folder}")
    if len(kills) < options.kills:
        wrong.append(f"the training ended after {len(kills)} kills: pass more --iterations")
    if counts["save"] < options.kills // 10:
        wrong.append(f"only {counts['save']} kills inside a save: pass another --seed")
    print("\n".join(f"FAIL: {line}" for line in wrong) or "PASS: bit for bit the undisturbed run, and nothing left lying about")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
