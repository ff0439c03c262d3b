"""What an evaluation adds up: streaming, batches, exclusion, groups, intervals, timing, refusals."""

import dataclasses
import json
import re
import time

import keras
import numpy as np
import pytest
from inference_helpers import LABELS, Data, Example, make_model
from sklearn.metrics import confusion_matrix as counted

from kerasseg import KerassegError
from kerasseg.evaluation import (
    Evaluation,
    ImageScore,
    Inference,
    Measure,
    Result,
    Timing,
    evaluate,
    evaluator,
    predict,
    ranked,
    score_predictions,
    side_by_side,
    write_report,
)
from kerasseg.evaluation.figures import label_picture
from kerasseg.labels import IGNORE, LabelTable
from kerasseg.metrics import SCORES, bootstrap, class_counts, confusion_matrix, scores

GROUPS = (("ground", ("ground",)), ("animal", ("cat", "dog")))


@pytest.fixture(scope="module")
def model():
    return make_model()


def mixed(count=7):
    """Images of three sizes, which alternate."""
    data = Data(3)
    data.examples = [dataclasses.replace(Data(3, seed).examples[seed % 3], id=f"mixed-{seed}") for seed in range(count)]
    return data


def with_labels(**changes):
    data = Data()
    data.labels = dataclasses.replace(LABELS, **changes)
    return data


def test_streaming_equals_one_pass_over_stored_predictions(model):
    data = mixed()
    result = evaluate(model, data, batch_size=2)
    truth = np.concatenate([example.label.ravel() for example in data.examples])
    stored = np.concatenate([predict(model, example.image).ravel() for example in data.examples])
    matrix = counted(truth[truth != IGNORE], stored[truth != IGNORE], labels=range(3))
    np.testing.assert_array_equal(result.matrix, matrix)
    hits, true, guessed = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou = hits / (true + guessed - hits)
    expected = {
        "pixel_accuracy": hits.sum() / true.sum(),
        "mean_accuracy": (hits / true).mean(),
        "mean_iou": iou.mean(),
        "frequency_weighted_iou": (true * iou).sum() / true.sum(),
    }
    # To the last digit.
    assert result.summary() == expected
    assert result.matrix.dtype == result.counts.dtype == np.int64
    np.testing.assert_array_equal(result.counts.sum(0), class_counts(matrix))


def test_batches_change_nothing_and_are_bounded(model, monkeypatch):
    data, runs, read, most = mixed(26), [], [], 0
    # Alone of its size, so that all others would wait for it.
    data.examples.insert(0, Data(5).examples[4])
    alone = evaluate(model, data, boundary=1, trimap=(1, 2), boundary_f=True)
    get, run = data.examples.__getitem__, evaluator.predict_batch
    monkeypatch.setattr(Data, "__getitem__", lambda self, index: read.append(index) or get(index))
    monkeypatch.setattr(
        evaluator, "predict_batch", lambda m, images, *rest, **more: runs.append(images) or run(m, images, *rest, **more)
    )

    def progress(done, total):
        nonlocal most
        most = max(most, len(read) - done)

    together = evaluate(model, data, batch_size=3, boundary=1, trimap=(1, 2), boundary_f=True, progress=progress)
    assert without_timing(together) == without_timing(alone)
    np.testing.assert_array_equal(together.counts, alone.counts)
    # Of 26 images of three sizes no fewer.
    assert max(map(len, runs)) == 3 and sum(map(len, runs)) == 27 and len(runs) == 1 + 9
    assert all(len({image.shape for image in images}) == 1 for images in runs)
    assert read == list(range(27)) and most == 11
    # Behind the first that is alone waits another: both must go before the limit holds again.
    data.examples = [Data(5).examples[4], Data(6).examples[5], *[Data(1).examples[0]] * 60]
    read.clear()
    get, most = data.examples.__getitem__, 0
    evaluate(model, data, batch_size=2, progress=progress)
    assert read == list(range(62)) and most <= 8


def without_timing(result):
    return {key: value for key, value in result.to_json().items() if key != "timing"}


