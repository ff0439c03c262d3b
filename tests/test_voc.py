"""PASCAL VOC and its splits with SBD: miniatures, the authors' own layer, the real masks and three genuine pairs."""

import cv2
import numpy as np
import pytest
from fixtures import sbd
from fixtures.fcn_layers import check_against_layer
from fixtures.pictures import write_index_mask, write_photo
from fixtures.sbd import sbd_label, write_augmentation, write_sbd
from fixtures.voc import TEST, TRAIN, TRAIN_2011, VAL, VAL_2011, size_of, write_list, write_voc

from kerasseg.data import count_classes, open_data
from kerasseg.data.class_counts import ClassCounts
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError

SBD = sbd.TRAIN + sbd.VAL
EXPECTED = {
    "train": TRAIN,
    "val": VAL,
    "trainval": tuple(sorted(TRAIN + VAL)),
    "test": TEST,
    "trainaug": ("2007_000032", "2007_000039", "2008_000015", "2008_000019", "2008_000026", "2009_000001"),
    "trainvalaug": tuple(sorted({*TRAIN, *VAL, *SBD})),
    "sbd_train": sbd.TRAIN,
    "sbd_and_train": tuple(sorted({*TRAIN, *SBD})),
    "val_without_sbd": ("2007_000033", "2010_000003"),
    "seg11train": TRAIN_2011,
    "seg11valid": ("2007_000033",),
}
# Of the others VOC's masks alone are read.
FROM_SBD = {
    "trainaug": set(SBD) - set(TRAIN),
    "trainvalaug": set(SBD) - {*TRAIN, *VAL},
    "sbd_train": set(SBD),
    "sbd_and_train": set(SBD) - set(TRAIN),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """VOCdevkit with both years and SBD, and what they hold."""
    root = tmp_path_factory.mktemp("data")
    write_voc(root / "VOCdevkit", 2011)
    write_list(root / "VOCdevkit" / "VOC2011" / "ImageSets" / "Segmentation" / "seg11valid.txt", VAL_2011[:1])
    known = write_voc(root / "VOCdevkit", 2012, odd=True)
    write_list(root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "seg11valid.txt", VAL_2011[:1])
    write_sbd(root)
    return root, known


def check_example(example, image, label):
    assert example.image.dtype == np.uint8
    np.testing.assert_array_equal(example.image, image)
    if label is None:
        assert example.label is None
    else:
        assert example.label.dtype == np.int32
        np.testing.assert_array_equal(example.label, label)


@pytest.mark.parametrize("split", EXPECTED)
def test_every_split_has_its_images_and_the_right_one_of_two_masks(split, tree):
    root, known = tree
    data = open_data("voc", root, split)
    assert data.ids == EXPECTED[split]
    year = "VOC2011" if split == "seg11train" else "VOC2012"
    for example in data:
        assert example.path == str(root / "VOCdevkit" / year / "JPEGImages" / f"{example.id}.jpg")
        image, label = known[example.id]
        if split == "seg11train":
            image = cv2.imread(example.path)[..., ::-1]
        if example.id in FROM_SBD.get(split, ()):
            label = sbd_label(example.id)
            assert not np.array_equal(label, known[example.id][1])
        check_example(example, image, label)


def test_splits_are_the_sets_that_the_papers_say(tree):
    root, _ = tree
    ids = {split: set(open_data("voc", root, split).ids) for split in EXPECTED}
    sbd_all = set(open_data("sbd", root, "trainval").ids)
    assert ids["trainaug"] == (sbd_all | ids["train"]) - ids["val"]
    assert ids["trainvalaug"] == ids["trainaug"] | ids["val"]
    assert ids["sbd_and_train"] | ids["val_without_sbd"] == ids["trainvalaug"]
    assert not ids["sbd_and_train"] & ids["val_without_sbd"] and not ids["trainaug"] & ids["val"]


def test_the_folder_may_be_pointed_at_at_any_height(tree, tmp_path):
    root, _ = tree
    for place in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        assert open_data("voc", place, "val").ids == VAL
        assert open_data("voc", place, "val", year=2011).ids == VAL_2011
        # SBD lies beside VOCdevkit in each case.
        assert open_data("voc", place, "sbd_train").ids == sbd.TRAIN
    assert open_data("voc", root / "VOCdevkit" / "VOC2011", "val").ids == VAL_2011
    (tmp_path / "TrainVal").mkdir()
    (tmp_path / "TrainVal" / "VOCdevkit").symlink_to(root / "VOCdevkit")
    assert open_data("voc", tmp_path, "val", year=2011).ids == VAL_2011
    (tmp_path / "mine").symlink_to(root / "VOCdevkit" / "VOC2012")
    assert open_data("voc", tmp_path / "mine", "val").ids == VAL


@pytest.mark.parametrize("split", ["trainaug", "trainvalaug"])
def test_the_masks_of_sbd_as_pictures(split, tree, tmp_path):
    root, _ = tree
    write_voc(tmp_path, 2012, odd=True)
    expected = open_data("voc", root, split)
    with pytest.raises(KerassegError, match="needs SBD.*SegmentationClassAug with its masks as PNG"):
        open_data("voc", tmp_path, split)
    write_augmentation(tmp_path / "VOC2012" / "SegmentationClassAug")
    write_augmentation(tmp_path / "elsewhere")
    for options in ({}, {"sbd_dir": tmp_path / "elsewhere"}, {"sbd_dir": root}):
        data = open_data("voc", tmp_path, split, **options)
        assert data.ids == expected.ids
        assert {record.mask.suffix for record in data.records} == {".png", ".mat" if options.get("sbd_dir") == root else ".png"}
        for index in range(len(data)):
            np.testing.assert_array_equal(data.read_label(index), expected.read_label(index))


MORE = tuple(sorted({*SBD} - {*TRAIN, *VAL}))


@pytest.mark.parametrize("split", ["trainaug", "trainvalaug"])
def test_pictures_of_a_part_of_sbd_do_not_stand_for_all_of_it(split, tree, tmp_path):
    write_voc(tmp_path)
    write_sbd(tmp_path)
    pngs = tmp_path / "VOC2012" / "SegmentationClassAug"
    write_augmentation(pngs)
    # What VOC has labelled itself need not be there.
    for name in {*SBD} - {*MORE}:
        (pngs / f"{name}.png").unlink()
    write_index_mask(pngs / "2008_000006.png", sbd_label("2008_000006"))
    data = open_data("voc", tmp_path, split)
    assert data.ids == EXPECTED[split] and {record.mask.suffix for record in data.records} == {".png"}
    (pngs / f"{MORE[0]}.png").unlink()
    data = open_data("voc", tmp_path, split)
    assert data.ids == EXPECTED[split]
    assert {record.id for record in data.records if record.mask.suffix == ".mat"} == set(MORE)
    for path in pngs.iterdir():
        path.unlink()
    (pngs / f"._{MORE[0]}.png").write_bytes(b"macOS")
    assert open_data("voc", tmp_path, split).ids == EXPECTED[split]


def test_too_few_pictures_beside_the_official_lists_are_refused(tmp_path):
    write_voc(tmp_path)
    home = tmp_path / "VOC2012"
    write_augmentation(home / "SegmentationClassAug")
    lists = home / "ImageSets" / "Segmentation"
    for split, count in (("train", 1464), ("val", 1449)):
        write_list(lists / f"{split}.txt", (f"{split}_{number:06}" for number in range(count)))
    for split, count, expected in (("trainaug", 1464 + len(SBD), 10582), ("trainvalaug", 2913 + len(SBD), 12031)):
        with pytest.raises(KerassegError, match=rf"has {count} .*{len(SBD)} masks in .*Aug: expected {expected};.*{split}\.txt$"):
            open_data("voc", tmp_path, split)
        write_list(lists / f"{split}.txt", [MORE[0], "train_000003"])
        assert open_data("voc", tmp_path, split).ids == (MORE[0], "train_000003")


@pytest.mark.parametrize("split", ["trainaug", "trainvalaug"])
def test_a_list_of_ones_own_says_what_is_augmented(split, tree, tmp_path):
    _, known = tree
    write_voc(tmp_path, odd=True)
    write_sbd(tmp_path)
    home = tmp_path / "VOC2012"
    names = ("2008_000026", "2007_000042", "2008_000015", "2009_000001", "2008_000003")
    write_list(home / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    own = {"2009_000001"} if split == "trainaug" else {"2009_000001", "2007_000042"}
    for pngs in (set(), {"2008_000026"}, set(SBD)):
        write_augmentation(home / "SegmentationClassAug")
        for path in (home / "SegmentationClassAug").iterdir():
            if path.stem not in pngs:
                path.unlink()
        data = open_data("voc", tmp_path, split)
        assert data.ids == names
        assert {each.id for each in data.records if each.mask.suffix == ".png"} == own | (pngs & {*names[:4]})
        for index, name in enumerate(names[:4]):
            np.testing.assert_array_equal(data.read_label(index), known[name][1] if name in own else sbd_label(name))
        with pytest.raises(KerassegError, match=r"no such file: .*2008_000003\.mat"):
            data.read_label(4)
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "gone")
    with pytest.raises(KerassegError, match=r"no such file: .*SegmentationClassAug/2008_000003\.png"):
        open_data("voc", tmp_path, split).read_label(4)


def test_files_that_can_be_read_as_they_are_stay_and_the_others_come_as_arrays(tree):
    data = open_data("voc", tree[0], "trainaug")
    own, other = (data.sources(data.ids.index(name)) for name in ("2007_000039", "2008_000026"))
    assert own["mask"] == data.records[1].mask and own["image"] == data.records[1].image
    np.testing.assert_array_equal(other["mask"], sbd_label("2008_000026"))


def test_both_masks_of_one_image_survive_preparation(tmp_path):
    root = tmp_path / "data"
    known = write_voc(root, odd=True)
    write_sbd(root)
    direct = {split: open_data("voc", root, split) for split in ("train", "test", "trainaug", "sbd_train", "sbd_and_train")}
    prepare("voc", root, tmp_path / "prepared", splits=list(direct))
    for split, data in direct.items():
        prepared = open_data("voc", tmp_path / "prepared", split)
        assert prepared.ids == data.ids and not isinstance(prepared, type(data))
        for example in prepared:
            from_sbd = example.id in FROM_SBD.get(split, ())
            check_example(example, known[example.id][0], sbd_label(example.id) if from_sbd else known[example.id][1])


def test_the_list_of_the_736_comes_along(tmp_path, real):
    folder, home = real
    ids = open_data("voc", home, "seg11valid").ids
    assert list(ids) == (folder / "seg11valid.txt").read_text().split() and len(set(ids)) == 736
    # Of a part of VOC those that are there.
    write_voc(tmp_path)
    assert open_data("voc", tmp_path, "seg11valid").ids == ("2007_000033", "2007_000042", "2010_000003")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", {"year": 2010}), "received year=2010: expected 2011 or 2012"),
        (("trian", {}), "no split 'trian': did you mean 'train'"),
        (("train", {"year": 2011}), "does not hold VOC 2011 .*VOCdevkit/VOC2012 with JPEGImages"),
        (("seg11train", {}), "'seg11train' of data set 'voc' is VOC 2011's train, and .*VOC2012 is not known .*put VOC2011 beside"),
        (("sbd_train", {}), r"'sbd_train' of data set 'voc' needs SBD, .*or above it.*benchmark_RELEASE/dataset.*sbd_dir=FOLDER"),
        (("trainaug", {"sbd_dir": "."}), "needs SBD, which is not in .*: expected benchmark_RELEASE"),
        (("trainaug", {"sbd_dir": "nowhere"}), "data set 'sbd' received data_dir '.*nowhere', which is no folder"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, message, tmp_path):
    write_voc(tmp_path)
    split, options = arguments
    if "sbd_dir" in options:
        options = {"sbd_dir": tmp_path / options["sbd_dir"]}
    with pytest.raises(KerassegError, match=message) as error:
        open_data("voc", tmp_path, split, **options)
    assert "\n" not in str(error.value)


def test_a_list_that_is_missing_or_empty_is_named(tmp_path):
    write_voc(tmp_path)
    path = tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text(f"# mine\n\n{VAL[1]}  1\r\n")
    assert open_data("voc", tmp_path, "val").ids == VAL[1:2]
    path.write_text("# mine\n\n")
    with pytest.raises(KerassegError, match=r"val\.txt names no example"):
        open_data("voc", tmp_path, "val")
    path.unlink()
    with pytest.raises(KerassegError, match=r"there is no list .*Segmentation/val\.txt"):
        open_data("voc", tmp_path, "val")
    with pytest.raises(KerassegError, match="does not hold VOC 2012 or 2011"):
        open_data("voc", tmp_path / "VOC2012" / "ImageSets", "val")


def test_files_that_are_missing_or_of_another_size_are_named_when_they_are_read(tmp_path):
    write_voc(tmp_path)
    home = tmp_path / "VOC2012"
    write_photo(home / "JPEGImages" / f"{VAL[0]}.jpg", (9, 9), seed=0)
    (home / "JPEGImages" / f"{VAL[1]}.jpg").unlink()
    (home / "SegmentationClass" / f"{VAL[2]}.png").unlink()
    data = open_data("voc", tmp_path, "val")
    height, width = size_of(VAL[0])
    for index, message in enumerate(
        (rf"{VAL[0]}\.png is {width}×{height} but image .* is 9×9", rf"no such file: .*{VAL[1]}\.jpg", rf"no such.*{VAL[2]}\.png")
    ):
        with pytest.raises(KerassegError, match=message):
            data[index]
    assert data[3].id == VAL[3]


def test_the_authors_own_layers_read_the_same(tmp_path):
    """VOCSegDataLayer and SBDDSegDataLayer of the FCN authors, run on these miniatures; see golden/README.md."""
    write_voc(tmp_path, 2011)
    write_list(tmp_path / "VOC2011" / "ImageSets" / "Segmentation" / "seg11valid.txt", VAL_2011[:1])
    write_sbd(tmp_path)
    for split in ("train", "val", "seg11valid"):
        check_against_layer(open_data("voc", tmp_path, split, year=2011), f"voc/{split}")
    check_against_layer(open_data("voc", tmp_path, "sbd_train"), "sbd/train")


@pytest.fixture(scope="module")
def real(data_dir, tmp_path_factory):
    """The real masks and lists as they lie in VOCdevkit, without photographs."""
    folder, home = data_dir / "voc2012_masks", tmp_path_factory.mktemp("real") / "VOC2012"
    (home / "JPEGImages").mkdir(parents=True)
    for name in ("SegmentationClass", "SegmentationClassAug"):
        (home / name).symlink_to(folder / "masks")
    for split in ("train", "val"):
        write_list(home / "ImageSets" / "Segmentation" / f"{split}.txt", (folder / f"{split}.txt").read_text().split())
    return folder, home


def check_counts(counts, folder, split):
    expected = np.loadtxt(folder / f"pixel_counts_{split}.txt", dtype=np.int64)
    assert [*counts.pixels, counts.ignored] == expected[:, 1].tolist()
    weights = np.loadtxt(folder / f"class_weights_{split}.txt")
    # Those have four decimals.
    assert np.abs(counts.median_frequency_weights() - weights).max() <= 0.5001e-4


def added(*counts):
    return ClassCounts(*(sum(getattr(each, name) for each in counts) for name in ("pixels", "around", "ignored", "images")))


def test_all_12031_real_masks(real):
    """Every mask is read once; train is a part of trainaug."""
    folder, home = real
    ids = {split: set((folder / f"{split}.txt").read_text().split()) for split in ("train", "val", "trainaug")}
    data = open_data("voc", home, "trainvalaug")
    assert set(open_data("voc", home, "trainaug").ids) == ids["trainaug"] and len(ids["trainaug"]) == 10582
    parts = {"train": ids["train"], "val": ids["val"], "more": ids["trainaug"] - ids["train"]}
    counts = {
        part: count_classes((data.read_label(index) for index, name in enumerate(data.ids) if name in names), 21)
        for part, names in parts.items()
    }
    assert {part: count.images for part, count in counts.items()} == {"train": 1464, "val": 1449, "more": 9118}
    check_counts(counts["train"], folder, "train")
    check_counts(added(counts["train"], counts["more"]), folder, "trainaug")
    # SBD labels every pixel.
    assert counts["more"].ignored == 0 < counts["val"].ignored


def test_three_genuine_pairs(data_dir, tmp_path):
    folder, home = data_dir / "voc3", tmp_path / "VOC2012"
    (home / "ImageSets").mkdir(parents=True)
    (home / "JPEGImages").symlink_to(folder / "images" / "val")
    (home / "SegmentationClass").symlink_to(folder / "masks" / "val")
    names = sorted(path.stem for path in (folder / "images" / "val").iterdir())
    write_list(home / "ImageSets" / "Segmentation" / "val.txt", names)
    data = open_data("voc", tmp_path, "val")
    assert data.ids == ("2007_000129", "2007_001311", "2007_008260")
    for example in data:
        np.testing.assert_array_equal(example.image, cv2.imread(example.path)[..., ::-1])
    counts = count_classes((data.read_label(index) for index in range(3)), 21)
    lines = [line.split() for line in (folder / "pixel_counts.txt").read_text().splitlines()[1:]]
    expected = {int(line[0]): int(line[2]) for line in lines}
    assert {**{k: n for k, n in enumerate(counts.pixels.tolist()) if n}, 255: counts.ignored} == expected
