"""The papers' ablations on CamVid, from scratch on a CPU: what the tables in docs/results.md were made by.

python benchmarks/camvid_ablations.py CAMVID --out runs/ablations                 # all of them, about 100 CPU-minutes
python benchmarks/camvid_ablations.py CAMVID --out runs/ablations --only gcn

Each row is a run of train.py and evaluate.py; what is finished is not done again. GCN's heads (Tables 1 and 5 of its paper) are
trained on one trunk, which stays as it is; the context modules (Dilation, Table 3) on one front end, from its stored scores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Names of MSRA's layers: all of the trunk's weights.
TRUNK = r"conv1|bn_conv1|(res|bn)[2-5][a-f]_branch.*"
LEVELS = ("res2c", "res3d", "res4f", "res5c")
HEADS = {
    f"{name}{' + BR' if refined else ''}": {**arguments, "boundary_refinement": refined}
    for refined in (False, True)
    for name, arguments in {
        "1×1": {"head": "none"},
        "k = 3": {"kernel_size": 3},
        "k = 7": {"kernel_size": 7},
        "k = 15": {"kernel_size": 15},
    }.items()
}


def command(*arguments) -> float:
    """Runs one command line and gives the CPU-minutes it took."""
    before = os.times()
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True, stdout=sys.stderr)
    after = os.times()
    return (after.children_user - before.children_user + after.children_system - before.children_system) / 60


def train(run: Path, data: Path, *options) -> None:
    """Trains a run unless it is finished, and notes what it took."""
    if (run / "model.keras").is_file():
        return
    start = time.time()
    minutes = command("train.py", "--data-dir", data, "--run-dir", run, *options)
    (run / "took.json").write_text(json.dumps({"cpu_minutes": minutes, "minutes": (time.time() - start) / 60}))


def evaluate(run: Path, *options) -> dict:
    """Scores a run on the test images unless that is done; the report is a folder of its own."""
    report = run.with_suffix("") / "report" / "ablation"
    if not (report / "scores.json").is_file():
        command("evaluate.py", run, "--split", "test", "--boundary", 7, "--pictures", 4, "--report", report, *options)
    return json.loads((report / "scores.json").read_text())


def row(name: str, run: Path, scores: dict) -> str:
    """One line of a table: accuracy at and off the boundary, pixel accuracy and mean IoU in percent, CPU-minutes of training."""
    took = json.loads((run / "took.json").read_text())
    shown = [scores["boundary"]["boundary"]["pixel_accuracy"], scores["boundary"]["internal"]["pixel_accuracy"]]
    shown += [scores["pixel_accuracy"], scores["mean_iou"]]
    return f"| {name} | " + " | ".join(f"{100 * value:.2f}" for value in shown) + f" | {took['cpu_minutes']:.1f} |"


def heading(what: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {what} | boundary acc. | internal acc. | pixel acc. | mean IoU | CPU-minutes |", "|---|---|---|---|---|---|"]


def keep_trunk(run: Path, path: Path) -> None:
    """Saves the trunk of a run alone, so that no head starts ahead of the others."""
    if path.is_file():
        return
    import keras

    import kerasseg

    model = kerasseg.load_model(run)
    keras.Model(model.input, [model.get_layer(name).output for name in LEVELS], name="trunk").save(path)


def gcn(data: Path, out: Path, iterations: int) -> list[str]:
    """Tables 1 and 5 of Peng et al. 2017: one trunk, trained under 1×1 heads, and only heads trained on it."""
    plain = ("head=none", "boundary_refinement=false")
    train(out / "gcn_trunk", data, "--recipe", "camvid_gcn", "--arguments", *plain)
    keep_trunk(out / "gcn_trunk", out / "trunk.keras")
    lines = heading("head on the same trunk")
    for number, (name, arguments) in enumerate(HEADS.items()):
        run = out / f"gcn_head_{number}"
        given = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in arguments.items()]
        options = ("--init", out / "trunk.keras", "--freeze", TRUNK, "--iterations", iterations)
        train(run, data, "--recipe", "camvid_gcn", "--arguments", *given, *options)
        lines.append(row(name, run, evaluate(run)))
    lines.append(row("the run that made the trunk", out / "gcn_trunk", evaluate(out / "gcn_trunk")))
    return lines


def dilation(data: Path, out: Path, iterations: int) -> list[str]:
    """Table 3 of Yu & Koltun 2016 without its CRFs: the front end, and each context module on its stored scores."""
    front = out / "frontend"
    train(front, data, "--recipe", "camvid_dilation_frontend")
    lines = [*heading("network"), row("front end", front, evaluate(front))]
    stored = out / "features"
    if not (stored / "train" / "features.json").is_file():
        # 732×852 pixels are a whole image and its margin.
        where = ("--data", "camvid", "--data-dir", data, "--split", "train", "--pad-size", "732x852")
        command("tools/store_features.py", front, "--layer", "final", *where, "--out", stored)
    # In bfloat16, oneDNN's gradient of a convolution of these sizes (44 to 88 channels, rate 4) ends the process.
    off = ("--precision", "float32", "--margin", 0, "--label-margin", 0, "--random-scale", "none", "--color-jitter", 0, "--no-flip")
    for context in ("basic", "large"):
        run = out / f"context_{context}"
        form = ("--arguments", "from_features=true", f"context={context}", "--training-arguments", "none")
        what = ("--recipe", "camvid_dilation_frontend", "--arch", "dilation8", "--data", "features")
        train(run, stored, *what, *form, *off, "--crop-size", "none", "--batch-size", 2, "--iterations", iterations // 2)
        whole = out / f"front_{context}.keras"
        join(front, run, whole, context)
        lines.append(row(f"front end + {context} context", run, evaluate(whole, "--data", "camvid", "--data-dir", data)))
    return lines


def join(front: Path, context: Path, path: Path, form: str) -> None:
    """Saves the front end and a context module that was trained on its scores as one network."""
    if path.is_file():
        return
    import kerasseg
    from kerasseg.recipes.camvid import CAMVID_DILATION_FRONTEND

    sources = [kerasseg.load_model(run) for run in (front, context)]
    arguments = {**CAMVID_DILATION_FRONTEND.network_arguments(), "context": form}
    model = kerasseg.models.MODELS["dilation8"](sources[0].output.shape[-1], **arguments)
    for source in sources:
        kerasseg.transplant(source, model)
    model.save(path)


def deconvnet(data: Path, out: Path, iterations: int) -> list[str]:
    """DeconvNet on whole images."""
    train(out / "deconvnet", data, "--recipe", "camvid_deconvnet")
    return [*heading("network"), row("DeconvNet, whole images", out / "deconvnet", evaluate(out / "deconvnet"))]


PARTS = {"gcn": gcn, "dilation": dilation, "deconvnet": deconvnet}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of CamVid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=tuple(PARTS), help="default: all")
    parser.add_argument("--iterations", type=int, default=500, help="steps of each head; context modules take half as many")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.only:
        print("\n".join(PARTS[part](options.data.resolve(), options.out.resolve(), options.iterations)), "\n", flush=True)


if __name__ == "__main__":
    main()
