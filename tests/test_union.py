import numpy as np
import pytest
from fixtures.coco import write_coco
from fixtures.nyud import write_nyud
from fixtures.sbd import write_sbd
from fixtures.voc import write_voc
from PIL import Image

from kerasseg.data import Cached, DataSet, Example, MaskCues, MaskedData, ObjectCrops, Subset, open_data
from kerasseg.data.layouts.coco_voc import CocoVoc
from kerasseg.data.layouts.sbd import Sbd
from kerasseg.data.layouts.voc import Voc
from kerasseg.data.preparation.preparing import prepare
from kerasseg.data.records import FileDataSet, Record
from kerasseg.data.views.union import Union, shared_examples
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, generic_table

PETS = generic_table(["ground", "cat", "dog"])


class Flat(DataSet):
    """Images of one value, `first` + index."""

    def __init__(self, ids, first=0, labels=PETS, mean=(1.0, 2.0, 3.0)):
        super().__init__(labels, ids, mean)
        self.first = first

    def read(self, index):
        value = self.first + index
        return Example(np.full((2, 3, 3), value, np.uint8), np.full((2, 3), value % 3, np.int32), self.ids[index], f"{value}.png")


def values(data):
    return [int(example.image[0, 0, 0]) for example in data]


def test_one_after_the_other_under_ids_of_their_own():
    union = Union({"many": Flat("abc"), "few": Flat("bd", 10)})
    assert (len(union), union.counts) == (5, {"many": 3, "few": 2})
    # Both have a `b`, which is not the same photograph.
    assert union.ids == ("a", "many/b", "c", "few/b", "d")
    assert values(union) == [0, 1, 2, 10, 11]
    assert [example.id for example in union] == list(union.ids)
    assert [example.path for example in union] == ["0.png", "1.png", "2.png", "10.png", "11.png"]
    for index, example in enumerate(union):
        assert np.array_equal(union.read_label(index), example.label)
        data, place = union.place(index)
        assert data.read(place).path == example.path
    assert (union.labels, union.mean, union.num_classes) == (PETS, (1.0, 2.0, 3.0), 3)


def test_data_sets_without_names_are_named_by_their_tables():
    assert Union([Flat("ab"), Flat("c", labels=generic_table(PETS.classes))]).counts == {"folder-1": 2, "folder-2": 1}
    assert Union([Flat("ab", labels=LABELS["voc"])]).counts == {"voc": 2}


def test_the_mean_is_that_of_all_examples():
    union = Union({"one": Flat("abc"), "other": Flat("d", mean=(5.0, 2.0, 7.0))})
    assert union.mean == (2.0, 2.0, 4.0)


def test_voc_and_sbd_share_photographs_and_no_others_do():
    voc = Flat(["2007_1", "2008_2"], 0, LABELS["voc"])
    sbd = Flat(["2008_2", "2009_3"], 10, LABELS["voc"])
    union = Union({"voc": voc, "sbd": sbd})
    assert (union.ids, values(union)) == (("2007_1", "2008_2", "2009_3"), [0, 1, 11])
    assert union.counts == {"voc": 2, "sbd": 1}
    # The label is that of the first named.
    assert values(Union({"sbd": sbd, "voc": voc})) == [10, 11, 0]
    assert values(Union({"voc:train": voc, "voc:val": sbd})) == [0, 1, 11]
    union = Union({"sbd": sbd, "coco_voc": voc})
    assert union.counts == {"sbd": 2, "coco_voc": 2}
    assert union.ids == ("sbd/2008_2", "2009_3", "2007_1", "coco_voc/2008_2")


def test_an_image_file_of_two_splits_is_listed_once(tmp_path):
    def listed(folder, *names):
        return FileDataSet(PETS, [Record(name, tmp_path / folder / f"{name}.jpg", None) for name in names])

    assert Union({"train": listed("x", "a", "b"), "val": listed("x", "b", "c")}).ids == ("a", "b", "c")
    assert Union({"train": listed("x", "a", "b"), "val": listed("y", "b", "c")}).ids == ("a", "train/b", "val/b", "c")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Flat("a", labels=generic_table(["ground", "dog", "cat"])), r"differ in class 1, which is 'cat' and 'dog': join only"),
        (
            Flat("a", labels=generic_table(["ground", "cat"])),
            r"\(2 classes\) differ in class 2, which is 'dog' and none",
        ),
    ],
)
def test_other_classes_are_refused(other, message):
    with pytest.raises(KerassegError, match=message) as error:
        Union({"one": Flat("a"), "other": other})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("channels", 4), ("inputs", {"x": 3}), ("heads", {"x": PETS}), ("photographs", False)])
