"""The margin of the label that a network without padding of its own eats: losses of Dilation's front end."""

import numpy as np
import pytest
import tensorflow as tf
from test_losses import LOSSES, batch

from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy, subsample_label

FRONT_END = [((500, 500), (16, 16)), ((900, 852), (66, 60)), ((380, 380), (1, 1)), ((1396, 1100), (128, 91))]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("full", "small"), FRONT_END)
def test_the_label_of_dilation_is_every_eighth_within_the_margin(full, small, known):
    """FACTS: crops of 500 give 16×16 labels; the centre slice at offset 186, stride 8."""
    label = np.random.default_rng(0).integers(0, 3, (2, *full)).astype(np.int32)
    if known:
        taken = subsample_label(tf.constant(label), *small, margin=186)
    else:
        signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32)]
        taken = tf.function(lambda *inputs: subsample_label(*inputs, margin=186), input_signature=signature)(label, *small)
    np.testing.assert_array_equal(taken, label[:, 186:-186:8, 186:-186:8])
    # Logits of an upsampling network have the cut label's size.
    inner = [size - 372 for size in full]
    np.testing.assert_array_equal(subsample_label(tf.constant(label), *inner, margin=186), label[:, 186:-186, 186:-186])


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_loss_with_a_margin_cuts_before_it_subsamples(loss_class, jit_compile):
    label, _ = batch(size=(2, 6 + 24, 6 + 32))
    _, logits = batch(size=(2, 3, 4))
    loss = loss_class(label_margin=3)
    small = label[:, 3:-3:8, 3:-3:8]
    expected = loss_class()(small, logits)
    signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((None, None, None, 3), tf.float32)]
    for run in (loss, tf.function(loss, jit_compile=jit_compile), tf.function(loss, input_signature=signature)):
        np.testing.assert_allclose(run(tf.constant(label), tf.constant(logits)), expected, rtol=1e-5)
    assert loss.weight(label, (3, 4)) == np.sum(small != 255) != np.sum(label[:, ::8, ::8] != 255)
    # The offset cuts first: 30 pixels, 28, 24.
    both = loss_class(label_margin=2, label_offset=2)
    np.testing.assert_allclose(both(label[:, :30, :38], logits), loss_class()(label[:, 4:28:8, 4:36:8], logits), rtol=1e-5)


@pytest.mark.parametrize(
    ("full", "small"), [((499, 500), (16, 16)), ((500, 500), (17, 16)), ((372, 500), (16, 16)), ((300, 300), (1, 1))]
)
def test_a_margin_refuses_what_is_not_exact(full, small):
    label, logits = np.zeros((1, *full), np.int32), np.zeros((1, *small, 2), np.float32)
    loss = SegmentationCrossEntropy(label_margin=186)
    with pytest.raises(KerassegError, match=r"H/h, without the margin, must be a whole number; .* output stride plus the margins"):
        loss(label, logits)
    signature = [tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((None, None, None, 2), tf.float32)]
    # Where the margin leaves nothing, that may show first.
    with pytest.raises(tf.errors.InvalidArgumentError, match="H/h, without the margin, must be a whole number|with 0 values"):
        tf.function(loss, input_signature=signature)(label, logits)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        tf.function(loss, input_signature=signature, jit_compile=True)(label, logits)
