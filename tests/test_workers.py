"""Workers of a cluster that train together, each in a process of its own: who writes, and how they end and go on."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

from cli_helpers import ROOT, assert_equal, weights_of

from kerasseg.runs import Run


def in_two_workers(code: str, folder) -> list[tuple[int, str, str]]:
    """Runs a program as both workers of a cluster, `index` being which of them it is: exit code, stdout and stderr of each."""
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        for free in (one, other):
            free.bind(("localhost", 0))
        addresses = [f"localhost:{free.getsockname()[1]}" for free in (one, other)]
    workers = []
    try:
        for index in range(2):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CONFIG": json.dumps(task)}
            command = [sys.executable, "-c", f"index = {index}\n{code}"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            workers.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
        # Read one after the other: neither writes more than a pipe holds.
        outputs = [worker.communicate(timeout=300) for worker in workers]
        return [(worker.returncode, *output) for worker, output in zip(workers, outputs, strict=True)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


STAGES = """
import sys, time
from cli_helpers import run, toy_offered
from kerasseg.cli import train
from kerasseg.runs import Checkpoints, Run

for kind, name in ((Checkpoints, "save"), (Run, "save_model")):
    def late(*arguments, original=getattr(kind, name)):
        time.sleep(1)
        return original(*arguments)
    setattr(kind, name, late)
with toy_offered(fusion="test_stages:FUSION"):
    ended = run(train, "--recipe", "fusion", "--strategy", "multiworker", "--run-dir", "run", "--iterations", "1")
assert Run("run/stages/3-both").model_path.is_file()
sys.exit(ended)
"""


def test_they_train_stages_and_one_of_them_writes(tmp_path):
    """What one of them writes, which takes a while, is there for both when they go on."""
    (code, chief, _), (other, follower, _) = in_two_workers(STAGES, tmp_path)
    assert (code, other) == (0, 0)
    assert "evaluate it: python evaluate.py run" in chief and len(follower.splitlines()) == 1
    assert_equal(weights_of(tmp_path / "run", "firstcolor"), weights_of(tmp_path / "run/stages/1-color", "first"))
    assert_equal(weights_of(tmp_path / "run", "firstdepth"), weights_of(tmp_path / "run/stages/2-depth", "first"))


# One cluster, three calls: one worker is asked to end; one has another disk; both go on to the end.
ENDED = """
import os, signal, sys
from functools import cache
import kerasseg
from cli_helpers import assert_equal, run, toy_offered
from kerasseg.cli import train
from kerasseg.training import stages
from kerasseg.training.workers import Workers

stages.make_strategy = cache(stages.make_strategy)
stages.cache = lambda function: function
asked, original = [], Workers.any

def any_of(self, flag):
    asked.append(flag)
    if index == 1 and len(asked) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, flag)

Workers.any = any_of
options = ("--recipe", "toy", "--strategy", "multiworker", "--run-dir")
with toy_offered(toy="test_session:RECIPE"):
    ended = [run(train, *options, "run")]
    ended += [run(train, *options, "run" if index == 0 else "elsewhere"), run(train, *options, "run")]
print(ended, asked, not os.path.exists("elsewhere"))
"""


def test_where_one_is_asked_to_end_all_do_and_all_must_see_the_same_files(tmp_path):
    for index, (code, out, err) in enumerate(in_two_workers(ENDED, tmp_path)):
        stopped, refused = (line for line in err.splitlines() if line.startswith(("stopped", "error")))
        assert stopped == "stopped by SIGTERM, saved after step 3; to go on: python train.py --run-dir run"
        assert refused.endswith("at different steps: --run-dir must be on a file system that all workers share")
        flags = [False, False, index == 1, False]
        assert (code, out.splitlines()[-1]) == (0, f"[143, 2, 0] {flags} True")
    run = Run(tmp_path / "run")
    assert [(record["step"], "mean_iou" in record) for record in run.read_log()] == [(1, False), (2, True), (3, False), (4, True)]
