import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from fixtures.nyud import HOLE, OFFICIAL_SPLITS, TREE_SPLITS, VOID, write_nyud, write_nyud_labeled
from PIL import Image

from kerasseg.data import open_data
from kerasseg.data.checking import find_broken
from kerasseg.data.hha import NYU_CAMERA, hha
from kerasseg.data.layouts.nyud_labeled import _TURNS
from kerasseg.data.preparation.preparing import prepare
from kerasseg.data.views.subset import Subset
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

FORMS = {"nyud": 3, "nyud_hha": 3, "nyud_color_d": 4, "nyud_color_hha": 6}
LABELED = "nyu_depth_v2_labeled.mat"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("nyud")
    return root, write_nyud(root)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labeled") / "nyu depth v2"
    return root, write_nyud_labeled(root)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "fcn_layers_scenes.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("split", TREE_SPLITS)
def test_the_tree_gives_what_fcns_layer_gives(tree, golden, split):
    """Outputs of the authors' nyud_layers.py on the same files, means added back; see golden/README.md."""
    forms = {name: open_data(name, tree[0], split) for name in FORMS}
    ids = tuple(f"img_{number}" for number in TREE_SPLITS[split])
    assert all(data.ids == ids and data.labels == LABELS["nyud"] for data in forms.values())
    for index, name in enumerate(ids):
        color, depth, coded, label = (golden[f"nyud/{split}/{name}/{part}"] for part in ("color", "depth", "hha", "label"))
        images = {form: data[index].image for form, data in forms.items()}
        assert np.array_equal(images["nyud"], color) and np.array_equal(images["nyud_hha"], coded)
        assert np.array_equal(images["nyud_color_hha"], np.concatenate([color, coded], axis=-1))
        assert np.array_equal(images["nyud_color_d"][..., :3], color)
        known = np.isfinite(depth)
        # The layer takes the mean off and the golden file has it added again.
        assert np.allclose(images["nyud_color_d"][..., 3][known], depth[known], atol=2e-6)
        assert np.isfinite(images["nyud_color_d"]).all() and known.all() == (name != HOLE)
        for data in forms.values():
            assert np.array_equal(data[index].label, label) and np.array_equal(data.read_label(index), label)


def test_the_tree_gives_what_was_written(tree):
    root, frames = tree
    for form, channels in FORMS.items():
        data = open_data(form, root, "trainval")
        assert data.ids == tuple(f"img_{number}" for number in (*TREE_SPLITS["train"], *TREE_SPLITS["val"]))
        assert data.channels == channels == len(data.mean) and data.family == "nyud" and data.num_classes == 40
        for example in data:
            frame = frames[example.id]
            assert np.array_equal(example.label, frame.label) and example.label.dtype == np.int32
            assert example.image.dtype == (np.uint8 if channels == 3 else np.float32)
            assert np.array_equal(example.image[..., :3], frame.hha if form == "nyud_hha" else frame.image)
            assert example.path == str(root / "data" / "images" / f"{example.id}.png")
    assert (open_data("nyud", root, "train")[1].label == 255).all() and VOID == "img_5003"
    assert open_data("nyud_color_hha", root).inputs == {"color": 3, "hha": 3} and open_data("nyud_color_d", root).inputs is None


def test_means_are_fcns_in_rgb_order(tree):
    color, coded = (92.318, 97.203, 116.190), (132.431, 94.076, 118.477)
    means = {form: open_data(form, tree[0]).mean for form in FORMS}
    assert means == {"nyud": color, "nyud_hha": coded, "nyud_color_d": (*color, 7.844), "nyud_color_hha": (*color, *coded)}


def test_the_hole_in_depth_takes_the_nearest(tree):
    root, frames = tree
    image, depth = open_data("nyud_color_d", root, "test")[0].image, frames[HOLE].depth
    assert (depth[3:6, 4:9] == 0).all() and (depth == 0).sum() == 15
    assert np.allclose(image[3, 6, 3], np.log(depth[2, 6])) and np.allclose(image[5, 8, 3], np.log(depth[5, 9]))


