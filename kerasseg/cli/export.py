"""`tools/export.py`: write a file for devices."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kerasseg.cli.opening import Opened, label_table, open_run_or_model, output_classes
from kerasseg.cli.options import parse_size
from kerasseg.cli.running import make_parser, run_command
from kerasseg.errors import KerassegError

FORMATS = ("tflite",)


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/export.py`."""
    made = make_parser(
        "export.py", "Write a network as a file for devices, run the file, and compare it with Keras before saying done."
    )
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    made.add_argument("--format", default="tflite", help=f"one of: {', '.join(FORMATS)}")
    made.add_argument("--input-size", type=parse_size, default=None, help="HEIGHTxWIDTH (default: as the run's images are)")
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")
    made.add_argument("--out", default=None, help="the file (default: model.tflite beside the model)")
    return made


def run(arguments: Sequence[str]) -> None:
    """Exports as the arguments say.

    Raises:
        KerassegError: If they cannot be followed, or the file computes something else.
    """
    options = parser().parse_args(arguments)
    if options.format not in FORMATS:
        raise KerassegError(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    opened = open_run_or_model(options.model)
    images = _real_images(opened)
    size = options.input_size or (images[0].shape[:2] if images else None)
    if size is None:
        raise KerassegError(f"{opened.path} does not say how large its images are: pass --input-size, such as 513x513")
    from kerasseg.export import cut_for_tflite, export_tflite

    out = Path(options.out) if options.out else (opened.path if opened.path.is_dir() else opened.path.parent) / "model.tflite"
    # Said before the work, not after it: that may take a while.
    if (left_out := cut_for_tflite(opened.model).left_out) is not None:
        print(f"left out of the file, which ends with the logits before it: {left_out}")
    if crf := opened.recipe and opened.recipe.crf:
        crf = f"the DenseCRF of the evaluation ({crf}) is not in the file, which gives what it would start from"
        print(crf)
    labels = label_table(opened, output_classes(opened.model), options.labels)
    images = [_resized(image, size) for image in images]
    parity = export_tflite(opened.model, out, input_size=tuple(size), labels=labels, images=images, left_out=crf or None)
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {size[0]}x{size[1]}; against Keras on {parity.images} images: relative error "
        f"{parity.relative_error:.1e}, same class in {100 * parity.argmax_agreement:.3f} % of pixels"
    )


def _real_images(opened: Opened, count: int = 2):
    """A few images of the run's own data, at the scale it was trained at; none if the data is not there any more."""
    from kerasseg.recipes.building import open_recipe_data

    if opened.recipe is None:
        return []
    try:
        data = open_recipe_data(opened.recipe, opened.recipe.validation_split or opened.recipe.split)
        images = [data[index].image for index in range(min(count, len(data) if data.photographs else 0))]
    except KerassegError as error:
        print(f"comparing on random images alone, since the run's data cannot be read: {error}")
        return []
    scale = opened.recipe.image_scale
    return [_resized(image, [max(1, round(side * scale)) for side in image.shape[:2]]) for image in images]


def _resized(image, size):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def main() -> int:
    """Runs `tools/export.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
