"""PASCAL-Context: a miniature, the authors' own layer, the three renames, background scored and not."""

import numpy as np
import pytest
from fixtures.fcn_layers import check_against_layer, golden
from fixtures.pascal_context import NUMBERS, SCORED, TRAIN, VAL, write_context, write_context_pngs
from scipy.io import savemat

from kerasseg.data import open_data
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("context")
    return root, write_context(root)


@pytest.mark.parametrize(("split", "names"), [("train", TRAIN), ("val", VAL), ("trainval", tuple(sorted(TRAIN + VAL)))])
def test_every_split_equals_what_was_written(split, names, tree):
    root, known = tree
    data = open_data("pascal_context", root / "pascal-context", split)
    assert (data.ids, data.labels, data.num_classes) == (names, LABELS["pascal_context"], 60)
    assert data.mean == (122.679, 116.669, 104.007)
    for example in data:
        image, label = known[example.id]
        np.testing.assert_array_equal(example.image, image)
        assert example.label.dtype == np.int32
        np.testing.assert_array_equal(example.label, label)
        assert set(np.unique(label)) == set(range(60))


def test_the_classes_are_those_of_the_list(tree):
    assert LABELS["pascal_context"].classes == ("background", *SCORED)


def test_background_can_be_left_out(tree):
    root, known = tree
    data = open_data("pascal_context", root / "pascal-context", "val", background="ignore")
    assert (data.num_classes, data.labels.classes) == (59, tuple(SCORED))
    assert data.labels.palette == LABELS["pascal_context"].palette[1:] and (0, 0, 0) in data.labels.ignore_colors
    for example in data:
        label = known[example.id][1]
        np.testing.assert_array_equal(example.label, np.where(label == 0, 255, label - 1))


def test_the_authors_own_layer_reads_the_same(tree):
    """PASCALContextSegDataLayer of the FCN authors, run on this miniature; see golden/README.md."""
    for split in ("train", "val"):
        check_against_layer(open_data("pascal_context", tree[0] / "pascal-context", split), f"pascal_context/{split}")


def test_the_numbers_of_the_miniature_are_the_official_ones():
    """By the authors' layer from the authors' list of all 459 names, in the order of the 59."""
    renamed = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    assert [NUMBERS[renamed.get(name, name)] for name in SCORED] == golden()["raw_numbers"].tolist()


@pytest.mark.parametrize("background", ["evaluate", "ignore"])
def test_pictures_of_the_raw_order(background, tmp_path):
    known = write_context_pngs(tmp_path)
    data = open_data("pascal_context", tmp_path, "train", background=background)
    assert (data.ids, data.num_classes) == (TRAIN, 60 if background == "evaluate" else 59)
    for example in data:
        image, label = known[example.id]
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.label, label if background == "evaluate" else np.where(label == 0, 255, label - 1))
    # Theirs is shorter than VOC's.
    assert open_data("pascal_context", tmp_path, "val").ids == VAL[:1]
    assert open_data("pascal_context", tmp_path, "trainval").ids == TRAIN + VAL[:1]
    assert data.sources(0)["mask"] == data.records[0].mask


def test_the_folders_may_lie_in_many_ways(tree, tmp_path):
    root, _ = tree
    home = root / "VOCdevkit" / "VOC2010"
    context = tmp_path / "here" / "labels"
    context.parent.mkdir()
    context.symlink_to(root / "pascal-context")
    for place in (root, root / "VOCdevkit", home):
        assert open_data("pascal_context", place, "val").ids == VAL
    for voc_dir in (root, root / "VOCdevkit", home):
        assert open_data("pascal_context", context, "val", voc_dir=voc_dir).ids == VAL
    with pytest.raises(KerassegError, match=r"needs VOC 2010, which is not in .*labels or beside it.*voc_dir=FOLDER"):
        open_data("pascal_context", context, "val")
    with pytest.raises(KerassegError, match="needs VOC 2010, which is not in .*context: expected VOC2010"):
        open_data("pascal_context", context, "val", voc_dir=root / "pascal-context")


def test_sources_of_matlab_files_are_labels(tree):
    root, known = tree
    source = open_data("pascal_context", root, "val").sources(0)["mask"]
    np.testing.assert_array_equal(source, known[VAL[0]][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"background": "ignored"}, "received background='ignored': did you mean 'ignore'"),
    ],
)
def test_wrong_arguments(options, message, tree):
    with pytest.raises(KerassegError, match=message):
        open_data("pascal_context", tree[0], **options)


def test_what_is_wrong_is_named(tmp_path):
    write_context(tmp_path)
    home = tmp_path / "pascal-context"
    savemat(home / "trainval" / f"{VAL[0]}.mat", {"LabelMap": np.full((2, 3), 460, np.uint16)})
    savemat(home / "trainval" / f"{VAL[1]}.mat", {"Labels": np.ones((2, 3))})
    data = open_data("pascal_context", home, "val")
    with pytest.raises(KerassegError, match=r"000003\.mat holds the value 460 \(one of 6 .*0 to 459 of 'pascal_context'; copy"):
        data[0]
    with pytest.raises(KerassegError, match=r"cannot read .*000010\.mat .*variable LabelMap"):
        data[1]
    names = (home / "labels.txt").read_text()
    (home / "labels.txt").write_text(names.replace("80: cloth\n", "80: clothes\n"))
    with pytest.raises(KerassegError, match=r"labels\.txt lacks 1 of the 59 classes, first 'cloth'"):
        open_data("pascal_context", home)
    (home / "labels.txt").unlink()
    with pytest.raises(KerassegError, match=r"does not hold data set 'pascal_context': expected trainval/\*\.mat and labels\.txt"):
        open_data("pascal_context", home)
