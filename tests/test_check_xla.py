import keras
import numpy as np
import pytest
import tensorflow as tf
from cli_helpers import finish

from kerasseg.backbones.building import network
from kerasseg.cli import check_xla


class Argmax(keras.layers.Layer):
    """Pools by the operation that XLA does not have."""

    def call(self, x):
        return tf.nn.max_pool_with_argmax(x, 1, 1, "SAME")[0]


class NumpyInTraining(keras.layers.Layer):
    """Leaves the graph, but in training alone."""

    def call(self, x, training=False):
        if not training:
            return x
        noise = tf.numpy_function(lambda: np.float32(0.5), [], tf.float32)
        return x + tf.reshape(noise, [1, 1, 1, 1])


SIZES = []


class Recorder(keras.layers.Layer):
    """Writes down with which static shapes it is called."""

    def call(self, x):
        SIZES.append(tuple(x.shape))
        return x


def toy(layer=None, **marks):
    @network(**marks)
    def build(num_classes=21, *, width_multiplier=1.0):
        image = keras.Input((None, None, 3), name="image")
        x = keras.layers.Conv2D(4, 3, padding="same", name="conv1")(image)
        x = layer()(x) if layer else x
        return keras.Model(image, keras.layers.Conv2D(num_classes, 1, dtype="float32", name="score")(x), name="toy")

    return build


@network()
def two_heads(num_classes=21, *, width_multiplier=1.0):
    image = keras.Input((None, None, 3), name="image")
    return keras.Model(image, {name: keras.layers.Conv2D(num_classes, 1, name=name)(image) for name in ("fine", "coarse")})


@network()
def unbuildable(num_classes=21, *, width_multiplier=1.0):
    raise ValueError("width 0\nmore about it")


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs the tool on a table of toys: exit code and lines."""

    def run(table, *arguments):
        monkeypatch.setattr(check_xla, "MODELS", table)
        monkeypatch.setattr("sys.argv", ["check_xla.py", "--size", "16x24", *arguments])
        code = check_xla.main()
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def test_what_does_not_compile_is_named(check):
    table = {"good": toy(), "argmax": toy(Argmax), "numpy": toy(NumpyInTraining), "unbuildable": unbuildable, "heads": two_heads}
    code, lines, errors = check(table)
    assert code == 1 and not errors
    outcomes = {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in lines[:-1]}
    assert list(outcomes) == [(arch, step) for arch in table for step in ("train", "predict")]
    failed = {step: outcome for step, outcome in outcomes.items() if not outcome.startswith("ok ")}
    assert list(failed) == [
        ("argmax", "train"),
        ("argmax", "predict"),
        ("numpy", "train"),
        ("unbuildable", "train"),
        ("unbuildable", "predict"),
    ]
    for step in ("train", "predict"):
        assert failed["argmax", step].startswith("failed: XLA has no MaxPoolWithArgmax (at toy")
        assert "argmax" in failed["argmax", step].split("(at ")[1], "it does not say which layer"
        assert failed["unbuildable", step] == "failed: ValueError: width 0"
    assert failed["numpy", "train"].startswith("failed: XLA has no PyFunc (at toy")
    assert lines[-1] == (
        "5 of 10 steps compile; not: argmax train, argmax predict, numpy train, unbuildable train, unbuildable predict"
    )


def test_sizes_are_static_and_those_that_a_network_allows(check):
    SIZES.clear()
    code, lines, _ = check({"any": toy(Recorder), "some": toy(Recorder, minimum_size=20, divisor=8)}, "--batch-size", "3")
    assert code == 0 and lines[-1] == "4 of 4 steps compile"
    called = [size for size in SIZES if size[1:3] != (None, None)]
    assert set(called) == {(3, 16, 24, 4), (3, 24, 24, 4)}


def test_precision_is_that_of_the_layers(check):
    before = keras.config.dtype_policy()
    dtypes = []

    class Dtype(keras.layers.Layer):
        def call(self, x):
            dtypes.append(x.dtype)
            return x

    for precision in ("float16", "bfloat16"):
        dtypes.clear()
        code, lines, _ = check({"toy": toy(Dtype)}, "--precision", precision)
        assert code == 0, lines
        assert {tf.as_dtype(dtype).name for dtype in dtypes} == {precision}
    assert keras.config.dtype_policy() is before


def test_a_narrow_network_compiles(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_xla.py", "--arch", "fcn32s", "--size", "32x64"])
    assert check_xla.main() == 0
    train, predict, summary = capsys.readouterr().out.splitlines()
    assert train.split()[:3] == ["fcn32s", "train", "ok"] and predict.split()[:3] == ["fcn32s", "predict", "ok"]
    assert summary == "2 of 2 steps compile"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "fcn8x"), "error: unknown arch 'fcn8x': did you mean 'fcn8s'?"),
        (("--precision", "float8"), "error: --precision float8: did you mean 'float"),
        (("--batch-size", "0"), "error: --batch-size 0 --width-multiplier 0.0625: expected both above 0"),
        (("--size", "0"), "error: argument --size: received '0', expected HEIGHTxWIDTH"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_xla.py", *arguments])
    assert check_xla.main() == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and not captured.out


def test_the_script_says_how_it_is_used():
    code, out, err = finish("tools/check_xla.py", "--help")
    assert code == 0 and not err and "Exit code 1" in out and "--width-multiplier" in out
