import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.coco import write_coco
from fixtures.sift_flow import write_sift_flow
from PIL import Image

from kerasseg.data import Bootstrapped, DataSet, Example, MaskCues, MaskedData, Subset, open_data
from kerasseg.data.layouts.coco_voc import CocoVoc
from kerasseg.data.object_crops import ObjectCrops
from kerasseg.data.views import cache as caching
from kerasseg.data.views.cache import Cached, free_memory
from kerasseg.data.views.derived import Derived
from kerasseg.data.views.fingerprint import about
from kerasseg.data.views.heads import OneHead
from kerasseg.data.views.union import Union
from kerasseg.errors import KerassegError
from kerasseg.labels import generic_table

TABLE = generic_table(["ground", "cat", "dog"])


class Noted(DataSet):
    """Images that say how often each was read."""

    def __init__(self, length=5, dtype=np.uint8, label_type=np.int32):
        super().__init__(TABLE, map(str, range(length)))
        self.reads, self.kinds = [], (dtype, label_type)

    def read(self, index):
        self.reads.append(index)
        label = np.arange(6).reshape(2, 3) % 3
        label[0, 0] = 255
        return Example(np.full((2, 3, 3), index, self.kinds[0]), label.astype(self.kinds[1]), self.ids[index], None)


class Darker(Derived):
    """Another data set's images at half of their light."""

    def __init__(self, data):
        self.before = data
        super().__init__(data, data.ids)

    def read(self, index):
        example = self.before.read(index)
        return Example(example.image // 2, example.label, example.id, example.path)


def write_folder(root, names=("a", "b", "c"), value=0):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\ncat\ndog\n")
    (root / "train.txt").write_text("\n".join(names))
    for k, name in enumerate(names):
        Image.new("RGB", (5, 4), (value + k, 0, 0)).save(root / "images" / f"{name}.png")
        Image.new("L", (5, 4), k % 3).save(root / "masks" / f"{name}.png")
    return root


def assert_same(one, two):
    assert len(one) == len(two) > 0 and one.ids == two.ids
    for index, (a, b) in enumerate(zip(one, two, strict=True)):
        assert (a.id, a.path) == (b.id, b.path)
        for x, y in ((a.image, b.image), (a.label, b.label), (one.read_label(index), b.label)):
            assert x is y is None or (x.dtype == y.dtype and np.array_equal(x, y))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memory_reads_each_once_and_counts_bytes(dtype):
    data = Noted(40, dtype)
    cached = Cached(data, "memory")
    assert_same(cached, Noted(40, dtype))
    assert_same(cached, Noted(40, dtype))
    assert sorted(data.reads) == list(range(40))
    # 2 · 3 pixels of three channels, and a byte of label each.
    assert cached.bytes == 40 * 6 * (3 * np.dtype(dtype).itemsize + 1)
    with pytest.raises(ValueError, match="read-only"):
        cached[3].image[0, 0] = 7
    # The label is the caller's own.
    cached[3].label[:] = 9
    assert cached[3].label.max() == 255


def test_memory_refuses_what_will_not_fit(monkeypatch):
    # Ten images of 24 bytes in the 80 % of 299.
    monkeypatch.setattr(caching, "free_memory", lambda: 299)
    with pytest.raises(KerassegError, match="cache 'memory': 10 examples will take about 0.0 GB, but only 0.0 GB") as error:
        Cached(Noted(10), "memory")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(caching, "free_memory", lambda: 300)
    assert Cached(Noted(10), "memory").bytes == 240


def test_memory_that_others_will_fill_is_not_free(monkeypatch):
    # 33 images of 24 bytes each, twice, in the 80 % of what is free: 16 of each are read at once, 17 are to come.
    monkeypatch.setattr(caching, "free_memory", lambda: 1000)
    first = Cached(Noted(33), "memory")
    with pytest.raises(KerassegError, match="33 examples will take about"):
        Cached(Noted(33), "memory")
    # What the first has by now is no longer free, by what the system says.
    assert len(list(first)) == 33
    second = Cached(Noted(33), "memory")
    del first
    monkeypatch.setattr(caching, "free_memory", lambda: (33 + 17) * 24 / 0.8 - 2)
    with pytest.raises(KerassegError, match="33 examples will take about"):
        Cached(Noted(33), "memory")
    del second
    assert len(list(Cached(Noted(33), "memory"))) == 33


def test_memory_is_not_overfilled_where_later_images_are_larger(monkeypatch):
    class Growing(Noted):
        def read(self, index):
            example = super().read(index)
            # Those that the estimate looks at are small.
            return example if index % 2 == 0 else Example(np.zeros((9, 9, 3), np.uint8), None, example.id, None)

    monkeypatch.setattr(caching, "free_memory", lambda: 32 * 24 / 0.8 + 1)
    data = Growing(32)
    cached = Cached(data, "memory")
    for _ in range(2):
        assert_same(cached, Growing(32))
    assert cached.bytes <= 32 * 24
    assert len(data.reads) > 32


def test_free_memory_is_a_part_of_what_there_is(monkeypatch):
    assert 10**7 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = {"/proc/meminfo": ["MemTotal: 99 kB", "MemAvailable: 50 kB"]}
    monkeypatch.setattr(caching, "_lines", lambda path: files.get(path, []))
    assert free_memory() == 50 * 1024
    files |= {"/sys/fs/cgroup/memory.max": ["30000"], "/sys/fs/cgroup/memory.current": ["10000"]}
    assert free_memory() == 20000
    files |= {"/sys/fs/cgroup/memory.max": ["max"]}
    assert free_memory() == 50 * 1024


def test_a_folder_keeps_for_the_next_run(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data")
    plain = open_data("folder", root)
    assert_same(Cached(plain, tmp_path / "kept"), plain)
    cached = Cached(open_data("folder", root), str(tmp_path / "kept"))
    monkeypatch.setattr("kerasseg.data.records.decode_image", lambda path: pytest.fail(f"decoded {path}"))
    monkeypatch.setattr("kerasseg.data.records.decode_label", lambda path, labels: pytest.fail(f"decoded {path}"))
    assert [int(example.image[0, 0, 0]) for example in cached] == [0, 1, 2]
    assert [int(cached.read_label(index)[0, 0]) for index in range(3)] == [0, 1, 2]
    assert cached[2].label.dtype == np.int32
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 3


@pytest.mark.parametrize("changed", ["images", "masks"])
def test_changed_files_are_read_anew(changed, tmp_path):
    root = write_folder(tmp_path / "data")
    cached = Cached(open_data("folder", root), tmp_path / "kept")
    before = [(int(e.image[0, 0, 0]), int(e.label[0, 0])) for e in cached]
    path = root / changed / "b.png"
    times = path.stat()
    Image.new("RGB" if changed == "images" else "L", (5, 4), (77, 0, 0) if changed == "images" else 2).save(path)
    # Of the same size, perhaps, but of another time.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    after = [(int(e.image[0, 0, 0]), int(e.label[0, 0])) for e in cached]
    assert before == [(0, 0), (1, 1), (2, 2)]
    assert after == [(0, 0), (77, 1) if changed == "images" else (1, 2), (2, 2)]


def test_damaged_files_of_the_cache_are_made_anew(tmp_path):
    root = write_folder(tmp_path / "data")
    cached = Cached(open_data("folder", root), tmp_path / "kept")
    assert len(list(cached)) == 3
    for number, path in enumerate(sorted((tmp_path / "kept").rglob("*.npy"))):
        path.write_bytes(path.read_bytes()[: (0, 40, -1)[number]])
    assert_same(cached, open_data("folder", root))
    assert_same(cached, open_data("folder", root))


def test_data_sets_of_other_settings_do_not_share(tmp_path):
    same = open_data("shapes", length=3), open_data("shapes", length=3)
    others = [open_data("shapes", length=3, **options) for options in ({"seed": 1}, {"split": "val"}, {"size": (32, 40)})]
    for data in (*same, *others, Bootstrapped(others[0], [1, 2, 3]), Bootstrapped(same[0], [1, 2, 3])):
        assert_same(Cached(data, tmp_path), data)
    assert len(list(tmp_path.rglob("*.npy"))) == 12
    for data in (Darker(same[0]), Darker(others[0])):
        assert_same(Cached(data, tmp_path / "darker"), data)
    # What is cut out of them has ids of its own, whatever is behind, and however it is cut.
    one, other = open_data("shapes", length=1), open_data("shapes", length=1, seed=1)
    crops = [ObjectCrops(one), ObjectCrops(other), ObjectCrops(one, 1.5), ObjectCrops(one, only_object=False)]
    for data in crops:
        assert_same(Cached(data, tmp_path), data)
    assert len(list(tmp_path.glob("??/*.npy"))) == 12 + sum(map(len, crops))


def test_unions_and_parts_keep_what_their_data_sets_would(tmp_path):
    root = write_folder(tmp_path / "data")
    alone = Cached(open_data("folder", root), tmp_path / "kept")
    assert len(list(alone)) == 3
    other = open_data("folder", write_folder(tmp_path / "more", "xyz", 9))
    union = Union({"one": open_data("folder", root), "two": other})
    assert_same(Cached(union, tmp_path / "kept"), union)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 6


class Chosen(Noted):
    """Labels of which only some are kept, told by whatever `keep` is."""

    def __init__(self, keep, further=None):
        super().__init__(2)
        kept = [k for k in range(3) if k in keep or getattr(keep, "get", lambda _: None)(str(k))]
        # An attribute that tells nothing.
        self.kept = lambda label: np.isin(label, kept)

    def read(self, index):
        example = super().read(index)
        return Example(example.image, np.where(self.kept(example.label), example.label, 255), example.id, None)


@pytest.mark.parametrize(
    "values",
    [
        ([1], [2], [[1]]),
        ({1}, {2}, frozenset({1, 2})),
        ({"1": [True]}, {"2": [True]}, {"1": [True], "2": {}}),
        (np.array([1]), np.array([2]), np.array([], object)),
    ],
)
def test_arguments_that_are_no_plain_values_are_told_apart(values, tmp_path):
    # An attribute of which nothing can be told takes nothing from the others.
    for value in values:
        Cached(Chosen(value, object()), tmp_path)[0]
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    for value in values:
        data = Chosen(value, object())
        assert_same(Cached(data, tmp_path), data)
    assert len(list(tmp_path.rglob("*.npy"))) == 6


def test_what_a_data_set_was_made_with_tells_it_apart(tmp_path):
    write_coco(tmp_path / "coco")
    plain, larger = (CocoVoc(tmp_path / "coco", "trainval", **more) for more in ({}, {"minimum_region": 1000}))
    assert about(plain) != about(larger) and about(plain) == about(CocoVoc(str(tmp_path / "coco"), "trainval", minimum_region=0))
    # Stages share what they have in common, wherever their folder is said to be.
    assert about(plain) == about(CocoVoc(f"{tmp_path}/./coco", "train"))
    assert about(copy.copy(larger)) == about(pickle.loads(pickle.dumps(larger))) == about(larger)
    for data in (plain, larger):
        assert_same(Cached(data, tmp_path / "kept"), data)
    holds_itself = Noted()
    holds_itself.friend = holds_itself
    assert about(holds_itself) == about(holds_itself)


def test_views_that_change_examples_do_not_share_with_others(tmp_path):
    data = open_data("shapes", length=2)
    for view in (data, *(MaskedData(data, MaskCues(*words)) for words in (("mask", "keep"), ("keep", "mask")))):
        assert_same(Cached(Subset(view, [1, 0]), tmp_path / "kept"), Subset(view, [1, 0]))
    write_sift_flow(tmp_path / "sift", "official")
    both = open_data("sift_flow", tmp_path / "sift", "test")
    for view in (both, OneHead(both, "semantic"), OneHead(both, "geometric")):
        assert_same(Cached(view, tmp_path / "kept"), view)


def test_further_files_of_an_example_are_looked_at(tmp_path):
    write_sift_flow(tmp_path, "official")
    data = open_data("sift_flow", tmp_path, "test")
    cached = Cached(data, tmp_path / "kept")
    assert_same(cached, data)
    count = len(list((tmp_path / "kept").rglob("*.npy")))
    geometric = data.files(0)[2]
    assert "GeoLabels" in str(geometric)
    os.utime(geometric, (1, 1))
    assert_same(cached, data)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == count + 1


def test_examples_without_labels(tmp_path):
    class Bare(Noted):
        def read(self, index):
            return Example(np.full((2, 2, 3), index, np.uint8), None, self.ids[index], None)

    for where in ("memory", tmp_path):
        cached = Cached(Bare(), where)
        assert_same(cached, Bare())
        assert_same(cached, Bare())


def test_what_a_folder_cannot_do(tmp_path):
    class Unknown(Noted):
        def read(self, index):
            return Example(np.zeros((1, 1, 3), np.uint8), None, "x", "somewhere.png")

    (tmp_path / "file").write_text("")
    for call, message in (
        (lambda: Cached(Noted(), "gs://bucket/cache"), "cache 'gs://bucket/cache': .* name a folder on a disk, or 'memory'"),
        (lambda: Cached(Noted(), tmp_path / "file"), "cache '.*file' cannot be written"),
        (lambda: Cached(Unknown(), tmp_path)[0], "Unknown does not tell of which files example 'x' is made"),
    ):
        with pytest.raises(KerassegError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


_READS_ALL = """
import sys
from kerasseg.data import open_data
from kerasseg.data.views.cache import Cached
data = Cached(open_data("folder", sys.argv[1]), sys.argv[2])
for _ in range(3):
    assert [int(e.image[0, 0, 0]) for e in data] == list(range(len(data)))
    for path in data._store._folder.glob("*/[!.]*.npy"):
        path.unlink(missing_ok=True)
assert "tensorflow" not in sys.modules
"""


def test_several_processes_at_once(tmp_path):
    """They write and remove the same files all the time, and each reads only whole ones."""
    root = write_folder(tmp_path / "data", [f"n{k:02d}" for k in range(40)])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-c", _READS_ALL, str(root), str(tmp_path / "kept")]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert not list((tmp_path / "kept").rglob(".unfinished*"))
