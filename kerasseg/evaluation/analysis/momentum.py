"""Momentum and batch size: how much each example counts in a step, and which pairs of the two are about the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.runs import atomic_path


class Regime(NamedTuple):
    """How an optimizer is driven: its momentum, 0 ≤ p < 1, and the examples in a batch, k ≥ 1."""

    momentum: float
    batch: int

    def coefficients(self, count: int) -> np.ndarray:
        """Says how much each example counts in the newest step: p^⌊j/k⌋, j = 0 for the example seen last.

        Args:
            count: How many examples.
        Returns:
            Shape `(count,)`, float64, from 1 down.
        Reference:
            Shelhamer et al. 2017, arXiv:1605.06211, §6.2, the text below the second equation.
        """
        check_regime(self)
        return float(self.momentum) ** (np.arange(count) // self.batch)

    def smooth_coefficients(self, count: int) -> np.ndarray:
        """`coefficients` with the floor dropped, which regimes that are about the same share: p^(j/k)."""
        check_regime(self)
        return float(self.momentum) ** (np.arange(count) / self.batch)

    def total(self) -> float:
        """The sum of all coefficients, k / (1 − p): how large a step is if all gradients are the same, at learning rate 1."""
        check_regime(self)
        return self.batch / (1 - self.momentum)

    def smooth_total(self) -> float:
        """The sum of all smooth coefficients, 1 / (1 − p^(1/k))."""
        check_regime(self)
        return 1 / (1 - self.momentum ** (1 / self.batch))


def check_regime(regime: Regime) -> None:
    """Refuses what is no momentum and batch size.

    Raises:
        KerassegError: If the momentum is not from 0 on and below 1, or the batch size no whole number from 1 on.
    """
    if not 0 <= regime.momentum < 1:
        raise KerassegError(f"momentum {regime.momentum}: expected 0 or more and below 1, such as 0.9")
    if not isinstance(regime.batch, int | np.integer) or regime.batch < 1:
        raise KerassegError(f"batch size {regime.batch}: expected a whole number of images from 1 on, such as 20")


def equivalent(regime: Regime, batch: int = 1) -> Regime:
    """Finds the momentum with which another batch size trains about alike: p′ = p^(k′/k).

    No exact equivalence: smaller batches update the weights more often.

    Args:
        regime: Momentum p and batch size k.
        batch: The other batch size, k′.
    Returns:
        p′ and k′.
    Raises:
        KerassegError: If a number is out of range.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.2: p^(1/k) = p′^(1/k′).
    Example:
        >>> round(equivalent(Regime(0.9, 20)).momentum, 4)
        0.9947
    """
    check_regime(regime)
    check_regime(Regime(regime.momentum, batch))
    found = Regime(float(regime.momentum ** (batch / regime.batch)), batch)
    if found.momentum >= 1:
        raise KerassegError(
            f"momentum {regime.momentum!r} at batch size {regime.batch}: at {batch} it would be too close to 1 to be told from it"
        )
    return found


def rate_factor(regime: Regime, other: Regime, *, averaged: bool = False) -> float:
    """Finds what the learning rate must be multiplied by so that the other regime's steps have the same total.

    Args:
        regime: The regime whose learning rate is known.
        other: The one that is to be trained by.
        averaged: Whether the loss is the average over a batch's images, and not their sum as in the paper's equation.
    Returns:
        The factor, above 0.
    """
    factor = regime.total() / other.total()
    return factor * other.batch / regime.batch if averaged else factor


def expanded_step(gradients: Sequence[np.ndarray], regime: Regime, learning_rate: float) -> np.ndarray:
    """Computes the newest step of gradient descent with momentum as a sum over all examples, each with its coefficient.

    Args:
        gradients: One of each example, the first one seen first; whole batches of them. Each is of the weights of its own time.
        regime: Momentum and batch size.
        learning_rate: η.
    Returns:
        g_t, the change of the weights; the shape of a gradient, float64.
    Raises:
        KerassegError: If they are no whole batches, or the regime is out of range.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.2, second equation: the first one, written without recursion.
    """
    check_regime(regime)
    gradients = np.asarray(gradients, np.float64)
    if not len(gradients) or len(gradients) % regime.batch:
        raise KerassegError(f"received {len(gradients)} gradients: expected whole batches of {regime.batch}")
    return -learning_rate * np.tensordot(regime.coefficients(len(gradients)), gradients[::-1], axes=1)


def momentum_picture(regime: Regime, other: Regime, path, count: int | None = None) -> None:
    """Draws the coefficients of two regimes and the smooth curve between them, as a PNG.

    Args:
        regime: The first.
        other: The second.
        path: The picture.
        count: How many examples; `None`: until less than a tenth is left, at most 1000.
    """
    from matplotlib.figure import Figure

    if count is None:
        count = shown_examples(regime)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    examples = np.arange(count)
    for each, style in ((regime, "-"), (other, "--")):
        name = f"momentum {each.momentum:.4g}, batch {each.batch}"
        axis.step(examples, each.coefficients(count), style, where="post", label=name)
    axis.plot(examples, regime.smooth_coefficients(count), ":", color="black", label="smooth approximation")
    axis.set(xlabel="examples, from the last one seen back", ylabel="coefficient in the step", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def shown_examples(regime: Regime) -> int:
    """Counts the examples after which less than a tenth of the newest's coefficient is left; 1000 at most."""
    check_regime(regime)
    steps = 1 if regime.momentum == 0 else int(np.ceil(np.log(0.1) / np.log(regime.momentum))) + 1
    return min(steps * regime.batch, 1000)
