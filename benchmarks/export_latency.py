"""How fast exported files are: dilated ResNet-50 (output stride 8, 21 classes, 321²), batch 1, on two cores.

The same weights in every form: Keras' `predict`, a frozen TensorFlow graph, the TFLite file under LiteRT (XNNPACK), the ONNX file
under onnxruntime, the network in torch compiled by inductor with freezing; and of the TFLite file the int8 form, and those that
give labels instead of logits. What each computes is compared first: a form in float32 that differs by more than 1e-4 ends the
benchmark. Each is a process of its own with two threads, all of them pinned to the same two cores; they take turns, with a pause in
which the threads of the last one stop waiting for work, and each ratio is of two measurements of the same round. torch is the extra
`bench`, onnxruntime the extra `onnx`; what is not installed is left out, and said.

Batch norm's statistics are those of the built-in pictures; the weights are random: their values change no time.

Targets: LiteRT in float32 is not slower than the fastest of the others; int8 is 2.5 times as fast as float32.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

CLASSES, THREADS, MULTI_GRID = 21, 2, (1, 2, 4)
# Seconds after which no thread pool waits for work in a busy loop any more.
PAUSE = 0.3
LOGITS, LABELS = "logits", "labels"


def prepare(folder: Path, size: int) -> None:
    """Builds the network and writes it in every form, with an image and Keras' logits of it."""
    import keras

    from kerasseg.data.shapes import Shapes
    from kerasseg.export import export_model
    from kerasseg.export.forms import Target
    from kerasseg.export.parity import Tolerance
    from kerasseg.models import MODELS
    from kerasseg.training.statistics import recompute_statistics

    print("  building the network", flush=True)
    keras.utils.set_random_seed(0)
    arguments = {"backbone": "resnet50", "output_stride": 8, "last_block": 4, "multi_grid": MULTI_GRID, "preprocessing": "torch"}
    model = MODELS["deeplab_v3_cascade"](CLASSES, **arguments)
    for layer in model.layers:
        if layer.name.endswith("_conv3_BatchNorm"):
            # Residual branches that add little, as trained ones do: 16 of full strength blow every rounding error up.
            layer.gamma.assign(0.2 * layer.gamma)
    data = Shapes(size=(size, size))
    images = [data.read(index).image.astype(np.float32) for index in range(12)]
    recompute_statistics(model, [np.stack(images[at : at + 2]) for at in (0, 2)], 2)
    model.save(folder / "model.keras")
    np.savez(folder / "weights.npz", **{weight.path: np.asarray(weight) for weight in model.weights})
    image = images[4][np.newaxis]
    np.save(folder / "image.npy", image)
    np.save(folder / "logits.npy", model.predict(image, verbose=0))
    common = {"images": images[4:6], "calibration": images[6:], "tolerance": Tolerance(None, None, None), "measure_latency": False}
    for name, details in FILES.items():
        if name.endswith(".onnx") and missing("onnxruntime", "tf2onnx"):
            continue
        print(f"  writing {name}", flush=True)
        target = Target(**{"input_size": (size, size), **details})
        export_model(model, folder / name, target, **common)


FILES = {
    "float32.tflite": {},
    "int8.tflite": {"quantize": "int8"},
    "labels.tflite": {"result": "labels"},
    "nearest_labels.tflite": {"result": "nearest_labels"},
    "coarse_labels.tflite": {"result": "coarse_labels"},
    "int8_coarse_labels.tflite": {"quantize": "int8", "result": "coarse_labels"},
    "network.onnx": {"format": "onnx"},
}


def litert(folder: Path, file: str):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / file), num_threads=THREADS)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = given["quantization"]
    image = np.load(folder / "image.npy")
    image = np.round(image / scale + zero).astype(given["dtype"]) if scale else image

    def run():
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    def floats(found):
        factor, origin = result["quantization"]
        return (found.astype(np.float32) - origin) * factor if factor else found

    return run, floats


def onnxruntime(folder: Path, file: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(folder / "image.npy")}
    return (lambda: session.run(None, feed)[0]), np.asarray


def keras_model(folder: Path):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    from kerasseg import load_model

    return load_model(folder / "model.keras")


def keras_predict(folder: Path, file: str):
    model, image = keras_model(folder), np.load(folder / "image.npy")
    return (lambda: model.predict(image, verbose=0)), np.asarray


