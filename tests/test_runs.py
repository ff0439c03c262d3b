import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.labels import LABELS
from kerasseg.recipes import RECIPES
from kerasseg.runs import Checkpoints, Preempted, Run, atomic_path, new_run_path, newest_run, write_json

ROOT = Path(__file__).resolve().parent.parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def arrays(step):
    return {"model/w": np.full((2, 3), step, np.float32), "step": np.array(step)}


def saved(folder, *scores, keep=2):
    """Checkpoints of the steps 10, 20, …, one for each score."""
    checkpoints = Checkpoints(folder, keep)
    for number, score in enumerate(scores, start=1):
        checkpoints.save(10 * number, arrays(10 * number), score)
    return checkpoints


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_atomic_path_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "scores.tar.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".tar.gz")
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one" and names(path.parent) == ["scores.tar.gz"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(Path(os.readlink(f"/proc/self/fd/{file}"))), sync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("a")
    assert done == [temporary, "replace", tmp_path]


@pytest.mark.parametrize("before", ["old", None])
def test_atomic_path_leaves_everything_as_it_was_after_an_exception(tmp_path, before):
    path = tmp_path / "a.json"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == (["a.json"] if before else [])
    assert not before or path.read_text() == before


def test_write_json_refuses_what_json_has_not_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and names(tmp_path) == ["a.json"]


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path, 0.1, 0.9, None, 0.3, 0.2)
    assert names(tmp_path) == ["index.json", "step-00000020.npz", "step-00000040.npz", "step-00000050.npz"]
    for (step, found), expected in ((checkpoints.last(), 50), (checkpoints.best(), 20)):
        assert step == expected
        assert set(found) == {"model/w", "step"} and found["model/w"].dtype == np.float32
        np.testing.assert_array_equal(found["model/w"], np.full((2, 3), expected))


def test_more_can_be_kept_and_without_scores_the_newest_is_the_best(tmp_path):
    checkpoints = saved(tmp_path, None, None, None, None, keep=3)
    assert names(tmp_path) == ["index.json", *(f"step-000000{step}.npz" for step in (20, 30, 40))]
    assert checkpoints.best()[0] == 40


def test_a_score_that_is_no_number_is_none(tmp_path):
    assert saved(tmp_path, 0.5, float("nan"), 0.4, keep=1).best()[0] == 10


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, None)
    for name in (".unfinished-a.npz", ".unfinished-b.json", "step-00000099.npz"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoints.last_step() == 10 and Checkpoints(tmp_path / "none").last_step() == 0
    checkpoints.save(20, arrays(20))
    assert names(tmp_path) == ["index.json", "step-00000010.npz", "step-00000020.npz"]
    assert checkpoints.last_step() == 20


def test_a_state_can_be_checked_alone_and_read_by_others(tmp_path):
    values = {
        "model/0/a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.array(7),
        "c": np.zeros((0, 3), np.int64),
        "d": np.array([True, False]),
        "e": np.arange(3, dtype=np.uint32),
    }
    path = Checkpoints(tmp_path).save(3, values, np.float32(0.5))
    content = path.read_bytes()
    assert hashlib.sha256(content[:-64] + b"0" * 64).hexdigest().encode() == content[-64:]
    assert json.loads(content[-128:-72]) == {"step": 3, "score": 0.5}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with np.load(path) as found:
        assert list(found) == list(values)
        for name, value in values.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("index", [None, b"", b"{", b"[1]", b'["step-x.npz"]', b"\xff\xfe"])
def test_without_its_index_every_state_is_found(tmp_path, index):
    checkpoints = saved(tmp_path, 0.9, 0.2, 0.3)
    path = tmp_path / "index.json"
    path.unlink() if index is None else path.write_bytes(index)
    notices = []
    assert (checkpoints.last(notices.append)[0], checkpoints.best(notices.append)[0]) == (30, 10) and not notices
    checkpoints.save(40, arrays(40))
    assert names(tmp_path) == ["index.json", *(f"step-000000{step}.npz" for step in (10, 30, 40))]


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    checkpoints = saved(tmp_path, 0.1, 0.2, 0.9, keep=3)
    damage(tmp_path / "step-00000030.npz")
    for read in (checkpoints.last, checkpoints.best):
        notices = []
        assert read(notices.append)[0] == 20
        assert notices == [f"{tmp_path}: step-00000030.npz is damaged; taking step-00000020.npz"]
    (tmp_path / "step-00000020.npz").unlink()
    notices = []
    assert checkpoints.last(notices.append)[0] == 10
    assert "step-00000030.npz is damaged, step-00000020.npz is missing; taking step-00000010.npz" in notices[0]


def test_the_notice_is_logged_where_nobody_asks_for_it(tmp_path, caplog):
    checkpoints = saved(tmp_path, None, None)
    (tmp_path / "step-00000020.npz").unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.last()[0] == 10
    assert caplog.messages == [f"{tmp_path}: step-00000020.npz is missing; taking step-00000010.npz"]


def test_every_cut_and_every_flipped_bit_shows(tmp_path):
    checkpoints = saved(tmp_path, 0.1, 0.9)
    path = tmp_path / "step-00000020.npz"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    bits = [
        (int(byte), int(bit))
        for byte, bit in zip(generator.integers(0, len(whole), 300), generator.integers(0, 8, 300), strict=True)
    ]
    bits += [(byte, bit) for byte in range(len(whole) - 140, len(whole)) for bit in range(8)]
    damaged = [whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :] for byte, bit in bits]
    damaged += [whole[:length] for length in {*map(int, generator.integers(0, len(whole), 100)), 0, 1, 127, 128, len(whole) - 1}]
    damaged += [whole + b"\0", whole + whole[-128:], bytes(len(whole))]
    for content in damaged:
        path.write_bytes(content)
        for read in (checkpoints.last, checkpoints.best):
            notices = []
            assert read(notices.append)[0] == 10 and len(notices) == 1, content[-128:]
        checkpoints.last_step()
    path.write_bytes(whole)
    assert checkpoints.last(pytest.fail)[0] == 20


