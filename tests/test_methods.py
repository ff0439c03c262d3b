import dataclasses
import gc
import json
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, images
from inference_helpers import Data, make_model, photograph, resized, softmax

from kerasseg import KerassegError
from kerasseg.evaluation import TILE_SIZES, Inference, Method, Tiles, WholeImage, Windows, evaluate, predict, probabilities, running
from kerasseg.evaluation import tiles as tiles_module
from kerasseg.evaluation.running import reflected
from kerasseg.layers import MinimumSize
from kerasseg.models import MODELS, dilation

MARGIN = 6


def tiled_network(upsampled=False, seed=0):
    """A stand-in of Dilation's geometry: eats 6 pixels on every side, one cell for every 8 begun, each of which sees 20 × 20."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.ZeroPadding2D(((0, 7), (0, 7)))(x)
    x = keras.layers.Conv2D(3, 2 * MARGIN + 8, strides=8, kernel_initializer=keras.initializers.RandomNormal(stddev=0.1))(x)
    if upsampled:
        x = keras.layers.Conv2DTranspose(3, 8, strides=8, kernel_initializer="he_normal")(x)
    return keras.Model(image, x)


@pytest.fixture
def native(monkeypatch):
    """Lets a stand-in be its own network for tiles; the value is what it counts a cell as."""

    def use(zoom):
        monkeypatch.setattr(dilation, "native_network", lambda model: (model, zoom))

    return use


def tile_map(model, image, size, zoom):
    """The protocol of predict.py, step by step, up to the zoom."""
    padded = np.pad(image.astype(np.float32), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
    inner, rows = [side - 2 * MARGIN for side in size], []
    for row in range(-(-image.shape[0] // inner[0])):
        found = []
        for column in range(-(-image.shape[1] // inner[1])):
            top, left = row * inner[0], column * inner[1]
            tile = padded[top : top + size[0], left : left + size[1]]
            tile = np.pad(tile, ((0, size[0] - tile.shape[0]), (0, size[1] - tile.shape[1]), (0, 0)), mode="reflect")
            found.append(softmax(model(tile[None]).numpy()[0].astype(np.float64)))
        rows.append(np.concatenate(found, 1))
    maps = np.concatenate(rows)
    return maps if zoom > 1 else maps[: image.shape[0], : image.shape[1]]


def interpolated(maps, height, width):
    """The authors' zoom by 8, pixel by pixel; where they read beyond the array, its last cell."""
    out = np.zeros((height, width, maps.shape[2]))
    last = [side - 1 for side in maps.shape[:2]]
    for y, x in np.ndindex(height, width):
        r, c = y // 8, x // 8
        down, right = min(r + 1, last[0]), min(c + 1, last[1])
        v, u = y / 8 - r, x / 8 - c
        left_side = v * maps[down, c] + (1 - v) * maps[r, c]
        right_side = v * maps[down, right] + (1 - v) * maps[r, right]
        out[y, x] = (1 - u) * left_side + u * right_side
    return out


# Multiples of a tile's 32 × 40, one more, one less, one tile only, and images smaller than the margin.
SIZES = [(32, 40), (64, 80), (33, 41), (63, 79), (70, 95), (9, 17), (5, 3), (1, 50)]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_zoom_are_those_of_a_slow_loop(native, size):
    native(8)
    model, image = tiled_network(), photograph(*size)
    maps = tile_map(model, image, (44, 52), 8)
    expected = interpolated(maps, *size)
    found = probabilities(model, image, method=Tiles((44, 52), MARGIN))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert size[0] < 6 or np.ptp(found, axis=(0, 1)).max() > 0.05
    plain = resized(maps, 8 * maps.shape[0], 8 * maps.shape[1])[: size[0], : size[1]]
    np.testing.assert_allclose(probabilities(model, image, method=Tiles((44, 52), MARGIN, "bilinear")), plain, atol=1e-5)
    labels = predict(model, image, method=Tiles((44, 52), MARGIN))
    clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-4
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("size", [(64, 80), (33, 41), (9, 17)])
def test_a_network_that_upsamples_itself_is_not_zoomed(native, size):
    native(1)
    model, image = tiled_network(upsampled=True), photograph(*size)
    found = probabilities(model, image, method=Tiles((44, 52), MARGIN))
    np.testing.assert_allclose(found, tile_map(model, image, (44, 52), 1), atol=1e-5)


