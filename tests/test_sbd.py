"""SBD: a miniature, the authors' own layer, damaged files."""

import numpy as np
import pytest
from fixtures.fcn_layers import check_against_layer
from fixtures.sbd import EMPTY, TRAIN, VAL, write_sbd, write_sbd_mat
from fixtures.voc import size_of
from scipy.io import savemat

from kerasseg.data import open_data
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("sbd")
    return root, write_sbd(root)


@pytest.mark.parametrize(("split", "names"), [("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)])
def test_every_split_equals_what_was_written(split, names, tree):
    root, known = tree
    data = open_data("sbd", root, split)
    assert (data.ids, data.labels) == (names, LABELS["voc"])
    for example in data:
        image, label = known[example.id]
        np.testing.assert_array_equal(example.image, image)
        assert example.label.dtype == np.int32
        np.testing.assert_array_equal(example.label, label)
    assert EMPTY not in names or not data.read_label(names.index(EMPTY)).any()


def test_the_authors_own_layer_reads_the_same(tree):
    check_against_layer(open_data("sbd", tree[0], "train"), "sbd/train")
    check_against_layer(open_data("sbd", tree[0], "val"), "sbd/val")


@pytest.mark.parametrize("above", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset", "sbd", "sbdd", "benchmark"])
def test_the_folder_may_be_pointed_at_at_any_height(above, tree, tmp_path):
    root, _ = tree
    if above in ("sbd", "sbdd", "benchmark"):
        (tmp_path / above).symlink_to(root)
        assert open_data("sbd", tmp_path, "val").ids == VAL
    else:
        assert open_data("sbd", root / above, "val").ids == VAL


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:200] + bytes(byte ^ 0x5A for byte in content[200:260]) + content[260:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404</html>" * 20)
    elif how == "other":
        savemat(path, {"LabelMap": np.ones((3, 3), np.uint8)})
    elif how == "struct":
        savemat(path, {"GTcls": {"Boundaries": np.ones((3, 3))}})
    elif how == "value":
        write_sbd_mat(path, np.where(np.arange(12).reshape(3, 4) > 9, 21, 0))
    elif how == "flat":
        savemat(path, {"GTcls": {"Segmentation": np.ones((2, 3, 4), np.uint8)}})
    elif how == "real":
        savemat(path, {"GTcls": {"Segmentation": np.ones((2, 3)) / 2}})
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        *((how, r"cannot read .*\.mat \(.*\): expected a whole \.mat file.*GTcls") for how in ("cut", "flipped", "empty", "text")),
        *((how, r"cannot read .*\.mat \(.*\): expected a whole \.mat file.*GTcls") for how in ("other", "struct")),
        ("value", r"\.mat holds the value 21 \(one of 2 wrong pixels, at row 2, column 2\): expected 0 to 20 of 'voc', or 255"),
        ("flat", r"\.mat holds uint8 of shape \(2, 3, 4\): expected a label map"),
        ("real", r"\.mat holds the value 0\.5 \(one of 6 wrong pixels"),
        ("missing", r"no such file: .*2008_000002\.mat"),
    ],
)
def test_damaged_masks_are_named(how, message, tmp_path):
    write_sbd(tmp_path)
    damage(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{VAL[0]}.mat", how)
    data = open_data("sbd", tmp_path, "val")
    with pytest.raises(KerassegError, match=message) as error:
        data[0]
    assert "\n" not in str(error.value)
    assert data[1].id == VAL[1]


def test_a_mask_of_another_size_is_named(tmp_path):
    write_sbd(tmp_path)
    write_sbd_mat(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{VAL[0]}.mat", np.zeros((5, 4), int))
    height, width = size_of(VAL[0])
    with pytest.raises(KerassegError, match=rf"{VAL[0]}\.mat is 4×5 but image .* is {width}×{height}"):
        open_data("sbd", tmp_path, "val")[0]


def test_pixels_to_ignore_are_read_where_somebody_has_put_them(tmp_path):
    write_sbd(tmp_path)
    label = np.full(size_of(VAL[0]), 255)
    write_sbd_mat(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{VAL[0]}.mat", label)
    np.testing.assert_array_equal(open_data("sbd", tmp_path, "val")[0].label, label)


def test_another_folder_is_refused(tmp_path, tree):
    with pytest.raises(KerassegError, match="does not hold data set 'sbd': expected benchmark_RELEASE/dataset with img/, cls/"):
        open_data("sbd", tmp_path)
    with pytest.raises(KerassegError, match="no split 'test': known: train, val, trainval"):
        open_data("sbd", tree[0], "test")
