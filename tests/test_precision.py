"""The step in float16 and under XLA."""

import keras
import numpy as np
import pytest
from toy_training import examples, feed_of, make_trainer, network, train


def test_xla_compiles_the_same_step():
    images, labels = examples(8)
    runs = []
    for jit_compile in (False, True):
        model = network()
        steps = train(model, 0.1, images, labels, 2, 3, momentum=0.9, clip_norm=0.1, jit_compile=jit_compile)
        runs.append(([step.loss for step in steps], model.get_weights()))
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-5)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def half_network():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return network()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_float16_trains_as_float32_by_scaling_the_loss(accumulation):
    """The gradients are far below float16's smallest number, 6e-8, without the factor."""
    images, labels = examples(8)
    moved = []
    for model, scaling in ((network(), False), (half_network(), True), (half_network(), False)):
        before = model.get_weights()[0]
        tiny = {"accumulation": accumulation, "loss_weights": {"logits": 1e-7}}
        train(model, 1e6, images, labels, 2, 1, loss_scaling=scaling, **tiny)
        moved.append(model.get_weights()[0] - before)
    assert np.abs(moved[0]).max() > 0.005
    np.testing.assert_allclose(moved[1], moved[0], atol=0.02 * np.abs(moved[0]).max())
    assert np.abs(moved[2] - moved[0]).max() > 0.1 * np.abs(moved[0]).max()


def test_a_step_that_leaves_float16_counts_but_changes_no_weight():
    images, labels = examples(8)
    trainer = make_trainer(half_network(), 0.1, momentum=0.9, loss_scaling=True)
    state = trainer.state()
    assert [name.split("/", 2)[2] for name in state if name.startswith("trainer")] == ["loss_scale:0", "finite_steps:0"]
    name = next(name for name in state if "loss_scale" in name)
    trainer.restore({**state, name: np.float32(2.0**120)})
    losses = [step.loss for step in trainer.train(feed_of(images, labels, 2), 3)]
    assert np.isfinite(losses).all() and trainer.step == 3
    after = trainer.state()
    assert after[name] == 2.0**117
    for key, value in state.items():
        if key.startswith("model") or "velocity" in key:
            np.testing.assert_array_equal(after[key], value)


def test_the_scale_grows_after_2000_finite_steps():
    images, labels = examples(2)
    trainer = make_trainer(half_network(), 0.0, loss_scaling=True, steps_per_call=400)
    state = trainer.state()
    scale, count = (next(name for name in state if part in name) for part in ("loss_scale", "finite_steps"))
    trainer.restore({**state, count: np.int32(1998)})
    scales = [trainer.state()[scale] for _ in trainer.train(feed_of(images, labels, 2), 3, stops=(1,))]
    assert scales == [2.0**15, 2.0**16, 2.0**16]
