"""`train.py --dry-run`: it refuses whatever the real command would, at no cost to the disk."""

import shutil
import sys

import pytest
from cli_helpers import TINY, TOY, run, toy_offered, tree

from kerasseg.cli import train
from kerasseg.recipes import Recipe, Stage
from kerasseg.runs import Run
from kerasseg.training import train_recipe
from kerasseg.training.dry_run import dry_run, dry_run_all

ONE = Recipe(name="one_toy", **TOY)
TWO = Recipe(name="two_toys", **TOY, stages=(Stage(name="a"), Stage(name="b", changes={"batch_size": 1})))


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(one_toy="test_dry_run:ONE", two_toys="test_dry_run:TWO"):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs: of four steps, of two, of stage a, of both stages; one that says to be of another network, one of cut states."""
    root = tmp_path_factory.mktemp("dry")
    train_recipe(ONE, Run(root / "four"))
    train_recipe(ONE.override(iterations=2), Run(root / "two"))
    train_recipe(TWO, Run(root / "staged"), stage="a")
    train_recipe(TWO, Run(root / "whole"))
    shutil.copytree(root / "four", root / "wide")
    text = (root / "four/recipe.json").read_text()
    (root / "wide/recipe.json").write_text(text.replace('"arguments": {}', '"arguments": {"trunks": ["", "x"]}'))
    shutil.copytree(root / "four", root / "cut")
    for path in (root / "cut/checkpoints").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-9])
    return root


NAMED = ("--recipe", "one_toy")
STAGED = ("--recipe", "two_toys")
MISTAKES = {
    "no weights": (*TINY, "--weights", "{place}/none.keras"),
    "weights of another network": (*TINY, "--weights", "{place}/four/model.keras"),
    "weights of other widths": (*TINY, "--weights", "imagenet"),
    "no init": (*NAMED, "--init", "{place}/none"),
    "another seed": ("--run-dir", "{place}/four", "--seed", "3"),
    "another batch size": ("--run-dir", "{place}/staged", "--stage", "a", "--batch-size", "4"),
    "fewer iterations": ("--run-dir", "{place}/four", "--iterations", "3"),
    "another network": (
        "--run-dir",
        "{place}/wide",
    ),
    "damaged checkpoints": ("--run-dir", "{place}/cut", "--iterations", "9"),
    "another recipe": ("--recipe", "two_toys", "--run-dir", "{place}/four"),
    "a stage without those before it": (*STAGED, "--stage", "b"),
    "a stage that is none": (*STAGED, "--stage", "c"),
    "replicas": (*NAMED, "--replicas", "2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_refuses_what_the_training_would_in_the_same_words(place, capsys, monkeypatch, tmp_path, mistake):
    monkeypatch.chdir(tmp_path)
    arguments = [text.replace("{place}", str(place)) for text in MISTAKES[mistake]]
    # Neither may write, and the names of new runs hold the time.
    monkeypatch.setattr(train, "new_run_path", lambda name: tmp_path / "runs/new")
    before, lines = tree(place), []
    for dry in ((), ("--dry-run",)):
        assert run(train, *arguments, *dry) == 2
        lines.append(capsys.readouterr().err)
    assert lines[0] == lines[1] and lines[0].startswith("error: ") and lines[0].count("\n") == 1
    assert tree(place) == before and not list(tmp_path.iterdir())


def test_it_counts_from_where_the_run_stands(place):
    finished, nine = [dry_run(ONE.override(iterations=count), run=Run(place / "four")) for count in (4, 9)]
    assert finished.total == 0
    assert nine.total == pytest.approx(nine.first_step + 4 * nine.step + nine.save)


def test_it_looks_at_the_stages_that_are_left(place, capsys, tmp_path):
    before = tree(place)
    # b would start from a, all of whose layers it has.
    found = dry_run_all(TWO, Run(place / "staged"))
    assert list(found) == ["b"] and found["b"].new_layers == [] and found["b"].images_per_step == 1
    assert list(dry_run_all(TWO, Run(place / "staged"), stage="b")) == ["b"]
    assert dry_run_all(TWO, Run(place / "whole")) == {}
    new = dry_run_all(TWO, Run(tmp_path / "new"))
    assert list(new) == ["a", "b"] and new["b"].new_layers is None
    assert run(train, "--run-dir", place / "whole", "--dry-run") == 0
    assert f"every stage is finished in {place / 'whole'}" in capsys.readouterr().out
    assert tree(place) == before and not (tmp_path / "new").exists()


def test_one_strategy_serves_all_stages(monkeypatch, tmp_path):
    """The workers of a cluster can join once in a process."""
    # The package has a function of the same name.
    made, module = [], sys.modules["kerasseg.training.dry_run"]

    def count(name, **options):
        made.append(name)
        return original(name, **options)

    original = module.make_strategy
    monkeypatch.setattr(module, "make_strategy", count)
    assert list(dry_run_all(TWO, Run(tmp_path / "new"))) == ["a", "b"] and made == ["one"]
