"""Cross-entropies over the labelled pixels of a photograph.

Both losses work under `model.compile(loss=…)`. The trainer, which must divide by the number of valid pixels of *all*
replicas and micro-batches, takes their `totals` instead.
"""

import math
from fractions import Fraction

import keras
import tensorflow as tf

from kerasseg.errors import KerassegError

NORMALIZATIONS = ("valid", "sum")


def subsample_label(label, height: int | None, width: int | None, offset: int = 0, margin: int = 0):
    """Takes the label's pixels that lie exactly under the pixels of smaller logits.

    The grids share their corner pixels, as they do in the networks that train on scores at their own stride: the step is
    (H − 1)/(h − 1) and must be whole, since there is no mean of two labels. Where the network has eaten a margin, each pixel of
    logits stands for the H/h label pixels from its own on, and that must be whole.

    Args:
        label: Shape `(B, H, W)`, integer.
        height: Rows h of the logits, h ≤ H; a scalar tensor where it is not known while tracing.
        width: Columns w of the logits, w ≤ W; likewise.
        offset: Rows and columns cut off at the top and left before, so that H and W above are smaller by it. DeepLab v1's net
            with the 4×4 kernel trains on `label[1::8]`: 306 pixels, cut to 305, meet its 39 scores at steps of 8.
        margin: Rows and columns cut off on all four sides before; Dilation's front end trains on `label[186:-186:8]`: 500 pixels,
            cut to 128, meet its 16 scores at steps of 8.
    Returns:
        Shape `(B, h, w)`, the label's dtype; the label itself where the sizes agree.
    Raises:
        KerassegError: If a step is not whole, or the logits are larger than the label. Sizes that are unknown while tracing
            are checked when the graph runs.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, §3.1: the targets are the ground truth subsampled by 8; fyu/dilation's train.py.
    """
    if label.shape.rank != 3:
        raise KerassegError(f"label has shape {label.shape}: expected (B, H, W), class numbers without a channel axis")
    if offset:
        label = label[:, offset:, offset:]
    if margin:
        label = label[:, margin:-margin, margin:-margin]
    if tuple(label.shape[1:]) == (height, width):
        return label
    # What both grids have in common beside their first pixel: the last one, or nothing.
    shared = 0 if margin else 1
    steps = [_step(label, axis, size, shared) for axis, size in ((1, height), (2, width))]
    # The reshape cannot fail where the steps are whole; where one is not, it is what stops XLA, which drops assertions.
    return tf.reshape(label[:, :: steps[0], :: steps[1]], [tf.shape(label)[0], height, width])


