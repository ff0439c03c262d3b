"""Batch normalisation as every network here uses it."""

from functools import partial

import keras
import tensorflow as tf

_CELLS = (0, 1, 2)
# Below, what rounding leaves of a variance near zero decides, and XLA's fused kernel rounds below zero: NaN.
_SMALLEST_FUSED_EPSILON = 1e-7


@keras.saving.register_keras_serializable("kerasseg")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' BatchNormalization by TensorFlow's fused kernels.

    Arguments, configuration, weights and numbers are Keras': the fused kernel's variance is that of a sample (divided by n − 1),
    the moving one here that of the batch (divided by n). Statistics are float32 at any precision. `trainable=False` normalises
    by the moving statistics, also in training, and leaves them as they are. With `synchronized=True` under several replicas, the
    statistics and their gradients are those of all replicas' examples together, so that neither depends on how many replicas
    there are; the layer must not stand inside a condition or loop of the replica's own then, where TensorFlow cannot reduce.
    Masks, renormalisation, axes but the last of four, and float64 go Keras' own way.

    Reference:
        Ioffe & Szegedy 2015, Algorithm 1 and the gradients of §3.
    """

    def call(self, inputs, training=None, mask=None):
        if not self._can_fuse(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        gamma = tf.cast(self.gamma, "float32") if self.scale else tf.ones(inputs.shape[-1:])
        beta = tf.cast(self.beta, "float32") if self.center else tf.zeros(inputs.shape[-1:])
        if not (training and self.trainable):
            mean, variance = (tf.cast(moving, "float32") for moving in (self.moving_mean, self.moving_variance))
            normalize = _with_gradient if training else _by_given
            return normalize(inputs, gamma, beta, mean, variance, self.epsilon)
        replicas = tf.distribute.get_replica_context() if self.synchronized else None
        if replicas is not None and replicas.num_replicas_in_sync > 1:
            add_up = partial(replicas.all_reduce, "SUM")
            outputs, mean, variance = _by_all(inputs, gamma, beta, self.epsilon, add_up)
        elif self.epsilon < _SMALLEST_FUSED_EPSILON:
            outputs, mean, variance = _by_all(inputs, gamma, beta, self.epsilon, tf.identity)
        else:
            outputs, mean, variance = _by_batch(inputs, gamma, beta, self.epsilon)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(tf.cast(moving, "float32") * self.momentum + value * (1.0 - self.momentum))
        return outputs

    def _can_fuse(self, inputs, mask) -> bool:
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype in (tf.float32, tf.bfloat16, tf.float16)
            and mask is None
            and not self.renorm
        )


def _by_given(x, gamma, beta, mean, variance, epsilon: float):
    """Normalises by statistics that do not depend on x."""
    arguments = {"scale": gamma, "offset": beta, "mean": mean, "variance": variance}
    # The raw operation: tf.compat.v1.nn.fused_batch_norm raises an epsilon of 1e-5.
    return tf.raw_ops.FusedBatchNormV3(x=x, **arguments, epsilon=epsilon, is_training=False).y


def _count(x):
    return tf.cast(tf.reduce_prod(tf.shape(x)[:-1]), "float32")


def _by_batch(x, gamma, beta, epsilon: float):
    """Normalises by the statistics of x; gives them too."""
    empty = {"mean": [], "variance": []}
    result = tf.raw_ops.FusedBatchNormV3(x=x, scale=gamma, offset=beta, **empty, epsilon=epsilon, is_training=True)
    count = _count(x)
    return result.y, result.batch_mean, result.batch_variance * ((count - 1) / count)


def _by_all(x, gamma, beta, epsilon: float, add_up):
    """Normalises by the statistics of every x whose sums `add_up` adds to this one's; gives them too."""
    values = tf.cast(tf.stop_gradient(x), "float32")
    total = add_up(tf.concat([tf.reduce_sum(values, _CELLS), [_count(x)]], axis=0))
    mean, count = total[:-1] / total[-1], total[-1]

    def average(sums):
        return add_up(sums) / count

    # Not E[x²] − E[x]², which cancels where the mean is large.
    variance = average(tf.reduce_sum(tf.math.squared_difference(values, mean), _CELLS))
    return _with_gradient(x, gamma, beta, mean, variance, epsilon, average), mean, variance


def _with_gradient(x, gamma, beta, mean, variance, epsilon: float, average=None):
    """Normalises by given statistics, which are those of all replicas' x if `average` says how to average over its cells.

    The kernel's own gradient knows only statistics that do not depend on x, and sums up what gamma and beta get even where
    nobody asks, as in a frozen layer.
    """

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        def gradient(dy):
            dy, deviation = tf.cast(dy, "float32"), tf.math.rsqrt(variance + epsilon)
            normalized = (tf.cast(x, "float32") - mean) * deviation
            to_gamma, to_beta = tf.reduce_sum(dy * normalized, _CELLS), tf.reduce_sum(dy, _CELLS)
            if average is not None:
                # What x does to the statistics reaches the outputs, and so the loss, of every replica.
                along, level = tf.unstack(average(tf.stack([to_gamma, to_beta])))
                dy -= normalized * along + level
            return tf.cast(gamma * deviation * dy, x.dtype), to_gamma, to_beta

        return _by_given(x, gamma, beta, mean, variance, epsilon), gradient

    return normalize(x, gamma, beta)
