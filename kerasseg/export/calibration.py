"""Photographs by which int8 finds the ranges of a network's maps."""

from collections.abc import Sequence

import numpy as np

from kerasseg.errors import KerassegError


def check_calibration(images: Sequence[np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
    """Refuses images that would give wrong ranges.

    Args:
        images: Shape `(H, W, C)` each, 0–255.
        shape: What the file takes, `(H, W, C)`.
    Returns:
        The images as they are: a copy of all would cost much memory. By rounding, some may lie just outside of 0–255.
    Raises:
        KerassegError: If there are fewer than two, or one has another shape or range.
    """
    if len(images) < 2:
        raise KerassegError(
            f"int8 received {len(images)} calibration image{'' if len(images) == 1 else 's'}: expected several, such as 100, since "
            "one picture shows no range"
        )
    checked = [np.asarray(image) for image in images]
    for number, image in enumerate(checked):
        if image.shape != tuple(shape):
            raise KerassegError(
                f"calibration image {number} has shape {image.shape}: expected {tuple(shape)}, the file's (height, width, channels)"
            )
        if image.dtype.kind not in "uif" or not np.isfinite(image).all():
            raise KerassegError(f"calibration image {number} holds {image.dtype} that are no numbers: expected 0 to 255")
    smallest, largest = min(image.min() for image in checked), max(image.max() for image in checked)
    # What was resized may lie outside by rounding.
    if round(float(smallest)) < 0 or round(float(largest)) > 255:
        raise KerassegError(
            f"calibration images go from {smallest:g} to {largest:g}: expected 0 to 255, the photographs as they are, since the "
            "network preprocesses them itself"
        )
    if largest <= 1:
        raise KerassegError(
            f"calibration images go from {smallest:g} to {largest:g}: expected 0 to 255; multiply images of 0 to 1 by 255"
        )
    return checked


def draw(count: int, of: int, seed: int) -> list[int]:
    """Draws which images of a set are used.

    Args:
        count: How many; all, if there are no more.
        of: How many there are.
        seed: Of the draw; the same gives the same.
    Returns:
        Indices, no one twice, ascending.
    """
    return sorted(np.random.default_rng(seed).permutation(of)[:count].tolist())
