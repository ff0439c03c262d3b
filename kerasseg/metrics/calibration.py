"""Whether a network is as often right as it says."""

import numpy as np

from kerasseg.errors import KerassegError

# By how much rounding may lift a mean of float32 probabilities above 1.
_ROUNDING = 1e-5


def calibration_counts(label, confidence, prediction, bins: int = 15, *, ignore_label: int = 255) -> np.ndarray:
    """Counts pixels by their confidence: what a reliability plot and the calibration error need.

    Args:
        label: True classes, any shape, integer.
        confidence: Probability of the predicted class, the label's shape, 0–1.
        prediction: Predicted classes, the label's shape, integer.
        bins: Of equal width over 0–1; each holds its upper end, the first holds 0 as well.
        ignore_label: Pixels whose label has this value are not counted.
    Returns:
        Shape `(bins, 3)`, float64, for each bin: pixels, pixels that are right (both whole numbers), sum of the confidences.
        Those of several images add up.
    Raises:
        KerassegError: If the shapes differ, there is no bin, or a confidence that counts is not between 0 and 1.
    Reference:
        Guo et al. 2017, arXiv:1706.04599, §2, "Reliability Diagrams"; pixels take the place of images.
    """
    label, confidence, prediction = np.asarray(label), np.asarray(confidence), np.asarray(prediction)
    if not label.shape == confidence.shape == prediction.shape:
        received = f"label {label.shape}, confidence {confidence.shape}, prediction {prediction.shape}"
        raise KerassegError(f"shapes of {received}: expected the same")
    if bins < 1:
        raise KerassegError(f"bins {bins}: expected at least 1, such as 15")
    counted = label != ignore_label
    right, confidence = (label == prediction)[counted], confidence[counted].astype(np.float64)
    wrong = confidence[~((confidence >= 0) & (confidence <= 1 + _ROUNDING))]
    if wrong.size:
        raise KerassegError(f"confidence {wrong[0]:g} ({wrong.size} pixels): expected probabilities, 0 to 1, not logits")
    # A guess by multiplication, which rounding may put one bin off; a search would take five times as long.
    ends = np.concatenate([[-1.0], np.arange(1, bins) / bins, [np.inf]])
    index = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    index += (confidence > ends[index + 1]).astype(np.intp) - (confidence <= ends[index])
    weights = (None, right, confidence)
    return np.stack([np.bincount(index, weight, minlength=bins).astype(np.float64) for weight in weights], axis=-1)


def calibration_error(counts) -> float:
    """The expected calibration error: by how much confidence and accuracy differ, as a mean over the pixels.

    Args:
        counts: Shape `(bins, 3)`, as `calibration_counts` gives them, of one image or summed over many.
    Returns:
        0–1, 0 where every bin is right as often as it says; NaN of no pixels.
    Reference:
        Guo et al. 2017, arXiv:1706.04599, §2, Eq. (3).
    """
    pixels, right, confidence = np.asarray(counts, np.float64).T
    if not pixels.sum():
        return float("nan")
    # |accuracy − confidence| of a bin, times its pixels, is the difference of the two sums.
    return float(np.abs(right - confidence).sum() / pixels.sum())
