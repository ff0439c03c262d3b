"""Boxes from files and made of images."""

import json
import sys
import types

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.data import boxes_of, by_size, check_boxes, dense_windows, read_boxes, selective_search

LISTED = {"b": [[0, 0, 5, 4], [2, 1, 9, 8]], "a": [[3, 3, 4, 4]]}
TEXT = "image,left,top,right,bottom\nb,0,0,5,4\na, 3,3,4,4\n\nb,2,1,9,8\n"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(("name", "content"), [("boxes.json", LISTED), ("boxes.csv", TEXT), ("boxes.CSV", "\ufeff" + TEXT)])
def test_files_keep_their_order(tmp_path, name, content):
    found = read_boxes(write(tmp_path / name, content))
    assert {key: value.tolist() for key, value in found.items()} == LISTED
    assert all(value.dtype == np.int32 for value in found.values())


HEAD = "image,left,top,right,bottom\n"
BAD = {
    "empty.json": ("", "is empty"),
    "blank.csv": ("\n \n", "is empty"),
    "cut.json": ('{"a": [[1, 2', r"is no JSON \(Expecting"),
    "list.json": ([[1, 2, 3, 4]], "holds a list, expected a mapping"),
    "none.json": ({}, "names no image"),
    "header.csv": (HEAD, "names no image"),
    "columns.csv": ("image,x,y,w,h\na,1,2,3,4\n", "has the columns 'image,x,y,w,h': expected image,left,top,right,bottom"),
    "bare.csv": ("a,1,2,3,4\n", "has the columns 'a,1,2,3,4'"),
    "short.csv": (HEAD + "a,1,2,3,4\na,1,2,3\n", "line 3 is 'a,1,2,3': expected an image and four whole numbers"),
    "words.csv": (HEAD + "a,1,2,3,x\n", "line 2 is 'a,1,2,3,x'"),
    "fraction.csv": (HEAD + "a,1,2,3.5,9\n", "line 2"),
    "blanks.csv": ("\n" + HEAD + "\n\na,1,2,3\n", "line 5 is 'a,1,2,3'"),
    "long.csv": (HEAD + "a" * 140_000 + ",1,2,3,4\n", r"is no CSV \(line 2: field larger than field limit"),
    "long_head.csv": ("a" * 1000 + ",1,2,3,4\n", "has the columns 'aaa"),
    "digits.csv": (HEAD + "a,1,2,3," + "9" * 5000 + "\n", "line 2 is 'a,1,2,3,999"),
    "digits.json": ('{"a": [[0, 0, 5, ' + "9" * 5000 + "]]}", r"is no JSON \(Exceeds the limit"),
    "brackets.json": ("[" * 100_000, r"is no JSON \(maximum recursion depth"),
    "deep.json": ('{"a": ' + "[" * 500 + "]" * 500 + "}", "expected a list of"),
    "least.json": ({"a": [[-(2**63), 0, 5, 5]]}, "in whole pixels"),
    "no_boxes.json": ({"a": []}, "no boxes of image 'a' in "),
    "three.json": ({"a": [[1, 2, 3]]}, r"are \[\[1, 2, 3\]\]: expected a list of \[left, top, right, bottom\] in whole pixels"),
    "ragged.json": ({"a": [[1, 2, 3, 4], [1, 2]]}, "expected a list of"),
    "flat.json": ({"a": [1, 2, 3, 4]}, "expected a list of"),
    "text.json": ({"a": [["1", "2", "3", "4"]]}, "expected a list of"),
    "truth.json": ({"a": True}, "expected a list of"),
    "null.json": ({"a": None}, "expected a list of"),
    "half.json": ({"a": [[0, 0, 2.5, 3]]}, "in whole pixels"),
    "huge.json": ({"a": [[0, 0, 10**12, 3]]}, "in whole pixels"),
    "area.json": ({"a": [[0, 0, 2, 3], [5, 5, 5, 9]]}, r"box 1 \[5, 5, 5, 9\] of image 'a' in .* has no area \(1 of 2\)"),
    "turned.json": ({"a": [[9, 9, 5, 5]]}, "has no area"),
    "outside.json": ({"a": [[-1, 0, 5, 5]]}, "lies outside the image"),
    "boxes.txt": ("a 1 2 3 4", "expected a .json or .csv file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(tmp_path, name):
    content, message = BAD[name]
    with pytest.raises(KerassegError, match=message) as error:
        read_boxes(write(tmp_path / name, content))
    assert "\n" not in str(error.value) and name in str(error.value) and len(str(error.value)) < 400


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(KerassegError, match="no such file; expected"):
        read_boxes(tmp_path / "none.json")
    (tmp_path / "image.csv").write_bytes(bytes(range(256)))
    with pytest.raises(KerassegError, match="cannot be read as text"):
        read_boxes(tmp_path / "image.csv")


def test_boxes_must_lie_in_their_image():
    boxes = [[0, 0, 6, 4], [5, 3, 6, 4]]
    np.testing.assert_array_equal(check_boxes(boxes, (4, 6)), boxes)
    assert check_boxes(np.float64(boxes), (4, 6)).dtype == np.int32
    for box in ([0, 0, 7, 4], [0, 0, 6, 5], [-1, 0, 6, 4], [0, -1, 6, 4], [7, 0, 9, 2]):
        with pytest.raises(KerassegError, match=r"box 2 .* of x lies outside the image of 4x6 pixels \(height x width\)") as error:
            check_boxes([*boxes, box], (4, 6), " of x")
        assert "expected 0 <= left < right <= 6 and 0 <= top < bottom <= 4" in str(error.value)
    with pytest.raises(KerassegError, match="in whole pixels"):
        check_boxes([[0, 0, np.nan, 4]], (4, 6))
    with pytest.raises(KerassegError, match="no boxes"):
        check_boxes(np.zeros((0, 4), int), (4, 6))


def test_boxes_are_found_by_id_or_file_name():
    listed = {"a": np.int32([[0, 0, 1, 1]])}
    for name in ("a", "a.jpg", "images/a.png"):
        assert boxes_of(listed, name) is listed["a"]
    with pytest.raises(KerassegError, match="the file of boxes has no boxes for image 'b': it lists 1 images, e.g. 'a'"):
        boxes_of(listed, "b")


def test_the_largest_come_first():
    boxes = np.int32([[0, 0, 2, 2], [0, 0, 9, 1], [5, 5, 7, 7], [0, 0, 60000, 60000], [1, 1, 2, 2]])
    np.testing.assert_array_equal(by_size(boxes), boxes[[3, 1, 0, 2, 4]])


@pytest.mark.parametrize("size", [(375, 500), (360, 480), (224, 224), (97, 65), (7, 5), (1, 1)])
def test_windows_cover_the_image_at_every_scale(size):
    windows = dense_windows(size)
    np.testing.assert_array_equal(windows, dense_windows(size))
    np.testing.assert_array_equal(windows[0], [0, 0, size[1], size[0]])
    np.testing.assert_array_equal(check_boxes(windows, size), windows)
    assert len(np.unique(windows, axis=0)) == len(windows)
    areas = np.prod(windows[:, 2:] - windows[:, :2], axis=1)
    assert list(areas) == sorted(areas, reverse=True)
    for area in set(areas):
        covered = np.zeros(size, bool)
        for left, top, right, bottom in windows[areas == area]:
            covered[top:bottom, left:right] = True
        assert covered.all()


def test_default_windows_are_those_the_authors_rule_admits():
    windows = dense_windows((375, 500))
    assert len(windows) == 1 + 4 + 9 + 25 <= 50
    assert (windows[:, 2:] - windows[:, :2]).min() == 125 >= 112
    # Half a window further: an object of up to half its sides lies in one of them whole.
    lefts = np.unique(windows[5:14, 0])
    np.testing.assert_array_equal(lefts, [0, 125, 250])


def test_windows_of_other_scales():
    np.testing.assert_array_equal(
        dense_windows((4, 8), (0.5, 1), overlap=0), [[0, 0, 8, 4], [0, 0, 4, 2], [4, 0, 8, 2], [0, 2, 4, 4], [4, 2, 8, 4]]
    )
    for arguments in (((0, 5),), ((5, 5), ()), ((5, 5), (0.0,)), ((5, 5), (1.5,)), ((5, 5), (1.0,), 1.0), ((5, 5), (1.0,), -0.1)):
        with pytest.raises(KerassegError, match="dense_windows received size="):
            dense_windows(*arguments)


@pytest.mark.parametrize("module", [None, types.SimpleNamespace()], ids=["no_opencv", "without_contrib"])
def test_selective_search_says_what_it_needs(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "cv2", module)
    with pytest.raises(KerassegError, match="selective search needs opencv-contrib: run `pip install opencv-contrib"):
        selective_search(np.zeros((4, 4, 3), np.uint8))


class Search:
    """What OpenCV's object does, as far as it is called."""

    def __init__(self, result):
        self.result, self.calls = result, []

    def setBaseImage(self, image):
        assert image.flags.c_contiguous and image.dtype == np.uint8
        self.calls.append(image[0, 0].tolist())

    def switchToSelectiveSearchFast(self):
        self.calls.append("fast")

    def switchToSelectiveSearchQuality(self):
        self.calls.append("quality")

    def process(self):
        return self.result


def with_search(monkeypatch, result):
    search = Search(result)
    segmentation = types.SimpleNamespace(createSelectiveSearchSegmentation=lambda: search)
    fake = types.SimpleNamespace(ximgproc=types.SimpleNamespace(segmentation=segmentation))
    monkeypatch.setitem(sys.modules, "cv2", fake)
    return search


def test_selective_search_calls_opencv(monkeypatch):
    image = np.zeros((6, 8, 3), np.uint8)
    image[0, 0] = (10, 20, 30)
    search = with_search(monkeypatch, np.int32([[0, 0, 8, 6], [1, 2, 3, 4]]))
    np.testing.assert_array_equal(selective_search(image), [[0, 0, 8, 6], [1, 2, 4, 6]])
    selective_search(image, fast=False)
    assert search.calls == [[30, 20, 10], "fast", [30, 20, 10], "quality"]
    with_search(monkeypatch, ())
    with pytest.raises(KerassegError, match="no boxes of selective search"):
        selective_search(image)
