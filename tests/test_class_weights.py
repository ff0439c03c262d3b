"""Median-frequency weights: worked by hand, and against the figures beside CamVid; test_voc.py has those beside VOC."""

import numpy as np
import pytest
from cli_helpers import run, write_camvid

from kerasseg.cli import class_weights as command
from kerasseg.data import class_weights, count_classes, each_label, median_frequency_weights, open_data
from kerasseg.errors import KerassegError

IGNORED = 255
# Classes by pixel: 0 in both maps, 1 in the first, 2 in the second, 3 in none.
MAPS = [np.array([[0, 0, 0, 1], [0, 0, 1, IGNORED]]), np.array([[0, 2, 2, IGNORED]])]


def test_counts_and_weights_worked_by_hand():
    counts = count_classes(MAPS, 4)
    assert counts.pixels.tolist() == [6, 2, 2, 0]
    # Of the images in which the class is, ignored pixels included.
    assert counts.around.tolist() == [12, 8, 4, 0]
    assert (counts.ignored, counts.images) == (2, 2)
    # Frequencies 1/2, 1/4, 1/2, of which the median is 1/2; class 3 is not among them.
    assert counts.median_frequency_weights().tolist() == [1, 2, 1, 0]
    assert median_frequency_weights(iter(MAPS), 4).tolist() == [1, 2, 1, 0]


def test_an_even_number_of_classes_has_the_mean_of_the_middle_two():
    # Frequencies 3/4 and 1/4: the median is 1/2.
    assert median_frequency_weights([np.array([[0, 0, 0, 1]])], 2).tolist() == pytest.approx([2 / 3, 2])


@pytest.mark.parametrize(
    ("value", "expected"), [(4, "label map 1 holds 4"), (-1, "label map 1 holds -1"), (300, "map 1 holds 300")]
)
def test_labels_out_of_range_are_named(value, expected):
    with pytest.raises(KerassegError, match=f"{expected}: expected 0 to 3, or 255 = ignore"):
        count_classes([MAPS[0], np.array([[0, value]])], 4)


def test_nothing_labelled_is_an_error():
    with pytest.raises(KerassegError, match="no pixel of 1 label maps has a class"):
        median_frequency_weights([np.full((2, 2), IGNORED)], 3)


def check_file(weights, path):
    """The files have four decimals."""
    expected = np.loadtxt(path)
    assert len(expected) == len(weights) and np.abs(weights - expected).max() <= 0.5001e-4


def test_camvid_train(data_dir):
    folder, seen = data_dir / "camvid", []
    weights = class_weights(open_data("camvid", folder, "train"), lambda done, total: seen.append((done, total)))
    check_file(weights, folder / "class_weights.txt")
    assert seen == [(done, 367) for done in range(1, 368)]


def test_camvid_counts_over_all_splits(data_dir):
    splits = [open_data("camvid", data_dir / "camvid", split) for split in ("train", "val", "test")]
    counts = [count_classes(each_label(data), 11) for data in splits]
    lines = [line.split() for line in (data_dir / "camvid" / "pixel_counts.txt").read_text().splitlines()[1:]]
    assert sum(each.pixels for each in counts).tolist() == [int(line[2]) for line in lines[:11]]
    assert sum(each.ignored for each in counts) == int(lines[11][2])


def test_the_tool_prints_what_the_option_takes(tmp_path, capsys):
    folder, out = write_camvid(tmp_path / "camvid"), tmp_path / "new" / "weights.txt"
    assert run(command, "--data", "camvid", "--data-dir", folder, "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = class_weights(open_data("camvid", folder, "train"))
    option, values = printed[-1].split()
    assert option == "--class-weights"
    received = [float(value) for value in values.split(",")]
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.loadtxt(out), received)
    # The drawings have the first six of the eleven classes.
    absent = [line.split()[0] for line in printed if line.endswith("never occurs")]
    assert absent[-5:] == ["sign", "fence", "car", "pedestrian", "bicyclist"] and received[6:] == [0] * 5
    counts = count_classes(each_label(open_data("camvid", folder, "train")), 11)
    table = {line.split()[0]: line.split() for line in printed}
    assert int(table["sky"][1]) == counts.pixels[0] and int(table["ignored"][1]) == counts.ignored > 0


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path, capsys):
    for arguments in (("--data", "camvd"), ("--data", "camvid", "--data-dir", tmp_path / "none"), ("--data-dir", tmp_path)):
        assert run(command, *arguments) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1


def test_where_the_weights_cannot_be_written_nothing_is_counted(tmp_path, capsys, monkeypatch):
    folder = write_camvid(tmp_path / "camvid")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(command, "count_classes", lambda *_: pytest.fail("counted in vain"))
    for out in ("file/weights.txt", "folder"):
        assert run(command, "--data", "camvid", "--data-dir", folder, "--out", tmp_path / out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and str(tmp_path / out.split("/")[0]) in line


def test_a_count_that_fails_leaves_the_old_weights(tmp_path, capsys):
    folder, out = write_camvid(tmp_path / "camvid"), tmp_path / "weights.txt"
    out.write_text("1\n2\n")
    sorted((folder / "masks/train").glob("*.png"))[-1].write_text("no mask")
    assert run(command, "--data", "camvid", "--data-dir", folder, "--out", out) == 2
    assert "cannot decode" in capsys.readouterr().err and out.read_text() == "1\n2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camvid", "weights.txt"]
