"""Random and fixed changes of an image and its label map, always of both at once.

Each is a frozen dataclass called as `(image, label, rng) -> (image, label)`; all chance comes from the generator that is passed
in. Images are `(H, W, 3)`, uint8 or float32 RGB 0–255; labels `(H, W)`, int32, 255 = ignore. Labels are only ever moved, never
mixed. Uncovered pixels are the mean and 255, and the image then turns float32, since the mean is no whole number.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from kerasseg.data.records import DEFAULT_MEAN
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

Mean = tuple[float, float, float]


def _check_size(owner: str, size) -> None:
    if len(tuple(size)) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in size):
        raise KerassegError(f"{owner} received size {size}: expected (height, width) in pixels, e.g. size=(321, 321)")


def _place(image: np.ndarray, label: np.ndarray, size, top: int, left: int, mean: Mean):
    """Lays an image on a canvas of the mean, its corner at (top, left), which may lie outside."""
    canvas = np.empty((*size, image.shape[2]), np.float32)
    canvas[:] = mean
    blank = np.full(size, IGNORE, np.int32)
    height, width = label.shape
    rows, columns = slice(max(top, 0), max(min(top + height, size[0]), 0)), slice(max(left, 0), max(min(left + width, size[1]), 0))
    source_rows, source_columns = (slice(s.start - o, max(s.stop - o, 0)) for s, o in ((rows, top), (columns, left)))
    canvas[rows, columns] = image[source_rows, source_columns]
    blank[rows, columns] = label[source_rows, source_columns]
    return canvas, blank


def pad_to(image: np.ndarray, label: np.ndarray, size: tuple[int, int], mean: Mean = DEFAULT_MEAN):
    """Pads bottom and right, never crops.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        label: Shape `(H, W)`, int32.
        size: `(height, width)` in pixels that the result has at least.
        mean: RGB, 0–255, of the new pixels.
    Returns:
        The pair at `(max(H, height), max(W, width))`; float32 image where padded, else both untouched.
    """
    height, width = (max(have, want) for have, want in zip(label.shape, size, strict=True))
    if (height, width) == label.shape:
        return image, label
    return _place(image, label, (height, width), 0, 0, mean)


def _resized(image: np.ndarray, label: np.ndarray, size: tuple[int, int]):
    if size == label.shape:
        return image, label
    extent = (size[1], size[0])
    if image.dtype == np.uint8:
        image = np.array(Image.fromarray(image).resize(extent, Image.Resampling.BILINEAR))
    else:
        channels = [Image.fromarray(image[..., c].astype(np.float32)).resize(extent, Image.Resampling.BILINEAR) for c in range(3)]
        image = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return image, np.array(Image.fromarray(label.astype(np.int32)).resize(extent, Image.Resampling.NEAREST))


def _scaled_size(label: np.ndarray, scale: float) -> tuple[int, int]:
    # Truncated, as the authors' loaders do.
    return tuple(max(1, int(side * scale)) for side in label.shape)


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right.

    Args:
        probability: Of mirroring, 0 to 1.
    """

    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise KerassegError(f"Flip received probability={self.probability}: expected 0 to 1, e.g. Flip(0.5)")

    def __call__(self, image, label, rng):
        """Returns the pair, mirrored or as it was."""
        if rng.random() < self.probability:
            return image[:, ::-1], label[:, ::-1]
        return image, label


