"""DeepLab v3 on ResNet-50: one training step and one forward pass, here, with Keras' own layers, and in torch in its best form.

21 classes, multi-grid (1, 2, 4), image pooling, logits at the size of the image; single images and batches of 4, output strides 16
and 8, float32 and bfloat16. A single image trains with batch norm frozen, since one vector has no variance (torch refuses it). The
forward pass is a frozen graph here, and in torch both eager and compiled by inductor with freezing, where a C++ compiler is there;
the better counts. torch is channels last, bfloat16 by autocast. Each variant is a process of its own; they take turns, and each
ratio is of two measurements of the same round, so that a busy machine slows both. The most memory each process ever held is shown
beside it. torch is the extra `bench`; without it the comparison with torch is left out.

Targets: a training step takes no longer than torch's at the same precision, in bfloat16 1.8 times less than torch's in float32, and
1.2 times less than with Keras' own layers; a forward pass at most 1 / 0.95 of torch's best.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

# With batch norm frozen at its first statistics, a larger rate ends in infinities; the time of a step does not depend on it.
CLASSES, RATE, MULTI_GRID = 21, 1e-9, (1, 2, 4)
UNITS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


def batch(case):
    generator = np.random.default_rng(0)
    image = generator.uniform(0, 255, (case["batch"], case["size"], case["size"], 3)).astype(np.float32)
    label = generator.integers(0, CLASSES, image.shape[:3]).astype(np.int32)
    label[:, :8] = 255
    return image, label


def keras_model(case, plain: bool):
    import keras

    from kerasseg.models import MODELS

    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[case["precision"]])
    keras.utils.set_random_seed(0)
    model = MODELS["deeplab_v3"](
        CLASSES,
        backbone="resnet50",
        output_stride=case["output_stride"],
        multi_grid=MULTI_GRID,
        preprocessing="torch",
        input_shape=(case["size"], case["size"], 3),
    )
    return with_plain_layers(model) if plain else model


def with_plain_layers(model):
    """The same network of Keras' own convolutions and batch norms."""
    import keras

    from kerasseg import layers

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, layers.Conv2D):
            return keras.layers.Conv2D.from_config(config)
        if isinstance(layer, layers.BatchNormalization):
            return keras.layers.BatchNormalization.from_config({**config, "synchronized": False})
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def keras_training(case, plain: bool = False):
    import keras
    import tensorflow as tf

    from kerasseg.training import CaffeSGD, Trainer

    model = keras_model(case, plain)
    if case["batch"] == 1:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    data = tf.data.Dataset.from_tensors(batch(case)).repeat()
    steps = Trainer(model, optimizer=CaffeSGD(RATE, 0.9, 1e-4)).train(lambda start, share: data, 10**9)

    def run(count: int) -> float:
        return [next(steps).loss for _ in range(count)][-1]

    return run


def keras_inference(case, plain: bool = False):
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model, image = keras_model(case, plain), tf.constant(batch(case)[0])
    forward = tf.function(lambda x: model(x, training=False), [tf.TensorSpec(image.shape)], autograph=False)
    frozen = convert_variables_to_constants_v2(forward.get_concrete_function())

    def run(count: int) -> float:
        for _ in range(count):
            (logits,) = frozen(image)
        return float(logits.numpy()[0, 0, 0, 0])

    return run


def torch_network(output_stride: int):
    """DeepLab v3 as `kerasseg.models` builds it: strides in the last units, ε 1e-5."""
    import torch
    from torch import nn
    from torch.nn import functional

    def unit(inputs, outputs, kernel=1, stride=1, rate=1, relu=True):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=rate * (kernel // 2), dilation=rate, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []))

    class Bottleneck(nn.Module):
        def __init__(self, inputs, width, stride, rate):
            super().__init__()
            narrow = unit(width, width, 3, stride, rate)
            self.branch = nn.Sequential(unit(inputs, width), narrow, unit(width, 4 * width, relu=False))
            subsampled = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
            self.shortcut = subsampled if inputs == 4 * width else unit(inputs, 4 * width, stride=stride, relu=False)

        def forward(self, x):
            return functional.relu(self.branch(x) + self.shortcut(x), inplace=True)

    class DeepLabV3(nn.Module):
        def __init__(self):
            super().__init__()
            layers, inputs, current, rate = [unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64, 4, 1
            for block, (units, width) in enumerate(zip(UNITS, WIDTHS, strict=True)):
                for index in range(units):
                    wanted = 2 if index == units - 1 and block < 3 else 1
                    stride = wanted if current < output_stride else 1
                    layers.append(Bottleneck(inputs, width, stride, rate * (MULTI_GRID[index] if block == 3 else 1)))
                    inputs, current, rate = 4 * width, current * stride, rate * wanted // stride
            self.trunk = nn.Sequential(*layers)
            rates = [r * 16 // output_stride for r in (6, 12, 18)]
            self.pooled = unit(inputs, 256)
            self.branches = nn.ModuleList([unit(inputs, 256), *(unit(inputs, 256, 3, rate=r) for r in rates)])
            self.head = nn.Sequential(unit(5 * 256, 256), nn.Dropout(0.1), nn.Conv2d(256, CLASSES, 1))

        def forward(self, image):
            x = self.trunk(image)
            pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
            logits = self.head(torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1))
            return functional.interpolate(logits.float(), image.shape[2:], mode="bilinear", align_corners=True)

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    return DeepLabV3().to(memory_format=torch.channels_last)


def torch_parts(case):
    import torch

    image, label = batch(case)
    image = torch.from_numpy(image).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=case["precision"] == "bfloat16")
    return torch_network(case["output_stride"]), (image - mean) / deviation, torch.from_numpy(label.astype(np.int64)), autocast


def torch_training(case):
    import torch

    model, image, label, autocast = torch_parts(case)
    model.train()
    if case["batch"] == 1:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9, weight_decay=1e-4)

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                logits = model(image)
            loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=255)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def torch_inference(case, compiled: bool = False):
    import torch

    model, image, _, autocast = torch_parts(case)
    model.eval()
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        model = torch.compile(model)

    def run(count: int) -> float:
        with torch.no_grad(), autocast:
            for _ in range(count):
                logits = model(image)
        return logits.flatten()[0].item()

    return run