@pytest.mark.parametrize("place", [".", "..", LABELED])
def test_the_official_file_gives_what_was_written(labeled, place):
    root, frames = labeled
    for split, numbers in {**OFFICIAL_SPLITS, "trainval": OFFICIAL_SPLITS["train"] + OFFICIAL_SPLITS["val"]}.items():
        data = open_data("nyud_color_d", root / place, split)
        assert data.ids == tuple(f"img_{number}" for number in numbers)
        for example in data:
            frame = frames[example.id]
            assert np.array_equal(example.image[..., :3], frame.image) and np.array_equal(example.label, frame.label)
            assert np.allclose(example.image[..., 3], np.log(frame.depth), rtol=1e-6)
    assert (data[0].label == 255).any() and example.path.endswith(LABELED)


def test_who_trains_and_who_validates(golden):
    """The turns against the lists of fcn.berkeleyvision.org, which hold every frame once."""
    lists = {split: set((golden[f"lists/nyud/{split}"] - 5000).tolist()) for split in ("train", "val", "test")}
    assert {split: len(numbers) for split, numbers in lists.items()} == {"train": 381, "val": 414, "test": 654}
    assert set.union(*lists.values()) == set(range(1, 1450))
    runs = [number in lists["val"] for number in sorted(lists["train"] | lists["val"])]
    first = sorted(lists["train"] | lists["val"])
    assert [n for n, now, before in zip(first, runs, [True, *runs], strict=False) if now != before] == list(_TURNS)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    return root, write_nyud_labeled(root, (480, 640), NYU_CAMERA)


def test_the_official_frames_are_cropped_as_the_papers_do(full_size):
    root, frames = full_size
    whole, cropped = (open_data("nyud_color_hha", root, "test", crop=crop)[1] for crop in (False, True))
    frame = frames[whole.id]
    assert whole.image.shape == (480, 640, 6) and cropped.image.shape == (425, 560, 6)
    part = (slice(45, 470), slice(40, 600))
    assert np.array_equal(whole.image[..., :3], frame.image) and np.array_equal(cropped.image[..., :3], frame.image[part])
    assert np.array_equal(cropped.label, frame.label[part])
    measured = np.ones((480, 640), bool)
    measured[-4:, 5:9] = False
    assert np.array_equal(whole.image[..., 3:], hha(frame.depth / 1000, NYU_CAMERA, measured))
    assert np.array_equal(cropped.image[..., 3:], hha(frame.depth[part] / 1000, NYU_CAMERA.cropped(45, 40), measured[part]))


def test_what_prepare_data_keeps(tree, labeled, full_size, tmp_path):
    root, frames = tree
    for form in FORMS:
        found = open_data(form, root, "test").sources(1)
        folders = {"image": "images", "depth": "depth", "hha": "hha"}
        assert {role: found[role] for role in folders} == {
            role: root / "data" / folder / "img_5001.png" for role, folder in folders.items()
        }
        assert np.array_equal(found["mask"], frames["img_5001"].label)
        mask = root / "segmentation" / "img_5001.mat"
        assert set(open_data(form, root, "test").files(1)) == {*(found[role] for role in folders), mask}
    # Of frames whose camera is not known HHA cannot be computed.
    assert set(open_data("nyud", labeled[0]).sources(0)) == {"image", "mask", "depth"}
    assert open_data("nyud", labeled[0]).files(0) == (labeled[0] / LABELED,)
    data = open_data("nyud_hha", full_size[0], "test")
    found = data.sources(0)
    assert set(found) == {"image", "mask", "depth", "hha"} and found["depth"].dtype == np.uint16
    assert np.array_equal(found["hha"], data[0].image) and found["image"].dtype == np.uint8
    bare = tmp_path / "bare"
    write_nyud(bare, hha=False)
    for path in (bare / "data" / "depth").iterdir():
        path.unlink()
    (bare / "data" / "depth").rmdir()
    assert set(open_data("nyud", bare).sources(0)) == {"image", "mask"}


