"""Valid receptive fields against networks whose field is known."""

import keras
import numpy as np
import pytest
from cli_helpers import run
from inference_helpers import image_of, photograph, scored_network
from PIL import Image

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.cli.analyze.receptive_field import _scaled_place
from kerasseg.crf import MeanField
from kerasseg.evaluation.analysis import field_picture, influence, mean_influence, valid_field
from kerasseg.evaluation.analysis.valid_fields import Influence
from kerasseg.layers import Geometry, MinimumSize
from kerasseg.models import MODELS

METHODS = ("occlusion", "gradient")


@keras.saving.register_keras_serializable("tests")
class Traced(keras.layers.Layer):
    """Counts how often Python, and not a graph, passes it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.passed = 0

    def call(self, x):
        self.passed += 1
        return x


def layers_of(*convolutions, dtype="float32", first=()):
    """A network of convolutions with weights above 0, so that no path cancels another."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((None, None, 3), dtype=dtype)
    for layer in first:
        x = layer(x)
    for index, options in enumerate(convolutions):
        uniform = keras.initializers.RandomUniform(0.1, 1.0)
        x = keras.layers.Conv2D(padding="same", kernel_initializer=uniform, name=f"conv{index}", **options)(x)
    return keras.Model(image, x, name="known")


@pytest.fixture(scope="module")
def two_layers():
    # 1 + 2 + 4 · 2 = 11 pixels.
    return layers_of({"filters": 2, "kernel_size": 3}, {"filters": 3, "kernel_size": 5, "dilation_rate": 2})


def test_one_convolution_pixel_by_pixel():
    model, image = layers_of({"filters": 2, "kernel_size": (3, 5)}), photograph(9, 12).astype(np.float32)
    kernel = model.get_layer("conv0").get_weights()[0][..., 1]
    covered = influence(model, image, (4, 7), channel=1, patch=1, stride=1, seed=3)
    derived = influence(model, image, (4, 7), channel=1, method="gradient")
    noise = np.random.default_rng(3).integers(0, 256, image.shape)
    by_cover, by_slope = np.zeros((9, 12)), np.zeros((9, 12))
    for row in range(3):
        for column in range(5):
            y, x = 4 - 1 + row, 7 - 2 + column
            by_cover[y, x] = abs(sum(kernel[row, column, c] * (noise[y, x, c] - image[y, x, c]) for c in range(3)))
            by_slope[y, x] = sum(kernel[row, column])
    np.testing.assert_allclose(covered.values, by_cover, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(derived.values, by_slope, rtol=1e-6)
    assert covered.theoretical == derived.theoretical == (3, 5) and covered.layer == "conv0" and covered.channel == 1
    expected = sum(kernel[r, c] @ image[3 + r, 5 + c] for r in range(3) for c in range(5))
    assert covered.score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_field_of_two_layers_is_what_theory_says(two_layers, method):
    found = influence(two_layers, photograph(30, 40), (14, 21), method=method, patch=1, stride=1, batch_size=64)
    field = valid_field(found, 0.0)
    # A dilated kernel meets every second pixel, and the first layer fills the gaps.
    expected = np.zeros((30, 40), bool)
    expected[14 - 5 : 14 + 6, 21 - 5 : 21 + 6] = True
    np.testing.assert_array_equal(field.region, expected)
    assert field.size == found.theoretical == (11, 11) and field.side == 11
    # The middle matters most: fewer pixels count for more.
    assert valid_field(found, 0.5).side < valid_field(found, 0.1).side < 11


def test_patches_reach_beyond_the_field_by_half_their_side_and_a_stride(two_layers):
    found = influence(two_layers, photograph(40, 40), (20, 20), patch=5, stride=3)
    # Centres 12 to 27 touch rows 15 to 25; up to the next centres, 9 and 30, the map falls to 0.
    field = valid_field(found, 0.0)
    rows = np.flatnonzero(field.region.any(1))
    assert rows[0] > 15 - 2 - 3 and rows[-1] < 25 + 2 + 3 and field.size[0] > 11
    # At the centres themselves: the change under the whole square.
    noise, image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)), photograph(40, 40).astype(np.float32)
    covered = image.copy()
    covered[16:21, 22:27] = noise[16:21, 22:27]
    score = [two_layers(each[None]).numpy()[0, 20, 20, found.channel] for each in (image, covered)]
    assert found.values[18, 24] == pytest.approx(abs(score[1] - score[0]), rel=1e-3)
    # Halfway in between: bilinear. Cut off at the edge, a square is smaller.
    assert found.values[18, 25] == pytest.approx((2 * found.values[18, 24] + found.values[18, 27]) / 3, rel=1e-4)
    whole = influence(two_layers, image, (2, 2), patch=99, stride=39)
    assert valid_field(whole, 0.0).region.all()


