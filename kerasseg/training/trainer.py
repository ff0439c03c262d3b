"""The step loop: one for every strategy."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.losses import SegmentationCrossEntropy

# Called as feed(start, slices): batches from number `start` on, each as `slices` consecutive equal parts, one for a replica.
Feed = Callable[[int, int], tf.data.Dataset]


class Step(NamedTuple):
    """One optimiser step: its number, counted from 1; the loss it descended; the learning rate it used."""

    step: int
    loss: float
    learning_rate: float


class Trainer:
    """Trains a model on batches, on one device or on replicas, by its own loop.

    The loss is divided by the number of valid pixels in *all* replicas and forward passes of a step, so that neither changes
    the result. What happens between steps (logging, checkpoints, validation) is up to the caller: `train` is an iterator.

    Args:
        model: Image to logits, or to a dict of them; built under the strategy's scope.
        optimizer: Any Keras optimizer; made under the strategy's scope.
        loss: A loss of `kerasseg.losses`, or a dict of them by output.
        loss_weights: Output → factor; 1 by default.
        strategy: Where the replicas are; one device by default.
        accumulation: Forward passes per optimiser step; above 1, the logits must have the label's size.
    Example:
        >>> trainer = Trainer(model, optimizer=CaffeSGD(1e-3), loss=SegmentationCrossEntropy())
        >>> for step in trainer.train(feed, 1000):
        ...     print(step.step, step.loss)
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        optimizer: keras.optimizers.Optimizer,
        loss=None,
        loss_weights: Mapping[str, float] | None = None,
        strategy: tf.distribute.Strategy | None = None,
        accumulation: int = 1,
    ):
        self.model, self.optimizer = model, optimizer
        self.strategy = strategy or tf.distribute.get_strategy()
        self.accumulation = accumulation
        self._losses = _by_output(model, loss or SegmentationCrossEntropy())
        self._loss_weights = {key: float((loss_weights or {}).get(key, 1.0)) for key in self._losses}
        with self.strategy.scope():
            optimizer.build(model.trainable_variables)
        # Without autograph, which would bury the one line of an error in a traceback of another type.
        compiled = partial(tf.function, reduce_retracing=True, autograph=False)
        self._whole_step = compiled(self._whole_step_graph)
        self._weights = compiled(self._weights_graph)
        self._gradients = compiled(self._gradients_graph)
        self._add = compiled(self._add_graph)
        self._apply = compiled(self._apply_graph)

    @property
    def step(self) -> int:
        """Optimiser steps done so far."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def train(self, feed: Feed, iterations: int) -> Iterator[Step]:
        """Trains until the optimizer has done so many steps, and yields after each.

        Args:
            feed: Gives the batches; see `kerasseg.data.training_batches`.
            iterations: Optimiser steps in all, those already done included.
        Yields:
            One `Step` each.
        Raises:
            KerassegError: If the loss is not finite any more.
        """
        first = self.step
        batches = self._distribute(feed, first * self.accumulation)
        for number in range(first + 1, iterations + 1):
            rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
            try:
                loss = float(self._one_step(batches))
            except StopIteration:
                raise KerassegError(f"the feed ended before step {number} of {iterations}: let it repeat") from None
            if not np.isfinite(loss):
                raise KerassegError(f"the loss became {loss} at step {number}: lower --learning-rate (now {rate:g})")
            yield Step(number, loss, rate)

    def state(self) -> dict[str, np.ndarray]:
        """Gives everything that decides the next steps: weights, dropout's random state, the optimizer's variables."""
        return {name: keras.ops.convert_to_numpy(variable) for name, variable in self._state_variables()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Sets what `state` gave.

        Raises:
            KerassegError: If the state is of another network or optimizer; nothing is changed then.
        """
        # By number: the names that Keras makes up depend on what the process built before.
        state = {_numbered(name): value for name, value in state.items()}
        variables = {_numbered(name): variable for name, variable in self._state_variables()}
        for name, variable in variables.items():
            if name not in state or tuple(variable.shape) != state[name].shape:
                found = f"shape {state[name].shape}" if name in state else "nothing"
                raise KerassegError(
                    f"the checkpoint has {found} for {variable.path}, expected {tuple(variable.shape)}: it is of another network"
                )
        for name, variable in variables.items():
            variable.assign(state[name])

    def _state_variables(self):
        for index, variable in enumerate(self.model.variables):
            yield f"model/{index:04d}/{variable.path}", variable
        for index, variable in enumerate(self.optimizer.variables):
            yield f"optimizer/{index:04d}/{variable.path}", variable

    def _distribute(self, feed: Feed, start: int):
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return iter(feed(start, 1))
        # The data set is dealt to the replicas in turn, one element each.
        return iter(self.strategy.distribute_datasets_from_function(lambda _: feed(start, replicas)))

    def _one_step(self, batches):
        if self.accumulation == 1:
            return self._whole_step(next(batches))
        parts = [next(batches) for _ in range(self.accumulation)]
        # Eager between the passes, so that only one of them is in memory at a time.
        weights = self._weights(parts[0])
        for part in parts[1:]:
            weights = self._add(weights, self._weights(part))
        gradients, loss = self._gradients(parts[0], weights)
        for part in parts[1:]:
            gradients, loss = self._add((gradients, loss), self._gradients(part, weights))
        self._apply(gradients)
        return self._reduce(loss)

    def _whole_step_graph(self, batch):
        def replica(batch):
            gradients, loss = self._replica_gradients(batch)
            self.optimizer.apply(gradients)
            return loss

        return self._reduce(self.strategy.run(replica, (batch,)))

    def _weights_graph(self, batch):
        return self.strategy.run(self._replica_weights, (batch,))

    def _gradients_graph(self, batch, weights):
        return self.strategy.run(self._replica_gradients, (batch, weights))

    def _add_graph(self, first, second):
        return self.strategy.run(lambda a, b: tf.nest.map_structure(tf.add, a, b), (first, second))

    def _apply_graph(self, gradients):
        self.strategy.run(lambda g: self.optimizer.apply(g), (gradients,))

    def _reduce(self, loss):
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)

    def _replica_weights(self, batch):
        """Each output's normaliser over all replicas."""
        labels = _as_dict(batch[1], self._losses)
        return {key: _all_reduce(loss.weight(labels[key])) for key, loss in self._losses.items()}

    def _replica_gradients(self, batch, weights=None):
        """This replica's share of the gradients and of the loss: the shares of all replicas and passes add up to the whole.

        Without `weights`, this pass is the whole step, and the normalisers come from its own logits and labels.
        """
        images, labels = batch[0], _as_dict(batch[1], self._losses)
        with tf.GradientTape() as tape:
            logits = _as_dict(self.model(images, training=True), self._losses)
            totals = {key: loss.totals(labels[key], logits[key]) for key, loss in self._losses.items()}
            weights = weights or {key: _all_reduce(weight) for key, (_, weight) in totals.items()}
            loss = sum(self._loss_weights[key] * total / self._divisor(key, weights[key]) for key, (total, _) in totals.items())
            if self.model.losses:
                loss += tf.add_n(self.model.losses) / (self.strategy.num_replicas_in_sync * self.accumulation)
        return tape.gradient(loss, [v.value for v in self.model.trainable_variables]), loss

    def _divisor(self, key, weight):
        # A batch without a valid pixel has loss 0, not 0 / 0.
        return tf.where(weight > 0, weight, 1.0) if self._losses[key].normalized else 1.0


def _numbered(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _all_reduce(value):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _by_output(model, loss) -> dict:
    """Brings a loss or a dict of losses to the model's outputs; a single output is called `logits`."""
    outputs = list(model.output) if isinstance(model.output, dict) else ["logits"]
    losses = loss if isinstance(loss, Mapping) else dict.fromkeys(outputs, loss)
    if set(losses) != set(outputs):
        raise KerassegError(f"losses for {sorted(losses)}, but the model's outputs are {sorted(outputs)}: give one for each")
    return {key: losses[key] for key in outputs}


def _as_dict(values, keys) -> dict:
    if not isinstance(values, Mapping):
        (key,) = keys
        return {key: values}
    return values
