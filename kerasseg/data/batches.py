"""Examples → batches, as `tf.data` data sets for a training loop, `fit` or `evaluate`."""

import math
import re
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kerasseg.data.records import DataSet
from kerasseg.data.sampling import Sampler, class_balance, example_rng
from kerasseg.data.transforms import ColorJitter, compose, static_size
from kerasseg.data.transforms.changes import flat
from kerasseg.data.transforms.resizing import place_into
from kerasseg.data.workers import CALLS, Workers
from kerasseg.errors import KerassegError

# What TensorFlow's kernels ask of the memory of a tensor, in bytes.
_ALIGNMENT = 64

# How TensorFlow words a Python exception: its type, then the message, ours being one line.
_OURS = re.compile(r"\bKerassegError: (.*)")


class Share(NamedTuple):
    """The part of every batch that one input pipeline gives, where replicas share a batch.

    Each batch is cut into `slices` equal parts, one for each replica; this pipeline yields, batch after batch, the parts
    `first` to `first + count - 1`, one an element. By default it yields whole batches.
    """

    slices: int = 1
    first: int = 0
    count: int = 1


WHOLE = Share()


def training_batches(
    data: DataSet,
    batch_size: int,
    *,
    transforms=(),
    seed: int = 0,
    sampling: str = "shuffle",
    start: int = 0,
    steps: int | None = None,
    share: Share = WHOLE,
    fill: tuple[float, ...] | None = None,
    weights: np.ndarray | None = None,
    threads: int | None = None,
) -> tf.data.Dataset:
    """The training sequence, from any batch on.

    Batch number `t` holds the positions `t * batch_size` to `(t + 1) * batch_size - 1` of a sequence that only the seed, the
    sampling and the data determine: whoever resumes at `start=t` sees, bit for bit, what an unbroken run would have seen.
    Epochs run into each other; a batch may hold the end of one and the beginning of the next. Images of unequal size are padded
    bottom and right to the largest of those that the pipeline reads for a batch, with `fill` and 255.

    Args:
        data: Examples with labels.
        batch_size: Examples per global batch.
        transforms: Applied in their order, with random numbers of the position's own.
        seed: 0 to 2⁶⁴ − 1.
        sampling: One of `SAMPLINGS`. `"balanced"` reads every label once, before the first batch, unless it is given `weights`.
        start: Number of the first batch.
        steps: How many batches; `None` is without end. `fit` then needs `steps_per_epoch`, and `shuffle=False`, or it warns.
        share: The part of each batch to read and yield; the whole by default.
        fill: RGB, 0–255, of the pixels padded to images of unequal size; the data's mean by default, which is 0 for features.
        weights: With `"replacement"` how often each example is drawn, relative to the others; with `"balanced"` what
            `class_balance` gives.
        threads: How many examples are read and transformed at once; one for each core by default. They change no byte.
    Returns:
        Elements `(image, label)`: `(batch_size / share.slices, H, W, C)` float32, as a rule RGB 0–255, and `(batch_size /
        share.slices, H, W)` int32. Of data with several `inputs` the image is a dict of such, by the names of the inputs, and with
        several `heads` so is the label. H and W are static where the transforms end in a crop or a resize to a size.
    Raises:
        KerassegError: If an argument is out of range. While iterating, mistakes in the files arrive as TensorFlow errors:
            `unwrap_error` finds the message.
    Example:
        >>> from kerasseg.data import open_data
        >>> for image, label in training_batches(open_data("shapes"), 4, steps=1):
        ...     print(image.shape, label.shape)
        (4, 96, 128, 3) (4, 96, 128)
    """
    transforms = tuple(transforms)
    _check_positive(batch_size=batch_size, slices=share.slices, count=share.count)
    if batch_size % share.slices:
        raise KerassegError(
            f"batch_size {batch_size} does not divide into {share.slices} slices: make it a multiple of {share.slices}"
        )
    if not 0 <= share.first <= share.slices - share.count:
        raise KerassegError(f"received {share}: expected first from 0 on and first + count at most slices")
    if start < 0 or (steps is not None and steps < 0):
        raise KerassegError(f"received start={start}, steps={steps}: expected 0 or more (steps=None: without end)")
    if sampling == "balanced" and weights is None:
        weights = class_balance(data)
    sampler = Sampler(_checked_length(data), seed, sampling, weights)
    _check_colors(transforms, data)
    augment, size, part = compose(transforms), static_size(transforms), batch_size // share.slices
    workers = Workers(threads)

    def batch(t: np.ndarray):
        first = int(t) * batch_size + share.first * part

        def write(k: int, *place):
            image, label = _read(data, sampler(first + k))
            return augment.write(image, label, example_rng(seed, first + k), *place)

        def pair(k: int):
            image, label = _read(data, sampler(first + k))
            return augment(image, label, example_rng(seed, first + k))

        count = share.count * part
        if size is None:
            return _stack(workers.map(pair, range(count)), data.mean if fill is None else fill)
        images, labels = _blank(count, size, data)
        workers.map(lambda k: write(k, images[k], labels[k]), range(count))
        return images, labels

    numbers = tf.data.Dataset.counter(start) if steps is None else tf.data.Dataset.range(start, start + steps)
    return _mapped(numbers, batch, share.count * part, size, share.count, data, workers)


