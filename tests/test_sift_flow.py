import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from fixtures.sift_flow import COLLECTION, TEST, TRAIN, VOID, write_sift_flow

from kerasseg.data import open_data
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("sift") / "SiftFlowDataset"
    return root, write_sift_flow(root)


@pytest.mark.parametrize("place", [".", ".."])
def test_both_label_maps_come_out_as_written(tree, place):
    root, examples = tree
    for split, names in (("trainval", sorted(TRAIN)), ("test", TEST)):
        data = open_data("sift_flow", root / place, split)
        assert data.ids == tuple(names)
        assert data.heads == {"semantic": LABELS["sift_flow"], "geometric": LABELS["sift_flow_geometric"]}
        assert data.labels is data.heads["semantic"] and data.num_classes == {"semantic": 33, "geometric": 3}
        assert data.mean == (108.353, 115.294, 114.578) and data.labels.absent == ("cow", "desert", "moon")
        for index, example in enumerate(data):
            image, label = examples[example.id]
            assert np.abs(example.image.astype(int) - image).max() <= 2 and example.image.dtype == np.uint8
            assert np.array_equal(example.label, label) and example.label.dtype == np.int32
            assert np.array_equal(data.read_label(index), label)
    assert (open_data("sift_flow", root, "trainval")[sorted(TRAIN).index(VOID)].label == 255).all()


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_fcns_layer_gives_the_same(tmp_path, split):
    """Outputs of the authors' siftflow_layers.py on the same files, means added back; see golden/README.md."""
    write_sift_flow(tmp_path, "fcn")
    data = open_data("sift_flow", tmp_path, split)
    with np.load(Path(__file__).parent / "golden" / "fcn_layers_scenes.npz") as golden:
        prefix = f"sift_flow/{split}/"
        assert data.ids == tuple(key.split("/")[2] for key in golden.files if key.startswith(prefix) and key.endswith("/data"))
        for example in data:
            parts = {part: golden[f"{prefix}{example.id}/{part}"] for part in ("data", "semantic", "geometric")}
            assert np.array_equal(example.label, np.stack([parts["semantic"], parts["geometric"]], axis=-1))
            # Of a JPEG: another release of a decoder may differ by little.
            assert np.abs(example.image.astype(int) - parts["data"]).max() <= 2


def test_one_head_alone(tree):
    root, examples = tree
    for place, (head, table) in enumerate((("semantic", "sift_flow"), ("geometric", "sift_flow_geometric"))):
        data = open_data("sift_flow", root, "test", head=head)
        assert data.labels is LABELS[table] and data.heads is None and data.num_classes == LABELS[table].num_classes
        for index, name in enumerate(TEST):
            assert np.array_equal(data[index].label, examples[name][1][..., place])
            assert np.array_equal(data.sources(index)["mask"], examples[name][1][..., place])
    # The other head's files are not needed.
    shutil.rmtree(root / "SemanticLabels")
    assert data[0].label.shape == (16, 24)
    write_sift_flow(root)


def test_what_prepare_data_keeps(tree):
    root, examples = tree
    found = open_data("sift_flow", root, "test").sources(0)
    assert set(found) == {"image", "mask", "mask_geometric"}
    files = open_data("sift_flow", root, "test").files(0)
    assert [path.parent.parent.name for path in files] == ["Images", "SemanticLabels", "GeoLabels"]
    assert len(open_data("sift_flow", root, "test", head="geometric").files(0)) == 2
    assert found["image"] == root / "Images" / COLLECTION / f"{TEST[0]}.jpg"
    assert np.array_equal(np.stack([found["mask"], found["mask_geometric"]], axis=-1), examples[TEST[0]][1])


def test_prepared_it_is_the_same(tree, tmp_path):
    prepare("sift_flow", tree[0], tmp_path / "out")
    for split in ("trainval", "test"):
        for options in ({}, {"head": "semantic"}, {"head": "geometric"}):
            before, after = (open_data("sift_flow", place, split, **options) for place in (tree[0], tmp_path / "out"))
            assert (before.ids, before.mean, before.heads, before.labels) == (after.ids, after.mean, after.heads, after.labels)
            for one, other in zip(before, after, strict=True):
                assert np.array_equal(one.image, other.image) and np.array_equal(one.label, other.label)


def _rewrite(root, folder, values, name="S"):
    scipy.io.savemat(root / folder / COLLECTION / f"{TEST[0]}.mat", {name: values})


MISTAKES = {
    "no list": (lambda root: (root / "TestSet1.txt").unlink(), "neither test.txt nor TestSet1.txt"),
    "empty list": (lambda root: (root / "TestSet1.txt").write_text("\n"), "TestSet1.txt names no example"),
    "no image": (
        lambda root: (root / "Images" / COLLECTION / f"{TEST[0]}.jpg").unlink(),
        f"no such file.*{TEST[0]}.jpg",
    ),
    "no geometry": (lambda root: shutil.rmtree(root / "GeoLabels"), f"no such file.*GeoLabels.*{TEST[0]}.mat"),
    "no variable": (lambda root: _rewrite(root, "GeoLabels", np.ones((16, 24)), "L"), f"GeoLabels.*{TEST[0]}.mat.*variable S"),
    "34": (lambda root: _rewrite(root, "SemanticLabels", np.full((16, 24), 34)), "value 34 .*expected 0 to 33 of 'sift_flow'"),
    "4": (
        lambda root: _rewrite(root, "GeoLabels", np.full((16, 24), 4.0)),
        "value 4.0 .*expected -1 to 3 of 'sift_flow_geometric'",
    ),
    "minus two": (lambda root: _rewrite(root, "GeoLabels", np.full((16, 24), -2)), "value -2 "),
    "minus one thing": (lambda root: _rewrite(root, "SemanticLabels", np.full((16, 24), -1)), "value -1 "),
    "one size": (lambda root: _rewrite(root, "GeoLabels", np.ones((16, 23))), "differ in size: .*is 24×16, .*is 23×16"),
    "image size": (
        lambda root: [_rewrite(root, folder, np.ones((16, 23))) for folder in ("GeoLabels", "SemanticLabels")],
        "is 23×16 but image",
    ),
    "three axes": (lambda root: _rewrite(root, "GeoLabels", np.ones((16, 24, 2))), r"shape \(16, 24, 2\)"),
    "damaged": (
        lambda root: (root / "GeoLabels" / COLLECTION / f"{TEST[0]}.mat").write_bytes(bytes(90)),
        "cannot read .*GeoLabels",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(tree, tmp_path, case):
    spoil, message = MISTAKES[case]
    shutil.copytree(tree[0], tmp_path, dirs_exist_ok=True)
    spoil(tmp_path)
    with pytest.raises(KerassegError, match=message) as error:
        open_data("sift_flow", tmp_path, "test")[0]
    assert "\n" not in str(error.value)


def test_wrong_folders_and_words_are_told(tmp_path, tree):
    with pytest.raises(KerassegError, match="does not hold data set 'sift_flow'.*SemanticLabels"):
        open_data("sift_flow", tmp_path, "test")
    with pytest.raises(KerassegError, match="no split 'train': did you mean 'trainval'"):
        open_data("sift_flow", tree[0], "train")
    with pytest.raises(KerassegError, match="no head 'geometry': did you mean 'geometric'"):
        open_data("sift_flow", tree[0], "test", head="geometry")
    with pytest.raises(KerassegError, match="received no data_dir"):
        open_data("sift_flow", split="test")
