"""What the input pipeline costs a training step; target: at most 3 % of it is spent waiting for batches.

Two shares are told. Waiting: how long the loop waits for its next batch. The whole cost: by how much steps are slower than with one
batch that is made beforehand and given again and again, in rounds that take turns. On a CPU the second is larger, for the batches
are made by the cores that also do the step; on a GPU they are idle then, and both should agree. Told beside it is how long a batch
takes to make, measured alone. Uses CamVid where KERASSEG_DATA has it, with scaling, flipping and cropping; else the drawn shapes.
"""

import os
import statistics
import time
from contextlib import closing
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


def seconds_a_step(trainer: Trainer, feed, steps: int, warm_up: int) -> float:
    """Trains on, and tells how long a step takes once the first ones are done."""
    times = [time.perf_counter()]
    with closing(trainer.train(feed, trainer.step + warm_up + steps)) as done:
        for _ in done:
            times.append(time.perf_counter())
    return (times[-1] - times[warm_up]) / steps


def main(rounds: int = 5, steps: int = 20, warm_up: int = 4) -> None:
    chosen = recipe()
    data = open_recipe_data(chosen, chosen.split)
    make = partial(training_batches, data, chosen.batch_size, transforms=recipe_transforms(chosen, data.mean), seed=0)

    alone = iter(make())
    first = next(alone)
    start = time.perf_counter()
    for _ in range(steps):
        next(alone)
    production = (time.perf_counter() - start) / steps
    del alone

    model = MODELS["fcn8s"](data.labels.num_classes, width_multiplier=0.25, padding="same", preprocessing="torch")
    trainer = Trainer(model, optimizer=CaffeSGD(1e-3), loss=SegmentationCrossEntropy())
    timed = TimedFeed(lambda start, share: make(start=start, share=share))
    feeds = {
        "read": lambda start, share: make(start=start, share=share),
        "given": lambda start, share: tf.data.Dataset.from_tensors(first).repeat(),
    }
    # Compiles.
    seconds_a_step(trainer, feeds["given"], 1, 1)
    found = {name: [] for name in feeds}
    for _ in range(rounds):
        for name, feed in feeds.items():
            found[name].append(seconds_a_step(trainer, feed, steps, warm_up))
    costs = sorted(1 - given / read for read, given in zip(found["read"], found["given"], strict=True))
    step = seconds_a_step(trainer, timed, steps, warm_up)
    waiting = statistics.mean(timed.waits[warm_up : warm_up + steps])
    read, given = (statistics.median(found[name]) for name in feeds)
    where = f"GPU, {os.cpu_count()} cores" if tf.config.list_logical_devices("GPU") else f"CPU alone, {os.cpu_count()} cores"
    print(
        f"input pipeline on {chosen.data} ({where}): {100 * waiting / step:.2f} % of a step is spent waiting for it (target: at "
        f"most 3 %)\n  whole cost: {1 / read:.3g} steps/s with batches as they are read, {1 / given:.3g} with one given over and "
        f"over: {100 * statistics.median(costs):.1f} % ({100 * costs[0]:.1f} to {100 * costs[-1]:.1f}); making a batch alone takes "
        f"{100 * production / given:.1f} % of such a step"
    )


if __name__ == "__main__":
    main()
