"""What the tests of the command lines share: a small data set on disk, and ways to run a command."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import kerasseg
from kerasseg.cli.running import run_command
from kerasseg.data import open_data
from kerasseg.layers import Conv2D, Preprocessing
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
# A step takes milliseconds.
TINY = ("--arch", "fcn8s", "--width-multiplier", "0.0625", "--batch-size", "2", "--iterations", "2", "--validate-every", "none")


def write_camvid(root: Path) -> Path:
    """Writes drawn pictures as CamVid is laid out: lossless, 11 = ignore, no two sizes alike in a split's validation."""
    for split, count in (("train", 6), ("val", 4)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            example = open_data("shapes", split=split, size=(40 + index, 48), length=count)[index]
            Image.fromarray(example.image).save(root / "images" / split / f"{example.id}.png")
            mask = np.where(example.label == 255, 11, example.label).astype(np.uint8)
            Image.fromarray(mask).save(root / "masks" / split / f"{example.id}.png")
    return root


def on(data_dir) -> tuple[str, ...]:
    """Options that train on such a data set."""
    return ("--data", "camvid", "--data-dir", str(data_dir), "--crop-size", "32x32")


def run(command, *arguments) -> int:
    """Runs a command in this process, as its script does."""
    return run_command(command.run, [str(argument) for argument in arguments])


def start(script: str, *arguments, cwd=None) -> subprocess.Popen:
    """Starts a script of the repository in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(script: str, *arguments, cwd=None) -> tuple[int, str, str]:
    """Runs a script to its end: exit code, stdout, stderr."""
    process = start(script, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def tree(root: Path) -> dict[str, int]:
    """Every file and folder below a folder, with its time of change."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


# A network that is built and compiled in no time, for tests of what happens around the network.


def toy(num_classes=6, *, preprocessing="torch", width_multiplier=1.0, weights=None, trunks=("",), input_shape=(None, None, 3)):
    """One convolution for each trunk, `first` and its name; then batch normalization, dropout and `score`."""
    image = keras.Input(input_shape, name="image")
    scaled = Preprocessing.of(preprocessing)(image)
    features = [Conv2D(4, 3, padding="same", activation="relu", name=f"first{trunk}")(scaled) for trunk in trunks]
    x = features[0] if len(features) == 1 else keras.layers.add(features)
    x = keras.layers.Dropout(0.2, name="drop")(keras.layers.BatchNormalization(name="bn")(x))
    return keras.Model(image, Conv2D(num_classes, 1, name="score")(x), name="toy")


TOY = {"arch": "toy", "data": "shapes", "image_scale": 0.25, "batch_size": 2, "iterations": 4, "learning_rate": 0.01}


@contextmanager
def toy_offered(**recipes):
    """Puts the toy network, and recipes by their names, into the tables that the command lines use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS._locations, "toy", "cli_helpers:toy")
        for name, location in recipes.items():
            patch.setitem(RECIPES._locations, name, location)
        yield


def weights_of(path, *layers) -> list[np.ndarray]:
    """The weights of a model or run: of some of its layers, or of all."""
    model = kerasseg.load_model(path)
    return [weight for name in layers for weight in model.get_layer(name).get_weights()] if layers else model.get_weights()


def assert_equal(received, expected) -> None:
    """Demands that weights are the same, bit for bit."""
    assert len(received) == len(expected) > 0
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def states(path) -> list[str]:
    """Names of the checkpoints of a run."""
    return sorted(file.name for file in (path / "checkpoints").glob("step-*.npz"))
