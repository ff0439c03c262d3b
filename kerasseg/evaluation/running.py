"""Running a network on a batch of pictures of any size, traced once."""

import weakref

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError

# A function holds its traces, and through them much memory: it must go when its model goes.
_RUNNERS: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
# The same for models on several devices, of which each computes a part of the batch.
_SPLITTERS: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
# Networks of several outputs → key → the network with that output alone; made once, since a new one would be traced anew.
_SELECTED: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def selected_output(model, name: str | None):
    """Gives a network with one of its outputs alone.

    Args:
        model: The network.
        name: Key of the output; `None`: the first.
    Returns:
        A network of the same layers; the model itself, of whose outputs the first counts everywhere, if it is the first.
    Raises:
        KerassegError: If it has no such output.
    """
    if name is None:
        return model
    outputs = model.output if isinstance(model.output, dict) else {}
    if name not in outputs:
        known = f"expected one of {', '.join(outputs)}" if outputs else "it has one output without a name, so leave --output out"
        raise KerassegError(f"output '{name}' is none of {model.name}: {known}")
    if name == next(iter(outputs)):
        return model
    made = _SELECTED.setdefault(model, {})
    if name not in made:
        with model.distribute_strategy.scope():
            made[name] = keras.Model(model.inputs, outputs[name], name=model.name)
    return made[name]


def run_network(model, batch, where: str = "") -> tf.Tensor:
    """Computes a network's first output; of a model made under a `tf.distribute.MirroredStrategy`, on all its devices.

    Args:
        model: The network.
        batch: Shape `(B, H, W, C)`, float, RGB 0–255 as a rule; rounded for a network of integers. Of a network of several inputs
            they stand one after the other, as `network_inputs` lists them.
        where: What these pictures are, for the message: put behind their size.
    Returns:
        Shape `(B, h, w, C)`, whatever size and meaning the network gives its output.
    Raises:
        KerassegError: If the network cannot take pictures of that size.
    """
    strategy = model.distribute_strategy
    # Of other strategies a worker has its own devices, or shapes must be known: there the model's first device computes all.
    several = isinstance(strategy, tf.distribute.MirroredStrategy) and strategy.num_replicas_in_sync > 1 and len(batch) > 1
    return _run(_splitter if several else _runner, model, batch, where)


def run_outputs(model, batch) -> list[tf.Tensor]:
    """Computes all outputs of a network, for once: it is traced each time.

    Args:
        model: Network with a list of outputs.
        batch: As for `run_network`.
    Returns:
        The outputs.
    Raises:
        KerassegError: As `run_network`.
    """
    found = _run(lambda network: _make_runner(network, first_only=False), model, batch, "")
    # Keras gives a list of one as its only element.
    return found if isinstance(found, list) else [found]


def _run(runner, model, batch, where):
    batch = tf.convert_to_tensor(batch, tf.float32)
    check_shape(model, tuple(batch.shape[1:]), f"image{where}")
    try:
        return runner(model)(batch)
    except (tf.errors.InvalidArgumentError, tf.errors.AbortedError) as error:
        # Which networks are too deep for so small an image shows in some layer inside.
        raise KerassegError(
            f"{model.name} cannot take an image of {batch.shape[1]}x{batch.shape[2]} pixels{where}: {_reason(error)}; "
            "use larger images or scales"
        ) from error


def resized(maps, size, *, antialias: bool = False) -> tf.Tensor:
    """Resizes one map, or several of one size, bilinearly with half-pixel centres.

    Args:
        maps: Shape `(h, w, C)` or `(B, h, w, C)`.
        size: `(height, width)`.
        antialias: Whether to widen the filter where it shrinks, as PIL and MATLAB do.
    Returns:
        Shape `(height, width, C)`, of several `(B, height, width, C)`, float32; bit for bit the same where the size is.
    """
    return tf.image.resize(tf.convert_to_tensor(maps), size, method="bilinear", antialias=antialias)


def _runner(model):
    """The one tf.function of a model; its signature leaves sizes open, so that no image size traces it again."""
    if model not in _RUNNERS:
        _RUNNERS[model] = _make_runner(model)
    return _RUNNERS[model]


def _splitter(model):
    """The same for a batch that is split over the model's devices."""
    if model not in _SPLITTERS:
        _SPLITTERS[model] = _make_splitter(model)
    return _SPLITTERS[model]


def _make_runner(model, *, first_only=True):
    call = _caller(model, first_only)
    return _traced(model, call)


