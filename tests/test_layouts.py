"""What holds of every layout on disk, each in miniature."""

import os
import typing
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
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
from kerasseg.data.paths import data_path
from kerasseg.data.preparation.preparing import prepare
from kerasseg.data.signatures import check_value, options_of
from kerasseg.data.table import DATA_SETS
from kerasseg.errors import KerassegError


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


def _voc_and_sbd(root):
    write_voc(root)
    write_sbd(root / "further")


def _context(root):
    write_context(root)
    (root / "VOCdevkit").rename(root / "further")


def _person_part(root):
    write_person_part(root)
    (root / "VOCdevkit").rename(root / "further")


def _coco(root):
    write_coco(root, "2014")
    (root / "further").write_text("42\n73\n")


# Name → what writes it with `further`, the option that says where that is, and a split that needs it.
PLACES = {
    "voc": (_voc_and_sbd, "sbd_dir", "trainaug"),
    "pascal_context": (_context, "voc_dir", "val"),
    "pascal_person_part": (_person_part, "voc_dir", "val"),
    "coco_voc": (_coco, "minival", "minival"),
}


def test_every_option_that_is_a_path_is_known_as_one():
    paths = {name: [o for o, hint in options_of(DATA_SETS[name]).items() if "PathLike" in str(hint)] for name in DATA_SETS}
    assert {name: tuple(own) for name, own in paths.items() if own} == {name: (option,) for name, (_, option, _) in PLACES.items()}
    assert all(DATA_SETS[name].places == tuple(own) for name, own in paths.items())


@pytest.mark.parametrize("name", PLACES)
def test_what_was_prepared_does_not_depend_on_where_the_files_lay(name, tmp_path):
    write, option, split = PLACES[name]
    write(tmp_path / "data")
    place = tmp_path / "data" / "further"
    direct = open_data(name, tmp_path / "data", split, **{option: place})
    outcome = prepare(name, tmp_path / "data", tmp_path / "out", splits=[split], options={option: str(place)})
    assert option not in outcome.header["options"]
    # As given, as anybody else would, or not at all.
    for options in ({option: place}, {option: "/nowhere"}, {}):
        data = open_data(name, tmp_path / "out", split, **options)
        assert data.ids == direct.ids and data.prepared is not None
    np.testing.assert_array_equal(data[0].label, direct[0].label)
    assert prepare(name, tmp_path / "data", tmp_path / "out", splits=[split], options={option: place}).done == 0
    # Other options still are others.
    for other, value in {"year": 2012, "background": "ignore", "minimum_region": 1}.items():
        if other in options_of(DATA_SETS[name]):
            with pytest.raises(KerassegError, match=f"was prepared with {other}="):
                open_data(name, tmp_path / "out", split, **{other: value})


@pytest.mark.parametrize("folder", [".", "VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/JPEGImages"])
def test_a_relative_path_is_the_same_as_the_whole_one(folder, tmp_path, monkeypatch):
    write_voc(tmp_path / "VOCdevkit")
    write_sbd(tmp_path)
    expected = [str(record.image) for record in open_data("voc", tmp_path, "trainaug").records]
    monkeypatch.chdir(tmp_path / folder)
    for place in {".": ".", "VOCdevkit": "VOC2012 . ..", "VOCdevkit/VOC2012": "."}.get(folder, "..").split():
        data = open_data("voc", place, "trainaug")
        assert [str(record.image) for record in data.records] == expected, place
    # A name of the folder is seen: 2012 is not 2011.
    if folder == "VOCdevkit/VOC2012":
        with pytest.raises(KerassegError, match="does not hold VOC 2011"):
            open_data("voc", ".", year=2011)
    up = Path(*[".."] * len(Path(folder).parts))
    assert open_data("sbd", up / "benchmark_RELEASE", "train").ids == open_data("sbd", tmp_path, "train").ids


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shapes", {"size": 5}, "received size=5: expected a list of which each is a whole number"),
        ("shapes", {"size": [96, "wide"]}, r"received size=\[96, 'wide'\]: expected a list"),
        ("shapes", {"size": "96"}, "received size='96': expected a list"),
        ("shapes", {"length": True}, "received length=True: expected a whole number or none"),
        ("shapes", {"seed": "1"}, "received seed='1': expected a whole number"),
        ("shapes", {"seed": 1.5}, "received seed=1.5: expected a whole number"),
        ("shapes", {"split": ["train"]}, r"received split=\['train'\]: expected text"),
        ("shapes", {"split": None}, "received split=None: expected text"),
        ("shapes", {"data_dir": 3}, "received data_dir=3: expected text or a path or none"),
        ("shapes+shapes", {"seed": [1]}, r"data set 'shapes' received seed=\[1\]: expected"),
        ("folder", {"split": 0}, "received split=0: expected text"),
        ("csv", {"classes": 3}, "received classes=3: expected text or a list of which each is text or none"),
        ("voc", {"year": "2012"}, "received year='2012': expected a whole number or none"),
        ("voc", {"sbd_dir": 3}, "received sbd_dir=3: expected text or a path or none"),
        ("coco_voc", {"minimum_region": "big"}, "received minimum_region='big': expected a whole number"),
        ("coco_voc", {"release": [2014]}, r"received release=\[2014\]: expected text or a whole number or none"),
        ("camvid", {"class_order": 1}, "received class_order=1: expected text"),
        ("cityscapes", {"labels": ["fine"]}, r"received labels=\['fine'\]: expected text"),
        ("nyud_hha", {"crop": "no"}, "received crop='no': expected true or false"),
        ("nyud", {"crop": 1}, "received crop=1: expected true or false"),
        ("sift_flow", {"head": 1}, "received head=1: expected text or none"),
        ("tfds", {"ignore": ["3"]}, r"received ignore=\['3'\]: expected a whole number or a list of which each is a whole number"),
    ],
)
def test_values_of_another_type_are_said_in_one_line(name, options, message, tmp_path):
    given = {"data_dir": None if "shapes" in name else tmp_path, **options}
    with pytest.raises(KerassegError, match=message) as error:
        open_data(name, **given)
    assert "\n" not in str(error.value) and f"'{name.partition('+')[0]}'" in str(error.value)
    own = {option: value for option, value in options.items() if option not in ("split", "data_dir")}
    if own and "+" not in name:
        with pytest.raises(KerassegError, match=message):
            prepare(name, given["data_dir"], tmp_path / "out", options=own)


def test_values_of_the_right_type_are_taken():
    assert open_data("shapes", size=[20, 24], length=np.int64(2), seed=0)[0].image.shape == (20, 24, 3)
    for hint, values in {
        "int | None": (3, None),
        "str | os.PathLike | None": ("a", Path("a"), None, data_path("gs://bucket/a")),
        "Sequence[str] | int | None": (["a"], ("a", "b"), 3),
        "int | Collection[int]": (3, {3}, [], (1, 2)),
        "typing.Optional[float]": (1, 1.5, None),
        "dict[str, int]": ({"a": 1},),
        "Any": (object(),),
    }.items():
        hint = eval(hint, {"os": os, "typing": typing, "Any": typing.Any, "Sequence": Sequence, "Collection": Collection})
        for value in values:
            check_value("x", "y", value, hint)
    # Text would be a list of its letters.
    for value, hint, expected in (
        ("1.5", float | None, "a number or none"),
        ("cat", Sequence[str], "a list of which each is text"),
    ):
        with pytest.raises(KerassegError, match=f"data set 'x' received y='{value}': expected {expected}"):
            check_value("x", "y", value, hint)