VARIANTS = {
    "train": {"ours": keras_training, "plain": lambda case: keras_training(case, plain=True), "torch": torch_training},
    "infer": {
        "ours": keras_inference,
        "plain": lambda case: keras_inference(case, plain=True),
        "torch": torch_inference,
        "inductor": lambda case: torch_inference(case, compiled=True),
    },
}


def available(work: str) -> list[str]:
    has_torch = importlib.util.find_spec("torch") is not None
    needs = {"torch": has_torch, "inductor": has_torch and (shutil.which("g++") or shutil.which("clang++"))}
    return [name for name in VARIANTS[work] if needs.get(name, True)]


def peak_memory() -> float:
    """The most memory that this process ever held, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def serve(variant: str, case) -> None:
    """Answers each number on standard input with the seconds that so many steps took, and the most memory so far."""
    run = VARIANTS[case["work"]][variant](case)
    run(2)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - start, peak_memory(), flush=True)


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str, case):
        command = [sys.executable, __file__, "--serve", variant, json.dumps(case)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.memory = 0.0
        while (line := self.process.stdout.readline().strip()) != "ready":
            if not line and self.process.poll() is not None:
                raise SystemExit(f"{variant} {case} ended")

    def seconds(self, steps: int) -> float:
        print(steps, file=self.process.stdin, flush=True)
        seconds, self.memory = map(float, self.process.stdout.readline().split())
        return seconds / steps


def measure(cases, rounds: int, steps: int):
    """Seconds a step in each round, and the most memory, of each variant at each precision."""
    workers = {(name, case["precision"]): Worker(name, case) for case in cases for name in available(case["work"])}
    names, times = list(workers), {key: [] for key in workers}
    for number in range(rounds):
        # Another goes first each time.
        for key in names[number % len(names) :] + names[: number % len(names)]:
            times[key].append(workers[key].seconds(steps))
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()
    return times, {key: worker.memory for key, worker in workers.items()}


def show(label: str, theirs, ours, target: str = "") -> None:
    ratios = [other / mine for other, mine in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"  {label}: {middle:.3f}, quartiles {low:.3f} to {high:.3f}{target}", flush=True)


def report(case, times, memory) -> None:
    """Prints medians, memory, and the ratios, with the targets of those that have one."""
    precision, training = case["precision"], case["work"] == "train"
    own = {name: values for (name, each), values in times.items() if each == precision}
    shown = ", ".join(f"{name} {statistics.median(values):.3f} s {memory[name, precision]:.2f} GiB" for name, values in own.items())
    shape = f"{case['batch']}x{case['size']}x{case['size']}"
    print(f"{case['work']} {shape}, output stride {case['output_stride']}, {precision}: {shown}", flush=True)
    show("time with Keras' own layers to ours", own["plain"], own["ours"], " (target: at least 1.2)" if training else "")
    rivals = [own[name] for name in ("torch", "inductor") if name in own]
    if rivals:
        best = min(rivals, key=statistics.median)
        show("time of torch's best to ours", best, own["ours"], f" (target: at least {1 if training else 0.95})")
    if training and precision == "bfloat16" and ("torch", "float32") in times:
        show("time of torch in float32 to ours", times["torch", "float32"], own["ours"], " (target: at least 1.8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="steps of each measurement")
    parser.add_argument("--size", type=int, default=225, help="side of the image, in pixels")
    parser.add_argument("--work", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--output-strides", nargs="+", type=int, default=[16, 8])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], json.loads(options.serve[1]))
        return
    for work, images, stride in itertools.product(options.work, options.batches, options.output_strides):
        case = {"work": work, "batch": images, "output_stride": stride, "size": options.size}
        cases = [{**case, "precision": precision} for precision in options.precisions]
        times, memory = measure(cases, options.rounds, options.steps)
        for case in cases:
            report(case, times, memory)


if __name__ == "__main__":
    main()
