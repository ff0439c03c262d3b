"""The optimizer that a recipe describes."""

import re

import keras

from kerasseg.errors import KerassegError
from kerasseg.optimizers import Adam, AdamW, CaffeSGD, check_multipliers
from kerasseg.recipes import Recipe
from kerasseg.schedules import make_schedule

OPTIMIZERS = ("sgd", "adam", "adamw")


def make_optimizer(recipe: Recipe, model: keras.Model | None = None) -> keras.optimizers.Optimizer:
    """Makes the optimizer that a recipe describes, its schedule included.

    Args:
        recipe: The recipe. Its `weight_decay` is L2 decay in the gradient, of `adamw` the decoupled one.
        model: What it will train, if known: multipliers of layers that are frozen are then left out; without it they are errors
            when the optimizer is built, since it sees the trainable variables alone.
    Raises:
        KerassegError: If the optimizer or schedule is unknown, or a multiplier is for a layer that the model lacks.
    """
    rate = make_schedule(
        recipe.schedule,
        recipe.learning_rate,
        iterations=recipe.iterations,
        power=recipe.power,
        step_size=recipe.step_size,
        gamma=recipe.gamma,
        warmup=recipe.warmup,
        warmup_steps=recipe.warmup_steps,
        warmup_rate=recipe.warmup_rate,
    )
    multipliers = recipe.multipliers if model is None else _multipliers_for(recipe, model)
    if recipe.optimizer == "sgd":
        return CaffeSGD(rate, recipe.momentum, recipe.weight_decay, multipliers)
    if recipe.optimizer == "adam":
        return Adam(rate, l2_decay=recipe.weight_decay, multipliers=multipliers)
    if recipe.optimizer == "adamw":
        return AdamW(rate, multipliers=multipliers, weight_decay=recipe.weight_decay)
    raise KerassegError(f"optimizer='{recipe.optimizer}': expected one of {', '.join(OPTIMIZERS)}")


def _multipliers_for(recipe: Recipe, model: keras.Model) -> dict:
    """Those multipliers that concern a variable to train; what has no layer at all is a mistake, what is frozen is not."""
    check_multipliers(recipe.multipliers, [variable.path for variable in model.variables])
    trained = [variable.path for variable in model.trainable_variables]
    return {pattern: pair for pattern, pair in recipe.multipliers.items() if any(re.fullmatch(pattern, path) for path in trained)}