def _step(label, axis, size, shared):
    """The distance in label pixels between two pixels of logits; 1 where it is no whole number, so that the size never fits."""
    full = label.shape[axis]
    ratio, crop = ("(H - 1)/(h - 1)", " plus 1") if shared else ("H/h, without the margin,", " plus the margins")
    if full is not None and isinstance(size, int):
        if full != size and (size <= shared or full < size or (full - shared) % (size - shared)):
            raise KerassegError(
                f"label of {full} pixels cannot be subsampled to logits of {size}: {ratio} must be a whole number; "
                f"choose a crop size of a multiple of the output stride{crop}, or upsample_logits=True"
            )
        return max(1, (full - shared) // max(1, size - shared))
    full = tf.shape(label)[axis]
    gaps = tf.maximum(size - shared, 1)
    whole = tf.logical_or(tf.equal(full, size), tf.logical_and(size > shared, tf.equal((full - shared) % gaps, 0)))
    message = f"label cannot be subsampled to the logits: {ratio} must be a whole number; sizes of label and logits:"
    with tf.control_dependencies([tf.debugging.Assert(whole, [message, full, size])]):
        return tf.where(whole, tf.maximum(1, (full - shared) // gaps), 1)


class _PixelLoss(keras.losses.Loss):
    """What the losses share: ignored pixels, class weights, hard pixels, normalisation, the check of the labels."""

    def __init__(self, normalization, ignore_label, class_weights, hard_pixel_share, label_offset, label_margin, name):
        if normalization not in NORMALIZATIONS:
            raise KerassegError(f"unknown normalization '{normalization}': known: {', '.join(NORMALIZATIONS)}")
        if class_weights is not None and not all(weight >= 0 and math.isfinite(weight) for weight in class_weights):
            raise KerassegError(f"class_weights {tuple(class_weights)}: expected finite numbers that are not negative")
        if not 1e-6 <= hard_pixel_share <= 1:
            raise KerassegError(f"hard_pixel_share={hard_pixel_share}: expected 0.000001 to 1, e.g. 0.25; 1 counts every pixel")
        for what, pixels in (("label_offset", label_offset), ("label_margin", label_margin)):
            if not isinstance(pixels, int) or pixels < 0:
                raise KerassegError(f"{what}={pixels}: expected a whole number of pixels, 0 or more")
        # Keras' mean (over all pixels) and not its sum, because only of a mean does it know that replicas must share it.
        super().__init__(name=name, reduction="sum" if normalization == "sum" else "sum_over_batch_size", dtype="float32")
        self.normalization = normalization
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
        self.hard_pixel_share, self.label_offset, self.label_margin = float(hard_pixel_share), label_offset, label_margin

    @property
    def normalized(self) -> bool:
        """Whether the loss is divided by the weight of the valid pixels; otherwise it is their plain sum."""
        return self.normalization == "valid"

    def totals(self, label, logits):
        """The loss of one replica before its normalisation.

        Dividing the sum of many replicas' losses by the sum of their weights gives the loss of the whole batch; the mean of
        the replicas' own losses does not, unless all have equally many valid pixels.

        Args:
            label: Shape `(B, H, W)`, integer.
            logits: Shape `(B, h, w, C)`; a label that is larger is subsampled by `subsample_label`.
        Returns:
            Two float32 scalars: the summed loss of the valid pixels (of the hard ones among them), and their number or the sum of
            their class weights (1 where `normalized` is false).
        """
        losses, weights = self._pixels(label, logits)
        return tf.reduce_sum(losses), tf.reduce_sum(weights) if self.normalized else tf.ones((), tf.float32)

    def weight(self, label, size=None):
        """The second of `totals`, from a label alone: what a step of several passes has to know first.

        Args:
            label: Shape `(B, H, W)`, integer.
            size: `(h, w)` of the logits, for which the label is subsampled first; `None` if it has their size.
        Returns:
            Float32 scalar: the number of valid pixels or the sum of their class weights, the number of hard pixels where only
            those count; 1 where `normalized` is false.
        """
        if not self.normalized:
            return tf.ones((), tf.float32)
        label = tf.cast(tf.convert_to_tensor(label), tf.int32)
        if size is not None:
            label = subsample_label(label, *size, self.label_offset, self.label_margin)
        weights = self._class_weights(label, tf.not_equal(label, self.ignore_label))
        if self.hard_pixel_share < 1:
            return tf.cast(tf.reduce_sum(self._hard_count(weights > 0)), tf.float32)
        return tf.reduce_sum(weights)

    def call(self, y_true, y_pred):
        """The map of pixel losses whose reduction by Keras is this loss."""
        losses, weights = self._pixels(y_true, y_pred)
        if not self.normalized:
            return losses
        return losses * tf.math.divide_no_nan(tf.cast(tf.size(losses), tf.float32), tf.reduce_sum(weights))

    def get_config(self):
        """The constructor's arguments."""
        return {
            "normalization": self.normalization,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "hard_pixel_share": self.hard_pixel_share,
            "label_offset": self.label_offset,
            "label_margin": self.label_margin,
            "name": self.name,
        }

    def _pixels(self, label, logits):
        """Weighted losses and weights, both (B, h, w) float32 and 0 where the pixel does not count."""
        logits = tf.cast(logits, tf.float32)
        num_classes = self._num_classes(logits)
        label = tf.cast(tf.convert_to_tensor(label), tf.int32)
        height, width = (logits.shape[axis] or tf.shape(logits)[axis] for axis in (1, 2))
        label = subsample_label(label, height, width, self.label_offset, self.label_margin)
        ignored = tf.equal(label, self.ignore_label)
        inside = tf.logical_and(label >= 0, label < num_classes)
        valid = tf.logical_and(inside, tf.logical_not(ignored))
        wrong = tf.logical_not(tf.logical_or(inside, ignored))
        checked = _check_labels(label, wrong, num_classes, self.ignore_label)
        with tf.control_dependencies(checked):
            safe_label = tf.where(valid, label, 0)
        # XLA drops assertions: there a wrong label makes the loss and its gradient NaN instead of training something.
        weights = tf.where(wrong, math.nan, self._class_weights(safe_label, valid))
        losses = self._log_loss(safe_label, logits) * weights
        if self.hard_pixel_share == 1:
            return losses, weights
        # What is not a number counts in any case, and so shows.
        hard = tf.logical_or(_largest(losses, weights > 0, self._hard_count(weights > 0)), tf.math.is_nan(losses))
        return tf.where(hard, losses, 0.0), tf.cast(hard, tf.float32)

    def _class_weights(self, label, valid):
        """The weight of every pixel's class, 0 where it is not valid."""
        if self.class_weights is None:
            return tf.cast(valid, tf.float32)
        # What is no class is found, and named, where the loss itself is computed.
        known = tf.clip_by_value(label, 0, len(self.class_weights) - 1)
        weights = tf.gather(tf.constant(self.class_weights, tf.float32), known)
        return tf.where(valid, weights, 0.0)

    def _hard_count(self, counting):
        """⌈share · number of counting pixels⌉ of each image, shape (B,) int64: whole numbers, for 0.07 · 100 is not 7 in floats."""
        share = Fraction(self.hard_pixel_share).limit_denominator(10**6)
        count = tf.reduce_sum(tf.cast(counting, tf.int64), axis=[1, 2])
        return -(-count * share.numerator // share.denominator)

    def _num_classes(self, logits):
        if logits.shape.rank != 4 or logits.shape[-1] is None:
            raise KerassegError(f"logits have shape {logits.shape}: expected (B, H, W, C) with a known number of classes C")
        num_classes = logits.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise KerassegError(f"{len(self.class_weights)} class_weights for {num_classes} classes: give one for each class")
        return num_classes

    def _log_loss(self, label, logits):
        raise NotImplementedError


def _largest(losses, counting, count):
    """Marks the `count` largest of each image's counting losses; of equal ones the first in reading order."""
    losses = tf.where(counting, tf.stop_gradient(losses), -math.inf)
    losses = tf.where(tf.math.is_nan(losses), math.inf, losses)
    flat = tf.reshape(losses, [tf.shape(losses)[0], -1])
    last = tf.cast(tf.maximum(count - 1, 0), tf.int32)[:, None]
    threshold = tf.gather(tf.sort(flat, direction="DESCENDING"), last, batch_dims=1)
    above, level = flat > threshold, tf.equal(flat, threshold)
    left = count[:, None] - tf.reduce_sum(tf.cast(above, tf.int64), axis=1, keepdims=True)
    chosen = tf.logical_or(above, tf.logical_and(level, tf.cumsum(tf.cast(level, tf.int64), axis=1) <= left))
    return tf.reshape(chosen, tf.shape(losses))


def _check_labels(label, wrong, num_classes, ignore_label):
    """Raises where eager; otherwise returns the assertion that the graph has to run."""
    expected = f"expected 0 to {num_classes - 1}, or {ignore_label} for pixels to ignore; map the label files' values first"
    if not tf.executing_eagerly():
        return [tf.debugging.Assert(~tf.reduce_any(wrong), [f"label out of range: {expected}; received", label[wrong]])]
    if tf.reduce_any(wrong):
        raise KerassegError(f"label {int(label[wrong][0])} is out of range: {expected}")
    return []


@keras.saving.register_keras_serializable("kerasseg")
class SegmentationCrossEntropy(_PixelLoss):
    """The softmax log-loss of each labelled pixel, computed in float32.

    Under Keras' own `fit` each batch (and replica) is divided by its own count of valid pixels, and what it reports for an
    epoch is the mean over batches. A batch without a valid pixel has loss 0 and gradient 0.

    Args:
        normalization: `"valid"`: the mean over the valid pixels, weighted by `class_weights`; `"sum"`: their sum, for which
            rates are about 1e-10.
        ignore_label: Value of the pixels that count nothing.
        class_weights: One weight per class, not negative; `None` weighs all alike.
        hard_pixel_share: Below 1: online hard example mining. Of each image's n valid pixels whose class weighs more than 0, only
            the ⌈share · n⌉ with the largest weighted loss count, of equal ones the first in reading order; `"valid"` then divides
            by their number, class weights or not, since it must be known from the labels alone.
        label_offset: Rows and columns of the label cut off at the top and left before it is subsampled; 1 for DeepLab v1's 4×4
            net. See `subsample_label`.
        label_margin: Likewise on all four sides; 186 for the Dilation networks without padding of their own.
        name: Keras' name of the loss.
    Raises:
        KerassegError: At construction for an unknown normalization or a bad weight; when called, if a label is neither a class
            nor `ignore_label` (in a graph `tf.errors.InvalidArgumentError`; under XLA, which drops assertions, NaN).
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §4.2 (the sum over pixels, unnormalised); Shrivastava et al. 2016,
        arXiv:1604.03540 (hard examples).
    Example:
        >>> model.compile("adam", loss=kerasseg.losses.SegmentationCrossEntropy())
    """

    def __init__(
        self,
        normalization="valid",
        ignore_label=255,
        class_weights=None,
        hard_pixel_share=1.0,
        label_offset=0,
        label_margin=0,
        name="segmentation_cross_entropy",
    ):
        super().__init__(normalization, ignore_label, class_weights, hard_pixel_share, label_offset, label_margin, name)

    def _log_loss(self, label, logits):
        # Three quarters of the time of tf.nn.sparse_softmax_cross_entropy_with_logits on a CPU; not by tf.gather, whose gradient
        # scatters, which is slow on a TPU.
        own = tf.one_hot(label, logits.shape[-1])
        return -tf.reduce_sum(tf.math.multiply_no_nan(tf.nn.log_softmax(logits), own), axis=-1)


@keras.saving.register_keras_serializable("kerasseg")
class SegmentationSigmoidCrossEntropy(_PixelLoss):
    """The sigmoid cross-entropy of each labelled pixel, summed over its classes, which then do not compete.

    Args:
        normalization: `"valid"`: the mean over the valid pixels, weighted by `class_weights`; `"sum"`: their sum.
        ignore_label: Value of the pixels that count nothing.
        class_weights: One weight per class, background included, applied to the pixels of that class; `None` weighs all alike.
        null_background: Class 0 scores constantly 0, as a network built with `null_background=True` gives it: its channel is
            not part of the loss, and a background pixel is a negative of all other classes.
        hard_pixel_share: As in `SegmentationCrossEntropy`.
        label_offset: Likewise.
        label_margin: Likewise.
        name: Keras' name of the loss.
    Raises:
        KerassegError: As `SegmentationCrossEntropy`.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.1, "Background modeling".
    """

    def __init__(
        self,
        normalization="valid",
        ignore_label=255,
        class_weights=None,
        null_background=False,
        hard_pixel_share=1.0,
        label_offset=0,
        label_margin=0,
        name="segmentation_sigmoid_cross_entropy",
    ):
        super().__init__(normalization, ignore_label, class_weights, hard_pixel_share, label_offset, label_margin, name)
        self.null_background = null_background

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "null_background": self.null_background}

    def _log_loss(self, label, logits):
        first = int(self.null_background)
        # tf.one_hot of −1, a background pixel without a learned channel, is a row of zeros.
        truth = tf.one_hot(label - first, logits.shape[-1] - first)
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=truth, logits=logits[..., first:]), axis=-1)


LOSSES = {
    "cross_entropy": SegmentationCrossEntropy,
    "sigmoid_cross_entropy": SegmentationSigmoidCrossEntropy,
}
"""Name in a recipe → loss."""
