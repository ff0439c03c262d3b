"""Data beyond `scheme://`: TensorFlow's own file system in memory stands for a cloud's."""

import os
import pickle
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import tensorflow as tf
from fixtures.ade20k import write_ade20k
from fixtures.camvid import write_release
from fixtures.cityscapes import write_cityscapes
from fixtures.coco import write_coco
from fixtures.kitti import write_kitti
from fixtures.nyud import write_nyud, write_nyud_labeled
from fixtures.pascal_context import write_context
from fixtures.person_part import write_person_part
from fixtures.pictures import make_label, write_color_mask, write_index_mask, write_palette_mask, write_photo
from fixtures.sbd import write_sbd
from fixtures.sift_flow import write_sift_flow
from fixtures.voc import write_voc

from kerasseg.data import Cached, Flip, RandomCrop, decode_image, decode_label, open_data, training_batches
from kerasseg.data.paths import data_path, is_remote, several_places
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, generic_table


def upload(folder: Path, url: str) -> str:
    """Copies a tree."""
    for path in sorted(folder.rglob("*")):
        target = f"{url}/{path.relative_to(folder)}"
        if path.is_dir():
            tf.io.gfile.makedirs(target)
        else:
            tf.io.gfile.makedirs(target.rpartition("/")[0])
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(path.read_bytes())
    return url


@pytest.fixture
def tree(tmp_path):
    for name in ("a.txt", "images/train/b.png", "images/train/c.jpg", "images/val/d.PNG", "images/x[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfone\r\ntwo \xc3\xa4\n")
    return tmp_path, data_path(upload(tmp_path, f"ram://{tmp_path.name}"))


PATTERNS = ("*", "*.txt", "images/*", "images/*/*.png", "**/*.png", "images/**/b.png", "*/train/?.*", "images/train", "none/*")


def test_listing_is_that_of_pathlib(tree):
    local, remote = tree
    for pattern in PATTERNS:
        expected = sorted(str(path.relative_to(local)) for path in local.glob(pattern))
        assert sorted(str(path.relative_to(remote)) for path in remote.glob(pattern)) == expected, pattern
    assert [path.name for path in remote.rglob("*.jpg")] == ["c.jpg"]
    assert sorted(path.name for path in (remote / "images").iterdir()) == ["train", "val", "x[1].png"]
    for place in ("a.txt", "images", "images/train/b.png", "none", "a.txt/none", ""):
        one, other = local / place, remote / place
        assert (one.exists(), one.is_dir(), one.is_file()) == (other.exists(), other.is_dir(), other.is_file()), place


def test_reading_is_that_of_pathlib(tree):
    local, remote = (path / "a.txt" for path in tree)
    assert remote.read_bytes() == local.read_bytes()
    for encoding in ("utf-8", "utf-8-sig"):
        assert remote.read_text(encoding) == local.read_text(encoding)
        with remote.open(encoding=encoding) as one, local.open(encoding=encoding) as other:
            assert one.readlines() == other.readlines()
    with remote.open("rb") as file:
        assert (file.seek(-5, 2), file.read(), file.tell()) == (10, local.read_bytes()[-5:], 15)
        assert (file.seek(3), file.read(3), file.read(0), file.readline()) == (3, b"one", b"", b"\r\n")
        assert file.seek(99) == 99 and file.read() == b""
    assert remote.stat().st_size == 15
    with pytest.raises(KerassegError, match="cannot be opened with mode 'wb': data are only read"):
        remote.open("wb")


@pytest.mark.parametrize(
    "read", [lambda p: p.read_bytes(), lambda p: p.open("rb"), lambda p: p.stat(), lambda p: list(p.iterdir())]
)
def test_what_is_not_there(read, tree):
    for path in tree:
        with pytest.raises(FileNotFoundError) as error:
            read(path / "none")
        assert error.value.filename == str(path / "none")


@pytest.mark.parametrize("place", ["bucket", "bucket/a.tar.gz", "bucket/x//y/", "bucket/.hidden", "bucket/a/b.c/d"])
def test_names_are_those_of_pathlib(place):
    pure, path = PurePosixPath(place), data_path(f"gs://{place}")
    for name in ("name", "stem", "suffix"):
        assert getattr(path, name) == getattr(pure, name)
    assert str(path) == f"gs://{pure}" and path.parts == (f"gs://{pure.parts[0]}", *pure.parts[1:])
    assert str(path / "x" / "y.png") == f"gs://{pure}/x/y.png"
    assert [str(each) for each in path.parents] == [f"gs://{each}" for each in pure.parents if str(each) != "."]
    assert str(path.with_suffix(".png")) == f"gs://{pure.with_suffix('.png')}" or len(pure.parts) == 1
    assert pickle.loads(pickle.dumps(path)) == path and hash(path) == hash(data_path(str(path)))
    assert path / "gs://other/z" == data_path("gs://other/z") and path != str(path)
    assert sorted([path / "b", path / "a"]) == [path / "a", path / "b"]
    with pytest.raises(TypeError):
        os.fspath(path)