def test_intervals_are_those_of_the_images(model):
    result = evaluate(model, mixed())
    expected = bootstrap(np.stack([class_counts(confusion_matrix(e.label, predict(model, e.image), 3)) for e in mixed().examples]))
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))["intervals"]
    assert (found["level"], found["replicates"]) == (0.95, 1000)
    for name in SCORES:
        low, high = found[name]
        assert (low, high) == tuple(expected[name]) and low < result.scores[name] < high
    assert found["per_class_iou"] == expected["per_class_iou"].tolist()
    (line,) = [line for line in result.table().splitlines() if line.startswith("mean_iou")]
    low, high = expected["mean_iou"]
    assert line.split() == ["mean_iou", f"{100 * result.scores['mean_iou']:.2f}", f"{100 * low:.2f}", "to", f"{100 * high:.2f}"]


def test_excluded_classes_are_in_no_mean(model):
    data = mixed()
    whole, found = evaluate(model, data, boundary=1), evaluate(model, data, boundary=1, exclude=["cat"])
    assert found.scores["mean_iou"] == whole.scores["per_class_iou"][[0, 2]].mean() != whole.scores["mean_iou"]
    assert found.scores["pixel_accuracy"] == whole.scores["pixel_accuracy"]
    np.testing.assert_array_equal(found.scores["per_class_iou"], whole.scores["per_class_iou"])
    for image, counts in zip(found.images, found.counts, strict=True):
        hits, true, guessed = counts[:, [0, 2]]
        assert image.mean_iou == (hits / (true + guessed - hits)).mean()
    assert found.intervals["mean_iou"] == bootstrap(found.counts, exclude=[1])["mean_iou"]
    boundary = found.regions.scores()["boundary"]
    assert boundary["mean_iou"] == boundary["per_class_iou"][[0, 2]].mean()
    assert found.to_json()["excluded"] == ["cat"] and "* in no mean: cat" in found.table() and "cat *" in found.table()
    # What the table calls absent is left out unless told otherwise.
    data.labels = dataclasses.replace(LABELS, absent=("cat",))
    assert evaluate(model, data).scores["mean_iou"] == found.scores["mean_iou"]
    assert evaluate(model, data, exclude=()).scores["mean_iou"] == whole.scores["mean_iou"]


def test_classes_are_scored_in_groups_as_well(model):
    data = mixed()
    assert evaluate(model, data).groups is None
    data.labels = dataclasses.replace(LABELS, groups=GROUPS)
    result = evaluate(model, data)
    merged = np.zeros((2, 2), int)
    for true, guessed in np.ndindex(3, 3):
        merged[min(true, 1), min(guessed, 1)] += result.matrix[true, guessed]
    found, expected = result.to_json()["groups"], scores(merged)
    assert found["classes"] == ["ground", "animal"] and found["confusion_matrix"] == merged.tolist()
    for name in ("mean_iou", "pixel_accuracy"):
        assert found[name] == expected[name] > result.scores[name]
    assert found["per_class_iou"] == expected["per_class_iou"].tolist()
    assert found["per_class_accuracy"] == expected["per_class_accuracy"].tolist()
    (line,) = [line.split() for line in result.table().splitlines() if line.startswith("animal")]
    assert line[1:] == [f"{100 * expected[name][1]:.2f}" for name in ("per_class_iou", "per_class_accuracy")]


def test_groups_of_excluded_classes_are_in_no_mean_either(model):
    data = with_labels(groups=GROUPS)
    whole, one = evaluate(model, data), evaluate(model, data, exclude=["ground"])
    found = one.to_json()["groups"]
    assert found["excluded"] == ["ground"] and found["per_class_iou"] == whole.to_json()["groups"]["per_class_iou"]
    assert found["mean_iou"] == found["per_class_iou"][1] != whole.to_json()["groups"]["mean_iou"]
    assert sum(line.startswith("ground * ") for line in one.table().splitlines()) == 2
    # Of the animals one is left.
    assert evaluate(model, data, exclude=["cat"]).to_json()["groups"] == whole.to_json()["groups"]


