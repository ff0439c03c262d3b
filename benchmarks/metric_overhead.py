"""What the streaming confusion matrix adds to an evaluation step, as a ratio; target: at most 2 %."""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from kerasseg.evaluation.inference import Inference, predict_with_classes
from kerasseg.metrics import confusion_matrix
from kerasseg.models import MODELS


def main(rounds: int = 30) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (360, 480, 3), dtype=np.uint8)
    label = generator.integers(0, 11, (360, 480), dtype=np.int32)
    model = MODELS["fcn8s"](11, width_multiplier=0.25, padding="same")

    def step(with_metric: bool) -> float:
        start = time.perf_counter()
        prediction, num_classes = predict_with_classes(model, image, Inference())
        if with_metric:
            confusion_matrix(label, prediction.numpy(), num_classes)
        else:
            prediction.numpy()
        return time.perf_counter() - start

    for flag in (True, False):
        step(flag), step(flag)
    pairs = [(step(True), step(False)) for _ in range(rounds)]
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    print(
        f"evaluation step with metric / without: {ratio:.4f} (target: at most 1.02), quarter-width fcn8s, 360x480, {rounds} pairs"
    )


if __name__ == "__main__":
    main()
