"""Images of any size: labels window by window, whole files or none."""

import errno
import json
import os
import warnings

import keras
import numpy as np
import pytest
from cli_helpers import run, tree
from inference_helpers import make_model, photograph, scored_network
from PIL import Image
from tensorflow import constant

from kerasseg import KerassegError
from kerasseg.cli import predict as predict_command
from kerasseg.evaluation import Inference, Windows, inference, large, predict_batch, predict_large, probabilities
from kerasseg.labels import generic_table
from kerasseg.recipes import RECIPES
from kerasseg.runs import Run

WINDOWS = Windows((16, 20), overlap=5, margin=2, blending="linear")


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_labels_are_those_of_the_same_windows_held_as_a_whole(model, tmp_path):
    image, seen = photograph(45, 61), []
    expected = probabilities(model, image, method=WINDOWS).argmax(-1)
    found = predict_large(model, image, windows=WINDOWS, progress=lambda done, total: seen.append((done, total)))
    assert found.dtype == np.uint8 and isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected)
    # 16 - 5: rows begin at 0, 11, 22, 29; columns at 0, 15, 30, 41.
    assert seen == [(done, 16) for done in range(1, 17)]
    np.save(tmp_path / "image.npy", image)
    Image.fromarray(image).save(tmp_path / "image.png")
    for source in (tmp_path / "image.npy", str(tmp_path / "image.png"), np.load(tmp_path / "image.npy", mmap_mode="r")):
        out = tmp_path / "new/labels.npy"
        mapped = predict_large(model, source, out, windows=WINDOWS)
        assert isinstance(mapped, np.memmap) and mapped.mode == "r" and np.load(out).dtype == np.uint8
        np.testing.assert_array_equal(np.load(out), expected)
    for array in (image.astype(np.float32), constant(image)):
        np.testing.assert_array_equal(predict_large(model, array, windows=WINDOWS), expected)
    assert isinstance(large.open_image(tmp_path / "image.npy"), np.memmap)


def test_only_windows_of_the_image_are_read_and_never_all_scores_kept(model, monkeypatch):
    class Sliced:
        """Knows how much was asked of it."""

        shape, dtype, most = (70, 90, 3), np.dtype(np.uint8), 0

        def __getitem__(self, key):
            size = [place.stop - place.start for place in key]
            self.most = max(self.most, *size)
            return photograph(*size)

    image, kept, sizes = Sliced(), np.empty, []
    monkeypatch.setattr("kerasseg.evaluation.windows.np.empty", lambda shape, *rest: sizes.append(shape) or kept(shape, *rest))
    assert predict_large(model, image, windows=WINDOWS).shape == (70, 90)
    assert image.most == 20
    # The lines that two rows share, and the labels; the last row is moved up by more than that.
    assert sorted(size for size in sizes if 90 in size) == [(1, 90, 3), (70, 90)]


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_each_window_is_a_small_picture_with_its_own_scales_and_mirror(model, fusion):
    image = photograph(20, 31)
    method = Windows((20, 12), overlap=2, blending="linear")
    total, weights = np.zeros((20, 31, 3)), np.zeros((1, 31, 1))
    for left, first in ((0, 0), (10, 10), (19, 20)):
        window = image[:, left : left + 12]
        options = Inference((0.5, 1.5), True, fusion=fusion)
        (scores,), _ = inference.combined(model, [window], options, [None])
        ramp = np.minimum(np.arange(left + 12 - first) + 1, np.arange(left + 12 - first)[::-1] + 1)[None, :, None]
        total[:, first : left + 12] += ramp * scores.numpy()[:, first - left :]
        weights[:, first : left + 12] += ramp
    found = predict_large(model, image, windows=method, scales=(0.5, 1.5), flip=True, fusion=fusion)
    np.testing.assert_array_equal(found, (total / weights).argmax(-1))
    assert (found != predict_large(model, image, windows=method)).any()


