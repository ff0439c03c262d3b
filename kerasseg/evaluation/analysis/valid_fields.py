"""Which pixels of an image a score depends on, and how much: the valid receptive field beside the theoretical one."""

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.analysis.layer_table import at_size, without_weights
from kerasseg.evaluation.analysis.stages import layer_map
from kerasseg.evaluation.methods import allowed_size, check_covers
from kerasseg.evaluation.running import reflected, run_network
from kerasseg.layers import Geometry

# Of a model, by the map: a function holds its traces, and through them much memory, and must go when its model goes.
_PROBES: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()

THRESHOLDS = {"occlusion": 0.2, "gradient": 1 - 0.9545}
"""Share of the largest influence from which a pixel counts. Zhou et al. 2015 and Peng et al. 2017 give none; the first is what Zhou
et al. 2016 (arXiv:1512.04150, §3.2) cut their maps of evidence at, the second, two standard deviations, is Luo's."""


class Influence(NamedTuple):
    """How much one score changes with each pixel.

    Args:
        values: Shape `(H, W)`, float32, from 0.
        at: Row and column of the place whose score it is.
        method: How that was measured.
        layer: Name of the layer.
        channel: Its channel.
        score: What the layer has there for the image as it is.
        theoretical: Height and width of what that cell could depend on, in pixels, each `None` for the whole image; `None`
            where it cannot be told.
    """

    values: np.ndarray
    at: tuple[int, int]
    method: str
    layer: str
    channel: int
    score: float
    theoretical: tuple[int | None, int | None] | None


class ValidField(NamedTuple):
    """The pixels that count.

    Args:
        region: Shape `(H, W)`, bool.
        size: Height and width of the smallest box around them.
        side: Square root of their number: the side of a square as large.
    """

    region: np.ndarray
    size: tuple[int, int]
    side: float