def evaluation_batches(data: DataSet, batch_size: int = 1, *, threads: int | None = None) -> tf.data.Dataset:
    """Every example once, in order, untransformed; the last batch may be smaller.

    Args:
        data: Examples with labels.
        batch_size: Examples per batch; those of unequal size are padded as in `training_batches`.
        threads: As in `training_batches`.
    Returns:
        Elements `(image, label)`: `(B, H, W, C)` float32, as a rule RGB 0–255, and `(B, H, W)` int32, or dicts of such as in
        `training_batches`.
    Raises:
        KerassegError: As `training_batches`.
    """
    _check_positive(batch_size=batch_size)
    length = _checked_length(data)

    workers = Workers(threads)

    def batch(t: np.ndarray):
        first = int(t) * batch_size
        return _stack(workers.map(partial(_read, data), range(first, min(first + batch_size, length))), data.mean)

    return _mapped(tf.data.Dataset.range(-(-length // batch_size)), batch, None, None, 1, data, workers)


def unwrap_error(error: BaseException) -> KerassegError | None:
    """Finds a mistake in the data behind what TensorFlow made of it.

    Args:
        error: What was raised while a data set was iterated over, or by `fit` or `evaluate`.
    Returns:
        The mistake in its one line, or `None` if the error is of another kind.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KerassegError):
            return error
        found = _OURS.search(str(error)) if isinstance(error, tf.errors.OpError) else None
        if found:
            return KerassegError(found.group(1).strip())
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise KerassegError(f"received {name}={number}: expected 1 or more")


def _check_colors(transforms, data: DataSet) -> None:
    colors = getattr(data, "colors", 3) if getattr(data, "photographs", True) else 0
    if colors < 3 and any(isinstance(transform, ColorJitter) for transform in flat(transforms)):
        raise KerassegError(f"data set '{data.labels.name}' has no colours to change: leave ColorJitter out (color_jitter=0)")


def _checked_length(data: DataSet) -> int:
    if not len(data):
        raise KerassegError("the data set holds no example: choose another split or folder")
    return len(data)


def _read(data: DataSet, index: int) -> tuple[np.ndarray, np.ndarray]:
    example = data[index]
    if example.label is None:
        raise KerassegError(f"example '{example.id}' has no label map: training and evaluation need a split with masks")
    return example.image, example.label


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array that TensorFlow takes over as it is; one that begins elsewhere it copies."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + count].view(dtype).reshape(shape)


def _blank(count: int, size: tuple[int, int], data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    heads = (len(data.heads),) if getattr(data, "heads", None) else ()
    channels = getattr(data, "channels", 3)
    return _aligned((count, *size, channels), np.float32), _aligned((count, *size, *heads), np.int32)


def _stack(pairs, mean) -> tuple[np.ndarray, np.ndarray]:
    """Pads examples of unequal size to the largest."""
    (image, label), size = pairs[0], tuple(np.max([label.shape[:2] for _, label in pairs], axis=0))
    images = _aligned((len(pairs), *size, image.shape[2]), np.float32)
    labels = _aligned((len(pairs), *size, *label.shape[2:]), np.int32)
    for canvas, blank, (image, label) in zip(images, labels, pairs, strict=True):
        place_into(canvas, blank, image, label, 0, 0, mean)
    return images, labels


def _named(image, label, data: DataSet):
    """The tensors of a network with several inputs, or of several heads, by their names."""
    if getattr(data, "inputs", None):
        image = dict(zip(data.inputs, tf.split(image, list(data.inputs.values()), axis=-1), strict=True))
    if getattr(data, "heads", None):
        label = dict(zip(data.heads, tf.unstack(label, len(data.heads), axis=-1), strict=True))
    return image, label


def _mapped(numbers, batch, batch_size: int | None, size, slices: int, data: DataSet, workers: Workers) -> tf.data.Dataset:
    """Loads batches in parallel, in order. Whole ones, even if sliced: slices are then padded alike."""
    height, width = size or (None, None)
    channels = getattr(data, "channels", 3)
    heads = (len(data.heads),) if getattr(data, "heads", None) else ()

    def one_line(t):
        if CALLS.ended:
            return np.zeros((1, 1, 1, channels), np.float32), np.zeros((1, 1, 1, *heads), np.int32)
        try:
            with CALLS:
                return batch(t)
        except KerassegError as error:
            # Subclasses too arrive under the one name that unwrap_error looks for.
            raise KerassegError(str(error)) from error
        except OSError as error:
            reason = " ".join(str(error.strerror or error).split())
            raise KerassegError(f"{error.filename or 'a file'} cannot be read: {reason}") from error

    def load(t):
        image, label = tf.numpy_function(one_line, [t], (tf.float32, tf.int32))
        image.set_shape((batch_size, height, width, channels))
        label.set_shape((batch_size, height, width, *heads))
        image, label = _named(image, label, data)
        return (image, label) if slices == 1 else tf.nest.map_structure(_split, (image, label))

    def _split(tensor):
        rest = tf.shape(tensor)[1:]
        cut = tf.reshape(tensor, tf.concat([[slices, batch_size // slices], rest], 0))
        cut.set_shape((slices, batch_size // slices, *tensor.shape[1:]))
        return cut

    # Two at a time: the next begins while the last examples of one are under way.
    batches = numbers.map(load, num_parallel_calls=min(2, workers.count), deterministic=True)
    if slices > 1:
        batches = batches.unbatch()
    return batches.prefetch(tf.data.AUTOTUNE)
