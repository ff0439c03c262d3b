"""`tools/predict.py`: write masks of photographs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.inference import add_inference_options, check_inference_options, check_out, chosen_inference
from kerasseg.cli.opening import label_table, open_run_or_model, output_classes
from kerasseg.cli.progress import Progress
from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError

KINDS = ("index", "color", "overlay")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/predict.py`."""
    made = make_parser("predict.py", "Label the pixels of photographs, at their own size.")
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    made.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="photographs, or folders of them")
    made.add_argument("--out", required=True, help="folder for index/, color/ and overlay/, one PNG each per photograph")
    made.add_argument("--kinds", nargs="+", default=list(KINDS), help=f"what to write: {', '.join(KINDS)}")
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")
    add_inference_options(made)
    return made


def run(arguments: Sequence[str]) -> None:
    """Predicts as the arguments say.

    Raises:
        KerassegError: If they cannot be followed; masks already written stay.
    """
    options = parser().parse_args(arguments)
    for kind in options.kinds:
        if kind not in KINDS:
            raise KerassegError(f"--kinds {kind}: expected some of {', '.join(KINDS)}")
    check_inference_options(options)
    check_out(options.out)
    images = list(_images(options.images))
    opened = open_run_or_model(options.model, options.output_stride)
    labels = label_table(opened, output_classes(opened.model), options.labels)
    inference = chosen_inference(opened, options)
    from kerasseg.data import decode_image
    from kerasseg.evaluation import predict

    inference.method.check_names([name.as_posix() for _, name in images])
    run_on = {"scales": inference.scales, "flip": inference.flip, "method": inference.method, "crf": inference.crf}
    with Progress("predicting", len(images), unit="images") as progress:
        for done, (path, name) in enumerate(images, start=1):
            image = decode_image(path)
            label = predict(opened.model, image, name=name.as_posix(), **run_on)
            _write(Path(options.out), name, image, label, labels, options.kinds)
            progress.update(done)
    print(f"masks: {options.out} ({', '.join(options.kinds)})")


def _images(paths: Sequence[str]):
    """Yields (file, name of its masks); within a folder, subfolders are kept."""
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


def _write(out: Path, name: Path, image, label, labels, kinds: Sequence[str]) -> None:
    import numpy as np
    from PIL import Image

    from kerasseg.evaluation import overlay
    from kerasseg.labels import colorize
    from kerasseg.runs import atomic_path

    def index():
        picture = Image.fromarray(label.astype(np.uint8))
        # The numbers stay the classes; the palette lets every viewer show them.
        picture.putpalette([channel for color in labels.palette for channel in color])
        return picture

    makers = {
        "index": index,
        "color": lambda: Image.fromarray(colorize(label, labels)),
        "overlay": lambda: Image.fromarray(np.asarray(overlay(image, label, labels))),
    }
    for kind in kinds:
        with atomic_path(out / kind / name.parent / f"{name.name}.png") as temporary:
            makers[kind]().save(temporary, format="PNG")


def main() -> int:
    """Runs `tools/predict.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
