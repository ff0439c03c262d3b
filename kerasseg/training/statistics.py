"""The statistics of batch normalization, made anew by forward passes."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError, first_line


def recompute_statistics(
    model: keras.Model, batches: Iterable, passes: int, report: Callable[[int, int], None] | None = None
) -> None:
    """Gives every batch normalization the mean of the means, and of the variances, of its inputs over some batches.

    Moving statistics follow the weights with a delay, and forget. These are of the weights as they are: each pass normalises by
    the batch's own statistics, in every layer, frozen ones included, and drops nothing out. Weights, optimizer and random state
    stay.

    Args:
        model: A network with batch normalization.
        batches: Images, `(B, H, W, C)`, or tuples that begin with them, such as `kerasseg.data.training_batches` gives.
        passes: How many of them to use; the authors of DeconvNet use 501 of 28 images.
        report: Called with the number of passes done and of all of them, after each.
    Raises:
        KerassegError: If the network has no batch normalization or does not take images of such a size, `passes` is less than 1,
            there are fewer batches, or a statistic is not finite; the network is then as before.
    Reference:
        HyeonwooNoh/DeconvNet, BN_make_INFERENCE_script.py: variances are those of the batch, divided by its number of values.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        raise KerassegError(f"{model.name} has no batch normalization: there are no statistics to recompute")
    if len(model.inputs) > 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise KerassegError(f"{model.name} has the inputs {names}: statistics are recomputed of networks of one image")
    if passes < 1:
        raise KerassegError(f"recompute_statistics received passes={passes}: expected 1 or more, e.g. 501")
    statistics = [weight for norm in norms for weight in (norm.moving_mean, norm.moving_variance)]
    before = [np.array(weight) for weight in statistics]
    means, complete = before, False
    try:
        with _statistics_of_each_batch(model, norms):
            sums = _sums(model, statistics, iter(batches), passes, report)
        means = [total / passes for total in sums]
        complete = all(np.isfinite(mean).all() for mean in means)
    finally:
        for weight, value in zip(statistics, means if complete else before, strict=True):
            weight.assign(value.astype(before[0].dtype))
    if not complete:
        names = [weight.path for weight, mean in zip(statistics, means, strict=True) if not np.isfinite(mean).all()]
        raise KerassegError(
            f"{names[0]} of {model.name} is not finite ({len(names)} of {len(means)} statistics): check the weights"
        )


def _sums(model, statistics, batches, passes: int, report) -> list[np.ndarray]:
    """The sums of the statistics over all passes, in float64."""
    # Traced while the layers are as below; a new function each time, for it would remember.
    forward = tf.function(lambda x: model(x, training=True), reduce_retracing=True)
    sums, sizes = [np.zeros(weight.shape) for weight in statistics], set()
    for done in range(1, passes + 1):
        batch = next(batches, None)
        if batch is None:
            raise KerassegError(f"received {done - 1} batches for {passes} passes: pass more of them, or fewer passes")
        images = tf.convert_to_tensor(batch[0] if isinstance(batch, tuple | list) else batch)
        if images.shape not in sizes:
            _check_size(model, images.shape)
            sizes.add(images.shape)
        forward(images)
        for total, weight in zip(sums, statistics, strict=True):
            total += np.asarray(weight, "float64")
        if report is not None:
            report(done, passes)
    return sums


def _check_size(model: keras.Model, shape) -> None:
    """Refuses images that the network does not take, before it is traced: what it raises then are many lines."""
    try:
        model.compute_output_shape(tuple(shape))
    except (KerassegError, ValueError) as error:
        raise KerassegError(
            f"{model.name} cannot take images of {shape[1]}x{shape[2]} pixels: {first_line(error)}; tools/recompute_batch_norm.py "
            "has --resize and --crop-size to make them others"
        ) from error


@contextmanager
def _statistics_of_each_batch(model, norms):
    """Lets moving statistics keep nothing of what they were, and dropout drop nothing."""
    dropouts = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout)]
    changes = [(norm, "momentum", 0.0) for norm in norms] + [(norm, "trainable", True) for norm in norms]
    changes += [(dropout, "rate", 0.0) for dropout in dropouts]
    before = [(layer, name, getattr(layer, name)) for layer, name, _ in changes]
    try:
        for layer, name, value in changes:
            setattr(layer, name, value)
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
