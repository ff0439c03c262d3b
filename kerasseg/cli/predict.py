"""`tools/predict.py`: write masks of photographs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.inference import add_inference_options, check_inference_options, check_out, chosen_inference
from kerasseg.cli.opening import RUN_OR_FILE, label_table, open_run_or_model, output_classes
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.data.layouts.folder import IMAGE_SUFFIXES
from kerasseg.errors import KerassegError

# kerasseg.evaluation.SUBMISSIONS, for which TensorFlow need not be imported.
BENCHMARKS = ("voc", "voc_comp6", "cityscapes", "ade20k")
KINDS = ("index", "color", "overlay")
# Of pictures kept for being larger than image files can well be.
ARRAY_SUFFIX = ".npy"
# Lines of an overlay that are mixed at once: in floating point a large photograph would take gigabytes.
_LINES = 1024


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/predict.py`."""
    made = make_parser("predict.py", "Label the pixels of photographs, at their own size.")
    made.add_argument("model", metavar="RUN_OR_MODEL", help=RUN_OR_FILE)
    # Read before all others, since no network is named with it.
    made.add_argument("--demo", action="store_true", help="the small network that comes along, without a RUN_OR_MODEL")
    made.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="photographs, or folders of them; or .npy arrays (H, W, 3) of any size, read in windows; their labels are .npy, too",
    )
    made.add_argument("--out", required=True, help="folder for index/, color/ and overlay/, one PNG each per photograph")
    made.add_argument("--kinds", nargs="+", default=None, help=f"what to write: {', '.join(KINDS)} (default: all)")
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")
    made.add_argument(
        "--submission",
        choices=BENCHMARKS,
        default=None,
        help="write what its server takes instead: voc is comp5 (trained on VOC alone), voc_comp6 on other data, too",
    )
    add_inference_options(made)
    return made


def run(arguments: Sequence[str]) -> None:
    """Predicts as the arguments say.

    Raises:
        KerassegError: If they cannot be followed; masks already written stay.
    """
    if "--demo" in arguments:
        from kerasseg.cli.demo import run_demo

        return run_demo(arguments)
    options = parser().parse_args(arguments)
    check_kinds(options.kinds)
    check_inference_options(options)
    check_out(options.out)
    images = list(find_images(options.images))
    photographs = [(path, name) for path, name in images if path.suffix.lower() != ARRAY_SUFFIX]
    arrays = [(path, name) for path, name in images if path.suffix.lower() == ARRAY_SUFFIX]
    _check_arrays(arrays, options)
    check_apart(images, _written(photographs, arrays, options))
    opened = open_run_or_model(options.model, options.output_stride, exported=True)
    from kerasseg.evaluation.running import selected_output

    labels = label_table(opened, output_classes(selected_output(opened.model, options.output)), options.labels, options.output)
    inference = chosen_inference(opened, options)
    inference.method.check_names([name.as_posix() for _, name in photographs])
    if options.submission:
        from kerasseg.evaluation import check_submission
        from kerasseg.evaluation.submission import submission_path

        check_submission(options.submission, labels, [name.name for _, name in photographs])
        sent = {submission_path(options.out, options.submission, name.name): path for path, name in photographs}
        check_apart(images, sent)
    for path, _ in arrays:
        # Before the photographs, which may take hours.
        _opened_array(opened.model, path, inference, options)
    if photographs:
        _predict_photographs(opened.model, photographs, inference, labels, options)
    for path, name in arrays:
        _predict_array(opened.model, path, name, inference, options)
    kinds = options.submission or ", ".join(_kinds(options) if photographs else ["index"])
    print(f"masks: {options.out} ({kinds})")


def check_kinds(kinds: Sequence[str] | None) -> None:
    """Refuses a kind of mask that is not known; `None`: none were asked for."""
    for kind in kinds or ():
        if kind not in KINDS:
            raise KerassegError(f"--kinds {kind}: expected some of {', '.join(KINDS)}")


def _check_arrays(arrays, options) -> None:
    """Refuses, before anything is opened, what is not done to an image of any size."""
    if not arrays:
        return
    path = arrays[0][0]
    if options.submission or set(options.kinds or ["index"]) != {"index"}:
        raise KerassegError(f"{path}: of an array only index/….npy is written: expected neither --submission nor --kinds")
    if options.tiles is not None or options.proposals is not None:
        raise KerassegError(f"{path}: an array is read in windows, expected --windows, such as --windows 512x512, or nothing")


def check_apart(images, written: dict[Path, Path]) -> None:
    """Refuses to write over what is read.

    Args:
        images: Pairs of a file that is read and the name of its masks.
        written: File that is written → the one that it is of.
    Raises:
        KerassegError: If a file is both.
    """
    read = {path.resolve(): path for path, _ in images}
    for out, path in written.items():
        if out.resolve() in read:
            raise KerassegError(
                f"the labels of {path} would be written over {read[out.resolve()]}: expected another folder as --out"
            )


