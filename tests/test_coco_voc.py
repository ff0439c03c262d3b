import builtins
import json
import shutil

import numpy as np
import pycocotools.mask
import pytest
from fixtures.coco import FOLDERS, NUMBERS, RING, SIZE, THINGS, annotations, write_coco

from kerasseg.data import open_data
from kerasseg.data.layouts.coco_regions import _runs, image_numbers, read_instances
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

# Those with a region of a VOC class that is no crowd.
WITH_CLASSES = {9, 25, 42, 61, 71, 73}
SPLITS = {
    "2017": {
        "train": ["train2017"],
        "val": ["val2017"],
        "trainval": ["train2017", "val2017"],
        "minival": ["val2017"],
        "trainval_minus_minival": ["train2017"],
    },
    "2014": {"train": ["train2014"], "val": ["val2014"], "trainval": ["train2014", "val2014"]},
}


@pytest.fixture(scope="module")
def masks(request):
    with np.load(request.path.parent / "golden" / "coco_masks.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    return root, write_coco(root, "2014"), write_coco(root, "2017", images="images")


def numbers(data):
    return [int(name[-12:]) for name in data.ids]


def expected_label(number, masks):
    """Crowds below, then all else from the largest to the smallest, out of pycocotools' mask of each annotation."""
    label = np.zeros(SIZE, np.int32)
    things = [(crowd, area, category, place) for place, (category, _, area, crowd) in enumerate(THINGS[number])]
    for crowd, _, category, place in sorted(things, key=lambda thing: (-thing[0], -thing[1])):
        if category in NUMBERS and f"{number}_{place}" in masks:
            label[masks[f"{number}_{place}"] > 0] = 255 if crowd else NUMBERS.index(category) + 1
    return label


@pytest.mark.parametrize("release", ["2014", "2017"])
def test_splits_and_arrays(release, coco, masks):
    root, *known = coco
    for split, folders in SPLITS[release].items():
        data = open_data("coco_voc", root, split, release=release)
        assert numbers(data) == [number for folder in folders for number in FOLDERS[release][folder] if number in WITH_CLASSES]
        for example, number in zip(data, numbers(data), strict=True):
            # Two decoders of JPEG may differ by a step.
            np.testing.assert_allclose(example.image.astype(int), known[release == "2017"][number], atol=3)
            np.testing.assert_array_equal(example.label, expected_label(number, masks))


def test_by_hand(coco):
    """What is annotated by boxes, rows and whole classes, without pycocotools' help."""
    train, val = (open_data("coco_voc", coco[0], split, release="2017") for split in ("train", "val"))
    labels = {number: data.read_label(k) for data in (train, val) for k, number in enumerate(numbers(data))}
    np.testing.assert_array_equal(labels[61], np.broadcast_to(np.arange(60) // 3 + 1, SIZE))
    assert [LABELS["voc"].classes[k] for k in (1, 4, 11, 14, 16, 18, 20)] == [
        "aeroplane", "boat", "diningtable", "motorbike", "pottedplant", "sofa", "tvmonitor"
    ]  # fmt: skip
    # Bottle and cat lie on the table, the cup belongs to it; persons lie on all but the cat and the bottle.
    assert (labels[9][13:21, 20:24] == 5).all() and (labels[9][21:29, 30:36] == 8).all() and (labels[9][18:24, 40:46] == 11).all()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = (rows >= 3) & (rows < 21) & (columns >= 5) & (columns < 25) & ((rows - 12) ** 2 + (columns - 15) ** 2 >= 25)
    crowd = np.where(ring | (rows < 2), 255, 0)
    crowd[30:35] = 12
    crowd[:12, 10:20] = 15
    np.testing.assert_array_equal(labels[25], crowd)
    assert (labels[42][30:, 50:55] == 6).sum() == 50 and (labels[42][2:8, 40:45] == 8).all()
    assert set(np.unique(labels[42])) == {0, 6, 7, 8}
    assert (labels[71] == 19).sum() == 1025


def test_lengths_of_a_code_are_pycocotools():
    generator = np.random.default_rng(0)
    for share in (0.5, 0.02):
        picture = np.asfortranarray(generator.random((37, 501)) < share, np.uint8)
        edges = np.flatnonzero(np.diff(picture.ravel("F"), prepend=0, append=2))
        code = pycocotools.mask.encode(picture)["counts"].decode()
        assert _runs(code) == np.diff(edges, prepend=0).tolist()


def test_minimum_region(coco):
    for minimum, expected in ((0, [9, 25, 61, 42, 71, 73]), (29, [9, 25, 61, 42, 71, 73]), (150, [9, 25, 71, 73])):
        data = open_data("coco_voc", coco[0], "trainval", release="2014", minimum_region=minimum)
        assert sorted(numbers(data)) == sorted(expected)
    # "Larger than": 1,025 pixels are, 1,000 are not.
    assert numbers(open_data("coco_voc", coco[0], "trainval", release="2014", minimum_region=1000)) == [9, 71]
    with pytest.raises(KerassegError, match="holds no region of a VOC class above 2000 pixels"):
        open_data("coco_voc", coco[0], minimum_region=2000)


def test_minival(tmp_path):
    write_coco(tmp_path, "2014")
    with pytest.raises(KerassegError, match="which images of val2014 are minival is not in .*or instances_val2017.json there"):
        open_data("coco_voc", tmp_path, "minival")
    (tmp_path / "minival.txt").write_text("25\nCOCO_val2014_000000000042\n\nval2014/COCO_val2014_000000000073.jpg\n")
    by_hand = {"minival": [25, 42, 73], "trainval_minus_minival": [9, 61, 71]}
    for split, expected in by_hand.items():
        assert numbers(open_data("coco_voc", tmp_path, split, minival=tmp_path / "minival.txt")) == expected
    for name in ("instances_val2017.json", "instances_minival2014.json"):
        path = tmp_path / "annotations" / name
        path.write_text(json.dumps(annotations("val2017", FOLDERS["2017"]["val2017"])))
        for split, expected in by_hand.items():
            # In 2017 all that is left of val2017 is minival, and train2017 the rest: the same images.
            assert numbers(open_data("coco_voc", tmp_path, split, release="2014")) == expected
        path.unlink()
    write_coco(tmp_path, "2017")
    for split, expected in by_hand.items():
        assert numbers(open_data("coco_voc", tmp_path, split)) == expected
    (tmp_path / "minival.txt").write_text("25\nmany\n")
    with pytest.raises(KerassegError, match="minival.txt is no list of images: expected a number or file name a line"):
        image_numbers(tmp_path / "minival.txt")


def test_release_is_that_of_the_files(tmp_path):
    write_coco(tmp_path / "coco", "2014")
    assert open_data("coco_voc", tmp_path).ids[0] == "COCO_train2014_000000000009"
    write_coco(tmp_path / "coco", "2017")
    assert open_data("coco_voc", tmp_path / "coco" / "annotations").ids[0] == "000000000009"
    assert open_data("coco_voc", tmp_path, release=2014).ids[0] == "COCO_train2014_000000000009"
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").unlink()
    # Not half of each.
    assert open_data("coco_voc", tmp_path, "trainval").ids[0] == "COCO_train2014_000000000009"


def test_what_prepare_data_keeps(coco):
    data = open_data("coco_voc", coco[0], "val", release="2017")
    sources = data.sources(1)
    np.testing.assert_array_equal(sources["mask"], data[1].label)
    assert sources["image"] == coco[0] / "images" / "val2017" / "000000000042.jpg"
    assert data.labels is LABELS["voc"]


def test_only_what_is_needed_is_kept(tmp_path):
    write_coco(tmp_path)
    images = read_instances(tmp_path / "annotations" / "instances_train2017.json", LABELS["voc"].classes)
    assert {number: len(image.regions) for number, image in images.items()} == {9: 4, 30: 1, 34: 0, 36: 0, 61: 20, 71: 1}
    assert all(isinstance(part, np.ndarray) for part in images[9].regions[0].shape)


def _change(change):
    def damage(root):
        path = root / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: shutil.rmtree(root / "annotations"), "does not hold data set 'coco_voc': expected annotations/instances_"),
        (
            lambda root: (root / "annotations/instances_train2017.json").unlink(),
            "is not in .*instances_train2017.json or .*train2014",
        ),
        (lambda root: shutil.rmtree(root / "train2017"), "no folder .*train2017 or .*images/train2017: unpack train2017.zip"),
        (lambda root: (root / "train2017/000000000009.jpg").unlink(), "no such file: .*train2017/000000000009.jpg"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("{}"), "has no list of categories"),
        (_change(lambda content: content["categories"].pop(0)), "has no category person: expected COCO's 80"),
        (_change(lambda content: content["annotations"][0].pop("area")), r"cannot read .*\(KeyError: 'area'\)"),
        (_change(lambda content: content["annotations"][0].update(image_id=5)), r"cannot read .*\(KeyError: 5\)"),
        (_change(lambda content: content["images"][-1].update(height=40.5)), "image 9 is '000000000009.jpg', 60×40.5 pixels"),
        (_change(lambda content: content["annotations"][0].update(segmentation=[[0, 0, 9, 0, 9, 1e20]])), "beyond 30000"),
        (_change(lambda content: content["annotations"][0].update(segmentation=[[0, 0, 9, 0, 9, float("nan")]])), "or no number"),
        (_change(lambda content: content["images"][-1].update(height=41)), "60×41 but image .* is 60×40"),
        (
            _change(lambda content: content["annotations"][0].update(segmentation=RING | {"size": [40, 59]})),
            r"of 0+9.jpg that is none \(size \[40, 59\] and",
        ),
        (
            _change(lambda content: content["annotations"][0].update(segmentation={"counts": [1, 2], "size": [40, 60]})),
            "of 3 pixels, .* 2400",
        ),
        (
            _change(lambda content: content["annotations"][0].update(segmentation=RING | {"counts": RING["counts"][:-3]})),
            "that is none",
        ),
        (_change(lambda content: content["annotations"][0].update(segmentation=RING | {"counts": "!!"})), "that is none"),
    ],
)
def test_what_is_refused(damage, message, tmp_path):
    write_coco(tmp_path)
    damage(tmp_path)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("coco_voc", tmp_path)[0]
    assert "\n" not in str(error.value)