def test_what_a_place_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_path("~/data") == tmp_path / "data" and data_path(tmp_path) is not None
    assert [is_remote(place) for place in ("gs://a", "s3://b/c", "/d", Path("e:/f"), data_path("gs://a"))] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert several_places("gs://a,/b,c") == ("gs://a", "/b", "c") and several_places("a") == ("a",)
    (tmp_path / "with, comma").mkdir()
    assert several_places(tmp_path / "with, comma") == (str(tmp_path / "with, comma"),)


def test_file_systems_that_are_not_there():
    with pytest.raises(
        KerassegError, match="^TensorFlow has no file system for 'nosuch://', received nosuch://a/b: copy the data to"
    ) as error:
        open_data("camvid", "nosuch://a/b")
    assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="data set 'camvid' received data_dir 'ram://none/x', which is no folder: expected"):
        open_data("camvid", "ram://none/x")


KINDS = ("rgb", "grey", "cmyk", "rotated", "rgba", "png16")


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_are_decoded_alike(kind, tmp_path):
    suffix = "png" if kind in ("rgba", "png16") else "jpg"
    expected = write_photo(tmp_path / f"a.{suffix}", (13, 17), 3, kind)
    url = upload(tmp_path, f"ram://photos/{kind}")
    for path in (data_path(url) / f"a.{suffix}", f"{url}/a.{suffix}"):
        image = decode_image(path)
        assert np.array_equal(image, decode_image(tmp_path / f"a.{suffix}"))
    # JPEG decoders differ by a little, which tests of the decoder bound.
    assert np.abs(image.astype(int) - expected).mean() < 3


def test_masks_are_decoded_alike_and_mistakes_name_the_place(tmp_path):
    label, table = make_label((9, 12), 5, seed=2), generic_table([f"c{k}" for k in range(5)])
    write_palette_mask(tmp_path / "palette.png", label)
    write_index_mask(tmp_path / "index.png", label)
    write_color_mask(tmp_path / "color.png", label, [*table.palette, *[(0, 0, 0)] * 250, (224, 224, 192)])
    (tmp_path / "cut.png").write_bytes((tmp_path / "index.png").read_bytes()[:50])
    url = data_path(upload(tmp_path, "ram://masks"))
    for name in ("palette", "index"):
        assert np.array_equal(decode_label(url / f"{name}.png", table), label)
    for name, reason in (("cut", "cannot decode ram://masks/cut.png"), ("none", "no such file: ram://masks/none.png")):
        with pytest.raises(KerassegError, match=reason):
            decode_label(url / f"{name}.png", table)


TREES = {
    "voc": (lambda root: write_voc(root, odd=True), ("train", "val", "test")),
    "sbd": (write_sbd, ("train", "val")),
    "pascal_context": (write_context, ("train", "val")),
    "pascal_person_part": (write_person_part, ("train", "val")),
    "nyud_color_hha": (write_nyud, ("train", "test")),
    "nyud_color_d": (write_nyud_labeled, ("train", "test")),
    "sift_flow": (write_sift_flow, ("trainval", "test")),
    "kitti": (write_kitti, ("train",)),
    "camvid": (write_release, ("train", "val")),
    "cityscapes": (write_cityscapes, ("train", "val")),
    "ade20k": (write_ade20k, ("train", "val")),
    "coco_voc": (write_coco, ("train", "val")),
}


def assert_same(one, two):
    assert one.ids == two.ids and len(one) > 0
    assert (one.mean, one.heads, one.inputs, one.labels) == (two.mean, two.heads, two.inputs, two.labels)
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.image, b.image) and (a.label is b.label is None or np.array_equal(a.label, b.label))


@pytest.mark.parametrize("name", TREES)
def test_every_layout_is_read_alike(name, tmp_path):
    write, splits = TREES[name]
    write(tmp_path)
    url = upload(tmp_path, f"ram://layouts/{name}")
    for split in splits:
        far = open_data(name, url, split)
        assert_same(open_data(name, tmp_path, split), far)
        assert all(example.path is None or example.path.startswith(url) for example in far)


