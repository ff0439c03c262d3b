"""The four scores of semantic segmentation, all from one confusion matrix of pixel counts.

Rows of a matrix are the truth, columns the prediction.
"""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


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
            raise KerassegError(_out_of_range(f"{what} {wrong[0]} ({wrong.size} pixels)", num_classes, ignore_label))
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


def _out_of_range(what, num_classes, ignore_label):
    return f"{what} is out of range: expected 0 to {num_classes - 1}, or label {ignore_label} for pixels to ignore"


def scores(matrix) -> dict:
    """Computes the four scores, and the two of each class, from a confusion matrix.

    A class that the truth lacks has no accuracy; one that the prediction lacks as well has no IoU. Such NaN are left out of
    the means. A class that is predicted but never true has IoU 0, which counts.

    Args:
        matrix: Shape `(C, C)`, counts of pixels; row: truth, column: prediction.
    Returns:
        `pixel_accuracy`, `mean_accuracy`, `mean_iou`, `frequency_weighted_iou`: floats in 0–1, NaN where nothing was counted;
        `per_class_iou`, `per_class_accuracy`: float64 arrays of shape `(C,)`, NaN for absent classes.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §5 "Metrics", with absent classes as in its authors' score.py.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise KerassegError(f"confusion matrix has shape {matrix.shape}: expected (C, C)")
    # Sums stay integers, so that counts beyond 2**53 lose nothing before the division.
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = _ratio(hits, truth + predicted - hits)
    accuracy = _ratio(hits, truth)
    present = truth > 0
    return {
        "pixel_accuracy": float(_ratio(hits.sum(), truth.sum())),
        "mean_accuracy": _mean(accuracy),
        "mean_iou": _mean(iou),
        "frequency_weighted_iou": float(_ratio((truth[present] * iou[present]).sum(), truth.sum())),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
    }


def _ratio(part, whole):
    """The quotient; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values):
    """The mean of what is not NaN; NaN (and no warning) if that is nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


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


@keras.saving.register_keras_serializable("kerasseg")
class SegmentationMetrics(keras.metrics.Metric):
    """The four scores under `model.compile(metrics=[…])`, from one int64 confusion matrix.

    Keras reports each score under its own name. Counts are exact up to 2⁶³ pixels, and replicas' matrices are summed before
    any division.

    Args:
        num_classes: C.
        ignore_label: Value of the label's pixels that count nothing.
        prefix: Put before each score's name, e.g. `"semantic_"`: Keras merges the scores of all heads into one dict.
        name: Keras' name of the metric; the scores' names do not depend on it.
    Raises:
        KerassegError: When updated, if a label or prediction is neither a class nor ignored (in a graph
            `tf.errors.InvalidArgumentError`; under XLA, which drops assertions, all scores become NaN and `matrix` raises).
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §5 "Metrics".
    Example:
        >>> model.compile(loss=SegmentationCrossEntropy(), metrics=[SegmentationMetrics(21)])
        >>> model.evaluate(batches, return_dict=True)["mean_iou"]
    """

    def __init__(self, num_classes, ignore_label=255, prefix="", name="segmentation"):
        super().__init__(name=name)
        self.prefix = prefix
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.counts = self.add_variable((num_classes, num_classes), "zeros", dtype="int64", name="counts")
        self.rejected = self.add_variable((), "zeros", dtype="int64", name="rejected")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts one batch.

        Args:
            y_true: Label, shape `(B, H, W)`, integer.
            y_pred: Logits (or probabilities) `(B, H, W, C)`, or predicted classes `(B, H, W)`, integer.
            sample_weight: Must be `None`: pixels are counted, not weighed.
        """
        if sample_weight is not None:
            raise KerassegError(
                "SegmentationMetrics counts pixels and takes no sample_weight: pass it in metrics=, not weighted_metrics=, and "
                f"give pixels to leave out the label {self.ignore_label}"
            )
        label, prediction = tf.convert_to_tensor(y_true), self._classes(tf.convert_to_tensor(y_pred))
        counts, rejected = count_pixels(label, prediction, self.num_classes, self.ignore_label)
        message = _out_of_range("a label or prediction", self.num_classes, self.ignore_label)
        if not tf.executing_eagerly():
            tf.debugging.Assert(tf.equal(rejected, 0), [message, "pixels:", rejected])
        elif rejected > 0:
            raise KerassegError(f"{message}; pixels: {int(rejected)}")
        self.counts.assign_add(counts)
        self.rejected.assign_add(rejected)

    def _classes(self, y_pred):
        if y_pred.dtype.is_integer:
            return y_pred
        if y_pred.shape.rank != 4 or y_pred.shape[-1] != self.num_classes:
            raise KerassegError(
                f"predictions of shape {y_pred.shape}: expected logits (B, H, W, {self.num_classes}) or integer classes (B, H, W)"
            )
        return tf.argmax(y_pred, axis=-1, output_type=tf.int32)

    def result(self):
        """The four scores as float32 scalars, 0–1; NaN where nothing was counted."""
        matrix = tf.cast(tf.convert_to_tensor(self.counts), tf.float64)
        nan = tf.constant(float("nan"), tf.float64)
        matrix = tf.where(tf.convert_to_tensor(self.rejected) > 0, nan, matrix)
        hits, truth, predicted = tf.linalg.diag_part(matrix), tf.reduce_sum(matrix, 1), tf.reduce_sum(matrix, 0)
        union, total = truth + predicted - hits, tf.reduce_sum(matrix)
        iou = tf.math.divide_no_nan(hits, union)
        values = (
            tf.reduce_sum(hits) / total,
            _mean_where(truth, tf.math.divide_no_nan(hits, truth)),
            _mean_where(union, iou),
            tf.reduce_sum(truth * iou) / total,
        )
        return {f"{self.prefix}{name}": tf.cast(value, tf.float32) for name, value in zip(SCORES, values, strict=True)}

    def matrix(self) -> np.ndarray:
        """The confusion matrix so far, shape `(C, C)`, int64; row: truth, column: prediction."""
        rejected = int(tf.convert_to_tensor(self.rejected))
        if rejected:
            message = _out_of_range("a label or prediction", self.num_classes, self.ignore_label)
            raise KerassegError(f"{message}; pixels: {rejected}")
        return tf.convert_to_tensor(self.counts).numpy()

    def get_config(self):
        """The constructor's arguments."""
        return {"num_classes": self.num_classes, "ignore_label": self.ignore_label, "prefix": self.prefix, "name": self.name}


def _mean_where(sizes, values):
    """The mean of the values whose size is not 0; 0/0, so NaN, if there is none."""
    present = tf.cast(tf.not_equal(sizes, 0), values.dtype)
    return tf.reduce_sum(values * present) / tf.reduce_sum(present)
