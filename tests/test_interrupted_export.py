"""An export that is killed, stopped or not alone in its folder: whole files, and nothing of others is touched."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import give_random_weights
from test_export import export, tiny

from kerasseg import KerassegError
from kerasseg.export import check_file, exporting
from kerasseg.runs.files import sweep
from kerasseg.runtimes import open_file


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def other():
    return give_random_weights(tiny(), seed=1)


_PROGRAM = """
import sys, time
sys.path.insert(0, "tests")
from kerasseg.export import parity
from test_export import export, tiny
import kerasseg.export.exporting as exporting
def wait(*arguments):
    # In the gate: the file is written, under its temporary name.
    print("in the gate", flush=True)
    time.sleep(60)
exporting.measure_parity = wait
from kerasseg.cli.running import run_command
model = tiny()
sys.exit(run_command(lambda _: export(model, sys.argv[1], format="tflite"), []))
"""


def test_killed_half_way(tmp_path, model):
    path = tmp_path / "model.tflite"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "TF_CPP_MIN_LOG_LEVEL": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"in the gate\n"
    (stray,) = tmp_path.iterdir()
    assert stray.name.startswith(f".unfinished-{process.pid}-")
    # As long as it lives, it is left to it.
    sweep(tmp_path, ".tflite")
    assert list(tmp_path.iterdir()) == [stray]
    process.kill()
    assert process.wait(120) == -signal.SIGKILL
    process.stdout.close()
    assert list(tmp_path.iterdir()) == [stray]
    export(model, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.json", "model.tflite"]


@pytest.mark.parametrize(("format", "name"), [("tflite", "model.tflite"), ("saved_model", "model")])
def test_stopped_half_way(tmp_path, monkeypatch, model, format, name):
    """Ctrl-C, and SIGTERM by `run_command`, unwind."""

    def stop(*arguments):
        assert len(list(tmp_path.iterdir())) == 1
        raise SystemExit(143)

    monkeypatch.setattr(exporting, "measure_parity", stop)
    with pytest.raises(SystemExit):
        export(model, tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


def test_killed_between_the_description_and_the_file(tmp_path, monkeypatch, model, other):
    path = tmp_path / "model.tflite"
    export(other, path)
    write = exporting.write_json

    def write_and_die(where, values):
        write(where, values)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exporting, "write_json", write_and_die)
        export(model, path)
    # The older file is whole, and told from the one that never came.
    with pytest.raises(KerassegError, match="the export was interrupted; export it again"):
        open_file(path)
    export(model, path)
    assert check_file(path, model).relative_error < 1e-4


def test_what_others_write_is_not_swept(tmp_path, model):
    # A training run keeps its own temporary files where a file may be exported to.
    mine, theirs = tmp_path / ".unfinished-a.tflite", tmp_path / ".unfinished-b.npz"
    for stray in (mine, theirs):
        stray.write_bytes(b"")
    # Of a process that lives, of one that does not, and of this one's number before a restart.
    living, dead, reborn = (tmp_path / f".unfinished-{number}-d.tflite" for number in (os.getppid(), 1 << 30, os.getpid()))
    for stray in (living, dead, reborn):
        stray.write_bytes(b"")
    half = tmp_path / ".unfinished-c.directory" / "new"
    half.mkdir(parents=True)
    (half / "saved_model.pb").write_bytes(b"")
    export(model, tmp_path / "model.tflite")
    assert theirs.exists() and not mine.exists() and half.exists()
    assert living.exists() and not dead.exists() and not reborn.exists()
    export(model, tmp_path / "saved", format="saved_model")
    assert theirs.exists() and not half.parent.exists()


@pytest.mark.parametrize(("format", "suffix"), [("tflite", ".tflite"), ("saved_model", "")])
def test_two_exports_into_one_folder_at_once(tmp_path, monkeypatch, model, format, suffix):
    right = exporting.measure_parity

    def meanwhile(*arguments):
        monkeypatch.setattr(exporting, "measure_parity", right)
        export(model, tmp_path / f"b{suffix}", format=format)
        return right(*arguments)

    monkeypatch.setattr(exporting, "measure_parity", meanwhile)
    export(model, tmp_path / f"a{suffix}", format=format)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "b"} and open_file(tmp_path / f"a{suffix}")
