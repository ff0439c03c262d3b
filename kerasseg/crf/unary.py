"""What a CRF is told about each pixel alone: scores of a network, probabilities, or labels that are mostly right."""

import math
import numbers

import numpy as np

from kerasseg.errors import KerassegError

# Smallest probability whose logarithm is taken, as pydensecrf has it: a class at 0 could never come back.
_SMALLEST = 1e-5
# How far probabilities may be from summing to 1: those stored as float16 are.
_SLACK = 2e-3


def unary_from_labels(labels, num_classes: int, gt_prob: float = 0.7, unknown: int | None = None) -> np.ndarray:
    """Energies of hard labels that are right with a known probability.

    A labelled pixel gets −log(gt_prob) for its class and −log((1 − gt_prob) / (C − 1)) for the others; an unknown one gets
    −log(1 / C) for all. One fact surprises: where `unknown` is 0, the classes are labelled from 1.

    Args:
        labels: Shape `(H, W)`, integers. Label k is class k, 0 to C − 1; with `unknown=0` label k is class k − 1, 1 to C, as
            pydensecrf's `zero_unsure=True` has it.
        num_classes: C, without the unknown.
        gt_prob: Probability, between 0 and 1, that a label is right.
        unknown: The label of pixels that can be anything: 0, or a number that is no class, such as 255 or −1; `None`: there
            is none.
    Returns:
        Shape `(H, W, C)`, float32: the unary energy U, whose negative `dense_crf` and `MeanField` take as logits.
    Raises:
        KerassegError: If a label is no class, or an argument impossible.
    Reference:
        `unary_from_labels` of lucasb-eyer/pydensecrf, whose array is (C, H·W).
    Example:
        >>> unary_from_labels(np.array([[1, 0]]), num_classes=2, gt_prob=0.75, unknown=0).shape
        (1, 2, 2)
    """
    classes = _checked_classes(num_classes)
    if isinstance(gt_prob, bool) or not isinstance(gt_prob, numbers.Real) or not 0 < gt_prob < 1:
        raise KerassegError(f"gt_prob {gt_prob!r}: expected a probability between 0 and 1, both excluded, such as 0.7")
    first = _first_label(classes, unknown)
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        raise KerassegError(f"labels of shape {labels.shape}: expected (H, W), such as labels[..., 0]")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        raise KerassegError(f"labels of type {labels.dtype}: expected integers, such as labels.astype('int32')")
    labels = labels.astype(np.int64)
    is_unknown = np.zeros(labels.shape, bool) if unknown is None else labels == unknown
    wrong = ~is_unknown & ((labels < first) | (labels >= first + classes))
    if wrong.any():
        also = "; pass unknown=255 or such for pixels that can be anything" if unknown is None else f" or unknown={unknown}"
        raise KerassegError(
            f"labels hold {labels[wrong][0]} at {int(wrong.sum())} pixels: expected {first} to {first + classes - 1} "
            f"(num_classes={classes}){also}"
        )
    # With one class there are no others.
    energy = np.full((*labels.shape, classes), -math.log((1 - gt_prob) / max(classes - 1, 1)), np.float32)
    chosen = np.where(is_unknown, 0, labels - first)
    np.put_along_axis(energy, chosen[..., None], np.float32(-math.log(gt_prob)), axis=-1)
    energy[is_unknown] = -math.log(1 / classes)
    return energy


def logits_of(scores, from_logits: bool | None = None) -> np.ndarray:
    """Makes logits, the negative of the unary energy, of logits or probabilities.

    Args:
        scores: Shape `(H, W, C)`. Probabilities if none is negative and they sum to 1 at every pixel, else logits.
        from_logits: Says that they are logits (True) or probabilities (False); `None`: looks.
    Returns:
        Shape `(H, W, C)`, float32: the logits as they are, or the logarithm of the probabilities, of at least 1e-5.
    Raises:
        KerassegError: If the shape is another, a value is NaN or infinite, or what should be probabilities are none.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.size == 0 or not np.issubdtype(scores.dtype, np.number) or np.iscomplexobj(scores):
        kind = f"of type {scores.dtype} and shape {scores.shape}"
        raise KerassegError(f"logits {kind}: expected numbers (H, W, C), for one image, with at least one class")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    bad = int(scores.size - np.isfinite(scores).sum())
    if bad:
        raise KerassegError(
            f"logits hold {bad} values that are NaN or infinite: expected finite numbers; np.nan_to_num makes them so"
        )
    likely = scores.min() >= 0 and bool(np.all(np.abs(scores.sum(-1, dtype=np.float64) - 1) <= _SLACK))
    if from_logits is False and not likely:
        raise KerassegError(
            "from_logits=False with values that are no probabilities: expected none below 0 and a sum of 1 at every pixel; for "
            "logits pass from_logits=True"
        )
    return np.log(np.clip(scores, _SMALLEST, 1)) if likely and not from_logits else scores


def _checked_classes(value) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise KerassegError(f"num_classes {value!r}: expected a whole number of at least 1, such as 21, without the unknown")
    return int(value)


def _first_label(classes: int, unknown) -> int:
    """The label of class 0."""
    if unknown is None:
        return 0
    if isinstance(unknown, bool) or not isinstance(unknown, numbers.Integral):
        raise KerassegError(f"unknown {unknown!r}: expected a label, such as 0 or 255, or None")
    if 0 < unknown < classes:
        raise KerassegError(
            f"unknown={unknown} is one of {classes} classes: expected none of them, such as 255; or 0, with classes from 1"
        )
    return int(unknown == 0)
