import gc
import json
import weakref

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from inference_helpers import LABELS, Data, make_model, photograph, resized, shrunk, softmax

from kerasseg import KerassegError
from kerasseg.evaluation import (
    TTA_FACTORS,
    Inference,
    WholeImage,
    evaluate,
    overlay,
    predict,
    probabilities,
    running,
    side_by_side,
)
from kerasseg.labels import IGNORE, IGNORE_COLOR, LabelTable
from kerasseg.metrics import SCORES, confusion_matrix, scores


def expected_probabilities(model, image, scales, flip):
    height, width = image.shape[:2]
    maps = []
    for scale in scales:
        small = shrunk(image, round(height * scale), round(width * scale))
        for mirrored in (False, True)[: 1 + flip]:
            given = small[:, ::-1] if mirrored else small
            logits = model(given[None].astype(np.float32)).numpy()[0]
            logits = resized(logits, height, width)
            maps.append(softmax(logits[:, ::-1] if mirrored else logits))
    return np.mean(maps, 0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.75, 1.0, 1.25)])
def test_probabilities_equal_the_definition(scales, flip):
    model, image = make_model(), photograph()
    found = probabilities(model, image, scales=scales, flip=flip)
    assert found.shape == (11, 14, 3) and found.dtype == np.float32
    expected = expected_probabilities(model, image, scales, flip)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = predict(model, image, scales=scales, flip=flip)
    assert labels.dtype == np.int32
    clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-5
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])
    assert clear.mean() > 0.9


def test_a_single_pass_is_exactly_the_network():
    image = photograph(37, 23)
    model = make_model(5)
    np.testing.assert_array_equal(predict(model, image), model(image[None].astype(np.float32)).numpy()[0].argmax(-1))


def test_logits_too_close_for_a_softmax_are_still_told_apart():
    inputs = keras.Input((None, None, 3))
    # 0.1 and the next float32: their probabilities round to the same number.
    logits = keras.layers.Lambda(lambda x: x[..., :2] * 0 + tf.constant([0.1, np.nextafter(np.float32(0.1), np.float32(1))]))
    np.testing.assert_array_equal(predict(keras.Model(inputs, logits(inputs)), photograph()), np.ones((11, 14)))


def test_the_first_output_counts_whatever_its_name():
    inputs = keras.Input((None, None, 3))
    first, second = keras.layers.Conv2D(4, 1)(inputs), keras.layers.Conv2D(2, 1)(inputs)
    both = keras.Model(inputs, {"zebra": first, "ant": second})
    assert probabilities(both, photograph()).shape[-1] == 4
    np.testing.assert_array_equal(predict(both, photograph()), predict(keras.Model(inputs, first), photograph()))


def test_a_network_of_uint8_gets_rounded_pixels():
    image = photograph()
    small = np.rint(shrunk(image, 6, 7)).astype(np.uint8)
    model = make_model(dtype="uint8")
    expected = softmax(shrunk(model(small[None]).numpy()[0], 11, 14))
    np.testing.assert_allclose(probabilities(model, image, scales=(0.5,)), expected, atol=2e-6)


def test_many_sizes_trace_once_and_models_are_let_go():
    model = make_model()
    predict(model, photograph())
    runner = running._RUNNERS[model]
    for width in range(8, 14):
        predict(model, photograph(width=width), scales=(0.5, 1.0), flip=True)
    assert running._RUNNERS[model] is runner and runner.experimental_get_tracing_count() == 1
    gone, held = weakref.ref(model), len(running._RUNNERS)
    del model, runner
    keras.utils.clear_session()
    gc.collect()
    assert gone() is None
    assert len(running._RUNNERS) < held


def test_images_come_as_array_picture_or_path(tmp_path):
    model, image = make_model(), photograph()
    expected = predict(model, image)
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(image).save(path)
    for same in (image.astype(np.float32), PIL.Image.fromarray(image), path, str(path)):
        np.testing.assert_array_equal(predict(model, same), expected)
    assert predict(model, PIL.Image.fromarray(image[..., 0])).shape == (11, 14)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"image has shape \(4, 5\): expected \(height, width, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), r"takes input of shape .*, received an image of shape \(4, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), r"image has shape \(0, 5, 3\)"),
        (np.zeros((4, 5, 3), bool), "dtype bool"),
        (np.full((4, 5, 3), 256, np.uint16), "values 256 to 256: expected RGB 0-255"),
        (np.full((4, 5, 3), -1.0), "values -1.0 to -1.0"),
        (np.full((4, 5, 3), np.nan), "values nan to nan"),
    ],
)
def test_what_is_no_photograph_is_refused(image, message):
    with pytest.raises(KerassegError, match=message):
        predict(make_model(), image)


