import numpy as np
import pytest
import scipy.stats

from kerasseg import KerassegError
from kerasseg.metrics import SCORES, Interval, bootstrap, bootstrapping, paired_bootstrap, scores_of_counts

# Two images: the first has classes 0 and 1, the second 0 alone; class 2 is nowhere. Rows: right, true, predicted.
FIRST = [[3, 1, 0], [5, 3, 0], [5, 3, 0]]
SECOND = [[4, 0, 0], [4, 0, 0], [4, 0, 0]]


def random_counts(images, classes=4, seed=0):
    """What networks give: of each image some classes only, most pixels right, images harder and easier."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(20, 200, (images, classes)) * (generator.random((images, classes)) < 0.7)
    right = (truth * generator.beta(4, 1, (images, 1))).astype(int)
    return np.stack([right, truth, right + generator.integers(0, 20, (images, classes))], axis=1)


def worse(counts, share=0.95):
    """Another model, which finds so much of what the first one does."""
    other = counts.copy()
    other[:, 0] = (counts[:, 0] * share).astype(int)
    return other


def test_of_two_images_by_hand():
    # A draw is the first twice or the second twice, each a quarter of all, or both.
    found = bootstrap(np.array([FIRST, SECOND]), replicates=2000)
    assert set(found) == {*SCORES, "per_class_iou"} and type(found["mean_iou"]) is Interval
    assert found["pixel_accuracy"] == pytest.approx((4 / 8, 1))
    # IoU of the first image: 3/7 and 1/5; the second has class 0 only.
    assert found["mean_iou"] == pytest.approx(((3 / 7 + 1 / 5) / 2, 1))
    assert found["mean_accuracy"] == pytest.approx(((3 / 5 + 1 / 3) / 2, 1))
    assert found["frequency_weighted_iou"] == pytest.approx(((5 * 3 / 7 + 3 / 5) / 8, 1))
    # Class 1 is the same in each draw that has it.
    np.testing.assert_allclose(found["per_class_iou"], [[3 / 7, 1], [1 / 5, 1 / 5], [np.nan, np.nan]])
    # The middle half of the draws but for rounding is both images: 7 and 1 right of 9 and 3.
    middle = bootstrap(np.array([FIRST, SECOND]), replicates=2000, level=0.4)
    assert middle["pixel_accuracy"] == pytest.approx((8 / 12, 8 / 12))
    assert middle["mean_iou"] == pytest.approx(((7 / 11 + 1 / 5) / 2,) * 2)
    assert bootstrap(np.array([FIRST, SECOND]), exclude=[1])["mean_iou"] == pytest.approx((3 / 7, 1))


def test_intervals_are_those_of_scipy():
    counts = random_counts(60)
    found = bootstrap(counts, replicates=4000)
    for name in SCORES:
        theirs = scipy.stats.bootstrap(
            (np.arange(60),),
            lambda index, axis=-1, name=name: scores_of_counts(counts[index].sum(-3))[name],
            n_resamples=4000,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = theirs.high - theirs.low
        # What two times 4000 draws leave to chance.
        np.testing.assert_allclose(found[name], theirs, atol=0.06 * width)
        assert theirs.low < scores_of_counts(counts.sum(0))[name] < theirs.high


def test_the_same_seed_gives_the_same_however_many_are_drawn_at_once(monkeypatch):
    counts = random_counts(12)
    found, paired = bootstrap(counts, seed=3), paired_bootstrap(counts, worse(counts), seed=3)
    assert bootstrap(counts, seed=4)["mean_iou"] != found["mean_iou"]
    monkeypatch.setattr(bootstrapping, "_DRAWN_AT_ONCE", 12 * 7)
    again = bootstrap(counts, seed=3)
    np.testing.assert_array_equal(again.pop("per_class_iou"), found.pop("per_class_iou"))
    assert again == found and paired_bootstrap(counts, worse(counts), seed=3) == paired


def test_a_small_difference_is_found_in_pairs():
    counts = random_counts(80)
    found = paired_bootstrap(counts, worse(counts))["mean_iou"]
    better, less = bootstrap(counts)["mean_iou"], bootstrap(worse(counts))["mean_iou"]
    # Each alone could be the other; image by image they are not.
    assert less.low < better.low < less.high < better.high
    assert 0 < found.low < found.difference < found.high and found.high - found.low < (better.high - better.low) / 2
    # No draw says otherwise.
    assert found.p_value == pytest.approx(2 / 1001)
    expected = scores_of_counts(counts.sum(0))["mean_iou"] - scores_of_counts(worse(counts).sum(0))["mean_iou"]
    assert found.difference == expected
    turned = paired_bootstrap(worse(counts), counts)["mean_iou"]
    np.testing.assert_allclose(turned, (-found.difference, -found.high, -found.low, found.p_value), rtol=1e-12)


def test_equal_models_do_not_differ():
    counts = random_counts(9)
    for found in paired_bootstrap(counts, counts).values():
        assert found == (0, 0, 0, 1)


def test_p_value_by_hand():
    # Of three images of ten pixels the first model has one pixel more right in two, one less in the third. A draw of three says
    # "not above" if it holds the third twice or three times: 3 · (1/9) · (2/3) + 1/27 = 7/27.
    second = np.array([[[5], [10], [10]]] * 3)
    first = second + np.array([1, 1, -1])[:, None, None] * np.array([[1], [0], [0]])
    found = paired_bootstrap(first, second, replicates=20000)["pixel_accuracy"]
    assert found.difference == pytest.approx(1 / 30) and found.p_value == pytest.approx(14 / 27, abs=0.02)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.1))


def test_images_without_labelled_pixels_say_nothing():
    nothing = np.zeros((3, 3), int)
    found = bootstrap(np.array([nothing, nothing]))
    assert all(np.isnan(found[name]).all() for name in SCORES) and np.isnan(found["per_class_iou"]).all()
    assert all(np.isnan(tuple(values)).all() for values in paired_bootstrap([nothing, nothing], [nothing, nothing]).values())
    # Draws of such images alone are left out.
    found = bootstrap(np.array([FIRST, nothing]))
    assert found["pixel_accuracy"] == pytest.approx((1 / 2, 1 / 2))
    assert paired_bootstrap([FIRST, nothing], [FIRST, nothing])["mean_iou"] == (0, 0, 0, 1)


def test_counts_may_be_huge():
    counts = random_counts(7)
    for name, value in bootstrap(counts).items():
        np.testing.assert_allclose(bootstrap(counts * 2**50)[name], value, rtol=1e-14)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.zeros((1, 3, 2), int), {}, r"1 image\(s\): expected at least 2"),
        (np.zeros((4, 3), int), {}, r"shape \(4, 3\), int64: expected integers \(N, 3, C\)"),
        (np.zeros((4, 3, 2)), {}, r"shape \(4, 3, 2\), float64: expected integers"),
        (random_counts(4), {"replicates": 0}, "replicates 0: expected at least 1"),
        (random_counts(4), {"level": 95}, "level 95: expected between 0 and 1"),
        (random_counts(4), {"exclude": [4]}, "class 4 to exclude"),
    ],
)
def test_what_has_no_interval_is_refused(counts, options, message):
    with pytest.raises(KerassegError, match=message):
        bootstrap(counts, **options)
    with pytest.raises(KerassegError, match=message):
        paired_bootstrap(counts, counts, **options)


def test_models_of_other_images_are_refused():
    counts = random_counts(5)
    with pytest.raises(KerassegError, match=r"shapes \(5, 3, 4\) and \(4, 3, 4\): expected the same images and classes"):
        paired_bootstrap(counts, counts[1:])
    with pytest.raises(KerassegError, match="image 1 has other true classes for one model than for the other"):
        paired_bootstrap(counts, counts[[0, 2, 1, 3, 4]])
