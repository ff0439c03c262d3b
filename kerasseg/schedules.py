"""Learning-rate schedules of the papers, counted in optimiser steps: Keras' own, and a warm-up before them."""

import keras
from keras import ops

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

SCHEDULES = ("fixed", "step", "poly")
WARMUPS = ("linear", "constant")


@keras.saving.register_keras_serializable("kerasseg")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Small rates first, then a schedule that starts when they end.

    Args:
        schedule: What follows: a rate, or a Keras schedule, whose step 0 is step `steps` of the training.
        steps: Steps of the warm-up.
        rate: Rate of step 0.
        kind: `"linear"`: the rate rises in equal parts and reaches the schedule's first rate at step `steps`; `"constant"`: it
            stays at `rate` until then.
    Raises:
        KerassegError: If the kind is unknown or there are no steps.
    Reference:
        Goyal et al. 2017, arXiv:1706.02677, §2.2 (both kinds); TensorFlow's DeepLab (slow start).
    """

    def __init__(self, schedule, steps: int, rate: float = 0.0, kind: str = "linear"):
        if kind not in WARMUPS:
            raise KerassegError(f"warmup='{kind}': {did_you_mean(kind, WARMUPS)}")
        if steps < 1:
            raise KerassegError(f"a warm-up of {steps} steps: expected at least 1, or no warm-up")
        self.schedule, self.steps, self.rate, self.kind = schedule, steps, rate, kind

    def __call__(self, step):
        """The rate at a step, or at each of a tensor of steps."""
        step = ops.cast(step, "int32")
        rate = ops.convert_to_tensor(self.rate, "float32")
        if self.kind == "linear":
            # The share first: it is 1 at the end exactly, and so the two parts meet.
            share = ops.cast(step, "float32") / ops.cast(self.steps, "float32")
            rate = rate + share * (self._after(ops.zeros_like(step)) - rate)
        return ops.where(step < self.steps, rate, self._after(ops.maximum(step - self.steps, 0)))

    def get_config(self):
        """The constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.steps,
            "rate": self.rate,
            "kind": self.kind,
        }

    @classmethod
    def from_config(cls, config):
        """Makes what `get_config` described."""
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})

    def _after(self, step):
        return ops.cast(self.schedule(step) if callable(self.schedule) else self.schedule, "float32")


def make_schedule(
    kind: str,
    learning_rate: float,
    *,
    iterations: int,
    power: float = 0.9,
    step_size: int | None = None,
    gamma: float = 0.1,
    warmup: str = "linear",
    warmup_steps: int = 0,
    warmup_rate: float = 0.0,
):
    """Makes a learning rate or a schedule that every Keras optimizer takes.

    Args:
        kind: `"fixed"`; `"step"`: times `gamma` every `step_size` steps; `"poly"`: (1 − step / iterations)^power. After a
            warm-up, `step` counts from its end and `iterations` is what is left.
        learning_rate: Rate of the schedule's first step.
        iterations: Optimiser steps of the whole run, warm-up included; where `"poly"` reaches zero.
        power: Exponent of `"poly"`.
        step_size: Optimiser steps between the drops of `"step"`.
        gamma: Factor of each drop of `"step"`.
        warmup: `"linear"` or `"constant"`, as of `WarmUp`.
        warmup_steps: Optimiser steps of the warm-up; 0 for none.
        warmup_rate: Rate of the first step of the warm-up.
    Returns:
        A float, or a `keras.optimizers.schedules.LearningRateSchedule`. Its rates are float32: near the end of `"poly"`, where
        1 − step / iterations is small, their relative error grows to some 1e-7 / (1 − step / iterations).
    Raises:
        KerassegError: If the kind or the warm-up is unknown, `"step"` lacks its `step_size`, or the warm-up takes all steps.
    Reference:
        Caffe's lr_policy fixed, step, poly.
    """
    if warmup not in WARMUPS:
        raise KerassegError(f"warmup='{warmup}': {did_you_mean(warmup, WARMUPS)}")
    if warmup_steps and not 0 < warmup_steps < iterations:
        raise KerassegError(f"warmup_steps={warmup_steps} of iterations={iterations}: expected 0 to {iterations - 1}")
    if warmup_rate and not warmup_steps:
        raise KerassegError(f"warmup_rate={warmup_rate:g} without a warm-up: pass warmup_steps=…")
    schedule = _plain_schedule(kind, learning_rate, iterations - warmup_steps, power, step_size, gamma)
    return WarmUp(schedule, warmup_steps, warmup_rate, warmup) if warmup_steps else schedule


def _plain_schedule(kind, learning_rate, iterations, power, step_size, gamma):
    if kind == "fixed":
        return learning_rate
    if kind == "step":
        if not step_size or step_size < 1:
            raise KerassegError(f"schedule='step' with step_size={step_size}: pass the optimiser steps between drops, 1 or more")
        return keras.optimizers.schedules.ExponentialDecay(learning_rate, step_size, gamma, staircase=True)
    if kind == "poly":
        return keras.optimizers.schedules.PolynomialDecay(learning_rate, iterations, end_learning_rate=0.0, power=power)
    raise KerassegError(f"schedule='{kind}': expected one of {', '.join(SCHEDULES)}")
