"""SIGTERM: training stops after its step, saves, and says how to go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from cli_helpers import ROOT, TINY, run, start

from kerasseg.cli import train
from kerasseg.cli.running import run_command
from kerasseg.runs import Preempted, Run
from kerasseg.training.preemption import Preemption


@pytest.fixture
def died():
    """What came through to the handler that was there before, which would have ended the process."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_the_first_signal_is_noted_and_the_second_goes_through(died):
    with Preemption() as preemption:
        assert not preemption.requested
        send()
        assert preemption.requested and not died
        send()
        assert died == [signal.SIGTERM]


def test_before_and_after_it_nothing_is_held_back(died):
    preemption = Preemption()
    send()
    with pytest.raises(RuntimeError), preemption:
        raise RuntimeError
    send()
    assert len(died) == 2 and not preemption.requested


def test_another_signal_is_none_of_its_business(died, request):
    # A shell's background job ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
        send(signal.SIGINT)
        # Python looks for signals between two instructions.
        time.sleep(1)
    assert not preemption.requested


def test_a_handler_that_python_did_not_install_becomes_the_systems_own(monkeypatch, died):
    handlers = []
    monkeypatch.setattr("signal.signal", lambda number, handler: handlers.append(handler))
    with Preemption() as preemption:
        preemption._note(signal.SIGTERM, None)
    assert handlers[1:] == [signal.SIG_DFL, signal.SIG_DFL] and preemption.requested


def test_in_another_thread_nothing_is_installed(died):
    seen = []

    def enter():
        with Preemption() as preemption:
            seen.append(signal.getsignal(signal.SIGTERM))
            send()
            seen.append(preemption.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False] and len(died) == 1


def test_the_exit_code_is_143_with_one_line(tmp_path, capsys):
    def stop(arguments):
        raise Preempted(Run(tmp_path / "a run").stage(2, "fcn16s"), 7)

    assert run_command(stop, []) == 143
    assert (
        capsys.readouterr().err
        == f"stopped by SIGTERM, saved after step 7; to go on: python train.py --run-dir '{tmp_path}/a run'\n"
    )


UNWOUND = """
import os, signal, sys
from kerasseg.cli.running import run_command, start_tensorflow
from kerasseg.runs import atomic_path

def write(arguments):
    if "distributed" in arguments:
        sys.modules["tensorflow"] = None
        start_tensorflow(distributed=True)
    with atomic_path("labels.npy") as path:
        path.write_bytes(b"half")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            if "again" in arguments:
                os.kill(os.getpid(), signal.SIGTERM)

code = run_command(write)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("how", "code", "line"), [("once", 143, "stopped by SIGTERM\n"), ("again", -15, ""), ("distributed", -15, "")]
)
def test_other_commands_leave_nothing_half_written(tmp_path, how, code, line):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UNWOUND, how]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, line)
    # Of several processes that wait for each other, and if asked twice, each ends at once, whatever it does.
    assert len(list(tmp_path.iterdir())) == (0 if how == "once" else 1)


def test_a_handler_of_somebody_else_stays(died):
    seen = []
    assert run_command(lambda _: (send(), seen.append(len(died))), []) == 0
    assert seen == [1]


def test_a_command_in_another_thread_installs_nothing(monkeypatch):
    codes = []
    monkeypatch.setattr("signal.getsignal", lambda number: signal.SIG_DFL)
    thread = threading.Thread(target=lambda: codes.append(run_command(lambda _: None, [])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_the_command_lines_know_it_without_tensorflow():
    code = "import sys, kerasseg.cli.train; print('tensorflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_a_training_stops_after_its_step_and_goes_on_to_the_same_result(tmp_path, capsys):
    options = (*TINY, "--crop-size", "32x32", "--iterations", "60", "--checkpoint-every", "50", "--seed", "3")
    stopped, whole = Run(tmp_path / "stopped"), Run(tmp_path / "whole")
    process = start("train.py", *options, "--run-dir", stopped.path)
    while len(stopped.read_log()) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.terminate()
    _, err = process.communicate()
    step = stopped.checkpoints().last_step()
    assert (process.returncode, err.splitlines()[-1]) == (
        143,
        f"stopped by SIGTERM, saved after step {step}; to go on: python train.py --run-dir {stopped.path}",
    )
    # Neither the first one, which is saved at once, nor a regular one.
    assert 3 <= step < 50 and stopped.read_log()[-1]["step"] == step and not stopped.model_path.exists()
    for record in (stopped, whole):
        assert run(train, *options, "--run-dir", record.path) == 0
    states = [record.checkpoints().last() for record in (stopped, whole)]
    assert states[0][0] == states[1][0] == 60
    for one, other in zip(states[0][1].values(), states[1][1].values(), strict=True):
        assert (one == other).all()
    assert json.dumps(stopped.read_log()) == json.dumps(whole.read_log())