def frozen_graph(folder: Path, file: str):
    model = keras_model(folder)
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    image = np.load(folder / "image.npy")
    forward = tf.function(lambda x: model(x, training=False), [tf.TensorSpec(image.shape)], autograph=False)
    frozen = convert_variables_to_constants_v2(forward.get_concrete_function())
    return (lambda: frozen(tf.constant(image))[0].numpy()), np.asarray


def torch_network(weights):
    """The network of `prepare` in torch, its weights too: normalised input, bilinear logits with aligned corners."""
    import torch
    from deeplab_v3_step import UNITS, torch_network
    from torch import nn

    deeplab = torch_network(8)
    trunk, head = deeplab.trunk, nn.Conv2d(weights["logits_semantic/kernel"].shape[2], CLASSES, 1)

    def fill(unit, name):
        kernel = torch.from_numpy(weights[f"{name}/kernel"].transpose(3, 2, 0, 1).copy())
        kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        for theirs, ours in kinds.items():
            getattr(unit[1], theirs).data = torch.from_numpy(weights[f"{name}_BatchNorm/{ours}"])
        unit[0].weight.data = kernel

    fill(trunk[0], "conv1")
    names = [f"block{block}_unit_{unit + 1}_bottleneck_v1" for block, units in enumerate(UNITS, 1) for unit in range(units)]
    for bottleneck, name in zip(trunk[2:], names, strict=True):
        for index, unit in enumerate(bottleneck.branch, 1):
            fill(unit, f"{name}_conv{index}")
        if f"{name}_shortcut/kernel" in weights:
            fill(bottleneck.shortcut, f"{name}_shortcut")
    head.weight.data = torch.from_numpy(weights["logits_semantic/kernel"].transpose(3, 2, 0, 1).copy())
    head.bias.data = torch.from_numpy(weights["logits_semantic/bias"])

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = trunk, head
            mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            self.register_buffer("mean", mean)
            self.register_buffer("deviation", deviation)

        def forward(self, image):
            scores = self.head(self.trunk((image.permute(0, 3, 1, 2) - self.mean) / self.deviation))
            resized = nn.functional.interpolate(scores, image.shape[1:3], mode="bilinear", align_corners=True)
            return resized.permute(0, 2, 3, 1)

    return Network().eval().to(memory_format=torch.channels_last)


def torch_inductor(folder: Path, file: str):
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model = torch_network(dict(np.load(folder / "weights.npz")))
    # deeplab_v3_step takes all cores that the machine has.
    torch.set_num_threads(THREADS)
    compiled, image = torch.compile(model), torch.from_numpy(np.load(folder / "image.npy"))

    def run():
        with torch.no_grad():
            return compiled(image)

    return run, (lambda found: found.numpy())


def missing(*modules: str) -> str | None:
    return next((name for name in modules if importlib.util.find_spec(name) is None), None)


# Name → what makes it run, its file, what it gives.
FLOAT32, INT8 = "LiteRT", "LiteRT int8"
VARIANTS = {
    FLOAT32: (litert, "float32.tflite", LOGITS),
    INT8: (litert, "int8.tflite", LOGITS),
    "LiteRT labels": (litert, "labels.tflite", LABELS),
    "LiteRT nearest_labels": (litert, "nearest_labels.tflite", LABELS),
    "LiteRT coarse_labels": (litert, "coarse_labels.tflite", "cells"),
    "LiteRT int8 coarse_labels": (litert, "int8_coarse_labels.tflite", "cells"),
    "Keras predict": (keras_predict, "", LOGITS),
    "frozen graph": (frozen_graph, "", LOGITS),
    "onnxruntime": (onnxruntime, "network.onnx", LOGITS),
    "torch inductor": (torch_inductor, "", LOGITS),
}
RIVALS = ("Keras predict", "frozen graph", "onnxruntime", "torch inductor")


def unavailable(variant: str) -> str | None:
    """Why a variant cannot run here, or `None`."""
    needs = {"onnxruntime": ("onnxruntime", "tf2onnx"), "torch inductor": ("torch",)}.get(variant, ())
    if name := missing(*needs):
        return f"{name} is not installed"
    if variant == "torch inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler"
    return None


