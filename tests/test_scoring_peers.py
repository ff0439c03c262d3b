"""The scores against those of the authors' own routines: golden arrays with their provenance in `golden/README.md`."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
from inference_helpers import LABELS as THREE
from inference_helpers import Data, make_model

from kerasseg.data.decode import decode_label
from kerasseg.evaluation import evaluate, predict
from kerasseg.labels import LABELS
from kerasseg.metrics import SCORES, SegmentationMetrics, class_counts, confusion_matrix, grouped, scores, scores_of_counts

GOLDEN = Path(__file__).with_name("golden")


def stored(name):
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def four(found):
    return [float(found[name]) for name in SCORES]


def test_fcn_scores_logits_as_its_authors_do():
    golden = stored("fcn_score.npz")
    labels, logits = golden["labels"], golden["logits"].astype(np.float32)
    matrix = sum(confusion_matrix(label, one.argmax(-1), 7) for label, one in zip(labels, logits, strict=True))
    np.testing.assert_array_equal(matrix, golden["matrix"])
    # Class 2 is predicted and never true, 5 is nowhere.
    assert matrix[2].sum() == matrix[5].sum() == matrix[:, 5].sum() == 0 < matrix[:, 2].sum()
    np.testing.assert_allclose(four(scores(matrix)), golden["scores"], rtol=1e-15)
    metric = SegmentationMetrics(7)
    for start in (0, 2):
        metric.update_state(labels[start : start + 2], logits[start : start + 2])
    np.testing.assert_array_equal(metric.matrix(), golden["matrix"])
    np.testing.assert_allclose(four(metric.result()), golden["scores"], rtol=1e-6)


def test_masks_of_voc_score_as_fcn_and_sklearn_do(data_dir):
    golden = stored("fcn_score.npz")
    counts, labels, predictions = [], [], []
    for name in golden["voc_names"]:
        label = np.asarray(PIL.Image.open(data_dir / "voc2012_masks" / "masks" / f"{name}.png"))
        prediction = np.roll(np.where(label == 255, 0, label), (3, -5), (0, 1))
        prediction[::7] = 19
        matrix = confusion_matrix(label, prediction, 21)
        kept = label != 255
        theirs = sklearn.metrics.confusion_matrix(label[kept], prediction[kept], labels=range(21))
        np.testing.assert_array_equal(matrix, theirs)
        counts.append(class_counts(matrix))
        labels.append(label.ravel())
        predictions.append(prediction.ravel())
    # All that was stored, in one pass.
    whole = confusion_matrix(np.concatenate(labels), np.concatenate(predictions), 21)
    np.testing.assert_array_equal(whole, golden["voc_matrix"])
    for found in (scores(whole), scores_of_counts(sum(counts))):
        np.testing.assert_allclose(four(found), golden["voc_scores"], rtol=1e-15)


def test_cityscapes_scripts_give_the_same_for_classes_and_categories(tmp_path):
    golden, table = stored("cityscapes_scripts.npz"), LABELS["cityscapes"]
    matrix = np.zeros((19, 19), np.int64)
    for number in range(3):
        maps = []
        for kind in ("label", "prediction"):
            path = tmp_path / f"{kind}.png"
            PIL.Image.fromarray(golden[f"{kind}_{number}"]).save(path)
            maps.append(decode_label(path, table))
        matrix += confusion_matrix(*maps, 19)
    ids = {label: value for value, label in table.file_to_label.items() if label != 255}
    ids = [ids[label] for label in range(19)]
    np.testing.assert_array_equal(matrix, golden["matrix"][np.ix_(ids, ids)])
    assert golden["matrix"].sum() > matrix.sum() > 3000 and tuple(golden["class_names"]) == table.classes
    found = scores(matrix)
    np.testing.assert_array_equal(found["per_class_iou"], golden["class_scores"])
    assert np.isnan(found["per_class_iou"][16]) and found["per_class_iou"][15] == 0
    assert tuple(golden["category_names"]) == tuple(name for name, _ in table.groups)
    of_groups = scores(grouped(matrix, [[table.classes.index(name) for name in names] for _, names in table.groups]))
    np.testing.assert_array_equal(of_groups["per_class_iou"], golden["category_scores"])
    assert [found["mean_iou"], of_groups["mean_iou"]] == pytest.approx(golden["averages"].tolist(), rel=1e-15)


def test_the_streaming_evaluation_is_one_pass_over_stored_predictions(tmp_path):
    model, data = make_model(), Data(4)
    for example in data.examples:
        PIL.Image.fromarray(predict(model, example.image).astype(np.uint8)).save(tmp_path / f"{example.id}.png")
    kept = [example.label != 255 for example in data.examples]
    true = np.concatenate([example.label[where] for example, where in zip(data.examples, kept, strict=True)])
    stored_maps = [decode_label(tmp_path / f"{example.id}.png", THREE) for example in data.examples]
    predicted = np.concatenate([one[where] for one, where in zip(stored_maps, kept, strict=True)])
    found = evaluate(model, data)
    np.testing.assert_array_equal(found.matrix, sklearn.metrics.confusion_matrix(true, predicted, labels=range(3)))
    iou = sklearn.metrics.jaccard_score(true, predicted, labels=range(3), average=None)
    np.testing.assert_array_equal(found.scores["per_class_iou"], iou)
    assert found.scores["pixel_accuracy"] == sklearn.metrics.accuracy_score(true, predicted)
    np.testing.assert_array_equal(found.counts.sum(0), class_counts(found.matrix))
