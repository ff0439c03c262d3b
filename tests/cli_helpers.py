"""What the tests of the command lines share: a small data set on disk, and ways to run a command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kerasseg.cli.running import run_command
from kerasseg.data import open_data

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