def serve(variant: str, folder: Path, cores: list[int]) -> None:
    """Writes what the variant computes, then answers each number on standard input with the seconds of so many runs."""
    os.sched_setaffinity(0, cores)
    maker, file, _ = VARIANTS[variant]
    # Other libraries than ours may print; the parent reads standard output.
    with contextlib.redirect_stdout(sys.stderr):
        run, floats = maker(folder, file)
        np.save(folder / f"{variant}.npy", floats(run()))
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        # The pause before cooled the caches, and the threads sleep.
        run()
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str, folder: Path, cores: list[int]):
        command = [sys.executable, __file__, "--serve", variant, str(folder), json.dumps(cores)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        while (line := self.process.stdout.readline().strip()) != "ready":
            if not line and self.process.poll() is not None:
                raise SystemExit(f"{variant} ended with code {self.process.returncode}")

    def seconds(self, runs: int) -> float:
        print(runs, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline()) / runs

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(variant: str, folder: Path) -> str:
    """How far a variant's result is from Keras'; a form in float32 that is far ends the benchmark."""
    ours, theirs = np.load(folder / f"{variant}.npy"), np.load(folder / "logits.npy")
    kind = VARIANTS[variant][2]
    if kind == "cells":
        return f"labels of {ours.shape[-2]}x{ours.shape[-1]} cells" if ours.ndim == 3 else f"labels of shape {ours.shape}"
    if kind == LABELS:
        return f"same class as Keras' logits: {(ours.reshape(theirs.shape[:3]) == theirs.argmax(-1)).mean():.2%}"
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if variant != INT8 and not error <= 1e-4:
        raise SystemExit(f"{variant} computes something else than Keras: relative error {error:.2g}")
    return f"relative error {error:.1e}, same class {(ours.argmax(-1) == theirs.argmax(-1)).mean():.2%}"


def measure(variants: list[str], folder: Path, cores: list[int], rounds: int, runs: int) -> dict[str, list[float]]:
    workers = {}
    for name in variants:
        print(f"  starting {name}", flush=True)
        workers[name] = Worker(name, folder, cores)
        print(f"  {name}: {compare(name, folder)}", flush=True)
    times = {name: [] for name in variants}
    print(f"  measuring: {rounds} rounds", flush=True)
    for number in range(rounds):
        # Another goes first each time.
        first = number % len(variants)
        for name in variants[first:] + variants[:first]:
            time.sleep(PAUSE)
            times[name].append(workers[name].seconds(runs))
    for worker in workers.values():
        worker.end()
    return times


def show(label: str, theirs, ours, target: float | None = None) -> None:
    ratios = [other / mine for other, mine in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    shown = "" if target is None else f" (target: at least {target:g}: {'reached' if middle >= target else 'missed'})"
    print(f"  {label}: {middle:.3f}, quartiles {low:.3f} to {high:.3f}{shown}", flush=True)


def report(times: dict[str, list[float]]) -> None:
    """Prints medians, and the ratios with their targets."""
    for name, values in times.items():
        print(f"  {name}: {1000 * statistics.median(values):.1f} ms", flush=True)
    rivals = [name for name in RIVALS if name in times]
    for name in rivals:
        show(f"time of {name} to LiteRT's", times[name], times[FLOAT32])
    fastest = min(rivals, key=lambda name: statistics.median(times[name]))
    show(f"time of the fastest of them ({fastest}) to LiteRT's", times[fastest], times[FLOAT32], 1)
    show("time of LiteRT in float32 to int8's", times[FLOAT32], times[INT8], 2.5)
    for name in ("labels", "nearest_labels", "coarse_labels"):
        show(f"time of logits to {name}'", times[FLOAT32], times[f"LiteRT {name}"])
    show("time of int8 logits to int8 coarse_labels'", times[INT8], times["LiteRT int8 coarse_labels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=2, help="runs of each measurement, behind one that does not count")
    parser.add_argument("--size", type=int, default=321, help="side of the image, in pixels")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these beside the TFLite files")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare[0]), int(options.prepare[1]))
        return
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]), json.loads(options.serve[2]))
        return
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    skipped = {name: reason for name in VARIANTS if (reason := unavailable(name))}
    print(f"dilated ResNet-50, 1x{options.size}x{options.size}, {THREADS} threads on cores {cores}", flush=True)
    for name, reason in skipped.items():
        print(f"  left out: {name}, {reason}")
    wanted = [name for name in VARIANTS if name not in skipped and (not options.only or name in options.only or name not in RIVALS)]
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what it imports and allocates is gone when the others are measured.
        subprocess.run([sys.executable, __file__, "--prepare", folder, str(options.size)], check=True)
        report(measure(wanted, Path(folder), cores, options.rounds, options.runs))


if __name__ == "__main__":
    main()