def test_one_tile_may_have_half_a_cell_and_two_may_not(native):
    # KITTI's 1640 has: (1640 - 372) / 8 is 158.5.
    native(8)
    model, method = tiled_network(), Tiles((44, 48), MARGIN)
    for size in ((32, 36), (30, 20)):
        expected = interpolated(tile_map(model, photograph(*size), (44, 48), 8), *size)
        np.testing.assert_allclose(probabilities(model, photograph(*size), method=method), expected, atol=1e-5)
    with pytest.raises(KerassegError, match="48 - 12 is no multiple of 8, .* expected e.g. 52 instead of 48"):
        predict(model, photograph(32, 37), method=method)
    assert all((side - 372) % 8 in (0, 4) for size in TILE_SIZES.values() for side in size)


def test_reflection_goes_to_and_fro():
    for length in (1, 2, 3, 7):
        for margin in (0, 1, 6, 20):
            expected = np.pad(np.arange(length), margin, mode="reflect") if length > 1 else np.zeros(1 + 2 * margin)
            np.testing.assert_array_equal(reflected(length, -margin, length + margin), expected)


def test_tiles_see_the_weights_of_now_and_trace_once():
    keras.utils.set_random_seed(0)
    model, method = dilation.dilation7(3, width_multiplier=1 / 16), Tiles((404, 412))
    before = probabilities(model, photograph(20, 30), method=method)
    # Untrained, it is sure of one class everywhere.
    scores = model.get_layer("final")
    scores.set_weights([weight / 20 for weight in scores.get_weights()])
    after = probabilities(model, photograph(40, 30), method=method)
    assert np.ptp(after, axis=(0, 1)).max() > 1e-3 and np.abs(after[:20] - before).max() > 1e-3
    # One that was never run before knows the same.
    other = dilation.dilation7(3, width_multiplier=1 / 16)
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(after, probabilities(other, photograph(40, 30), method=method))
    network = tiles_module._NATIVE[model][0]
    assert running._RUNNERS[network].experimental_get_tracing_count() == 1
    gone = weakref.ref(model), weakref.ref(network)
    del model, network, scores
    keras.utils.clear_session()
    for _ in range(5):
        # One collection frees the model, and only then nothing keeps its native network, which the next one frees. One that finds
        # another thread collecting does nothing. What is held is held after any number of them.
        gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_tiles_that_cannot_be_are_refused():
    for size, message in (
        ((372, 900), "above 372, such as --tiles 900x900"),
        ((0, 5), "at least 1 pixel"),
        (7, "expected two whole numbers"),
        ((900.5, 900), "expected two whole numbers"),
    ):
        with pytest.raises(KerassegError, match=message):
            Tiles(size)
    for margin in (-1, 6.5):
        with pytest.raises(KerassegError, match=f"margin of tiles {margin}: expected a whole number of at least 0"):
            Tiles(margin=margin)
    with pytest.raises(KerassegError, match="zoom 'cubic' of tiles: expected one of authors, bilinear"):
        Tiles(zoom="cubic")
    with pytest.raises(KerassegError, match="built with margin='reflect'"):
        predict(make_model(), photograph(), method=Tiles())


# Windows


def averaged_windows(model, image, size, begins):
    """Logits of every window, added up and divided by how many saw a pixel."""
    total, times = np.zeros((*image.shape[:2], 3)), np.zeros((*image.shape[:2], 1))
    for top in begins[0]:
        for left in begins[1]:
            window = image[top : top + size[0], left : left + size[1]]
            total[top : top + size[0], left : left + size[1]] += model(window[None].astype(np.float32)).numpy()[0]
            times[top : top + size[0], left : left + size[1]] += 1
    return total / times


