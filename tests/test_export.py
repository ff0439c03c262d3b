"""Networks as files: what goes in, what comes out, and that it is what Keras computes."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, give_random_weights, images, random_model

from kerasseg import KerassegError
from kerasseg.export import Target, check_file, export_model
from kerasseg.export.graph import plan
from kerasseg.export.parity import Parity, Tolerance, random_batches
from kerasseg.labels import LABELS, generic_table
from kerasseg.layers import AlignedResizeLike, Conv2D, MinimumSize
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.runtimes import open_file

SIZE = (33, 47)


def tiny(classes=5, channels=3, size=(None, None), heads=None):
    """Scores at a quarter of the size, brought to the image, corners on corners."""
    image = keras.Input((*size, channels), name="image")
    x = Conv2D(6, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 64)(image))
    x = keras.layers.MaxPooling2D(4, padding="same")(x)
    heads = heads or {"score": classes}
    outputs = {name: AlignedResizeLike(name=name)([Conv2D(count, 3, padding="same")(x), image]) for name, count in heads.items()}
    return give_random_weights(keras.Model(image, outputs if len(outputs) > 1 else outputs["score"], name="tiny"))


@pytest.fixture(scope="module")
def small():
    return tiny()


def run_file(path, image):
    """The file alone, by the interpreter's own plain calls."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(given["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


def export(model, path, size=SIZE, *, images=(), labels=None, **target):
    """Exports without timing."""
    target = Target(input_size=size, **target)
    return export_model(model, path, target, images=images, labels=labels, measure_latency=False).description


@pytest.mark.parametrize(("arch", "padding"), [("fcn8s", "same"), ("fcn_alexnet", "authors")])
def test_a_file_computes_what_keras_does(tmp_path, arch, padding):
    model = random_model(arch, padding=padding)
    path = tmp_path / "new" / "model.tflite"
    labels = generic_table(["a", "b", "c", "d", "e"])
    photograph = images(SIZE, 1, block=8)[0]
    described = export_model(model, path, Target(input_size=SIZE), labels=labels, images=[photograph]).description
    assert described.parity["images"] == 3 and described.parity["real_images"] == 1
    assert 0 <= described.parity["relative_error"] < 1e-4 and described.parity["argmax_agreement"] > 0.999
    image = np.random.default_rng(9).uniform(0, 255, (1, *SIZE, 3)).astype(np.float32)
    ours, theirs = run_file(path, image), np.asarray(model(image, training=False))
    assert ours.shape == (1, *SIZE, 5) and np.ptp(theirs) > 1e-2 * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    beside = json.loads(path.with_suffix(".json").read_text())
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.tflite"]
    assert beside["classes"] == list("abcde") and beside["palette"] == [list(color) for color in labels.palette]
    assert beside["input"] == {
        "name": "image",
        "shape": [1, *SIZE, 3],
        "type": "float32",
        "range": [0, 255],
        "channels": "RGB",
        "preprocessing": "inside",
    }
    assert beside["outputs"] == {"logits": {"shape": [1, *SIZE, 5], "type": "float32", "meaning": "logits"}}
    assert beside["bytes"] == path.stat().st_size and beside == described.to_json()
    assert beside["operations"]["CONV_2D"] >= 8
    timed = beside["latency"]
    assert timed["input"] == [1, *SIZE, 3] and timed["milliseconds"] > 0 and timed["runs"] >= 3
    assert timed["threads"] >= 1 and timed["processor"]


@pytest.mark.parametrize("format", ["onnx", "saved_model"])
def test_any_size_and_any_number(tmp_path, small, format):
    path = tmp_path / ("model.onnx" if format == "onnx" else "saved")
    described = export(small, path, None, format=format, batch_size=None)
    # Noise and a smooth pair, at two sizes.
    assert described.input["shape"] == [None, None, None, 3] and described.parity["images"] == 8
    assert described.outputs["logits"]["shape"] == [None, None, None, 5]
    for size, batch in (((40, 61), 3), (SIZE, 1)):
        image = np.float32(images(size, batch, block=8))
        ours, theirs = open_file(path).run(image)["logits"], np.asarray(small(image))
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("format", ["tflite", "onnx", "saved_model"])
def test_a_batch_of_three(tmp_path, small, format):
    path = tmp_path / {"tflite": "a.tflite", "onnx": "a.onnx", "saved_model": "a"}[format]
    assert export(small, path, format=format, batch_size=3).input["shape"] == [3, *SIZE, 3]
    image = np.float32(images(SIZE, 4, block=8))
    np.testing.assert_allclose(open_file(path).run(image)["logits"], small(image), rtol=1e-3, atol=1e-3)


