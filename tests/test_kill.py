"""What survives: kill -9 at any moment, and a disk that takes no more."""

import errno
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_helpers import ROOT, TINY, run

from kerasseg.cli import train
from kerasseg.cli.running import run_command
from kerasseg.labels import LABELS
from kerasseg.runs import Checkpoints, Run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def arrays(step):
    return {"a": np.full(3, step)}


def in_python(code: str, *arguments, stdout=subprocess.PIPE) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


SAVE_ON = """
import sys
import numpy as np
from kerasseg.runs import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = checkpoints.last_step()
while True:
    step += 1
    checkpoints.save(step, {"a": np.full(300_000, step), "b": np.full(3, -step)}, 1 / step)
    print(step, flush=True)
"""


def unfinished(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".unfinished-")]


@pytest.mark.parametrize("inside", [True, False], ids=["inside a save", "anywhere"])
def test_killed_at_any_moment_the_last_state_is_there(tmp_path, inside):
    long, generator, checkpoints = load_benchmark(), np.random.default_rng(1), Checkpoints(tmp_path / "run")
    for _ in range(6):
        with open(tmp_path / "out", "w") as out, in_python(SAVE_ON, tmp_path / "run", stdout=out) as process:
            while not (tmp_path / "out").stat().st_size:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.03))
            long.stop(process)
            # What an earlier process left went with the first save.
            while inside and not unfinished(checkpoints.directory):
                process.send_signal(signal.SIGCONT)
                long.stop(process)
            process.kill()
        told = [int(line) for line in (tmp_path / "out").read_text().split("\n") if line][-1]
        step, found = checkpoints.last(pytest.fail)
        # What was reported as saved is there, and no more than the one that was being saved.
        assert told <= step <= told + 1 and checkpoints.last_step() == step
        assert (found["a"] == step).all() and (found["b"] == -step).all()
        assert checkpoints.best(pytest.fail)[0] == 1
    assert unfinished(checkpoints.directory) or not inside
    checkpoints.save(step + 1, arrays(step + 1))
    assert names(checkpoints.directory) == ["index.json", *(f"step-{s:08d}.npz" for s in (1, step, step + 1))]


FILL = """
import resource, signal, sys
import numpy as np
from kerasseg.cli.running import run_command
from kerasseg.runs import Run

run = Run(sys.argv[1])
run.checkpoints().save(1, {"a": np.ones(1000)})

def fill(arguments):
    if arguments:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(arguments[0]), resource.RLIM_INFINITY))
    run.checkpoints().save(2, {str(i): np.random.default_rng(i).random(200_000) for i in range(3)})

sys.exit(run_command(fill, sys.argv[2:]))
"""


def check_that_nothing_was_lost(run, process, line):
    out, err = process.communicate()
    assert (process.returncode, err.splitlines()) == (2, [line])
    assert names(run.path / "checkpoints") == ["index.json", "step-00000001.npz"]
    assert run.checkpoints().last(pytest.fail)[0] == 1
    run.checkpoints().save(2, arrays(2))
    assert run.checkpoints().last(pytest.fail)[0] == 2


