"""How far an exported file is from the network it was made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kerasseg.errors import KerassegError


class Parity(NamedTuple):
    """What a comparison found.

    `relative_error` is the largest |a − b| over the largest |b|, worst image; `argmax_agreement` the share of pixels with the
    same class, worst image; `images` how many were compared.
    """

    relative_error: float
    argmax_agreement: float
    images: int


def measure_parity(
    exported: Callable[[np.ndarray], np.ndarray], reference: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray]
) -> Parity:
    """Runs both on the same images.

    Args:
        exported: Image batch → logits, by the exported file.
        reference: Image batch → logits, by Keras.
        images: Batches, shape `(B, H, W, C)`, 0–255.
    Returns:
        The worst figures.
    Raises:
        KerassegError: If the reference's logits do not vary: comparing constants proves nothing.
    """
    errors, agreements = [], []
    for image in images:
        ours, theirs = np.asarray(exported(image)), np.asarray(reference(image))
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return Parity(float("inf"), 0.0, len(images))
        if np.ptp(theirs) == 0:
            raise KerassegError("the network's logits are constant (an untrained network's are zero): train it before exporting")
        errors.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
        agreements.append((ours.argmax(-1) == theirs.argmax(-1)).mean())
    return Parity(float(max(errors)), float(min(agreements)), len(images))
