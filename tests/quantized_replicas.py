"""Trains a network with simulated int8 for one step on two logical devices, and prints what each holds after it, and what the two
halves of the batch make of it by themselves. Run by test_quantization_aware.py, alone in a process: the CPU can be split only
before TensorFlow starts.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from kerasseg.backbones.quantizing import with_simulated_int8
from kerasseg.layers import Conv2D
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import Trainer, make_strategy

RATE = 0.1


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = Conv2D(6, 3, activation="relu", name="first")(image)
    return with_simulated_int8(keras.Model(image, Conv2D(4, 1, name="score")(Conv2D(6, 1, name="second")(x))))


def trained(weights, images, labels):
    """The weights after a step of plain gradient descent, each batch of the images by itself."""
    model = network()
    model.set_weights(weights)
    with tf.GradientTape() as tape:
        losses = [keras.losses.sparse_categorical_crossentropy(y, model(x), True) for x, y in zip(images, labels, strict=True)]
        loss = tf.reduce_mean(losses)
    variables = [variable.value for variable in model.trainable_variables]
    return [np.asarray(v - RATE * g) for v, g in zip(variables, tape.gradient(loss, variables), strict=True)]


def main() -> None:
    strategy = make_strategy("mirrored", replicas=2)
    generator = np.random.default_rng(0)
    images = generator.normal(0, 1, (2, 2, 9, 9, 3)).astype(np.float32)
    # The replicas' maps have ranges of their own.
    images[1] *= 0.1
    labels = generator.integers(0, 4, (2, 2, 7, 7)).astype(np.int32)
    with strategy.scope():
        model, optimizer = network(), keras.optimizers.SGD(RATE)
    start = model.get_weights()
    trainer = Trainer(model, optimizer=optimizer, loss=SegmentationCrossEntropy(), strategy=strategy)
    (step,) = trainer.train(lambda first, share: tf.data.Dataset.from_tensor_slices((images, labels)).repeat(), 1)
    values = [strategy.experimental_local_results(variable.value) for variable in model.trainable_variables]
    held = [[np.asarray(value[replica]) for value in values] for replica in range(2)]
    apart = trained(start, images, labels)
    together = trained(start, images.reshape(1, 4, 9, 9, 3), labels.reshape(1, 4, 7, 7))
    result = {"first": held[0], "second": held[1], "apart": apart, "together": together, "start": start}
    lists = {name: np.concatenate([weight.ravel() for weight in weights]).tolist() for name, weights in result.items()}
    print(json.dumps({"loss": step.loss, **lists}))


if __name__ == "__main__":
    main()