def test_other_kinds_of_examples_are_refused(name, value):
    other = Flat("b")
    setattr(other, name, value)
    with pytest.raises(KerassegError, match=f"data sets 'one' and 'other' differ in their {name}, "):
        Union({"one": Flat("a"), "other": other})
    with pytest.raises(KerassegError, match="received no data set"):
        Union({})


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("shapes", "train+val", {"shapes:train": 6, "shapes:val": 6}),
        ("shapes+shapes", "val+test", {"shapes:val": 6, "shapes:test": 6}),
    ],
)
def test_opened_by_joined_names(name, split, counts):
    union = open_data(name, split=split, length=6)
    assert union.counts == counts and len(set(union.ids)) == len(union) == sum(counts.values())


def make_folder(root, names):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ncat\n")
    (root / "train.txt").write_text("\n".join(names))
    (root / "val.txt").write_text(names[0])
    for k, name in enumerate(names):
        Image.new("RGB", (4, 3), (k, 0, 0)).save(root / "images" / f"{name}.png")
        Image.new("L", (4, 3), 1).save(root / "masks" / f"{name}.png")


def test_where_the_folders_of_a_union_are(tmp_path):
    make_folder(tmp_path / "both" / "folder", ["a", "b"])
    make_folder(tmp_path / "second", ["b", "c", "d"])
    make_folder(tmp_path / "one, two", ["e"])
    first = tmp_path / "both" / "folder"
    # A folder that holds one of each name; the folder itself; two with a comma between; one whose name has a comma.
    assert open_data("folder+folder", tmp_path / "both", "train+val").ids == ("a", "b")
    assert open_data("folder+folder", first, "val+train").ids == ("a", "b")
    union = open_data("folder+folder", f"{first},{tmp_path / 'second'}", "train")
    assert union.ids == ("a", "folder:train/b", "folder:train:1/b", "c", "d")
    assert [len(data) for data in union.data_sets] == [2, 3]
    assert open_data("folder+folder", tmp_path / "one, two", "train+val").ids == ("e",)


def test_where_the_folder_of_one_name_is(tmp_path):
    make_folder(tmp_path / "both" / "folder", ["a", "b"])
    (tmp_path / "empty").mkdir()
    both, inner, empty = tmp_path / "both", tmp_path / "both" / "folder", tmp_path / "empty"
    for place in (both, inner, f"{empty},{both}", f"{inner},{tmp_path / 'none'}"):
        assert open_data("folder", place).ids == ("a", "b")
        assert open_data("folder", place, "val+train").ids == ("a", "b")
    with pytest.raises(
        KerassegError, match="none of 2 folders will do for data set 'folder': .*empty has no images.*; .*is no folder"
    ):
        open_data("folder", f"{empty},{tmp_path / 'none'}")
    # What all say is said once, as of one folder.
    with pytest.raises(KerassegError, match="^data set 'voc' has no split 'vall'"):
        open_data("voc", f"{empty},{both}", "vall")
    # What was prepared in a folder goes before a folder in it.
    make_folder(tmp_path / "around", ["x"])
    prepare("folder", tmp_path / "around")
    make_folder(tmp_path / "around" / "folder", ["y"])
    for names in ("folder", "folder+folder"):
        assert open_data(names, tmp_path / "around", "train+val").ids == ("x",)


def test_folders_are_found_by_the_name_of_the_family(tmp_path):
    write_nyud(tmp_path / "nyud")
    for name in ("nyud", "nyud_hha", "nyud_color_hha"):
        assert open_data(name, tmp_path, "test").ids == open_data(name, tmp_path / "nyud", "test").ids
    prepare("nyud", tmp_path / "nyud", splits=["test"])
    assert open_data("nyud_hha", tmp_path, "test").prepared is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shapes+shape", None, "train"), "unknown data set 'shape': did you mean 'shapes'"),
        (("shapes+shapes", None, "train+val+test"), "received the splits 'train.val.test': expected one for all, or 2 joined"),
        (("shapes+folder", "a,b,c", "train"), "received 3 folders, 'a,b,c': expected one that holds all, or 2 joined by commas"),
        (("shapes+folder", None, "train"), "data set 'folder' received no data_dir"),
        (("shapes", None, "val+train+val"), "received split 'val' of 'shapes' twice, of one folder: name each once"),
        (("shapes+shapes", None, "train"), "received split 'train' of 'shapes' twice, of one folder: name each once"),
    ],
)
def test_what_cannot_be_opened(arguments, message):
    with pytest.raises(KerassegError, match=message) as error:
        open_data(*arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="data set 'shapes.shapes' has no option 'sise': did you mean 'size'"):
        open_data("shapes+shapes", sise=3)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_coco(root / "coco_voc")
    write_voc(root / "voc")
    write_sbd(root / "voc")
    write_sbd(root / "sbd")
    return root


