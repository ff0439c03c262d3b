import zlib

import numpy as np
import pytest
from fixtures.pictures import make_label, write_color_mask, write_index_mask, write_photo

from kerasseg.data import DATA_SETS, open_data
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError


@pytest.fixture
def root(tmp_path):
    """Eight pairs in folders of their own, and the names of three classes."""
    for number in range(8):
        write_photo(tmp_path / "some where" / f"p{number}.png", (20, 30), number)
        write_index_mask(tmp_path / "masks" / f"m{number}.png", make_label((20, 30), 3, number))
    (tmp_path / "classes.txt").write_text("ground\ncat\ndog\n")
    return tmp_path


def write(root, text: str, name="list.csv"):
    (root / name).write_text(text, "utf-8")
    return root / name


def pair(number: int) -> str:
    return f"some where/p{number}.png,masks/m{number}.png"


def test_two_columns(root):
    """CRC-32 of the name decides, as for `folder`: a multiple of 5 is for validation."""
    path = write(root, "\n".join(pair(number) for number in range(8)))
    parts = {split: open_data("csv", path, split) for split in ("train", "val")}
    expected = [f"p{number}" for number in range(8) if zlib.crc32(f"p{number}".encode()) % 5 == 0]
    assert list(parts["val"].ids) == expected and 0 < len(expected) < 8
    assert sorted(parts["train"].ids + parts["val"].ids) == [f"p{number}" for number in range(8)]
    assert parts["train"].labels.classes == ("ground", "cat", "dog")
    for data in parts.values():
        for index, name in enumerate(data.ids):
            number = int(name[1:])
            np.testing.assert_array_equal(data[index].label, make_label((20, 30), 3, number))
            np.testing.assert_array_equal(data[index].image, write_photo(root / "again.png", (20, 30), number))
    with pytest.raises(KerassegError, match="no example of split 'test': known: train, val"):
        open_data("csv", path, "test")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_all_columns_in_any_order(delimiter, root):
    rows = [
        ("ID", "mask", "weather", "split", "Image"),
        ("one", "masks/m1.png", "sun, rain", "train", "some where/p1.png"),
        ("two", "", "", "test", f"{root}/some where/p2.png"),
        ("one", "masks/m3.png", "", "val", "some where\\p3.png"),
    ]
    quoted = [delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows]
    path = write(root, "\ufeff" + "\r\n".join(quoted) + "\r\n\r\n")
    assert DATA_SETS["csv"].splits_of(path) == ("train", "val", "test")
    assert open_data("csv", path).ids == ("one",)
    test, val = open_data("csv", path, "test"), open_data("csv", path, "val")
    assert test[0].label is None and test[0].id == "two"
    np.testing.assert_array_equal(val[0].label, make_label((20, 30), 3, 3))


def test_images_of_one_name_are_told_apart_by_their_folders(root):
    write_photo(root / "other" / "p1.png", (20, 30), 50)
    path = write(root, f"{pair(1)},train\nother/p1.png,masks/m2.png,train\n{pair(2)},train")
    assert open_data("csv", path).ids == ("some where/p1", "other/p1", "p2")


def test_classes_from_elsewhere(root):
    path = write(root, f"{pair(1)},train")
    assert open_data("csv", path, classes=["a", "b", "c"]).labels.classes == ("a", "b", "c")
    colors = [(10, 10, 10), (20, 20, 20), (30, 30, 30)]
    (root / "colors.txt").write_text("".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip("xyz", colors, strict=True)))
    write_color_mask(root / "masks" / "m1.png", make_label((20, 30), 3, 1), colors)
    data = open_data("csv", path, classes="colors.txt")
    np.testing.assert_array_equal(data[0].label, make_label((20, 30), 3, 1))
    (root / "classes.txt").unlink()
    with pytest.raises(KerassegError, match=r"no .*classes\.txt.*classes=FILE"):
        open_data("csv", path)


def test_what_is_missing_is_named_when_it_is_read(root):
    path = write(root, f"{pair(1)},train\n{pair(2)},train")
    (root / "masks" / "m2.png").unlink()
    data = open_data("csv", path)
    assert data[0].id == "p1"
    with pytest.raises(KerassegError, match=r"no such file: .*m2\.png"):
        data[1]


def test_two_lists_in_one_folder_are_prepared_apart(root):
    one, two = (write(root, f"{pair(number)},train", f"list{number}.csv") for number in (1, 2))
    prepare("csv", one)
    assert open_data("csv", one).prepared is not None and open_data("csv", two).prepared is None
    prepare("csv", two)
    assert [open_data("csv", path).ids for path in (one, two)] == [("p1",), ("p2",)]
    assert open_data("csv", two).prepared.folder.name == "kerasseg-csv-list2"
    write(root, f"{pair(1)},train\n{pair(3)},train", "list1.csv")
    assert open_data("csv", one).ids == ("p1", "p3")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("image,mask\n", "lists nothing"),
        ("image,label\na.png,b.png\n", r"begins with 'image, label': expected the columns image, mask\[, split\]\[, id\]"),
        ("image,mask,image\na,b,c\n", "each once"),
        ("a.png\n", "1 columns in line 1, expected 2"),
        ("a.png,b.png\nc.png,d.png,train\n", "3 columns in line 2, expected 2"),
        ("a.png,b.png,train,x,more\n", "5 columns in line 1, expected 4"),
        (",b.png\n", "names no image in line 1"),
        ("a.png,b.png,train\nc.png,d.png,\n", "names no split in line 2: expected one, e.g. train"),
        ("a.png,b.png,train\nx/a.png,c.png,train,\n", "4 columns in line 2, expected 3"),
        ("image,mask,id\na.png,b.png,x\nb.png,b.png,x\n", "lists 'x' twice in split '(train|val)', in lines 2 and 3"),
        ('"a.png,b.png\n', r"is no CSV \(line 1"),
    ],
)
def test_mistakes(text, message, root):
    path = write(root, text)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("csv", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_list(root):
    for place, message in ((None, "received no data_dir"), (root, "which is a folder"), (root / "x.csv", "which is no file")):
        with pytest.raises(KerassegError, match=f"{message}.*--data csv --data-dir LIST.csv"):
            open_data("csv", place)
    (root / "list.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(KerassegError, match="is not UTF-8"):
        open_data("csv", root / "list.csv")
