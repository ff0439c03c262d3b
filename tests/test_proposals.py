import dataclasses
import json
import re

import keras
import numpy as np
import PIL.Image
import pytest
from inference_helpers import BOXES, SIZE, Data, image_of, make_model, photograph, scored_network, softmax

from kerasseg import KerassegError
from kerasseg.data.boxes import cut_box
from kerasseg.evaluation import Inference, Proposals, evaluate, predict, probabilities, progressive, running
from kerasseg.evaluation import proposals as proposals_module
from kerasseg.layers import MinimumSize


def pil_resized(maps, height, width):
    """Bilinear by PIL, whose filter widens where it shrinks."""
    channels = [PIL.Image.fromarray(np.ascontiguousarray(maps[..., c], np.float32)) for c in range(maps.shape[-1])]
    return np.stack([np.asarray(c.resize((width, height), PIL.Image.Resampling.BILINEAR)) for c in channels], -1)


def slow_maxima(model, image, boxes, minimum_side, maximum, size=SIZE):
    """The protocol, box by box, with the image in the middle of black as the authors have it."""
    height, width = image.shape[:2]
    padded = np.zeros((3 * height, 3 * width, 3), np.float32)
    padded[height : 2 * height, width : 2 * width] = image
    total, done = np.zeros((3 * height, 3 * width, model.output.shape[-1])), 0
    for left, top, right, bottom in boxes:
        if min(right - left, bottom - top) < minimum_side or done == maximum:
            continue
        done += 1
        place = np.s_[top + height : bottom + height, left + width : right + width]
        scores = model(pil_resized(padded[place], *size)[None]).numpy()[0]
        scores = pil_resized(scores, bottom - top, right - left)
        for y, x, c in np.ndindex(scores.shape):
            total[place][y, x, c] = max(total[place][y, x, c], scores[y, x, c])
    return total[height : 2 * height, width : 2 * width]


@pytest.mark.parametrize(("minimum_side", "maximum"), [(8, 50), (8, 2), (1, 50), (24, 50), (20, 3)])
def test_maxima_over_boxes_are_those_of_a_slow_loop(minimum_side, maximum):
    model, image = scored_network(), image_of()
    method = Proposals(BOXES, maximum, minimum_side, SIZE)
    expected = slow_maxima(model, image, BOXES, minimum_side, maximum)
    found = probabilities(model, image, method=method)
    np.testing.assert_allclose(found, softmax(expected), atol=1e-5)
    assert expected.min() == 0 and expected.max() > 1
    clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-4
    labels = predict(model, image, method=method)
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])
    # Nothing there, or nothing above 0: background.
    assert (labels[(expected == 0).all(-1)] == 0).all() and clear.mean() > 0.3


def test_more_boxes_than_a_batch():
    model, image = scored_network(), image_of()
    generator = np.random.default_rng(0)
    corners = generator.integers(0, (20, 14), (19, 2))
    boxes = np.concatenate([corners, corners + generator.integers(8, (20, 16), (19, 2))], 1)
    expected = slow_maxima(model, image, boxes, 8, 50)
    np.testing.assert_allclose(probabilities(model, image, method=Proposals(boxes, 50, 8, SIZE)), softmax(expected), atol=1e-5)
    assert running._RUNNERS[model].experimental_get_tracing_count() == 1


def test_what_leaves_the_image_is_black_and_dropped():
    image = image_of().astype(np.float32)
    box = (-5, -4, 25, 20)
    crop = cut_box(image, box)
    assert crop.shape == (24, 30, 3) and not crop[:4].any() and not crop[:, :5].any()
    np.testing.assert_array_equal(crop[4:, 5:], image[:20, :25])
    assert not cut_box(image, (50, 40, 60, 45)).any()
    total = np.zeros((30, 40, 2), np.float32)
    proposals_module.keep_maximum(total, (30, 25, 45, 33), np.full((8, 15, 2), 3, np.float32))
    assert (total[25:, 30:] == 3).all() and total.sum() == 3 * 2 * 5 * 10
    boxes = np.array([[-6, -4, 20, 20], [22, 12, 52, 44]])
    model, totals = scored_network(), np.zeros((30, 40, 3), np.float32)
    for box, scores in Proposals(boxes, 50, 8, SIZE).run_boxes(model, image, boxes):
        proposals_module.keep_maximum(totals, box, scores)
    np.testing.assert_allclose(totals, slow_maxima(model, image, boxes, 8, 50), atol=1e-4)


