"""Every network as every kind of file: what it computes against Keras, its size, its time and its operations, as a table.

python benchmarks/export_parity.py                          # all of it, about 25 minutes on two cores
python benchmarks/export_parity.py --only fcn8s gcn         # two networks
python benchmarks/export_parity.py --steps 0                # random weights, batch norm's statistics of the pictures
python benchmarks/export_parity.py --table                  # the table of what is there, nothing else

All networks of MODELS at a sixteenth of their width, six classes, 129x129 pixels (DeconvNet 224x224), batch 1, trained for
`--steps` on the built-in pictures first: random weights say little about int8, whose ranges are those of real activations. The
ground counts a quarter in the loss, so that they find more than it; batch norm's statistics are then recomputed. Files are compared
on four pictures of the validation split, and on random images; int8 is calibrated on 16 of the training split, and judged on the
four. Latency is the median of runs on all cores.

Each network is a process of its own. One that dies while it makes a file leaves a row that says so, and the next process goes on
behind it. Rows are lines of WORK/rows.jsonl: a second call does what is missing; `--anew` makes those of the networks anew that are
asked for.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from kerasseg.models import MODELS

WIDTH, CLASSES, SIZE, SIZES = 1 / 16, 6, (129, 129), {"deconvnet": (224, 224)}
RATE, BATCH, SEED, GROUND = 1e-3, 8, 0, 0.25
# Seconds after which a process that trains, or makes one file, is taken for stuck.
LIMIT = 900
# Name in the table → what is asked for.
FORMS = {
    "saved_model": {"format": "saved_model"},
    "onnx": {"format": "onnx"},
    "tflite": {},
    "tflite labels": {"result": "labels"},
    "tflite nearest_labels": {"result": "nearest_labels"},
    "tflite coarse_labels": {"result": "coarse_labels"},
    "tflite float16": {"quantize": "float16"},
    "tflite dynamic": {"quantize": "dynamic"},
    "tflite int8": {"quantize": "int8"},
    "tflite int8-float-io": {"quantize": "int8-float-io"},
}
# Operations that say that a dilated convolution was taken apart, or that a device would need more than TFLite's own.
FOREIGN = ("SPACETOBATCH", "BATCHTOSPACE", "FLEX", "CUSTOM")


def pictures(split: str, count: int, size):
    from kerasseg.data.shapes import Shapes

    data = Shapes(split=split, size=size)
    return [data.read(index) for index in range(count)]


def network(arch: str, steps: int, folder: Path):
    """The network, trained; its weights are kept for the process that comes after one that died."""
    import keras

    from kerasseg.export import cut_for

    keras.utils.set_random_seed(SEED)
    model = MODELS[arch](CLASSES, width_multiplier=WIDTH)
    kept = folder / f"{arch}-{steps}.weights.h5"
    if kept.is_file():
        model.load_weights(kept)
        return model
    # A CRF-RNN is no part of TFLite files, and slow to train through.
    trained = cut_for(model, "tflite").model
    if steps:
        train(trained, steps, SIZES.get(arch, SIZE))
    else:
        draw_weights(trained)
    settle(trained, SIZES.get(arch, SIZE))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(kept)
    return model


def train(model, steps: int, size) -> None:
    import keras
    import tensorflow as tf

    from kerasseg.losses import SegmentationCrossEntropy
    from kerasseg.training import Trainer

    examples = pictures("train", 96, size)
    images, labels = (np.stack([getattr(example, part) for example in examples]) for part in ("image", "label"))
    data = tf.data.Dataset.from_tensor_slices((images.astype(np.float32), labels)).repeat().shuffle(96, SEED).batch(BATCH)
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, steps, 0.0, 0.9)
    # Most of a picture is ground: weighed like the rest, it is all that a short training finds, and then every file agrees.
    loss = SegmentationCrossEntropy(class_weights=[GROUND] + [1.0] * (CLASSES - 1))
    trainer = Trainer(model, optimizer=keras.optimizers.Adam(rate), loss=loss, clip_norm=1.0)
    losses = [step.loss for step in trainer.train(lambda start, share: data, steps)]
    print(f"  trained: loss {np.mean(losses[:5]):.2f} to {np.mean(losses[-10:]):.2f}", flush=True)


def draw_weights(model) -> None:
    """Kernels by He's rule, biases and batch norm's parameters at random: the last layer of a new network is zero."""
    generator = np.random.default_rng(SEED)
    for weight in model.trainable_weights:
        shape, kind = tuple(weight.shape), weight.name
        if len(shape) > 1:
            weight.assign(generator.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
        else:
            weight.assign(generator.uniform(0.5, 1.5, shape) if kind == "gamma" else generator.normal(0, 0.1, shape))


def settle(model, size) -> None:
    """Batch norm's statistics of the pictures; its momentum is made for many more steps."""
    import keras

    from kerasseg.training.statistics import recompute_statistics

    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        images = [example.image.astype(np.float32) for example in pictures("train", 4 * BATCH, size)]
        recompute_statistics(model, [np.stack(images[at : at + BATCH]) for at in range(0, 4 * BATCH, BATCH)], 4)


