"""`tools/export.py`: write a file for devices."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.calibration import add_calibration_options, chosen_calibration
from kerasseg.cli.opening import Opened, label_table, open_run_or_model
from kerasseg.cli.options import parse_number, parse_size
from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError

# Photographs that a file is compared on, beside random images.
_PHOTOGRAPHS = 4
_ANY = "any"
# Option → what it is where it is not given; with --check the file itself says.
_DEFAULTS = {"format": "tflite", "quantize": "none", "batch_size": 1, "result": "logits"}
_NOT_WITH_CHECK = (*_DEFAULTS, "input_size", "output", "argmax", "select_tf_ops", "out", "labels")
# What is only of use with photographs for int8.
_CALIBRATION = ("calibration", "calibration_images", "calibration_split", "seed")
# Label tables are of bytes, the last of which says that nothing is known.
_MOST_NAMES = 255


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/export.py`."""
    made = make_parser(
        "export.py", "Write a network as a file for devices, run the file, and compare it with Keras before saying done."
    )
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    made.add_argument("--format", default=None, help="tflite (default), onnx or saved_model")
    made.add_argument(
        "--quantize", default=None, metavar="Q", help="of tflite: none (float32, default), float16, dynamic, int8 or int8-float-io"
    )
    made.add_argument(
        "--input-size",
        type=_or_any(parse_size),
        default=None,
        metavar="HxW|any",
        help="size of the images; any: not with tflite (default: as the run's images are)",
    )
    made.add_argument(
        "--batch-size", type=_or_any(_parse_count), default=None, metavar="N|any", help="images in one call (default: 1)"
    )
    made.add_argument(
        "--result",
        default=None,
        metavar="R",
        help="what the file gives: logits (default), probabilities, labels, nearest_labels or coarse_labels (before they are "
        "resized to the image: much smaller)",
    )
    made.add_argument("--argmax", action="store_true", help="the same as --result labels")
    made.add_argument("--output", default=None, metavar="HEAD", help="output of a network with several (default: all)")
    made.add_argument(
        "--select-tf-ops",
        action="store_true",
        help="let a TFLite file use TensorFlow's own operations, if it can still be run and compared",
    )
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")
    made.add_argument("--data-dir", default=None, help="folder of the data (default: the run's)")
    made.add_argument("--out", default=None, help="the file (default: below RUN/export, or MODEL-export beside a .keras file)")
    gate = made.add_argument_group("the comparison with Keras")
    gate.add_argument(
        "--tolerance", type=parse_number, default=None, metavar="X", help="largest error (default: by the quantization)"
    )
    gate.add_argument(
        "--agreement", type=parse_number, default=None, metavar="X", help="least share of pixels with the same class, 0 to 1"
    )
    gate.add_argument("--check", default=None, metavar="FILE", help="write nothing, and compare a file that is there")
    add_calibration_options(made.add_argument_group("calibration of int8"))
    return made


def _or_any(parse):
    def parsed(text: str):
        return _ANY if text.strip().lower() == _ANY else parse(text)

    return parsed


def _parse_count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received '{text}', expected a number of images, or any")
    return int(text)


def run(arguments: Sequence[str]) -> None:
    """Exports as the arguments say.

    Raises:
        KerassegError: If they cannot be followed, or the file computes something else.
    """
    options = parser().parse_args(arguments)
    _check_options(options)
    opened = open_run_or_model(options.model)
    if options.check is not None:
        _check(opened, options)
    else:
        _export(opened, options)


def _check_options(options) -> None:
    """Refuses what contradicts itself, before anything is opened."""
    if options.agreement is not None and not 0 <= options.agreement <= 1:
        raise KerassegError(f"--agreement {options.agreement:g}: expected a share of pixels from 0 to 1")
    if options.tolerance is not None and options.tolerance < 0:
        raise KerassegError(f"--tolerance {options.tolerance:g}: expected a relative error of at least 0")
    if options.check is not None:
        given = [name for name in _NOT_WITH_CHECK if getattr(options, name) not in (None, False)]
        if given:
            raise KerassegError(f"--check takes the file as it is: omit --{given[0].replace('_', '-')}")
    _check_calibration(options)
    if options.argmax:
        if options.result not in (None, "labels"):
            raise KerassegError(f"--argmax is --result labels, received --result {options.result} too: pass one of them")
        options.result = "labels"
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _check_calibration(options) -> None:
    """Refuses what would have no effect."""
    given = [name for name in _CALIBRATION if getattr(options, name) is not None]
    if not given or options.calibration is not None and options.check is not None:
        return
    option = f"--{given[0].replace('_', '-')}"
    if options.check is not None:
        raise KerassegError(f"{option} is for --calibration: pass that too, or omit it")
    if not (options.quantize or "").startswith("int8"):
        raise KerassegError(f"{option} is for --quantize int8: omit it")


