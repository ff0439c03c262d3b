"""Images with foreground or background hidden: Shelhamer et al. 2017, §6.1."""

import dataclasses

import keras
import numpy as np
import PIL.Image
import pytest
from cli_helpers import run
from inference_helpers import Data

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.data import DEFAULT_MEAN, MaskCues, mask_cues
from kerasseg.evaluation import Inference, evaluate
from kerasseg.evaluation.analysis.cues import CONDITIONS, MaskedData, cue_scores
from kerasseg.labels import LABELS
from kerasseg.layers import Preprocessing

LABEL = np.array([[0, 0, 255], [2, 1, 255]])
IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
FILL = (101.5, 102.0, 103.0)


def hidden(foreground, background, **options):
    """Which pixels of the image are the fill."""
    masked = mask_cues(IMAGE, LABEL, foreground, background, fill=FILL, **options)
    assert masked.dtype == np.float32
    same, filled = (masked == IMAGE).all(-1), (masked == np.float32(FILL)).all(-1)
    assert (same ^ filled).all()
    return filled.astype(int).tolist()


def test_parts_of_an_image_are_hidden():
    before = IMAGE.copy()
    assert mask_cues(IMAGE, LABEL) is IMAGE
    assert hidden("keep", "mask") == [[1, 1, 1], [0, 0, 1]]
    assert hidden("mask", "keep") == [[0, 0, 1], [1, 1, 1]]
    assert hidden("mask", "keep", background_classes=(0, 2)) == [[0, 0, 1], [0, 1, 1]]
    # Void goes with the one or the other where that is wished.
    assert hidden("keep", "mask", void="foreground") == [[1, 1, 0], [0, 0, 0]]
    assert hidden("keep", "mask", void="background") == [[1, 1, 1], [0, 0, 1]]
    assert hidden("mask", "keep", void="foreground") == [[0, 0, 1], [1, 1, 1]]
    assert hidden("mask", "keep", void="background") == [[0, 0, 0], [1, 1, 0]]
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("void", ["hidden", "background", "foreground"])
def test_nothing_but_the_shape_is_left(void):
    shape = mask_cues(IMAGE, LABEL, "mask", "mask", fill=FILL, void=void)
    objects = np.array([[0, 0, void == "foreground"], [1, 1, void == "foreground"]], bool)
    np.testing.assert_array_equal(shape, np.where(objects[..., None], np.float32(255), np.float32(FILL)))
    other = mask_cues(255 - IMAGE, LABEL, "mask", "mask", fill=FILL, void=void)
    np.testing.assert_array_equal(shape, other)


def test_what_is_hidden_is_zero_after_preprocessing():
    masked = mask_cues(IMAGE, LABEL, "mask")
    inside = Preprocessing.of("caffe")(masked[None]).numpy()[0]
    np.testing.assert_allclose(inside[1], 0, atol=1e-4)
    assert abs(inside[0, :2]).min() > 1


