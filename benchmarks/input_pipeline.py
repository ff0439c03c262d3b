"""What share of a training step is spent waiting for the input pipeline; target: at most 3 %.

Told beside it is how long a batch takes to make, measured alone: what of it is not waited for hides behind the step. Uses CamVid
where KERASSEG_DATA has it, with scaling, flipping and cropping; else the drawn shapes.
"""

import os
import statistics
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from kerasseg.data import training_batches
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import open_recipe_data, recipe_transforms
from kerasseg.training import CaffeSGD, Trainer


class TimedFeed:
    """A feed that records how long the loop waited for each batch."""

    def __init__(self, feed):
        self.feed, self.waits = feed, []

    def __call__(self, start: int, share) -> tf.data.Dataset:
        data = self.feed(start, share)
        return tf.data.Dataset.from_generator(lambda: self._timed(data), output_signature=data.element_spec)

    def _timed(self, data):
        batches = iter(data)
        while True:
            before = time.perf_counter()
            batch = next(batches)
            self.waits.append(time.perf_counter() - before)
            yield batch


def recipe():
    folder = Path(os.environ.get("KERASSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "camvid"
    if not folder.is_dir():
        return RECIPES["shapes"]
    return RECIPES["camvid_small"].override(data_dir=str(folder), precision="float32")


def main(steps: int = 40, warm_up: int = 8) -> None:
    chosen = recipe()
    data = open_recipe_data(chosen, chosen.split)
    make = partial(training_batches, data, chosen.batch_size, transforms=recipe_transforms(chosen, data.mean), seed=0)

    alone = iter(make())
    next(alone)
    start = time.perf_counter()
    for _ in range(steps):
        next(alone)
    production = (time.perf_counter() - start) / steps
    del alone

    model = MODELS["fcn8s"](data.labels.num_classes, width_multiplier=0.25, padding="same", preprocessing="torch")
    trainer = Trainer(model, optimizer=CaffeSGD(1e-3), loss=SegmentationCrossEntropy())
    feed = TimedFeed(lambda start, share: make(start=start, share=share))
    times, before = [], time.perf_counter()
    for _ in trainer.train(feed, warm_up + steps):
        now = time.perf_counter()
        times.append(now - before)
        before = now
    waiting = statistics.mean(feed.waits[warm_up : warm_up + steps])
    step = statistics.mean(times[warm_up:])
    print(
        f"input pipeline on {chosen.data}: {100 * waiting / step:.2f} % of a step is spent waiting for it (target: at most 3 %); "
        f"making a batch takes {100 * production / step:.1f} % of one, {100 * (1 - waiting / production):.1f} % of which is hidden"
    )


if __name__ == "__main__":
    main()
