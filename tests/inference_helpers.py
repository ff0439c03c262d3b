"""What the tests of inference share: a small network and data set of noise, and resizing written out."""

import dataclasses

import keras
import numpy as np
import PIL.Image

from kerasseg.labels import IGNORE, LabelTable

LABELS = LabelTable("three", ("ground", "cat", "dog"), ((0, 0, 0), (200, 40, 40), (40, 80, 200)))


@dataclasses.dataclass
class Example:
    image: np.ndarray
    label: np.ndarray | None
    id: str


class Data:
    """A data set of noise; no two images of one size."""

    labels = LABELS

    def __init__(self, count=3, seed=0):
        generator = np.random.default_rng(seed)
        self.examples = []
        for index in range(count):
            size = (6 + index, 9 - index)
            label = generator.integers(0, 3, size).astype(np.int32)
            label[generator.random(size) < 0.2] = IGNORE
            image = generator.integers(0, 256, (*size, 3), np.uint8)
            self.examples.append(Example(image, label, f"image-{index}"))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def make_model(num_classes=3, dtype="float32", size=(None, None)):
    """A network that is neither the same left and right nor at each pixel alone."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((*size, 3), dtype=dtype)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(num_classes, 3, padding="same")(x))


def photograph(height=11, width=14, seed=5):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resized(array, height, width):
    """Bilinear with half-pixel centres and no antialiasing, one output pixel at a time, in float64."""
    array = array.astype(np.float64)
    rows, columns = array.shape[:2]
    out = np.empty((height, width, array.shape[2]))
    for y, x in np.ndindex(height, width):
        v, u = (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5
        top, left = int(np.floor(v)), int(np.floor(u))
        pick = {(a, b): array[min(max(top + a, 0), rows - 1), min(max(left + b, 0), columns - 1)] for a in (0, 1) for b in (0, 1)}
        dv, du = v - top, u - left
        upper, lower = (pick[a, 0] * (1 - du) + pick[a, 1] * du for a in (0, 1))
        out[y, x] = upper * (1 - dv) + lower * dv
    return out


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(-1, keepdims=True)


def shrunk(image, height, width):
    """As the training transforms resize: PIL's bilinear filter, which widens where it shrinks."""
    if (height, width) == image.shape[:2]:
        return image
    channels = [PIL.Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((width, height), PIL.Image.Resampling.BILINEAR)) for c in channels], -1)


# Of proposals.

SIZE = (16, 16)
# Larger and smaller than 16, of unequal sides, overlapping, at the image's edges; the third is too thin.
BOXES = np.array([[2, 3, 22, 29], [10, 0, 40, 12], [0, 0, 40, 6], [0, 8, 9, 30], [15, 10, 40, 30], [4, 4, 30, 28]], np.int32)


def image_of(size=(30, 40), seed=3):
    """Blocks, so that scores differ from box to box."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 5 + 1, size[1] // 5 + 1, 3), np.uint8)
    return blocks.repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]


def scored_network(seed=0, classes=3):
    """Scores of both signs."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 100, -1)(image)
    return keras.Model(image, keras.layers.Conv2D(classes, 3, padding="same", kernel_initializer="he_normal")(x), name="scored")
