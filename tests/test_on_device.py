"""The guide docs/on_device.md: its program runs, and does what the library does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from cli_helpers import ROOT
from helpers import give_random_weights
from PIL import ExifTags, Image
from test_web_page import SIZE, network

import kerasseg
from kerasseg.cli import evaluate, export, predict, train, web_page
from kerasseg.cli.demo import DEMO_NETWORK, drawings
from kerasseg.export import Target, export_model
from kerasseg.labels import generic_table

GUIDE = (ROOT / "docs/on_device.md").read_text()
EXAMPLE = re.search(r"<!-- example.*?-->\n```python\n(.*?)```", GUIDE, re.DOTALL).group(1)
ORIENTATION = ExifTags.Base.Orientation
# All that must not be needed.
BLOCKED = "import sys\nfor name in ('tensorflow', 'keras', 'kerasseg', 'torch', 'jax'): sys.modules[name] = None\n"


def run_example(folder: Path, model: Path, picture: np.ndarray, *, turned: bool = False) -> tuple[np.ndarray, str]:
    if turned:
        # As of a phone held upright: it lies on its side, and says so.
        lying = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
        lying.getexif()[ORIENTATION] = 6
        lying.save(folder / "photo.png", exif=lying.getexif())
    else:
        Image.fromarray(picture).save(folder / "photo.png")
    (folder / "example.py").write_text(BLOCKED + EXAMPLE)
    command = [sys.executable, "-W", "error", "example.py", str(model), "photo.png", "mask.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "mask.png")), done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    calibration = [image.astype("float32") for image in drawings(8, SIZE)]
    for name, target in {
        "int8": Target(quantize="int8", input_size=SIZE),
        "labels": Target(quantize="int8", input_size=SIZE, result="labels"),
        "coarse": Target(input_size=SIZE, result="coarse_labels"),
    }.items():
        export_model(
            network(),
            root / f"{name}.tflite",
            target,
            labels=generic_table("abcdef"),
            images=calibration[:2] if target.int8 else (),
            calibration=calibration if target.int8 else (),
            measure_latency=False,
        )
    # The first of two heads, of classes without names, is the last by name.
    image = keras.Input((None, None, 3), name="image")
    heads = {name: keras.layers.Conv2D(count, 3, padding="same")(image) for name, count in (("semantic", 6), ("geometric", 3))}
    two = give_random_weights(keras.Model(image, heads, name="two"))
    export_model(two, root / "two.tflite", Target(input_size=SIZE), measure_latency=False)
    return root


@pytest.mark.parametrize("name", ["demo", "int8", "labels", "coarse", "two"])
def test_the_program_labels_as_the_library_does(files, tmp_path, name):
    model = DEMO_NETWORK if name == "demo" else files / f"{name}.tflite"
    picture = drawings(1, (70, 100))[0]
    mask, out = run_example(tmp_path, model, picture, turned=name == "demo")
    expected = kerasseg.predict(kerasseg.load_model(model), picture)
    assert mask.shape == expected.shape and len(np.unique(expected)) > 1
    # Class numbers are enlarged by nearest cells there and as scores of 0 and 1 here: edges may lie a pixel apart.
    assert (mask == expected).mean() >= {"demo": 0.995, "int8": 0.985, "two": 0.985}.get(name, 0.95)
    shares = [float(line.rsplit(":", 1)[1].rstrip(" %")) for line in out.splitlines()]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    if name == "two":
        assert len(shares) == expected.max() + 1 > 3 and out.startswith("class 0: ")
    else:
        assert len(shares) == 6


def test_the_commands_exist():
    tools = {"export": export, "evaluate": evaluate, "predict": predict, "train": train, "web_page": web_page}
    commands = re.findall(r"^python (?:tools/)?(\w+)\.py (.*?)(?:#.*)?$", GUIDE, re.MULTILINE)
    assert len(commands) >= 8
    for tool, arguments in commands:
        known = {option for action in tools[tool].parser()._actions for option in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known, (tool, arguments)
    # In the text, too; those of Android's tool have underscores.
    every = {option for tool in tools.values() for action in tool.parser()._actions for option in action.option_strings}
    mentioned = {option for option in re.findall(r"--[a-z][a-z_-]*", GUIDE) if "_" not in option}
    assert mentioned - {"--graph"} <= every


def test_links_of_the_guide_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE)
    assert targets and not [target for target in targets if not (ROOT / "docs" / target).exists()]
