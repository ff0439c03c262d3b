import shutil

import numpy as np
import pytest
from fixtures.camvid import COLORS, DILATION, FRAMES, SEGNET, to_dilation_order, write_release
from PIL import Image

from kerasseg.data import open_data
from kerasseg.data.layouts.camvid import split_of_frame
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS
from kerasseg.labels.camvid import CAMVID_RELEASE


def test_both_orders():
    assert LABELS["camvid"].classes == SEGNET
    assert LABELS["camvid_dilation"].classes == DILATION
    # SegNet paints the pavement otherwise than the release and the Dilation network; all else is alike.
    released = dict(zip(SEGNET, (colors for name, colors in COLORS.items() if name != "void"), strict=True))
    for name, color in zip(SEGNET, LABELS["camvid"].palette, strict=True):
        assert color in released[name] or (name, color) == ("pavement", (60, 40, 222))
    for label, color in zip(to_dilation_order(np.arange(11)), map(released.get, SEGNET), strict=True):
        assert LABELS["camvid_dilation"].palette[label] in color
    assert (CAMVID_RELEASE.num_classes, len(set(CAMVID_RELEASE.palette))) == (31, 31)


@pytest.mark.parametrize("order", ["segnet", "dilation"])
def test_real_camvid(order, data_dir):
    splits = [open_data("camvid", data_dir / "camvid", split, class_order=order) for split in ("train", "val", "test")]
    assert [len(data) for data in splits] == [367, 101, 233]
    assert splits[0].mean == (105.41212523, 108.77808759, 110.70313206)
    example = splits[1][0]
    assert example.image.shape == (360, 480, 3)
    with Image.open(data_dir / "camvid" / "masks" / "val" / f"{example.id}.png") as mask:
        file = np.array(mask).astype(np.int32)
    assert 11 in file
    known = np.where(file == 11, 255, file)
    np.testing.assert_array_equal(example.label, known if order == "segnet" else to_dilation_order(known))


def test_names_of_the_frames_tell_segnets_split(data_dir):
    folder = data_dir / "camvid" / "images"
    told = {path.stem: path.parent.name for path in folder.glob("*/*.jpg")}
    assert len(told) == 701
    assert {name: split_of_frame(name) for name in told} == told
    with pytest.raises(KerassegError, match="'holiday_001' is no frame of CamVid: expected such as 0016E5_07959, or lists"):
        split_of_frame("holiday_001")


@pytest.mark.parametrize("order", ["segnet", "dilation"])
def test_release_in_32_colours(order, tmp_path):
    known = write_release(tmp_path / "CamVid")
    for split, names in FRAMES.items():
        data = open_data("camvid", tmp_path, split, class_order=order)
        assert data.ids == tuple(sorted(names))
        for index, example in enumerate(data):
            image, label = known[example.id]
            expected = label if order == "segnet" else to_dilation_order(label)
            np.testing.assert_array_equal(example.image, image)
            np.testing.assert_array_equal(example.label, expected)
            # A file of 32 colours is of no use without this loader.
            np.testing.assert_array_equal(data.sources(index)["mask"], expected)
    assert set(np.unique(expected)) == {*range(11), 255}


def test_release_with_lists(tmp_path):
    write_release(tmp_path)
    (tmp_path / "val.txt").write_text(
        "/SegNet/CamVid/val/0016E5_08159.png /SegNet/CamVid/valannot/0016E5_08159.png\n\nSeq05VD_f00000\n"
    )
    assert open_data("camvid", tmp_path, "val").ids == ("0016E5_08159", "Seq05VD_f00000")
    (tmp_path / "val.txt").write_text("0016E5_99999_L.png\n")
    with pytest.raises(KerassegError, match=r"frame 0016E5_99999 lacks its image \(1 of 1\)"):
        open_data("camvid", tmp_path, "val")


@pytest.mark.parametrize(
    "lost, message",
    [
        ("LabeledApproved_full/0006R0_f00930_L.png", r"frame 0006R0_f00930 lacks its mask \(1 of 6\).*<frame>_L.png"),
        ("701_StillsRaw_full/0006R0_f00930.png", r"frame 0006R0_f00930 lacks its image \(1 of 6\)"),
        ("701_StillsRaw_full", "has LabeledApproved_full but no 701_StillsRaw_full"),
    ],
)
def test_incomplete_release(lost, message, tmp_path):
    write_release(tmp_path)
    shutil.rmtree(tmp_path / lost) if (tmp_path / lost).is_dir() else (tmp_path / lost).unlink()
    with pytest.raises(KerassegError, match=message):
        open_data("camvid", tmp_path)


def test_strange_masks_of_the_release(tmp_path):
    write_release(tmp_path)
    data = open_data("camvid", tmp_path, "val")
    path = tmp_path / "LabeledApproved_full" / "0016E5_07959_L.png"
    Image.new("RGB", (35, 20), (128, 128, 129)).save(path)
    with pytest.raises(KerassegError, match=r"07959_L.png holds the colour \(128, 128, 129\) \(700 pixels.*32 classes"):
        data[0]
    # SegNet's numbers under the release's name would be read as other classes.
    Image.new("L", (35, 20), 3).save(path)
    with pytest.raises(KerassegError, match="07959_L.png is no picture in colours"):
        data[0]
    path.write_bytes(b"")
    with pytest.raises(KerassegError, match="cannot decode .*07959_L.png"):
        data[0]


def test_as_segnet_lays_it_out(tmp_path):
    for folder, color in (("val", (1, 2, 3)), ("valannot", 11)):
        (tmp_path / folder).mkdir()
        Image.new("L" if color == 11 else "RGB", (4, 3), color).save(tmp_path / folder / "x.png")
    assert open_data("camvid", tmp_path, "val")[0].label.tolist() == [[255] * 4] * 3
    assert open_data("camvid", tmp_path, "val").sources(0)["mask"] == tmp_path / "valannot" / "x.png"
    with pytest.raises(KerassegError, match=r"does not hold split 'test'.*<split>annot"):
        open_data("camvid", tmp_path, "test")
    with pytest.raises(KerassegError, match="no split 'valid': did you mean 'val'"):
        open_data("camvid", tmp_path, "valid")
    with pytest.raises(KerassegError, match="no class order 'dilated': did you mean 'dilation'"):
        open_data("camvid", tmp_path, "val", class_order="dilated")
