import os
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import ROOT, toy
from helpers import assert_close, assert_varies, give_random_weights, images

from kerasseg import KerassegError
from kerasseg.export import Target, export_model
from kerasseg.runtimes import is_exported, open_file
from kerasseg.runtimes.files import Slot, default_threads

SIZE = (9, 14)
# Each has its description beside it.
FORMATS = {"tflite": "lite.tflite", "onnx": "standard.onnx", "saved_model": "saved"}


def network(**arguments):
    return give_random_weights(toy(5, **arguments))


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """One file of each format, of images of one size."""
    root = tmp_path_factory.mktemp("files")
    for format, name in FORMATS.items():
        export_model(model, root / name, Target(format, input_size=SIZE), measure_latency=False)
    return root


def write_tflite(path, function, *signature, flex=False, calibration=None, io=None):
    """The converter's own file, without anything of ours."""
    concrete = tf.function(function, autograph=False).get_concrete_function(*signature)
    module = tf.Module()
    module.function = concrete
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if flex:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([each] for each in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        path.write_bytes(converter.convert())
    return path


def image_spec(*shape):
    return tf.TensorSpec(shape, tf.float32, name="image")


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_images_goes_through_a_file_of_one(files, model, format):
    exported = open_file(files / FORMATS[format])
    assert exported.format == format and exported.input_shape == (1, *SIZE, 3) and exported.input_dtype == np.float32
    assert exported.output_names == ("logits",) and exported.meaning() == "logits"
    assert exported.output_shape() == (1, *SIZE, 5) and exported.description.network == "toy"
    pictures = images(SIZE, batch=3, block=4)
    found, expected = exported.run(pictures)["logits"], model(pictures.astype("float32"), training=False)
    assert found.dtype == np.float32 and found.flags.owndata
    assert_close(found, expected, 1e-5)
    assert_varies(found)
    # Of uint8 as of float, and again with others.
    assert_close(exported.run(pictures[::-1].astype("float32"))["logits"], expected[::-1], 1e-5)
    counts = exported.operations()
    assert min(counts.values()) >= 1 and list(counts.values()) == sorted(counts.values(), reverse=True)
    assert counts[{"tflite": "CONV_2D", "onnx": "Conv", "saved_model": "Conv2D"}[format]] == 2


def test_a_fixed_batch_is_filled_up(model, tmp_path):
    path = export_model(model, tmp_path / "three.onnx", Target("onnx", input_size=SIZE, batch_size=3), measure_latency=False).path
    exported = open_file(path)
    assert exported.input_shape[0] == 3
    for count in (1, 3, 5):
        pictures = images(SIZE, batch=count, block=4)
        assert_close(exported.run(pictures)["logits"], model(pictures.astype("float32"), training=False), 1e-5)


def test_files_of_any_size(model, tmp_path):
    onnx = export_model(model, tmp_path / "any.onnx", Target("onnx", batch_size=None), measure_latency=False).path
    lite = write_tflite(tmp_path / "any.tflite", lambda x: {"logits": model(x, training=False)}, image_spec(None, None, None, 3))
    for path in (onnx, lite):
        exported = open_file(path)
        assert exported.input_shape == (None, None, None, 3)
        for size, count in ((SIZE, 2), ((17, 8), 1), (SIZE, 2)):
            pictures = images(size, batch=count, block=4)
            found = exported.run(pictures)[exported.output_names[0]]
            assert_close(found, model(pictures.astype("float32"), training=False), 1e-5)


def test_several_outputs_keep_their_names_and_order(tmp_path):
    features = keras.Input((None, None, 3), name="image")
    heads = {"semantic": keras.layers.Conv2D(4, 3, padding="same")(features), "geometric": keras.layers.Conv2D(2, 1)(features)}
    model = give_random_weights(keras.Model(features, heads, name="two"))
    pictures = images(SIZE, block=4).astype("float32")
    expected = model(pictures, training=False)
    for format, name in FORMATS.items():
        exported = open_file(export_model(model, tmp_path / name, Target(format, input_size=SIZE), measure_latency=False).path)
        assert exported.output_names == ("semantic", "geometric")
        found = exported.run(pictures)
        for key in expected:
            assert_close(found[key], expected[key], 1e-5)


def test_what_a_quantised_slot_holds():
    # By hand: scale 1/2, zero −3.
    slot = Slot("x", (1,), np.dtype("int8"), 0.5, -3)
    given = np.array([0.0, 1.0, -1.0, 0.2, 0.3, 500.0, -500.0], np.float32)
    np.testing.assert_array_equal(slot.quantised(given), [-3, -1, -5, -3, -2, 127, -128])
    np.testing.assert_array_equal(slot.value(np.array([-3, -1, 127], np.int8)), [0, 1, 65])
    plain = Slot("x", (1,), np.dtype("uint8"))
    np.testing.assert_array_equal(plain.quantised(np.array([254.6, 300.0, -4.0], np.float32)), [255, 255, 0])
    assert plain.value(np.array([3], np.uint8)).dtype == np.uint8
    assert Slot("x", (1,), np.dtype("float16")).value(np.array([1], np.float16)).dtype == np.float32


@pytest.mark.parametrize("io", [tf.int8, tf.uint8])
def test_a_quantised_file_takes_and_gives_floats(model, tmp_path, io):
    pictures = [images(SIZE, 1, seed=seed, block=4).astype("float32") for seed in range(8)]
    path = write_tflite(
        tmp_path / "int8.tflite",
        lambda x: {"logits": model(x, training=False)},
        image_spec(1, *SIZE, 3),
        calibration=pictures,
        io=io,
    )
    exported = open_file(path)
    assert exported.input_dtype == io.as_numpy_dtype
    found, expected = exported.run(pictures[0])[exported.output_names[0]], np.asarray(model(pictures[0], training=False))
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert len(np.unique(found)) <= 256 < found.size
    assert_varies(found)
    # As most others export: for values that were made of pixels before.
    scaled = [picture / 127.5 - 1 for picture in pictures]
    path = write_tflite(tmp_path / "foreign.tflite", lambda x: x * 2, image_spec(1, *SIZE, 3), calibration=scaled, io=io)
    with pytest.raises(KerassegError, match=r"^'[^\n]*foreign.tflite' takes values of -[^\n]*, not pixels of 0 to 255: [^\n]*$"):
        open_file(path)
    assert open_file(path, check=False).input_dtype == io.as_numpy_dtype


def test_labels_come_as_integers(model, tmp_path):
    pictures = images(SIZE, 2, block=4)
    expected = np.argmax(model(pictures.astype("float32"), training=False), -1)
    for format, name in FORMATS.items():
        target = Target(format, input_size=SIZE, result="labels")
        exported = open_file(export_model(model, tmp_path / name, target, measure_latency=False).path)
        assert exported.meaning() == "labels"
        found = exported.run(pictures)["labels"]
        assert found.dtype.kind in "iu" and (found == expected).mean() > 0.995 and found.shape == expected.shape
    # Without its description, it is told by what it gives.
    (tmp_path / "lite.json").unlink()
    assert open_file(tmp_path / "lite.tflite").description is None and open_file(tmp_path / "lite.tflite").meaning() == "labels"


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from kerasseg import KerassegError
from kerasseg.runtimes import open_file
pictures = np.load(sys.argv[1] + "/pictures.npy")
for name in ("lite.tflite", "standard.onnx"):
    np.save(f"{sys.argv[1]}/{name}.npy", open_file(f"{sys.argv[1]}/{name}", threads=1).run(pictures)["logits"])
try:
    open_file(sys.argv[1] + "/saved")
except KerassegError as error:
    print(error)
assert not {"tensorflow", "keras", "PIL", "scipy"} & set(sys.modules)
"""


def test_neither_tensorflow_nor_keras_is_needed(files, model):
    pictures = images(SIZE, block=4).astype("float32")
    np.save(files / "pictures.npy", pictures)
    command = [sys.executable, "-W", "error", "-c", BLOCKED, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "pip install 'kerasseg[cpu]'" in done.stdout
    for name in ("lite.tflite", "standard.onnx"):
        assert_close(np.load(files / f"{name}.npy"), model(pictures, training=False), 1e-5)


@pytest.mark.parametrize(
    ("package", "name", "extra"), [("ai_edge_litert.interpreter", "tflite", "lite"), ("onnxruntime", "onnx", "onnx")]
)
def test_a_missing_package_is_one_line(files, monkeypatch, package, name, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KerassegError, match=rf"^[^\n]*pip install 'kerasseg\[{extra}\]'[^\n]*$"):
        open_file(files / FORMATS[name])


def test_as_many_threads_as_cores(files, monkeypatch):
    from ai_edge_litert import interpreter

    asked = []

    class Spy(interpreter.Interpreter):
        def __init__(self, **arguments):
            asked.append(arguments["num_threads"])
            super().__init__(**arguments)

    monkeypatch.setattr(interpreter, "Interpreter", Spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert default_threads() == 3
    open_file(files / "lite.tflite")
    open_file(files / "lite.tflite", threads=1)
    assert asked == [3, 1]
    for threads in (0, True, 1.5):
        with pytest.raises(KerassegError, match="expected a whole number of at least 1"):
            open_file(files / "lite.tflite", threads=threads)


@pytest.mark.parametrize("name", ["lite.tflite", "standard.onnx"])
def test_damaged_files_are_one_line(files, model, tmp_path, name):
    whole = (files / name).read_bytes()
    archive = tmp_path / "toy.keras"
    model.save(archive)
    other = (files / ("standard.onnx" if name.endswith("tflite") else "lite.tflite")).read_bytes()
    contents = [b"", b"no network", whole[:7], whole[: len(whole) // 2], archive.read_bytes(), other, whole[: len(whole) - 60]]
    for content in contents:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(KerassegError) as caught:
            open_file(path)
        assert re.fullmatch(
            r"[^\n]*(is empty|is no (TFLite|ONNX) file, or a damaged one)[^\n]*export it again[^\n]*", str(caught.value)
        )


def test_what_is_no_exported_file_is_refused(files, tmp_path):
    for path, message in (
        (tmp_path / "none.tflite", "no exported file at"),
        (tmp_path, "is no exported file: expected a .tflite or .onnx file"),
        (files / "lite.json", "is no exported file"),
    ):
        with pytest.raises(KerassegError, match=message):
            open_file(path)
    (tmp_path / "saved_model.pb").write_bytes(b"text")
    assert is_exported(tmp_path) and not is_exported(files)
    with pytest.raises(KerassegError, match=r"^[^\n]*is no SavedModel, or a damaged one[^\n]*$"):
        open_file(tmp_path)


def test_a_changed_file_is_told_by_its_description(files, model, tmp_path):
    for name in ("lite.tflite", "lite.json"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    content = bytearray((files / "lite.tflite").read_bytes())
    place = content.index(model.get_layer("score").bias.numpy().tobytes())
    content[place : place + 4] = np.float32(1).tobytes()
    (tmp_path / "lite.tflite").write_bytes(content)
    with pytest.raises(KerassegError, match=r"^[^\n]*SHA-256[^\n]*export it again[^\n]*$"):
        open_file(tmp_path / "lite.tflite")
    changed, blank = open_file(tmp_path / "lite.tflite", check=False), np.zeros((1, *SIZE, 3))
    assert changed.description is not None
    assert (changed.run(blank)["logits"] != open_file(files / "lite.tflite").run(blank)["logits"]).any(axis=(0, 1, 2)).tolist() == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_images_that_do_not_fit_are_refused(files):
    exported = open_file(files / "lite.tflite")
    wrong = (
        np.zeros((1, 9, 13, 3)),
        np.zeros((9, 14, 3)),
        np.zeros((0, 9, 14, 3)),
        np.zeros((1, 9, 14, 1)),
        np.zeros((1, 9, 14, 3), "U1"),
    )
    for images_ in wrong:
        with pytest.raises(KerassegError, match=r"takes images of shape \(N, 9, 14, 3\), received"):
            exported.run(images_)


def test_our_own_files_may_be_three_pixels_high(tmp_path):
    wide = give_random_weights(toy(5, preprocessing={"mean": [99.0] * 6}, input_shape=(None, None, 6)))
    for format, name in FORMATS.items():
        path = export_model(wide, tmp_path / name, Target(format, input_size=(3, 14)), measure_latency=False).path
        assert open_file(path).run(images((3, 14), 1, 6, block=2))["logits"].shape == (1, 3, 14, 5)


def test_files_that_take_no_image_are_refused(tmp_path):
    two = write_tflite(tmp_path / "two.tflite", lambda a, b: a + b, tf.TensorSpec((1, 2)), tf.TensorSpec((1, 2)))
    first = write_tflite(tmp_path / "first.tflite", lambda x: x + 1, image_spec(1, 3, 8, 8))
    flat = write_tflite(tmp_path / "flat.tflite", lambda x: x + 1, image_spec(1, 8))
    for path, message in (
        (two, "has 2 inputs"),
        (first, r"input of shape \(1, 3, 8, 8\): expected images"),
        (flat, "expected images"),
    ):
        with pytest.raises(KerassegError, match=message):
            open_file(path)


def test_ranges_that_abort_the_process_are_refused(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype("float32")

    def function(image):
        maps = tf.pad(tf.nn.conv2d(image, kernel, 1, "SAME"), [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=tf.float32.min)
        return {"maps": tf.nn.max_pool2d(maps, 3, 2, "VALID")}

    pictures = [images(SIZE, 1, seed=seed, block=4).astype("float32") for seed in range(3)]
    spec = image_spec(1, *SIZE, 3)
    path = write_tflite(tmp_path / "infinite.tflite", function, spec, calibration=pictures, io=tf.int8)
    with pytest.raises(KerassegError, match=r"^[^\n]*quantised with a scale of 1\.3[^\n]*which cannot be run[^\n]*$"):
        open_file(path)


def test_operations_of_tensorflow_are_refused(tmp_path):
    path = write_tflite(tmp_path / "flex.tflite", lambda image: tf.image.adjust_hue(image, 0.2), image_spec(1, *SIZE, 3), flex=True)
    with pytest.raises(KerassegError, match=r"^[^\n]*operations of TensorFlow itself \(AdjustHue\)[^\n]*--select-tf-ops$"):
        open_file(path)