def test_two_heads(tmp_path):
    model = tiny(heads={"semantic": 5, "geometric": 3})
    image = np.float32(images(SIZE, 1, block=8))
    both = export(model, tmp_path / "both.tflite")
    assert {name: output["shape"][-1] for name, output in both.outputs.items()} == {"semantic": 5, "geometric": 3}
    found, theirs = open_file(tmp_path / "both.tflite").run(image), model(image)
    for name in ("semantic", "geometric"):
        assert np.abs(found[name] - theirs[name]).max() <= 1e-4 * np.abs(theirs[name]).max()
    one = export(model, tmp_path / "one.tflite", output="geometric", result="labels")
    assert one.outputs["labels"]["head"] == "geometric"
    np.testing.assert_array_equal(open_file(tmp_path / "one.tflite").run(image)["labels"], np.argmax(theirs["geometric"], -1))
    assert check_file(tmp_path / "one.tflite", model).argmax_agreement == 1
    with pytest.raises(KerassegError, match="tiny has no output 'geometry': did you mean 'geometric'"):
        export(model, tmp_path / "none.tflite", output="geometry")


def test_the_recipe_stands_in_the_description(tmp_path, small):
    recipe = RECIPES["shapes"].override(data_dir=str(tmp_path), image_scale=0.5)
    target = Target(input_size=SIZE)
    written = export_model(
        small, tmp_path / "a.tflite", target, recipe=recipe, labels=generic_table("abcde"), measure_latency=False
    )
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["recipe"]["image_scale"] == 0.5 and "data_dir" not in beside["recipe"] and beside["latency"] is None
    assert str(tmp_path) not in (tmp_path / "a.json").read_text()
    assert written.description.label_table == generic_table("abcde").name


# Hostile networks and images.


def first(shape, classes=3, **arguments):
    """One convolution with weights that see every channel."""
    image = keras.Input(shape)
    return give_random_weights(
        keras.Model(image, Conv2D(classes, 3, padding="same", name="score", **arguments)(image), name="first")
    )


def test_images_one_pixel_wide(tmp_path):
    authors, dilated = random_model("fcn32s"), random_model("deeplab_v1_largefov")
    for model, size in ((authors, (1, 1)), (authors, (65, 1)), (dilated, (1, 97)), (dilated, (65, 97))):
        described = export(model, tmp_path / "a.tflite", size)
        assert described.outputs["logits"]["shape"] == [1, *size, 5]


@pytest.mark.parametrize("classes", [1, 2, 150])
def test_few_and_many_classes(tmp_path, classes):
    model = tiny(classes)
    assert export(model, tmp_path / "a.tflite").outputs["logits"]["shape"][-1] == classes
    assert export(model, tmp_path / "b.tflite", result="labels").parity["argmax_agreement"] > 0.999


@pytest.mark.parametrize("channels", [1, 6])
def test_other_channels(tmp_path, channels):
    spec = {"mean": [100.0] * channels, "scale": [0.02] * channels}
    shape = (None, None, channels)
    model = give_random_weights(MODELS["fcn32s"](5, **QUICK, padding="same", preprocessing=spec, input_shape=shape))
    for format, name in (("tflite", "a.tflite"), ("onnx", "b.onnx")):
        described = export(model, tmp_path / name, format=format, images=images(SIZE, 1, channels))
        assert described.input["channels"] is None and described.input["shape"][-1] == channels


@keras.saving.register_keras_serializable("tests")
class Tripled(keras.layers.Layer):
    def call(self, x):
        return 3 * tf.nn.tanh(x / 128) + x