def test_an_ensemble_is_the_product_with_positive_scores():
    model, second, image = scored_network(), scored_network(1), image_of()
    method = Proposals(BOXES, 50, 8, SIZE, second)
    maxima = slow_maxima(model, image, BOXES, 8, 50)
    other = second(image[None].astype(np.float32)).numpy()[0]
    expected = maxima * np.maximum(other, 0)
    assert (other < 0).any() and (maxima * other < -0.1).any()
    np.testing.assert_allclose(probabilities(model, image, method=method), softmax(expected), atol=1e-4)
    assert method.to_json()["ensemble"] == "scored"
    with pytest.raises(KerassegError, match="the network of --ensemble has 2 classes, that of the proposals 3"):
        predict(model, image, method=Proposals(BOXES, 50, 8, SIZE, scored_network(1, 2)))


def test_boxes_go_with_a_mirrored_or_scaled_image():
    model, image = scored_network(), image_of()
    mirrored = BOXES.copy()
    mirrored[:, [0, 2]] = 40 - BOXES[:, [2, 0]]
    maxima = slow_maxima(model, image, BOXES, 8, 50)
    others = slow_maxima(model, image[:, ::-1], mirrored, 8, 50)[:, ::-1]
    found = probabilities(model, image, flip=True, method=Proposals(BOXES, 50, 8, SIZE))
    np.testing.assert_allclose(found, softmax((maxima + others) / 2), atol=1e-5)
    assert np.abs(maxima - others).max() > 0.1
    even = BOXES // 2 * 2
    small = pil_resized(image.astype(np.float32), 15, 20)
    expected = slow_maxima(model, small, even // 2, 4, 50)
    # The smallest side is one of the photograph, where the third box has 6 pixels.
    for method in (Proposals(even, 50, 8, SIZE), Proposals({"a": even}, 50, 8, SIZE)):
        found = probabilities(model, image, scales=(0.5,), method=method, name="a")
        np.testing.assert_allclose(found, softmax(np.asarray(running.resized(expected.astype(np.float32), (30, 40)))), atol=1e-5)


def test_boxes_belong_to_an_image_by_its_name(tmp_path):
    data, model = Data(2), make_model()
    boxes = {"image-0": [[0, 0, 9, 6]], "image-1": [[0, 0, 4, 7], [2, 1, 8, 7]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    rows = [f"{name},{','.join(map(str, box))}" for name, of in boxes.items() for box in of]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,left,top,right,bottom", *rows]) + "\n")
    expected = [
        predict(model, example.image, method=Proposals(np.array(boxes[example.id]), 50, 1, SIZE)) for example in data.examples
    ]
    counts = sum(np.bincount(p[e.label != 255], minlength=3) for p, e in zip(expected, data.examples, strict=True))
    for given in (boxes, tmp_path / "boxes.json", str(tmp_path / "boxes.csv")):
        method = Proposals(given, 50, 1, SIZE)
        result = evaluate(model, data, Inference(method=method))
        np.testing.assert_array_equal(result.matrix.sum(0), counts)
        source = "a mapping" if isinstance(given, dict) else str(given)
        assert json.loads(json.dumps(result.to_json()))["inference"]["method"] == {
            "name": "proposals",
            "boxes": source,
            "maximum": 50,
            "minimum_side": 1,
            "size": [16, 16],
            "ensemble": None,
            "ensemble_scale": None,
        }
        PIL.Image.fromarray(data[0].image).save(tmp_path / "image-0.png")
        np.testing.assert_array_equal(predict(model, tmp_path / "image-0.png", method=method), expected[0])
        np.testing.assert_array_equal(predict(model, data[1].image, name="image-1", method=method), expected[1])
        with pytest.raises(KerassegError, match="boxes of .* go by the images' names: pass name="):
            predict(model, data[0].image, method=method)
        with pytest.raises(KerassegError, match="has no boxes for image 'other': it lists 2 images, e.g. 'image-0'"):
            predict(model, data[0].image, name="other", method=method)


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 41, 10]], [[-1, 0, 10, 10]], [[5, 5, 5, 10]], [[9, 9, 3, 12]], [[0, 0, 4]], [], "text", [[0, 0, "a", 3]]]
)
def test_boxes_that_are_none_are_one_line(boxes):
    with pytest.raises(KerassegError) as error:
        predict(scored_network(), image_of(), name="cat", method=Proposals({"cat": boxes}, 50, 1, SIZE))
    assert "cat" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', "image,left\na,1\n", "{}"])
def test_files_that_hold_no_boxes_are_one_line(tmp_path, text):
    for suffix in (".json", ".csv"):
        (tmp_path / f"boxes{suffix}").write_text(text)
        with pytest.raises(KerassegError) as error:
            predict(scored_network(), image_of(), name="a", method=Proposals(tmp_path / f"boxes{suffix}"))
        assert "boxes" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="none.json"):
        Proposals(tmp_path / "none.json")


