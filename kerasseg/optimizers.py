"""Optimizers as the papers had them, as Keras optimizers: all take (rate, decay) multipliers by layer."""

import re
from collections.abc import Iterable, Mapping

import keras
from keras import ops

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def check_multipliers(multipliers: Mapping[str, tuple[float, float]], paths: Iterable[str]) -> None:
    """Refuses patterns that would do nothing: a misspelt layer would otherwise train at the common rate, unnoticed.

    Args:
        multipliers: Regular expression on a variable's path → (rate, decay).
        paths: Paths of the variables, such as `conv1_1/kernel`.
    Raises:
        KerassegError: If a pattern is no regular expression, or matches none of the paths.
    """
    paths = list(paths)
    for pattern in multipliers:
        try:
            matches = re.compile(pattern).fullmatch
        except re.error as error:
            raise KerassegError(f"multiplier '{pattern}' is not a regular expression: {error}") from error
        if not any(map(matches, paths)):
            raise KerassegError(f"multiplier '{pattern}' matches the whole path of no variable: {did_you_mean(pattern, paths)}")


class _Multiplied:
    """What the optimizers here share: the factors of each variable, known once the variables are."""

    def __init__(self, *args, multipliers: Mapping[str, tuple[float, float]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = {pattern: tuple(pair) for pattern, pair in (multipliers or {}).items()}

    def build(self, variables):
        """Makes what the optimizer keeps of each variable, and finds its multipliers."""
        if self.built:
            return
        paths = [variable.path for variable in variables]
        check_multipliers(self.multipliers, paths)
        super().build(variables)
        # update_step sees TensorFlow's variables, which do not know their layer.
        self._multipliers = [self.multipliers_of(path) for path in paths]

    def multipliers_of(self, path: str) -> tuple[float, float]:
        """Gives the (rate, decay) factors of the variable with this path: those of the first pattern that matches it."""
        for pattern, pair in self.multipliers.items():
            if re.fullmatch(pattern, path):
                return pair
        return (1.0, 1.0)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "multipliers": self.multipliers}

    def _factors(self, variable) -> tuple[float, float]:
        return self._multipliers[self._get_variable_index(variable)]

    def _decayed(self, gradient, variable, decay: float):
        """The gradient with that of the L2 penalty, l2_decay · d / 2 · |w|²."""
        gradient = ops.cast(gradient, variable.dtype)
        if self.l2_decay and decay:
            gradient = gradient + self.l2_decay * decay * ops.convert_to_tensor(variable)
        return gradient


@keras.saving.register_keras_serializable("kerasseg")
class CaffeSGD(_Multiplied, keras.optimizers.Optimizer):
    """Stochastic gradient descent with Caffe's momentum, L2 decay and per-layer multipliers.

    v ← momentum · v + rate · r · (g + l2_decay · d · w);  w ← w − v

    The rate is inside the velocity, so that a change of rate acts on new gradients only; decay is added to the gradient, so
    that it passes through the momentum; r and d are the variable's rate and decay multipliers.

    Args:
        learning_rate: Rate, or a Keras schedule.
        momentum: Share of the velocity kept at each step.
        l2_decay: L2 coefficient. (Keras' own `weight_decay` is another thing: it bypasses the gradient.)
        multipliers: Regular expression on a variable's path (`layer/kernel`), matched whole → `(rate, decay)`; the first that
            matches counts, others have (1, 1). Rate 0 freezes.
        name: Keras' name of the optimizer.
        **kwargs: Of `keras.optimizers.Optimizer`.
    Raises:
        KerassegError: When built, if a multiplier's pattern matches no variable.
    Reference:
        Caffe's SGDSolver; Shelhamer et al. 2017, §4.1 (doubled rate for biases) and Eq. of §6.2.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        momentum: float = 0.9,
        l2_decay: float = 0.0,
        multipliers: Mapping[str, tuple[float, float]] | None = None,
        name: str = "caffe_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, multipliers=multipliers, name=name, **kwargs)
        self.momentum, self.l2_decay = momentum, l2_decay

    def build(self, variables):
        """Makes the velocities, and finds each variable's multipliers."""
        if self.built:
            return
        super().build(variables)
        self._velocities = [self.add_variable_from_reference(variable, name="velocity") for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its velocity."""
        rate, decay = self._factors(variable)
        gradient = self._decayed(gradient, variable, decay)
        velocity = self._velocities[self._get_variable_index(variable)]
        change = self.momentum * ops.convert_to_tensor(velocity) + ops.cast(learning_rate, variable.dtype) * rate * gradient
        self.assign(velocity, change)
        self.assign_sub(variable, change)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "l2_decay": self.l2_decay}


@keras.saving.register_keras_serializable("kerasseg")
class Adam(_Multiplied, keras.optimizers.Adam):
    """Keras' Adam with per-layer multipliers, and with L2 decay in the gradient.

    Args:
        learning_rate: Rate, or a Keras schedule.
        l2_decay: L2 coefficient, times the decay multiplier; added to the gradient, whose moments then hold it.
        multipliers: As of `CaffeSGD`. The rate multiplier scales the step, as a learning rate of its own for that variable
            would, `weight_decay` included; rate 0 freezes.
        name: Keras' name of the optimizer.
        **kwargs: Of `keras.optimizers.Adam`. `weight_decay` is Keras' decoupled one, times rate and decay multipliers.
    Raises:
        KerassegError: When built, if a multiplier's pattern matches no variable.
    Reference:
        Kingma & Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        *,
        l2_decay: float = 0.0,
        multipliers: Mapping[str, tuple[float, float]] | None = None,
        name: str = "adam",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, multipliers=multipliers, name=name, **kwargs)
        self.l2_decay = l2_decay

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its moments."""
        rate, decay = self._factors(variable)
        gradient = self._decayed(gradient, variable, decay)
        learning_rate = ops.cast(learning_rate, variable.dtype) * rate
        if self.weight_decay and decay and self._use_weight_decay(variable):
            self.assign_sub(variable, ops.convert_to_tensor(variable) * (self.weight_decay * decay) * learning_rate)
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables):
        """Leaves the decay to update_step, which knows the multipliers."""

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "l2_decay": self.l2_decay}


@keras.saving.register_keras_serializable("kerasseg")
class AdamW(Adam, keras.optimizers.AdamW):
    """Keras' AdamW with per-layer multipliers.

    w ← w − rate · r · (weight_decay · d · w + Adam's step), r and d the variable's rate and decay multipliers.

    Args:
        learning_rate: Rate, or a Keras schedule.
        l2_decay: As of `Adam`; usually 0 here.
        multipliers: As of `Adam`.
        name: Keras' name of the optimizer.
        **kwargs: Of `keras.optimizers.AdamW`, among them `weight_decay`, 0.004 by default.
    Raises:
        KerassegError: When built, if a multiplier's pattern matches no variable.
    Reference:
        Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, learning_rate=1e-3, *, l2_decay=0.0, multipliers=None, name="adamw", **kwargs):
        super().__init__(learning_rate, l2_decay=l2_decay, multipliers=multipliers, name=name, **kwargs)
