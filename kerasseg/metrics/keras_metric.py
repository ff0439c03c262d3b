"""The four scores as a metric of Keras."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.metrics.counting import count_pixels, out_of_range
from kerasseg.metrics.scoring import SCORES, check_excluded


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
        exclude: Classes left out of the means over classes, as for `scores`.
    Raises:
        KerassegError: If `exclude` names no class or all of them; when updated, if a label or prediction is neither a class
            nor ignored (in a graph `tf.errors.InvalidArgumentError`; under XLA, which drops assertions, all scores become NaN
            and `matrix` raises).
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §5 "Metrics".
    Example:
        >>> model.compile(loss=SegmentationCrossEntropy(), metrics=[SegmentationMetrics(21)])
        >>> model.evaluate(batches, return_dict=True)["mean_iou"]
    """

    def __init__(self, num_classes, ignore_label=255, prefix="", name="segmentation", exclude=()):
        super().__init__(name=name)
        self.prefix = prefix
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.exclude = tuple(check_excluded(exclude, num_classes))
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
        message = out_of_range("a label or prediction", self.num_classes, self.ignore_label)
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
        kept = tf.constant([number not in self.exclude for number in range(self.num_classes)])
        values = (
            tf.reduce_sum(hits) / total,
            _mean_where(kept & (truth != 0), tf.math.divide_no_nan(hits, truth)),
            _mean_where(kept & (union != 0), iou),
            tf.reduce_sum(truth * iou) / total,
        )
        return {f"{self.prefix}{name}": tf.cast(value, tf.float32) for name, value in zip(SCORES, values, strict=True)}

    def matrix(self) -> np.ndarray:
        """The confusion matrix so far, shape `(C, C)`, int64; row: truth, column: prediction."""
        rejected = int(tf.convert_to_tensor(self.rejected))
        if rejected:
            message = out_of_range("a label or prediction", self.num_classes, self.ignore_label)
            raise KerassegError(f"{message}; pixels: {rejected}")
        return tf.convert_to_tensor(self.counts).numpy()

    def get_config(self):
        """The constructor's arguments."""
        return {
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "prefix": self.prefix,
            "name": self.name,
            "exclude": list(self.exclude),
        }


def _mean_where(present, values):
    """The mean of the values that are present; 0/0, so NaN, if there is none."""
    present = tf.cast(present, values.dtype)
    return tf.reduce_sum(values * present) / tf.reduce_sum(present)