def test_dense_windows_need_no_file():
    model, image = scored_network(), photograph(240, 300)
    found = predict(model, image, method=Proposals("dense", 3, size=(32, 32)))
    np.testing.assert_array_equal(found, predict(model, image, method=Proposals(None, 3, size=(32, 32))))
    assert found.shape == (240, 300) and len(np.unique(found)) > 1
    # Mirrored copies get mirrored boxes.
    both = probabilities(model, image, flip=True, method=Proposals("dense", 3, size=(32, 32)))
    assert both.shape == (240, 300, 3)


def test_options_out_of_range_are_refused():
    wrong = (
        ({"maximum": 0}, "maximum of proposals 0"),
        ({"maximum": 2.5}, "maximum of proposals 2.5: expected a whole number"),
        ({"maximum": "5"}, "maximum of proposals '5'"),
        ({"minimum_side": 0}, "smallest side of proposals 0"),
        ({"size": (0, 9)}, "0x9"),
        ({"size": (9.5, 9)}, "expected two whole numbers"),
        ({"ensemble": "fcn8s.keras"}, "ensemble 'fcn8s.keras' of proposals: expected a network"),
        ({"ensemble_scale": 0}, "ensemble_scale 0 of proposals: expected a positive number"),
    )
    for options, message in wrong:
        with pytest.raises(KerassegError, match=message):
            Proposals("dense", **options)


def test_an_image_of_which_no_box_counts_is_refused():
    model, image = scored_network(), image_of()
    message = "none of 6 boxes of image 'cat' has both sides of 112 pixels or more: .* or --min-side 24 or less"
    with pytest.raises(KerassegError, match=message):
        predict(model, image, name="cat", method=Proposals({"cat": BOXES}, size=SIZE))
    assert predict(model, image, name="cat", method=Proposals({"cat": BOXES}, 50, 24, SIZE)).any()
    # Of windows, the first is the photograph itself.
    small = photograph(50, 60)
    found = predict(model, small, method=Proposals("dense", size=SIZE))
    expected = slow_maxima(model, small, [(0, 0, 60, 50)], 1, 50)
    clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-4
    np.testing.assert_array_equal(found[clear], expected.argmax(-1)[clear])
    assert found.any()


def test_what_a_file_lacks_shows_before_any_image_is_run(monkeypatch):
    model, data = scored_network(), Data(3)
    data.ids = [example.id for example in data.examples]
    monkeypatch.setattr(proposals_module, "run_network", None)
    boxes = {name: [[0, 0, 4, 5]] for name in data.ids}
    with pytest.raises(KerassegError, match="has no boxes for image 'image-2'"):
        evaluate(model, data, Inference(method=Proposals(dict(list(boxes.items())[:2]), 50, 4, SIZE)))
    with pytest.raises(KerassegError, match="none of 1 boxes of image 'image-2' has both sides of 4 pixels"):
        evaluate(model, data, Inference(method=Proposals({**boxes, "image-2": [[0, 0, 3, 9]]}, 50, 4, SIZE)))
    # The third is beyond the limit: the first one's run is what fails.
    with pytest.raises(TypeError):
        evaluate(model, data, Inference(method=Proposals(dict(list(boxes.items())[:2]), 50, 4, SIZE)), limit=2)
    # Folders of the same file names: under their own names, or not at all; a picture seen twice is one.
    Proposals({"a/x": BOXES, "b/x": BOXES}, 50, 1).check_names(["a/x", "b/x", "a/x"])
    Proposals({"x": BOXES}, 50, 1).check_names(["a/x", "a/x"])
    for names in (["a/x", "b/x"], ["x", "b/x"]):
        with pytest.raises(KerassegError, match=re.escape(f"for 'x' would be those of both '{names[0]}' and 'b/x'")):
            Proposals({"x": BOXES}, 50, 1).check_names(names)


def test_methods_of_boxes_can_be_compared_hashed_and_changed(tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps({"a": BOXES.tolist()}))
    for boxes in (BOXES, {"a": BOXES}, tmp_path / "boxes.json"):
        one, other = Proposals(boxes), Proposals(boxes)
        assert one == one and one != other and len({Inference(method=one), Inference(method=other)}) == 2
        assert Inference(method=one) != Inference(method=other)
    changed = dataclasses.replace(one, maximum=3)
    assert (changed.to_json()["boxes"], changed.maximum) == (str(tmp_path / "boxes.json"), 3)
    assert dataclasses.replace(changed, boxes=BOXES).to_json()["boxes"] == "an array"


