import shutil

import numpy as np
import pytest
from fixtures.ade20k import IMAGES, TEST, write_ade20k
from fixtures.pictures import write_color_mask, write_index_mask
from PIL import Image

from kerasseg.data import open_data
from kerasseg.errors import KerassegError

MASK = "annotations/training/ADE_train_00000001.png"


@pytest.mark.parametrize("place", [".", "ADEChallengeData2016", "ADEChallengeData2016/images"])
def test_arrays(place, tmp_path):
    known = write_ade20k(tmp_path / "ADEChallengeData2016")
    splits = {"train": tuple(IMAGES["training"]), "val": tuple(IMAGES["validation"]), "test": TEST}
    splits["trainval"] = splits["train"] + splits["val"]
    for split, ids in splits.items():
        data = open_data("ade20k", tmp_path / place, split)
        assert data.ids == ids
        for example in data:
            image, label = known[example.id]
            # Decoders of JPEG may differ by a step.
            np.testing.assert_allclose(example.image.astype(int), image, atol=0 if example.id.endswith("2") else 3)
            if label is None:
                assert example.label is None
            else:
                np.testing.assert_array_equal(example.label, label)


def test_zero_is_ignored_and_the_last_class_is_there(tmp_path):
    write_ade20k(tmp_path)
    values = np.zeros((31, 45), int)
    values[0, :3] = 1, 75, 150
    write_index_mask(tmp_path / MASK, values)
    label = open_data("ade20k", tmp_path)[0].label
    assert label[0, :4].tolist() == [0, 74, 149, 255] and (label[1:] == 255).all()
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / MASK)
    np.testing.assert_array_equal(open_data("ade20k", tmp_path)[0].label, label)


def test_test_images_may_lie_beside(tmp_path):
    write_ade20k(tmp_path / "ADEChallengeData2016")
    (tmp_path / "ADEChallengeData2016" / "release_test").rename(tmp_path / "release_test")
    assert open_data("ade20k", tmp_path, "test").ids == TEST
    with pytest.raises(KerassegError, match="does not hold split 'test' .*release_test/testing"):
        open_data("ade20k", tmp_path / "ADEChallengeData2016", "test")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: write_index_mask(root / MASK, np.full((31, 45), 151)), "holds the value 151 .*expected 0 to 150"),
        # Masks of the full release, whose colours are others.
        (lambda root: write_color_mask(root / MASK, np.zeros((31, 45), int), [(10, 20, 30)]), r"colour \(10, 20, 30\)"),
        (lambda root: (root / MASK).unlink(), r"ADE_train_00000001.jpg has no mask \(1 of 3 images"),
        (lambda root: (root / "images/training/ADE_train_00000001.jpg").unlink(), r"has no image \(1 of 3 masks"),
        (lambda root: shutil.rmtree(root / "annotations"), "no folder .*annotations/training"),
        (lambda root: shutil.rmtree(root / "images"), "does not hold data set 'ade20k': expected ADEChallengeData2016: images"),
    ],
)
def test_what_is_refused(damage, message, tmp_path):
    write_ade20k(tmp_path)
    damage(tmp_path)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("ade20k", tmp_path)[0]
    assert "\n" not in str(error.value)


def test_unknown_split(tmp_path):
    with pytest.raises(KerassegError, match="no split 'validation': did you mean 'trainval'|known: train, val"):
        open_data("ade20k", tmp_path, "validation")