def test_networks_that_cannot_take_the_image_are_refused():
    with pytest.raises(KerassegError, match="image of 11x14 at scale 0.5 is 6x7, but the network takes only 8x8"):
        predict(make_model(size=(8, 8)), photograph(), scales=(0.5,), method=WholeImage())
    assert predict(make_model(size=(8, 8)), photograph(8, 8)).shape == (8, 8)
    inputs = [keras.Input((None, None, 3), name=name) for name in ("color", "hha")]
    several = keras.Model(inputs, keras.layers.Subtract()(inputs))
    with pytest.raises(KerassegError, match=r"inputs color \(3\), hha \(3\), received an image of 3 channels: expected an array"):
        predict(several, photograph())
    pair = np.concatenate([photograph(), photograph(seed=1)], -1).astype(np.float32)
    np.testing.assert_array_equal(predict(several, pair), (pair[..., :3] - pair[..., 3:]).argmax(-1))
    depth = keras.Input((None, None, 4))
    network = keras.Model(depth, keras.layers.Conv2D(2, 1)(depth))
    with pytest.raises(KerassegError, match=r"takes input of shape \(None, None, 4\), received an image of shape \(11, 14, 3\)"):
        predict(network, photograph())
    # The fourth channel has a range of its own.
    colors_and_depth = np.concatenate([photograph(), np.full((11, 14, 1), -300.0)], -1)
    expected = network(colors_and_depth[None].astype(np.float32)).numpy()[0].argmax(-1)
    np.testing.assert_array_equal(predict(network, colors_and_depth), expected)


def test_inference_options():
    assert Inference().scales == (1.0,) and not Inference().flip
    assert TTA_FACTORS == (0.75, 1.0, 1.25)
    assert Inference((0.5,)).with_tta() == Inference((0.375, 0.5, 0.625), flip=True)
    for scales in ((), (0,), (-1.0,), (float("nan"),), (float("inf"),)):
        with pytest.raises(KerassegError, match="at least one positive number"):
            Inference(scales)


def test_evaluate_equals_scoring_by_hand():
    model, data, calls = make_model(), Data(), []
    result = evaluate(model, data, progress=lambda *call: calls.append(call))
    expected = np.zeros((3, 3), np.int64)
    for example, image in zip(data.examples, result.images, strict=True):
        one = confusion_matrix(example.label, model(example.image[None].astype(np.float32)).numpy()[0].argmax(-1), 3)
        expected += one
        assert image.id == example.id
        assert image.mean_iou == pytest.approx(scores(one)["mean_iou"])
        assert image.pixel_accuracy == pytest.approx(np.trace(one) / one.sum())
    np.testing.assert_array_equal(result.matrix, expected)
    assert result.matrix.dtype == np.int64
    assert [result.scores[name] for name in SCORES] == [scores(expected)[name] for name in SCORES]
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_evaluate_follows_inference_and_limit():
    model, data = make_model(), Data()
    inference = Inference((0.5, 1.0), flip=True)
    result = evaluate(model, data, inference, limit=2)
    predictions = [predict(model, example.image, scales=(0.5, 1.0), flip=True) for example in data.examples[:2]]
    expected = sum(confusion_matrix(e.label, p, 3) for e, p in zip(data.examples[:2], predictions, strict=True))
    np.testing.assert_array_equal(result.matrix, expected)
    assert [image.id for image in result.images] == ["image-0", "image-1"]
    assert len(evaluate(model, data, limit=9).images) == 3


