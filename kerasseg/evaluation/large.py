"""Labelling images of any size, in memory that does not grow with them."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.evaluation.fitted import fixed_size
from kerasseg.evaluation.images import check_colors, check_image, image_array
from kerasseg.evaluation.inference import Inference, combined
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
        KerassegError: As `predict`, or if there is a CRF, or `out` is no `.npy` path or the image itself.
    Example:
        >>> kerasseg.evaluation.predict_large(model, "mosaic.npy", "labels.npy", windows=Windows((1024, 1024), margin=128))
    """
    check_no_crf(crf)
    if not isinstance(windows, Windows):
        raise KerassegError(f"windows {windows!r}: expected kerasseg.evaluation.Windows, such as Windows((512, 512), overlap=64)")
    if out is not None and Path(out).suffix != ".npy":
        raise KerassegError(f"out '{out}': expected a path that ends in .npy, such as '{Path(out).with_suffix('.npy')}'")
    # Of a memory map its file.
    check_apart(image if isinstance(image, (str, Path)) else getattr(image, "filename", None), out)
    inference, image, model = Inference(scales, flip, fusion=fusion), open_image(image), selected_output(model, output)
    blocks = windows.blocks(model, image, _runner(model, inference, windows, image), progress)
    kind = "logits" if inference.is_single or fusion == "max" else "probabilities"
    if out is None:
        return write_labels(blocks, kind, lambda count: np.empty(image.shape[:2], np.min_scalar_type(count - 1)))[0]
    with atomic_path(out) as temporary:
        _write_map(temporary, blocks, kind, image.shape[:2])
    return np.load(out, mmap_mode="r")


def usual_windows(model) -> Windows:
    """The windows of a network where nobody asks for others: of its own size, if it takes one size only.

    Args:
        model: The network.
    Returns:
        `LARGE_WINDOWS`, or the like of that size, which share an eighth.
    """
    size = fixed_size(model)
    return LARGE_WINDOWS if size is None else dataclasses.replace(LARGE_WINDOWS, size=size, overlap=min(size) // 8)


def check_no_crf(crf) -> None:
    """Refuses a CRF behind windows.

    Args:
        crf: What was chosen; `None`: none.
    Raises:
        KerassegError: If there is one.
    """
    if crf is not None:
        raise KerassegError("a CRF connects all pixels of an image: expected none for windows of a large one (--crf none)")


def check_apart(image, out) -> None:
    """Refuses to write labels over the image that they are of.

    Args:
        image: Path of the image; `None`: it has none.
        out: Path of the labels; `None`: they are not written.
    Raises:
        KerassegError: If both are the same file.
    """
    if None not in (image, out) and Path(image).resolve() == Path(out).resolve():
        raise KerassegError(f"the labels of {image} would be written over it: expected another path than {out}")


def _write_map(path, blocks, kind, size) -> None:
    def made(count):
        found = np.lib.format.open_memmap(path, mode="w+", dtype=np.min_scalar_type(count - 1), shape=tuple(size))
        _reserve(path)
        return found

    write_labels(blocks, kind, made)[0].flush()


def _reserve(path) -> None:
    """Has the disk set aside what a file says that it holds: a disk that is full when memory goes there kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            # Some file systems cannot do it.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


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
    if isinstance(image, (str, Path)) and Path(image).suffix.lower() == ".npy":
        try:
            # Not numpy.load, which takes other files as well, whatever they are called.
            image = np.lib.format.open_memmap(image, mode="r")
        except FileNotFoundError:
            raise KerassegError(f"no such file: {image}") from None
        except (OSError, ValueError) as error:
            raise KerassegError(f"cannot read {image} ({error}): expected an array (H, W, 3) that numpy.save wrote") from error
    elif not _is_array(image):
        image = image_array(image)
    check_image(image)
    return image


def _is_array(image) -> bool:
    """Whether something has a shape and a type of NumPy's; tensors of other libraries have types of their own."""
    try:
        return hasattr(image, "shape") and isinstance(np.dtype(image.dtype), np.dtype)
    except (AttributeError, TypeError):
        return False