def commonest(model, size) -> float:
    """The share of the class that the network finds most often: near 1, that files agree on it says nothing."""
    from kerasseg.export import cut_for

    images = np.stack([example.image for example in pictures("val", 4, size)]).astype(np.float32)
    labels = np.argmax(cut_for(model, "tflite").model.predict(images, batch_size=1, verbose=0), -1)
    return float(np.bincount(labels.ravel(), minlength=CLASSES).max() / labels.size)


def convert(model, arch: str, form: str, folder: Path) -> dict:
    """One row: figures, or the reason why there are none."""
    from kerasseg import KerassegError
    from kerasseg.export import TOLERANCES, Parity, Target, Tolerance, export_model

    size = SIZES.get(arch, SIZE)
    target = Target(**{"input_size": size, **FORMS[form]})
    real = [example.image.astype(np.float32) for example in pictures("val", 4, size)]
    calibration = [example.image.astype(np.float32) for example in pictures("train", 16, size)] if target.int8 else ()
    # Whatever is finite passes: the table shows what the gate would refuse, and that it would.
    anything = Tolerance(None, None, None)
    path = folder / arch / target.name / target.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = export_model(model, path, target, images=real, calibration=calibration, tolerance=anything).description
    except KerassegError as error:
        return {"reason": str(error)}
    parity = Parity(**found.parity)
    return {
        **found.parity,
        "gate": TOLERANCES[target.quantize].complaint(parity),
        "bytes": found.bytes,
        "milliseconds": found.latency["milliseconds"],
        "operations": dict(found.operations),
        "left_out": found.left_out,
        "kept_float": list(found.kept_float),
    }


def work(arch: str, forms: list[str], steps: int, folder: Path) -> None:
    """The child's part: announces each form, and writes its row."""
    print("begin", "network", flush=True)
    try:
        model = network(arch, steps, folder / "weights")
        share = commonest(model, SIZES.get(arch, SIZE))
    except Exception as error:
        for form in forms:
            keep(folder, arch, form, steps, {"reason": f"no network: {first_line(error)}"})
        return
    for form in forms:
        print("begin", form, flush=True)
        start = time.perf_counter()
        try:
            row = convert(model, arch, form, folder / "files")
        # A converter may raise anything; the row says what.
        except Exception as error:
            row = {"reason": first_line(error)}
        keep(folder, arch, form, steps, {**row, "commonest": share, "seconds": round(time.perf_counter() - start, 1)})


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def keep(folder: Path, arch: str, form: str, steps: int, row: dict) -> None:
    with open(folder / "rows.jsonl", "a") as file:
        file.write(json.dumps({"arch": arch, "form": form, "steps": steps, **row}) + "\n")


def rows(folder: Path, steps: int) -> dict[tuple[str, str], dict]:
    path = folder / "rows.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {(row["arch"], row["form"]): row for row in lines if row["steps"] == steps}


