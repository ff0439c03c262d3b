"""Calibration images of int8, from the command line."""

import argparse
from pathlib import Path

from kerasseg.cli.opening import Opened
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

_IMAGES, _SEED = 100, 0


def add_calibration_options(made) -> None:
    """Adds the options that say which photographs int8 is calibrated on.

    Args:
        made: The parser, or a group of it.
    """
    made.add_argument(
        "--calibration",
        default=None,
        metavar="DATA_OR_FOLDER",
        help="photographs: a data set, with --data-dir, or any folder of .jpg and .png (default: the run's data)",
    )
    # No defaults here: whoever gives them without need of photographs is told so.
    made.add_argument(
        "--calibration-images", type=_at_least(2), default=None, metavar="N", help=f"how many of them (default: {_IMAGES})"
    )
    made.add_argument(
        "--calibration-split",
        default=None,
        metavar="SPLIT",
        help="part of the data set (default: what the run trained on, or train)",
    )
    made.add_argument("--seed", type=_at_least(0), default=None, help=f"which ones are drawn (default: {_SEED})")


def _at_least(least: int):
    def parsed(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"received '{text}', expected a whole number, {least} or more")
        return int(text)

    return parsed


def chosen_calibration(opened: Opened, options: argparse.Namespace, size: tuple[int, int]) -> tuple[list, dict]:
    """Draws the photographs that the options name, as the file will see them: at the run's scale, fitted into the file's size.

    Args:
        opened: The network.
        options: With what `add_calibration_options` adds, and `data_dir`.
        size: Height and width that the file takes.
    Returns:
        The images, `(H, W, C)`, float32, 0–255; and which they are: `data`, `images` (how many) and `seed`.
    Raises:
        KerassegError: If there are not at least two, or they do not have the channels of the network.
    """
    from kerasseg.evaluation.fitted import fit_image
    from kerasseg.export.calibration import draw

    count = _IMAGES if options.calibration_images is None else options.calibration_images
    seed = _SEED if options.seed is None else options.seed
    where, photographs = _photographs(opened, options)
    if len(photographs) < 2:
        raise KerassegError(f"{where} holds {len(photographs)} photographs: int8 needs at least 2 for its calibration, such as 100")
    drawn = draw(count, len(photographs), seed)
    scale, channels = opened.recipe.image_scale if opened.recipe else 1.0, opened.model.inputs[0].shape[-1]
    images = []
    for index in drawn:
        image = photographs[index]()
        if image.shape[-1] != channels:
            raise KerassegError(
                f"photographs of {where} have {image.shape[-1]} channels, {opened.model.name} takes {channels}: name others by "
                "--calibration"
            )
        images.append(fit_image(image, size, scale))
    return images, {"data": where, "images": len(images), "seed": seed}


def _photographs(opened: Opened, options) -> tuple[str, list]:
    """What the photographs are called, and for each a function that reads it."""
    from kerasseg.data.table import DATA_SETS, is_known

    name = options.calibration or (opened.recipe and opened.recipe.data)
    if name is None:
        raise KerassegError(f"{opened.path} does not say what photographs are like it: pass --calibration DATA_OR_FOLDER for int8")
    if is_known(name):
        return _of_data(opened, name, options)
    if not Path(name).is_dir():
        raise KerassegError(f"--calibration {name}: neither a folder nor a data set; {did_you_mean(str(name), DATA_SETS)}")
    if options.calibration_split is not None:
        raise KerassegError(
            f"--calibration-split {options.calibration_split}: means something only of a data set, {name} is a folder"
        )
    from kerasseg.data.decode import decode_image
    from kerasseg.data.layouts.folder import IMAGE_SUFFIXES

    files = sorted(file for file in Path(name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return f"folder {Path(name).name}", [lambda file=file: decode_image(file) for file in files]


def _of_data(opened: Opened, name: str, options) -> tuple[str, list]:
    from kerasseg.data import open_data
    from kerasseg.data.transforms.cues import hide_cues

    recipe = opened.recipe if opened.recipe and opened.recipe.data == name else None
    split = options.calibration_split or (recipe and recipe.split) or "train"
    data = open_data(name, options.data_dir or (recipe and recipe.data_dir), split, **(recipe.data_arguments if recipe else {}))
    if recipe:
        data = hide_cues(data, recipe.foreground, recipe.background)
    if not data.photographs:
        raise KerassegError(f"data set '{name}' holds maps of a network, no photographs: name others by --calibration")
    return f"{name} {split}", [lambda index=index: data[index].image for index in range(len(data))]