def _change(path, change):
    values = np.asarray(Image.open(path))
    Image.fromarray(change(values)).save(path)


def _cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _no_hha(root):
    for path in (root / "data" / "hha").iterdir():
        path.unlink()
    (root / "data" / "hha").rmdir()


def _small_raw_depth(root):
    _no_hha(root)
    (root / "data" / "rawdepth").mkdir()
    Image.fromarray(np.ones((20, 34), np.uint16)).save(root / "data" / "rawdepth" / "img_5004.png")


def _relabel(root, name="segmentation", value=None):
    values = np.ones((25, 34), np.uint8) if value is None else np.full((25, 34), value)
    scipy.io.savemat(root / "segmentation" / "img_5004.mat", {name: values})


TREE_MISTAKES = {
    "no list": (lambda root: (root / "train.txt").unlink(), "nyud", "no list .*train.txt"),
    "no image": (lambda root: (root / "data/images/img_5004.png").unlink(), "nyud", "no such file.*images/img_5004.png"),
    "no depth": (lambda root: (root / "data/depth/img_5004.png").unlink(), "nyud_color_d", "no such file.*depth/img_5004.png"),
    "no hha": (lambda root: (root / "data/hha/img_5004.png").unlink(), "nyud_hha", "no such file.*hha/img_5004.png"),
    "no label": (lambda root: (root / "segmentation/img_5004.mat").unlink(), "nyud", "no such file.*segmentation/img_5004.mat"),
    "small depth": (
        lambda root: _change(root / "data/depth/img_5004.png", lambda depth: depth[:-3]),
        "nyud_color_d",
        "img_5004 .*color 34×25, depth 34×22",
    ),
    "small hha": (lambda root: _change(root / "data/hha/img_5004.png", lambda hha: hha[:, 2:]), "nyud_color_hha", "hha 32×25"),
    "small label": (
        lambda root: scipy.io.savemat(root / "segmentation/img_5004.mat", {"segmentation": np.ones((25, 30))}),
        "nyud",
        "image 34×25, label 30×25",
    ),
    "8 bits": (
        lambda root: _change(root / "data/depth/img_5004.png", lambda depth: (depth >> 8).astype(np.uint8)),
        "nyud_color_d",
        "img_5004.png is of mode L: expected a grey PNG of 16 bits",
    ),
    "half a depth": (lambda root: _cut(root / "data/depth/img_5004.png", 0.5), "nyud_color_d", "cannot decode .*depth/img_5004"),
    "no depth at all": (
        lambda root: _change(root / "data/depth/img_5004.png", np.zeros_like),
        "nyud_color_d",
        "depth map of frame img_5004.* 0 everywhere",
    ),
    "another variable": (lambda root: _relabel(root, "labels"), "nyud", "img_5004.mat.*variable segmentation"),
    "half a label": (lambda root: _cut(root / "segmentation/img_5004.mat", 0.6), "nyud", "cannot read .*img_5004.mat"),
    "41": (lambda root: _relabel(root, value=41), "nyud", "img_5004.mat holds the value 41 .*expected 0 to 40 of 'nyud'"),
    "2.5": (lambda root: _relabel(root, value=2.5), "nyud", "holds the value 2.5"),
    "small raw depth": (_small_raw_depth, "nyud_hha", "depth 34×25, raw depth 34×20"),
    "small frames": (_no_hha, "nyud_hha", "img_5004 is 34×25: HHA is computed of 640×480 or 560×425"),
}


@pytest.mark.parametrize("case", TREE_MISTAKES)
def test_mistakes_in_the_tree_are_told(tree, tmp_path, case):
    spoil, form, message = TREE_MISTAKES[case]
    shutil.copytree(tree[0], tmp_path, dirs_exist_ok=True)
    assert len(open_data(form, tmp_path, "train")[0].image)
    spoil(tmp_path)
    with pytest.raises(KerassegError, match=message) as error:
        open_data(form, tmp_path, "train")[0]
    assert "\n" not in str(error.value)


