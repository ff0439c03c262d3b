"""Images of any size in windows: their time beside that of the same pixels as 512x512 images, and their peak memory by size.

`python benchmarks/large_images.py --width 1` compares the network at full width.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

SIDE, TILE = 4096, 512
MEMORY_SIDES = (2000, 5000, 10000)
MEGABYTE = 1 << 20


def compare(width: float, rounds: int) -> None:
    """Prints how much longer one large image takes than its pixels in small ones, for some ways to cut it."""
    from kerasseg.evaluation import Windows, predict, predict_large
    from kerasseg.models import MODELS

    model = MODELS["fcn8s"](21, width_multiplier=width, padding="same")
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    ways = {
        "512x512, side by side": Windows((512, 512), overlap=0),
        "512x512, overlap 64, linear": Windows((512, 512), overlap=64, blending="linear"),
    }

    def small() -> None:
        for top in range(0, SIDE, TILE):
            for left in range(0, SIDE, TILE):
                predict(model, image[top : top + TILE, left : left + TILE])

    def seconds(run) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - wall, time.process_time() - processor

    runs = {"512x512 images": small}
    for name, windows in ways.items():
        runs[name] = lambda windows=windows: predict_large(model, image, windows=windows)
        # Each shape once, so that nothing is set up while the clock runs.
        predict_large(model, image[:1500, :1500], windows=windows)
    predict(model, image[:TILE, :TILE])
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    # On a machine that does other work, too, only the seconds of the processor compare.
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()}
    base = medians["512x512 images"]
    print(f"fcn8s at width {width:g}, {SIDE}x{SIDE}, median of {rounds} rounds; target: at most 1.3")
    print(f"  {'512x512 images':<28} {base[0]:7.2f} s, of the processor {base[1]:7.2f} s")
    for name, windows in ways.items():
        wall, processor = medians[name]
        computed = windows.num_windows(image.shape[:2]) * windows.size[0] * windows.size[1] / SIDE**2
        print(
            f"  {name:<28} {wall:7.2f} s, of the processor {processor:7.2f} s; ratios {wall / base[0]:.3f}, "
            f"{processor / base[1]:.3f} ({computed:.3f} times the pixels)"
        )


def measure(side: int, folder: Path) -> None:
    """Labels one image with a stand-in for a network, memory map to memory map, and prints its own peak memory."""
    import keras

    from kerasseg.evaluation import predict_large

    source, out = folder / "image.npy", folder / "labels.npy"
    image = np.lib.format.open_memmap(source, mode="w+", dtype=np.uint8, shape=(side, side, 3))
    for top in range(0, side, 500):
        image[top : top + 500] = np.random.default_rng(top).integers(0, 256, (min(500, side - top), side, 3), np.uint8)
    image.flush()
    del image
    inputs = keras.Input((None, None, 3))
    stub = keras.Model(inputs, keras.layers.Conv2D(21, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs)))
    start = time.perf_counter()
    labels = predict_large(stub, source, out)
    taken = time.perf_counter() - start
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    maps = source.stat().st_size + out.stat().st_size
    print(
        f"  {side}x{side}: peak {peak / MEGABYTE:.0f} MB, of which the two maps can be {maps / MEGABYTE:.0f} MB, the rest "
        f"{(peak - maps) / MEGABYTE:.0f} MB; {taken:.0f} s; labels {labels.min()}-{labels.max()}"
    )


def main() -> None:
    """Runs what the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="width of the network (default: 0.25)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison (default: 3); 0: memory alone")
    parser.add_argument("--measure", type=int, default=None, metavar="SIDE", help="the memory of one size, in this process")
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory() as folder:
            measure(options.measure, Path(folder))
        return
    if options.rounds:
        compare(options.width, options.rounds)
    print("peak memory by size, a process each, 3x3 convolution to 21 classes")
    for side in MEMORY_SIDES:
        subprocess.run([sys.executable, __file__, "--measure", str(side)], check=True)


if __name__ == "__main__":
    main()