def test_the_transform_is_the_function():
    for foreground, background in CONDITIONS:
        image, label = MaskCues(foreground, background, (0, 1), void="background")(IMAGE, LABEL, np.random.default_rng(0))
        expected = mask_cues(IMAGE, LABEL, foreground, background, background_classes=(0, 1), void="background")
        np.testing.assert_array_equal(image, expected)
        assert label is LABEL


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mask_cues(IMAGE, LABEL, "hide"), "foreground='hide': expected one of keep, mask"),
        (lambda: MaskCues(background="no"), "background='no'"),
        (lambda: MaskCues(void="kept"), "void='kept': expected one of hidden, foreground, background"),
        (lambda: mask_cues(IMAGE, LABEL.T, "mask"), r"an image \(2, 3, 3\) and a label \(3, 2\)"),
        (lambda: mask_cues(IMAGE, LABEL, "mask", fill=(1, 2)), "expected a value for each"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(KerassegError, match=message):
        call()


def reader(background=0.0):
    """Reads a pixel's class from its red: below 20 class 0, 40 class 1, 80 class 2; fill and white are class 0."""
    image = keras.Input((None, None, 3))
    distances = [keras.ops.abs(image[..., :1] - value) for value in (background, 40, 80)]
    return keras.Model(image, -keras.ops.concatenate(distances, -1))


class Readable(Data):
    """Images whose red is 40 times the label."""

    mean = (0.0, 0.0, 0.0)

    def __init__(self):
        super().__init__()
        self.examples = [
            dataclasses.replace(
                each, image=np.repeat(np.where(each.label == 255, 0, each.label)[..., None] * 40, 3, -1).astype(np.uint8)
            )
            for each in self.examples
        ]


def test_scores_are_those_of_what_is_seen():
    data, steps = Readable(), []
    found = cue_scores(reader(), data, progress=lambda done, total: steps.append((done, total)))
    assert [(each.foreground, each.background) for each in found] == list(CONDITIONS)
    label = np.concatenate([each.label.ravel() for each in data.examples])
    share = (label == 0).sum() / (label != 255).sum()
    # It sees all objects, all again, none, and white ones, which it takes for class 2.
    shapes = (label == 2).sum() / np.isin(label, (1, 2)).sum()
    assert [each.mean_iou for each in found] == pytest.approx([1, 1, 0, shapes / 2])
    assert [each.pixel_accuracy for each in found][:3] == pytest.approx([1, 1, share])
    assert found[0].evaluation.excluded == ("ground",) and steps[0] == (1, 12) and steps[-1] == (12, 12)
    # As any other evaluation: without background it is the mean of the two others.
    plain = evaluate(reader(), MaskedData(data, MaskCues("mask", fill=(0, 0, 0))), Inference(flip=True))
    assert plain.scores["mean_iou"] == pytest.approx(share / 3)
    others = cue_scores(reader(), data, background=["ground", "cat"], conditions=[("keep", "keep")], limit=1)
    assert others[0].evaluation.excluded == ("ground", "cat") and len(others[0].evaluation.images) == 1


def test_backgrounds_that_cannot_be():
    data = Readable()
    with pytest.raises(KerassegError, match="all 3 classes of data set 'three' are excluded"):
        cue_scores(reader(), data, background=["ground", "cat", "dog"])
    with pytest.raises(KerassegError, match="class 'grond' to exclude"):
        cue_scores(reader(), data, background=["grond"])
    for each in data.examples:
        each.label[each.label == 2] = 0
    with pytest.raises(KerassegError, match="no pixel of data set 'three' is foreground"):
        cue_scores(reader(), data, background=["ground", "cat"])


def test_masks_are_filled_by_the_data_sets_own_mean():
    data = Readable()
    data.mean = (80.0, 80.0, 80.0)
    found = cue_scores(reader(), data, conditions=[("mask", "keep")])
    counts = found[0].evaluation.matrix
    # Hidden pixels are what the fill looks like, class 2.
    assert counts[1, 2] == counts[1].sum() > 0 and counts[0, 0] == counts[0].sum()
    # Data of no mean have the default one.
    found = cue_scores(reader(DEFAULT_MEAN[0]), Data(), conditions=[("mask", "mask")])
    assert found[0].evaluation.matrix[0, 0] == found[0].evaluation.matrix[0].sum() > 0


def test_the_command_prints_four_rows_and_draws(tmp_path, capsys):
    network, classes = tmp_path / "net.keras", LABELS["shapes"].num_classes
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    keras.Model(image, keras.layers.Conv2D(classes, 1)(keras.layers.Rescaling(1 / 255)(image))).save(network)
    options = ("cues", network, "--data", "shapes", "--limit", 2)
    assert run(analyze, *options, "--out", tmp_path / "out", "--pictures", 1, "--flip") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows if len(row) == 4 and row[0] in ("keep", "mask")] == [list(pair) for pair in CONDITIONS]
    assert "without background (background), of 2 images" in out
    with PIL.Image.open(tmp_path / "out" / "cues-val_00000.png") as picture:
        assert picture.size[0] > 4 * 128
    for wrong, message in ((("--background", "x"), "class 'x'"), (("--background", "a,"), "expected names of classes")):
        assert run(analyze, *options, *wrong) == 2
        assert message in capsys.readouterr().err