def forget(folder: Path, archs: list[str]) -> None:
    """Removes the rows and weights of some networks; those of others stay."""
    path, between = folder / "rows.jsonl", folder / "rows.jsonl.new"
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        between.write_text("".join(line for line in lines if json.loads(line)["arch"] not in archs))
        between.replace(path)
    for arch in archs:
        for weights in (folder / "weights").glob(f"{arch}-*.weights.h5"):
            weights.unlink()


def run_network(arch: str, steps: int, folder: Path) -> None:
    """Makes the rows of one network that are missing, in as many processes as it takes."""
    while forms := [form for form in FORMS if (arch, form) not in rows(folder, steps)]:
        reached, end = watch([sys.executable, __file__, "--child", arch, json.dumps(forms), str(steps), str(folder)])
        if end is None:
            continue
        # Without its network, nothing of it can be made.
        for form in [reached] if reached in FORMS else forms:
            if (arch, form) not in rows(folder, steps):
                what = "making it" if reached in FORMS else "making the network"
                keep(folder, arch, form, steps, {"reason": f"the process {end}, {what}"})


def watch(command: list[str]) -> tuple[str, str | None]:
    """Runs a child: what it began last, and how it ended if not well."""
    process, reached, stuck = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), "network", []
    # Converters write pages there; a pipe that is not read would fill up.
    threading.Thread(target=process.stderr.read, daemon=True).start()

    def watchdog() -> threading.Timer:
        timer = threading.Timer(LIMIT, lambda: (stuck.append(True), process.kill()))
        timer.start()
        return timer

    timer = watchdog()
    for line in process.stdout:
        if line.startswith("begin "):
            reached = line.removeprefix("begin ").strip()
            timer.cancel()
            timer = watchdog()
        elif line.startswith("  trained"):
            print(line, end="", file=sys.stderr, flush=True)
    code = process.wait()
    timer.cancel()
    if stuck:
        return reached, f"took more than {LIMIT} s"
    return reached, None if code == 0 else f"died with code {code}" if code > 0 else f"died of signal {-code}"


def foreign(row: dict) -> list[str]:
    """Operations that should not be there. All of TFLite's own are in capitals."""
    names = list(row["operations"])
    bad = [name for name in names if any(part in name.upper().replace("_", "") for part in FOREIGN)]
    return bad + [name for name in names if row["form"].startswith("tflite") and name != name.upper() and name not in bad]


def counted(names) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))


def cell(row: dict) -> list[str]:
    """The columns of one row."""
    if row.get("reason"):
        return [f"none: {row['reason']}"] + [""] * 8
    notes = [f"without {row['left_out']}"] if row["left_out"] else []
    notes += [f"in float: {counted(name.split()[0] for name in row['kept_float'])}"] if row["kept_float"] else []
    return [
        f"{row['relative_error']:.1e}",
        f"{row['rms_error']:.1e}",
        f"{100 * row['argmax_agreement']:.2f}",
        "passes" if row["gate"] is None else f"**refuses**: {row['gate']}",
        f"{row['bytes'] / 1000:.0f}",
        f"{row['milliseconds']:.2f}",
        f"{sum(row['operations'].values())} of {len(row['operations'])} kinds",
        ", ".join(foreign(row)) or "none",
        "; ".join(notes),
    ]


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    first, *others = (f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in [head, *lines])
    return [first, "|---" * len(head) + "|", *others]


def whole_table(found: dict, archs: list[str]) -> list[str]:
    """A line for each network and form."""
    head = ["network", "file", "relative error", "rms error", "same class, %", "default gate", "kB", "ms", "operations"]
    missing = {"reason": "not made yet"}
    lines = [[arch, form, *cell(found.get((arch, form), missing))] for arch in archs for form in FORMS]
    return markdown([*head, "foreign operations", "notes"], lines)


def remark(row: dict, figures: list[str]) -> str:
    """What must be said of a file beside its figures."""
    if row.get("reason"):
        return row["reason"]
    said = [f"one class covers {row['commonest']:.0%} of what Keras finds"] if row["commonest"] > 0.95 else []
    said += [f"the default gate {figures[3]}"] if row["gate"] else []
    said += [f"without {row['left_out']}"] if row["left_out"] else []
    return "; ".join([*said, *([f"foreign operations: {figures[7]}"] if foreign(row) else [])])


