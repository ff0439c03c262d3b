"""What holds of every layout on disk, each in miniature."""

import pytest
from fixtures.ade20k import write_ade20k
from fixtures.camvid import write_release
from fixtures.cityscapes import write_cityscapes
from fixtures.coco import write_coco
from fixtures.folder import write_folder
from fixtures.kitti import write_kitti
from fixtures.nyud import write_nyud
from fixtures.pascal_context import write_context
from fixtures.person_part import write_person_part
from fixtures.sbd import write_augmentation, write_sbd
from fixtures.sift_flow import write_sift_flow
from fixtures.voc import write_voc

from kerasseg.data import open_data
from kerasseg.data.table import DATA_SETS


def write_voc_with_pictures(root):
    write_voc(root)
    write_augmentation(root / "VOC2012" / "SegmentationClassAug")


# Name → what writes it, and a split of it.
LAYOUTS = {
    "ade20k": (write_ade20k, "test"),
    "camvid": (write_release, "train"),
    "cityscapes": (write_cityscapes, "train_coarse"),
    "coco_voc": (write_coco, "train"),
    "folder": (lambda root: write_folder(root, size=(20, 20)), "train"),
    "kitti": (write_kitti, "train"),
    "nyud": (write_nyud, "train"),
    "pascal_context": (write_context, "train"),
    "pascal_person_part": (write_person_part, "train"),
    "sbd": (write_sbd, "train"),
    "sift_flow": (lambda root: write_sift_flow(root, "official"), "trainval"),
    "voc": (write_voc_with_pictures, "trainaug"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_macos_writes_beside_each_file_is_none_of_the_data(name, tmp_path):
    write, split = LAYOUTS[name]
    write(tmp_path)
    ids = open_data(name, tmp_path, split).ids
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    assert open_data(name, tmp_path, split).ids == ids
    assert set(DATA_SETS[name].splits_of(tmp_path)) >= {split}
    assert not any("._" in each for each in DATA_SETS[name].splits_of(tmp_path))
