"""Examples → batches, as `tf.data` data sets for a training loop, `fit` or `evaluate`."""

import atexit
import re
import threading
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kerasseg.data.records import DataSet
from kerasseg.data.sampling import check_sampling, example_index, example_rng
from kerasseg.data.transforms import compose, pad_to, static_size
from kerasseg.errors import KerassegError


class _Calls:
    """The calls that TensorFlow's threads make into Python to load a batch.

    An iterator that is still alive when the program ends waits for its calls, and they for an interpreter that no longer runs
    them: the program would hang. So, while Python still runs, those under way are let finish and later ones get nothing.
    """

    def __init__(self):
        self._lock, self._running, self.ended = threading.Lock(), 0, False
        atexit.register(self._end)

    def __enter__(self):
        with self._lock:
            self._running += 1

    def __exit__(self, *exception):
        with self._lock:
            self._running -= 1

    def _end(self) -> None:
        self.ended, quiet = True, 0
        # Not one look but several: a call may be waiting for its turn of the interpreter, and is not counted yet.
        while quiet < 5:
            time.sleep(0.01)
            quiet = 0 if self._running else quiet + 1


_CALLS = _Calls()

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
        sampling: `"shuffle"` or `"replacement"`.
        start: Number of the first batch.
        steps: How many batches; `None` is without end. `fit` then needs `steps_per_epoch`, and `shuffle=False`, or it warns.
        share: The part of each batch to read and yield; the whole by default.
        fill: RGB, 0–255, of the pixels padded to images of unequal size; the data's mean by default, which is 0 for features.
    Returns:
        Elements `(image, label)`: `(batch_size / share.slices, H, W, 3)` float32 RGB 0–255 and `(batch_size / share.slices, H, W)`
        int32; stored features have their own channels. H and W are static where the transforms end in a crop or a resize to a size.
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
    check_sampling(seed, sampling)
    _check_positive(batch_size=batch_size, slices=share.slices, count=share.count)
    if batch_size % share.slices:
        raise KerassegError(
            f"batch_size {batch_size} does not divide into {share.slices} slices: make it a multiple of {share.slices}"
        )
    if not 0 <= share.first <= share.slices - share.count:
        raise KerassegError(f"received {share}: expected first from 0 on and first + count at most slices")
    if start < 0 or (steps is not None and steps < 0):
        raise KerassegError(f"received start={start}, steps={steps}: expected 0 or more (steps=None: without end)")
    length = _checked_length(data)
    augment = compose(transforms)

    def pair(position: int):
        image, label = _read(data, example_index(position, length, seed, sampling))
        return augment(image, label, example_rng(seed, position))

    part = batch_size // share.slices

    def batch(t: np.ndarray):
        first = int(t) * batch_size + share.first * part
        return _stack([pair(position) for position in range(first, first + share.count * part)], fill or data.mean)

    numbers = tf.data.Dataset.counter(start) if steps is None else tf.data.Dataset.range(start, start + steps)
    return _mapped(numbers, batch, share.count * part, static_size(transforms), share.count, getattr(data, "channels", 3))


def evaluation_batches(data: DataSet, batch_size: int = 1) -> tf.data.Dataset:
    """Every example once, in order, untransformed; the last batch may be smaller.

    Args:
        data: Examples with labels.
        batch_size: Examples per batch; those of unequal size are padded as in `training_batches`.
    Returns:
        Elements `(image, label)`: `(B, H, W, 3)` float32 RGB 0–255 and `(B, H, W)` int32; stored features have their own channels.
    Raises:
        KerassegError: As `training_batches`.
    """
    _check_positive(batch_size=batch_size)
    length = _checked_length(data)

    def batch(t: np.ndarray):
        first = int(t) * batch_size
        return _stack([_read(data, index) for index in range(first, min(first + batch_size, length))], data.mean)

    return _mapped(tf.data.Dataset.range(-(-length // batch_size)), batch, None, None, 1, getattr(data, "channels", 3))


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


def _checked_length(data: DataSet) -> int:
    if not len(data):
        raise KerassegError("the data set holds no example: choose another split or folder")
    return len(data)


def _read(data: DataSet, index: int) -> tuple[np.ndarray, np.ndarray]:
    example = data[index]
    if example.label is None:
        raise KerassegError(f"example '{example.id}' has no label map: training and evaluation need a split with masks")
    return example.image, example.label


def _stack(pairs, mean) -> tuple[np.ndarray, np.ndarray]:
    size = tuple(np.max([label.shape for _, label in pairs], axis=0))
    images, labels = zip(*(pad_to(image, label, size, mean) for image, label in pairs), strict=True)
    return np.stack(images, dtype=np.float32, casting="unsafe"), np.stack(labels, dtype=np.int32, casting="unsafe")


def _mapped(numbers: tf.data.Dataset, batch, batch_size: int | None, size, slices: int, channels: int) -> tf.data.Dataset:
    """Loads batches in parallel, in order. Whole ones, even if sliced: slices are then padded alike."""
    height, width = size or (None, None)

    def one_line(t):
        if _CALLS.ended:
            return np.zeros((1, 1, 1, channels), np.float32), np.zeros((1, 1, 1), np.int32)
        try:
            with _CALLS:
                return batch(t)
        except KerassegError as error:
            # Subclasses too arrive under the one name that unwrap_error looks for.
            raise KerassegError(str(error)) from error

    def load(t):
        image, label = tf.numpy_function(one_line, [t], (tf.float32, tf.int32))
        image.set_shape((batch_size, height, width, channels))
        label.set_shape((batch_size, height, width))
        return (image, label) if slices == 1 else (_split(image), _split(label))

    def _split(tensor):
        rest = tf.shape(tensor)[1:]
        cut = tf.reshape(tensor, tf.concat([[slices, batch_size // slices], rest], 0))
        cut.set_shape((slices, batch_size // slices, *tensor.shape[1:]))
        return cut

    batches = numbers.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if slices > 1:
        batches = batches.unbatch()
    return batches.prefetch(tf.data.AUTOTUNE)