def test_batches_of_any_size_go_through_one_graph():
    traced = Traced()
    model, image, seen = layers_of({"filters": 2, "kernel_size": 3}, first=[traced]), photograph(10, 11), []
    built = traced.passed
    one = influence(model, image, batch_size=7, stride=2, patch=3, progress=lambda *done: seen.append(done))
    other = influence(model, photograph(8, 9), batch_size=2, stride=2, patch=3)
    # The network up to the map is made; run_network and the scores are traced once each.
    assert traced.passed - built <= 3
    np.testing.assert_allclose(one.values, influence(model, image, batch_size=1, stride=2, patch=3).values, rtol=1e-5)
    assert seen == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)] and other.values.shape == (8, 9)


def test_cells_of_other_layers_are_those_nearest_to_the_place():
    # Cells of stride 4 and 5×5 pixels; of 24 pixels, padding "same" puts 0 before and 1 behind: cell i sees 4i to 4i + 4.
    model = layers_of({"filters": 3, "kernel_size": 5, "strides": 4}, {"filters": 2, "kernel_size": 1})
    found = influence(model, photograph(24, 24), (13, 5), layer="conv0", method="gradient")
    rows, columns = (np.flatnonzero(valid_field(found, 0.0).region.any(axis)) for axis in (1, 0))
    # Centres at 4i + 2: row 13 is nearest to 14, column 5 to 6.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (12, 16, 4, 8) and found.theoretical == (5, 5)
    # Of the channels the strongest there, not elsewhere.
    maps = keras.Model(model.input, model.get_layer("conv0").output)(photograph(24, 24)[None].astype(np.float32)).numpy()
    assert found.channel == maps[0, 3, 1].argmax() and found.score == pytest.approx(maps[0, 3, 1].max(), rel=1e-5)


def test_images_are_continued_and_outputs_may_be_several():
    image = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(8)(MinimumSize(8, 8)(image))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    model = keras.Model(image, {"mean": keras.layers.UpSampling2D(8)(x), "all": pooled})
    found = influence(model, photograph(13, 20), (12, 18), method="gradient", channel=2)
    expected = np.zeros((13, 20))
    # The last cell is made of 5 × 4 pixels of the image and of what continues it.
    expected[8:, 16:] = 1 / 64
    np.testing.assert_allclose(found.values, expected, atol=1e-7)
    # Green is the strongest of all, blue at the place.
    colours = np.full((13, 20, 3), (10, 200, 20), np.uint8)
    colours[8:, 16:] = (10, 20, 90)
    assert influence(model, colours, (12, 18), method="gradient").channel == 2
    whole = influence(model, photograph(13, 20), layer=pooled._keras_history.operation.name, method="gradient")
    assert whole.theoretical == (None, None) and valid_field(whole).region.all()


def test_the_mean_lays_places_on_one_another():
    def made(values, at, score):
        return Influence(np.array(values, np.float32), at, "gradient", "score", 0, score, (3, 3))

    found = mean_influence([made([[1, 2, 3], [4, 5, 6]], (0, 1), 2.0), made([[10, 20], [30, 40]], (1, 1), 4.0)])
    # The place holds 2 and 40; the first has a column to the right and a row below, the second a row above.
    np.testing.assert_array_equal(found.values, [[10, 20, 0], [(30 + 1) / 2, (40 + 2) / 2, 3], [4, 5, 6]])
    assert found.at == (1, 1) and found.score == 3.0


def test_integers_have_no_gradient_and_are_occluded(two_layers):
    model = layers_of({"filters": 1, "kernel_size": 3}, dtype="uint8", first=[keras.layers.Rescaling(1.0)])
    found = influence(model, photograph(12, 12), patch=1, stride=1)
    assert valid_field(found, 0.0).size == (3, 3)
    with pytest.raises(KerassegError, match="takes integers, which have no gradient"):
        influence(model, photograph(12, 12), method="gradient")
    for options, message in (
        ({"at": (12, 0)}, "place 12,0 lies outside an image of 12x12"),
        ({"channel": 3}, "channel 3 of conv1: expected 0 to 2"),
        ({"method": "guess"}, "method 'guess', patch 11"),
        ({"layer": "conv"}, "has no layer 'conv'"),
    ):
        with pytest.raises(KerassegError, match=message):
            influence(two_layers, photograph(12, 12), **options)
    flat = Influence(np.zeros((3, 4), np.float32), (1, 1), "occlusion", "score", 2, 0.0, None)
    with pytest.raises(KerassegError, match="no pixel changes channel 2 of score at 1,1"):
        valid_field(flat)
    with pytest.raises(KerassegError, match="threshold 1.0: expected a share"):
        valid_field(flat._replace(values=flat.values + 1), 1.0)


