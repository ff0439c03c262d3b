"""Where a number that is not finite comes from, and what will go wrong before it does."""

import keras
import numpy as np
import tensorflow as tf

# As many names as fit into one line.
_NAMED = 3
# What may be left, at the end, of what moving statistics began with.
_LEFT = 0.1


def notices(model: keras.Model, passes: int) -> list[str]:
    """Finds what makes a new training likely to disappoint, although nothing is wrong with it.

    Args:
        model: The network, its layers frozen as they shall be.
        passes: Forward passes of the training, each of which moves the statistics.
    Returns:
        One line each: moving statistics of batch normalization that are too slow for so few steps, so that the network, good while
        it trains, predicts by statistics that are not its own.
    """
    kept = [
        layer.momentum**passes
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    left = max(kept, default=0.0)
    if left <= _LEFT:
        return []
    return [
        f"after {passes} passes the moving statistics of batch normalization, by which it predicts, will still be {100 * left:.0f} "
        "% what they began with: train longer, lower their momentum (--arguments batch_norm_momentum=0.9), or --freeze-batch-norm"
    ]


def find_non_finite(model: keras.Model, images) -> str | None:
    """Looks for the first value that is not finite: in the weights, the images, then from layer to layer.

    The layers compute as in training, by the batch's own statistics; the model stays as it is.

    Args:
        model: The network.
        images: A batch, as the network takes it.
    Returns:
        Where it stands, as words that fit into a sentence; `None` if everything up to the logits is finite.
    """
    bad = _layers_with_bad_weights(model)
    if bad:
        return "the weights of " + _names(bad)
    if not all(np.isfinite(np.asarray(image)).all() for image in tf.nest.flatten(images)):
        return "the images"
    return _first_bad_output(model, images)


def _layers_with_bad_weights(model) -> list[str]:
    found = {}
    for variable in model.variables:
        value = variable.value
        if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
            found[variable.path.rpartition("/")[0]] = None
    return list(found)


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more layer{'s' if more > 1 else ''}" if more > 0 else "")


def _first_bad_output(model, images) -> str | None:
    """Runs a copy of the graph that ends, at every operation, in whether what came out is finite."""
    operations, flags = [], []
    for operation, outputs in _applications(model):
        finite = [keras.ops.all(keras.ops.isfinite(x)) for x in outputs if keras.backend.is_float_dtype(x.dtype)]
        operations += [operation] * len(finite)
        flags += finite
    if not flags:
        return None
    # Batch normalization moves its statistics, and dropout its random state.
    before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.non_trainable_variables]
    results = keras.Model(model.input, flags)(images, training=True)
    for variable, value in before:
        variable.assign(value)
    for operation, finite in zip(operations, tf.nest.flatten(results), strict=True):
        if not bool(finite):
            return f"the output of {operation.name} ({type(operation).__name__})"
    return None


def _applications(model):
    """Yields each operation of a functional model with what it gives, in the order of computation.

    One layer may stand at several places, which its own attribute `output` cannot tell apart.
    """
    by_depth = getattr(model, "_nodes_by_depth", {})
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node.operation, node.outputs
