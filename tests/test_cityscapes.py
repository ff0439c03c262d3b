import json
import shutil

import numpy as np
import pytest
from fixtures.cityscapes import IMAGES, SIZE, TRAIN_IDS, polygons, to_train_ids, write_cityscapes
from fixtures.pictures import write_color_mask, write_index_mask
from PIL import Image

from kerasseg.data import open_data
from kerasseg.data.layouts.cityscapes_labels import draw_polygons
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

GOLDEN = "cityscapes_labels.npz"
MASK = "gtFine/train/aachen/aachen_000000_000019_gtFine_"


@pytest.fixture(scope="module")
def golden(request):
    with np.load(request.path.parent / "golden" / GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("form", ["labelIds.png", "labelTrainIds.png"])
def test_splits_and_arrays(form, tmp_path):
    known = write_cityscapes(tmp_path, form)
    parts = {
        "train": ["train"],
        "val": ["val"],
        "test": ["test"],
        "trainval": ["train", "val"],
        "train_extra": ["train_extra"],
        "train_coarse": ["train", "train_extra"],
        "trainval_coarse": ["train", "val", "train_extra"],
    }
    for labels in ("fine", "coarse"):
        for split, folders in parts.items():
            data = open_data("cityscapes", tmp_path, split, labels=labels)
            assert data.ids == sum((IMAGES[folder] for folder in folders), ())
            for example in data:
                kind = "coarse" if example.id in IMAGES["train_extra"] or (labels == "coarse" and split != "test") else "fine"
                image, label = known[kind][example.id]
                np.testing.assert_array_equal(example.image, image)
                if split == "test":
                    assert example.label is None
                else:
                    np.testing.assert_array_equal(example.label, label)
    # What the two kinds say of one image differs, or the test above proves nothing of the argument.
    name = IMAGES["train"][0]
    assert not np.array_equal(known["fine"][name][1], known["coarse"][name][1])


def test_table_is_that_of_the_release():
    assert {value: label for value, label in LABELS["cityscapes"].file_to_label.items() if label != 255} == TRAIN_IDS
    assert to_train_ids(np.arange(34)).tolist() == [LABELS["cityscapes"].file_to_label[value] for value in range(34)]


def test_polygons_are_drawn_as_the_authors_draw_them(golden, tmp_path):
    write_cityscapes(tmp_path, "polygons.json")
    drawn, seen = 0, set()
    for split, labels in (("trainval_coarse", "fine"), ("trainval", "coarse")):
        data = open_data("cityscapes", tmp_path, split, labels=labels)
        for example, record in zip(data, data.records, strict=True):
            stem = record.mask.name.removesuffix("_polygons.json")
            np.testing.assert_array_equal(draw_polygons(record.mask), golden[stem + "_ids"])
            np.testing.assert_array_equal(example.label, golden[stem + "_trainIds"])
            drawn, seen = drawn + 1, seen | set(np.unique(example.label).tolist())
    # All but those of the test, each by ids and by train ids.
    assert drawn == 12 and len(golden) == 2 * (drawn + 1)
    assert {0, 2, 5, 7, 10, 11, 12, 13, 255} <= seen


def test_ids_are_read_before_polygons(tmp_path):
    known = write_cityscapes(tmp_path, "labelIds.png")["fine"]
    for form in ("labelTrainIds.png", "polygons.json"):
        write_cityscapes(tmp_path / "other", form)
        shutil.copytree(tmp_path / "other" / "gtFine", tmp_path / "gtFine", dirs_exist_ok=True)
    data = open_data("cityscapes", tmp_path, "val")
    assert all(record.mask.name.endswith("labelIds.png") for record in data.records)
    assert all(np.array_equal(example.label, known[example.id][1]) for example in data)


@pytest.mark.parametrize("place", [".", "..", "leftImg8bit"])
def test_folder_may_be_pointed_at_in_several_ways(place, tmp_path):
    write_cityscapes(tmp_path / "cityscapes")
    assert len(open_data("cityscapes", tmp_path / "cityscapes" / place, "train")) == 3


def test_what_prepare_data_keeps(tmp_path):
    """A file is kept as it is only where the table reads it; of the rest the labels are."""
    known = write_cityscapes(tmp_path / "ids")["fine"]
    name = IMAGES["train"][0]
    sources = open_data("cityscapes", tmp_path / "ids", "train").sources(0)
    assert sources["mask"] == tmp_path / "ids" / f"{MASK}labelIds.png" and sources["image"].name == f"{name}_leftImg8bit.png"
    write_cityscapes(tmp_path / "train_ids", "labelTrainIds.png")
    np.testing.assert_array_equal(open_data("cityscapes", tmp_path / "train_ids", "train").sources(0)["mask"], known[name][1])
    write_cityscapes(tmp_path / "polygons", "polygons.json")
    data = open_data("cityscapes", tmp_path / "polygons", "train")
    np.testing.assert_array_equal(data.sources(0)["mask"], data[0].label)
    assert set(open_data("cityscapes", tmp_path / "ids", "test").sources(0)) == {"image"}


def _ids(void=False):
    ids = np.array([[7, 8, 26, 33], [1, 3, 0, 11]]).repeat(SIZE[0] // 2, 0).repeat(SIZE[1] // 4, 1)
    return to_train_ids(ids) if void else ids


@pytest.mark.parametrize(
    "form, damage, message",
    [
        ("labelIds.png", lambda path: write_index_mask(path, _ids(void=True)), r"named ids but holds 255 \(432 pixels\)"),
        ("labelTrainIds.png", lambda path: write_index_mask(path, _ids()), r"named train ids but holds 26 \(car\), an id"),
        ("labelIds.png", lambda path: write_index_mask(path, _ids() * 1000), "holds the value 7000"),
        ("labelIds.png", lambda path: write_color_mask(path, _ids(), [(9, 9, 9)] * 34), "holds colours, .* pole from polegroup"),
        ("labelIds.png", lambda path: write_index_mask(path, _ids()[:-1]), "48×23 but image"),
        ("labelIds.png", lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot decode"),
        ("polygons.json", lambda path: path.write_text("{"), r"cannot draw .*polygons.json \(JSONDecodeError"),
        ("polygons.json", lambda path: path.write_text('{"objects": []}'), "KeyError: 'imgWidth'"),
        ("polygons.json", lambda path: path.unlink(), "no such file"),
    ],
)
def test_what_is_refused(form, damage, message, tmp_path):
    write_cityscapes(tmp_path, form)
    data = open_data("cityscapes", tmp_path, "train")
    assert data[0].label is not None
    damage(tmp_path / (MASK + form))
    with pytest.raises(KerassegError, match=message) as error:
        data[0]
    assert MASK in str(error.value) and "\n" not in str(error.value)
    assert data[1].label is not None


def test_ids_of_16_bits_are_read(tmp_path):
    known = write_cityscapes(tmp_path)["fine"][IMAGES["train"][0]][1]
    path = tmp_path / f"{MASK}labelIds.png"
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    np.testing.assert_array_equal(open_data("cityscapes", tmp_path, "train")[0].label, known)


def test_damaged_polygons_end_in_one_line(tmp_path):
    """A bit that has flipped leaves the file readable, or ends in a line that names it."""
    path, generator, told = tmp_path / "x_gtFine_polygons.json", np.random.default_rng(0), 0
    whole = json.dumps(polygons(0)).encode()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            assert draw_polygons(path).ndim == 2
        except KerassegError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            told += 1
    assert 100 < told < 300


@pytest.mark.parametrize("side", [0, -3, 30_001, 10**9, 48.0, True, "48", None])
def test_sides_that_no_photograph_has_are_refused_before_they_take_memory(side, tmp_path):
    path = tmp_path / "x_gtFine_polygons.json"
    for name in ("imgWidth", "imgHeight"):
        path.write_text(json.dumps({**polygons(0), name: side}))
        with pytest.raises(KerassegError, match=r"cannot draw .*imgWidth and imgHeight are .*, not 1 to 30000"):
            draw_polygons(path)


def test_unknown_class_of_a_polygon(tmp_path):
    path = tmp_path / "x_gtFine_polygons.json"
    path.write_text(json.dumps({**polygons(0), "objects": [{"label": "dragon", "polygon": [[0, 0], [5, 0], [5, 5]]}]}))
    with pytest.raises(KerassegError, match="names the class 'dragon'.*unlabeled, ego vehicle"):
        draw_polygons(path)
    # A single point: json2labelImg stops at it, since PIL does.
    path.write_text(
        json.dumps({**polygons(0), "objects": [{"label": "road", "polygon": [[3, 3]]}, {"label": "car", "polygon": []}]})
    )
    assert not draw_polygons(path).any()


@pytest.mark.parametrize(
    "lost, arguments, message",
    [
        (None, {"split": "trainn"}, "no split 'trainn': did you mean 'train'"),
        (None, {"labels": "medium"}, "labels='medium': expected 'fine' or 'coarse'"),
        ("leftImg8bit", {}, "does not hold data set 'cityscapes': expected leftImg8bit"),
        ("leftImg8bit/train_extra", {"split": "train_coarse"}, "no folder .*train_extra: .*unpack leftImg8bit_trainextra.zip"),
        ("leftImg8bit/val/munster", {"split": "trainval"}, None),
        ("gtFine", {"split": "val"}, r"has no labels \(2 of 2 .*frankfurt_000000_000294_gtFine_labelIds.png, or .*polygons.json"),
        (f"{MASK}labelIds.png", {}, r"aachen_000000_000019_leftImg8bit.png has no labels \(1 of 3 "),
        ("gtFine/test", {"split": "test"}, None),
    ],
)
def test_what_is_missing(lost, arguments, message, tmp_path):
    write_cityscapes(tmp_path)
    if lost:
        shutil.rmtree(tmp_path / lost) if (tmp_path / lost).is_dir() else (tmp_path / lost).unlink()
    if message is None:
        assert open_data("cityscapes", tmp_path, **arguments)[0].image.shape == (*SIZE, 3)
        return
    with pytest.raises(KerassegError, match=message) as error:
        open_data("cityscapes", tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(KerassegError, match="holds no image: expected <city>/.*unpack leftImg8bit_trainvaltest.zip"):
        open_data("cityscapes", tmp_path, "val")
