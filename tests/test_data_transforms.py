import numpy as np
import pytest

from kerasseg.data import ColorJitter, Compose, Flip, Jitter, LossSampling, PadTo, RandomCrop, RandomScale, Resize, compose, pad_to
from kerasseg.data.transforms import ReflectionMargin, static_size
from kerasseg.errors import KerassegError

MEAN = (10.5, 20.25, 30.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def blocks(height=40, width=60, side=10):
    """A label of blocks, and an image that encodes it: image = 5 * label + 5 in every channel. Labels are multiples of 4."""
    rows, columns = np.mgrid[:height, :width] // side
    label = ((rows * 3 + columns * 2) % 11 * 4).astype(np.int32)
    image = np.stack([label * 5 + 5] * 3, -1).astype(np.uint8)
    return image, label


def flat(label):
    """Where the 5×5 neighbourhood is of one label, so that no interpolation mixes anything."""
    inner = np.zeros(label.shape, bool)
    core = label[2:-2, 2:-2]
    shifted = [label[i : i + core.shape[0], j : j + core.shape[1]] for i in range(5) for j in range(5)]
    inner[2:-2, 2:-2] = np.logical_and.reduce([other == core for other in shifted])
    return inner


TRANSFORMS = [
    Flip(1.0),
    RandomScale(0.7, 2.0),
    RandomScale(0.5, 2.0, step=0.25),
    Resize(scale=1.3),
    Resize(size=(33, 71)),
    Jitter(13, MEAN),
    RandomCrop((21, 22), MEAN),
    RandomCrop((45, 30), MEAN),
    PadTo((45, 70), MEAN),
    compose([RandomScale(0.8, 1.5), RandomCrop((41, 41), MEAN), Flip(), Jitter(3, MEAN)]),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_image_and_label_stay_aligned(transform, dtype):
    for seed in range(8):
        image, label = blocks()
        image, label = transform(image.astype(dtype), label, rng(seed))
        assert image.shape == (*label.shape, 3)
        assert image.dtype in (np.uint8, np.float32)
        assert label.dtype == np.int32
        # Labels are never mixed.
        assert set(np.unique(label).tolist()) <= {*range(0, 44, 4), 255}
        known = label != 255
        if not isinstance(transform, Flip | Jitter | RandomCrop):
            known &= flat(label)
        assert known.sum() > 100
        assert np.array_equal(image[known], np.stack([label[known] * 5 + 5] * 3, -1))
        uncovered = label == 255
        assert np.array_equal(image[uncovered], np.broadcast_to(np.float32(MEAN), image[uncovered].shape))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_transforms_are_functions_of_the_generator_and_leave_their_input(transform):
    image, label = blocks()
    kept = image.copy(), label.copy()
    one, two = (transform(image, label, rng(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert np.array_equal(image, kept[0])
    assert np.array_equal(label, kept[1])


def test_flip():
    image, label = np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.array([[1, 2]], np.int32)
    flipped = Flip(1.0)(image, label, rng())
    assert flipped[0].tolist() == [[[3, 4, 5], [0, 1, 2]]]
    assert flipped[1].tolist() == [[2, 1]]
    assert Flip(0.0)(image, label, rng())[1].tolist() == [[1, 2]]
    generator = rng()
    assert 400 < sum(Flip()(image, label, generator)[1][0, 0] == 2 for _ in range(1000)) < 600


def test_random_scale_truncates_and_steps():
    image, label = np.zeros((33, 47, 3), np.uint8), np.zeros((33, 47), np.int32)
    transform = RandomScale(0.5, 2.0, step=0.25)
    assert transform.scales() == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    generator = rng()
    sizes = {transform(image, label, generator)[1].shape for _ in range(200)}
    # int(33 · s), int(47 · s)
    assert sizes == {(16, 23), (24, 35), (33, 47), (41, 58), (49, 70), (57, 82), (66, 94)}
    # 0.5 + 3 · 0.1 is 0.8: ten times it must be 8 pixels.
    assert [int(10 * s) for s in RandomScale(0.5, 1.0, step=0.1).scales()] == [5, 6, 7, 8, 9, 10]
    uniform = [RandomScale(0.5, 2.0)(image, label, generator)[1].shape[0] for _ in range(200)]
    assert 16 <= min(uniform) < 22
    assert 58 < max(uniform) <= 66


def test_resize_by_hand():
    image = np.array([[[0, 0, 0], [100, 100, 100]]], np.uint8)
    label = np.array([[1, 2]], np.int32)
    # Pixel centres of the four lie at -1/4, 1/4, 3/4, 5/4 of the two.
    for dtype in (np.uint8, np.float32):
        resized, moved = Resize(size=(1, 4))(image.astype(dtype), label, rng())
        assert resized.dtype == dtype
        assert resized[0, :, 0].tolist() == [0, 25, 75, 100]
        assert moved.tolist() == [[1, 1, 2, 2]]
    assert Resize(scale=0.2)(image, label, rng())[1].shape == (1, 1)


def test_jitter_by_hand():
    image, label = np.full((2, 3, 3), 7, np.uint8), np.arange(6, dtype=np.int32).reshape(2, 3)
    seen = {}
    generator = rng()
    for _ in range(300):
        moved, labels = Jitter(1, MEAN)(image, label, generator)
        seen[tuple(map(tuple, labels.tolist()))] = moved
    assert len(seen) == 9
    down_right = ((255, 255, 255), (255, 0, 1))
    assert seen[down_right][..., 0].tolist() == [[10.5] * 3, [10.5, 7, 7]]
    up_left = ((4, 5, 255), (255, 255, 255))
    assert seen[up_left][..., 1].tolist() == [[7, 7, 20.25], [20.25] * 3]
    # Farther than the image is large: nothing remains, without an error.
    assert any((Jitter(9, MEAN)(image, label, rng(seed))[1] == 255).all() for seed in range(20))


class _Factors:
    """A generator that draws the given factors."""

    def __init__(self, *factors):
        self.factors = factors

    def uniform(self, low, high, count):
        assert (low, high, count) == (0.5, 1.5, 3)
        return np.array(self.factors)


def test_color_jitter_by_hand():
    image, label = np.array([[[100, 100, 100], [40, 80, 120]]], np.uint8), np.array([[0, 3]], np.int32)

    def jittered(*factors):
        recolored, same = ColorJitter(0.5)(image, label, _Factors(*factors))
        assert same is label and recolored.dtype == np.float32
        return recolored[0]

    np.testing.assert_allclose(jittered(1, 1, 1), image[0], rtol=1e-5)
    np.testing.assert_allclose(jittered(1.5, 1, 1), [[150, 150, 150], [60, 120, 180]], rtol=1e-5)
    # The mean of all six values is 90.
    np.testing.assert_allclose(jittered(1, 0.5, 1), [[95, 95, 95], [65, 85, 105]], rtol=1e-5)
    # Luma of the second pixel: 0.299 * 40 + 0.587 * 80 + 0.114 * 120 = 72.6; a grey pixel has no saturation.
    np.testing.assert_allclose(jittered(1, 1, 0.5), [[100, 100, 100], [56.3, 76.3, 96.3]], rtol=1e-5)
    assert jittered(1.5, 1.5, 1.5).max() <= 255 and jittered(0.5, 1.5, 1.5).min() >= 0


def test_crop_pads_bottom_right_and_reaches_every_place():
    image, label = np.full((2, 3, 3), 7, np.uint8), np.arange(6, dtype=np.int32).reshape(2, 3)
    padded, labels = RandomCrop((3, 4), MEAN)(image, label, rng())
    assert padded.dtype == np.float32
    assert labels.tolist() == [[0, 1, 2, 255], [3, 4, 5, 255], [255] * 4]
    assert padded[2, 0].tolist() == list(MEAN)
    generator = rng()
    corners = [RandomCrop((1, 2), MEAN)(image, label, generator) for _ in range(100)]
    assert {int(labels[0, 0]) for _, labels in corners} == {0, 1, 3, 4}
    assert corners[0][0].dtype == np.uint8


def test_pad_to():
    image, label = np.ones((2, 3, 3), np.uint8), np.zeros((2, 3), np.int32)
    same = pad_to(image, label, (1, 3), MEAN)
    assert same[0] is image
    taller, labels = pad_to(image, label, (3, 2), MEAN)
    assert labels.tolist() == [[0] * 3, [0] * 3, [255] * 3]
    assert taller[:, 0, 2].tolist() == [1, 1, 30]


@pytest.mark.parametrize(
    "transforms, size",
    [
        ([], None),
        ([RandomCrop((3, 4))], (3, 4)),
        ([RandomCrop((3, 4)), Flip(), Jitter(2)], (3, 4)),
        ([RandomCrop((3, 4)), RandomScale(0.5, 1)], None),
        ([RandomCrop((3, 4)), Resize(scale=2)], None),
        ([Resize(size=[5, 6])], (5, 6)),
        ([compose([RandomCrop((3, 4)), Flip()]), compose([]), Flip()], (3, 4)),
        ([RandomCrop((3, 4)), lambda image, label, rng: (image, label)], None),
    ],
)
def test_static_size(transforms, size):
    assert static_size(transforms) == size


def test_compose_is_a_transform():
    assert compose([Flip()]) == Compose((Flip(),))
    image, label = blocks()
    assert compose([])(image, label, rng())[0] is image


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Flip(2), "probability=2"),
        (lambda: RandomScale(2, 1), "minimum <= maximum"),
        (lambda: RandomScale(1, 2, step=0), "step > 0"),
        (lambda: Resize(), "either scale > 0 or size"),
        (lambda: Resize(2.0, (3, 3)), "either scale > 0 or size"),
        (lambda: Jitter(-1), "pixels=-1"),
        (lambda: ColorJitter(1.5), "strength=1.5"),
        (lambda: RandomCrop((0, 3)), r"size \(0, 3\)"),
        (lambda: RandomCrop((3, 3, 3)), r"\(height, width\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(KerassegError, match=message):
        make()


@pytest.mark.parametrize("cell", [1, 3, 32])
def test_loss_sampling_keeps_or_ignores_whole_cells(cell):
    image, label = np.zeros((70, 101, 3), np.uint8), np.arange(70 * 101, dtype=np.int32).reshape(70, 101) % 200
    kept = label.copy()
    out, sampled = LossSampling(0.5, cell)(image, label, rng(1))
    assert out is image and sampled.dtype == np.int32 and np.array_equal(label, kept)
    states = []
    # Cells begin at the top left; the last ones are cut.
    for top in range(0, 70, cell):
        for left in range(0, 101, cell):
            window = np.s_[top : top + cell, left : left + cell]
            whole = np.array_equal(sampled[window], label[window])
            assert whole or (sampled[window] == 255).all()
            states.append(whole)
    assert 0 < sum(states) < len(states)
    assert np.array_equal(LossSampling(0.5, cell)(image, label, rng(1))[1], sampled)
    assert not np.array_equal(LossSampling(0.5, cell)(image, label, rng(2))[1], sampled)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8, 1.0])
def test_loss_sampling_keeps_the_share_it_was_given(probability):
    label = np.zeros((200, 300), np.int32)
    label[:, :100] = 255
    sampled = [LossSampling(probability, 2)(None, label, rng(seed))[1] for seed in range(4)]
    cells, kept = 4 * 100 * 100, sum(np.sum(each == 0) for each in sampled) / 4
    assert all((each[:, :100] == 255).all() for each in sampled)
    assert abs(kept - probability * cells) <= 5 * np.sqrt(cells * probability * (1 - probability))
    # Neighbouring cells and images are drawn each for itself.
    grid = np.stack(sampled)[:, ::2, 100::2] == 0
    if probability < 1:
        pairs = ((grid[:, 1:], grid[:, :-1]), (grid[:, :, 1:], grid[:, :, :-1]), (grid[1:], grid[:-1]))
        for one, other in pairs:
            assert abs(np.mean(one & other) - probability**2) < 5 * np.sqrt(1 / one.size)


def test_loss_sampling_leaves_the_size_and_refuses_nonsense():
    assert static_size([RandomCrop((21, 22)), LossSampling(0.5)]) == (21, 22)
    for arguments, message in (
        ((0,), "probability=0"),
        ((1.1,), "probability=1.1"),
        ((0.5, 0), "cell=0"),
        ((0.5, 1.5), "cell=1.5"),
    ):
        with pytest.raises(KerassegError, match=f"LossSampling received {message}: expected"):
            LossSampling(*arguments)


def test_pad_to_gives_one_size_and_refuses_larger_images():
    image, label = blocks(7, 9, 3)
    padded, ignored = PadTo((8, 12), MEAN)(image, label, rng())
    assert padded.shape == (8, 12, 3) and static_size([PadTo((8, 12)), Flip()]) == (8, 12)
    assert np.array_equal(padded[:7, :9], image) and np.array_equal(ignored[:7, :9], label)
    outside = np.ones((8, 12), bool)
    outside[:7, :9] = False
    assert (padded[outside] == np.float32(MEAN)).all() and (ignored[outside] == 255).all()
    with pytest.raises(KerassegError, match="an image of 7x9 pixels does not fit into pad_size 8x8: make it as large"):
        PadTo((8, 8))(image, label, rng())


def reflected(place, size):
    """OpenCV's BORDER_REFLECT_101: dcb|abcd|cba."""
    while size > 1 and not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place if size > 1 else 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("size", "margin"), [((40, 60), 7), ((5, 9), 20), ((3, 1), 2), ((6, 7), 0)])
def test_reflection_margin_place_by_place(size, margin, dtype):
    image, label = (part[: size[0], : size[1]] for part in blocks(*size, side=2))
    image, kept = image.astype(dtype), label.copy()
    out, around = ReflectionMargin(margin)(image, label, rng())
    assert out.dtype == dtype and around.dtype == np.int32 and np.array_equal(label, kept)
    assert out.shape == (*around.shape, 3) == (size[0] + 2 * margin, size[1] + 2 * margin, 3)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            y, x = row - margin, column - margin
            assert np.array_equal(out[row, column], image[reflected(y, size[0]), reflected(x, size[1])])
            inside = 0 <= y < size[0] and 0 <= x < size[1]
            assert around[row, column] == (label[y, x] if inside else 255)


def test_reflection_margin_worked_by_hand():
    image = np.array([[[1] * 3, [2] * 3, [3] * 3]], np.uint8)
    out, label = ReflectionMargin(2)(image, np.array([[4, 5, 6]], np.int32), rng())
    assert out[..., 0].tolist() == [[3, 2, 1, 2, 3, 2, 1]] * 5
    assert label.tolist() == [[255] * 7] * 2 + [[255, 255, 4, 5, 6, 255, 255]] + [[255] * 7] * 2
    assert static_size([RandomCrop((5, 5)), ReflectionMargin(2)]) is None
    assert static_size([ReflectionMargin(2), RandomCrop((5, 5))]) == (5, 5)
    for pixels in (-1, 1.5):
        with pytest.raises(KerassegError, match=f"ReflectionMargin received pixels={pixels}: expected 0 or more"):
            ReflectionMargin(pixels)


def test_pad_to_takes_maps_of_any_number_of_channels():
    features = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    padded, label = pad_to(features, np.zeros((2, 3), np.int32), (4, 4), (0.0,) * 5)
    assert padded.shape == (4, 4, 5) and padded.sum() == features.sum() and np.array_equal(padded[:2, :3], features)
    assert (label == 255).sum() == 10
