import shutil

import numpy as np
import pytest
from fixtures.kitti import CLASSES, PALETTE, write_kitti
from fixtures.pictures import make_label, write_index_mask, write_photo
from PIL import Image

from kerasseg.data import open_data
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

FOLDERS = {"train": "Training_00", "val": "Validation_07", "test": "Validation_07"}


def test_table():
    assert (LABELS["kitti"].classes, LABELS["kitti"].palette) == (CLASSES, PALETTE)


@pytest.mark.parametrize("place", [".", "KITTI_SEMANTIC", "KITTI_SEMANTIC/Validation_07"])
def test_arrays(place, tmp_path):
    known = write_kitti(tmp_path / "KITTI_SEMANTIC")
    for split, folder in FOLDERS.items():
        data = open_data("kitti", tmp_path / place, split)
        assert data.ids == tuple(f"{folder}_{frame}" for frame in known[folder])
        for example in data:
            image, label = known[folder][example.id.removeprefix(f"{folder}_")]
            np.testing.assert_array_equal(example.image, image)
            np.testing.assert_array_equal(example.label, label)
        assert set(np.unique(label)) == {*range(11), 255}
        assert data.mean == pytest.approx((91.34692262, 95.55136972, 96.19429688))
        assert data.sources(0)["mask"] == data.records[0].mask


def test_frames_of_both_sequences_have_names_of_their_own(tmp_path):
    write_kitti(tmp_path)
    ids = [name for split in open_data("kitti", tmp_path).splits for name in open_data("kitti", tmp_path, split).ids]
    # Both begin with frame 0.
    assert len(ids) == len(set(ids)) == 5 and sum(name.endswith("_000000") for name in ids) == 2


def test_images_and_masks(tmp_path):
    label = make_label((9, 14), 11, 0)
    image = write_photo(tmp_path / "images" / "train" / "a.png", (9, 14), 0)
    write_index_mask(tmp_path / "masks" / "train" / "a.png", np.where(label == 255, 11, label))
    example = open_data("kitti", tmp_path)[0]
    np.testing.assert_array_equal(example.image, image)
    np.testing.assert_array_equal(example.label, label)
    with pytest.raises(KerassegError, match="does not hold split 'val' of data set 'kitti': expected Training_00"):
        open_data("kitti", tmp_path, "val")


def test_what_is_refused(tmp_path):
    write_kitti(tmp_path)
    with pytest.raises(KerassegError, match="no split 'tset': did you mean 'test'"):
        open_data("kitti", tmp_path, "tset")
    mask = tmp_path / "Training_00" / "GT" / "000015.png"
    Image.new("RGB", (123, 37), (255, 255, 255)).save(mask)
    assert (open_data("kitti", tmp_path)[1].label == 255).all()
    Image.new("RGB", (123, 37), (70, 70, 70)).save(mask)
    with pytest.raises(KerassegError, match=r"000015.png holds the colour \(70, 70, 70\)"):
        open_data("kitti", tmp_path)[1]
    mask.unlink()
    with pytest.raises(KerassegError, match=r"RGB/000015.png has no mask \(1 of 3 images"):
        open_data("kitti", tmp_path)
    shutil.rmtree(mask.parent)
    with pytest.raises(KerassegError, match="has GT_ind but no GT: expected the masks in colours"):
        open_data("kitti", tmp_path)
