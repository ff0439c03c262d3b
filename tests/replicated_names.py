"""Trains a network of two inputs and two heads on one device and on two, and prints how far apart the weights are. Run by
test_inputs.py, alone in a process: the CPU can be split only before TensorFlow starts."""

import json

import keras
import numpy as np

from kerasseg.data import DataSet, Example, RandomCrop, training_batches
from kerasseg.labels import generic_table
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training import CaffeSGD, Trainer, make_strategy


class Noise(DataSet):
    """Random images of two inputs with two label maps, each with another number of pixels to ignore."""

    inputs, channels = {"b": 2, "a": 1}, 3

    def __init__(self):
        self.heads = {"y": generic_table(["0", "1", "2"]), "x": generic_table(["0", "1"])}
        super().__init__(self.heads["y"], map(str, range(8)), (0.0,) * 3)

    def read(self, index):
        generator = np.random.default_rng(index)
        label = generator.integers(0, (3, 2), (5, 7, 2)).astype(np.int32)
        label[: index // 2, :, 0], label[:, :index, 1] = 255, 255
        return Example(generator.random((5, 7, 3), np.float32), label, str(index), None)


def network():
    keras.utils.set_random_seed(3)
    inputs = {name: keras.Input((None, None, channels), name=name) for name, channels in Noise.inputs.items()}
    x = keras.layers.concatenate([inputs["b"], keras.layers.Rescaling(3.0)(inputs["a"])])
    return keras.Model(
        inputs, {name: keras.layers.Conv2D(count, 3, padding="same", name=name)(x) for name, count in (("y", 3), ("x", 2))}
    )


def trained(strategy):
    with strategy.scope():
        model, optimizer = network(), CaffeSGD(0.5, 0.9)
    trainer = Trainer(
        model,
        optimizer=optimizer,
        loss=SegmentationCrossEntropy(),
        loss_weights={"x": 0.5},
        strategy=strategy,
        accumulation=2,
    )

    def feed(start, share):
        # Of one size, so that those of the logits are found out beforehand.
        return training_batches(Noise(), 4, transforms=[RandomCrop((5, 6))], seed=1, start=start, share=share)

    list(trainer.train(feed, 3))
    return model.get_weights()


def main() -> None:
    two = make_strategy("mirrored", replicas=2)
    first, one, other = network().get_weights(), trained(make_strategy("one")), trained(two)

    def apart(these, those):
        return max(float(np.abs(a - b).max()) for a, b in zip(these, those, strict=True))

    print(json.dumps({"replicas": two.num_replicas_in_sync, "difference": apart(one, other), "moved": apart(one, first)}))


if __name__ == "__main__":
    main()
