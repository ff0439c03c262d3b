"""The optimizer that a recipe describes."""

import keras

from kerasseg.errors import KerassegError
from kerasseg.optimizers import CaffeSGD
from kerasseg.recipes import Recipe
from kerasseg.schedules import make_schedule

OPTIMIZERS = ("sgd", "adam")


def make_optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Makes the optimizer that a recipe describes, its schedule included.

    Raises:
        KerassegError: If the optimizer or schedule is unknown.
    """
    rate = make_schedule(
        recipe.schedule,
        recipe.learning_rate,
        iterations=recipe.iterations,
        power=recipe.power,
        step_size=recipe.step_size,
        gamma=recipe.gamma,
    )
    if recipe.optimizer == "sgd":
        return CaffeSGD(rate, recipe.momentum, recipe.weight_decay, recipe.multipliers)
    if recipe.optimizer == "adam":
        if recipe.multipliers:
            raise KerassegError("multipliers are for optimizer='sgd'; received optimizer='adam'")
        return keras.optimizers.Adam(rate, weight_decay=recipe.weight_decay or None)
    raise KerassegError(f"optimizer='{recipe.optimizer}': expected one of {', '.join(OPTIMIZERS)}")
