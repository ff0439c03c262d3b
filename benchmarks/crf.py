"""The fully connected CRF: `kerasseg.crf.dense_crf` against pydensecrf, and how its time and memory grow.

python benchmarks/crf.py                                                  # everything, about half an hour on two idle cores
python benchmarks/crf.py --only table --rounds 5                          # five parameter sets on three photographs
python benchmarks/crf.py --only table --resize 375x500 --peer-python VENV/bin/python PHOTO.jpg …

Both run in a process of their own, take turns (ours, theirs, theirs, ours, …) and time themselves; each ratio is of two runs of the
same round. Ours is what a user calls: NumPy in, NumPy out, the bilateral lattice built each time, its capacity chosen by itself;
only what it does once for a size, as compiling, is outside, in `first call`. pydensecrf is built into a cache folder on first use
(crf_peer.py says how); where it cannot be, its columns stay empty, with the reason.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import crf_peer
import numpy as np
import PIL.Image

# Spatial weight and θγ, bilateral weight, θα and θβ.
PARAMETERS = {
    "DeepLab v1": (3, 3, 4, 49, 5),
    "DeepLab v2": (3, 1, 4, 67, 3),
    "DeconvNet": (3, 3, 5, 20, 3),
    "CRF-RNN": (3, 3, 5, 160, 3),
    "pydensecrf's example": (3, 3, 10, 80, 13),
}
# At least so many times faster than pydensecrf, at every image.
TARGETS = dict.fromkeys(PARAMETERS, 1.5) | {"DeepLab v1": 2.0}
PHOTOGRAPHS = ("fcn_demo/image.jpg", "crfasrnn/input.jpg", "dilation/example_pascal_voc.jpg")
MEGAPIXELS = (0.1, 0.2, 0.5, 1, 2, 4, 8)
CLASSES = (2, 5, 10, 21, 40, 60, 80, 100, 120, 150)


class Worker:
    """A process that computes; it idles while it is not asked."""

    def __init__(self, *command):
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request) -> dict:
        """Sends a request and waits for its answer."""
        crf_peer.send(self.process.stdin, **request)
        if (answer := crf_peer.receive(self.process.stdout)) is None:
            raise SystemExit(f"{' '.join(self.process.args[:3])} ended with code {self.process.wait()}")
        return answer

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def our_worker() -> Worker:
    return Worker(sys.executable, Path(__file__).with_name("crf_ours.py"))


def peer_worker(python: Path) -> Worker:
    return Worker(python, crf_peer.__file__)


def unary(image, classes: int, kind: str, seed: int = 0) -> np.ndarray:
    """Logits as a network might give them, `(H, W, classes)`, float32.

    Args:
        image: Shape `(H, W, 3)`, uint8.
        classes: How many.
        kind: `"random"`: smooth noise that knows nothing of the image. `"network"`: each class likes a colour and a place, seen
            through cells of 8 pixels and upsampled, confident inside of regions: what a network of stride 8 leaves a CRF to do.
        seed: Of the random numbers.
    """
    generator = np.random.default_rng(seed)
    height, width = image.shape[:2]
    cells = (-(-height // 8), -(-width // 8))
    if kind == "random":
        coarse = 3 * generator.standard_normal((-(-height // 16) + 1, -(-width // 16) + 1, classes), np.float32)
    else:
        small = np.asarray(PIL.Image.fromarray(image).resize(cells[::-1], PIL.Image.Resampling.BOX), np.float32) / 255
        place = np.stack(np.mgrid[: cells[0], : cells[1]], -1).astype(np.float32) / max(cells)
        seen = np.concatenate([small, 0.5 * place], -1)
        liked = seen.reshape(-1, 5)[generator.integers(0, cells[0] * cells[1], classes)]
        coarse = -40 * ((seen[:, :, None] - liked) ** 2).sum(-1)
        coarse += 0.5 * generator.standard_normal(coarse.shape, np.float32)
    planes = [PIL.Image.fromarray(coarse[..., i]).resize((width, height), PIL.Image.Resampling.BILINEAR) for i in range(classes)]
    return np.stack([np.asarray(plane) for plane in planes], -1).astype(np.float32)


def taking_turns(ours: Worker, peer: Worker | None, rounds: int, **request) -> dict[str, list[float]]:
    """Seconds of both in each round; who is first changes."""
    times = {"ours": [], "peer": []}
    for number in range(rounds):
        turn = [("ours", ours), ("peer", peer)]
        for name, worker in turn[:: 1 if number % 2 == 0 else -1]:
            if worker is not None:
                times[name].append(float(worker.ask(**request)["seconds"]))
    return times


def compare(ours: Worker, peer: Worker | None, rounds: int, **request) -> dict:
    """Medians, ratios and agreement at one image. The first call of each, which compiles, is not among the rounds."""
    one = ours.ask(**request, want_marginals=True)
    found = {"first": float(one["seconds"])}
    if peer is not None:
        other = peer.ask(**request, want_marginals=True)
        found["differ"] = int((one["labels"] != other["labels"]).sum())
        found["largest"] = float(np.abs(one["marginals"] - other["marginals"]).max())
    times = taking_turns(ours, peer, rounds, **request)
    found |= {name: statistics.median(values) for name, values in times.items() if values}
    found["ratios"] = sorted(b / a for a, b in zip(times["ours"], times["peer"], strict=bool(times["peer"])))
    return found


def table(images, ours: Worker, peer: Worker | None, options) -> list[str]:
    """Five parameter sets at each image, and what of it misses its target."""
    lines = [
        f"{options.iterations} iterations, {options.classes} classes, medians of {options.rounds} rounds taking turns, ms; ratio: "
        "median (smallest–largest of a round)\n",
        "| parameters | image | logits | ours | pydensecrf | ratio | pixels with another label | max \\|ΔQ\\| | first call, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    missed = []
    for name, parameters in PARAMETERS.items():
        for path, image in images.items():
            for kind in ("random", "network"):
                logits = unary(image, options.classes, kind)
                request = {"image": image, "logits": logits, "parameters": parameters, "iterations": options.iterations}
                found = compare(ours, peer, options.rounds, **request)
                ratio = statistics.median(found["ratios"]) if peer else math.nan
                spread = f"{ratio:.2f} ({found['ratios'][0]:.2f}–{found['ratios'][-1]:.2f})" if peer else ""
                size = f"{image.shape[0]}×{image.shape[1]}"
                lines.append(
                    f"| {name} | {path.parent.name}/{path.name}, {size} | {kind} | {1e3 * found['ours']:.0f} | "
                    + (f"{1e3 * found['peer']:.0f} | {spread} | {found['differ']} | {found['largest']:.1e}" if peer else " | | | ")
                    + f" | {found['first']:.1f} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
                if peer and (ratio < TARGETS[name] or found["differ"] > 2):
                    missed.append(f"{name}, {path.parent.name}, {kind}: {ratio:.2f} times, {found['differ']} pixels")
    if peer:
        goals = ", ".join(f"{name} {target:g}" for name, target in TARGETS.items())
        lines.append(f"\nTargets, at every image: times faster: {goals}; at most 2 pixels with another label.")
        lines.append("All are met." if not missed else "Missed: " + "; ".join(missed) + ".")
    return lines


def _mosaic(image, pixels: float):
    """About so many pixels, 4:3, of mirrored copies: as rough everywhere, so that the lattice grows as the image does."""
    height = round(math.sqrt(pixels * 3 / 4))
    width = round(pixels / height)
    pad = [(0, max(0, height - image.shape[0])), (0, max(0, width - image.shape[1])), (0, 0)]
    return np.ascontiguousarray(np.pad(image, pad, "symmetric")[:height, :width])


def _exponent(x, y) -> float:
    """Slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def pixels(images, ours, peer, options) -> list[str]:
    """Time against image size."""
    image = list(images.values())[-1]
    lines = ["| megapixels | ours, s | µs a pixel | pydensecrf, s | ratio |", "|---|---|---|---|---|"]
    sizes, seconds = [], []
    for megapixels in options.megapixels:
        large = _mosaic(image, 1e6 * megapixels)
        request = {"image": large, "logits": unary(large, options.classes, "network"), "parameters": PARAMETERS["DeepLab v1"]}
        found = _growing(ours, peer, options, **request)
        sizes.append(large.shape[0] * large.shape[1])
        seconds.append(found["ours"])
        lines.append(f"| {sizes[-1] / 1e6:.2f} | {found['ours']:.2f} | {1e6 * found['ours'] / sizes[-1]:.2f} | {_theirs(found)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    lines.append(f"\nTime grows with the number of pixels to the power {_exponent(sizes, seconds):.3f}.")
    return lines


def classes(images, ours, peer, options) -> list[str]:
    """Time against the number of classes."""
    image = list(images.values())[-1]
    lines = ["| classes | ours, s | pydensecrf, s | ratio |", "|---|---|---|---|"]
    seconds = []
    for count in options.class_counts:
        request = {"image": image, "logits": unary(image, count, "network"), "parameters": PARAMETERS["DeepLab v1"]}
        found = _growing(ours, peer, options, **request)
        seconds.append(found["ours"])
        lines.append(f"| {count} | {found['ours']:.3f} | {_theirs(found)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    counts = np.array(options.class_counts, float)
    slope, start = np.polyfit(counts, seconds, 1)
    off = np.abs(np.array(seconds) / (start + slope * counts) - 1).max()
    lines.append(f"\nThe line {1e3 * start:.0f} ms + {1e3 * slope:.1f} ms · classes fits within {100 * off:.0f} %; as a power ")
    lines[-1] += f"{_exponent(counts, seconds):.2f} over all (the lattice costs the same for each)"
    upper = counts >= 21
    lines[-1] += f", {_exponent(counts[upper], np.array(seconds)[upper]):.2f} from 21 on." if upper.sum() > 1 else "."
    return lines


def _growing(ours, peer, options, **request) -> dict:
    """Medians of a few rounds, after a first call."""
    request["iterations"] = options.iterations
    for worker in (ours, peer):
        if worker is not None:
            worker.ask(**request)
    times = taking_turns(ours, peer, options.scaling_rounds, **request)
    return {name: statistics.median(values) for name, values in times.items() if values}


def _theirs(found) -> str:
    return f"{found['peer']:.2f} | {found['peer'] / found['ours']:.2f}" if "peer" in found else " | "


def training(images, ours, peer, options) -> list[str]:
    """Forward and backward through the layer."""
    path, image = list(images.items())[-1]
    lines = [
        f"{path.parent.name}/{path.name}, {image.shape[0]}×{image.shape[1]}, {options.classes} classes, CRF-RNN's parameters\n",
        "| iterations | compiled by XLA | median step, s | first step, s | peak memory above the imports, MiB |",
        "|---|---|---|---|---|",
    ]
    request = {"what": "train", "image": image, "logits": unary(image, options.classes, "network")}
    for iterations in (5, 10):
        for jit in (False, True):
            # One of its own for each, because memory that another left behind would hide what this one takes.
            worker = our_worker()
            request |= {"parameters": PARAMETERS["CRF-RNN"], "iterations": iterations, "jit": jit}
            answers = [worker.ask(**request) for _ in range(1 + options.rounds)]
            worker.close()
            if not all(answer["finite"] for answer in answers):
                raise SystemExit(f"{iterations} iterations, XLA {jit}: a gradient is not finite")
            seconds = [float(answer["seconds"]) for answer in answers]
            peaks = [float(answer["peak"]) for answer in answers]
            lines.append(
                f"| {iterations} | {'yes' if jit else 'no'} | {statistics.median(seconds[1:]):.2f} | {seconds[0]:.1f} | "
                f"{max(peaks[1:]):.0f} (first step {peaks[0]:.0f}) |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def memory(images, ours, peer, options) -> list[str]:
    """Peak memory of one image, each in a fresh process."""
    path, image = list(images.items())[-1]
    lines = [
        f"MiB above the imports, {path.parent.name}/{path.name}, {image.shape[0]}×{image.shape[1]}, {options.classes} classes\n",
        "| parameters | ours, first call (compiles) | ours, second call | pydensecrf |",
        "|---|---|---|---|",
    ]
    request = {"image": image, "logits": unary(image, options.classes, "network"), "iterations": options.iterations}
    for name, parameters in PARAMETERS.items():
        peaks = []
        for make, times in ((our_worker, 2), (lambda: peer_worker(options.peer_python), 1)):
            if make is not our_worker and peer is None:
                continue
            worker = make()
            peaks += [f"{float(worker.ask(**request, parameters=parameters)['peak']):.0f}" for _ in range(times)]
            worker.close()
        lines.append(f"| {name} | " + " | ".join(peaks + [""] * (3 - len(peaks))) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _open(path: Path, size: tuple[int, int] | None):
    """A photograph, at most 500 pixels long, or of a given height and width."""
    picture = PIL.Image.open(path).convert("RGB")
    if size is not None:
        picture = picture.resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    elif max(picture.size) > 500:
        picture.thumbnail((500, 500), PIL.Image.Resampling.BICUBIC)
    return np.array(picture)


def _peer(options) -> Worker | None:
    """The other process; None and a line where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kerasseg" / "pydensecrf"
    try:
        options.peer_python = options.peer_python or crf_peer.build(cache, options.peer_repository)
        if not crf_peer.works(options.peer_python):
            raise RuntimeError(f"{options.peer_python} has no pydensecrf")
    except (RuntimeError, OSError) as error:
        print(f"Without pydensecrf: {error}\n", flush=True)
        return None
    return peer_worker(options.peer_python)


SECTIONS = {"table": table, "pixels": pixels, "classes": classes, "training": training, "memory": memory}


def main() -> None:
    def size(text: str):
        return tuple(map(int, text.split("x")))

    data = Path(os.environ.get("KERASSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "densecrf_examples"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="*", default=[data / name for name in PHOTOGRAPHS], help="photographs")
    parser.add_argument("--only", choices=SECTIONS, nargs="*", default=tuple(SECTIONS), help="default: all sections")
    parser.add_argument("--rounds", type=int, default=5, help="of the table and the training step")
    parser.add_argument("--scaling-rounds", type=int, default=3, help="of pixels and classes")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--classes", type=int, default=21, help="of all sections but the one about classes")
    parser.add_argument("--resize", type=size, metavar="HEIGHTxWIDTH", help="default: as the photographs are, at most 500 long")
    parser.add_argument("--megapixels", type=float, nargs="*", default=MEGAPIXELS)
    parser.add_argument("--class-counts", type=int, nargs="*", default=CLASSES)
    parser.add_argument("--peer-python", type=Path, help="a Python that has pydensecrf (default: built into the cache)")
    parser.add_argument("--peer-repository", default=crf_peer.REPOSITORY, help="where to clone pydensecrf from, to build it")
    options = parser.parse_args()
    missing = [str(path) for path in options.images if not path.is_file()]
    if missing:
        raise SystemExit(f"no {', '.join(missing)}: pass photographs, or set KERASSEG_DATA to the folder of densecrf_examples")
    images = {path: _open(path, options.resize) for path in options.images}
    ours, peer = our_worker(), _peer(options)
    for name in options.only:
        print(f"## {name}\n\n" + "\n".join(SECTIONS[name](images, ours, peer, options)) + "\n", flush=True)
    for worker in (ours, peer):
        if worker is not None:
            worker.close()


if __name__ == "__main__":
    main()
