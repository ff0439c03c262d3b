"""Run directories that somebody or something damaged: one line for each, and no traceback."""

import json

import numpy as np
import pytest
from cli_helpers import TOY, run, toy_offered, tree
from PIL import Image

from kerasseg.cli import evaluate, export, plot_log, predict, train
from kerasseg.cli.running import run_command
from kerasseg.labels import LABELS
from kerasseg.recipes import Recipe
from kerasseg.runs import Run
from kerasseg.training import train_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    with toy_offered():
        train_recipe(Recipe(name="toys", **TOY).override(iterations=3), Run(path))
        yield path


@pytest.fixture
def whole(trained, tmp_path):
    """The parts of a run that can be damaged, the model among them."""
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


RECIPES = {
    "a list": b"[]",
    "nothing in it": b"{}",
    "no name": b'{"arch": "toy"}',
    "a name that is none": b'{"name": 3}',
    "a number": b"3",
    "empty": b"",
    "cut": b'{"name": "to',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "zeros": bytes(40),
    "unknown field": b'{"name": "toys", "colour": 1}',
    "wrong type": b'{"name": "toys", "batch_size": "two"}',
    "not finite": b'{"name": "toys", "arch": "toy", "learning_rate": NaN}',
}


@pytest.mark.parametrize("damage", RECIPES)
def test_a_damaged_recipe_is_one_line(whole, capsys, damage):
    (whole / "recipe.json").write_bytes(RECIPES[damage])
    before = tree(whole)
    commands = [(train, "--run-dir", whole), (train, "--run-dir", whole, "--dry-run")]
    if damage != "not finite":
        (whole / "log.jsonl").write_text("")
        before = tree(whole)
        commands += [(evaluate, whole), (predict, whole, whole, "--out", whole / "out"), (export, whole), (plot_log, whole)]
    for command in commands:
        assert run(*command) == 2, command
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
    assert tree(whole) == before


LABELLINGS = {
    "empty": b"",
    "cut": b'{"name": "shapes", "cla',
    "a list": b"[]",
    "no palette": b'{"name": "shapes", "classes": ["a"]}',
    "a colour too few": b'{"name": "shapes", "classes": ["a", "b"], "palette": [[0, 0, 0]]}',
    "no colours": b'{"name": "shapes", "classes": ["a"], "palette": [1]}',
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("damage", LABELLINGS)
def test_damaged_labels_are_one_line(whole, capsys, damage):
    (whole / "labels.json").write_bytes(LABELLINGS[damage])
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(whole / "photograph.png")
    for command in ((evaluate, whole), (predict, whole, whole / "photograph.png", "--out", whole / "out")):
        assert run(*command) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: {whole}/labels.json is damaged (") and line.count("\n") == 1


NO_RECORDS = ("3", "[]", "null", '"step"', "{}", '{"loss": 1.0}', '{"step": "2"}', '{"step": null}', "{", "\0\0\0", "[" * 100_000)


def test_what_is_no_record_is_left_out_of_the_log(whole, capsys):
    log = whole / "log.jsonl"
    records = Run(whole).read_log()
    lines = log.read_text().splitlines()
    assert len(lines) == len(records) == 3
    log.write_text("\n".join([*NO_RECORDS, lines[0], *NO_RECORDS, *lines[1:], *NO_RECORDS]))
    assert Run(whole).read_log() == records
    with open(log, "a") as file:
        file.write('\n{"step": 4}\n{"step": 5, "loss": "much"}\n{"step": 6, "loss": 1.0, "mean_iou": []}\n')
    assert run(plot_log, whole, "--out", whole / "curve.png") == 0 and (whole / "curve.png").is_file()
    assert [record["step"] for record in plot_log._read(Run(whole))[0]] == [1, 2, 3, 6]
    Run(whole).rewind_log(2)
    assert [json.loads(line) for line in log.read_text().splitlines()] == records[:2]
    log.write_text("\n".join(NO_RECORDS))
    assert run(plot_log, whole, "--out", whole / "none.png") == 2
    assert "has no log.jsonl with steps" in capsys.readouterr().err and not (whole / "none.png").exists()


# A file where a folder should be, and the other way round


@pytest.mark.parametrize("name", ["log.jsonl", "model.keras", "recipe.json"])
def test_nobody_is_told_to_move_a_file_of_a_healthy_run(whole, capsys, name):
    before = tree(whole)
    for command in (
        (train, "--arch", "toy", "--iterations", "1", "--run-dir", whole / name),
        (plot_log, whole, "--out", whole / name / "x.png"),
    ):
        assert run(*command) == 2
        line = capsys.readouterr().err
        assert f"{whole}/{name}: expected a folder, received a file of the run there: name another" in line
        assert line.count("\n") == 1 and "move the" not in line and "go on with" not in line
    assert tree(whole) == before


def test_a_file_where_a_run_keeps_a_folder_may_be_moved(tmp_path, capsys):
    healthy = Run(tmp_path / "run")
    healthy.begin({"name": "x"}, LABELS["shapes"])
    (healthy.path / "checkpoints").write_text("mine")
    assert run_command(lambda _: healthy.checkpoints().save(1, {}), []) == 2
    line = capsys.readouterr().err
    assert line.endswith(
        f": {healthy.path}/checkpoints: expected a folder, received a file: name another (--run-dir, --out) or move the file away, "
        "then run the command again\n"
    )


def test_a_folder_where_a_file_should_be_is_one_line(whole, capsys):
    (whole / "folder").mkdir()
    assert run(plot_log, whole, "--out", whole / "folder") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: Is a directory: {whole}/folder: expected a file, received a folder: name another (--out), then")
