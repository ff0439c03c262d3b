"""Files for the benchmarks' servers, read back."""

import re

import numpy as np
import pytest
from cli_helpers import run, tree
from inference_helpers import photograph, scored_network
from PIL import Image

from kerasseg import KerassegError
from kerasseg.cli import predict as command
from kerasseg.evaluation import SUBMISSIONS, check_submission, predict, write_submission
from kerasseg.labels import LABELS, generic_table

VOC = "results/VOC2012/Segmentation/comp5_test_cls/2008_000006.png"
# Benchmark → photograph, file, and the file's value of each label, as the benchmarks' own documents number their classes.
FILES = {
    "voc": ("2008_000006", VOC, range(21)),
    "voc_comp6": ("2008_000006", VOC.replace("comp5", "comp6"), range(21)),
    "cityscapes": (
        "berlin_000000_000019_leftImg8bit",
        "berlin_000000_000019_labelIds.png",
        # Of cityscapesScripts' labels.py: road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, ...
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    ),
    "ade20k": ("ADE_test_00000001", "ADE_test_00000001.png", range(1, 151)),
}
# The first colours of VOC's map, and that of class 20, from its development kit.
VOC_COLORS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_the_benchmarks_numbers(tmp_path, name):
    photograph_name, file, values = FILES[name]
    table, values = LABELS[SUBMISSIONS[name].table], np.array(list(values))
    label = np.arange(table.num_classes * 3).reshape(3, -1) % table.num_classes
    check_submission(name, table, [photograph_name])
    assert write_submission(tmp_path, name, photograph_name, label) == tmp_path / file
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")] == [file]
    with Image.open(tmp_path / file) as picture:
        assert (picture.format, picture.size) == ("PNG", label.shape[::-1])
        assert picture.mode == ("P" if name.startswith("voc") else "L")
        np.testing.assert_array_equal(np.asarray(picture), values[label])
        if picture.mode == "P":
            colors = np.array(picture.getpalette()).reshape(-1, 3)
            assert {index: tuple(colors[index].tolist()) for index in VOC_COLORS} == VOC_COLORS
    # Where the table reads files, they become the labels they were.
    assert [table.file_to_label.get(int(value), int(value)) for value in values] == list(range(table.num_classes))


def test_cityscapes_files_match_the_pattern_of_its_evaluation():
    # <city>_<sequence>_<frame>*.png, one for each truth.
    for city in ("berlin", "bad-honnef"):
        name = SUBMISSIONS["cityscapes"].name(f"{city}_000003_000019_leftImg8bit")
        assert re.fullmatch(rf"{city}_000003_000019.*", name)
    assert SUBMISSIONS["cityscapes"].name("bonn_000003_000019") == "bonn_000003_000019_labelIds"


MISTAKES = (
    ("kitti", LABELS["voc"], ["a"], "--submission kitti: "),
    (
        "voc",
        LABELS["camvid"],
        ["a"],
        "--submission voc is of 21 classes, the network has 11: expected one trained on data set 'voc'",
    ),
    ("ade20k", LABELS["voc"], ["a"], "--submission ade20k is of 150 classes, the network has 21"),
    (
        "voc",
        generic_table(["background", "bicycle", "aeroplane", *LABELS["voc"].classes[3:]]),
        ["a"],
        "the network's class 'bicycle' stands where 'voc' has 'aeroplane'",
    ),
    (
        "cityscapes",
        LABELS["cityscapes"],
        ["berlin_19"],
        "photograph 'berlin_19': .* expected a name such as berlin_000000_000019_left",
    ),
    (
        "cityscapes",
        LABELS["cityscapes"],
        ["ulm_000000_000019", "ulm_000000_000019_leftImg8bit"],
        "would both be sent as ulm_000000_000019_labelIds.png",
    ),
)


@pytest.mark.parametrize(("name", "labels", "photographs", "message"), MISTAKES)
def test_what_a_server_would_not_take_is_refused(name, labels, photographs, message):
    with pytest.raises(KerassegError, match=message) as caught:
        check_submission(name, labels, photographs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "label", [np.full((2, 2), 255), np.full((2, 2), 21), np.full((2, 2), -1), np.zeros((2, 2)), np.zeros(4, int)]
)
def test_labels_that_the_benchmark_has_not_are_refused(tmp_path, label):
    with pytest.raises(KerassegError, match=r"label map of 'x' has shape .*: expected \(H, W\), integers 0 to 20"):
        write_submission(tmp_path, "voc", "x", label)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("submission")
    scored_network(classes=21).save(root / "voc.keras")
    scored_network(classes=11).save(root / "camvid.keras")
    (root / "photographs/sub").mkdir(parents=True)
    for seed, name in enumerate(("2008_000006", "sub/2008_000008")):
        Image.fromarray(photograph(9 + seed, 12, seed)).save(root / f"photographs/{name}.png")
    return root


def test_the_command_writes_what_the_server_takes_and_nothing_else(place, tmp_path, capsys):
    assert run(command, place / "voc.keras", place / "photographs", "--out", tmp_path, "--submission", "voc") == 0
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {VOC, VOC.replace("000006", "000008")}
    for seed, name in enumerate(sorted(names)):
        expected = predict(scored_network(classes=21), photograph(9 + seed, 12, seed))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), expected)
    assert f"masks: {tmp_path} (voc)" in capsys.readouterr().out
    given = ("--out", tmp_path, "--submission", "voc_comp6", "--kinds", "index")
    assert run(command, place / "voc.keras", place / "photographs/2008_000006.png", *given) == 0
    names |= {VOC.replace("comp5", "comp6"), "index/2008_000006.png"}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == names
    assert tuple(SUBMISSIONS) == command.BENCHMARKS


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("camvid.keras", "voc", "--submission voc is of 21 classes, the network has 11"),
        ("voc.keras", "coco", "invalid choice: 'coco'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(place, tmp_path, capsys, model, name, message):
    before = tree(place)
    assert run(command, place / model, place / "photographs", "--out", tmp_path / "new", "--submission", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert tree(place) == before and not list(tmp_path.iterdir())


def test_a_photograph_that_lies_where_its_labels_belong_is_not_written_over(place, tmp_path, capsys):
    path = tmp_path / VOC
    path.parent.mkdir(parents=True)
    Image.fromarray(photograph()).save(path)
    before = tree(tmp_path)
    assert run(command, place / "voc.keras", path, "--out", tmp_path, "--submission", "voc") == 2
    assert f"error: the labels of {path} would be written over {path}: expected" in capsys.readouterr().err
    assert tree(tmp_path) == before
