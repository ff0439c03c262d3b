"""Asynchronous replicas on this machine: time of a step and what late gradients do to learning, with 1, 2 and 4 workers.

Speed: FCN-8s, quarter width, 128x128, batch 4, against the synchronous trainer; they take turns, medians over the rounds, each
ratio of two measurements of the same round. Learning: a small network on images whose class is their brightest channel, the mean
loss of the last tenth of its steps, over three seeds. On one CPU, whose cores one worker already keeps busy, little is gained.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

WORKERS, SIZE, CLASSES = (1, 2, 4), 128, 21


def trainer_of(workers: int, model, optimizer):
    """The asynchronous trainer, or the synchronous one for 0 workers."""
    from kerasseg.training import Trainer
    from kerasseg.training.parameter_server import AsynchronousTrainer

    return AsynchronousTrainer(model, optimizer=optimizer, workers=workers) if workers else Trainer(model, optimizer=optimizer)


def speed_steps(workers: int):
    import keras
    import tensorflow as tf

    from kerasseg.models import MODELS
    from kerasseg.training import CaffeSGD

    keras.utils.set_random_seed(0)
    model = MODELS["fcn8s"](CLASSES, width_multiplier=0.25, padding="same", preprocessing="torch", input_shape=(SIZE, SIZE, 3))
    generator = np.random.default_rng(0)
    image = generator.uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    label = generator.integers(0, CLASSES, (4, SIZE, SIZE)).astype(np.int32)
    data = tf.data.Dataset.from_tensors((image, label)).repeat()
    return trainer_of(workers, model, CaffeSGD(1e-3, 0.9, 5e-4)).train(lambda start, share: data, 10**9)


def speed(rounds: int, count: int) -> None:
    # Nobody computes while another is measured: each round opens, warms up and closes its iterator.
    times = {workers: [] for workers in (0, *WORKERS)}
    for _ in range(rounds):
        for workers in times:
            steps = speed_steps(workers)
            for _ in range(4):
                next(steps)
            start = time.perf_counter()
            for _ in range(count):
                next(steps)
            times[workers].append((time.perf_counter() - start) / count)
            steps.close()
    for workers, values in times.items():
        ratios = [base / value for base, value in zip(times[0], values, strict=True)]
        name = f"{workers} worker(s)" if workers else "synchronous"
        print(
            f"{name:12}  {1000 * statistics.median(values):7.1f} ms a step, {statistics.median(ratios):.2f} times as fast as "
            f"synchronous ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def last_loss(workers: int, seed: int, momentum: float, rate: float, iterations: int = 300) -> float:
    import keras
    import tensorflow as tf

    from kerasseg.layers import BatchNormalization, Conv2D
    from kerasseg.training import CaffeSGD

    keras.utils.set_random_seed(seed)
    image = keras.Input((16, 16, 3))
    x = keras.layers.ReLU()(BatchNormalization(name="conv_bn")(Conv2D(16, 3, padding="same", dilation_rate=2, name="conv")(image)))
    model = keras.Model(image, Conv2D(3, 1, name="score")(x))
    images = np.random.default_rng(seed).uniform(0, 1, (iterations, 4, 16, 16, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((images, images.argmax(-1).astype(np.int32)))
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, iterations, 0.0, 0.9)
    trainer = trainer_of(workers, model, CaffeSGD(schedule, momentum, 1e-4))
    losses = [step.loss for step in trainer.train(lambda start, share: data.skip(start), iterations)]
    return float(np.mean(losses[-iterations // 10 :]))


def learning() -> None:
    for momentum, rate in ((0.9, 0.05), (0.9, 0.005), (0.0, 0.05)):
        for workers in (0, *WORKERS):
            values = [last_loss(workers, seed, momentum, rate) for seed in range(3)]
            name = f"{workers} worker(s)" if workers else "synchronous"
            print(f"momentum {momentum}, rate {rate}: {name:12}  loss " + ", ".join(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed measurement")
    parser.add_argument("--steps", type=int, default=20, help="steps measured in each")
    arguments = parser.parse_args()
    speed(arguments.rounds, arguments.steps)
    learning()