@keras.saving.register_keras_serializable("tests")
class Mine(keras.layers.Layer):
    """An operation that TFLite lacks itself; TensorFlow's own ones for TFLite have some of those."""

    def __init__(self, operation=tf.sinh, **arguments):
        super().__init__(**arguments)
        self.operation = operation

    def call(self, x):
        return self.operation(x / 128)


def with_layer(layer):
    model = first((None, None, 3))
    return keras.Model(model.input, layer(model.output), name="own")


def test_a_layer_of_the_users_own(tmp_path):
    for format, name in (("tflite", "a.tflite"), ("onnx", "b.onnx"), ("saved_model", "c")):
        export(with_layer(Tripled()), tmp_path / name, format=format)


@keras.saving.register_keras_serializable("tests")
class Framed(keras.layers.Layer):
    """A frame of -5, pooled: zeros around would be larger than that."""

    def call(self, x):
        frame = [[0, 0], [3, 3], [3, 3], [0, 0]]
        x = tf.pad(tf.pad(tf.nn.relu(x), frame, constant_values=-5.0), frame, constant_values=-3.4e38)
        return tf.nn.max_pool2d(x, 4, 1, "VALID")


def test_a_frame_of_negative_numbers_stays(tmp_path):
    described = export(with_layer(Framed()), tmp_path / "a.tflite")
    assert described.parity["relative_error"] < 1e-5
    found = open_file(tmp_path / "a.tflite").run(np.full((1, *SIZE, 3), 99))["logits"]
    assert (found[:, 0, 0] == -5).all() and found.max() > 0


def test_an_operation_that_tflite_lacks(tmp_path, capfd):
    model = with_layer(Mine(name="mine"))
    with pytest.raises(KerassegError, match=r"TFLite has no operation Sinh, which mine \(Mine\) uses; .*--format saved") as caught:
        export(model, tmp_path / "a.tflite")
    # The converter's pages are not shown.
    assert "\n" not in str(caught.value) and len(capfd.readouterr().err) < 2000
    # With TensorFlow's own operations, nothing for Python can run the file: what cannot be compared is not written.
    with pytest.raises(KerassegError, match=r"cannot be run, and so not be compared with Keras: 'a.tflite' holds .*Sinh") as caught:
        export(model, tmp_path / "a.tflite", select_tf_ops=True)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    # Allowed and not needed, they are not in the file.
    assert not [name for name in export(tiny(), tmp_path / "b.tflite", select_tf_ops=True).operations if "Flex" in name]