def test_seconds_are_those_of_the_clock(model, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    timing = evaluate(model, Data()).timing
    # One tick before, and of each of three images four, of which one in the network and one in scoring; one behind.
    assert timing == Timing(13, 3, 3, 3)
    assert timing.to_json() == {"seconds": 13, "prediction_seconds": 3, "scoring_seconds": 3, "images_per_second": 3 / 13}
    assert Timing().to_json()["images_per_second"] is None


class Sizes(Measure):
    """How many pixels there are, as a measure of one's own."""

    @dataclasses.dataclass(frozen=True)
    class Found(Result):
        key = "sizes"
        pixels: int

        def to_json(self):
            return {"pixels": self.pixels}

        def table(self):
            return [f"pixels {self.pixels}"]

    def __init__(self):
        self.pixels = 0

    def add(self, label, prediction, confidence):
        assert label.shape == prediction.shape and confidence is None
        self.pixels += label.size

    def result(self):
        return self.Found(self.pixels)


def test_one_may_measure_something_else(model):
    result = evaluate(model, Data(), measures=[Sizes()])
    pixels = sum(example.label.size for example in Data().examples)
    assert result.to_json()["sizes"] == {"pixels": pixels} and result.table().endswith(f"\n\npixels {pixels}")
    assert result.calibration is None and "calibration" not in result.to_json()


def of_two_tasks():
    """A network of two outputs, and data with labels for both, the other way round."""
    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3))
    outputs = {name: keras.layers.Conv2D(count, 1)(image) for name, count in (("semantic", 3), ("geometric", 2))}
    both, data, geometry = keras.Model(image, outputs), Data(), LabelTable("geometry", ("flat", "upright"), LABELS.palette[:2])
    data.labels = {"geometric": geometry, "semantic": LABELS}
    for example in data.examples:
        upright = np.where(example.label == IGNORE, IGNORE, example.label > 0)
        example.label = {"geometric": upright, "semantic": example.label}
    return both, data


def test_a_network_of_several_outputs_is_scored_on_the_labels_of_one():
    both, data = of_two_tasks()
    geometry = data.labels["geometric"]
    for name, expected_labels in (("semantic", LABELS), ("geometric", geometry)):
        alone = Data()
        alone.labels = expected_labels
        for one, other in zip(alone.examples, data.examples, strict=True):
            one.label = other.label[name]
        expected = evaluate(keras.Model(both.input, both.output[name]), alone).matrix
        np.testing.assert_array_equal(evaluate(both, data, Inference(output=name)).matrix, expected)
        # The network's first output, not the first of the labels.
        assert name == "geometric" or (evaluate(both, data).matrix == expected).all()
    with pytest.raises(KerassegError, match="output 'depth' has no labels in these data: known: geometric, semantic"):
        evaluate(both, data, Inference(output="depth"))
    del data.examples[1].label["geometric"]
    with pytest.raises(KerassegError, match="image 'image-1' has no label for output 'geometric'"):
        evaluate(both, data, Inference(output="geometric"))