def short_table(found: dict, archs: list[str]) -> list[str]:
    """A line for each network: rms error, same class, kB and ms of each form; below, what is to be said of some."""
    lines, notes = [], {}
    for arch in archs:
        line = [arch]
        for form in FORMS:
            row = found.get((arch, form), {"reason": "not made yet"})
            figures = cell(row)
            line.append("none" if row.get("reason") else " · ".join((figures[1], figures[2], figures[4], figures[5])))
            if note := remark(row, figures):
                notes.setdefault(f"{arch}: {note}", len(notes) + 1)
                line[-1] += f" ({notes[f'{arch}: {note}']})"
        lines.append(line)
    table = markdown(["network", *FORMS], lines)
    return [*table, *([""] if notes else []), *(f"({number}) {note}  " for note, number in notes.items())]


def operations(found: dict, archs: list[str]) -> list[str]:
    """What the float32 TFLite files consist of, and what in them is foreign."""
    made = [found[arch, "tflite"] for arch in archs if "operations" in found.get((arch, "tflite"), {})]
    lines = [[row["arch"], counted(Counter(row["operations"]).elements()), ", ".join(foreign(row)) or "none"] for row in made]
    return markdown(["network", "operations, float32 TFLite", "foreign"], lines)


def summary(found: dict) -> list[str]:
    """For each form, the worst of all networks."""
    lines = []
    for form in FORMS:
        of_form = [row for (_, each), row in found.items() if each == form]
        good = [row for row in of_form if not row.get("reason")]
        if not good:
            continue
        worst = [max(good, key=lambda row: row[figure]) for figure in ("relative_error", "rms_error")]
        least = min(good, key=lambda row: row["argmax_agreement"])
        lines.append(
            [
                form,
                f"{len(good)} of {len(of_form)}",
                str(sum(row["gate"] is None for row in good)),
                f"{worst[0]['relative_error']:.1e} ({worst[0]['arch']})",
                f"{worst[1]['rms_error']:.1e} ({worst[1]['arch']})",
                f"{100 * least['argmax_agreement']:.2f} ({least['arch']})",
                ", ".join(sorted({name for row in good for name in foreign(row)})) or "none",
            ]
        )
    head = ["file", "made", "pass the default gate", "largest relative error", "largest rms error", "least same class, %"]
    return markdown([*head, "foreign operations"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NETWORK", help="default: all")
    parser.add_argument("--steps", type=int, default=100, help="that each network trains; 0: random weights")
    parser.add_argument("--work", type=Path, default=Path("runs/export_parity"), help="folder of files and rows")
    parser.add_argument("--anew", action="store_true", help="forget the rows and weights of these networks")
    parser.add_argument("--table", action="store_true", help="print what is there and make nothing")
    parser.add_argument("--long", action="store_true", help="print a line for each file, instead of one for each network")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        arch, forms, steps, folder = options.child
        work(arch, json.loads(forms), int(steps), Path(folder))
        return
    folder = options.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.anew and not options.table:
        forget(folder, options.only)
    for arch in () if options.table else options.only:
        start = time.perf_counter()
        run_network(arch, options.steps, folder)
        print(f"{arch}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    found = {key: row for key, row in rows(folder, options.steps).items() if key[0] in options.only}
    how = f"trained for {options.steps} steps" if options.steps else "random weights, statistics"
    print(f"Width 1/{1 / WIDTH:g}, {CLASSES} classes, {how} on `shapes`:\n")
    print("\n".join([*summary(found), ""]))
    if shares := {row["commonest"]: arch for (arch, _), row in found.items() if "commonest" in row}:
        print(f"Of what Keras finds, one class covers at most {max(shares):.0%} ({shares[max(shares)]}).\n")
    if options.long:
        print("\n".join(whole_table(found, options.only)))
        return
    print("rms error · same class, % · kB · ms\n")
    print("\n".join([*short_table(found, options.only), "", *operations(found, options.only)]))


if __name__ == "__main__":
    main()
