"""Trains a small network on one device or on several, and prints losses and weights. Run by test_replicas.py, alone in a process:
the CPU can be split only before TensorFlow starts, and a cluster is joined once.

    python replicas.py one         one device
    python replicas.py 2           that many logical devices
    python replicas.py workers     one of the workers of TF_CONFIG
"""

import json
import sys
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from kerasseg.layers import BatchNormalization, Conv2D, Dropout
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, Trainer, make_strategy

STEPS, BATCH, PASSES, SIZE = 20, 4, 2, (12, 16)
# Normalisation of the loss, or two heads (and two inputs) with class weights and hard pixels → rate at which these data train, norm
# to which gradients are clipped (they do reach it).
SETTINGS = {"valid": (0.5, 0.2), "sum": (5e-4, 200.0), "heads": (0.3, 0.3)}


def batches():
    """Two passes a step; later replicas have fewer labelled pixels, and in one pass the second half has none."""
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 1, (STEPS * PASSES, BATCH, *SIZE, 3)).astype(np.float32)
    labels = generator.integers(0, 5, (STEPS * PASSES, BATCH, *SIZE)).astype(np.int32)
    for position in range(BATCH):
        labels[:, position, 3 * (BATCH - position) :] = 255
    labels[2, BATCH // 2 :] = 255
    return images, labels


def feed(start, share, heads=False):
    def cut(array):
        parts = array[start:].reshape(-1, share.slices, BATCH // share.slices, *array.shape[2:])
        return parts[:, share.first : share.first + share.count].reshape(-1, *parts.shape[2:])

    images, labels = (cut(array) for array in batches())
    if heads:
        images, labels = {"b": images[..., :2], "a": images[..., 2:]}, {"one": labels, "two": labels // 2}
    return tf.data.Dataset.from_tensor_slices((images, labels))


def network(heads=False):
    # Not in the order of the alphabet.
    inputs = {name: keras.Input((None, None, channels), name=name) for name, channels in (("b", 2), ("a", 1))}
    image = keras.layers.concatenate(list(inputs.values())) if heads else keras.Input((None, None, 3))
    x = Conv2D(8, 3, padding="same", dilation_rate=2, name="conv")(image)
    x = BatchNormalization(momentum=0.8, synchronized=True, name="conv_bn")(x)
    x = Dropout(0.3, seed=5)(keras.layers.ReLU()(x))
    outputs = {name: Conv2D(5, 1, name=name)(x) for name in ("one", "two")}
    return keras.Model(inputs, outputs) if heads else keras.Model(image, outputs["one"])


def loss_of(normalization):
    if normalization != "heads":
        return SegmentationCrossEntropy(normalization)
    weighted = SegmentationCrossEntropy(class_weights=(1, 2, 0.5, 1, 1))
    # The 255 // 2 of ignored pixels.
    return {"one": weighted, "two": SegmentationCrossEntropy(ignore_label=127, hard_pixel_share=0.6)}


def train(strategy, normalization, steps_per_call=1):
    keras.utils.set_random_seed(0)
    heads, (rate, clip_norm) = normalization == "heads", SETTINGS[normalization]
    with strategy.scope():
        model, optimizer = network(heads), CaffeSGD(rate, 0.9, 1e-3, {".*/bias": (2.0, 0.0)})
    trainer = Trainer(
        model,
        optimizer=optimizer,
        loss=loss_of(normalization),
        loss_weights={"two": 0.5} if heads else None,
        strategy=strategy,
        accumulation=PASSES,
        clip_norm=clip_norm,
        steps_per_call=steps_per_call,
    )
    losses = [step.loss for step in trainer.train(partial(feed, heads=heads), STEPS)]
    return {"losses": losses, "weights": [np.asarray(weight).tolist() for weight in model.get_weights()]}


def main(kind: str) -> None:
    if kind in ("one", "workers"):
        strategy = make_strategy({"workers": "multiworker"}.get(kind, kind), join_timeout=60)
    else:
        strategy = make_strategy("mirrored", replicas=int(kind))
    result = {"replicas": strategy.num_replicas_in_sync}
    for normalization, steps_per_call in (("valid", 1), ("sum", 7), ("heads", 3)):
        result[normalization] = train(strategy, normalization, steps_per_call)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