def _written(photographs, arrays, options) -> dict[Path, Path]:
    """What is written of each file, but for what a benchmark's server is sent."""
    masks = {mask_path(Path(options.out), kind, name): path for path, name in photographs for kind in _kinds(options)}
    return masks | {_array_path(name, options): path for path, name in arrays}


def mask_path(out: Path, kind: str, name: Path) -> Path:
    """Says where a mask is written.

    Args:
        out: Folder.
        kind: One of `KINDS`.
        name: Of the masks of one photograph, without suffix.
    """
    return out / kind / name.parent / f"{name.name}.png"


def _array_path(name: Path, options) -> Path:
    return Path(options.out) / "index" / f"{name}{ARRAY_SUFFIX}"


def _kinds(options) -> Sequence[str]:
    return options.kinds or (() if options.submission else KINDS)


def _predict_photographs(model, photographs, inference, labels, options) -> None:
    from kerasseg.data import decode_image
    from kerasseg.evaluation import predict_with_classes, write_submission

    with Progress("predicting", len(photographs), unit="images") as progress:
        for done, (path, name) in enumerate(photographs, start=1):
            image = decode_image(path)
            label = predict_with_classes(model, image, inference, name.as_posix()).classes
            write_masks(Path(options.out), name, image, label, labels, _kinds(options))
            if options.submission:
                write_submission(options.out, options.submission, name.name, label)
            progress.update(done)


def _opened_array(model, path: Path, inference, options):
    """An array, the windows on it, and their number.

    Raises:
        KerassegError: If it is none, or cannot be labelled so.
    """
    from kerasseg.evaluation.large import check_no_crf, open_image, usual_windows
    from kerasseg.evaluation.running import selected_output

    check_no_crf(inference.crf)
    image, windows = open_image(path), inference.method if options.windows is not None else usual_windows(model)
    return image, windows, windows.num_windows(image.shape[:2], windows.grid_of(selected_output(model, inference.output)))


def _predict_array(model, path: Path, name: Path, inference, options) -> None:
    from kerasseg.evaluation import predict_large

    settings = {key: getattr(inference, key) for key in ("scales", "flip", "fusion", "output", "crf")}
    image, windows, total = _opened_array(model, path, inference, options)
    with Progress(f"predicting {path.name}", total, unit="windows") as progress:
        out = _array_path(name, options)
        predict_large(model, image, out, windows=windows, progress=lambda done, _: progress.update(done), **settings)


def find_images(paths: Sequence[str]):
    """Finds the photographs, and arrays, that some paths are or hold.

    Args:
        paths: Files and folders.
    Yields:
        Pairs of a file and the name of its masks; within a folder, subfolders are kept.
    Raises:
        KerassegError: If a path is neither, a folder is empty, or two files would have the same masks.
    """
    names = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = [(file, file.relative_to(path).with_suffix("")) for file in sorted(path.rglob("*"))]
            found = [(file, name) for file, name in found if file.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise KerassegError(f"{path} holds no photograph: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        elif path.is_file():
            found = [(path, Path(path.stem))]
        else:
            raise KerassegError(f"no such photograph or folder: {path}")
        for file, name in found:
            if name in names:
                raise KerassegError(f"{names[name]} and {file} would both be written as {name}.png: predict them into two folders")
            names[name] = file
            yield file, name


def write_masks(out: Path, name: Path, image, label, labels, kinds: Sequence[str]) -> None:
    """Writes the masks of one photograph.

    Args:
        out: Folder.
        name: Of the masks, without suffix.
        image: Shape `(H, W, 3)`, RGB 0–255.
        label: Shape `(H, W)`, classes.
        labels: Their names and colours.
        kinds: Some of `KINDS`.
    """
    import numpy as np
    from PIL import Image

    from kerasseg.labels import colorize, overlay
    from kerasseg.runs import atomic_path

    def index():
        picture = Image.fromarray(label.astype(np.uint8))
        # The numbers stay the classes; the palette lets every viewer show them.
        picture.putpalette([channel for color in labels.palette for channel in color])
        return picture

    makers = {
        "index": index,
        "color": lambda: Image.fromarray(colorize(label, labels)),
        "overlay": lambda: Image.fromarray(
            np.concatenate(
                [overlay(image[top : top + _LINES], label[top : top + _LINES], labels) for top in range(0, len(label), _LINES)]
            )
        ),
    }
    for kind in kinds:
        with atomic_path(mask_path(out, kind, name)) as temporary:
            makers[kind]().save(temporary, format="PNG")


def main() -> int:
    """Runs `tools/predict.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
