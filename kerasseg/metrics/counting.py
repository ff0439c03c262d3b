"""Counting pixels by their true and predicted class. Rows of a matrix are the truth, columns the prediction."""

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError


def confusion_matrix(label, prediction, num_classes: int, ignore_label: int = 255) -> np.ndarray:
    """Counts the pixels of every pair of true and predicted class.

    Args:
        label: True classes, any shape, integer.
        prediction: Predicted classes, the label's shape, integer.
        num_classes: C.
        ignore_label: Pixels whose label has this value are not counted, whatever their prediction.
    Returns:
        Shape `(C, C)`, int64; row: truth, column: prediction. The counts sum to the number of pixels not ignored.
    Raises:
        KerassegError: If the shapes differ, or a label or prediction outside 0 to C − 1 would have to be dropped.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise KerassegError(f"label has shape {label.shape} and prediction {prediction.shape}: expected the same")
    matrix = _count_at_once(label, prediction, num_classes, ignore_label)
    if matrix is not None:
        return matrix
    counted = label != ignore_label
    # int64 first: uint8 label · C would wrap.
    label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, values in (("label", label), ("prediction", prediction)):
        wrong = values[(values < 0) | (values >= num_classes)]
        if wrong.size:
            raise KerassegError(out_of_range(f"{what} {wrong[0]} ({wrong.size} pixels)", num_classes, ignore_label))
    return np.bincount(label * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, num_classes)


def _count_at_once(label, prediction, num_classes: int, ignore_label: int):
    """The matrix without a mask for the ignored pixels, which get a row of their own; `None` where anything is out of range."""
    rows = max(ignore_label, num_classes - 1) + 1
    if not label.size or ignore_label < num_classes or rows > 256 or min(label.min(), prediction.min()) < 0:
        return None
    if label.max() >= rows or prediction.max() >= num_classes:
        return None
    index = label.astype(np.intp) * num_classes + prediction
    counts = np.bincount(index.ravel(), minlength=rows * num_classes).reshape(rows, num_classes)
    return None if counts[num_classes:ignore_label].any() else counts[:num_classes].copy()


def out_of_range(what: str, num_classes: int, ignore_label: int) -> str:
    """Says that a label or prediction is neither a class nor ignored."""
    return f"{what} is out of range: expected 0 to {num_classes - 1}, or label {ignore_label} for pixels to ignore"


def count_pixels(label, prediction, num_classes: int, ignore_label: int = 255):
    """`confusion_matrix` in TensorFlow, for graphs and XLA.

    Args:
        label: True classes, any shape, integer.
        prediction: Predicted classes, the label's shape, integer.
        num_classes: C.
        ignore_label: Pixels whose label has this value are not counted.
    Returns:
        The matrix, shape `(C, C)`, int64; and the number of pixels, int64 scalar, that are not in it because their label or
        prediction is out of range: the caller must look at it. Either counts up to 2³¹ − 1 in one call.
    """
    label, prediction = tf.cast(label, tf.int32), tf.cast(prediction, tf.int32)
    if not label.shape.is_compatible_with(prediction.shape):
        raise KerassegError(f"label has shape {label.shape} and prediction {prediction.shape}: expected the same")
    inside = (label >= 0) & (label < num_classes) & (prediction >= 0) & (prediction < num_classes)
    bins = num_classes**2
    index = tf.where(inside, label * num_classes + prediction, bins + 1)
    index = tf.where(tf.equal(label, ignore_label), bins, index)
    # The bare operation: tf.math.bincount wraps it in checks that XLA cannot compile. int32 weights: GPUs have no int64 kernel.
    counts = tf.raw_ops.DenseBincount(
        input=tf.reshape(index, [-1]), size=bins + 2, weights=tf.zeros([0], tf.int32), binary_output=False
    )
    counts = tf.cast(counts, tf.int64)
    return tf.reshape(counts[:bins], (num_classes, num_classes)), counts[bins + 1]