def test_the_picture_darkens_what_does_not_count(tmp_path):
    values = np.zeros((300, 320), np.float32)
    values[100:150, 40:80], values[120, 60] = 0.5, 1.0
    found = Influence(values, (120, 60), "occlusion", "score", 0, 1.0, (50, 50))
    image = np.full((300, 320, 3), 200, np.uint8)
    picture = np.asarray(field_picture([image], [found], ["cat"], tmp_path / "f.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "f.png")), picture)
    left = picture[-320:, :330]
    light, dark, line = ((left == color).all(-1).sum() for color in ((200,) * 3, (80,) * 3, (255, 230, 0)))
    cross, outline = 2 * 15 + 2 * 15 - 4, 2 * 50 + 2 * 40 - 4
    assert line == outline and dark == 300 * 320 - 50 * 40 and light == 50 * 40 - outline - cross
    two = np.asarray(field_picture([image, image[:, :310]], [found, found._replace(values=values[:, :310])], ["a", "b", "c"]))
    # A third row, whose middle is white.
    assert two.shape[0] > 3 * 300 and two.shape[1] == picture.shape[1]


def test_the_command_prints_sizes_and_draws(tmp_path, capsys):
    scored_network().save(tmp_path / "model.keras")
    for name in ("a", "b"):
        Image.fromarray(image_of()).save(tmp_path / f"{name}.png")
    given = ("receptive_field", tmp_path / "model.keras", tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out")
    assert run(analyze, *given, "--stride", "9", "--at", "10,12", "--threshold", "0.1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "occluding" not in line]
    assert [line.split(":")[0] for line in lines] == ["a", "b", "mean of 2", "picture"]
    assert "score" in lines[0] and "at 10,12 of 30x40: valid field as large as a square of" in lines[0] and "theory" in lines[0]
    with Image.open(tmp_path / "out/receptive_field.png") as picture:
        assert picture.height > 3 * 300


def test_places_are_those_of_the_photograph_whatever_the_scale():
    # 61 rows become 30: row 60 lies in the last of them.
    assert _scaled_place((60, 10), "p.png", (61, 50), 0.5) == [29, 5]
    assert _scaled_place((60, 49), "p.png", (61, 50), 2.0) == [121, 99]
    assert _scaled_place(None, "p.png", (61, 50), 0.5) is None
    with pytest.raises(KerassegError, match="--at 61,10: p.png has 61x50 pixels"):
        _scaled_place((61, 10), "p.png", (61, 50), 0.5)


def test_places_without_a_score_are_refused():
    # Its scores begin at pixel 186.
    model = MODELS["dilation_frontend"](3, width_multiplier=1 / 16, margin=None)
    with pytest.raises(KerassegError, match="gives no scores for the outer 186 pixels"):
        influence(model, photograph(388, 388), (5, 5), method="gradient")


def test_behind_a_crf_every_pixel_counts():
    image = keras.Input((None, None, 3))
    scores = keras.layers.Conv2D(3, 1)(image)
    refined = MeanField(2)([scores, image])
    assert Geometry().receptive_field(scores) == (1, 1)
    assert Geometry().receptive_field(refined) == (None, None)
    # It is aligned with the image all the same.
    assert Geometry().coordinate_map(refined) == (1, 0)


MISTAKES = {
    "place": (("--at", "3;4"), "--at 3;4: expected row,column in pixels, such as 120,200"),
    "outside": (("--at", "30,4"), "--at 30,4: cat.png has 30x40 pixels"),
    "class": (("--class", "cow"), "--class cow: the network has no such class"),
    "patch": (("--patch", "0"), "--patch 0: expected at least 1"),
    "threshold": (("--threshold", "1"), "--threshold 1: expected a share"),
    "layer": (("--layer", "none"), "has no layer 'none'"),
}


def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scored_network().save("model.keras")
    Image.fromarray(image_of()).save("cat.png")
    for arguments, message in MISTAKES.values():
        assert run(analyze, "receptive_field", "model.keras", "cat.png", "--out", "o", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
    assert run(analyze, "receptive_field", "model.keras", "cat.png", "none.png", "--out", "o") == 2
    assert "no such photograph: none.png" in capsys.readouterr().err and not (tmp_path / "o").exists()
