"""Windows of any overlap, margin and weights: beside a slow sum over all pixels, and equal to the whole image."""

import itertools
import math

import keras
import numpy as np
import pytest
from helpers import images
from inference_helpers import make_model, photograph, softmax

from kerasseg import KerassegError
from kerasseg.evaluation import Inference, Windows, predict, predict_batch, probabilities, running
from kerasseg.evaluation.windows import network_grid
from kerasseg.models import MODELS


@pytest.fixture(scope="module")
def model():
    return make_model()


def places_of(side, window, overlap, margin):
    """Where windows begin and count from: a step after each other; the last one is moved to the end, its inside stays."""
    found, place = [(0, 0)], 0
    while found[-1][0] + window < side:
        place += window - overlap
        found.append((min(place, side - window), place + margin))
    return found


def weight_of(place, length, blending):
    if blending == "linear":
        return min(place + 1, length - place)
    return math.exp(-(((place - (length - 1) / 2) / (length / 8)) ** 2) / 2) if blending == "gaussian" else 1


def slow(model, image, size, places, margin, blending):
    """Every pixel of every window, one at a time."""
    height, width = image.shape[:2]
    total, weights = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for (top, first_row), (left, first_column) in itertools.product(*places):
        bottom, right = min(top + size[0], height), min(left + size[1], width)
        logits = model(image[None, top:bottom, left:right].astype(np.float32)).numpy()[0].astype(np.float64)
        first = first_row, first_column
        last = [end - margin * (end < side) for end, side in ((bottom, height), (right, width))]
        for y, x in itertools.product(range(first[0], last[0]), range(first[1], last[1])):
            weight = weight_of(y - first[0], last[0] - first[0], blending) * weight_of(x - first[1], last[1] - first[1], blending)
            total[y, x] += weight * logits[y - top, x - left]
            weights[y, x] += weight
    assert weights.min() > 0
    return total / weights


