"""The four scores of semantic segmentation, all from one confusion matrix of pixel counts.

Rows of a matrix are the truth, columns the prediction.
"""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")

# Pixels up to which a boundary is found by moving the label over itself, whose cost grows with the distance squared.
_NEAR = 16


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


def boundary_region(label, distance: float = 7, *, ignore_label: int = 255, ignored_is_boundary: bool = True) -> np.ndarray:
    """Finds the pixels close to the boundary of objects.

    A pixel's distance is Euclidean, from its centre to the centre of the nearest pixel of another label: the two pixels on
    either side of a boundary are at distance 1 from it. The image's edge is no boundary.

    Args:
        label: Shape `(H, W)`, integer.
        distance: In pixels, at least 1; a pixel at just this distance belongs to the region.
        ignore_label: Label of pixels to ignore. They never belong to the region.
        ignored_is_boundary: Whether ignored pixels are "another label" for those beside them. In PASCAL VOC, where objects are
            outlined by a band of them, they are the boundary. `False`: distances are to the nearest pixel of another class.
    Returns:
        Shape `(H, W)`, bool. The internal region is what is neither in it nor ignored.
    Raises:
        KerassegError: If the label is not `(H, W)`, or the distance below 1.
    Reference:
        Peng et al. 2017, arXiv:1703.02719, §4.1.1 (3), Table 5, which gives the distance, 7, and not how it is measured.
    """
    label = np.asarray(label)
    if label.ndim != 2:
        raise KerassegError(f"label has shape {label.shape}: expected (H, W), one image")
    check_boundary_distance(distance)
    if label.size and label.min() >= 0 and label.max() <= 255:
        # A quarter of the memory to go through.
        label = label.astype(np.uint8)
    valid = label != ignore_label
    # No two pixels are farther from each other.
    distance = min(distance, sum(label.shape))
    find = _region_by_shifts if distance <= _NEAR else _region_by_distances
    return find(label, valid, distance, ignored_is_boundary) & valid


def _region_by_shifts(label, valid, distance, ignored_is_boundary: bool) -> np.ndarray:
    region, reach = np.zeros(label.shape, bool), min(int(distance), max(label.shape))
    for down in range(reach + 1):
        for right in range(-reach, reach + 1):
            # Each pair of pixels once, from the upper one.
            if (down or right > 0) and down**2 + right**2 <= distance**2:
                upper = np.s_[: max(0, len(label) - down), max(0, -right) : max(0, label.shape[1] - right)]
                lower = np.s_[down:, max(0, right) : max(0, label.shape[1] + right)]
                differ = label[upper] != label[lower]
                if not ignored_is_boundary:
                    differ &= valid[upper] & valid[lower]
                region[upper] |= differ
                region[lower] |= differ
    return region


def _region_by_distances(label, valid, distance, ignored_is_boundary: bool) -> np.ndarray:
    """By a distance transform of each label, which takes the same time however far."""
    from scipy import ndimage

    region, reach = np.zeros(label.shape, bool), int(distance)
    # From 1, since 0 is nothing to SciPy.
    numbers = np.unique(label, return_inverse=True)[1].reshape(label.shape) + 1
    for number, around in enumerate(ndimage.find_objects(numbers), start=1):
        place = tuple(slice(max(0, span.start - reach), span.stop + reach) for span in around)
        own = numbers[place] == number
        others = ~own if ignored_is_boundary else ~own & valid[place]
        if others.any():
            # Squares are whole numbers, their roots are not.
            squared = np.rint(ndimage.distance_transform_edt(~others) ** 2)
            region[place] |= own & (squared <= distance**2)
    return region


def check_boundary_distance(distance: float) -> None:
    """Refuses a distance at which no pixel would be close to a boundary.

    Raises:
        KerassegError: If it is below 1, or infinite.
    """
    if not 1 <= distance < float("inf"):
        raise KerassegError(f"boundary distance {distance}: expected at least 1 pixel, such as 7")


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