def test_a_folder_and_its_prepared_form_train_alike(tmp_path):
    """What `prepare_data --out` made, copied as it is to a bucket."""
    here = tmp_path / "mine"
    (here / "images").mkdir(parents=True)
    (here / "masks").mkdir()
    (here / "classes.txt").write_text("ground\ncat\ndog\n")
    (here / "train.txt").write_text("\n".join(f"photo {k}" for k in range(7)))
    for k in range(7):
        write_photo(here / "images" / f"photo {k}.jpg", (20, 30), k)
        write_index_mask(here / "masks" / f"photo {k}.png", make_label((20, 30), 3, seed=k))
    prepare("folder", here, tmp_path / "ready")
    places = [here, tmp_path / "ready", upload(here, "ram://plain"), upload(tmp_path / "ready", "ram://ready")]
    seen = []
    for place in places:
        batches = training_batches(open_data("folder", place), 3, transforms=(RandomCrop((16, 16)), Flip()), steps=3)
        seen.append([(image.numpy(), label.numpy()) for image, label in batches])
    for other in seen[1:]:
        assert all(np.array_equal(x, y) for one, two in zip(seen[0], other, strict=True) for x, y in zip(one, two, strict=True))


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name in ("exists", "stat", "isdir", "listdir", "glob"):
        true = getattr(tf.io.gfile, name)
        monkeypatch.setattr(tf.io.gfile, name, lambda url, true=true, name=name: made.append((name, url)) or true(url))
    return made


@pytest.mark.parametrize("way", ["names", "paths", "subfolders", "none"])
def test_opening_a_folder_asks_not_for_every_image(way, tmp_path, calls):
    asked = []
    for count in (3, 20):
        names, inner = [f"photo {k}" for k in range(count)], "train/" if way == "subfolders" else ""
        here = tmp_path / f"{way}{count}"
        write_folder_of(here, names, inner)
        lines = [f"images/{k}.jpg masks/{k}.png" if way == "paths" else name for k, name in enumerate(names)]
        if way == "paths":
            write_folder_of(here, map(str, range(count)), inner)
        if way in ("names", "paths"):
            (here / "train.txt").write_text("\n".join(lines))
        url = upload(here, f"ram://asked/{way}{count}")
        calls.clear()
        far = open_data("folder", url)
        asked.append(len(calls))
        assert far.ids == open_data("folder", here).ids
    # For the lists and folders, however many images there are.
    assert asked[0] == asked[1] < 25
    (here / "train.txt").write_text("photo 0\nphoto 99\n")
    with pytest.raises(KerassegError, match="lists 'photo .+' but its image is missing"):
        open_data("folder", upload(here, f"ram://lost/{way}"))


def write_folder_of(root, names, inner=""):
    for kind in ("images", "masks"):
        (root / kind / inner).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\n")
    for name in names:
        write_photo(root / "images" / inner / f"{name}.jpg", (3, 4), 0)
        write_index_mask(root / "masks" / inner / f"{name}.png", np.zeros((3, 4), np.uint8))


def test_a_cache_of_remote_files_asks_once_for_each(tmp_path, calls):
    write_folder_of(tmp_path / "here", "abc")
    (tmp_path / "here" / "train.txt").write_text("a\nb\nc\n")
    url = upload(tmp_path / "here", "ram://cached")
    for expected in (3 * 2, 3 * 2, 0):
        if expected:
            cached = Cached(open_data("folder", url), tmp_path / "kept")
        first = not (tmp_path / "kept").exists() or not list((tmp_path / "kept").rglob("*.npy"))
        calls.clear()
        assert len(list(cached)) == 3
        # When they are decoded they are opened besides.
        assert first or len(calls) == expected
        assert not first or len(calls) <= expected + 3 * 2 * 2
    assert data_path(url + "/classes.txt").is_file() and len(calls) == 1 and not data_path(url).is_file()


def test_real_camvid(data_dir, tmp_path):
    folder = data_dir / "camvid"
    if not folder.is_dir():
        pytest.skip("no CamVid")
    near = open_data("camvid", folder, "val")
    few = near.ids[:3]
    for kind, files in (("images", "image"), ("masks", "mask")):
        place = tmp_path / kind / "val"
        place.mkdir(parents=True)
        for record in near.records[:3]:
            (place / getattr(record, files).name).write_bytes(getattr(record, files).read_bytes())
    far = open_data("camvid", upload(tmp_path, "ram://real"), "val")
    assert far.ids == few and far.labels == LABELS["camvid"]
    for index in range(3):
        assert np.array_equal(near[index].image, far[index].image) and np.array_equal(near[index].label, far[index].label)