def test_table_and_json_of_an_evaluation():
    data = Data(1)
    data.examples[0].label[:] = IGNORE
    data.examples[0].label[0, 0] = 1
    model = make_model()
    model.layers[-1].set_weights([np.zeros((3, 3, 3, 3)), np.array([0, 5, 0])])
    result = evaluate(model, data, calibration=15)
    lines = [line.split() for line in result.table().splitlines()]
    # No interval: one image says nothing about others.
    assert lines[:-2] == [
        ["class", "IoU", "%", "accuracy", "%"],
        ["ground", "-", "-"],
        ["cat", "100.00", "100.00"],
        ["dog", "-", "-"],
        [],
        *([name, "100.00"] for name in SCORES),
    ]
    # Softmax of 0, 5, 0 is sure to 98.67 %, and right.
    assert " ".join(lines[-1]) == "expected calibration error (15 bins): 1.33 %, mean confidence 98.67 %"
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["per_class_iou"] == [None, 1.0, None] and found["mean_iou"] == 1.0
    assert found["confusion_matrix"] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found["data"] == "three" and found["classes"] == list(LABELS.classes)
    assert (found["num_images"], found["num_pixels"]) == (1, 1)
    assert found["images"] == [{"id": "image-0", "mean_iou": 1.0, "pixel_accuracy": 1.0}]
    assert found["palette"] == [[0, 0, 0], [200, 40, 40], [40, 80, 200]] and found["excluded"] == []
    assert "intervals" not in found and "groups" not in found and "boundary_f" not in found


def test_an_image_without_labelled_pixels_scores_nan_and_spoils_nothing():
    data = Data(2)
    data.examples[0].label[:] = IGNORE
    result = evaluate(make_model(), data)
    assert np.isnan(result.images[0].mean_iou) and result.to_json()["images"][0]["mean_iou"] is None
    assert 0 <= result.scores["mean_iou"] <= 1


def test_side_by_side_places_every_picture(tmp_path):
    data = Data(2)
    data.examples[1].label = None
    predictions = [np.full(example.image.shape[:2], 2) for example in data.examples]
    picture = side_by_side(data.examples, predictions, LABELS, tmp_path / "out.png")
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "out.png")), pixels)
    first, second = data.examples
    places = [find(pixels, example.image) for example in data.examples]
    truth = np.array([*LABELS.palette, *[IGNORE_COLOR] * 253], np.uint8)[first.label]
    (top, left), (next_top, next_left) = places
    assert next_top > top + 5 and next_left == left
    truth_top, truth_left = find(pixels, truth)
    assert truth_top == top and truth_left > left + 8
    # The prediction stands one column further on, as wide as the truth's step.
    right = 2 * truth_left - left
    assert (pixels[top : top + 6, right : right + 9] == LABELS.palette[2]).all()
    # A row without truth leaves its place empty.
    assert (pixels[next_top : next_top + 7, truth_left : truth_left + 8] == 255).all()
    for color in (*LABELS.palette, IGNORE_COLOR):
        assert (pixels[next_top + 7 :] == color).all(-1).sum() >= 100


def find(pixels, part):
    """Where a picture stands in a larger one."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, part.shape)[:, :, 0]
    places = np.argwhere((windows == part).all((2, 3, 4)))
    assert len(places) == 1
    return tuple(places[0])


def test_a_long_legend_wraps():
    labels = LabelTable("many", tuple(f"class number {i}" for i in range(40)), tuple((i, i, 255) for i in range(40)))
    data = Data(1)
    pixels = np.asarray(side_by_side(data.examples, [data.examples[0].label], labels))
    for color in labels.palette:
        assert (pixels == color).all(-1).sum() >= 100


def test_side_by_side_and_overlay_errors():
    data = Data(1)
    with pytest.raises(KerassegError, match="1 examples with 0 predictions"):
        side_by_side(data.examples, [], LABELS)
    with pytest.raises(KerassegError, match="0 examples"):
        side_by_side([], [], LABELS)
    with pytest.raises(KerassegError, match=r"prediction for 'image-0' is \(2, 2\)"):
        side_by_side(data.examples, [np.zeros((2, 2), int)], LABELS)
    with pytest.raises(KerassegError, match="alpha 2"):
        overlay(data.examples[0].image, data.examples[0].label, LABELS, alpha=2)
    with pytest.raises(KerassegError, match="same height and width"):
        overlay(data.examples[0].image, np.zeros((2, 2), int), LABELS)


def test_overlay_worked_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    found = overlay(image, np.array([[1, 0, IGNORE]]), LABELS, alpha=0.25)
    # 0.75 · 100 + 0.25 · (200, 40, 40); 0.75 · 100; the photograph.
    np.testing.assert_array_equal(found, [[[125, 85, 85], [75, 75, 75], [100, 100, 100]]])
