"""A toy network, toy data, and their gradients by hand: what the tests of the trainer share."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data import Share
from kerasseg.layers import BatchNormalization, Dropout
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, Trainer

SIZE = (5, 7)


def network(heads=("logits",), regularizer=None, classes=3, batch_norm=False):
    """One layer, several heads; the weights are the same in every call."""
    keras.utils.set_random_seed(3)
    inputs = image = keras.Input((*SIZE, 3))
    if batch_norm:
        image = Dropout(0.2, seed=1)(BatchNormalization(momentum=0.5, name="bn")(image))
    outputs = {
        head: keras.layers.Conv2D(classes, 1, name=head, kernel_regularizer=regularizer, bias_initializer="normal")(image)
        for head in heads
    }
    return keras.Model(inputs, outputs["logits"] if heads == ("logits",) else outputs)


def examples(count, seed=0, classes=3):
    """Images in 0–1 and labels, of which every image has another number to ignore."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, *SIZE, 3), np.float32)
    labels = generator.integers(0, classes, (count, *SIZE)).astype(np.int32)
    for index in range(count):
        labels[index].flat[: 4 * index] = 255
    return images, labels


def feed_of(images, labels, batch):
    def feed(start, share):
        assert share == Share()
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch, drop_remainder=True).repeat().skip(start)

    return feed


def softmax_gradient(weights, images, labels, normalization):
    """Loss and gradients of a 1×1 convolution under the softmax loss, by hand in float64."""
    kernel, bias = (np.asarray(weight, np.float64) for weight in weights)
    kernel, x, y = kernel.reshape(3, -1), images.reshape(-1, 3).astype(np.float64), labels.reshape(-1)
    x, y = x[y != 255], y[y != 255]
    scores = x @ kernel + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).sum()
    p[np.arange(len(y)), y] -= 1
    share = len(y) if normalization == "valid" else 1
    return loss / share, [(x.T @ p).reshape(1, 1, 3, -1) / share, p.sum(0) / share]


def make_trainer(model, rate, normalization="valid", momentum=0.0, loss=None, **arguments):
    loss = loss or SegmentationCrossEntropy(normalization)
    return Trainer(model, optimizer=CaffeSGD(rate, momentum), loss=loss, **arguments)


def train(model, rate, images, labels, batch, steps, normalization="valid", **arguments):
    trainer = make_trainer(model, rate, normalization, **arguments)
    return list(trainer.train(feed_of(images, labels, batch), steps))
