"""The augmentations of the papers on images and labels of any kind; what is computed at once is what one after the other is."""

import numpy as np
import pytest
from PIL import Image
from test_data_transforms import MEAN, blocks, rng

from kerasseg.data import ColorJitter, DataSet, Example, Flip, Jitter, LossSampling, PadTo, RandomCrop, RandomScale, Resize, compose
from kerasseg.data.object_crops import ObjectCrops, ProposalCrops
from kerasseg.data.transforms import ReflectionMargin
from kerasseg.data.transforms.resizing import Window, placed, resized_image, resized_label
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

# Each with the arguments that the papers and their code give.
OF_THE_PAPERS = {
    "FCN": (),
    "FCN jitter": (Jitter(32, MEAN),),
    "FCN patch sampling": (Flip(), LossSampling(0.25, 32)),
    "DeepLab v1 and v2": (RandomCrop((321, 321), MEAN), Flip()),
    "DeepLab v2 ResNet-101": (RandomScale(0.5, 1.5), RandomCrop((321, 321), MEAN), Flip()),
    "DeepLab v3": (RandomScale(0.5, 2.0, 0.25), RandomCrop((513, 513), MEAN), Flip()),
    "DeepLab v3 Cityscapes": (RandomScale(0.5, 2.0, 0.25), RandomCrop((769, 769), MEAN), Flip()),
    "Dilation": (ReflectionMargin(186),),
    "Dilation Cityscapes": (RandomScale(0.5, 1.5), RandomCrop((628, 628), MEAN), ReflectionMargin(186)),
    "GCN": (PadTo((512, 512), MEAN), Flip()),
    "GCN 640": (PadTo((640, 640), MEAN),),
    "GCN Cityscapes": (RandomCrop((800, 800), MEAN),),
    "DeconvNet": (Resize(size=(250, 250)), RandomCrop((224, 224), MEAN), Flip()),
    "photometric": (ColorJitter(0.4), RandomScale(0.5, 2.0), RandomCrop((321, 321), MEAN)),
}


def channels_of(image, count):
    """More channels, each the first times its number, so that a place can be told from any of them."""
    return np.concatenate([image[..., :1].astype(np.float32) * (k + 1) for k in range(count)], axis=-1)


@pytest.mark.parametrize("channels", [1, 4, 6])
@pytest.mark.parametrize("name", OF_THE_PAPERS)
def test_channels_and_label_maps_go_the_same_way(name, channels):
    """Depth, HHA and second labels are moved as the photograph and the first are, each channel and each map alone."""
    transforms = tuple(
        type(each)(**{**vars(each), "mean": MEAN[:1] * channels}) if hasattr(each, "mean") else each for each in OF_THE_PAPERS[name]
    )
    image, label = blocks(90, 120)
    photograph = np.repeat(image[..., :1], 3, axis=-1)
    deep, labels = channels_of(image, channels), np.stack([label, (label + 4) % 44], axis=-1)
    if name == "photometric":
        # Colours are changed in three of the channels, and there is no fourth of one.
        if channels == 1:
            with pytest.raises(KerassegError, match="ColorJitter received an image of 1 channels: expected RGB in the first three"):
                compose(transforms)(deep, labels, rng(3))
            return
        changed = transforms[0](deep, labels, rng(3))[0]
        assert np.array_equal(changed[..., 3:], deep[..., 3:]) and not np.array_equal(changed[..., :3], deep[..., :3])
        transforms = transforms[1:]
    one, first = compose(OF_THE_PAPERS[name][-len(transforms) :] if transforms else ())(photograph, label, rng(3))
    many, both = compose(transforms)(deep, labels, rng(3))
    assert many.shape == (*first.shape, channels) and both.shape == (*first.shape, 2) and many.dtype == np.float32
    assert np.array_equal(both[..., 0], first)
    assert np.array_equal(both[..., 1], np.where(first == 255, 255, (first + 4) % 44))
    for k in range(channels):
        known = (first != 255) if name != "FCN patch sampling" else np.ones(first.shape, bool)
        # Bytes are rounded across and down, floats are not.
        np.testing.assert_allclose(many[known][:, k], one[known][:, 0] * (k + 1.0), atol=1.01 * (k + 1))
    if name not in ("FCN patch sampling", "Dilation", "Dilation Cityscapes"):
        assert (many[first == 255] == MEAN[0]).all()


