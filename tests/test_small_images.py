"""Images that a network is too deep for: one line wherever they turn up."""

import keras
import numpy as np
import pytest
from cli_helpers import TOY, run, toy_offered

from kerasseg import KerassegError, predict
from kerasseg.backbones.building import image_input, network, preprocess
from kerasseg.cli import train
from kerasseg.errors import first_line
from kerasseg.layers import AlignedResizeLike, Conv2D
from kerasseg.models import MODELS
from kerasseg.recipes import Recipe


@network(minimum_size=4, divisor=2)
def deep(num_classes=6, *, preprocessing="torch", width_multiplier=1.0, weights=None, input_shape=(None, None, 3)):
    """Two convolutions without padding: 11 pixels leave one cell."""
    image = image_input(input_shape)
    x = Conv2D(4, 7, strides=2, name="first")(preprocess(image, preprocessing))
    x = Conv2D(num_classes, 3, name="score")(x)
    return keras.Model(image, AlignedResizeLike(dtype="float32", name="logits")([x, image]), name="deep")


RECIPE = Recipe(name="deep", **{**TOY, "arch": "deep"}, crop_size=(8, 8), validate_every=None)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(deep="test_small_images:RECIPE"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS._locations, "deep", "test_small_images:deep")
        yield


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    for part in parts:
        assert part in text


@pytest.mark.parametrize("shape", [(2, None, 3), (None, 9, 3), (7, 8, 3)])
def test_an_input_shape_that_the_network_states_it_cannot_take(shape):
    with pytest.raises(KerassegError) as error:
        deep(input_shape=shape)
    one_line(error, f"deep received input_shape={shape}: expected height and width of at least 4, and a multiple of 2, or None")


def test_an_input_shape_that_leaves_a_layer_nothing():
    with pytest.raises(KerassegError) as error:
        deep(input_shape=(8, 12, 3))
    one_line(
        error, "deep cannot be built with input_shape=(8, 12, 3): Computed output size would be zero or negative", "or None for any"
    )
    assert deep(input_shape=(12, 14, 3)).output_shape == (None, 12, 14, 6)


@pytest.mark.parametrize("input_shape", [(None, None, 3), (12, 14, 3)])
def test_errors_about_other_things_stay_what_they_are(input_shape):
    with pytest.raises(ValueError, match="^Exception encountered when calling Wrong.call") as error:
        network()(_wrong_otherwise)(input_shape=input_shape)
    assert not isinstance(error.value, KerassegError)


def _wrong_otherwise(*, input_shape=(None, None, 3)):
    raise ValueError("Exception encountered when calling Wrong.call().\n\nwidth\n\nArguments received: …")


def test_of_keras_wrapping_the_message_is_left():
    wrapped = (
        "Exception encountered when calling Pool.call().\n\n\x1b[1mComputed output size would be zero or negative.\x1b[0m\n\nA"
    )
    assert first_line(ValueError(wrapped)) == "Computed output size would be zero or negative."
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"

    @network()
    def nested(*, input_shape):
        raise ValueError(wrapped)

    with pytest.raises(KerassegError) as error:
        nested(input_shape=(3, 3, 3))
    one_line(error, "nested cannot be built with input_shape=(3, 3, 3): Computed output size would be zero or negative. Pass")


def test_a_photograph():
    model = deep()
    assert predict(model, np.zeros((12, 14, 3), "uint8")).shape == (12, 14)
    with pytest.raises(KerassegError) as error:
        predict(model, np.zeros((20, 14, 3), "uint8"), scales=(1.0, 0.25))
    one_line(error, "deep cannot take an image of 5x4 pixels (scale 0.25): ", "use larger images or scales")


def test_a_crop(tmp_path, capsys):
    assert run(train, "--recipe", "deep", "--run-dir", tmp_path / "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: deep cannot take images of 8x8 pixels: Computed output size") and line.endswith(
        "larger --crop-size"
    )
    assert not (tmp_path / "run").exists()
