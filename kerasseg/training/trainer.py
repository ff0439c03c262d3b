"""The training loop: one for every strategy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data import Share, unwrap_error
from kerasseg.errors import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.training.diagnosis import find_non_finite
from kerasseg.training.step import StepGraph, keep_reduced
from kerasseg.training.strategies import is_chief

# Called as feed(start, share): batches from number `start` on, of each the parts that `share` says.
Feed = Callable[[int, Share], tf.data.Dataset]


class Step(NamedTuple):
    """One optimiser step: its number, counted from 1; the loss it descended; the learning rate it used."""

    step: int
    loss: float
    learning_rate: float


class NonFiniteLossError(KerassegError):
    """A step's loss or gradients were infinite or not a number. The weights are those before the step.

    Args:
        step: Number of the step, counted from 1.
        loss: Its loss.
        learning_rate: The learning rate it would have used.
        found: Where the first value that is not finite stands, if it was found.
    """

    def __init__(self, step: int, loss: float, learning_rate: float, found: str | None):
        self.step, self.loss, self.learning_rate = step, loss, learning_rate
        what = f"the loss became {loss}" if not np.isfinite(loss) else f"the gradients were not finite, of loss {loss:.4g},"
        where = f"; first in {found}" if found else ""
        super().__init__(f"{what} at step {step}, learning rate {learning_rate:g}{where}: lower --learning-rate")


class Trainer:
    """Trains a model on batches, on one device or on many, by its own loop.

    The loss is divided by the number of valid pixels in *all* replicas and forward passes of a step, so that neither changes
    the result (but that batch normalization takes each pass for itself); gradients are added up over replicas before they are
    clipped. What happens between steps (logging, checkpoints, validation) is up to the caller: `train` is an iterator.

    Args:
        model: Image to logits, or to a dict of them; built under the strategy's scope.
        optimizer: Any Keras optimizer; made under the strategy's scope.
        loss: A loss of `kerasseg.losses`, or a dict of them by output.
        loss_weights: Output → factor; 1 by default.
        strategy: Where the replicas are; one device by default.
        accumulation: Forward passes per optimiser step. Above 1, with several outputs, regularisers or `loss_scaling`, the
            images of a step are in memory together, and logits that are smaller than the label need images of one size.
        steps_per_call: Optimiser steps per call of the compiled function.
        clip_norm: Largest norm of all gradients together; `None` is no limit.
        loss_scaling: Whether gradients are computed times a factor that keeps them in float16's range. A step whose gradients
            leave it all the same counts, but trains no weight, and halves the factor.
        jit_compile: Whether XLA compiles the step, on one device; images then need one size. A TPU compiles anyway.
    Raises:
        KerassegError: If losses and outputs do not match, a number is out of range, or the model or the optimizer was not made
            under the strategy's scope.
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
        steps_per_call: int = 1,
        clip_norm: float | None = None,
        loss_scaling: bool = False,
        jit_compile: bool = False,
    ):
        for name, value in {"accumulation": accumulation, "steps_per_call": steps_per_call}.items():
            if value < 1:
                raise KerassegError(f"received {name}={value}: expected 1 or more")
        if clip_norm is not None and not clip_norm > 0:
            raise KerassegError(f"received clip_norm={clip_norm}: expected above 0, or None for no limit")
        self.model, self.optimizer = model, optimizer
        self.strategy = strategy or tf.distribute.get_strategy()
        self.accumulation, self.steps_per_call = accumulation, steps_per_call
        _check_strategy(self.strategy, model, optimizer, jit_compile)
        losses = _by_output(model, loss or SegmentationCrossEntropy())
        factors = _factors(losses, loss_weights or {})
        with self.strategy.scope():
            optimizer.build(model.trainable_variables)
        keep_reduced(optimizer)
        self._graph = StepGraph(
            model,
            optimizer,
            losses,
            factors,
            self.strategy,
            accumulation=accumulation,
            clip_norm=clip_norm,
            loss_scaling=loss_scaling,
            jit_compile=jit_compile,
        )
        compiled = partial(tf.function, autograph=False, reduce_retracing=True)
        self._one, self._several = compiled(self._graph.one), compiled(self._graph.several)

    @property
    def step(self) -> int:
        """Optimiser steps done so far."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes: always, but for the other workers of a cluster."""
        return is_chief(self.strategy)

    def train(self, feed: Feed, iterations: int, stops: Sequence[int] = ()) -> Iterator[Step]:
        """Trains until the optimizer has done so many steps, and yields each.

        Args:
            feed: Gives the batches; see `kerasseg.data.training_batches`.
            iterations: Optimiser steps in all, those already done included.
            stops: At multiples of these, and at the end, the call ends: `state` is then that of the step just yielded. In
                between, with `steps_per_call` above 1, the weights may be some steps ahead of it.
        Yields:
            One `Step` each.
        Raises:
            NonFiniteLossError: If the loss or the gradients are not finite any more.
            KerassegError: If the feed ends too early.
        """
        done = self.step
        if min(stops, default=1) < 1:
            raise KerassegError(f"received stops={tuple(stops)}: expected numbers of 1 or more")
        if done >= iterations:
            return
        self._graph.reset()
        batches = self._batches(feed, done * self.accumulation)
        while done < iterations:
            count = min([self.steps_per_call, iterations - done, *(stop - done % stop for stop in stops)])
            try:
                results = self._call(batches, count)
            except tf.errors.OpError as error:
                if isinstance(error, tf.errors.OutOfRangeError) or "infinite number of elements" in str(error):
                    raise KerassegError(f"the feed ended before step {self.step + 1} of {iterations}: let it repeat") from None
                if "Collective ops is aborted" in str(error):
                    raise KerassegError(
                        f"another worker was lost before step {done + count}: start all workers again; they go on from the last "
                        "checkpoint"
                    ) from error
                raise
            for loss, rate, well in results:
                done += 1
                if not well:
                    raise NonFiniteLossError(done, loss, rate, self._find_non_finite(feed, done))
                yield Step(done, loss, rate)

    def _call(self, batches, count: int) -> list[tuple[float, float, bool]]:
        """Does some steps; gives loss and rate of each, and whether it went well."""
        if self.steps_per_call == 1:
            loss, rate, well = self._one(batches)
            return [(float(loss), float(rate), bool(well))]
        done, losses, rates, well = self._several(batches, tf.constant(count))
        results = [(loss, rate, True) for loss, rate in zip(losses.numpy().tolist(), rates.numpy().tolist(), strict=True)]
        *before, (loss, rate, _) = results[: int(done)]
        return [*before, (loss, rate, bool(well))]

    def state(self) -> dict[str, np.ndarray]:
        """Gives everything that decides the next steps: weights, dropout's random state, the optimizer's variables."""
        return {name: keras.ops.convert_to_numpy(variable) for name, variable in self._state_variables()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Sets what `state` gave.

        Raises:
            KerassegError: If the state is of another network or optimizer; nothing is changed then.
        """
        # By number: the names that Keras makes up depend on what the process built before.
        given, state = list(state), {_numbered(name): value for name, value in state.items()}
        variables = {_numbered(name): (name, variable) for name, variable in self._state_variables()}
        others = [name for name in given if _numbered(name) not in variables or not _alike(name, variables[_numbered(name)][0])]
        if others:
            raise KerassegError(f"the checkpoint has {others[0]}, which is not here: it is of another network or optimizer")
        for number, (name, variable) in variables.items():
            if number not in state or tuple(variable.shape) != state[number].shape:
                found, path = f"shape {state[number].shape}" if number in state else "nothing", name.split("/", 2)[2]
                raise KerassegError(
                    f"the checkpoint has {found} for {path}, expected {tuple(variable.shape)}: it is of another network or "
                    "optimizer"
                )
        for number, (_, variable) in variables.items():
            variable.assign(state[number])

    def _state_variables(self):
        groups = {"model": self.model.variables, "optimizer": self.optimizer.variables, "trainer": self._graph.variables}
        for group, variables in groups.items():
            for index, variable in enumerate(variables):
                yield f"{group}/{index:04d}/{getattr(variable, 'path', variable.name)}", variable

    def _batches(self, feed: Feed, start: int):
        if self.strategy.num_replicas_in_sync == 1:
            return iter(self._graph.prepared(feed(start, Share()), 1))

        def pipeline(context):
            # One for each host: its replicas are dealt the elements in turn.
            count = context.num_replicas_in_sync // context.num_input_pipelines
            share = Share(context.num_replicas_in_sync, context.input_pipeline_id * count, count)
            # Said to be without end, because the strategies read what may end by another way, which fails in a loop.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return self._graph.prepared(feed(start, share), count).apply(endless)

        return iter(self.strategy.distribute_datasets_from_function(pipeline))

    def _find_non_finite(self, feed: Feed, step: int) -> str | None:
        """Looks where the loss of a step went wrong: its batches can be had again."""
        first = (step - 1) * self.accumulation
        try:
            for images, _ in feed(first, Share()).take(self.accumulation):
                found = find_non_finite(self.model, images)
                if found:
                    return found
        except tf.errors.OpError as error:
            # The data were readable a moment ago; a mistake in them now must not hide the loss.
            return str(unwrap_error(error) or "an input that cannot be read again")
        return None


def _numbered(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _alike(name: str, expected: str) -> bool:
    """Whether what an optimizer keeps is of the same optimizer; the names of layers depend on what was built before."""
    names = name.split("/"), expected.split("/")
    return names[0][0] != "optimizer" or names[0][2] == names[1][2]


def _check_strategy(strategy, model, optimizer, jit_compile: bool) -> None:
    replicas = strategy.num_replicas_in_sync
    if jit_compile and replicas > 1:
        raise KerassegError(f"jit_compile is for one device, received {replicas} replicas: omit it (a TPU compiles anyway)")
    variables = [*model.variables, optimizer.iterations]
    if replicas > 1 and not all(strategy.extended.variable_created_in_scope(variable.value) for variable in variables):
        raise KerassegError("model and optimizer were not made under the strategy: build both inside `with strategy.scope():`")


def _by_output(model, loss) -> dict:
    """Brings a loss or a dict of losses to the model's outputs; a single output is called `logits`."""
    if isinstance(model.output, (list, tuple)):
        raise KerassegError(f"the model has a list of {len(model.output)} outputs: give it a dict of them, by name")
    outputs = list(model.output) if isinstance(model.output, dict) else ["logits"]
    losses = loss if isinstance(loss, Mapping) else dict.fromkeys(outputs, loss)
    if set(losses) != set(outputs):
        raise KerassegError(f"losses for {sorted(losses)}, but the model's outputs are {sorted(outputs)}: give one for each")
    for key, each in losses.items():
        if not hasattr(each, "totals"):
            raise KerassegError(
                f"received the loss {each!r} for '{key}': expected one of kerasseg.losses, SegmentationCrossEntropy()"
            )
    return {key: losses[key] for key in outputs}


def _factors(losses, loss_weights) -> dict[str, float]:
    for key in loss_weights:
        if key not in losses:
            raise KerassegError(f"loss_weights for '{key}', but the model's outputs are {sorted(losses)}: name one of them")
    return {key: float(loss_weights.get(key, 1.0)) for key in losses}