def test_a_damaged_end_is_not_counted_among_the_last(tmp_path):
    checkpoints = saved(tmp_path, 0.1, 0.2)
    path = tmp_path / "step-00000020.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.last_step() == 10
    checkpoints.save(30, arrays(30))
    assert names(tmp_path) == ["index.json", "step-00000010.npz", "step-00000030.npz"]


def test_nothing_but_damage_is_an_error_and_nothing_at_all_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").last() is None and Checkpoints(tmp_path / "none").best() is None
    checkpoints = saved(tmp_path, None, None)
    for file in tmp_path.glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(KerassegError, match="all 2 checkpoints are damaged"):
        checkpoints.last()


def test_a_run_that_goes_back_forgets_the_steps_after(tmp_path):
    checkpoints = saved(tmp_path, None, None, None)
    checkpoints.save(20, arrays(21))
    assert names(tmp_path) == ["index.json", "step-00000020.npz"]
    step, found = checkpoints.last()
    assert step == 20 and found["step"] == 21


def test_a_run_is_begun_when_its_recipe_is_there(tmp_path):
    run = Run(tmp_path / "run")
    assert not run.exists and run.labels() is None
    with pytest.raises(KerassegError, match="is not a run directory"):
        run.recipe()
    recipe = RECIPES["shapes"].to_json()
    run.begin(recipe, LABELS["shapes"])
    assert run.exists and run.recipe() == recipe
    assert run.labels().classes == LABELS["shapes"].classes and run.labels().palette == LABELS["shapes"].palette
    assert {"date", "python", "packages"} <= set(json.loads((run.path / "environment.json").read_text()))
    run.recipe_path.write_text("{")
    with pytest.raises(KerassegError, match="is not JSON"):
        run.recipe()


def test_the_log_survives_a_crash_and_is_rewound(tmp_path):
    run = Run(tmp_path)
    assert run.read_log() == []
    records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for record in records:
        run.log(record)
    with open(run.log_path, "a") as file:
        file.write('{"step": 4, "lo')
    assert run.read_log() == records
    run.rewind_log(2)
    assert run.log_path.read_text() == "".join(json.dumps(record) + "\n" for record in records[:2])
    run.log({"step": 3, "loss": 0.0})
    assert run.read_log() == [*records[:2], {"step": 3, "loss": 0.0}]


def test_what_a_killed_process_left_goes_when_the_run_goes_on(tmp_path):
    run = Run(tmp_path / "run")
    for begin in (lambda: run.begin({}, LABELS["shapes"]), lambda: run.rewind_log(1)):
        for name in (".unfinished-a.json", ".unfinished-b.keras"):
            run.path.mkdir(exist_ok=True)
            (run.path / name).write_text("half")
        begin()
        assert not [name for name in names(run.path) if name.startswith(".")]
    run.checkpoints().save(1, arrays(1))
    (run.path / "checkpoints/.unfinished-c.json").write_text("half")
    run.log_path.write_bytes(b'{"step": 1}\n{"step": 2, "\xff\0\0')
    run.rewind_log(1)
    assert names(run.path / "checkpoints") == ["index.json", "step-00000001.npz"] and run.read_log() == [{"step": 1}]


def test_a_stage_is_a_run_inside_the_run_that_a_person_resumes(tmp_path):
    whole = Run(tmp_path / "two words")
    stage = whole.stage(2, "fcn16s")
    assert stage.path == tmp_path / "two words/stages/2-fcn16s"
    for run in (whole, stage):
        run.begin({}, LABELS["shapes"])
    assert newest_run(tmp_path).path == whole.path
    assert stage.resume_command == whole.resume_command == f"python train.py --run-dir '{whole.path}'"
    assert str(Preempted(stage, 40)) == f"stopped by SIGTERM, saved after step 40; to go on: {whole.resume_command}"


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    run = Run(tmp_path)
    run.save_model(lambda path: path.write_text(path.suffix))
    assert run.model_path.read_text() == ".keras"

    def fail(path):
        path.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run.save_model(fail)
    assert run.model_path.read_text() == ".keras" and names(tmp_path) == ["model.keras"]


def test_the_newest_run_is_the_one_begun_last(tmp_path):
    with pytest.raises(KerassegError, match="no run under"):
        newest_run(tmp_path)
    for age, name in ((30, "a"), (10, "b"), (20, "c")):
        run = Run(tmp_path / name)
        run.begin({}, LABELS["shapes"])
        os.utime(run.recipe_path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "not_begun").mkdir()
    assert newest_run(tmp_path).path == tmp_path / "b"


def test_a_new_run_never_gets_the_directory_of_another(tmp_path):
    paths = []
    for _ in range(3):
        path = new_run_path("fcn8s", tmp_path)
        path.mkdir()
        paths.append(path.name)
    assert len(set(paths)) == 3 and all(name.startswith("fcn8s-") for name in paths)