@dataclass(frozen=True)
class RandomScale:
    """Resizes by a random factor: the image bilinear, the label nearest, sizes truncated.

    Args:
        minimum: Smallest factor.
        maximum: Largest factor.
        step: Distance of the factors that may be drawn, from `minimum` on; `None` draws uniformly between both.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §4.1: 0.5 to 2.0; their code steps by 0.25.
    """

    minimum: float
    maximum: float
    step: float | None = None

    def __post_init__(self):
        if not 0 < self.minimum <= self.maximum or (self.step is not None and self.step <= 0):
            raise KerassegError(
                f"received {self}: expected 0 < minimum <= maximum and step > 0, e.g. RandomScale(0.5, 2.0, step=0.25)"
            )

    def scales(self) -> tuple[float, ...] | None:
        """The factors that may be drawn; `None` if any between minimum and maximum."""
        if self.step is None:
            return None
        # Rounded, for int(h * scale) must not lose a pixel to 0.7999….
        count = int(round((self.maximum - self.minimum) / self.step, 6)) + 1
        return tuple(round(self.minimum + k * self.step, 9) for k in range(count))

    def __call__(self, image, label, rng):
        """Returns the pair at its new size."""
        scales = self.scales()
        scale = rng.uniform(self.minimum, self.maximum) if scales is None else scales[rng.integers(len(scales))]
        return _resized(image, label, _scaled_size(label, scale))


@dataclass(frozen=True)
class Resize:
    """Resizes always alike, by a factor or to a size: the image bilinear, the label nearest.

    Args:
        scale: Factor of both sides; sizes are truncated.
        size: `(height, width)` in pixels. One of the two must be given.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self):
        if (self.scale is None) == (self.size is None) or (self.scale is not None and self.scale <= 0):
            raise KerassegError(f"received {self}: expected either scale > 0 or size, e.g. Resize(size=(250, 250))")
        if self.size is not None:
            _check_size("Resize", self.size)

    def __call__(self, image, label, rng):
        """Returns the pair at its new size."""
        return _resized(image, label, tuple(self.size) if self.size is not None else _scaled_size(label, self.scale))


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation, each by a random factor, in this order; the label stays.

    Args:
        strength: The factors are drawn between 1 − strength and 1 + strength; 0 to 1. The image turns float32, within 0–255.
    """

    strength: float = 0.4

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise KerassegError(f"ColorJitter received strength={self.strength}: expected 0 to 1, e.g. ColorJitter(0.4)")

    def __call__(self, image, label, rng):
        """Returns the pair, its image recoloured."""
        brightness, contrast, saturation = rng.uniform(1 - self.strength, 1 + self.strength, 3).astype(np.float32)
        image = image.astype(np.float32) * brightness
        image = image.mean() + contrast * (image - image.mean())
        # Luma of ITU-R BT.601.
        grey = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
        return np.clip(grey + saturation * (image - grey), 0, 255), label


@dataclass(frozen=True)
class Jitter:
    """Translates by a random whole number of pixels, keeping the size.

    Args:
        pixels: The largest translation in each of the four directions.
        mean: RGB, 0–255, of uncovered pixels.
    Reference:
        Long, Shelhamer & Darrell 2015, arXiv:1411.4038, §4.3: "up to 32 pixels", with no notable improvement.
    """

    pixels: int = 32
    mean: Mean = DEFAULT_MEAN

    def __post_init__(self):
        if self.pixels < 0:
            raise KerassegError(f"Jitter received pixels={self.pixels}: expected 0 or more, e.g. Jitter(32)")

    def __call__(self, image, label, rng):
        """Returns the pair, translated."""
        top, left = (int(offset) for offset in rng.integers(-self.pixels, self.pixels, size=2, endpoint=True))
        if top == left == 0:
            return image, label
        return _place(image, label, label.shape, top, left, self.mean)


@dataclass(frozen=True)
class RandomCrop:
    """Cuts out a window at a random place, after padding bottom and right what is smaller.

    Args:
        size: `(height, width)` in pixels.
        mean: RGB, 0–255, of the padding.
    """

    size: tuple[int, int]
    mean: Mean = DEFAULT_MEAN

    def __post_init__(self):
        _check_size("RandomCrop", self.size)

    def __call__(self, image, label, rng):
        """Returns the pair at `size`."""
        image, label = pad_to(image, label, self.size, self.mean)
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, self.size, strict=True))
        window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        return image[window], label[window]


