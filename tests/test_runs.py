import json
import os

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.labels import LABELS
from kerasseg.recipes import RECIPES
from kerasseg.runs import Checkpoints, Run, atomic_path, new_run_path, newest_run, write_json


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
    index = json.loads((tmp_path / "index.json").read_text())
    assert [(entry["step"], entry["score"]) for entry in index] == [(20, 0.9), (40, 0.3), (50, 0.2)]
    for (step, found), expected in ((checkpoints.last(), 50), (checkpoints.best(), 20)):
        assert step == expected
        assert set(found) == {"model/w", "step"} and found["model/w"].dtype == np.float32
        np.testing.assert_array_equal(found["model/w"], np.full((2, 3), expected))


def test_more_can_be_kept_and_without_scores_the_newest_is_the_best(tmp_path):
    checkpoints = saved(tmp_path, None, None, None, None, keep=3)
    assert names(tmp_path) == ["index.json", *(f"step-000000{step}.npz" for step in (20, 30, 40))]
    assert checkpoints.best()[0] == 40


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.ones(2)})
    for name in (".half.npz", "step-00000099.npz"):
        (tmp_path / name).write_bytes(b"half")
    checkpoints.save(2, {"a": np.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "step-00000001.npz", "step-00000002.npz"]
    assert checkpoints.last_step() == 2 and Checkpoints(tmp_path / "none").last_step() == 0


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    checkpoints = saved(tmp_path, 0.1, 0.2, 0.9, keep=3)
    damage(tmp_path / "step-00000030.npz")
    assert checkpoints.last()[0] == 20
    assert checkpoints.best()[0] == 20
    (tmp_path / "step-00000020.npz").unlink()
    assert checkpoints.last()[0] == 10


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
    assert [entry["step"] for entry in json.loads((tmp_path / "index.json").read_text())] == [20]
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