def _export(opened: Opened, options) -> None:
    from kerasseg.export import TOLERANCES, cut_for, export_model

    # Names and contradictions are seen without the data.
    _target(options, None if options.input_size == _ANY else options.input_size or (1, 1))
    size = None if options.input_size == _ANY else options.input_size or _usual_size(opened, options)
    target = _target(options, size)
    out = Path(options.out) if options.out else _usual_place(opened.path) / target.name / target.file_name
    # Said before the work, not after it: that may take a while.
    if (left_out := cut_for(opened.model, target.format).left_out) is not None:
        print(f"left out of the file, which ends with the logits before it: {left_out}")
    if crf := opened.recipe and opened.recipe.crf:
        crf = f"the DenseCRF of the evaluation ({crf}) is not in the file, which gives what it would start from"
        print(crf)
    classes = _classes(opened.model, options.output)
    labels = label_table(opened, classes, options.labels) if options.labels or classes <= _MOST_NAMES else None
    images = photographs(opened, options, size)
    calibration, about = chosen_calibration(opened, options, size) if target.int8 else ((), None)
    path, found = export_model(
        opened.model,
        out,
        target,
        labels=labels,
        recipe=opened.recipe,
        # Better on those that it was fitted to than on none.
        images=images or calibration[:_PHOTOGRAPHS],
        calibration=calibration,
        calibrated_on=about,
        tolerance=_tolerance(options, TOLERANCES[target.quantize]),
        left_out=crf or None,
    )
    shape = "x".join("any" if side is None else str(side) for side in found.input["shape"][1:3])
    kind = target.format if target.quantize == "none" else f"{target.format} {target.quantize}"
    print(f"{path}: {kind}, {found.bytes / 1e6:.2f} MB, {shape}; {_shown(found.parity)}{_shown_latency(found.latency)}")


def _check(opened: Opened, options) -> None:
    from kerasseg.export import check_file
    from kerasseg.export.exporting import target_of, tolerance_of
    from kerasseg.runtimes import open_file

    exported = open_file(options.check)
    size, tolerance = target_of(exported).input_size, _tolerance(options, tolerance_of(exported))
    if options.calibration is None:
        images = photographs(opened, options, size)
    else:
        images = chosen_calibration(opened, options, size or _usual_size(opened, options))[0][:_PHOTOGRAPHS]
    parity = check_file(options.check, opened.model, images=images, tolerance=tolerance)
    limits = ", ".join(f"{name} {limit:g}" for name, limit in tolerance._asdict().items() if limit is not None)
    print(f"{options.check}: computes what Keras does; {_shown(parity._asdict())}; tolerance: {limits.replace('_', ' ') or 'any'}")


def _target(options, size):
    from kerasseg.export import Target

    batch = None if options.batch_size == _ANY else options.batch_size
    return Target(
        options.format, options.quantize, size and tuple(size), batch, options.result, options.output, options.select_tf_ops
    )


def _usual_place(path: Path) -> Path:
    return path / "export" if path.is_dir() else path.with_name(f"{path.stem}-export")


def _classes(model, head: str | None) -> int:
    from kerasseg.export.cutting import named_outputs

    output = named_outputs(model)
    if not isinstance(output, dict):
        return output.shape[-1]
    # An unknown head is refused where all of them are known.
    return output.get(head, next(iter(output.values()))).shape[-1]


def _tolerance(options, tolerance):
    """What the comparison must find, as far as the options say something else; the same errors count."""
    if options.tolerance is not None:
        names = [name for name in ("relative_error", "rms_error") if getattr(tolerance, name) is not None] or ["rms_error"]
        tolerance = tolerance._replace(**dict.fromkeys(names, options.tolerance))
    return tolerance if options.agreement is None else tolerance._replace(argmax_agreement=options.agreement)


def _usual_size(opened: Opened, options) -> tuple[int, int]:
    """The size of the run's validation images at the run's scale, rounded up to what the network takes."""
    from kerasseg.export.sizes import fitting

    size = opened.model.inputs[0].shape[1:3]
    if None not in size:
        return tuple(size)
    found = _validation_images(opened, options, 1)
    if not found:
        raise KerassegError(f"{opened.path} does not say how large its images are: pass --input-size, such as 513x513")
    size = [max(1, round(side * opened.recipe.image_scale)) for side in found[0].shape[:2]]
    return fitting(opened.model, size)


def photographs(opened: Opened, options, size: tuple[int, int] | None) -> list:
    """A few images of the run's own data as the file will see them, at the scale it was trained at; none if there are none."""
    from kerasseg.evaluation.fitted import fit_image

    images = _validation_images(opened, options, _PHOTOGRAPHS)
    if not images:
        return []
    return [fit_image(image, size or _usual_size(opened, options), opened.recipe.image_scale) for image in images]


def _validation_images(opened: Opened, options, count: int) -> list:
    from kerasseg.recipes.building import open_recipe_data

    recipe = opened.recipe
    if recipe is None:
        return []
    recipe = recipe if options.data_dir is None else recipe.override(data_dir=options.data_dir)
    try:
        data = open_recipe_data(recipe, recipe.validation_split or recipe.split)
        return [data[index].image for index in range(min(count, len(data) if data.photographs else 0))]
    except KerassegError as error:
        if options.data_dir is not None:
            raise
        if count > 1:
            print(f"comparing on random images alone, since the run's data cannot be read: {error}")
        return []


def _shown(parity) -> str:
    return (
        f"against Keras on {parity['images']} images ({parity['real_images']} of them photographs): relative error "
        f"{parity['relative_error']:.1e}, rms {parity['rms_error']:.1e}, same class in {100 * parity['argmax_agreement']:.3f} % of "
        "pixels"
    )


def _shown_latency(latency) -> str:
    if latency is None:
        return ""
    threads = "" if latency["threads"] is None else f"{latency['threads']} threads, "
    of = "x".join(map(str, latency["input"][1:3]))
    return f"; {latency['milliseconds']:g} ms for {latency['input'][0]} of {of}, {threads}{latency['processor']}"


def main() -> int:
    """Runs `tools/export.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