def test_an_operation_that_no_file_has(tmp_path):
    model = with_layer(Mine(tf.asinh, name="mine"))
    with pytest.raises(KerassegError, match=r"no operation Asinh, which mine \(Mine\) uses"):
        export(model, tmp_path / "a.tflite", select_tf_ops=True)
    own = with_layer(Mine(tf.math.digamma, name="mine"))
    with pytest.raises(KerassegError, match="Digamma") as caught:
        export(own, tmp_path / "a.onnx", format="onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    export(model, tmp_path / "b", format="saved_model")


def test_constant_logits_prove_nothing(tmp_path):
    untrained = MODELS["fcn32s"](5, **QUICK, padding="same")
    for result in ("logits", "coarse_labels"):
        with pytest.raises(KerassegError, match="logits are constant"):
            export(untrained, tmp_path / "a.tflite", result=result)
    # Not zero, but the same everywhere.
    model = first((None, None, 3))
    model.get_layer("score").kernel.assign(np.zeros((3, 3, 3, 3)))
    with pytest.raises(KerassegError, match="logits are constant"):
        export(model, tmp_path / "a.tflite")
    model.get_layer("score").bias.assign([np.nan] * 3)
    with pytest.raises(KerassegError, match="itself gives logits that are not finite"):
        export(model, tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())


def test_networks_that_no_file_takes(tmp_path):
    image = keras.Input((8, 8, 3))
    pair = keras.Model([image, keras.Input((8, 8, 3))], keras.layers.Conv2D(3, 1)(image), name="pair")
    with pytest.raises(KerassegError, match="pair has 2 inputs: expected one, the image"):
        export(pair, tmp_path / "a.tflite", (8, 8))
    unbuilt = keras.Sequential([keras.layers.Conv2D(3, 1)], name="unbuilt")
    with pytest.raises(KerassegError, match="unbuilt has no input yet: build it"):
        export(unbuilt, tmp_path / "a.tflite", (8, 8))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = first((None, None, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    for format in ("tflite", "onnx"):
        with pytest.raises(KerassegError, match=r"first computes in bfloat16 \(\w+, …\): TFLite and ONNX files are float32"):
            export(half, tmp_path / f"a.{format}", (8, 8), format=format)
    plan(half, Target("saved_model"))
    flat = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="flat")
    with pytest.raises(KerassegError, match="expected scores, "):
        export(flat, tmp_path / "a.tflite", (8, 8))
    many = first((None, None, 3), 300)
    with pytest.raises(KerassegError, match="300 classes: labels are bytes"):
        export(many, tmp_path / "a.tflite", result="labels")
    assert not list(tmp_path.iterdir())


def test_a_network_as_a_layer_of_another(tmp_path):
    inner = keras.Input((None, None, 3))
    x = MinimumSize(32, 32, name="size")(keras.layers.Rescaling(1 / 64)(inner))
    image = keras.Input((None, None, 3))
    whole = keras.Model(image, first((None, None, 3))(keras.Model(inner, x)(image)), name="whole")
    described = export(whole, tmp_path / "a.onnx", None, format="onnx")
    assert described.input["preprocessing"] == "inside"
    assert random_batches(plan(whole, Target("onnx")))[0].shape[1:3] == (96, 128)
    with pytest.raises(KerassegError, match="images of 33x47 pixels"):
        plan(whole, Target(input_size=SIZE))


def test_sizes_that_a_network_does_not_take(tmp_path):
    with pytest.raises(KerassegError, match=r"images of 64x64 pixels: expected height and width of at least 224, multiples of 32"):
        export(random_model("deconvnet"), tmp_path / "a.tflite", (64, 64))
    fixed = tiny(size=(32, 32))
    for size, format in (((40, 40), "tflite"), (None, "onnx")):
        with pytest.raises(KerassegError, match="tiny takes images of 32x32 alone, received (40x40|any size)"):
            export(fixed, tmp_path / f"a.{format}", size, format=format)
    strict = first((None, None, 3), strides=1)
    strict = keras.Model(strict.input, keras.layers.Conv2D(3, 9)(strict.output), name="strict")
    with pytest.raises(KerassegError, match="strict .*(4x4|4, 4)"):
        export(give_random_weights(strict), tmp_path / "a.tflite", (4, 4))
    assert not list(tmp_path.iterdir())


def test_without_labels_there_are_no_classes(tmp_path, small):
    export(small, tmp_path / "a.tflite", (32, 32))
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["classes"] is None and beside["palette"] is None and len(LABELS["shapes"].classes) == 6


def test_an_image_of_another_size_is_refused(tmp_path, small):
    with pytest.raises(KerassegError, match=r"an image to compare on has shape \(8, 8, 3\): expected \(33, 47, 3\)"):
        export(small, tmp_path / "a.tflite", images=[np.zeros((8, 8, 3))])
    assert not list(tmp_path.iterdir())


def test_tolerances():
    parity = Parity(1e-3, 1e-4, 0.99, 3)
    assert Tolerance(1e-3, 1e-4, 0.99).complaint(parity) is None and Tolerance(None, None, None).complaint(parity) is None
    assert Tolerance(9e-4, 1, 0).complaint(parity) == "relative error 0.001 (tolerance 0.0009)"
    assert Tolerance(1, 9e-5, 0.995).complaint(parity) == (
        "rms error 0.0001 (tolerance 9e-05), same class in 99.00 % of pixels (at least 99.5 %)"
    )
    for bad in (np.nan, np.inf):
        assert Tolerance(None, None, None).complaint(Parity(bad, bad, 1.0, 1)) is not None
    assert Tolerance(None, None, 0.5).complaint(Parity(0, 0, np.nan, 1)) is not None
