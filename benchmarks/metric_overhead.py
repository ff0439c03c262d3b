"""What scores add to an evaluation step, as ratios: confusion matrix at most 2 %, boundary metrics at most the network again."""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image

from kerasseg.evaluation.inference import Inference, predict_with_classes
from kerasseg.metrics import boundary_f, boundary_region, calibration_counts, confusion_matrix, trimap_matrices
from kerasseg.models import MODELS

CLASSES, SIZE = 11, (360, 480)


def label_map(generator) -> np.ndarray:
    """A map with outlines as long as a street's: 30 by 40 random classes, enlarged smoothly."""
    scores = generator.random((CLASSES, 15, 20)).astype(np.float32)
    enlarged = [np.asarray(Image.fromarray(one).resize(SIZE[::-1], Image.Resampling.BICUBIC)) for one in scores]
    return np.argmax(enlarged, 0).astype(np.int32)


def main(rounds: int = 30) -> None:
    generator = np.random.default_rng(0)
    image, label = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8), label_map(generator)
    model = MODELS["fcn8s"](CLASSES, width_multiplier=0.25, padding="same")

    def network(confidence=False):
        return predict_with_classes(model, image, Inference(), confidence=confidence)

    def counted():
        confusion_matrix(label, network().classes, CLASSES)

    def calibrated():
        found = network(confidence=True)
        calibration_counts(label, found.confidence, found.classes)

    other = label_map(generator)
    ways = {
        "network alone": network,
        "network + confusion matrix": counted,
        "network + calibration": calibrated,
        "region of 7 px": lambda: boundary_region(label, 7),
        "trimap 1,2,4,8,16,32": lambda: trimap_matrices(label, other, (1, 2, 4, 8, 16, 32), CLASSES),
        "trimap 1:40": lambda: trimap_matrices(label, other, range(1, 41), CLASSES),
        "trimap 1:40, void": lambda: trimap_matrices(label, other, range(1, 41), CLASSES, boundary="void"),
        "boundary F": lambda: boundary_f(label, other, CLASSES),
    }
    seconds = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn > 1:
                seconds[name].append(time.perf_counter() - start)
    alone = statistics.median(seconds["network alone"])
    print(f"quarter-width fcn8s, {SIZE[0]}x{SIZE[1]}, {rounds} rounds taking turns; network alone {1000 * alone:.1f} ms")
    for name, values in seconds.items():
        print(
            f"{name:<28} {1000 * statistics.median(values):8.2f} ms  {statistics.median(values) / alone:.4f} of the network alone"
        )
    print("targets: network + confusion matrix at most 1.02; each boundary metric at most 1")


if __name__ == "__main__":
    main()