@pytest.mark.parametrize(
    ("size", "begins"),
    [
        # (side - window) / 3, rounded: 8 / 3 and 16 / 3 are 2.67 and 5.33; 9 / 3 is 3.
        ((8, 16), ([0], [0, 3, 5, 8])),
        ((17, 8), ([0, 3, 6, 9], [0])),
        # Two windows are all that begin at different pixels.
        ((9, 16), ([0, 1], [0, 3, 5, 8])),
        ((10, 8), ([0, 1, 2], [0])),
        ((5, 16), ([0], [0, 3, 5, 8])),
        ((8, 8), ([0], [0])),
        ((5, 7), ([0], [0])),
    ],
)
def test_windows_are_those_of_a_slow_loop(size, begins):
    model, image = make_model(), photograph(*size)
    expected = softmax(averaged_windows(model, image, (8, 8), begins))
    found = probabilities(model, image, method=Windows((8, 8)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(predict(model, image, method=Windows((8, 8))), found.argmax(-1))
    if max(size) > 8:
        assert np.abs(found - probabilities(model, image)).max() > 1e-3
    else:
        np.testing.assert_array_equal(found, probabilities(model, image))


def test_the_windows_of_gcn_begin_where_it_is_said():
    assert [span.begin for span in Windows().spans(2048, 1024)] == [0, 341, 683, 1024]
    assert [span[:4] for span in Windows().spans(1024, 1024)] == [(0, 1024, 0, 1024)] and Windows().kind == "logits"


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(KerassegError, match="2 windows of 8 pixels do not cover 17: expected at least 3"):
        predict(make_model(), photograph(8, 17), method=Windows((8, 8), 2))
    with pytest.raises(KerassegError, match="1 windows of 8 pixels do not cover 9"):
        predict(make_model(), photograph(8, 9), method=Windows((8, 8), 1))
    for count in (0, 2.5, "4", True):
        with pytest.raises(KerassegError, match=f"window count {count!r}: expected a whole number of at least 1"):
            Windows(count=count)


@pytest.mark.parametrize("method", [Windows((8, 8), 2), Tiles((44, 48), MARGIN)])
def test_pictures_that_cannot_be_cut_are_refused_before_any_is_run(native, monkeypatch, method):
    monkeypatch.setattr(running, "_runner", None)
    native(8)
    # The smaller scale alone could be run.
    size = (8, 16) if method.name == "windows" else (30, 36)
    with pytest.raises(KerassegError, match="do not cover 32|on an image of 60x72"):
        predict(make_model(), photograph(*size), scales=(1, 2), method=method)


@pytest.mark.parametrize("method", ["tiles", "", Tiles, 0])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(KerassegError, match="method .*: expected one that is made, such as kerasseg.evaluation.Tiles"):
        predict(make_model(), photograph(), method=method)


def test_a_network_of_one_size_is_told_the_size_of_the_image():
    fixed = keras.Input((32, 32, 3))
    model = keras.Model(fixed, keras.layers.Conv2D(3, 1)(MinimumSize(32, 32)(fixed)))
    # It is not 64x64, to which a network of any size would continue it.
    with pytest.raises(KerassegError, match="scale 1 is 40x33, but the network takes only 32x32"):
        predict(model, photograph(40, 33), method=WholeImage())
    with pytest.raises(KerassegError, match=r"window of 60x70\) is 40x32, but the network takes only 32x32"):
        predict(model, photograph(60, 70), method=Windows((40, 32), 3))
    assert predict(model, photograph(30, 20)).shape == (30, 20)


# Around a method


def test_scales_and_mirrored_copies_go_around_a_method(native):
    native(8)
    model, image = tiled_network(), photograph(40, 50)
    found = probabilities(model, image, flip=True, method=Tiles((44, 52), MARGIN))
    both = [probabilities(model, picture, method=Tiles((44, 52), MARGIN)) for picture in (image, image[:, ::-1])]
    np.testing.assert_allclose(found, (both[0] + both[1][:, ::-1]) / 2, atol=1e-6)
    assert np.abs(both[0] - both[1][:, ::-1]).max() > 0.01
    # An image of half the size, by the filter that shrinks: its probabilities are resized, as they are.
    small = np.asarray(running.resized(image.astype(np.float32), (20, 25), antialias=True))
    half = probabilities(model, small, method=Tiles((44, 52), MARGIN))
    found = probabilities(model, image, scales=(0.5,), method=Tiles((44, 52), MARGIN))
    np.testing.assert_allclose(found, resized(half, 40, 50), atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Given(Method):
    kind = "scores"
    name = "given"

    def scores(self, model, view):
        return view.image / 100


def test_plain_scores_are_averaged_as_they_are():
    image = photograph(4, 6).astype(np.float32)
    image[:, :3, 0] = 255
    found = probabilities(make_model(), image, flip=True, method=Given())
    np.testing.assert_allclose(found, softmax(image.astype(np.float64) / 100), atol=1e-6)


def divided_network(minimum=16, divisor=8):
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(MinimumSize(minimum, divisor)(image))
    x = keras.layers.Conv2D(6, 8, strides=8)(x)
    return keras.Model(image, keras.layers.Conv2DTranspose(3, 8, strides=8)(x))


@pytest.mark.parametrize(("size", "allowed"), [((16, 24), (16, 24)), ((17, 23), (24, 24)), ((5, 30), (16, 32)), ((3, 2), (16, 16))])
def test_images_are_continued_to_what_a_network_takes(size, allowed):
    model, image = divided_network(), photograph(*size)
    padded = np.pad(image, ((0, allowed[0] - size[0]), (0, allowed[1] - size[1]), (0, 0)), mode="reflect")
    expected = model(padded[None].astype(np.float32)).numpy()[0, : size[0], : size[1]]
    np.testing.assert_allclose(probabilities(model, image), softmax(expected.astype(np.float64)), atol=1e-5)
    np.testing.assert_array_equal(predict(model, image), expected.argmax(-1))
    windows = probabilities(model, photograph(16, 30), method=Windows((16, 21), 2))
    assert windows.shape == (16, 30, 3)


def test_a_network_without_a_divisor_gets_the_image_as_it_is():
    with pytest.raises(KerassegError, match="cannot take an image of 15x30 pixels"):
        predict(divided_network(16, 1), photograph(15, 30))


@pytest.mark.parametrize("upsample", [True, False])
def test_a_network_that_scores_only_the_middle_is_refused(upsample):
    """Its scores, stretched over the photograph, would lie elsewhere."""
    model = MODELS["dilation7"](3, margin=None, upsample_logits=upsample, **QUICK)
    image = images((400, 410), batch=1)[0]
    for method in (WholeImage(), Windows((390, 390), 2)):
        with pytest.raises(KerassegError, match="dilation7 gives no scores for the outer 1[0-9]+ pixels .* margin='reflect'"):
            predict(model, image, method=method)
    assert predict(MODELS["dilation7"](3, upsample_logits=upsample, **QUICK), image).shape == (400, 410)


def test_a_coarse_map_of_a_window_is_brought_to_its_size():
    image = keras.Input((None, None, 3))
    coarse = keras.Model(image, keras.layers.AveragePooling2D(4)(image))
    found = predict(coarse, photograph(8, 12), method=Windows((8, 8), 2))
    maps = np.zeros((8, 12, 3))
    for left in (0, 4):
        window = photograph(8, 12)[:, left : left + 8].astype(np.float64)
        maps[:, left : left + 8] += resized(window.reshape(2, 4, 2, 4, 3).mean((1, 3)), 8, 8)
    maps[:, 4:8] /= 2
    np.testing.assert_array_equal(found, maps.argmax(-1))


def test_methods_are_told_in_json_and_on_a_line():
    inference = Inference((0.5, 1.0), True, Tiles((900, 1100), zoom="bilinear"))
    found = json.loads(json.dumps(inference.to_json()))
    method = {"name": "tiles", "size": [900, 1100], "margin": 186, "zoom": "bilinear"}
    assert found == {"scales": [0.5, 1.0], "flip": True, "method": method}
    assert str(inference) == "scales 0.5, 1, mirrored too; tiles (size 900x1100, margin 186, zoom bilinear)"
    assert str(Inference()) == "scales 1"
    assert Inference(method=Windows()).with_tta().method == Windows()
    data = Data(1)
    result = evaluate(make_model(), data, Inference(method=Windows((5, 5), 2)))
    assert result.to_json()["inference"]["method"] == {"name": "windows", "size": [5, 5], "count": 2}
    expected = predict(make_model(), data[0].image, method=Windows((5, 5), 2))
    np.testing.assert_array_equal(result.matrix.sum(0), np.bincount(expected[data[0].label != 255], minlength=3))


def test_many_sizes_trace_a_method_once(native):
    native(8)
    model = tiled_network()
    for size in ((20, 30), (40, 33), (50, 60)):
        predict(model, photograph(*size), method=Tiles((44, 52), MARGIN), flip=True)
    assert running._RUNNERS[model].experimental_get_tracing_count() == 1
    assert tf.config.functions_run_eagerly() is False
