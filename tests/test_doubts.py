import shutil

import numpy as np
from cli_helpers import run
from fixtures.folder import write_folder
from fixtures.pictures import make_label, write_palette_mask
from PIL import Image

from kerasseg.cli import prepare_data
from kerasseg.data.preparation.doubts import find_doubts
from kerasseg.data.preparation.survey import summarize
from kerasseg.labels import LABELS


def test_warnings(tmp_path, capsys):
    root = write_folder(tmp_path / "data", 9, size=(30, 200))
    for index, name in enumerate(("a0", "a1", "a3", "a4", "a6", "a7")):
        label = make_label((30, 200), 2, index)
        write_palette_mask(root / "masks" / f"{name}.png", np.full_like(label, 255) if name == "a1" else label)
    shutil.copy(root / "images" / "a0.jpg", root / "images" / "a3.jpg")
    shutil.copy(root / "images" / "a4.jpg", root / "images" / "b2.jpg")
    with (root / "val.txt").open("a") as file:
        file.write("a6\n")
    assert run(prepare_data, "folder", root, "--jobs", 1) == 0
    out = capsys.readouterr().out
    for expected in (
        "train: classes that never occur, of 3: 1 (dog)",
        "train: masks that hold label 255 alone: 1 (a1)",
        "train: images with a shorter side below 64 pixels: 6 (a0 (200×30), a1",
        "train: images with sides of more than 5:1: 6 (",
        "train: images that are copies of others in it: 2 (a0, a3)",
        "train and val share examples of one name: 1 (a6)",
        "train and val share images under other names: 1 (a4)",
    ):
        assert f"warning: {expected}" in out, out
    assert run(prepare_data, "folder", root, "--smallest", 30) == 0
    assert "shorter side" not in capsys.readouterr().out


def test_classes_that_are_known_to_be_absent_are_no_doubt():
    table = LABELS["sift_flow"]
    row = {"id": "x", "size": [100, 100], "sums": [0, 0, 0], "pixels": [{"0": 9}], "ignored": [0]}
    heads = {"mask": table}
    (line,) = (
        line for line in find_doubts({"test": [row]}, {"test": summarize([row], heads)}, heads) if "never occur, of 33" in line
    )
    # Cow, desert and moon.
    assert ": 29 (" in line


def test_masks_that_were_turned_grey_are_suspected(tmp_path):
    table = LABELS["ade20k"]

    def doubts(values):
        row = {"id": "x", "size": [100, 100], "sums": [0, 0, 0], "pixels": [{str(v): 9 for v in values}], "ignored": [0]}
        heads = {"mask": table}
        return [line for line in find_doubts({"train": [row]}, {"train": summarize([row], heads)}, heads) if "grey" in line]

    # What Pillow makes of a picture of colours.
    colors = np.array([table.palette[k] for k in (2, 4, 9, 17, 66, 72, 100, 131, 60, 21, 26, 46, 120, 7, 30, 50)], np.uint8)
    shades = {int(v) for v in np.asarray(Image.fromarray(colors[None]).convert("L")).ravel() if v < 150}
    assert len(shades) > 8
    assert doubts(shades)
    assert not doubts(range(16))
    assert not doubts(range(150))
