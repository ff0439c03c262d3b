import numpy as np
import pytest
from fixtures.folder import write_folder
from PIL import Image

from kerasseg.data import DATA_SETS, DEFAULT_MEAN, DataSet, Example, open_data
from kerasseg.data.layouts.folder import read_classes
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, colorize


def test_shapes_are_a_pure_function_of_split_and_index():
    first, again = open_data("shapes", split="train", length=3), open_data("shapes", split="train")
    for index in range(3):
        assert np.array_equal(first[index].image, again[index].image)
        assert np.array_equal(first[index].label, again[index].label)
    others = [open_data("shapes", split="val")[0], again[1], open_data("shapes", seed=1)[0], open_data("shapes", split="test")[0]]
    assert not any(np.array_equal(again[0].label, other.label) for other in others)


def test_shapes_examples():
    data = open_data("shapes", split="val", length=40)
    assert (data.labels, data.mean, len(data)) == (LABELS["shapes"], DEFAULT_MEAN, 40)
    seen = set()
    for index, example in enumerate(data):
        assert (example.image.shape, example.image.dtype) == ((96, 128, 3), np.uint8)
        assert (example.label.shape, example.label.dtype) == ((96, 128), np.int32)
        assert (example.id, example.path) == (data.ids[index], None)
        seen |= set(np.unique(example.label).tolist())
    assert index == 39
    assert seen == {0, 1, 2, 3, 4, 5, 255}
    assert data[-1].id == data.ids[39]


def test_shapes_have_a_border_of_about_two_pixels_between_any_two_classes():
    for example in open_data("shapes", length=10):
        label = example.label
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()
        assert 0.02 < (label == 255).mean() < 0.15


def test_shapes_colour_tells_gold_and_only_gold():
    """Hues of whole objects, measured: gold lies between 30° and 60°, the other plain classes nowhere near."""
    gold, other = [], []
    for example in open_data("shapes", length=60):
        image = example.image.astype(float)
        for k, name in enumerate(example_classes := LABELS["shapes"].classes):
            where = example.label == k
            if where.sum() > 100 and name not in ("background", "striped"):
                (gold if example_classes[k] == "golden" else other).extend(_hues(image[where])[::50])
    assert np.mean((np.array(gold) > 25) & (np.array(gold) < 65)) > 0.98
    assert np.mean((np.array(other) > 30) & (np.array(other) < 60)) < 0.02


def _hues(colors):
    high, low = colors.max(1), colors.min(1)
    span = np.maximum(high - low, 1)
    r, g, b = colors.T
    return 60 * np.select([high == r, high == g], [(g - b) / span % 6, (b - r) / span + 2], (r - g) / span + 4)


