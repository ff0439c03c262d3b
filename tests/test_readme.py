"""The examples of README.md run as they stand there, with fewer steps and a narrower network."""

import re

import keras
import numpy as np
import pytest
from cli_helpers import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SHORTER = {
    "steps_per_epoch=100, epochs=3": "steps_per_epoch=1, epochs=2",
    'evaluation_batches(open_data("shapes", split="val"), 8)': 'evaluation_batches(open_data("shapes", split="val", length=2), 2)',
    "width_multiplier=0.25": "width_multiplier=0.0625",
    "trainer.train(feed, 20)": "trainer.train(feed, 2)",
    "data, 8,": "data, 2,",
    "data, 4,": "data, 2,",
}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example in an empty folder, and gives what its names stand for."""
    monkeypatch.chdir(tmp_path)

    def run(block):
        for full, short in SHORTER.items():
            block = block.replace(full, short)
        names = {}
        exec(compile(block, "README.md", "exec"), names)
        return names

    return run


def test_every_example_is_run():
    assert len(BLOCKS) == 4 and all(any(full in block for block in BLOCKS) for full in SHORTER)


def test_the_example_of_keras_training_runs(example, tmp_path, capsys):
    names = example(BLOCKS[0])
    out = capsys.readouterr().out
    assert "Epoch 2/2" in out and "mean_iou" in out.splitlines()[-1]
    assert keras.models.load_model(tmp_path / "shapes.keras").name == "fcn8s"
    assert names["label"].shape == names["photo"].shape[:2] and names["picture"].shape == names["photo"].shape
    assert names["picture"].dtype == np.uint8


def test_the_example_of_the_trainer_runs(example, capsys):
    names = example(BLOCKS[1])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(step) for step, _ in lines] == [1, 2] and all(np.isfinite(float(loss)) for _, loss in lines)
    assert names["trainer"].step == 2


def test_the_example_of_the_crf_runs(example):
    names = example(BLOCKS[2])
    assert names["marginals"].shape == names["logits"].shape == names["refined"].shape[1:]
    np.testing.assert_allclose(names["marginals"].sum(-1), 1, atol=1e-5)
    assert names["model"].layers[-1].name == "inference1"


def test_the_example_of_atrous_convolution_runs(example):
    names = example(BLOCKS[3])
    dense, coarse = (names[name].compute_output_shape((1, 65, 97, 3)) for name in ("features", "classifier"))
    assert tuple(-(-n // 4) for n in dense["8"][1:3]) == coarse[1:3] and dense["8"][1:3] != coarse[1:3]