def test_a_report_shows_the_labels_that_were_scored(tmp_path):
    both, data = of_two_tasks()
    result, example = evaluate(both, data), data[0]
    assert result.task == "semantic" == result.to_json()["task"] and evaluate(make_model(), Data()).to_json()["task"] is None
    prediction = predict(both, example.image)
    folder = write_report(tmp_path, result, [(example, prediction)], [("worst", [(example, prediction, result.images[0])])])
    side_by_side([Data().examples[0]], [prediction], LABELS, tmp_path / "expected.png")
    assert (folder / "pictures.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    (truth,) = re.findall(r'<img src="([^"]*)"[^>]*alt="truth', (folder / "report.html").read_text("utf-8"))
    assert truth == label_picture(Data().examples[0].label, LABELS.palette).uri


def test_stored_predictions_are_scored_on_the_labels_of_one_output():
    both, data = of_two_tasks()
    for name in ("geometric", "semantic"):
        stored = [predict(both, example.image, output=name) for example in data.examples]
        found = score_predictions(data, stored, output=name)
        np.testing.assert_array_equal(found.matrix, evaluate(both, data, Inference(output=name)).matrix)
        assert found.task == name
    # The first of the data.
    zeros = [np.zeros(example.image.shape[:2], int) for example in data.examples]
    assert score_predictions(data, zeros).task == "geometric"
    with pytest.raises(KerassegError, match="output 'depth' has no labels in these data: known: geometric, semantic"):
        score_predictions(data, zeros, output="depth")
    with pytest.raises(KerassegError, match="output 'depth': data set 'three' has one label map only"):
        score_predictions(Data(), zeros, output="depth")


def test_images_are_ranked():
    def of(values):
        images = [ImageScore(str(index), value, value) for index, value in enumerate(values)]
        return Evaluation(np.eye(3), LABELS, {}, images)

    values = [0.5, float("nan"), 0.1, 0.9, 0.3, 0.8, 0.2, 0.7]
    # Of seven in order: 2 6 4 0 7 5 3.
    assert ranked(of(values), 1) == {"worst": [2], "median": [0], "best": [3]}
    assert ranked(of(values), 9) == {"worst": [2, 6], "median": [4, 0], "best": [3, 5]}
    # No image is both the worst and the best.
    assert ranked(of([0.4, 0.2]), 4) == {"worst": [1, 0], "median": [], "best": []}
    assert ranked(of([0.4, 0.2]), 1) == {"worst": [1], "median": [], "best": []}
    assert ranked(of([0.4, 0.2, 0.3]), 4) == {"worst": [1], "median": [2], "best": [0]}
    assert ranked(of([float("nan")]), 4) == ranked(of(values), 0) == {"worst": [], "median": [], "best": []}


def changed(**fields):
    data = Data()
    data.examples[1] = dataclasses.replace(data.examples[1], **fields)
    return data


def unlabelled():
    data = Data()
    data.examples = [Example(e.image, np.full_like(e.label, IGNORE), e.id) for e in data.examples]
    return data


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (changed(label=None), {}, "'image-1' has no label: evaluate on a split"),
        (changed(label=np.zeros((2, 2), np.int32)), {}, r"label of 'image-1' is \(2, 2\), its image \(7, 8\)"),
        (
            changed(label=np.full((7, 8), 3, np.int32)),
            {},
            r"image 'image-1': label 3 \(56 pixels\) is out of range: expected 0 to 2",
        ),
        (Data(0), {}, "data set 'three' has no images"),
        (unlabelled(), {}, "no pixel of the 3 images of data set 'three' is labelled: every label is 255"),
        (Data(), {"limit": 0}, "limit 0"),
        (Data(), {"batch_size": 0}, "batch size 0"),
        (Data(), {"calibration": 0}, "calibration bins 0: expected 1 to 1000"),
        (Data(), {"calibration": 15.0}, "calibration bins 15.0: expected 1 to 1000, a whole number"),
        (Data(), {"boundary_f": 0.0}, "boundary F tolerance 0.0: expected pixels above 0"),
        (Data(), {"boundary_f": -1.0}, "boundary F tolerance -1.0: expected pixels above 0"),
        (Data(), {"exclude": ["cta"]}, "class 'cta' to exclude: data set 'three' has none; did you mean 'cat'?"),
        (Data(), {"exclude": ["dog", "cat", "ground"]}, "all 3 classes of data set 'three' are excluded: leave at least one"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(model, data, options, message):
    with pytest.raises(KerassegError, match=message):
        evaluate(model, data, **options)


def test_stored_predictions_are_scored_as_the_network_is(model):
    data, options = mixed(), {"boundary": 1, "boundary_f": 2.0, "exclude": ["dog"]}
    stored = (predict(model, example.image).astype(np.uint8) for example in data.examples)
    found, expected = score_predictions(data, stored, **options), evaluate(model, data, **options)
    missing = {"inference": None, "network": None}
    assert without_timing(found) == {**without_timing(expected), **missing}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps[:2], "2 predictions for 3 images: expected one for each image"),
        (lambda maps: [*maps, maps[0]], "more than 3 predictions for 3 images"),
        (lambda maps: [maps[0], maps[1][1:], maps[2]], r"image 'image-1': label has shape \(7, 8\) and prediction \(6, 8\)"),
        (lambda maps: [maps[0], maps[1], maps[2] + 3], "image 'image-2': prediction 3 .* is out of range: expected 0 to 2"),
        (lambda maps: [maps[0] * 1.0, *maps[1:]], "prediction for 'image-0' is float64: expected integers"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change, message):
    with pytest.raises(KerassegError, match=message):
        score_predictions(Data(), change([np.zeros_like(example.label) for example in Data().examples]))
    with pytest.raises(KerassegError, match="data set 'three' has no images"):
        score_predictions(Data(0), [])


def test_networks_of_other_classes_are_refused():
    with pytest.raises(KerassegError, match="the network has 4 classes, data set 'three' has 3"):
        evaluate(make_model(4), Data())