def _without(name):
    def spoil(root):
        with h5py.File(root / LABELED, "r+") as file:
            del file[name]

    return spoil


def _fewer(root):
    with h5py.File(root / LABELED, "r+") as file:
        depths = file["depths"][:-1]
        del file["depths"]
        file["depths"] = depths


def _damage(root):
    content = bytearray((root / LABELED).read_bytes())
    with h5py.File(root / LABELED, "r") as file:
        data = file["images"]
        # A chunk of the first frame to train on.
        chunk = data.id.get_chunk_info_by_coord((2, 0, 0, 0))
    content[chunk.byte_offset + 8 : chunk.byte_offset + chunk.size - 4] = bytes(chunk.size - 12)
    (root / LABELED).write_bytes(content)


LABELED_MISTAKES = {
    "no splits": (lambda root: (root / "splits.mat").unlink(), "has nyu_depth_v2_labeled.mat but no splits.mat.*put it beside"),
    "no classes": (lambda root: (root / "classMapping40.mat").unlink(), "but no classMapping40.mat, which maps its 894 names"),
    "truncated": (lambda root: _cut(root / LABELED, 0.7), "cannot open .*labeled.mat .*truncated.*download it again"),
    "no HDF5": (lambda root: (root / LABELED).write_text("<html>"), "cannot open .*labeled.mat"),
    "no labels": (_without("labels"), "labeled.mat holds .*but not labels"),
    "fewer depths": (_fewer, "'depths': 11"),
    "a bad block": (_damage, "cannot read 'images' of frame img_5003 from .*labeled.mat"),
    "other splits": (lambda root: scipy.io.savemat(root / "splits.mat", {"train": [1]}), "splits.mat.*variable trainNdxs"),
    "frame 13": (
        lambda root: scipy.io.savemat(root / "splits.mat", {"trainNdxs": np.array([[3], [13]])}),
        "names frames 3 to 13, .*has 12",
    ),
    "class 41": (
        lambda root: scipy.io.savemat(root / "classMapping40.mat", {"mapClass": np.full((1, 894), 41)}),
        "frame img_5003 of .*value 41",
    ),
    "few names": (
        lambda root: scipy.io.savemat(root / "classMapping40.mat", {"mapClass": np.ones((1, 100))}),
        "maps 100 names: expected the map of 894",
    ),
}


@pytest.mark.parametrize("case", LABELED_MISTAKES)
def test_mistakes_in_the_official_file_are_told(labeled, tmp_path, case):
    spoil, message = LABELED_MISTAKES[case]
    shutil.copytree(labeled[0], tmp_path, dirs_exist_ok=True)
    assert len(open_data("nyud", tmp_path, "trainval", crop=False)[0].image)
    spoil(tmp_path)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("nyud", tmp_path, "trainval")[0]
    assert "\n" not in str(error.value)


def test_wrong_folders_and_splits_are_told(tmp_path, tree):
    with pytest.raises(KerassegError, match="does not hold data set 'nyud'.*splits.mat"):
        open_data("nyud", tmp_path)
    with pytest.raises(KerassegError, match="no split 'tests': did you mean 'test'"):
        open_data("nyud_hha", tree[0], "tests")
    with pytest.raises(KerassegError, match="received no data_dir"):
        open_data("nyud_color_d")


