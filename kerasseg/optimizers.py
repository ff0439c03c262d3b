"""Optimizers as the papers had them, as Keras optimizers."""

import re
from collections.abc import Mapping

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasseg")
class CaffeSGD(keras.optimizers.Optimizer):
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
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum, self.l2_decay = momentum, l2_decay
        self.multipliers = {pattern: tuple(pair) for pattern, pair in (multipliers or {}).items()}

    def build(self, variables):
        """Makes the velocities, and finds each variable's multipliers."""
        if self.built:
            return
        super().build(variables)
        self._velocities = [self.add_variable_from_reference(variable, name="velocity") for variable in variables]
        # update_step sees TensorFlow's variables, which do not know their layer.
        self._multipliers = [self.multipliers_of(variable.path) for variable in variables]

    def multipliers_of(self, path: str) -> tuple[float, float]:
        """Gives the (rate, decay) factors of the variable with this path."""
        for pattern, pair in self.multipliers.items():
            if re.fullmatch(pattern, path):
                return pair
        return (1.0, 1.0)

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its velocity."""
        index = self._get_variable_index(variable)
        rate, decay = self._multipliers[index]
        gradient = ops.cast(gradient, variable.dtype)
        if self.l2_decay and decay:
            gradient = gradient + self.l2_decay * decay * ops.convert_to_tensor(variable)
        velocity = self._velocities[index]
        change = self.momentum * ops.convert_to_tensor(velocity) + ops.cast(learning_rate, variable.dtype) * rate * gradient
        self.assign(velocity, change)
        self.assign_sub(variable, change)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "l2_decay": self.l2_decay, "multipliers": self.multipliers}
