"""`tools/convert_weights.py`: a Caffe file's weights as a model of Keras."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kerasseg.cli.networks import builder_arguments
from kerasseg.cli.options import parse_assignment, parse_number
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS
from kerasseg.runs import atomic_path
from kerasseg.runtimes import is_exported

SUFFIXES = (".keras", ".weights.h5")
_DEFAULT_CLASSES = 21
# Arguments of the network that have options of their own.
_NAMED = ("width_multiplier", "preprocessing")
# Two small networks show which layers depend on the number of classes; no width at this multiplier is one of these.
_PROBES, _PROBE_WIDTH = (23, 29), 1 / 16


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/convert_weights.py`."""
    made = make_parser("convert_weights.py", "Write the weights of a .caffemodel as a model of Keras. Caffe is not needed.")
    made.add_argument("file", metavar="FILE", help="the .caffemodel")
    made.add_argument("--list", action="store_true", help="only print the layers of the file that have weights, and their shapes")
    made.add_argument("--arch", default=None, help=f"network, one of: {', '.join(MODELS)}")
    made.add_argument("--out", default=None, help="the file to write: NAME.keras, or NAME.weights.h5 for the weights alone")
    made.add_argument(
        "--num-classes",
        nargs="+",
        type=parse_classes,
        default=None,
        metavar="N",
        help="number of classes, or HEAD=N for each head (default: as the file's score layers have; else 21)",
    )
    made.add_argument("--arguments", nargs="+", type=parse_assignment, default=[], metavar="NAME=VALUE", help="of the network")
    made.add_argument("--width-multiplier", type=parse_number, default=None, help="factor on the width of the layers (default: 1)")
    made.add_argument(
        "--preprocessing",
        default=None,
        help="what the network does to an image first, or none (default: the network's)",
    )
    made.add_argument("--skip-mismatch", action="store_true", help="load what fits, and print what does not")
    return made


def parse_classes(text: str) -> tuple[str, int]:
    """Reads `N` or `HEAD=N`; the head of the first is empty."""
    head, sign, number = text.rpartition("=")
    if not number.isdecimal() or int(number) < 1 or (sign and not head):
        raise argparse.ArgumentTypeError(f"received '{text}', expected a number of classes or HEAD=N, such as 21 or semantic=33")
    return head, int(number)


def run(arguments: Sequence[str]) -> None:
    """Converts, or lists, as the arguments say.

    Raises:
        KerassegError: If they cannot be followed, or the file cannot be read or does not fit the network.
    """
    options = parser().parse_args(arguments)
    if is_exported(options.file):
        raise KerassegError(
            f"{options.file} is an exported file, whose weights are folded: expected the run or .keras file that it was made of"
        )
    if not options.list:
        _check(options)
    start_tensorflow()
    from kerasseg.interop import read_caffemodel

    if options.list:
        print(_table(read_caffemodel(options.file)))
        return
    model, words, left = _converted(options)
    with atomic_path(options.out) as temporary:
        (model.save if options.out.endswith(".keras") else model.save_weights)(temporary)
    for problem in left:
        print(f"left: {problem}")
    print(f"{options.out}: {model.name} of {words}, {model.count_params():,} parameters, from {options.file}")


def _converted(options: argparse.Namespace):
    """The network with the file's weights, its classes in words, and what did not fit; the file's arrays are let go of."""
    from kerasseg.interop import load_caffe, read_caffemodel

    source = read_caffemodel(options.file)
    classes = _classes(options, source)
    model = _build(options, classes)
    try:
        left = load_caffe(model, source, skip_mismatch=options.skip_mismatch)
    except KerassegError as error:
        hint = str(error).replace("skip_mismatch=True loads", "--skip-mismatch loads")
        raise KerassegError(f"{options.file}: {hint}; --list shows what the file holds") from error
    return model, _words(classes), left


def _check(options: argparse.Namespace) -> None:
    """Refuses, before TensorFlow is imported, what can never be followed."""
    for name in ("arch", "out"):
        if getattr(options, name) is None:
            raise KerassegError(f"received no --{name}: pass --arch NETWORK --out NAME.keras, or --list to see what the file holds")
    if options.arch not in MODELS:
        MODELS[options.arch]
    if not options.out.endswith(SUFFIXES) or Path(options.out).name in SUFFIXES:
        raise KerassegError(f"--out {options.out}: expected a file name that ends in {' or '.join(SUFFIXES)}")
    if options.width_multiplier is not None and options.width_multiplier <= 0:
        raise KerassegError(f"--width-multiplier {options.width_multiplier}: expected a number above 0")
    builder_arguments(options, _NAMED)
    heads = [head for head, _ in options.num_classes or ()]
    if len(heads) > 1 and ("" in heads or len(set(heads)) < len(heads)):
        raise KerassegError(
            f"--num-classes for the heads {', '.join(h or 'without name' for h in heads)}: expected HEAD=N once each"
        )


def _build(options: argparse.Namespace, classes: int | Mapping[str, int], **changes):
    """Builds the network that the command line describes, but for some changes."""
    from kerasseg.recipes.building import call_builder

    arguments = builder_arguments(options, _NAMED)
    if (options.preprocessing or "").lower() == "none":
        arguments["preprocessing"] = None
    return call_builder(options.arch, classes, {**arguments, **changes})


def _classes(options: argparse.Namespace, source) -> int | Mapping[str, int]:
    """The number of classes: what was asked for, if the file's score layers do not contradict it; else theirs."""
    from kerasseg.interop import fitting_classes

    asked = dict(options.num_classes or ())
    if asked and "" not in asked:
        return asked
    try:
        fitting = fitting_classes(source, *(_build(options, count, width_multiplier=_PROBE_WIDTH) for count in _PROBES), _PROBES)
    except KerassegError:
        # Some networks have one width only; a mistake in the arguments shows again when the network itself is built.
        fitting = {}
    numbers = sorted(set(fitting.values()))
    if not asked:
        return numbers[0] if len(numbers) == 1 and numbers[0] > 0 else _DEFAULT_CLASSES
    if numbers and asked[""] not in numbers and not options.skip_mismatch:
        raise KerassegError(
            f"--num-classes {asked['']}: {', '.join(fitting)} of {options.file} fit {' or '.join(map(str, numbers))}; pass "
            f"--num-classes {numbers[0]}, or --skip-mismatch to leave these layers as they are"
        )
    return asked[""]


def _words(classes: int | Mapping[str, int]) -> str:
    if isinstance(classes, Mapping):
        return " and ".join(f"{number} {head}" for head, number in classes.items()) + " classes"
    return f"{classes} classes"


def _table(source: Mapping) -> str:
    """One line for each layer: its name, its numbers, the shapes of its arrays in Caffe's order."""
    width = max(map(len, (*source, "layer")))
    lines = [f"{'layer':{width}} {'numbers':>13}  shapes"]
    for name, arrays in source.items():
        shapes = "  ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays)
        lines.append(f"{name:{width}} {sum(array.size for array in arrays):13,}  {shapes}")
    total = sum(array.size for arrays in source.values() for array in arrays)
    return "\n".join([*lines, f"{'together':{width}} {total:13,}"])


def main() -> int:
    """Runs `tools/convert_weights.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