def test_more_classes_than_a_byte_holds_take_two(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    bias = keras.initializers.Constant(np.arange(300) * 0.3)
    many = keras.Model(image, keras.layers.Conv2D(300, 1, bias_initializer=bias)(image))
    found = predict_large(many, photograph(9, 9), windows=Windows((8, 8), overlap=1))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, many(photograph(9, 9)[None].astype(np.float32)).numpy()[0].argmax(-1))
    assert np.min_scalar_type(255) == np.uint8 and found.max() > 255
    mapped = predict_large(many, photograph(9, 9), tmp_path / "labels.npy", windows=Windows((8, 8), overlap=1))
    assert mapped.dtype == np.uint16
    np.testing.assert_array_equal(mapped, found)


def test_what_was_interrupted_leaves_nothing(model, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    (tmp_path / "old.npy").write_bytes(b"before")
    for name in ("new.npy", "old.npy"):
        with pytest.raises(KeyboardInterrupt):
            predict_large(model, photograph(45, 61), tmp_path / name, windows=WINDOWS, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old.npy"]
    assert (tmp_path / "old.npy").read_bytes() == b"before"


def refusing(code):
    def refuse(*given):
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_file_system_that_sets_nothing_aside_gets_the_file_all_the_same(model, tmp_path, monkeypatch):
    expected = predict_large(model, photograph(20, 30), tmp_path / "one.npy")
    for code in (errno.EINVAL, errno.EOPNOTSUPP):
        monkeypatch.setattr(os, "posix_fallocate", refusing(code))
        np.testing.assert_array_equal(predict_large(model, photograph(20, 30), tmp_path / "two.npy"), expected)
    monkeypatch.delattr(os, "posix_fallocate")
    np.testing.assert_array_equal(predict_large(model, photograph(20, 30), tmp_path / "three.npy"), expected)


def test_labels_are_not_written_over_their_image(model, tmp_path, monkeypatch):
    path = tmp_path / "image.npy"
    np.save(path, photograph())
    (tmp_path / "link").symlink_to(tmp_path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    for image in (path, "image.npy", np.load(path, mmap_mode="r"), tmp_path / "link/image.npy"):
        with pytest.raises(KerassegError, match="the labels of .*image.npy would be written over it: expected another path than"):
            predict_large(model, image, path)
    assert path.read_bytes() == before
    predict_large(model, path, tmp_path / "labels.npy")


def test_what_cannot_be_is_one_line(model, tmp_path):
    (tmp_path / "no.npy").write_bytes(b"text")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", photograph())
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    before = tree(tmp_path)
    mistakes = (
        ({"crf": "deeplab_v1"}, photograph(), "a CRF connects all pixels of an image: expected none .*--crf none"),
        ({"windows": (16, 16)}, photograph(), r"windows \(16, 16\): expected kerasseg.evaluation.Windows"),
        ({"out": tmp_path / "labels.png"}, photograph(), "labels.png': expected a path that ends in .npy"),
        ({"scales": (0.01,)}, photograph(), "scale 0.01 leaves 0x0 pixels"),
        ({"output": "other"}, photograph(), "output 'other' is none of"),
        ({"fusion": "sum"}, photograph(), "fusion 'sum': expected one of"),
        ({}, photograph()[..., 0], r"image has shape \(11, 14\): expected \(height, width, 3\)"),
        ({}, photograph().astype(bool), "image has dtype bool"),
        ({}, photograph() * 300.0, "image has values .* expected RGB 0-255"),
        ({}, tmp_path / "none.npy", "no such file: .*none.npy"),
        ({}, tmp_path / "no.npy", "cannot read .*no.npy .*numpy.save"),
        ({}, tmp_path / "empty.npy", "cannot read .*empty.npy .*numpy.save"),
        ({}, tmp_path / "several.npy", "cannot read .*several.npy .*numpy.save"),
        ({"scales": 0.5}, photograph(), "scales 0.5: expected at least one positive number"),
    )
    for options, image, message in mistakes:
        with pytest.raises(KerassegError, match=message) as caught:
            predict_large(model, image, **options)
        assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_the_windows_that_are_used_by_themselves(model):
    assert (large.LARGE_WINDOWS.size, large.LARGE_WINDOWS.overlap) == ((512, 512), 64)
    image = photograph(20, 30)
    np.testing.assert_array_equal(predict_large(model, image), predict_batch(model, [image], Inference())[0].classes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    scored_network(classes=4).save(root / "model.keras")
    np.save(root / "mosaic.npy", photograph(50, 70))
    (root / "empty.npy").touch()
    Image.fromarray(photograph(30, 40)).save(root / "photo.png")
    return root


def test_the_command_labels_arrays_and_photographs(place, tmp_path, capsys):
    options = ("--windows", "16x20", "--window-overlap", "0.25", "--window-margin", "2", "--blending", "gaussian")
    given = (place / "model.keras", place / "mosaic.npy", place / "photo.png")
    assert run(predict_command, *given, "--out", tmp_path, *options) == 0
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {"index/mosaic.npy", "index/photo.png", "color/photo.png", "overlay/photo.png"}
    windows = Windows((16, 20), overlap=0.25, margin=2, blending="gaussian")
    for name, size in (("mosaic.npy", (50, 70)), ("photo.png", (30, 40))):
        path = tmp_path / "index" / name
        found = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
        expected = probabilities(scored_network(classes=4), photograph(*size), method=windows).argmax(-1)
        np.testing.assert_array_equal(found, expected)
    # 16 - 4: rows begin at 0, 12, 24, 34; columns at 0, 15, 30, 45, 50.
    assert "predicting mosaic.npy 20/20" in capsys.readouterr().out
    assert run(predict_command, *given[:2], "--out", tmp_path / "tta", "--tta", "--fusion", "max") == 0
    assert np.load(tmp_path / "tta/index/mosaic.npy").shape == (50, 70)


def test_the_command_fuses_scales_as_it_is_told(place, tmp_path):
    given = (place / "model.keras", place / "photo.png", "--kinds", "index", "--scales", "0.5,1.5", "--flip")
    found = []
    for fusion in ("mean", "max"):
        assert run(predict_command, *given, "--out", tmp_path / fusion, "--fusion", fusion) == 0
        found.append(np.asarray(Image.open(tmp_path / fusion / "index/photo.png")))
        network = scored_network(classes=4)
        expected = probabilities(network, photograph(30, 40), scales=(0.5, 1.5), flip=True, fusion=fusion).argmax(-1)
        np.testing.assert_array_equal(found[-1], expected)
    assert (found[0] != found[1]).any()


def test_a_photograph_beyond_pillows_limit_is_no_bomb(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    # More than twice the limit is an error elsewhere, more than once a warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(predict_command, place / "model.keras", place / "photo.png", "--out", tmp_path) == 0
    assert Image.MAX_IMAGE_PIXELS == 500
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(tmp_path / "overlay/photo.png") as picture:
        assert picture.size == (40, 30)


def test_a_full_disk_is_one_line_and_leaves_nothing(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    assert run(predict_command, place / "model.keras", place / "mosaic.npy", "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: No space left on device: {tmp_path}/index/mosaic.npy: free some space there")
    assert not list((tmp_path / "index").iterdir())


@pytest.mark.parametrize("kind", ["index", "color", "overlay", "array"])
def test_nothing_that_is_read_is_written_over(tmp_path, capsys, kind):
    path = tmp_path / ("index/photo.npy" if kind == "array" else f"{kind}/photo.png")
    path.parent.mkdir()
    if kind == "array":
        np.save(path, photograph())
    else:
        Image.fromarray(photograph()).save(path)
    before = tree(tmp_path)
    # There is no such network: nobody opens it.
    assert run(predict_command, tmp_path / "none.keras", path, "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: the labels of {path} would be written over {path}: expected another folder as --out"
    assert tree(tmp_path) == before


def test_a_mistake_in_an_array_shows_before_photographs_are_predicted(place, tmp_path, capsys):
    Run(tmp_path / "run").begin(RECIPES["shapes"].override(crf="deeplab_v1").to_json(), generic_table(list("abcd")))
    (tmp_path / "run/model.keras").write_bytes((place / "model.keras").read_bytes())
    photo, mosaic, out = place / "photo.png", place / "mosaic.npy", tmp_path / "out"
    windows = ("--windows", "20x20", "--window-count", "3")
    mistakes = {
        "a CRF connects all pixels": (place / "model.keras", photo, mosaic, "--crf", "deeplab_v1"),
        "expected none for windows of a large one (--crf none)": (tmp_path / "run", photo, mosaic),
        "cannot read": (place / "model.keras", photo, place / "empty.npy"),
        "3 windows of 20 pixels do not cover 70": (place / "model.keras", photo, mosaic, *windows),
    }
    for message, given in mistakes.items():
        assert run(predict_command, *given, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and not out.exists()
    assert run(predict_command, tmp_path / "run", photo, mosaic, "--out", out, "--crf", "none", "--kinds", "index") == 0


def test_windows_are_counted_of_the_output_that_is_chosen(tmp_path, capsys):
    image = keras.Input((None, None, 3))
    fine = keras.layers.Conv2D(2, 1)(image)
    coarse = keras.layers.Conv2DTranspose(3, 32, strides=32)(keras.layers.Conv2D(2, 32, strides=32)(image))
    keras.Model(image, {"coarse": coarse, "fine": fine}).save(tmp_path / "model.keras")
    np.save(tmp_path / "mosaic.npy", photograph(200, 40))
    options = ("--windows", "50x50", "--window-margin", "4", "--out", tmp_path / "out")
    # Along 200 every 42 pixels: 0, 42, 84, 126, 150; of the coarse one every 32.
    for output, count in (("fine", 5), ("coarse", 6)):
        assert run(predict_command, tmp_path / "model.keras", tmp_path / "mosaic.npy", "--output", output, *options) == 0
        assert f"predicting mosaic.npy {count}/{count}" in capsys.readouterr().out


MISTAKES = {
    "kinds": (("mosaic.npy", "--kinds", "color"), "mosaic.npy: of an array only index/….npy is written"),
    "submission": (("mosaic.npy", "--submission", "voc"), "mosaic.npy: of an array only index/….npy is written"),
    "tiles": (("mosaic.npy", "--tiles", "900x900"), "an array is read in windows, expected --windows, such as"),
    "crf": (("mosaic.npy", "--crf", "deeplab_v1"), "a CRF connects all pixels"),
    "overlap": (("photo.png", "--windows", "8x8", "--window-overlap", "8"), "overlap 8 of windows of 8x8 pixels"),
    "overlap text": (("photo.png", "--windows", "8x8", "--window-overlap", "much"), "received 'much', expected a number"),
    "margin": (("photo.png", "--windows", "8x8", "--window-margin", "4"), "with a margin of 4: expected height and width above 8"),
    "blending": (("photo.png", "--windows", "8x8", "--blending", "x"), "blending 'x' of windows: expected one of uniform, linear"),
    "alone": (("photo.png", "--window-overlap", "8"), "--window-overlap 8: means something only with --windows"),
    "fusion": (("photo.png", "--fusion", "sum"), "invalid choice: 'sum'"),
    "output": (("photo.png", "--output", "b"), "output 'b' is none of scored: it has one output"),
    "scale": (("photo.png", "--scales", "0.01"), "scale 0.01 leaves 0x0 pixels of an image of 30x40"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place, tmp_path, capsys, mistake):
    (name, *options), message = MISTAKES[mistake]
    before = tree(place)
    assert run(predict_command, place / "model.keras", place / name, "--out", tmp_path / "new", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert tree(place) == before and not list(tmp_path.rglob("*.*"))


def test_the_kept_options_are_in_json():
    assert json.loads(json.dumps(Inference(method=WINDOWS).to_json()))["method"]["overlap"] == 5