def test_the_second_network_sees_the_photograph_at_its_own_scale():
    model, second, image = scored_network(), scored_network(1), image_of()
    mirrored = BOXES.copy()
    mirrored[:, [0, 2]] = 40 - BOXES[:, [2, 0]]
    expected = np.zeros((30, 40, 3))
    for picture, boxes in ((image, BOXES), (image[:, ::-1], mirrored)):
        small = pil_resized(picture.astype(np.float32), 15, 20)
        other = np.asarray(running.resized(second(small[None]).numpy()[0], (30, 40)))
        product = slow_maxima(model, picture, boxes, 8, 50) * np.maximum(other, 0)
        expected += (product if picture is image else product[:, ::-1]) / 2
    method = Proposals(BOXES, 50, 8, SIZE, second, ensemble_scale=0.5, ensemble_path="runs/fcn")
    np.testing.assert_allclose(probabilities(model, image, flip=True, method=method), softmax(expected), atol=1e-4)
    told = method.to_json()
    assert (told["ensemble"], told["ensemble_scale"]) == ("runs/fcn", 0.5)


def test_a_size_that_the_network_does_not_take_is_named():
    keras.utils.set_random_seed(0)
    given, fixed = keras.Input((None, None, 3)), keras.Input((32, 48, 3))
    divided = keras.Model(given, keras.layers.Conv2D(3, 1)(MinimumSize(16, 16)(given)), name="divided")
    least = keras.Model(given, keras.layers.Conv2D(3, 1)(MinimumSize(24)(given)), name="least")
    whole = keras.Model(fixed, keras.layers.Conv2D(3, 1)(fixed), name="whole")
    for model, size, expected in ((divided, (20, 32), (32, 32)), (least, (20, 32), (24, 32)), (whole, (32, 32), (32, 48))):
        with pytest.raises(
            KerassegError, match=re.escape(f"size={size}: {model.name} does not take it; expected e.g. size={expected}")
        ):
            predict(model, image_of(), method=Proposals(BOXES, 50, 8, size))
        assert predict(model, image_of(), method=Proposals(BOXES, 50, 8, expected)).shape == (30, 40)


def test_progress_is_by_decreasing_size():
    model, image = scored_network(), image_of()
    method = Proposals(minimum_side=8, size=SIZE)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in BOXES.tolist()]
    assert areas == [520, 360, 240, 198, 500, 624]
    order = [5, 0, 4, 1, 3]
    found = progressive(model, image, BOXES, (1, 2, 5), method)
    for count, labels in zip((1, 2, 5), found, strict=True):
        expected = slow_maxima(model, image, BOXES[order[:count]], 8, 50)
        clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-4
        np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])
        assert labels.dtype == np.int32 and len(np.unique(labels)) > 1
    assert (found[0][:4] == 0).all() and (found[2][:4] > 0).any()
    for counts in ((), (0, 1), (2, 1), (1, 1), (1, 6)):
        with pytest.raises(KerassegError, match=r"expected ascending numbers from 1 to 5"):
            progressive(model, image, BOXES, counts, method)


def test_progress_takes_what_predict_and_proposals_take(tmp_path):
    model, image = scored_network(), image_of()
    method = Proposals(minimum_side=8, size=SIZE)
    expected = progressive(model, image, BOXES, (2, 4), method)
    PIL.Image.fromarray(image).save(tmp_path / "cat.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"cat": BOXES.tolist()}))
    found = progressive(model, tmp_path / "cat.png", tmp_path / "boxes.json", (2, 4), method)
    found += progressive(model, image, {"cat": BOXES.tolist()}, (2, 4), method, name="cat")
    for one, other in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(one, other)
    (dense,) = progressive(model, image, "dense", (1,), method)
    whole = predict(model, image, method=Proposals(np.array([[0, 0, 40, 30]]), 50, 1, SIZE))
    np.testing.assert_array_equal(dense, whole)
    # All boxes, at half the size: as predict has it.
    (half,) = progressive(model, image, BOXES, (5,), method, scale=0.5)
    np.testing.assert_array_equal(half, predict(model, image, scales=(0.5,), method=Proposals(BOXES, 50, 8, SIZE)))
    wrong = ([[30, 0, 10, 10]], [[0, 0, 41, 20]], [[0, 0, 20.5, 20]], [[0, 0, 20, 20, 0]], [0, 0, 20, 20], [])
    for boxes in wrong:
        with pytest.raises(KerassegError, match="box") as error:
            progressive(model, image, boxes, (1,), method)
        assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="none of 1 boxes has both sides of 8"):
        progressive(model, image, [[0, 0, 7, 20]], (1,), method)
