"""The training step of FCN-8s: this trainer, Keras' `fit` on the same network, and the same network in torch, channels last.

Quarter width, 256x256, batch 4, Caffe's SGD, float32 and bfloat16. Each variant is a process of its own; they take turns, and
each ratio is of two measurements of the same round, so that a busy machine slows both. torch is the extra `bench`; without it the
comparison with torch is left out.

Targets: not slower than `fit`; 1.15 times faster than torch in float32 and in bfloat16.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

BATCH, SIZE, CLASSES, RATE = 4, 256, 21, 1e-3
WIDTHS = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))
FULLY_CONNECTED = 1024


def batch():
    generator = np.random.default_rng(0)
    image = generator.uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype(np.float32)
    label = generator.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    label[:, :8] = 255
    return image, label


def keras_parts(precision: str):
    import keras
    import tensorflow as tf

    from kerasseg.models import MODELS
    from kerasseg.training import CaffeSGD

    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])
    keras.utils.set_random_seed(0)
    model = MODELS["fcn8s"](CLASSES, width_multiplier=0.25, padding="same", preprocessing="torch", input_shape=(SIZE, SIZE, 3))
    data = tf.data.Dataset.from_tensors(batch()).repeat()
    return model, CaffeSGD(RATE, 0.9, 5e-4, {".*/bias": (2.0, 0.0)}), data


def trainer_steps(precision: str, steps_per_call: int = 1):
    from kerasseg.training import Trainer

    model, optimizer, data = keras_parts(precision)
    trainer = Trainer(model, optimizer=optimizer, steps_per_call=steps_per_call)
    steps = trainer.train(lambda start, share: data, 10**9)

    def run(count: int) -> float:
        return [next(steps).loss for _ in range(count)][-1]

    return run


def fit_steps(precision: str):
    from kerasseg.losses import SegmentationCrossEntropy

    model, optimizer, data = keras_parts(precision)
    model.compile(optimizer, loss=SegmentationCrossEntropy())

    def run(count: int) -> float:
        return model.fit(data, steps_per_epoch=count, epochs=1, verbose=0, shuffle=False).history["loss"][-1]

    return run


def torch_network():
    """FCN-8s as `kerasseg.models` builds it with padding="same"; the last upsampling by torch's own resize, its cheapest form."""
    import torch
    from torch import nn

    class FCN8s(nn.Module):
        def __init__(self):
            super().__init__()
            channels, blocks = 3, []
            for widths in WIDTHS:
                layers = []
                for width in widths:
                    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                    channels = width
                blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2, 2, ceil_mode=True)))
            self.blocks = nn.ModuleList(blocks)
            self.head = nn.Sequential(
                nn.Conv2d(channels, FULLY_CONNECTED, 7, padding=3),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(FULLY_CONNECTED, FULLY_CONNECTED, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            widths = (FULLY_CONNECTED, WIDTHS[3][-1], WIDTHS[2][-1])
            self.scores = nn.ModuleList(nn.Conv2d(width, CLASSES, 1) for width in widths)
            self.ups = nn.ModuleList(nn.ConvTranspose2d(CLASSES, CLASSES, 4, 2, bias=False) for _ in range(2))

        def forward(self, x):
            levels = []
            for block in self.blocks:
                x = block(x)
                levels.append(x)
            x = self.scores[0](self.head(x))
            for up, score, level in zip(self.ups, self.scores[1:], (levels[3], levels[2]), strict=True):
                skip = score(level)
                x = up(x)[:, :, 1 : 1 + skip.shape[2], 1 : 1 + skip.shape[3]] + skip
            return nn.functional.interpolate(x.float(), scale_factor=8, mode="bilinear", align_corners=False)

    torch.manual_seed(0)
    return FCN8s().to(memory_format=torch.channels_last)


def torch_steps(precision: str):
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model = torch_network().train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    biases = {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 2 * RATE, "weight_decay": 0.0}
    optimizer = torch.optim.SGD([{"params": decayed}, biases], lr=RATE, momentum=0.9, weight_decay=5e-4)
    image, label = batch()
    image = torch.from_numpy(image).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    label = torch.from_numpy(label.astype(np.int64))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model((image - mean) / deviation)
            loss = torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=255)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


VARIANTS = {
    "trainer": trainer_steps,
    "eight": lambda precision: trainer_steps(precision, 8),
    "fit": fit_steps,
    "torch": torch_steps,
}


def serve(variant: str, precision: str) -> None:
    """Answers each number on standard input with the seconds that so many steps took."""
    run = VARIANTS[variant](precision)
    run(8)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = run(int(line))
        print(time.perf_counter() - start, loss, flush=True)


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str, precision: str):
        command = [sys.executable, __file__, "--serve", variant, precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := self.process.stdout.readline().strip()) != "ready":
            if not line and self.process.poll() is not None:
                raise SystemExit(f"{variant} {precision} ended")

    def seconds(self, steps: int) -> float:
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline().split()[0]) / steps


def measure(precision: str, names: list[str], rounds: int, steps: int) -> dict[str, list[float]]:
    workers = {name: Worker(name, precision) for name in names}
    times = {name: [] for name in names}
    for number in range(rounds):
        # Another goes first each time.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(workers[name].seconds(steps))
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="steps of each measurement, a multiple of 8")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    names = [name for name in VARIANTS if name != "torch" or importlib.util.find_spec("torch")]
    for precision in ("float32", "bfloat16"):
        times = measure(precision, names, options.rounds, options.steps)
        shown = ", ".join(f"{name} {statistics.median(values):.3f}" for name, values in times.items())
        print(f"{precision}: seconds a step, medians of {options.rounds}: {shown}")
        for name in names[1:]:
            ratios = [other / ours for other, ours in zip(times[name], times["trainer"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            target = {"fit": " (target: at least 1)", "torch": " (target: at least 1.15)"}.get(name, "")
            label = "the trainer with eight steps a call" if name == "eight" else name
            print(f"  time of {label} to the trainer's: {middle:.3f}, quartiles {low:.3f} to {high:.3f}{target}")


if __name__ == "__main__":
    main()