def influence(
    model: keras.Model,
    image,
    at: tuple[int, int] | None = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
    method: str = "occlusion",
    patch: int = 11,
    stride: int = 3,
    seed: int = 0,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Influence:
    """Measures how much the score at one place changes with each pixel of an image.

    By occlusion: a square of noise is laid over the image at every `stride`-th pixel, and the score's change is written at the
    square's centre, bilinearly interpolated between. Since a square counts that touches the receptive field with its edge, the map
    reaches beyond it by up to half a patch and a stride on each side. By gradient: the sum over the colours of |∂ score / ∂ pixel|,
    which is what an endless small change does, and is the same as occlusion, up to a factor, only where the network is linear.

    Args:
        model: Network of one RGB image; it gets the image continued to a size that it takes.
        image: Shape `(H, W, 3)`, RGB 0–255.
        at: Row and column; `None`: the image's centre.
        layer: Name of a layer with a map, of which the cell nearest to the place counts; `None`: the network's first output.
        channel: Of the layer; of an output the class. `None`: the one with the largest value there.
        method: "occlusion" or "gradient".
        patch: Side of the square in pixels.
        stride: Pixels from one square to the next.
        seed: Of the noise.
        batch_size: Occluded images that go through the network at once.
        progress: Called with (squares done, squares in all) after each batch.
    Returns:
        The map and what it is of.
    Raises:
        KerassegError: If there is no such place, layer or channel, or the network has no gradient.
    Reference:
        Zhou, Khosla, Lapedriza, Oliva & Torralba 2015, arXiv:1412.6856, §3.2: patches of 11×11 at a stride of 3. Luo, Li, Urtasun &
        Zemel 2016, arXiv:1701.04128: the gradient. Peng et al. 2017, arXiv:1703.02719, Figure 3.
    """
    if method not in THRESHOLDS or patch < 1 or stride < 1 or batch_size < 1:
        raise KerassegError(
            f"method '{method}', patch {patch}, stride {stride}, batch size {batch_size}: expected {' or '.join(THRESHOLDS)} and "
            "numbers from 1"
        )
    image = np.asarray(image, np.float32)
    size, allowed = image.shape[:2], allowed_size(model, image.shape[:2])
    at = (size[0] // 2, size[1] // 2) if at is None else tuple(int(place) for place in at)
    if not all(0 <= place < side for place, side in zip(at, size, strict=True)):
        raise KerassegError(
            f"place {at[0]},{at[1]} lies outside an image of {size[0]}x{size[1]} pixels: expected row,column from 0,0"
        )
    if layer is None:
        # The nearest cell would be another place's.
        check_covers(model)
    tensor = _tensor(model, layer)
    network, scores = _probe(model, tensor)
    continued = image[reflected(size[0], 0, allowed[0])][:, reflected(size[1], 0, allowed[1])]
    maps = run_network(network, continued[np.newaxis])[0]
    cell, theoretical = _cell(model, layer, maps.shape[:2], at, allowed)
    name = tensor._keras_history.operation.name
    channel = int(tf.argmax(maps[cell])) if channel is None else channel
    if not 0 <= channel < maps.shape[-1]:
        raise KerassegError(f"channel {channel} of {name}: expected 0 to {maps.shape[-1] - 1}")
    place = tf.constant((*cell, channel))
    if method == "gradient":
        values = _gradient(network, scores, continued, place)[: size[0], : size[1]]
    else:
        squares = _squares(size, patch, stride)
        cover = np.random.default_rng(seed).integers(0, 256, image.shape).astype(np.float32)
        change = _changes(lambda batch: scores(batch, place), continued, cover, squares, batch_size, progress)
        values = _spread(change.reshape([len(range(0, side, stride)) for side in size]), size, stride)
    return Influence(values.astype(np.float32), at, method, name, channel, float(maps[(*cell, channel)]), theoretical)


def _tensor(model, layer):
    if layer is not None:
        return layer_map(model, layer)
    return next(iter(model.output.values())) if isinstance(model.output, dict) else model.outputs[0]


def _cell(model, layer, cells, at, allowed):
    """Row and column of the cell nearest to a place, and its theoretical receptive field."""
    geometry, tensor = Geometry(), _tensor(model, layer)
    try:
        field = geometry.receptive_field(tensor)
    except ValueError:
        # Some layers' geometry is known only once their size is.
        with without_weights():
            geometry, tensor = Geometry(), _tensor(at_size(model, allowed), layer)
            try:
                field = geometry.receptive_field(tensor)
            except ValueError:
                field = None
    try:
        scale, shift = geometry.coordinate_map(tensor)
        nearest = [round((place - shift) / scale) for place in at]
    except ValueError:
        # Maps that are not aligned with the image: in proportion.
        nearest = [(2 * place + 1) * count // (2 * side) for place, count, side in zip(at, cells, allowed, strict=True)]
    return tuple(min(max(index, 0), count - 1) for index, count in zip(nearest, cells, strict=True)), field


def _squares(size, patch: int, stride: int) -> list[tuple[slice, slice]]:
    """The squares, row by row, cut off at the image's edges."""
    sides = [
        [slice(max(0, centre - (patch - 1) // 2), min(side, centre + patch // 2 + 1)) for centre in range(0, side, stride)]
        for side in size
    ]
    return [(rows, columns) for rows in sides[0] for columns in sides[1]]


def _changes(scores, image, cover, squares, batch_size: int, progress) -> np.ndarray:
    """By how much the score changes under each square."""
    found = []
    for first in range(0, len(squares), batch_size):
        chosen = squares[first : first + batch_size]
        batch = np.repeat(image[np.newaxis], len(chosen), axis=0)
        for occluded, square in zip(batch, chosen, strict=True):
            occluded[square] = cover[square]
        found.append(scores(batch).numpy())
        if progress:
            progress(first + len(chosen), len(squares))
    # Through the same graph, so that where nothing changes the difference is 0.
    return np.abs(np.concatenate(found) - scores(image[np.newaxis]).numpy())


def _probe(model, tensor):
    """The network up to a map, and one graph that gives a value of it, for batches and images of every size."""
    known = _PROBES.setdefault(model, {})
    if id(tensor) not in known:
        network = keras.Model(model.inputs, tensor)
        known[id(tensor)] = network, _scorer(network)
    return known[id(tensor)]


def _scorer(network):
    image = network.inputs[0]
    dtype = tf.as_dtype(image.dtype)
    signature = [tf.TensorSpec((None, None, None, image.shape[-1]), tf.float32), tf.TensorSpec([3], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def scores(batch, place):
        maps = network(tf.cast(tf.round(batch) if dtype.is_integer else batch, dtype), training=False)
        return tf.cast(maps[:, place[0], place[1], place[2]], tf.float32)

    return scores


def _spread(change: np.ndarray, size, stride: int) -> np.ndarray:
    """From the squares' centres to all pixels: bilinear, beyond the last centre as there."""
    for axis, side in enumerate(size):
        centres = np.arange(0, side, stride)
        change = np.apply_along_axis(lambda line, c=centres, n=side: np.interp(np.arange(n), c, line), axis, change)
    return change


def _gradient(network, scores, image, place) -> np.ndarray:
    if tf.as_dtype(network.inputs[0].dtype).is_integer:
        raise KerassegError(f"{network.name} takes integers, which have no gradient: use method='occlusion' (--method occlusion)")
    given = tf.constant(image[np.newaxis])
    with tf.GradientTape() as tape:
        tape.watch(given)
        score = scores(given, place)
    found = tape.gradient(score, given)
    if found is None:
        raise KerassegError(f"{network.name} has no gradient: use method='occlusion' (--method occlusion)")
    return np.abs(found[0].numpy()).sum(-1)


def mean_influence(found: Sequence[Influence]) -> Influence:
    """Averages maps of several images, laid over one another with their places in one point.

    Args:
        found: Of images of any sizes.
    Returns:
        A map as large as all of them together; each pixel is the mean of the images that reach there. What it is of, and theory,
        are the first's, the score is the mean.
    Reference:
        Zhou et al. 2015, arXiv:1412.6856, §3.2.
    """
    before = [max(each.at[axis] for each in found) for axis in (0, 1)]
    behind = [max(each.values.shape[axis] - each.at[axis] for each in found) for axis in (0, 1)]
    total, count = (np.zeros([sum(pair) for pair in zip(before, behind, strict=True)]) for _ in range(2))
    for each in found:
        place = tuple(
            slice(most - own, most - own + side) for most, own, side in zip(before, each.at, each.values.shape, strict=True)
        )
        total[place] += each.values
        count[place] += 1
    values = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return found[0]._replace(
        values=values.astype(np.float32), at=tuple(before), score=float(np.mean([each.score for each in found]))
    )


def valid_field(found: Influence, threshold: float | None = None) -> ValidField:
    """Finds the pixels that count: those whose influence is larger than a share of the largest.

    Args:
        found: A map.
        threshold: The share, from 0 to below 1; `None`: that of `THRESHOLDS`.
    Returns:
        The pixels and their extent.
    Raises:
        KerassegError: If the threshold is no such share, or no pixel has an influence.
    """
    threshold = THRESHOLDS[found.method] if threshold is None else threshold
    if not 0 <= threshold < 1:
        raise KerassegError(f"threshold {threshold}: expected a share of the largest influence, from 0 to below 1, such as 0.05")
    largest = float(found.values.max())
    if not largest > 0:
        place = f"{found.at[0]},{found.at[1]}"
        raise KerassegError(f"no pixel changes channel {found.channel} of {found.layer} at {place}: choose another place or class")
    region = found.values > threshold * largest
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    size = (int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1))
    return ValidField(region, size, float(np.sqrt(region.sum())))
