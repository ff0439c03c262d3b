"""Trains on one device and on two logical ones, and prints both: `python two_replicas.py`. Run by test_training.py.

Alone in its process, because the CPU can be split only before TensorFlow starts.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.training import CaffeSGD, Trainer, make_strategy

STEPS, BATCH, SIZE = 4, 4, (32, 32)


def batches():
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (STEPS, BATCH, *SIZE, 3)).astype(np.float32)
    labels = generator.integers(0, 5, (STEPS, BATCH, *SIZE)).astype(np.int32)
    for position in range(BATCH):
        # The second replica has few labelled pixels, and in one step none.
        labels[:, position, 8 * (4 - position) :] = 255
    labels[1, 2:] = 255
    return images, labels


def feed(start, slices):
    pairs = [array[start:].reshape(-1, BATCH // slices, *array.shape[2:]) for array in batches()]
    return tf.data.Dataset.from_tensor_slices(tuple(pairs))


def train(strategy, normalization):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = MODELS["fcn8s"](5, width_multiplier=1 / 16, padding="same", preprocessing="torch", dropout_rate=0.0)
        optimizer = CaffeSGD(0.05 if normalization == "valid" else 2e-5, 0.9, 1e-3)
    generator = np.random.default_rng(1)
    for weight in model.trainable_variables:
        if "score" in weight.path:
            weight.assign(generator.normal(0, 0.1, weight.shape))
    trainer = Trainer(model, optimizer=optimizer, loss=SegmentationCrossEntropy(normalization), strategy=strategy)
    losses = [step.loss for step in trainer.train(feed, STEPS)]
    return losses, [np.asarray(weight) for weight in model.get_weights()]


if __name__ == "__main__":
    both = make_strategy("mirrored", replicas=2)
    result = {"replicas": both.num_replicas_in_sync}
    for normalization in ("valid", "sum"):
        one, two = train(make_strategy("one"), normalization), train(both, normalization)
        difference = max(float(np.abs(a - b).max() / (np.abs(a).max() + 1e-9)) for a, b in zip(one[1], two[1], strict=True))
        result[normalization] = {"one": one[0], "two": two[0], "weights": difference}
    print(json.dumps(result))
