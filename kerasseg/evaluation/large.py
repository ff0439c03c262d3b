"""Labelling images of any size, in memory that does not grow with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.inference import Inference, check_colors, check_image, combined, image_array
from kerasseg.evaluation.running import selected_output
from kerasseg.evaluation.windows import Windows, write_labels
from kerasseg.runs import atomic_path

LARGE_WINDOWS = Windows((512, 512), overlap=64, blending="linear")
"""The windows that `predict_large` uses if none are given."""


def predict_large(
    model,
    image,
    out=None,
    *,
    windows: Windows = LARGE_WINDOWS,
    scales=(1.0,),
    flip: bool = False,
    fusion: str = "mean",
    output: str | None = None,
    crf=None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The class of every pixel of an image of any size, window by window.

    Each window is one small picture: scales and mirrored copies are run on it alone and fused, and what comes of that is averaged
    where windows overlap, as `Windows` says: probabilities of several pictures with `fusion="mean"`, else logits. (`predict` with
    `method=windows` scales the whole image instead and cuts that; for scale 1 alone both are the same.) Only windows of the image
    are read, and of the scores only one window and the lines that two rows of windows share are kept.

    Args:
        model: As for `predict`.
        image: Anything of shape `(H, W, 3)` that can be sliced, RGB 0–255, such as an array or `np.memmap`; the path of an `.npy`
            file, which is then not read as a whole; or whatever else `predict` takes.
        out: Path of an `.npy` file to write the labels to: it is there whole, or not at all; `None`: they are an array.
        windows: How the image is cut.
        scales: As in `Inference`, of each window.
        flip: As in `Inference`, of each window.
        fusion: As in `Inference`.
        output: As in `Inference`.
        crf: Must be `None`: a CRF connects all pixels of the image.
        progress: Called with (windows done, windows in all) after each window.
    Returns:
        Shape `(H, W)`, the smallest unsigned integer that holds all classes; with `out` the file's read-only memory map.
    Raises:
        KerassegError: As `predict`, or if there is a CRF, or `out` is no `.npy` path.
    Example:
        >>> kerasseg.evaluation.predict_large(model, "mosaic.npy", "labels.npy", windows=Windows((1024, 1024), margin=128))
    """
    if crf is not None:
        raise KerassegError("a CRF connects all pixels of an image: expected none for windows of a large one (--crf none)")
    if not isinstance(windows, Windows):
        raise KerassegError(f"windows {windows!r}: expected kerasseg.evaluation.Windows, such as Windows((512, 512), overlap=64)")
    if out is not None and Path(out).suffix != ".npy":
        raise KerassegError(f"out '{out}': expected a path that ends in .npy, such as '{Path(out).with_suffix('.npy')}'")
    inference, image, model = Inference(tuple(scales), flip, fusion=fusion), open_image(image), selected_output(model, output)
    blocks = windows.blocks(model, image, _runner(model, inference, windows, image), progress)
    kind = "logits" if inference.is_single or fusion == "max" else "probabilities"
    if out is None:
        return write_labels(blocks, kind, lambda count: np.empty(image.shape[:2], np.min_scalar_type(count - 1)))[0]
    with atomic_path(out) as temporary:
        _write_map(temporary, blocks, kind, image.shape[:2])
    return np.load(out, mmap_mode="r")


def _write_map(path, blocks, kind, size) -> None:
    def made(count):
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.min_scalar_type(count - 1), shape=tuple(size))

    write_labels(blocks, kind, made)[0].flush()


def _runner(model, inference, windows, image):
    """What runs the network on some windows, once it is known that their colours can be."""
    plain = windows.runner(model, image.shape[:2])

    def run(pictures):
        check_colors(pictures, image.dtype)
        if inference.is_plain:
            return plain(pictures)
        maps, _ = combined(model, list(pictures), inference, [None] * len(pictures))
        return np.stack(maps)

    return run


def open_image(image):
    """Gives an image that can be sliced; of an `.npy` file its memory map.

    Raises:
        KerassegError: If it is no image, or such a file holds none.
    """
    if not isinstance(image, (str, Path)) or Path(image).suffix.lower() != ".npy":
        is_array = hasattr(image, "shape") and hasattr(image, "dtype")
        found = image if is_array else image_array(image)
    else:
        try:
            found = np.load(image, mmap_mode="r")
        except FileNotFoundError:
            raise KerassegError(f"no such file: {image}") from None
        except (OSError, ValueError) as error:
            raise KerassegError(f"cannot read {image} ({error}): expected an array (H, W, 3) that numpy.save wrote") from error
    check_image(found)
    return found
