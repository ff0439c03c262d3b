"""`tools/crf.py`: clean a rough annotation of a photograph by a dense CRF."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.crf import PARAMETERS
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/crf.py`."""
    made = make_parser(
        "crf.py",
        "Clean a rough annotation: labels spread to pixels that are near and of like colour, unknown pixels get one, and wrong "
        "ones give way. The mask may hold indices (grey, palette) or colours; the result is written in the same coding.",
    )
    made.add_argument("image", metavar="IMAGE", help="photograph")
    made.add_argument("mask", metavar="MASK", help="its rough annotation, of the same size: PNG")
    made.add_argument("--out", required=True, help="PNG to write")
    made.add_argument("--overwrite", action="store_true", help="write it even if it is there already")
    made.add_argument(
        "--unknown",
        default="auto",
        help="pixels that can be anything: an index, a colour such as 0,0,0, or none; auto: index 255, if a mask of indices holds "
        "it, else black in masks of colours or with a palette; but for none, what is wholly transparent is unknown, too",
    )
    made.add_argument("--gt-prob", type=float, default=0.7, help="how sure the annotation is, above 1/classes, below 1")
    made.add_argument("--crf", default="pydensecrf", help=f"parameters: {', '.join(PARAMETERS)}; or a file of tools/tune_crf.py")
    made.add_argument("--iterations", type=int, default=None, help="mean field steps (default: those of the parameters)")
    return made


def run(arguments: Sequence[str]) -> None:
    """Cleans as the arguments say.

    Raises:
        KerassegError: If they cannot be followed; nothing is written then.
    """
    options = parser().parse_args(arguments)
    unknown = _check(options)
    start_tensorflow()
    from kerasseg.crf import dense_crf
    from kerasseg.data import decode_image
    from kerasseg.evaluation import crf_parameters
    from kerasseg.evaluation.annotations import read_annotation

    parameters = crf_parameters(options.crf)
    image, annotation = decode_image(options.image), read_annotation(options.mask, unknown)
    if annotation.labels.shape != image.shape[:2]:
        sizes = ["x".join(map(str, each.shape[:2])) for each in (annotation.labels, image)]
        raise KerassegError(
            f"mask {options.mask} is {sizes[0]}, image {options.image} {sizes[1]}: expected the same height and width"
        )
    classes = len(annotation.codes)
    # With a single class there is nothing to be sure of.
    if classes > 1 and options.gt_prob <= 1 / classes:
        raise KerassegError(
            f"--gt-prob {options.gt_prob:g}: mask {options.mask} has {classes} classes, expected more than 1/{classes}, such as "
            f"{(1 + 1 / classes) / 2:.2g}: else what was drawn is no likelier than the rest"
        )
    marginals = dense_crf(
        image,
        None,
        parameters,
        labels_unary=annotation.labels,
        num_classes=classes,
        gt_prob=options.gt_prob,
        unknown=None if annotation.unknown is None else -1,
        iterations=options.iterations,
    )
    labels = marginals.argmax(-1)
    annotation.write(labels, options.out)
    changed = int(((labels != annotation.labels) & (annotation.labels >= 0)).sum())
    filled = int((annotation.labels < 0).sum())
    note = f"; {filled} unknown pixels ({_named(annotation.unknown)}) got a class" if filled else ""
    print(f"{options.out}: {classes} classes; {changed} of {labels.size - filled} labelled pixels changed{note}")


def _check(options):
    """Refuses what is impossible before TensorFlow is imported; gives what `--unknown` means."""
    out = Path(options.out)
    if options.crf not in PARAMETERS and not Path(options.crf).is_file():
        raise KerassegError(f"--crf '{options.crf}': no such file or name; {did_you_mean(options.crf, PARAMETERS)}")
    if not 0 < options.gt_prob < 1:
        raise KerassegError(f"--gt-prob {options.gt_prob:g}: expected a probability above 0 and below 1, such as 0.7")
    if options.iterations is not None and options.iterations < 0:
        raise KerassegError(f"--iterations {options.iterations}: expected 0 or more, such as 5")
    for what, path in (("photograph", options.image), ("mask", options.mask)):
        if not Path(path).is_file():
            raise KerassegError(f"no such {what}: {path}")
    if out.is_dir() or out.suffix.lower() != ".png":
        raise KerassegError(f"--out {out}: expected a file that ends in .png, such as {out.with_suffix('') / 'clean.png'}")
    if out.exists() and os.path.samefile(out, options.image):
        raise KerassegError(f"--out {out} is the photograph: name another file, such as {out.with_name(f'{out.stem}_clean.png')}")
    if out.exists() and not options.overwrite:
        raise KerassegError(f"--out {out} is there already: name another file, or pass --overwrite")
    return _unknown(options.unknown)


def _unknown(text: str):
    if text in ("auto", "none"):
        return text
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise KerassegError(f"--unknown {text}: expected an index such as 255, a colour such as 0,0,0, none or auto")
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 3 and max(numbers) > 255:
        raise KerassegError(f"--unknown {text}: expected a colour of 0 to 255, such as 0,0,0")
    return numbers if len(numbers) == 3 else numbers[0]


def _named(unknown) -> str:
    if isinstance(unknown, str):
        return unknown
    return f"index {unknown}" if isinstance(unknown, int) else "colour " + ",".join(map(str, unknown))


def main() -> int:
    """Runs `tools/crf.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