@pytest.mark.parametrize("layout", ["tree", "labeled"])
def test_prepared_once_for_every_form(layout, request, tmp_path):
    """What `prepare_data` writes is the same data set, whichever form it was called for."""
    root, _ = request.getfixturevalue(layout)
    prepare("nyud_color_d", root, tmp_path / "out")
    forms = FORMS if layout == "tree" else ("nyud", "nyud_color_d")
    for form in forms:
        for split in ("trainval", "test"):
            before, after = (open_data(form, place, split) for place in (root, tmp_path / "out"))
            assert (before.ids, before.mean, before.channels, before.inputs) == (
                after.ids,
                after.mean,
                after.channels,
                after.inputs,
            )
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                assert np.array_equal(one.image, other.image) and one.image.dtype == other.image.dtype
                assert np.array_equal(one.label, other.label) and np.array_equal(after.read_label(index), one.label)
                assert "out" in other.path and set(after.sources(index)) == set(before.sources(index))
    depth = tmp_path / "out" / "converted" / "depth" / "img_5001.png"
    if layout == "labeled":
        depth.write_bytes(depth.read_bytes()[:-30])
        with pytest.raises(KerassegError, match="depth/img_5001.png is not the file that was prepared"):
            open_data("nyud_color_d", tmp_path / "out", "test")[0]
        with pytest.raises(KerassegError, match="img_5001 is 32×24: HHA is computed of"):
            open_data("nyud_hha", root, "test")[0]
        with pytest.raises(KerassegError, match="prepared with crop=true, received crop=false"):
            open_data("nyud", tmp_path / "out", "test", crop=False)


def test_a_tree_without_depth(tmp_path):
    write_nyud(tmp_path / "tree", hha=False)
    shutil.rmtree(tmp_path / "tree" / "data" / "depth")
    prepare("nyud", tmp_path / "tree", tmp_path / "out")
    for place in ("tree", "out"):
        assert open_data("nyud", tmp_path / place)[0].image.shape == (25, 34, 3)
        for form in ("nyud_color_d", "nyud_hha"):
            with pytest.raises(KerassegError, match="no such file.*depth/img_5004.png|was prepared without depth"):
                open_data(form, tmp_path / place)[0]


def test_several_threads_read_the_official_file(labeled):
    data = open_data("nyud_color_d", labeled[0], "trainval")
    alone = [data[index] for index in range(len(data))]
    with ThreadPoolExecutor(8) as threads:
        for index, example in enumerate(threads.map(lambda position: data[position % len(data)], range(40))):
            assert np.array_equal(example.image, alone[index % len(data)].image)
            assert np.array_equal(example.label, alone[index % len(data)].label)


def _flat(path):
    _change(path, np.zeros_like)


FORMLESS = {
    "no depth": (lambda root: (root / "data/depth/img_5004.png").unlink(), "no such file.*depth/img_5004.png"),
    "no hha": (lambda root: (root / "data/hha/img_5004.png").unlink(), "no such file.*hha/img_5004.png"),
    "8 bits": (
        lambda root: _change(root / "data/depth/img_5004.png", lambda depth: (depth >> 8).astype(np.uint8)),
        "depth/img_5004.png is of mode L",
    ),
    "flat": (lambda root: _flat(root / "data/depth/img_5004.png"), "depth map of frame img_5004 .*0 everywhere"),
    "small depth": (lambda root: _change(root / "data/depth/img_5004.png", lambda d: d[:-3]), "image 34×25, depth 34×22"),
    "small hha": (lambda root: _change(root / "data/hha/img_5004.png", lambda hha: hha[:, 2:]), "hha 32×25"),
}


@pytest.mark.parametrize("case", FORMLESS)
def test_depth_and_hha_are_checked_whatever_form_is_prepared(tree, tmp_path, case):
    """They are kept for all forms, so what is wrong with them is named, and left out if that was asked for."""
    spoil, message = FORMLESS[case]
    root = shutil.copytree(tree[0], tmp_path / "data")
    data = open_data("nyud", root, "train")
    assert not find_broken(data)
    spoil(root)
    # Colour alone can be read all the same; what is missing is looked for.
    assert data[0].id == "img_5004" and len(data.files(0)) == 4
    (broken,) = find_broken(Subset(data, [0, 1]))
    assert re.search(message, broken.reason), broken.reason
    with pytest.raises(KerassegError, match="1 of 7 examples of data set 'nyud' are broken"):
        prepare("nyud", root)
    outcome = prepare("nyud", root, skip_broken=True)
    assert [row["id"] for row in outcome.broken] == ["img_5004"] and outcome.header["splits"]["train"]["images"] == 2
    assert [example.id for example in open_data("nyud_color_hha", root)] == ["img_5003", "img_5019"]
