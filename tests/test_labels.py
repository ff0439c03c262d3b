import json
import subprocess
import sys

import numpy as np
import pytest
from fixtures.pictures import voc_colors

from kerasseg.data.layouts.cityscapes_labels import IDS
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, LabelTable, colorize, generic_table, voc_palette


def test_voc_palette_by_hand():
    palette = voc_palette(256)
    by_hand = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: palette[label] for label in by_hand} == by_hand
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_voc_palette_by_its_definition():
    # Written another way, and what masks of the tests are painted with.
    np.testing.assert_array_equal(np.array(voc_palette(256)), voc_colors())


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("voc", 21, "background", "tvmonitor"),
        ("shapes", 6, "background", "golden"),
        ("pascal_context", 60, "background", "wood"),
        ("pascal_person_part", 7, "background", "lower legs"),
        ("sift_flow", 33, "awning", "window"),
        ("sift_flow_geometric", 3, "sky", "vertical"),
        ("nyud", 40, "wall", "otherprop"),
        ("camvid", 11, "sky", "bicyclist"),
        ("camvid_dilation", 11, "building", "bicyclist"),
        ("kitti", 11, "building", "bicyclist"),
        ("cityscapes", 19, "road", "bicycle"),
        ("ade20k", 150, "wall", "flag"),
    ],
)
def test_tables(name, count, first, last):
    table = LABELS[name]
    assert (table.name, table.num_classes, table.classes[0], table.classes[-1]) == (name, count, first, last)
    assert len(table.palette) == count
    # What colorize paints for ignore must read back as ignore.
    assert (224, 224, 192) in table.ignore_colors


def test_table_positions_that_papers_rely_on():
    assert LABELS["voc"].classes.index("person") == 15
    context = LABELS["pascal_context"].classes
    assert context.index("mouse") + 1 == context.index("curtain")
    assert LABELS["camvid"].palette[LABELS["camvid"].classes.index("pavement")] == (60, 40, 222)
    assert LABELS["cityscapes"].palette[LABELS["cityscapes"].classes.index("car")] == (0, 0, 142)
    assert LABELS["ade20k"].palette[2] == (6, 230, 230)


def test_file_values():
    cityscapes = LABELS["cityscapes"].file_to_label
    assert sorted(cityscapes) == list(range(-1, 34))
    published = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15}
    published |= {31: 16, 32: 17, 33: 18}
    assert {value: label for value, label in cityscapes.items() if label != 255} == published
    assert LABELS["camvid"].file_to_label == LABELS["kitti"].file_to_label == {11: 255}
    # SegNet's files in the other order: the names say which is which, but that one says sidewalk and sign for short.
    dilation, short = LABELS["camvid_dilation"], {"pavement": "sidewalk", "sign symbol": "sign"}
    names = [dilation.classes[dilation.file_to_label[value]] for value in range(11)]
    assert names == [short.get(name, name) for name in LABELS["camvid"].classes] and dilation.file_to_label[11] == 255
    ade20k = LABELS["ade20k"].file_to_label
    assert (ade20k[0], ade20k[1], ade20k[150], len(ade20k)) == (255, 0, 149, 151)


def test_tables_are_those_of_the_fact_sheet(data_dir):
    path = data_dir.parent / "reference" / "labels.json"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    facts = json.loads(path.read_text())
    names = {"voc": facts["voc21"]["names"], "pascal_context": facts["pascal_context60"], "nyud": facts["nyud40"]}
    names |= {"sift_flow": facts["sift_flow33"], "sift_flow_geometric": facts["sift_flow_geo3"]}
    names |= {"camvid": facts["camvid11"]["segnet_order"][:11], "ade20k": facts["ade20k_150"]["names"]}
    names |= dict.fromkeys(("camvid_dilation", "kitti"), facts["camvid11"]["dilation_order"])
    palettes = {"voc": facts["voc21"]["palette"], "ade20k": facts["ade20k_150"]["palette"]}
    palettes |= {"camvid": facts["camvid11"]["segnet_palette"][:11]}
    palettes |= dict.fromkeys(("camvid_dilation", "kitti"), facts["camvid11"]["dilation_palette"])
    rows = facts["cityscapes"]
    scored = sorted((row for row in rows if row["trainId"] not in (-1, 255)), key=lambda row: row["trainId"])
    names["cityscapes"], palettes["cityscapes"] = zip(*((row["name"], row["color"]) for row in scored), strict=True)
    assert {name: list(LABELS[name].classes) for name in names} == {name: list(known) for name, known in names.items()}
    for name, known in palettes.items():
        assert LABELS[name].palette == tuple(map(tuple, known[: LABELS[name].num_classes])), name
    # Of a license plate the fact sheet says -1, which no file holds.
    train_ids = {row["id"]: row["trainId"] % 256 for row in rows}
    assert LABELS["cityscapes"].file_to_label == train_ids
    assert [row["name"] for row in sorted(rows, key=lambda row: row["id"]) if row["id"] >= 0] == list(IDS)


