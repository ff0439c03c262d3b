"""Random and fixed changes of an image and its label map, always of both at once.

Each is a frozen dataclass called as `(image, label, rng) -> (image, label)`; all chance comes from the generator that is passed
in. Images are `(H, W, C)`, uint8 or float32, as a rule RGB 0–255; labels `(H, W)`, or `(H, W, heads)` of several maps, int32,
255 = ignore. Labels are only ever moved, never mixed. Uncovered pixels are the mean and 255, and the image then turns float32,
since the mean is no whole number.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kerasseg.data.records import DEFAULT_MEAN
from kerasseg.data.transforms.cropping import ScaledCrop
from kerasseg.data.transforms.resizing import check_shapes, placed, resized_image, resized_label
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE

Mean = tuple[float, ...]


def _check_size(owner: str, size) -> None:
    if len(tuple(size)) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in size):
        raise KerassegError(f"{owner} received size {size}: expected (height, width) in pixels, e.g. size=(321, 321)")


def pad_to(image: np.ndarray, label: np.ndarray, size: tuple[int, int], mean: Mean = DEFAULT_MEAN):
    """Pads bottom and right, never crops.

    Args:
        image: Shape `(H, W, C)`, as a rule RGB 0–255.
        label: Shape `(H, W)` or `(H, W, heads)`, int32.
        size: `(height, width)` in pixels that the result has at least.
        mean: Of the new pixels, one value for each channel.
    Returns:
        The pair at `(max(H, height), max(W, width))`; float32 image where padded, else both untouched.
    """
    height, width = (max(have, want) for have, want in zip(label.shape[:2], size, strict=True))
    if (height, width) == label.shape[:2]:
        return image, label
    return placed(image, label, (height, width), 0, 0, mean)


def _resized(image: np.ndarray, label: np.ndarray, size: tuple[int, int]):
    return resized_image(image, size), resized_label(label, size)


def _scaled_size(label: np.ndarray, scale: float) -> tuple[int, int]:
    # Truncated, as the authors' loaders do.
    return tuple(max(1, int(side * scale)) for side in label.shape[:2])


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
        return (image[:, ::-1], label[:, ::-1]) if self.draw(rng) else (image, label)

    def draw(self, rng) -> bool:
        """Draws whether to mirror."""
        return bool(rng.random() < self.probability)


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

    def new_size(self, label, rng) -> tuple[int, int]:
        """Draws the size."""
        scales = self.scales()
        return _scaled_size(label, rng.uniform(self.minimum, self.maximum) if scales is None else scales[rng.integers(len(scales))])

    def __call__(self, image, label, rng):
        """Returns the pair at its new size."""
        return _resized(image, label, self.new_size(label, rng))


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

    def new_size(self, label, rng) -> tuple[int, int]:
        """Tells the size; there is no chance in it."""
        return tuple(self.size) if self.size is not None else _scaled_size(label, self.scale)

    def __call__(self, image, label, rng):
        """Returns the pair at its new size."""
        return _resized(image, label, self.new_size(label, rng))


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation, each by a random factor, in this order; the label stays.

    Of an image of more than three channels the first three are the photograph, and the others stay.

    Args:
        strength: The factors are drawn between 1 − strength and 1 + strength; 0 to 1. The image turns float32, within 0–255.
    """

    strength: float = 0.4

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise KerassegError(f"ColorJitter received strength={self.strength}: expected 0 to 1, e.g. ColorJitter(0.4)")

    def __call__(self, image, label, rng):
        """Returns the pair, its image recoloured."""
        if image.shape[2] < 3:
            raise KerassegError(
                f"ColorJitter received an image of {image.shape[2]} channels: expected RGB in the first three; leave it out"
            )
        brightness, contrast, saturation = rng.uniform(1 - self.strength, 1 + self.strength, 3).astype(np.float32)
        colors, rest = image[..., :3].astype(np.float32) * brightness, image[..., 3:]
        colors = colors.mean() + contrast * (colors - colors.mean())
        # Luma of ITU-R BT.601.
        grey = colors @ np.array([[0.299], [0.587], [0.114]], np.float32)
        colors = np.clip(grey + saturation * (colors - grey), 0, 255)
        return (np.concatenate([colors, rest.astype(np.float32)], axis=-1) if rest.shape[2] else colors), label


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
        return placed(image, label, label.shape[:2], top, left, self.mean)


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
        top, left = self.corner(label.shape[:2], rng)
        image, label = pad_to(image, label, self.size, self.mean)
        window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        return image[window], label[window]

    def corner(self, size, rng) -> tuple[int, int]:
        """Draws where the window begins in an image of a size."""
        return tuple(int(rng.integers(max(have, want) - want + 1)) for have, want in zip(size, self.size, strict=True))


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
        height, width = label.shape[:2]
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
        return image, np.pad(label, (around, around, (0, 0))[: label.ndim], constant_values=IGNORE)


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
        height, width = label.shape[:2]
        cells = rng.random((-(-height // self.cell), -(-width // self.cell))) < self.probability
        kept = cells[np.arange(height)[:, None] // self.cell, np.arange(width) // self.cell]
        return image, np.where(kept if label.ndim == 2 else kept[..., np.newaxis], label, np.int32(IGNORE))


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after the other.

    Scaling that a crop follows at once is computed for the pixels of the crop alone; draws and places are the same, and bytes but
    for a last bit here and there.

    Args:
        transforms: In the order in which they are applied.
    """

    transforms: tuple

    @cached_property
    def _steps(self) -> tuple:
        steps = []
        for transform in flat(self.transforms):
            if type(transform) is RandomCrop:
                scale = steps.pop() if steps and type(steps[-1]) in (RandomScale, Resize) else None
                transform = ScaledCrop(scale, transform, None)
            elif type(transform) is Flip and steps and type(steps[-1]) is ScaledCrop and steps[-1].flip is None:
                transform = replace(steps.pop(), flip=transform)
            steps.append(transform)
        return tuple(steps)

    def __call__(self, image, label, rng):
        """Returns the pair after the last transform."""
        for transform in self._steps:
            image, label = transform(image, label, rng)
        return image, label

    def write(self, image, label, rng, canvas: np.ndarray, blank: np.ndarray) -> None:
        """Writes the pair after the last transform into a place in a batch; its size must be that place's.

        Args:
            image: Shape `(H, W, C)`.
            label: Shape `(H, W)` or `(H, W, heads)`.
            rng: Where all chance comes from.
            canvas: Shape `(height, width, C)`, float32; written to.
            blank: Shape `(height, width)` or `(height, width, heads)`, integer; written to.
        """
        *steps, last = self._steps
        for transform in steps:
            image, label = transform(image, label, rng)
        if type(last) is ScaledCrop:
            return last.write(image, label, rng, canvas, blank)
        image, label = last(image, label, rng)
        check_shapes(canvas, blank, image, label)
        canvas[...], blank[...] = image, label


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
    for transform in reversed(tuple(flat(transforms))):
        if isinstance(transform, RandomCrop | Resize | PadTo) and transform.size is not None:
            return tuple(transform.size)
        if not isinstance(transform, Flip | Jitter | ColorJitter | LossSampling):
            return None
    return None


def flat(transforms):
    """Yields transforms one by one, also those within a `Compose`."""
    for transform in transforms:
        yield from flat(transform.transforms) if isinstance(transform, Compose) else (transform,)