def test_first_stage_of_gcn_in_small(trees):
    """COCO's images with VOC's classes and the augmented VOC: 99,310 + 10,582 = 109,892 where they are whole."""
    union = open_data("coco_voc+voc", trees, "trainval+trainaug")
    coco, voc = open_data("coco_voc", trees / "coco_voc", "trainval"), open_data("voc", trees / "voc", "trainaug")
    assert union.counts == {"coco_voc": len(coco), "voc": len(voc)} and min(len(coco), len(voc)) > 2
    assert union.ids == coco.ids + voc.ids and union.labels.classes == LABELS["voc"].classes
    for one, other in zip(union, (*coco, *voc), strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.label, other.label)
    # By two folders, and with an option that only one of them has.
    places = f"{trees / 'coco_voc'},{trees / 'voc'}"
    assert open_data("coco_voc+voc", places, "trainval+trainaug", minimum_region=1).counts["voc"] == len(voc)
    # No option of one means something else in the other.
    assert open_data("coco_voc+voc", places, "trainval+trainaug", year=2012, release=2017).counts == union.counts


def test_photographs_of_voc_are_known_however_the_sets_are_named(trees, tmp_path):
    voc, sbd = trees / "voc", trees / "sbd"
    expected = open_data("voc+sbd", trees, "train+trainval")
    assert len(expected) < sum(map(len, expected.data_sets))
    prepare("voc", voc, tmp_path / "prepared", splits=["train"])
    for first in (open_data("voc", voc), Voc(voc), open_data("voc", tmp_path / "prepared")):
        for second in (open_data("sbd", sbd, "trainval"), Sbd(sbd, "trainval")):
            for union in (Union([first, second]), Union({"mine": first, "more": second})):
                assert union.ids == expected.ids and list(union.counts.values()) == list(expected.counts.values())
    # COCO's have the same classes and other photographs.
    for renamed in (open_data("coco_voc", trees / "coco_voc", "val"), CocoVoc(trees / "coco_voc", "val")):
        renamed.ids, first = expected.ids[: len(renamed)], expected.data_sets[0]
        for union in (Union([first, renamed]), Union({"voc": first, "sbd": renamed})):
            assert len(union) == len(first) + len(renamed)


def test_examples_that_are_trained_on_and_validated_on_are_found(trees, tmp_path):
    def shared(validation, training):
        return shared_examples(*(open_data(*each) for each in (validation, training)))

    voc, sbd, coco = trees / "voc", trees / "sbd", trees / "coco_voc"
    val = ("voc", voc, "val")
    # SBD's train holds images of VOC's val, whichever way they are named, and VOC's splits none of each other's.
    assert shared(val, ("voc+sbd", trees, "train+train")) == ("2007_000042",)
    assert shared(val, ("sbd", sbd, "trainval")) == shared(val, ("voc", voc, "sbd_and_train")) == ("2007_000042", "2008_000002")
    assert shared(val, ("voc", voc, "sbd_train")) == ("2007_000042",)
    assert shared(("voc", voc, "val_without_sbd"), ("voc+coco_voc", trees, "sbd_and_train+trainval")) == ()
    assert shared(val, ("voc", voc, "trainaug")) == () and shared(val, ("voc", voc, "trainval")) == open_data(*val).ids
    coco_val = ("coco_voc", coco, "val")
    assert shared(coco_val, ("coco_voc+voc", trees, "trainval+train")) == open_data(*coco_val).ids
    # What is made of data sets still has their images.
    data, held = open_data("voc", voc, "sbd_train"), open_data(*val)
    masked = MaskedData(data, MaskCues("keep", "mask"))
    for made in (Subset(data, [0, 1]), Cached(data, "memory"), ObjectCrops(Subset(data, [1]), minimum_size=1), masked):
        assert shared_examples(held, made) == ("2007_000042",)
    assert shared_examples(held, Subset(data, [0])) == ()
    prepare("voc", voc, tmp_path / "prepared", splits=["val", "sbd_train"])
    assert shared(("voc", tmp_path / "prepared", "val"), ("sbd", sbd, "train")) == ("2007_000042",)


def test_two_images_of_one_name_are_two(tmp_path):
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / kind / split).mkdir(parents=True)
            Image.new(mode, (4, 3)).save(tmp_path / kind / split / "image1.png")
    (tmp_path / "classes.txt").write_text("ground\n")
    train, val = (open_data("folder", tmp_path, split) for split in ("train", "val"))
    assert train.ids == val.ids and shared_examples(val, train) == () and shared_examples(val, val) == ("image1",)
    shapes = open_data("shapes", length=2)
    assert shared_examples(shapes, shapes) == ()


def test_voc_sbd_and_coco_in_small(trees):
    union = open_data("voc+sbd+coco_voc", trees, "train+trainval+trainval")
    voc, sbd = open_data("voc", trees / "voc", "train"), open_data("sbd", trees / "sbd", "trainval")
    shared = set(voc.ids) & set(sbd.ids)
    coco = len(open_data("coco_voc", trees / "coco_voc", "trainval"))
    assert shared and union.counts == {"voc": len(voc), "sbd": len(sbd) - len(shared), "coco_voc": coco}
    assert len(set(union.ids)) == len(union) and set(union.ids) >= set(voc.ids) | set(sbd.ids)
    place = union.ids.index(min(shared))
    assert np.array_equal(union[place].label, voc[voc.ids.index(min(shared))].label)