# Inside the first array, between two, inside the last, and inside the end.
@pytest.mark.parametrize("limit", [5000, 1_600_200, 4_000_000, 4_800_900])
def test_a_file_that_may_not_grow_is_one_line_and_nothing_is_lost(tmp_path, limit):
    run = Run(tmp_path / "my run")
    run.begin({}, LABELS["shapes"])
    check_that_nothing_was_lost(
        run,
        in_python(FILL, run.path, limit),
        f"error: File too large: {run.path}/checkpoints/step-00000002.npz: let files be larger (ulimit -f), then go on with "
        f"python train.py --run-dir '{run.path}'; what was saved before is whole",
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; only root can make one."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "disk")]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def remount(disk, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_lost(small_disk):
    run = Run(small_disk / "run")
    run.begin({}, LABELS["shapes"])
    check_that_nothing_was_lost(
        run,
        in_python(FILL, run.path),
        f"error: No space left on device: {run.path}/checkpoints/step-00000002.npz: free some space there, then go on with "
        f"python train.py --run-dir {run.path}; what was saved before is whole",
    )


def test_a_line_of_the_log_that_does_not_fit_is_cut_off(small_disk, capsys):
    run = Run(small_disk / "run")
    run.begin({}, LABELS["shapes"])
    run.log({"step": 1})
    with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    assert run_command(lambda _: run.log({"step": 2, "long": "x" * 5000}), []) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: No space left on device: {run.log_path}: ") and "python train.py --run-dir" in line
    (small_disk / "filler").unlink()
    run.rewind_log(2)
    assert run.read_log() == [{"step": 1}]


def test_a_read_only_disk_is_one_line(small_disk, capsys):
    run = Run(small_disk / "run")
    run.begin({}, LABELS["shapes"])
    run.checkpoints().save(1, arrays(1))
    remount(small_disk, "ro")
    for write in (lambda _: run.rewind_log(0), lambda _: run.checkpoints().save(2, arrays(2)), lambda _: run.log({})):
        assert run_command(write, []) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: Read-only file system: {run.path}/") and ".unfinished" not in line
        assert line.endswith(f"make this one so and go on with python train.py --run-dir {run.path}\n")
    assert run.checkpoints().last(pytest.fail)[0] == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named_and_not_the_temporary_file(tmp_path, monkeypatch, capsys, number):
    """As above, where nothing can be mounted."""

    def refuse(dir, prefix, suffix):
        raise OSError(number, os.strerror(number), f"{dir}/{prefix}x{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    run = Run(tmp_path / "new")
    assert run_command(lambda _: run.begin({}, LABELS["shapes"]), []) == 2
    assert capsys.readouterr().err == (
        f"error: {os.strerror(number)}: {tmp_path}/new/environment.json: name a folder that can be written (--run-dir, --out), "
        "or make this one so and run the command again\n"
    )


@pytest.mark.parametrize("below", ["", "/run", "/a/b"])
def test_a_file_where_a_folder_should_be_is_one_line(tmp_path, capsys, below):
    (tmp_path / "file").write_text("mine")
    assert run_command(lambda _: Run(f"{tmp_path}/file{below}").begin({}, LABELS["shapes"]), []) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and f"{tmp_path}/file: expected a folder, received a file" in line and line.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


# The same with a training


def load_benchmark():
    """The long form of the test, whose parts the short one uses."""
    specification = importlib.util.spec_from_file_location("kill_test", ROOT / "benchmarks/kill_test.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_training_that_is_killed_and_restarted_ends_bit_for_bit_as_if_it_were_not(tmp_path):
    long = load_benchmark()
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    random.seed(2)
    kills = long.kill_and_restart(killed, 50, ["save", "anything", "save"], 1, 1.0, tmp_path / "output.txt")
    assert [kill.phase for kill in kills].count("save") >= 2 and kills[-1].step < 50
    for each in (killed, whole):
        assert run(train, *long.command(each, 50, 1)[2:]) == 0
    assert long.differences(killed, whole) == []
    # The comparison sees a difference: a single weight, and a temporary file.
    step, state = killed.checkpoints().last()
    name = next(name for name, value in state.items() if value.ndim == 4)
    state[name][0, 0, 0, 0] += 1e-6
    killed.checkpoints().save(step, state)
    (killed.path / ".unfinished-x.keras").touch()
    assert {line.split()[0] for line in long.differences(killed, whole)} == {
        "checkpoint:",
        str(killed.path / ".unfinished-x.keras"),
        "other",
    }


def test_where_one_of_two_workers_is_killed_the_other_ends_and_both_go_on_bit_for_bit(tmp_path):
    long, output = load_benchmark(), tmp_path / "output.txt"
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    workers = long.start(long.command(killed, 9, 2), 2, output)
    deadline = time.monotonic() + 120
    while not killed.checkpoints().last_step() and time.monotonic() < deadline:
        assert all(worker.poll() is None for worker in workers), output.read_text()
        time.sleep(0.002)
    workers[1].kill()
    assert long.end_others(workers, 1) == "exit 2"
    *steps, error = output.read_text().splitlines()
    assert error.startswith("error: another worker was lost") and "start all workers again" in error
    assert {line.split()[0] for line in steps} <= {"training", "step"}, "TensorFlow adds lines of its own"
    assert killed.checkpoints().last_step() < 9
    for each in (killed, whole):
        assert long.end_others(long.start(long.command(each, 9, 2), 2, output), -1) == "exit 0, exit 0", output.read_text()
    assert long.differences(killed, whole) == []


SHORT = (
    *(*TINY, "--crop-size", "32x32", "--iterations", "3", "--checkpoint-every", "1"),
    *("--validate-every", "3", "--validation-images", "1"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(train, *SHORT, "--run-dir", path) == 0
    return path


@pytest.fixture
def begun(finished, tmp_path):
    return Run(shutil.copytree(finished, tmp_path / "run"))


def test_a_training_whose_disk_is_full_is_one_line_and_goes_on_when_there_is_room(small_disk, finished, capsys):
    state = (finished / "checkpoints/step-00000003.npz").stat().st_size
    # For two states and a half: those of the beginning and of the first step.
    remount(small_disk, f"size={int(2.5 * state)}")
    path = small_disk / "run"
    assert run(train, *SHORT, "--run-dir", path) == 2
    assert capsys.readouterr().err == (
        f"error: No space left on device: {path}/checkpoints/step-00000002.npz: free some space there, then go on with "
        f"python train.py --run-dir {path}; what was saved before is whole\n"
    )
    assert names(path / "checkpoints") == ["index.json", "step-00000000.npz", "step-00000001.npz"]
    assert not list(path.rglob(".unfinished-*"))
    remount(small_disk, f"size={8 * state}")
    assert run(train, "--run-dir", path) == 0
    assert load_benchmark().differences(Run(path), Run(finished)) == []


def test_a_damaged_checkpoint_is_named_on_the_command_line_and_the_result_is_the_same(begun, finished, capsys):
    path = begun.path / "checkpoints/step-00000003.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert run(train, "--run-dir", begun.path) == 0
    assert f"{path.parent}: step-00000003.npz is damaged; taking step-00000002.npz" in "".join(capsys.readouterr())
    assert load_benchmark().differences(begun, Run(finished)) == []


def test_a_checkpoint_of_other_classes_is_one_line_and_stays(begun, capsys):
    step, state = begun.checkpoints().last()
    shortened = {name: value[..., :-1] if "score_fr" in name else value for name, value in state.items()}
    path = begun.checkpoints().save(step, shortened)
    content = path.read_bytes()
    assert run(train, "--run-dir", begun.path, "--iterations", "5") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "score_fr" in line and "another network" in line
    assert path.read_bytes() == content