@dataclass(frozen=True)
class PadTo:
    """Pads bottom and right to one size, so that whole images have a shape known beforehand.

    Args:
        size: Height and width in pixels, at least those of the largest image.
        mean: RGB, 0–255, of what is added; its label is 255.
    """

    size: tuple[int, int]
    mean: Mean = DEFAULT_MEAN

    def __post_init__(self):
        _check_size("PadTo", self.size)

    def __call__(self, image, label, rng):
        """Returns the padded pair."""
        height, width = label.shape
        if height > self.size[0] or width > self.size[1]:
            raise KerassegError(
                f"an image of {height}x{width} pixels does not fit into pad_size {self.size[0]}x{self.size[1]}: "
                "make it as large as the largest image, or crop by crop_size"
            )
        return pad_to(image, label, tuple(self.size), self.mean)


@dataclass(frozen=True)
class ReflectionMargin:
    """Continues an image on all four sides by its mirror image, whose label is 255; the outermost pixels are not repeated.

    An image smaller than the margin is reflected again and again.

    Args:
        pixels: Width of the margin; what a network without padding of its own eats, 186 for the Dilation networks.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §4; fyu/dilation's train.py (BORDER_REFLECT_101).
    """

    pixels: int

    def __post_init__(self):
        if not isinstance(self.pixels, int) or self.pixels < 0:
            raise KerassegError(f"ReflectionMargin received pixels={self.pixels}: expected 0 or more, e.g. ReflectionMargin(186)")

    def __call__(self, image, label, rng):
        """Returns the pair, larger by twice the margin."""
        around = (self.pixels, self.pixels)
        image = np.pad(image, (around, around, (0, 0)), mode="reflect")
        return image, np.pad(label, (around, around), constant_values=IGNORE)


@dataclass(frozen=True)
class LossSampling:
    """Lets a random part of the label count, cell by cell; the rest turns to 255, and the image stays.

    It comes after whatever moves the label. For the same expected number of pixels a step needs 1/probability times the images.

    Args:
        probability: Of a cell to count, above 0 to 1; drawn for each cell alone.
        cell: Side of the square cells in pixels, the first at the top left; those at the bottom and right may be cut. 1 draws each
            pixel, 32 each cell of scores at stride 32.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §3.4 and §4.4, "Patch sampling".
    """

    probability: float
    cell: int = 1

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise KerassegError(
                f"LossSampling received probability={self.probability}: expected above 0 to 1, e.g. LossSampling(0.25, cell=32)"
            )
        if not isinstance(self.cell, int) or self.cell < 1:
            raise KerassegError(f"LossSampling received cell={self.cell}: expected whole pixels, e.g. LossSampling(0.25, cell=32)")

    def __call__(self, image, label, rng):
        """Returns the pair, parts of its label 255."""
        height, width = label.shape
        cells = rng.random((-(-height // self.cell), -(-width // self.cell))) < self.probability
        kept = cells[np.arange(height)[:, None] // self.cell, np.arange(width) // self.cell]
        return image, np.where(kept, label, np.int32(IGNORE))


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after the other.

    Args:
        transforms: In the order in which they are applied.
    """

    transforms: tuple

    def __call__(self, image, label, rng):
        """Returns the pair after the last transform."""
        for transform in self.transforms:
            image, label = transform(image, label, rng)
        return image, label


def compose(transforms) -> Compose:
    """One transform of several.

    Args:
        transforms: In the order in which they are applied; none changes nothing.
    Returns:
        A transform like the others.
    Example:
        >>> augment = compose([RandomScale(0.5, 2.0, step=0.25), RandomCrop((321, 321)), Flip()])
    """
    return Compose(tuple(transforms))


def static_size(transforms) -> tuple[int, int] | None:
    """The size that every image has after some transforms, whatever it had before.

    Args:
        transforms: In the order in which they are applied.
    Returns:
        `(height, width)`, or `None` if it depends on the image or on chance.
    """
    for transform in reversed(tuple(_flat(transforms))):
        if isinstance(transform, RandomCrop | Resize | PadTo) and transform.size is not None:
            return tuple(transform.size)
        if not isinstance(transform, Flip | Jitter | ColorJitter | LossSampling):
            return None
    return None


def _flat(transforms):
    for transform in transforms:
        yield from _flat(transform.transforms) if isinstance(transform, Compose) else (transform,)
