"""Dropout that does not depend on how many replicas share a batch."""

import keras
import tensorflow as tf

# TensorFlow's number for it.
_PHILOX = 1


@keras.saving.register_keras_serializable("kerasseg")
class Dropout(keras.layers.Dropout):
    """Keras' Dropout, whose draw for an example is the same whichever replica it is on.

    Under Keras' own, the replicas draw alike: the examples of one replica lose the same values as those of the next. Here each
    replica takes the next part of the draw that one device would make for the whole batch, if all replicas have images of one
    size; exactly that part where its examples' values divide by four, as many as the generator gives at once. Arguments and
    configuration are Keras'; `noise_shape` goes Keras' own way.

    Reference:
        Srivastava et al. 2014; the generator is Philox: Salmon et al. 2011.
    """

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        if self.noise_shape is not None or self.rate == 1:
            return super().call(inputs, training=training)
        kept = _uniform(tf.shape(inputs), self.seed_generator.next()) >= self.rate
        return tf.where(kept, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros((), inputs.dtype))


def _uniform(shape, seed):
    """Draws this replica's part, float32 in [0, 1)."""
    key, draw = tf.unstack(tf.cast(seed, tf.uint64))
    replica = tf.distribute.get_replica_context()
    number = replica.replica_id_in_sync_group if replica is not None and replica.num_replicas_in_sync > 1 else 0
    # One count of the generator gives four values; draws of other numbers lie 2⁶⁴ counts apart.
    counts = (tf.cast(tf.reduce_prod(shape), tf.uint64) + 3) // 4
    counter = tf.stack([tf.cast(number, tf.uint64) * counts, draw])
    return tf.raw_ops.StatelessRandomUniformV2(shape=shape, key=key[None], counter=counter, alg=_PHILOX)
