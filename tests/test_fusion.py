"""Several pictures of one image, several images, several outputs, several devices."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from inference_helpers import make_model, photograph, resized, shrunk, softmax

from kerasseg import KerassegError
from kerasseg.evaluation import Inference, Method, Proposals, Windows, predict, predict_batch, probabilities, running
from kerasseg.evaluation.inference import logits_for_crf


@pytest.fixture(scope="module")
def model():
    return make_model()


def views(model, image, scales, flip):
    """The logits of every picture, brought back onto the image, step by step."""
    height, width = image.shape[:2]
    for scale in scales:
        size = (round(height * scale), round(width * scale))
        picture = shrunk(image, *size) if scale < 1 else resized(image, *size)
        for mirrored in (False, True)[: 1 + flip]:
            logits = model((picture[:, ::-1] if mirrored else picture)[None].astype(np.float32)).numpy()[0]
            yield resized(logits[:, ::-1] if mirrored else logits, height, width)


@pytest.mark.parametrize(("scales", "flip"), [((0.5, 1.0, 1.75), True), ((0.7, 1.5), False), ((1.0,), True)])
def test_scales_and_mirrored_images_are_fused_as_by_a_slow_loop(model, scales, flip):
    image = photograph(11, 14)
    maps = np.stack(list(views(model, image, scales, flip)))
    mean, largest = softmax(maps).mean(0), softmax(maps.max(0))
    np.testing.assert_allclose(probabilities(model, image, scales=scales, flip=flip), mean, atol=2e-5)
    np.testing.assert_allclose(probabilities(model, image, scales=scales, flip=flip, fusion="max"), largest, atol=2e-5)
    assert np.abs(mean - largest).max() > 1e-3
    inference = Inference(scales, flip, fusion="max")
    found = predict_batch(model, [image], inference, confidence=True)[0]
    np.testing.assert_array_equal(found.classes, maps.max(0).argmax(-1))
    np.testing.assert_allclose(found.confidence, largest.max(-1), atol=2e-5)
    # The CRF starts from the largest logits, from means of probabilities by their logarithm.
    np.testing.assert_allclose(logits_for_crf(model, image, inference), maps.max(0), atol=1e-4)
    mean_start = logits_for_crf(model, image, dataclasses.replace(inference, fusion="mean"))
    np.testing.assert_allclose(mean_start, np.log(mean), atol=1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Method):
    """Maps of the picture itself."""

    name = "given"
    kind: str = "scores"

    def scores(self, model, view):
        return view.image / (100 if self.kind == "scores" else np.sum(view.image, -1, keepdims=True))


@pytest.mark.parametrize("kind", ["scores", "probabilities"])
def test_the_largest_scores_and_probabilities_are_of_what_the_method_gives(model, kind):
    image = photograph(4, 6).astype(np.float32) + 1
    both = np.stack([image, image[:, ::-1][:, ::-1] * 1.0])
    both[1, :, :3] = image[:, :3] / 2 + 3
    pictures = iter(both / 100 if kind == "scores" else both / both.sum(-1, keepdims=True))

    class Two(Given):
        def scores(self, model, view):
            found = next(pictures)
            return running.tf.constant(found[:, ::-1] if view.mirrored else found)

    largest = np.max(both / 100 if kind == "scores" else both / both.sum(-1, keepdims=True), axis=0)
    expected = softmax(largest) if kind == "scores" else largest / largest.sum(-1, keepdims=True)
    found = probabilities(model, image, flip=True, method=Two(kind), fusion="max")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope="module")
def heads():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    outputs = {name: keras.layers.Conv2D(classes, 3, padding="same")(x) for name, classes in (("semantic", 4), ("geometric", 3))}
    return keras.Model(image, outputs, name="heads")


def test_an_output_is_chosen_by_its_name(heads):
    image = photograph()
    maps = {name: logits.numpy()[0] for name, logits in heads(image[None].astype(np.float32)).items()}
    for output, name in ((None, "semantic"), ("semantic", "semantic"), ("geometric", "geometric")):
        for method in (None, Windows((7, 8), margin=1)):
            found = probabilities(heads, image, output=output, method=method)
            np.testing.assert_allclose(found, softmax(maps[name].astype(np.float64)), atol=1e-6)
            np.testing.assert_array_equal(predict(heads, image, output=output, method=method), maps[name].argmax(-1))
    chosen = running.selected_output(heads, "geometric")
    assert chosen is running.selected_output(heads, "geometric")
    assert running._RUNNERS[chosen].experimental_get_tracing_count() == 1
    proposals = Proposals("dense", minimum_side=2, size=(8, 8))
    assert probabilities(heads, image, output="geometric", method=proposals).shape == (11, 14, 3)


def test_what_cannot_be_fused_or_chosen_is_one_line(model, heads):
    with pytest.raises(KerassegError, match="output 'geometry' is none of heads: expected one of semantic, geometric"):
        predict(heads, photograph(), output="geometry")
    with pytest.raises(KerassegError, match="it has one output without a name, so leave --output out"):
        predict(model, photograph(), output="geometric")
    with pytest.raises(KerassegError, match="fusion 'sum': expected one of mean, max"):
        Inference(fusion="sum")
    with pytest.raises(KerassegError, match="output 3: expected the name of an output"):
        Inference(output=3)
    for scales in (0.5, "12", ("a",), ("1",), (), (0.0,), (float("nan"),), None, np.zeros(2)):
        for call in (lambda scales=scales: Inference(scales), lambda scales=scales: predict(model, photograph(), scales=scales)):
            with pytest.raises(KerassegError, match=r"^scales .*: expected at least one positive number, such as \(1.0,\)$"):
                call()
    for flip in ("no", 1, None):
        with pytest.raises(KerassegError, match="^flip .*: expected True or False$"):
            probabilities(model, photograph(), flip=flip)
    assert Inference(np.array([1, 0.5], np.float32), np.True_) == Inference((1, 0.5), True)


def test_a_scale_that_leaves_nothing_is_refused_before_anything_is_run(monkeypatch, model):
    monkeypatch.setattr(running, "_runner", None)
    for method in (None, Windows((8, 8))):
        with pytest.raises(KerassegError, match="scale 0.04 leaves 0x1 pixels of an image of 11x14: .* such as --scales 0.1"):
            predict(model, photograph(11, 14), scales=(1.0, 0.04), method=method)
    with pytest.raises(KerassegError, match="leaves 0x0"):
        Proposals("dense", ensemble=model, ensemble_scale=0.01)._second(
            type("View", (), {"image": photograph(), "scale": 1.0, "photograph": photograph(), "photograph_size": (11, 14)})
        )


def test_they_are_told_in_json_and_on_a_line():
    inference = Inference((0.5, 1.0), True, fusion="max", output="semantic")
    found = json.loads(json.dumps(inference.to_json()))
    whole = {"name": "whole_image"}
    assert found == {"scales": [0.5, 1.0], "flip": True, "method": whole, "fusion": "max", "output": "semantic"}
    assert str(inference) == "scales 0.5, 1, mirrored too, the largest of all; output semantic"
    assert inference.with_tta().fusion == "max" and inference.with_tta().output == "semantic"


def test_images_of_one_size_go_through_the_network_together_and_change_nothing(monkeypatch):
    model, shapes, run = make_model(), [], running.run_network
    monkeypatch.setattr("kerasseg.evaluation.methods.run_network", lambda *given: shapes.append(given[1].shape[:3]) or run(*given))
    pictures = [photograph(*size, seed=seed) for seed, size in enumerate([(9, 12), (8, 10), (9, 12), (12, 9), (8, 10), (9, 12)])]
    inference = Inference((1.0, 0.5), True)
    found = predict_batch(model, pictures, inference, confidence=True)
    sizes = [(3, 9, 12), (3, 4, 6), (2, 8, 10), (2, 4, 5), (1, 12, 9), (1, 6, 4)]
    assert shapes == [size for size in sizes for _ in range(2)]
    assert running._RUNNERS[model].experimental_get_tracing_count() == 1
    for picture, prediction in zip(pictures, found, strict=True):
        alone = probabilities(model, picture, scales=(1.0, 0.5), flip=True)
        np.testing.assert_array_equal(prediction.classes, alone.argmax(-1))
        np.testing.assert_allclose(prediction.confidence, alone.max(-1), atol=1e-6)


def test_names_go_with_their_images_when_they_are_run_one_by_one(model):
    pictures = [photograph(20, 24, seed=seed) for seed in (0, 1)]
    method = Proposals({"a": [[0, 0, 24, 20]], "b": [[2, 3, 12, 20]]}, minimum_side=5, size=(8, 8))
    both = predict_batch(model, pictures, Inference(method=method), ["a", "b"])
    for picture, name, found in zip(pictures, "ab", both, strict=True):
        np.testing.assert_array_equal(found.classes, predict(model, picture, method=method, name=name))


@pytest.mark.parametrize("stride", [2, 4])
def test_maps_of_any_output_stride_are_brought_onto_the_image(stride):
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    coarse = keras.Model(image, keras.layers.Conv2D(3, stride + 1, strides=stride, padding="same")(x))
    picture, scales = photograph(16, 24), (0.5, 1.0, 1.5)
    maps = np.stack(list(views(coarse, picture, scales, True)))
    for fusion, expected in (("mean", softmax(maps).mean(0)), ("max", softmax(maps.max(0)))):
        found = probabilities(coarse, picture, scales=scales, flip=True, fusion=fusion)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_batch_is_split_over_the_devices_of_its_strategy():
    script = Path(__file__).parent / "replicated_inference.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["replicas"] == 2 and result["traces"] == 1
    assert result["runs"] == {"1": [1], "2": [1, 1], "3": [2, 2], "5": [3, 3]}
    assert max(result["differences"].values()) <= 1e-6 and result["spread"] > 0.1
