from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from kerasseg import KerassegError
from kerasseg.cli.calibration import add_calibration_options, chosen_calibration
from kerasseg.cli.running import make_parser
from kerasseg.data import open_data
from kerasseg.evaluation.fitted import fit_image
from kerasseg.export.calibration import draw
from kerasseg.recipes import Recipe

SIZE = (24, 40)


def opened(channels=3, **recipe):
    model = keras.Model(image := keras.Input((None, None, channels)), image, name="chain")
    recipe = Recipe(**{"name": "stub", "data": "shapes", "image_scale": 0.5, **recipe})
    return SimpleNamespace(model=model, path="runs/one", recipe=recipe, labels=None)


def options(*arguments):
    parser = make_parser("export.py", "Exports.")
    add_calibration_options(parser)
    parser.add_argument("--data-dir", default=None)
    return parser.parse_args(arguments)


def test_the_runs_own_data_at_its_own_scale():
    images, about = chosen_calibration(opened(), options("--calibration-images", "3", "--seed", "5"), SIZE)
    data = open_data("shapes", split="train")
    for image, index in zip(images, draw(3, len(data), 5), strict=True):
        np.testing.assert_array_equal(image, fit_image(data[index].image, SIZE, 0.5))
    assert about == {"data": "shapes train", "images": 3, "seed": 5} and images[0].dtype == np.float32
    others, _ = chosen_calibration(opened(), options("--calibration-images", "3", "--seed", "6"), SIZE)
    assert not np.array_equal(images, others)


def test_another_split_and_another_data_set():
    _, about = chosen_calibration(opened(split="val"), options("--calibration-images", "2"), SIZE)
    assert about["data"] == "shapes val"
    chosen = options("--calibration-images", "2", "--calibration-split", "val")
    assert chosen_calibration(opened(), chosen, SIZE)[1]["data"] == "shapes val"
    # Where data of the run lies says nothing about those of another name.
    other = opened(data="camvid", data_dir="nowhere", split="train")
    assert (
        chosen_calibration(other, options("--calibration", "shapes", "--calibration-images", "2"), SIZE)[1]["data"]
        == "shapes train"
    )
    with pytest.raises(KerassegError, match="nowhere"):
        chosen_calibration(other, options(), SIZE)


def test_the_data_sets_of_a_union_together():
    union = opened(data="shapes+shapes", split="train+val")
    images, about = chosen_calibration(union, options("--calibration-images", "4", "--seed", "1"), SIZE)
    assert about["data"] == "shapes+shapes train+val"
    train, val = (open_data("shapes", split=split) for split in ("train", "val"))
    places = draw(4, len(train) + len(val), 1)
    assert min(places) < len(train) <= max(places)
    for image, place in zip(images, places, strict=True):
        example = train[place] if place < len(train) else val[place - len(train)]
        np.testing.assert_array_equal(image, fit_image(example.image, SIZE, 0.5))
    with pytest.raises(KerassegError, match="neither a folder nor a data set"):
        chosen_calibration(opened(data="shapes+none"), options(), SIZE)


def test_a_folder_of_photographs(tmp_path):
    photographs = np.random.default_rng(0).integers(0, 256, (3, 30, 50, 3), np.uint8)
    (tmp_path / "below").mkdir()
    for place, photograph in zip(("a.png", "below/b.PNG", "c.png"), photographs, strict=True):
        Image.fromarray(photograph).save(tmp_path / place)
    (tmp_path / "notes.txt").write_text("no photograph")
    alone = opened()
    alone.recipe = None
    images, about = chosen_calibration(alone, options("--calibration", str(tmp_path)), SIZE)
    assert about == {"data": f"folder {tmp_path.name}", "images": 3, "seed": 0}
    for image, photograph in zip(images, photographs, strict=True):
        np.testing.assert_array_equal(image, fit_image(photograph, SIZE))
    with pytest.raises(KerassegError, match="--calibration-split val: means something only of a data set"):
        chosen_calibration(alone, options("--calibration", str(tmp_path), "--calibration-split", "val"), SIZE)


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path):
    def message(given, *arguments):
        with pytest.raises(KerassegError) as caught:
            chosen_calibration(given, options(*arguments), SIZE)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "holds 0 photographs: int8 needs at least 2" in message(opened(), "--calibration", str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert "holds 1 photographs: int8 needs at least 2" in message(opened(), "--calibration", str(tmp_path))
    assert "'shapes'" in message(opened(), "--calibration", "shape") and "neither a folder nor a data set" in message(
        opened(), "--calibration", "shape"
    )
    assert "have 3 channels, chain takes 6" in message(opened(channels=6))
    alone = opened()
    alone.recipe = None
    assert "pass --calibration DATA_OR_FOLDER for int8" in message(alone)


def test_what_is_no_number_of_images_and_no_seed_is_refused_before_anything_is_opened():
    for option, value, expected in (
        ("--calibration-images", "1", "2 or more"),
        ("--calibration-images", "many", "2 or more"),
        ("--seed", "-1", "0 or more"),
        ("--seed", "0.5", "0 or more"),
    ):
        with pytest.raises(KerassegError, match=f"{option}: received '{value}', expected a whole number, {expected}"):
            options(option, value)


def test_what_is_not_given_can_be_told_from_what_is():
    assert options().calibration_images is options().seed is None
    given = options("--calibration-images", "100", "--seed", "0")
    assert (given.calibration_images, given.seed) == (100, 0)
    images, about = chosen_calibration(opened(), options(), SIZE)
    assert about == {"data": "shapes train", "images": 100, "seed": 0} and len(images) == 100
