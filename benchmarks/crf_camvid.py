"""What a CRF does for `camvid_small`: mean IoU and the trimap curve without one, with one that was tuned, and with a CRF-RNN.

python benchmarks/crf_camvid.py CAMVID --out runs/crf_camvid                          # all of it, about an hour on two cores
python benchmarks/crf_camvid.py CAMVID --out runs/crf_camvid --run runs/camvid_small  # behind a network that is trained already

Each step is a run of train.py, tools/tune_crf.py or evaluate.py; what is finished is not done again, what was interrupted goes on.
Parameters are searched on images of `val`, which no score below is of; all scores are of `test`. The CRF-RNN trains on the training
images, for `--minutes`, behind the network as it is. Figures go to OUT/crf_camvid.json, the curves to OUT/crf_camvid.png.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (1, 2, 5, 10, 20, 40)


def command(*arguments) -> str:
    """Runs one command line, shows what it says, and returns it."""
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        sys.stderr.write(line)
        lines.append(line)
    if process.wait():
        raise SystemExit(f"{arguments[0]} ended with code {process.returncode}; what is finished is kept")
    return "".join(lines)


def train(run: Path, *options) -> None:
    """Trains a run to its end, unless it is there, and notes the minutes that it took."""
    if (run / "model.keras").is_file():
        return
    start, took = time.time(), run / "minutes.json"
    before = json.loads(took.read_text()) if took.is_file() else 0
    try:
        command("train.py", "--run-dir", run, *options)
    finally:
        if run.is_dir():
            took.write_text(json.dumps(before + (time.time() - start) / 60))


def scores(run: Path, data: Path, report: Path, crf) -> dict:
    """Scores a run on the test images."""
    if not (report / "scores.json").is_file():
        where = ("--data", "camvid", "--data-dir", data, "--split", "test")
        command("evaluate.py", run, *where, "--crf", crf, "--trimap", "1:40", "--pictures", 4, "--report", report)
    return json.loads((report / "scores.json").read_text())


def tuned(run: Path, data: Path, folder: Path, images: int) -> Path:
    """Searches the parameters of a CRF on some of the validation images: the file that has the best."""
    best = folder / "best.json"
    if not best.is_file():
        where = ("--data", "camvid", "--data-dir", data, "--split", "val", "--images", images, "--out", folder)
        command("tools/tune_crf.py", run, *where)
    return best


def crf_rnn(network: Path, data: Path, run: Path, minutes: float) -> Path:
    """Trains a CRF-RNN behind a network for so many minutes, as this machine is fast."""
    what = ("--recipe", "camvid_crf_rnn", "--stage", "crf_rnn", "--init", network, "--data-dir", data)
    if not run.is_dir():
        found = re.search(r"speed +([\d.e+-]+) steps/s", command("train.py", *what, "--run-dir", run, "--dry-run"))
        if found is None:
            raise SystemExit("train.py --dry-run named no speed")
        what += ("--iterations", max(1, round(60 * minutes * float(found[1]))))
    train(run, *what)
    return run


def draw(found: dict, path: Path) -> None:
    """Mean IoU over the width of the band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, one in found.items():
        bands = one["trimap"]["bands"]
        axis.plot([band["width"] for band in bands], [100 * band["mean_iou"] for band in bands], "o-", markersize=3, label=name)
    axis.set(xlabel="width of the band around boundaries, pixels", ylabel="mean IoU in the band, %")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)


def table(found: dict) -> list[str]:
    """Scores over all pixels, and mean IoU in the bands, in percent."""
    lines = [
        "| | mean IoU | pixel accuracy | " + " | ".join(f"{width} px" for width in SHOWN) + " |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    for name, one in found.items():
        bands = {band["width"]: band["mean_iou"] for band in one["trimap"]["bands"]}
        values = [one["mean_iou"], one["pixel_accuracy"], *(bands[width] for width in SHOWN)]
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:.2f}" for value in values) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="CAMVID", help="folder of CamVid")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and figures")
    parser.add_argument("--run", type=Path, default=None, help="a run of camvid_small (default: trained into OUT)")
    parser.add_argument("--minutes", type=float, default=5, help="that the CRF-RNN trains")
    parser.add_argument("--search-images", type=int, default=20, help="of the validation images, to tune the CRF on")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.run is None:
        network = out / "camvid_small"
        train(network, "--recipe", "camvid_small", "--data-dir", data)
    else:
        network = options.run.resolve()
    best = tuned(network, data, out / "search", options.search_images)
    trained = crf_rnn(network, data, out / "camvid_crf_rnn", options.minutes)
    found = {
        "without CRF": scores(network, data, out / "without", "none"),
        "tuned CRF": scores(network, data, out / "tuned", best),
        "CRF-RNN": scores(trained, data, out / "crf_rnn", "none"),
    }
    kept = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class_iou", "trimap", "inference")
    took = {"crf_rnn": json.loads((trained / "minutes.json").read_text())}
    figures = {name: {key: one.get(key) for key in kept} for name, one in found.items()}
    result = {"parameters": json.loads(best.read_text()), "minutes": took, "scores": figures}
    (out / "crf_camvid.json").write_text(json.dumps(result, indent=2))
    draw(found, out / "crf_camvid.png")
    print("\n".join(table(found)))
    print(f"\nCRF-RNN: {took['crf_rnn']:.1f} minutes of training, loading and compiling among them. {out / 'crf_camvid.png'}")


if __name__ == "__main__":
    main()