def test_shapes_size_is_free():
    example = open_data("shapes", size=(33, 200))[5]
    assert example.image.shape == (33, 200, 3)
    assert example.label.shape == (33, 200)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: open_data("shape"), "did you mean 'shapes'"),
        (lambda: open_data("shapes", "somewhere"), "received data_dir 'somewhere'"),
        (lambda: open_data("shapes", split="vall"), "did you mean 'val'"),
        (lambda: open_data("shapes", size=(8, 8)), r"size \(8, 8\)"),
        (lambda: open_data("shapes", length=0), "length=0"),
        (lambda: open_data("shapes", sise=(32, 32)), "no option 'sise': did you mean 'size'"),
        (lambda: open_data("ade20k", "x", size=3), "no option 'size': it takes only"),
        (lambda: open_data("camvid"), "received no data_dir.*images/<split>/.*--data camvid --data-dir"),
        (lambda: open_data("folder", "/no/such/folder"), "'/no/such/folder', which is no folder.*classes.txt"),
    ],
)
def test_open_data_says_what_is_wrong(call, message):
    with pytest.raises(KerassegError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_data_set_of_ones_own():
    class Ramp(DataSet):
        def read(self, index):
            return Example(np.full((2, 2, 3), index, np.uint8), None, self.ids[index], None)

    data = Ramp(LABELS["voc"], ["a", "b"])
    assert [example.image[0, 0, 0] for example in data] == [0, 1]
    assert data[-1].id == "b"
    with pytest.raises(IndexError):
        data[2]


def test_all_names_resolve():
    assert all(issubclass(DATA_SETS[name], DataSet) for name in DATA_SETS)


def make_folder(root, names, classes="ground\ncat\n", mask_value=1, split=""):
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(classes, "utf-8")
    for k, name in enumerate(names):
        Image.new("RGB", (4, 3), (k, 0, 0)).save(root / "images" / split / f"{name}.png")
        Image.new("L", (4, 3), mask_value).save(root / "masks" / split / f"{name}.png")


def test_folder_splits_by_name(tmp_path):
    # The standard check value of CRC-32 is that of "123456789", 0xCBF43926 = 3421780262: 2 modulo 5, so train. That of "hello" is
    # 0x3610A686 = 907060870: val.
    names = ["123456789", "hello", *(f"photo{k}" for k in range(60))]
    make_folder(tmp_path, names)
    train, val = (open_data("folder", tmp_path, split) for split in ("train", "val"))
    assert "123456789" in train.ids
    assert "hello" in val.ids
    assert sorted(train.ids + val.ids) == sorted(names)
    assert 4 <= len(val) <= 20
    (tmp_path / "images" / "photo0.png").unlink()
    (tmp_path / "masks" / "photo0.png").unlink()
    assert set(open_data("folder", tmp_path, "val").ids) == set(val.ids) - {"photo0"}
    example = train[0]
    assert (example.id, example.path) == ("123456789", str(tmp_path / "images" / "123456789.png"))
    assert example.label.tolist() == [[1] * 4] * 3
    with pytest.raises(KerassegError, match="there are 'train' and 'val'"):
        open_data("folder", tmp_path, "test")


def test_folder_subfolders(tmp_path):
    make_folder(tmp_path, ["a", "b"], split="train")
    make_folder(tmp_path, ["c"], split="holdout")
    assert open_data("folder", tmp_path).ids == ("a", "b")
    assert open_data("folder", tmp_path, "holdout").ids == ("c",)
    with pytest.raises(KerassegError, match="no subfolder 'val': known: holdout, train"):
        open_data("folder", tmp_path, "val")


def test_folder_lists(tmp_path):
    make_folder(tmp_path, ["a", "b", "c", "my photo", "v1.2"])
    (tmp_path / "train.txt").write_text("b\n\nmy photo\r\nv1.2\nc.png\n")
    (tmp_path / "val.txt").write_text("images/a.png masks/c.png\n")
    assert open_data("folder", tmp_path).ids == ("b", "my photo", "v1.2", "c")
    val = open_data("folder", tmp_path, "val")
    assert val.ids == ("images/a",)
    assert val.records[0].mask == tmp_path / "masks" / "c.png"
    with pytest.raises(KerassegError, match=r"no test\.txt: "):
        open_data("folder", tmp_path, "test")
    (tmp_path / "val.txt").write_text("a\nnone\nb\n")
    with pytest.raises(KerassegError, match=r"val\.txt lists 'none' but its image is missing \(1 of 3 lines"):
        open_data("folder", tmp_path, "val")


@pytest.mark.parametrize("kind", ["lists", "subfolders", "names", "own lists"])
def test_texts_that_list_no_image_are_no_splits(kind, tmp_path):
    root = write_folder(tmp_path, 6, size=(20, 24))
    (root / "README.txt").write_text("Photographs of the garden.\n" + "word " * 200 + "\n")
    (root / "caf\u00e9.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    expected = {"train": ("a0", "a1", "a3", "a4"), "val": ("b2", "b5")}
    if kind != "lists":
        for split in expected:
            if kind == "own lists":
                (root / f"{split}.txt").rename(root / f"my_{split}.txt")
            else:
                (root / f"{split}.txt").unlink()
            for name in expected[split] if kind == "subfolders" else ():
                for part, suffix in (("images", "jpg"), ("masks", "png")):
                    (root / part / split).mkdir(exist_ok=True)
                    (root / part / f"{name}.{suffix}").rename(root / part / split / f"{name}.{suffix}")
    if kind == "own lists":
        expected = {f"my_{split}": names for split, names in expected.items()}
    if kind == "names":
        expected = {"train": ("a0", "a4", "b2", "b5"), "val": ("a1", "a3")}
    assert DATA_SETS["folder"].splits_of(root) == tuple(expected)
    for split, names in expected.items():
        assert open_data("folder", root, split).ids == names
    # What is prepared of it is all of it.
    assert list(prepare("folder", root).header["splits"]) == list(expected)


@pytest.mark.parametrize("lost, kind", [("masks", "image"), ("images", "mask")])
def test_folder_names_what_has_no_partner(lost, kind, tmp_path):
    make_folder(tmp_path, ["a", "b", "c"])
    for name in ("b", "c"):
        (tmp_path / lost / f"{name}.png").unlink()
    with pytest.raises(KerassegError, match=rf"{kind} .*b\.png has no .* \(2 of 3 {kind}s"):
        open_data("folder", tmp_path)


def test_folder_refuses(tmp_path):
    with pytest.raises(KerassegError, match="has no images"):
        open_data("folder", tmp_path)
    make_folder(tmp_path, [])
    with pytest.raises(KerassegError, match="holds no image"):
        open_data("folder", tmp_path)
    make_folder(tmp_path, ["123456789"])
    with pytest.raises(KerassegError, match="split 'val' of .* is empty"):
        open_data("folder", tmp_path, "val")
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "123456789.jpg")
    with pytest.raises(KerassegError, match="123456789.jpg and .*123456789.png have one name"):
        open_data("folder", tmp_path)


def test_classes_with_colours(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffroad 128 64 128\r\ntraffic light,250,170,30\n\nignore 0 0 0\n", "utf-8")
    table = read_classes(path)
    assert table.classes == ("road", "traffic light")
    assert table.palette == ((128, 64, 128), (250, 170, 30))
    assert table.ignore_colors == ((224, 224, 192), (0, 0, 0))
    assert table.file_to_label == {2: 255}


def test_folder_with_colour_coded_masks(tmp_path):
    make_folder(tmp_path, ["123456789"], "ground 10 10 10\ncat 20 20 20\nignore 30 30 30\n")
    painted = np.array([[[10] * 3, [20] * 3, [30] * 3, [20] * 3]] * 3, np.uint8)
    Image.fromarray(painted).save(tmp_path / "masks" / "123456789.png")
    assert open_data("folder", tmp_path)[0].label.tolist() == [[0, 1, 255, 1]] * 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("\n", "names no class"),
        ("ignore\n", "names no class"),
        ("a\nb\na\n", "class a twice"),
        ("a 1 2 3\nb\n", "colour to 1 of 2 classes, none to 'b'"),
        ("a 1 2 300\n", r"\(1, 2, 300\)"),
        ("a\nignore\nb\n", "before its last line"),
        ("a 1 1 1\nb 1 1 1\n", "twice"),
    ],
)
def test_bad_classes(text, message, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(KerassegError, match=message) as error:
        read_classes(path)
    assert str(path) in str(error.value)


def test_folder_reads_real_voc_pairs(data_dir):
    data = open_data("folder", data_dir / "voc3", "val")
    assert data.ids == ("2007_000129", "2007_001311", "2007_008260")
    assert data.labels.classes == LABELS["voc"].classes
    for example in data:
        with Image.open(data_dir / "voc3" / "masks" / "val" / f"{example.id}.png") as mask:
            assert np.array_equal(colorize(example.label), np.array(mask.convert("RGB")))