def test_damaged_annotations_end_in_one_line(tmp_path):
    """A bit that has flipped leaves the file readable, or ends in a line that names it."""
    write_coco(tmp_path)
    path, generator, told = tmp_path / "annotations" / "instances_val2017.json", np.random.default_rng(0), 0
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            data = open_data("coco_voc", tmp_path, "val")
            assert all(data.read_label(index).ndim == 2 for index in range(len(data)))
        except KerassegError as error:
            assert ("instances_val2017.json" in str(error) or "holds no region" in str(error)) and "\n" not in str(error)
            told += 1
    assert 100 < told < 300


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "trainvall"}, "no split 'trainvall': did you mean 'trainval'"),
        ({"release": 2015}, "release=2015, minimum_region=0: expected release '2014' or '2017'"),
        ({"minimum_region": -1}, "minimum_region=-1: expected .* 0 pixels or more"),
    ],
)
def test_arguments(arguments, message, tmp_path):
    write_coco(tmp_path)
    with pytest.raises(KerassegError, match=message):
        open_data("coco_voc", tmp_path, **arguments)


def test_without_pycocotools(tmp_path, monkeypatch):
    write_coco(tmp_path)
    genuine = builtins.__import__

    def no_pycocotools(name, *arguments, **keywords):
        if name.startswith("pycocotools"):
            raise ModuleNotFoundError("No module named 'pycocotools'", name="pycocotools")
        return genuine(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_pycocotools)
    data = open_data("coco_voc", tmp_path)
    with pytest.raises(KerassegError, match=r"pycocotools is not installed: run `pip install 'kerasseg\[data\]'`"):
        data[0]
