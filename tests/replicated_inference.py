"""Runs a network on batches on one device and on two, and prints how far apart they are. Run by test_fusion.py, alone in a process:
the CPU can be split only before TensorFlow starts."""

import json

import keras
import numpy as np
import tensorflow as tf
from inference_helpers import make_model, photograph

import kerasseg  # noqa: F401
from kerasseg.evaluation import Inference, predict_batch, running
from kerasseg.training import make_strategy

SIZES = []


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
    """Notes how many pictures each device gets."""

    def call(self, x):
        tf.py_function(lambda count: SIZES.append(int(count)), [tf.shape(x)[0]], [])
        return x


def main() -> None:
    strategy = make_strategy("mirrored", replicas=2)
    alone = make_model()
    with strategy.scope():
        inputs = keras.Input((None, None, 3))
        outputs = keras.models.clone_model(alone)(Counting()(inputs))
        model = keras.Model(inputs, outputs)
    model.set_weights(alone.get_weights())
    pictures = [photograph(9, 12, seed) for seed in range(5)]
    differences, runs = {}, {}
    for count in (1, 2, 3, 5):
        SIZES.clear()
        expected = running.run_network(alone, np.stack(pictures[:count]).astype(np.float32)).numpy()
        found = running.run_network(model, np.stack(pictures[:count]).astype(np.float32)).numpy()
        runs[count], differences[count] = list(SIZES), float(np.abs(found - expected).max())
    several = [predict_batch(each, pictures, Inference(), confidence=True) for each in (alone, model)]
    differences["batch"] = max(float(np.abs(a.confidence - b.confidence).max()) for a, b in zip(*several, strict=True))
    traces = running._SPLITTERS[model].experimental_get_tracing_count()
    spread = float(np.ptp(expected, axis=(0, 1, 2)).max())
    print(
        json.dumps(
            {
                "replicas": strategy.num_replicas_in_sync,
                "traces": traces,
                "differences": differences,
                "runs": runs,
                "spread": spread,
            }
        )
    )


if __name__ == "__main__":
    main()