# Image; window; overlap in pixels by side; margin. In the second, three windows lie above each other in places.
CASES = {
    "overlap": ((23, 31), Windows((9, 12), overlap=3), (3, 3), 0),
    "threefold": ((17, 29), Windows((10, 12), overlap=8, blending="linear"), (8, 8), 0),
    "share": ((21, 26), Windows((8, 12), overlap=0.3, blending="gaussian"), (2, 3), 0),
    "side by side": ((20, 17), Windows((7, 7), overlap=0, blending="linear"), (0, 0), 0),
    "margin": ((25, 30), Windows((10, 11), overlap=6, margin=2, blending="linear", grid=1), (6, 6), 2),
    "margin alone": ((25, 12), Windows((10, 13), margin=3, blending="gaussian", grid=1), (6, 6), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_overlap_margin_and_blending_are_those_of_a_slow_loop(model, case):
    size, method, overlaps, margin = CASES[case]
    image = photograph(*size)
    places = [places_of(*each, margin) for each in zip(size, method.size, overlaps, strict=True)]
    expected = slow(model, image, method.size, places, margin, method.blending)
    np.testing.assert_allclose(probabilities(model, image, method=method), softmax(expected), atol=1e-6)
    # Labels and confidence are taken block by block, never of the whole map.
    found = predict_batch(model, [image], Inference(method=method), confidence=True)[0]
    np.testing.assert_array_equal(found.classes, expected.argmax(-1))
    np.testing.assert_allclose(found.confidence, softmax(expected).max(-1), atol=1e-6)
    assert (found.classes.dtype, found.confidence.dtype, found.num_classes) == (np.int32, np.float32, 3)
    assert margin or np.abs(probabilities(model, image) - softmax(expected)).max() > 1e-3


def test_evenly_spread_windows_may_have_a_margin(model):
    image = photograph(20, 26)
    places = ([(0, 0), (5, 7), (10, 12)], [(0, 0), (7, 9), (14, 16)])
    expected = slow(model, image, (10, 12), places, 2, "linear")
    method = Windows((10, 12), count=3, margin=2, blending="linear")
    np.testing.assert_allclose(probabilities(model, image, method=method), softmax(expected), atol=1e-6)
    with pytest.raises(KerassegError, match="3 windows of 10 pixels with a margin of 3 do not cover 20: expected at least 4"):
        predict(model, image, method=Windows((10, 12), count=3, margin=3))


# Grid, network, window, margin, image. The narrow networks' receptive fields fit into the margins; sizes are off the grid, too.
# One side of the image is short, which saves time; slow loops have looked at both.
NETWORKS = {
    "fcn8s": (32, {"padding": "same"}, 640, 256, (70, 941)),
    "deeplab_v1_largefov": (8, {}, 560, 240, (803, 61)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_give_what_the_whole_image_gives(name):
    grid, options, size, margin, image_size = NETWORKS[name]
    network, generator = MODELS[name](3, width_multiplier=1 / 16, **options), np.random.default_rng(3)
    weights = network.get_weights()
    network.set_weights([generator.normal(0, 1.2 / np.sqrt(max(1, each[..., 0].size)), each.shape) for each in weights])
    assert network_grid(network) == grid
    image = images(image_size, batch=1)[0]
    whole = probabilities(network, image)
    assert np.ptp(whole, axis=(0, 1)).max() > 0.05
    # Along the short side the one window has no margin.
    method = Windows((size, size), margin=margin, blending="linear")
    assert method.num_windows(image_size, grid) > 3
    np.testing.assert_allclose(probabilities(network, image, method=method), whole, atol=1e-4)
    # Off the network's grid they are not the same, nor with too small a margin.
    for other in (Windows(method.size, margin=margin, grid=1, overlap=2 * margin + 3), Windows(method.size, margin=8)):
        assert np.abs(probabilities(network, image, method=other) - whole).max() > 1e-3


def two_scales():
    """Layers that are used twice: on the image, and on half of it."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    down, up = keras.layers.Conv2D(4, 4, strides=4), keras.layers.Conv2DTranspose(3, 4, strides=4)
    # In this order: what a layer is first used on is all that it tells of itself.
    whole = up(down(x))
    half = keras.layers.UpSampling2D(2)(up(down(keras.layers.AveragePooling2D(2)(x))))
    return keras.Model(image, keras.layers.Add()([whole, half]))


def nested():
    """A network as a layer; its own tensors are those of another graph."""
    inner, image = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    body = keras.Model(inner, keras.layers.Conv2D(4, 8, strides=8)(inner), name="body")
    return keras.Model(image, keras.layers.Conv2DTranspose(3, 8, strides=8)(body(keras.layers.Rescaling(1 / 255)(image))))


def in_a_row():
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 8, strides=8), keras.layers.Conv2DTranspose(3, 8, strides=8)]
    return keras.Sequential([keras.Input((None, None, 3)), *layers])


@pytest.mark.parametrize("make", [two_scales, nested, in_a_row])
def test_the_grid_of_a_network_is_that_of_all_its_own_maps(make):
    keras.utils.set_random_seed(1)
    network, image = make(), photograph(192, 64)
    assert network_grid(network) == 8
    whole = probabilities(network, image)
    found, off = (probabilities(network, image, method=Windows((56, 56), margin=10, grid=grid)) for grid in (None, 4))
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert np.abs(off - whole).max() > 1e-3


def test_windows_on_a_grid_begin_at_its_multiples():
    spans = Windows((100, 100), overlap=30).spans(345, 100, 32)
    assert [span[:4] for span in spans] == [
        (0, 100, 0, 100),
        *((b, b + 100, b, b + 100) for b in range(64, 225, 64)),
        (256, 345, 256, 345),
    ]
    with pytest.raises(KerassegError, match="repeat after 32 pixels, so that expected is an overlap of at most 68"):
        Windows((100, 100), overlap=69).spans(345, 100, 32)


def test_a_network_of_one_size_gets_windows_of_that_size():
    network = make_model(size=(12, 12))
    image = photograph(23, 31)
    found = predict(network, image, method=Windows((12, 12), margin=1))
    np.testing.assert_array_equal(found, predict(make_model(), image))


def test_windows_of_a_row_go_through_an_accelerator_together(monkeypatch, model):
    batches, run = [], running.run_network
    monkeypatch.setattr("kerasseg.evaluation.methods.run_network", lambda *given: batches.append(given[1].shape[:3]) or run(*given))
    method, image = Windows((9, 9), overlap=1), photograph(17, 50)
    alone = predict(model, image, method=method)
    # Seven in a row: 0, 8, ... 41.
    assert batches == [(1, 9, 9)] * 14
    batches.clear()
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["one"] if kind == "GPU" else [])
    np.testing.assert_array_equal(predict(model, image, method=method), alone)
    assert batches == [(4, 9, 9), (3, 9, 9)] * 2


MISTAKES = (
    ({"overlap": 8}, "overlap 8 of windows of 8x10 pixels: expected pixels below 8"),
    ({"overlap": 1.0}, "overlap 1.0 of windows of 8x10 pixels: expected .* a share of the window below 1, such as 0.25"),
    ({"overlap": -1}, "overlap -1 "),
    ({"overlap": float("nan")}, "overlap nan "),
    ({"overlap": "3"}, "overlap '3' "),
    ({"overlap": True}, "overlap True "),
    ({"overlap": 3, "count": 4}, "window count 4 and overlap 3: expected one of them"),
    ({"margin": 4}, "windows of 8x10 pixels with a margin of 4: expected height and width above 8"),
    ({"margin": -1}, "margin of windows -1: expected a whole number of at least 0"),
    ({"margin": 2, "overlap": 3}, "with a margin of 2: expected at least 4 pixels, so that no pixel is left out"),
    ({"blending": "cubic"}, "blending 'cubic' of windows: expected one of uniform, linear, gaussian"),
    ({"grid": 0}, "grid of windows 0: expected a whole number of at least 1"),
)


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_windows_that_cannot_be_are_refused(options, message):
    with pytest.raises(KerassegError, match=message):
        Windows((8, 10), **options)


def test_windows_are_told_as_they_differ_from_the_usual():
    assert Windows((8, 10)).to_json() == {"name": "windows", "size": [8, 10], "count": 4}
    method = Windows((8, 10), overlap=0.25, blending="linear")
    assert method.to_json() == {"name": "windows", "size": [8, 10], "overlap": 0.25, "blending": "linear"}
    assert str(Windows((8, 10), margin=2)) == "windows (size 8x10, overlap 4, margin 2)"