def _make_splitter(model):
    strategy, call = model.distribute_strategy, _caller(model, True)
    count = strategy.num_replicas_in_sync

    def part(batch):
        # Parts are equal: the last pictures may be run more than once, which costs nothing, since another device waits.
        total = tf.shape(batch)[0]
        share = -(-total // count)
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * share
        return call(tf.gather(batch, tf.minimum(tf.range(first, first + share), total - 1)))

    def run(batch):
        parts = strategy.experimental_local_results(strategy.run(part, args=(batch,)))
        return tf.concat(parts, axis=0)[: tf.shape(batch)[0]]

    return _traced(model, run)


def _traced(model, function):
    channels = [tensor.shape[-1] for tensor in model.inputs]
    signature = [tf.TensorSpec((None, None, None, None if None in channels else sum(channels)), tf.float32)]
    # Autograph would bury the one line of an error in a traceback of another type.
    return tf.function(function, input_signature=signature, autograph=False)


def _caller(model, first_only: bool):
    # A weak reference: a cache value that held its own key would keep both for ever.
    reference = weakref.ref(model)

    def call(batch):
        network = reference()
        dtype = tf.as_dtype(network.inputs[0].dtype)
        image = tf.cast(tf.round(batch) if dtype.is_integer else batch, dtype)
        logits = network(image if len(network.inputs) == 1 else split_inputs(network, image), training=False)
        return logits[next(iter(logits))] if first_only and isinstance(logits, dict) else logits

    return call


def network_inputs(model) -> list:
    """Lists a network's inputs in the order in which an array has them: as it was built, which Keras' own list, by name, is not.

    Args:
        model: The network.
    Returns:
        Its symbolic inputs.
    """
    return list(model.input.values()) if isinstance(model.input, dict) else model.inputs


def split_inputs(model, image) -> dict:
    """Cuts an array into what a network of several inputs takes.

    Args:
        model: The network.
        image: Shape `(…, C)`, the inputs one after the other, as `network_inputs` lists them.
    Returns:
        Name of the input → its channels.
    """
    found, place = {}, 0
    for tensor in network_inputs(model):
        found[tensor.name] = image[..., place : place + tensor.shape[-1]]
        place += tensor.shape[-1]
    return found


def check_shape(model, shape: tuple[int, int, int], what: str) -> None:
    """Refuses what would otherwise end in an error of TensorFlow's about some layer inside.

    Args:
        model: The network.
        shape: `(h, w, C)` of the picture it is to get.
        what: How the message calls it.
    Raises:
        KerassegError: If the network has an input of another shape, or several that do not add up to that many channels.
    """
    expected = tuple(model.inputs[0].shape[1:])
    if len(model.inputs) != 1:
        channels = {tensor.name: tensor.shape[-1] for tensor in network_inputs(model)}
        if None in channels.values() or sum(channels.values()) != shape[2]:
            listed = ", ".join(f"{name} ({count})" for name, count in channels.items())
            raise KerassegError(
                f"the network has the inputs {listed}, received an image of {shape[2]} channels: expected an array (height, width, "
                f"{sum(count or 0 for count in channels.values())}) of them one after the other, as data with those inputs give it"
            )
    elif len(expected) != 3 or expected[2] not in (shape[2], None):
        more = "" if len(expected) != 3 or expected[2] == 3 else f": expected an array (height, width, {expected[2]})"
        raise KerassegError(f"the network takes input of shape {expected}, received an image of shape {shape}{more}")
    if any(fixed not in (None, given) for fixed, given in zip(expected[:2], shape[:2], strict=True)):
        raise KerassegError(
            f"{what} is {shape[0]}x{shape[1]}, but the network takes only {expected[0]}x{expected[1]}: resize the image, "
            "use windows of that size, or build (or export) the network for images of any size"
        )


def _reason(error: tf.errors.OpError) -> str:
    """What the operation said; TensorFlow puts a traceback before it."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Detected at", "Graph execution", "File", "<"))), lines[0])[:200]


def reflected(length: int, begin: int, end: int) -> np.ndarray:
    """Gives the cells of an axis that is continued by reflection about its outermost cells, which are not repeated.

    Args:
        length: Cells of the axis.
        begin: First position, possibly before 0.
        end: One behind the last position, possibly behind the axis. Farther than the axis is long, it goes to and fro.
    Returns:
        Shape `(end - begin,)`, indices into the axis. OpenCV calls it BORDER_REFLECT_101.
    """
    period = max(1, 2 * (length - 1))
    position = np.abs(np.arange(begin, end)) % period
    return np.minimum(position, period - position) if length > 1 else np.zeros(end - begin, int)
