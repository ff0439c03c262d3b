"""Data sets of TensorFlow Datasets, written here as its own code writes them."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.data import Cached, open_data, training_batches
from kerasseg.data.layouts.tfds import Tfds, _version_folder

with warnings.catch_warnings():
    # Of what it imports, for its developers.
    warnings.simplefilter("ignore")
    tfds = pytest.importorskip("tensorflow_datasets")

SIZES = [(4, 6), (5, 3), (7, 7), (4, 6), (9, 5)]


def pair(index: int):
    generator = np.random.default_rng(index)
    image = generator.integers(0, 256, (*SIZES[index], 3), np.uint8)
    return image, generator.integers(0, 3, (*SIZES[index], 1)).astype(np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Five photographs with masks, and what else such sets have: a class, a name, a picture of depth."""

    VERSION = tfds.core.Version("1.0.0")
    LABELS = tfds.features.LabeledImage(labels=["ground", "cat", "dog"], shape=(None, None, 1))
    MASK = "segmentation_mask"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "file_name": tfds.features.Text(),
            "depth": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
            "inner": tfds.features.FeaturesDict({self.MASK: self.LABELS}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for index in range(count):
            image, mask = pair(index)
            depth = np.zeros((2, 2, 1), np.uint16)
            yield index, {"image": image, "label": 0, "file_name": str(index), "depth": depth, "inner": {self.MASK: mask}}


class Nameless(Tiny):
    """The same, whose masks are mere pictures, as those of oxford_iiit_pet."""

    VERSION = tfds.core.Version("2.0.0")
    LABELS = tfds.features.Image(shape=(None, None, 1))


def prepare(builder, root, **arguments):
    """Without its progress bars; TFDS calls what is deprecated."""
    tfds.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder(data_dir=root, **arguments).download_and_prepare()


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for kind in ("tfrecord", "array_record"):
        prepare(Tiny, root / kind, file_format=kind)
    prepare(Nameless, root / "tfrecord")
    return root


def expected(root, split):
    """Which example stands where, as TFDS itself reads them: it shuffles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = tfds.builder_from_directory(str(root / "tiny" / "1.0.0"))
        # The one format only in sequence, the other only by index.
        records = root.name == "tfrecord"
        examples = tfds.as_numpy(builder.as_dataset(split=split)) if records else builder.as_data_source(split)
        return [int(example["file_name"]) for example in examples]


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_any_example_is_what_was_written(roots, kind):
    data, order = open_data("tfds", roots / kind, "train", name="tiny"), expected(roots / kind, "train")
    assert sorted(order) == [0, 1, 2, 3, 4] and order != sorted(order)
    assert data.labels.classes == ("ground", "cat", "dog") and data.labels.name == "tiny" and data.num_classes == 3
    # Not in their order: none is read by way of another.
    for place in (3, 0, 4, 1, 2):
        image, mask = pair(order[place])
        example = data[place]
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.label, mask[..., 0])
        np.testing.assert_array_equal(data.read_label(place), mask[..., 0])
        assert (example.image.dtype, example.label.dtype, example.id) == (np.uint8, np.int32, f"train_{place:06d}")


def test_a_split_may_be_a_part_of_one(roots):
    for kind in ("tfrecord", "array_record"):
        order = expected(roots / kind, "train[20%:80%]")
        data = open_data("tfds", roots / kind, "train[20%:80%]", name="tiny")
        assert len(order) == len(data) == 3
        assert [example.image.shape[:2] for example in data] == [SIZES[index] for index in order]
    assert len(open_data("tfds", roots / "tfrecord", "train+test", name="tiny")) == 7


def test_the_folder_of_a_version_needs_no_name(roots, monkeypatch):
    assert len(open_data("tfds", roots / "tfrecord" / "tiny" / "1.0.0", "test")) == 2
    monkeypatch.setenv("TFDS_DATA_DIR", str(roots / "tfrecord"))
    data = open_data("tfds", None, "test", name="tiny:1.0.0")
    assert len(data) == 2 and type(data).splits_of(None, name="tiny") == ("train", "test")


def test_the_newest_version_of_a_config_counts(tmp_path):
    for version in ("9.0.0", "10.0.0", "10.0.0-rc"):
        for config in ("one", "two"):
            (tmp_path / "set" / config / version).mkdir(parents=True)
            (tmp_path / "set" / config / version / "dataset_info.json").write_text("{}")
    assert _version_folder(tmp_path, "set/one") == tmp_path / "set" / "one" / "10.0.0"
    assert _version_folder(tmp_path, "set/two:9.0.0") == tmp_path / "set" / "two" / "9.0.0"
    with pytest.raises(KerassegError, match=r"has the configs one, two: expected one, e\.g\. name=set/one"):
        _version_folder(tmp_path, "set")


def test_masks_without_names_are_told_what_they_mean(roots):
    def opened(**options):
        return open_data("tfds", roots / "tfrecord", "test", name="nameless", **options)

    raw = opened(classes=3)
    assert raw.labels.classes == ("class 0", "class 1", "class 2")
    # Counted from 1, and what is 0 ignored.
    shifted = opened(classes=["cat", "dog"], offset=-1, ignore=[0])
    chosen = opened(classes="dog, ground", values=[2, 0])
    for index, example in enumerate(raw):
        assert set(np.unique(example.label)) == {0, 1, 2}
        np.testing.assert_array_equal(shifted[index].label, np.choose(example.label, [255, 0, 1]))
        np.testing.assert_array_equal(chosen.read_label(index), np.choose(example.label, [1, 255, 0]))
    assert chosen.labels.classes == ("dog", "ground")
    with pytest.raises(KerassegError, match="example 'test_000000' of 'nameless' has mask value 2: expected 0 to 1 for 2 classes"):
        opened(classes=2)[0]
    with pytest.raises(KerassegError, match="received 1 values for 2 classes, offset=0"):
        opened(classes=2, values=[1])
    with pytest.raises(KerassegError, match="'nameless' does not name the classes of its masks: pass classes="):
        opened()


def test_a_cache_tells_arguments_folders_and_changes_apart(roots, tmp_path):
    def kept(root, name="nameless", **options):
        data = open_data("tfds", root, name=name, **options)
        for example, expected in zip(Cached(data, tmp_path / "cache"), data, strict=True):
            np.testing.assert_array_equal(example.image, expected.image)
            np.testing.assert_array_equal(example.label, expected.label)
        return len(list((tmp_path / "cache").rglob("*.npy")))

    # The same classes of the same files, by lists.
    first = roots / "tfrecord"
    assert kept(first, classes=["cat", "dog"], ignore=[2]) == 5
    assert kept(first, classes=["cat", "dog"], ignore=[2]) == 5
    assert kept(first, classes=["cat", "dog"], offset=-1, ignore=[0]) == 10
    assert kept(first, classes=["cat", "dog"], values=[2, 0]) == 15
    # The set of one name in another folder, and a file that is not what it was.
    assert kept(first, "tiny") == 20 and kept(roots / "array_record", "tiny") == 25
    shutil.copytree(first / "tiny", tmp_path / "root" / "tiny")
    assert kept(tmp_path / "root", "tiny") == 30 == kept(tmp_path / "root", "tiny")
    file = next((tmp_path / "root").rglob("*train.tfrecord*"))
    os.utime(file, (1, 1))
    assert kept(tmp_path / "root", "tiny") == 35
    data = Tfds(first, "train[40%:]+test", name="tiny")
    assert ["test" in data.files(index)[0].name for index in range(5)] == [False, False, False, True, True]


def test_it_trains(roots):
    data = open_data("tfds", roots / "array_record", "train", name="tiny")
    image, label = next(iter(training_batches(data, 5, steps=1)))
    assert image.shape == (5, 9, 7, 3) and label.shape == (5, 9, 7) and set(np.unique(label)) == {0, 1, 2, 255}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "received no name: pass --data-arguments name=NAME.* there are nameless, tiny"),
        ({"name": "tiniest"}, "'tiniest' is not prepared here; nothing is downloaded unasked, `tfds build tiniest --data_dir"),
        ({"name": "tiny:3.0.0"}, "has no version 3.0.0: did you mean '1.0.0'"),
        ({"name": "tiny", "split": "val"}, "TFDS set 'tiny' has no split 'val': known: .*, or a part, such as"),
        ({"name": "tiny", "mask": "label"}, r"has no pictures 'label' for mask: known: depth, image, inner/segmentation_mask"),
        ({"name": "tiny", "image": "imag"}, r"has no pictures 'imag' for image: did you mean 'image'\?"),
        ({"name": "tiny", "mask": "depth", "classes": 1}, "example 'train_000000' of 'tiny' has an image of .* and a mask of"),
    ],
)
def test_mistakes_end_in_one_line(roots, options, message):
    with pytest.raises(KerassegError, match=message) as error:
        open_data("tfds", roots / "tfrecord", **options)[0]
    assert "\n" not in str(error.value)


def test_a_file_that_was_cut_off_is_named(roots, tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (roots / "tfrecord" / "tiny" / "1.0.0").iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[:-5] if "train.tfrecord" in file.name else content)
    with pytest.raises(KerassegError, match=r"tiny-train.tfrecord-00000-of-00001 ends within a record"):
        open_data("tfds", tmp_path, name="tiny")
    assert len(open_data("tfds", tmp_path, "test", name="tiny")) == 2


def test_without_the_library_it_says_so(tmp_path):
    (tmp_path / "x" / "1.0.0").mkdir(parents=True)
    (tmp_path / "x" / "1.0.0" / "dataset_info.json").write_text("{}")
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from kerasseg.data import open_data\n"
        f"try: open_data('tfds', {str(tmp_path)!r}, name='x')\n"
        "except ValueError as error: print(error)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.startswith("data set 'tfds' needs tensorflow_datasets") and "pip install kerasseg[data]" in done.stdout
