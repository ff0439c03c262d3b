"""Learning-rate schedules of the papers, counted in optimiser steps. All of them are Keras' own."""

import keras

from kerasseg.errors import KerassegError

SCHEDULES = ("fixed", "step", "poly")


def make_schedule(
    kind: str,
    learning_rate: float,
    *,
    iterations: int,
    power: float = 0.9,
    step_size: int | None = None,
    gamma: float = 0.1,
):
    """Makes a learning rate or a schedule that every Keras optimizer takes.

    Args:
        kind: `"fixed"`; `"step"`: times `gamma` every `step_size` steps; `"poly"`: (1 − step / iterations)^power.
        learning_rate: Rate of the first step.
        iterations: Optimiser steps of the whole run; where `"poly"` reaches zero.
        power: Exponent of `"poly"`.
        step_size: Optimiser steps between the drops of `"step"`.
        gamma: Factor of each drop of `"step"`.
    Returns:
        A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
    Raises:
        KerassegError: If the kind is unknown or `"step"` lacks its `step_size`.
    Reference:
        Caffe's lr_policy fixed, step, poly.
    """
    if kind == "fixed":
        return learning_rate
    if kind == "step":
        if not step_size:
            raise KerassegError("schedule='step' needs the number of steps between drops: pass step_size=…")
        return keras.optimizers.schedules.ExponentialDecay(learning_rate, step_size, gamma, staircase=True)
    if kind == "poly":
        return keras.optimizers.schedules.PolynomialDecay(learning_rate, iterations, end_learning_rate=0.0, power=power)
    raise KerassegError(f"schedule='{kind}': expected one of {', '.join(SCHEDULES)}")