def test_colorize():
    label = np.array([[0, 1], [20, 255]])
    expected = [[[0, 0, 0], [128, 0, 0]], [[0, 64, 128], [224, 224, 192]]]
    assert colorize(label).tolist() == expected
    assert colorize(label.astype(np.uint8), LABELS["voc"]).tolist() == expected
    painted = colorize(np.array([[1, 0, 255]]), [(1, 2, 3), (4, 5, 6)])
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[4, 5, 6], [1, 2, 3], [224, 224, 192]]]


@pytest.mark.parametrize(
    "label, labels, message",
    [
        (np.array([[0, 7, 7]]), LABELS["shapes"], r"label 7 \(2 pixels .*0 to 5 or 255"),
        (np.array([[-1]]), None, r"label -1 \(1 pixels"),
        (np.zeros((2, 2, 3), int), None, r"shape \(2, 2, 3\)"),
        (np.zeros((2, 2), np.float32), None, "float32"),
    ],
)
def test_colorize_refuses(label, labels, message):
    with pytest.raises(KerassegError, match=message):
        colorize(label, labels)


def test_generic_table():
    table = generic_table(["ground", "cat"])
    assert (table.classes, table.palette, table.file_to_label) == (("ground", "cat"), ((0, 0, 0), (128, 0, 0)), {})
    assert generic_table(["a"], [[1, 2, 3]]).palette == ((1, 2, 3),)
    # A class may have the colour that else means ignore.
    assert generic_table(["a"], [(224, 224, 192)]).ignore_colors == ()
    assert hash(table) == hash(generic_table(["ground", "cat"]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "0 classes"),
        ((["a"] * 256,), "256 classes"),
        ((["a", "a"],), "class a twice"),
        ((["a", "b"], [(0, 0, 0)]), "2 classes but 1 colours"),
        ((["a", "b"], [(9, 0, 0), (9, 0, 0)]), r"colour \(9, 0, 0\) twice"),
    ],
)
def test_bad_tables(arguments, message):
    with pytest.raises(KerassegError, match=message):
        generic_table(*arguments or ([],))


def test_table_refuses_labels_beyond_its_classes():
    with pytest.raises(KerassegError, match="maps file value 7 to label 2: expected 0 to 1 or 255"):
        LabelTable("t", ("a", "b"), voc_palette(2), file_to_label={7: 2})


def test_groups_and_absent_classes_of_the_papers():
    table = LABELS["cityscapes"]
    sizes = {name: len(classes) for name, classes in table.groups}
    assert sizes == {"flat": 2, "construction": 3, "object": 3, "nature": 2, "sky": 1, "human": 2, "vehicle": 6}
    # In the order of the table, where the categories follow each other.
    assert sum((classes for _, classes in table.groups), ()) == table.classes
    assert LABELS["sift_flow"].absent == ("cow", "desert", "moon")
    for name, other in LABELS.items():
        assert (other.groups == ()) == (name != "cityscapes") and (other.absent == ()) == (name != "sift_flow")


@pytest.mark.parametrize(
    "groups, absent, message",
    [
        ((("x", ("a", "b")),), (), "'t' has c in no group: expected every class in one, or no groups"),
        ((("x", ("a", "d")), ("y", ("b", "c"))), (), "'t' has no class d: expected some of a, b, c"),
        ((("x", ("a", "b")), ("y", ("b", "c"))), (), "the grouped class b twice"),
        ((("x", ("a", "b")), ("x", ("c",))), (), "the group x twice"),
        ((("x", ("a", "b", "c")), ("y", ())), (), "the group y without a class"),
        ((), ("cow",), "'t' has no class cow"),
        ((), ("a", "a"), "the absent class a twice"),
    ],
)
def test_bad_groups_and_absent_classes(groups, absent, message):
    with pytest.raises(KerassegError, match=message):
        LabelTable("t", ("a", "b", "c"), voc_palette(3), groups=groups, absent=absent)


def test_labels_and_data_import_no_tensorflow():
    code = "import sys, kerasseg.labels, kerasseg.data as d; d.open_data('shapes')[0]; print('tensorflow' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