def test_depth_is_not_mixed_with_labels_nor_channels_with_each_other():
    """Worked by hand: twice as wide, pixel centres lie at −1/4, 1/4, 3/4, 5/4 of the two."""
    image = np.array([[[0, 8.5, -3, 1e6], [100, 0.5, 5, 1e6]]], np.float32)
    label = np.array([[[1, 7], [2, 255]]], np.int32)
    resized, moved = Resize(size=(1, 4))(image, label, rng())
    assert resized.dtype == np.float32 and moved.dtype == np.int32
    assert resized[0].T.tolist() == [[0, 25, 75, 100], [8.5, 6.5, 2.5, 0.5], [-3, -1, 3, 5], [1e6] * 4]
    assert moved[0].tolist() == [[1, 7], [1, 7], [2, 255], [2, 255]]
    # Four channels of bytes: an alpha would darken the others, or take them away.
    image = np.array([[[200, 100, 50, 0], [0, 100, 250, 200]]], np.uint8)
    resized, _ = Resize(size=(1, 4))(image, label[..., 0], rng())
    assert resized[0].T.tolist() == [[200, 150, 50, 0], [100] * 4, [50, 100, 200, 250], [0, 50, 150, 200]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_are_resized_as_pillow_resizes_one(channels, dtype):
    image = rng(4).integers(0, 256, (23, 31, channels)).astype(dtype)
    resized = resized_image(image, (31, 17))
    for k in range(channels):
        alone = Image.fromarray(image[..., k])
        # Across, then down: each pass rounds bytes.
        expected = alone.resize((17, 23), Image.Resampling.BILINEAR).resize((17, 31), Image.Resampling.BILINEAR)
        assert np.array_equal(resized[..., k], np.asarray(expected))


@pytest.mark.parametrize("have", [1, 2, 7, 100, 281, 375, 500, 1024])
def test_labels_are_resized_as_pillow_does(have):
    label = np.arange(have, dtype=np.int32)[None]
    for want in (1, 3, have - 1 or 1, have + 1, int(have * 0.75) or 1, int(have * 1.75), 2 * have):
        expected = np.asarray(Image.fromarray(label).resize((want, 1), Image.Resampling.NEAREST))
        assert np.array_equal(resized_label(label, (1, want)), expected)
        assert np.array_equal(resized_label(label.T, (want, 1)), expected.T)


def one_by_one(transforms, image, label, generator):
    for transform in transforms:
        image, label = transform(image, label, generator)
    return image, label


FUSED = (
    (RandomScale(0.5, 2.0, 0.25), RandomCrop((100, 121), MEAN), Flip()),
    (RandomScale(0.5, 2.0), RandomCrop((60, 300), MEAN), Flip()),
    (Resize(scale=1.5), RandomCrop((90, 90), MEAN)),
    (Resize(size=(130, 97)), RandomCrop((97, 97), MEAN), Flip(1.0), LossSampling(0.5, 8)),
    (RandomCrop((111, 50), MEAN), Flip()),
    (Flip(), compose([RandomScale(0.5, 2.0), RandomCrop((100, 121), MEAN)]), Flip(), Flip()),
)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("transforms", FUSED, ids=repr)
def test_scaling_and_cropping_at_once_is_one_after_the_other(transforms, dtype):
    """Labels, places and padding to the last bit, whatever is drawn; bytes but for 1 in some, floats but for rounding."""
    noise = rng(1).integers(0, 256, (18, 24, 3)).repeat(7, 0).repeat(7, 1) + rng(2).integers(0, 8, (126, 168, 3))
    image = np.minimum(noise, 255).astype(dtype)
    label = rng(3).integers(0, 21, (126, 168)).astype(np.int32)
    changed = []
    for seed in range(40):
        together, labels = compose(transforms)(image, label, generator := rng(seed))
        apart, expected = one_by_one(transforms, image, label, other := rng(seed))
        assert np.array_equal(labels, expected) and labels.dtype == np.int32
        assert generator.random() == other.random()
        assert together.dtype == apart.dtype and together.shape == apart.shape
        difference = np.abs(together.astype(float) - apart)
        assert difference.max() <= (1 if dtype == np.uint8 else 0.02)
        changed.append((difference > 0.5).mean())
    assert np.mean(changed) < 0.005


@pytest.mark.parametrize("transforms", FUSED, ids=repr)
def test_batches_are_written_as_the_transforms_give_them(transforms):
    image, label = blocks(126, 168)
    for seed in range(5):
        expected, labels = compose(transforms)(image, label, rng(seed))
        canvas, blank = np.full(expected.shape, -1, np.float32), np.full(labels.shape, -1, np.int32)
        compose(transforms).write(image, label, rng(seed), canvas, blank)
        assert np.array_equal(canvas, expected.astype(np.float32)) and np.array_equal(blank, labels)


def test_simple_scales_are_cut_to_the_last_bit():
    """A quarter more or less of VOC's sizes is a ratio of small numbers: then windows begin at whole pixels."""
    image = rng(5).integers(0, 256, (500, 332, 3)).astype(np.uint8)
    for scale in (0.5, 0.75, 1.25, 1.5, 1.75, 2.0):
        size = (int(500 * scale), int(332 * scale))
        whole = resized_image(image, size)
        for top, left, height, width in ((0, 0, 99, 100), (101, 57, 148, 103), (size[0] - 77, size[1] - 61, 77, 61)):
            window = resized_image(image, size, Window(top, left, height, width))
            assert np.array_equal(window, whole[top : top + height, left : left + width]), (scale, top)
            mirrored = resized_image(image, size, Window(top, left, height, width), mirrored=True)
            assert np.array_equal(mirrored, window[:, ::-1])


def test_padding_and_channels_that_do_not_fit_are_refused():
    image, label = blocks()
    deep = np.concatenate([image, image], axis=-1)
    with pytest.raises(KerassegError, match=r"padding received 3 values, .* for images of 6 channels: expected one for each"):
        RandomCrop((50, 70), MEAN)(deep, label, rng())
    canvas, blank = np.zeros((40, 60, 3), np.float32), np.zeros((40, 60), np.int32)
    with pytest.raises(KerassegError, match="but its data set says 3 channels and no heads"):
        compose([Flip()]).write(image[..., :1], label, rng(), canvas, blank)
    with pytest.raises(KerassegError, match="but its data set says 3 channels and no heads"):
        compose([RandomCrop((40, 60), MEAN)]).write(image, np.stack([label] * 2, -1), rng(), canvas, blank)


@pytest.mark.parametrize(("top", "left"), [(1, 2), (-1, -2), (0, 1), (5, 0), (0, -9), (-1, 3), (9, 9)])
def test_placing_by_hand(top, left):
    image, label = np.full((3, 4, 3), 7, np.uint8), np.arange(24, dtype=np.int32).reshape(3, 4, 2)
    canvas, labels = placed(image, label, (4, 5), top, left, MEAN)
    for row in range(4):
        for column in range(5):
            inside = 0 <= row - top < 3 and 0 <= column - left < 4
            assert canvas[row, column].tolist() == ([7] * 3 if inside else list(MEAN))
            assert labels[row, column].tolist() == (label[row - top, column - left].tolist() if inside else [255, 255])


class TwoMaps(DataSet):
    """A square of class 7 in the first label map, noise in the second; four channels."""

    channels = 4
    heads = {"semantic": LABELS["voc"], "geometric": LABELS["camvid"]}

    def __init__(self):
        super().__init__(LABELS["voc"], ["a"], (1.0,) * 4)

    def read(self, index):
        label = np.zeros((40, 50, 2), np.int32)
        label[10:30, 20:40, 0], label[..., 1] = 7, np.arange(50) % 11
        return Example(np.arange(40 * 50 * 4, dtype=np.float32).reshape(40, 50, 4), label, "a", None)


@pytest.mark.parametrize("only_object", [True, False])
def test_object_crops_of_several_channels_and_maps(only_object):
    data, example = TwoMaps(), TwoMaps()[0]
    crops = ObjectCrops(data, 1.2, only_object=only_object)
    assert (crops.channels, crops.heads, crops.mean, len(crops)) == (4, data.heads, data.mean, 1)
    # Twenty pixels grow by two at each end.
    window = np.s_[8:32, 18:42]
    assert np.array_equal(crops[0].image, example.image[window])
    assert np.array_equal(crops[0].label[..., 0], example.label[window][..., 0])
    beside = example.label[window][..., 0] == 0
    second = np.where(beside & only_object, 255, example.label[window][..., 1])
    assert np.array_equal(crops[0].label[..., 1], second)
    proposals = ProposalCrops(data, {"a": np.array([[18, 8, 42, 32], [0, 0, 9, 9]], np.int32)})
    assert len(proposals) == 1 and np.array_equal(proposals[0].label, example.label[window])
