"""PASCAL-Person-Part: a miniature of MATLAB's files, which come without lists, and the authors' own masks."""

import numpy as np
import pytest
from fixtures.person_part import PARTS, WITH_PARTS, write_person_part, write_person_part_pngs
from scipy.io import savemat

from kerasseg.data import open_data
from kerasseg.data.layouts import person_part
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


def check(data, known):
    for example in data:
        image, label = known[example.id]
        np.testing.assert_array_equal(example.image, image)
        assert example.label.dtype == np.int32
        np.testing.assert_array_equal(example.label, label)


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("split", WITH_PARTS)
def test_images_with_parts_are_found_and_read(split, flags, tmp_path, monkeypatch):
    known = write_person_part(tmp_path, flags)
    read, original = [], person_part._read_people
    monkeypatch.setattr(person_part, "_read_people", lambda path: read.append(path.stem) or original(path))
    data = open_data("pascal_person_part", tmp_path, split)
    assert data.ids == WITH_PARTS[split] and data.num_classes == 7
    # VOC's lists say where there are people, so that the other files need not be read.
    assert ("2008_000015" in read) == (not flags and split != "val")
    check(data, known)


def test_every_one_of_the_24_parts_has_its_class(tmp_path):
    classes = LABELS["pascal_person_part"].classes
    assert {part: classes.index(name) for part, name in person_part.PARTS.items()} == PARTS and len(PARTS) == 24
    known = write_person_part(tmp_path)
    assert set(np.unique(known["2008_000032"][1])) == set(range(7))
    assert open_data("pascal_person_part", tmp_path / "VOCdevkit" / "VOC2010", "val").ids == WITH_PARTS["val"]


def test_the_masks_of_the_authors_go_first(tmp_path):
    known = write_person_part_pngs(tmp_path)
    for path in (tmp_path / "trainval" / "Annotations_Part").iterdir():
        path.write_text("damaged")
    for split in WITH_PARTS:
        data = open_data("pascal_person_part", tmp_path, split)
        assert data.ids == WITH_PARTS[split]
        check(data, known)
    place = tmp_path / "pascal_person_part"
    assert open_data("pascal_person_part", place, "val").ids == WITH_PARTS["val"]
    assert open_data("pascal_person_part", place, "val", voc_dir=tmp_path / "VOCdevkit").ids == WITH_PARTS["val"]


def test_the_lists_of_the_authors_do_for_matlabs_files(tmp_path):
    known = write_person_part_pngs(tmp_path)
    for path in (tmp_path / "pascal_person_part" / "pascal_person_part_gt").iterdir():
        path.unlink()
    (tmp_path / "pascal_person_part" / "pascal_person_part_gt").rmdir()
    listed = tmp_path / "pascal_person_part" / "pascal_person_part_trainval_list" / "val.txt"
    listed.write_text(f"{WITH_PARTS['val'][1]}\n")
    data = open_data("pascal_person_part", tmp_path, "val")
    assert data.ids == WITH_PARTS["val"][1:]
    check(data, known)
    np.testing.assert_array_equal(data.sources(0)["mask"], known[data.ids[0]][1])
    # An image without people has a size as long as anything is annotated.
    listed.write_text("2008_000015\n2008_000019\n")
    data = open_data("pascal_person_part", tmp_path, "val")
    assert not data[0].label.any()
    with pytest.raises(KerassegError, match=r"000019\.mat annotates no object, so it does not say the size"):
        data[1]


@pytest.mark.parametrize("year", [2012, 2011])
def test_photographs_of_a_later_year_do_where_there_are_lists(year, tmp_path):
    known = write_person_part_pngs(tmp_path)
    devkit = tmp_path / "VOCdevkit"
    (devkit / "VOC2010").rename(devkit / f"VOC{year}")
    data = open_data("pascal_person_part", tmp_path, "val")
    assert data.ids == WITH_PARTS["val"]
    check(data, known)
    # Without, the splits are those of VOC 2010.
    (tmp_path / "pascal_person_part" / "pascal_person_part_trainval_list").rename(tmp_path / "elsewhere")
    with pytest.raises(KerassegError, match="'pascal_person_part' needs VOC 2010"):
        open_data("pascal_person_part", tmp_path, "val")


def _annotation(name, **part):
    structs = np.zeros((1, 1), [(field, object) for field in ("class", "class_ind", "mask", "parts")])
    parts = np.zeros((1, 1), [("part_name", object), ("mask", object)])
    parts[0, 0] = (part.get("part_name", "head"), part.get("mask", np.ones((4, 5), np.uint8)))
    structs[0, 0] = ("person", 15, np.ones((4, 5), np.uint8), parts)
    return {"anno": {"imname": name, "objects": structs}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_annotation("x", part_name="tentacle"), r"000003\.mat holds a person's part 'tentacle'.*24 names of PASCAL-Part"),
        ({"other": 1}, r"cannot read .*000003\.mat \(KeyError.*variable anno"),
        ({"anno": {"imname": "x"}}, r"cannot read .*000003\.mat .*variable anno"),
    ],
)
def test_damaged_annotations_are_named(content, message, tmp_path):
    write_person_part(tmp_path)
    savemat(tmp_path / "trainval" / "Annotations_Part" / "2008_000003.mat", content)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("pascal_person_part", tmp_path)
    assert "\n" not in str(error.value)


def test_masks_of_several_sizes_are_named(tmp_path):
    write_person_part(tmp_path)
    savemat(tmp_path / "trainval" / "Annotations_Part" / "2008_000003.mat", _annotation("x", mask=np.ones((4, 6), np.uint8)))
    with pytest.raises(KerassegError, match=r"000003\.mat holds masks of \(5, 4\) and \(6, 4\) pixels"):
        open_data("pascal_person_part", tmp_path)[0]


def test_what_is_missing_is_said_in_one_line(tmp_path):
    write_person_part(tmp_path)
    annotations = tmp_path / "trainval" / "Annotations_Part"
    (annotations / "2008_000003.mat").unlink()
    with pytest.raises(KerassegError, match=r"no such file: .*2008_000003\.mat"):
        open_data("pascal_person_part", tmp_path)
    with pytest.raises(KerassegError, match="no split 'test'"):
        open_data("pascal_person_part", tmp_path, "test")
    main = tmp_path / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    (main / "person_train.txt").write_text("2008_000008  1\n")
    with pytest.raises(KerassegError, match="no image of split 'train' has a person with parts"):
        open_data("pascal_person_part", tmp_path)
    annotations.rename(tmp_path / "else")
    with pytest.raises(KerassegError, match=r"does not hold data set 'pascal_person_part': expected Annotations_Part/\*\.mat, or"):
        open_data("pascal_person_part", tmp_path)
