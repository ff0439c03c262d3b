"""Asynchronous replicas: workers compute gradients while others' are applied.

TensorFlow's own ParameterServerStrategy is not used: its workers write to the same variables unlocked, and what two of them read,
change and write at once, the momentum and the count of steps among them, is lost. Here workers only compute. What changes the
weights is one thread, the one that iterates.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data import Share
from kerasseg.errors import KerassegError
from kerasseg.training.step import as_dict, label_dict
from kerasseg.training.trainer import Feed, NonFiniteLossError, Step, Trainer


class AsynchronousTrainer(Trainer):
    """Trains a model by workers that do not wait for each other's steps.

    Each step is one worker's whole batch: `workers` times as many gradients are under way, and none is averaged. A gradient is
    computed from the weights as they are when its batch is handed out, and applied after those of the batches before it. So it
    is late by `workers` − 1 steps, by fewer just after a start or a stop, where no gradient is under way. Being always in that
    order, training repeats as exactly as the workers' own arithmetic; with one worker it is that of `Trainer`. The price is that
    a slow worker holds up those behind it.

    Step count, learning rate, momentum, clipping and decay are those of one optimizer, exact. Batch normalization uses the
    statistics of a single worker's batch; each batch moves the moving ones once. The batches after a start or stop that are
    handed out together share dropout's random state. There is no accumulation and no loss scaling.

    The workers are threads of this process, dealt to the GPUs in turn; without a GPU they share the CPU.

    Args:
        model: Image to logits, or to a dict of them; built without a strategy.
        optimizer: Any Keras optimizer. The later the gradients, the smaller the rate must be at which momentum is stable.
        loss: As of `Trainer`.
        loss_weights: As of `Trainer`.
        workers: Gradients computed at once.
        clip_norm: Largest norm of all gradients of a step together; `None` is no limit.
    Raises:
        KerassegError: If losses and outputs do not match, or `workers` is below 1.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, appendix B and Table 11. Differs: gradients are applied in the order of their batches,
        not as they come.
    Example:
        >>> trainer = AsynchronousTrainer(model, optimizer=CaffeSGD(1e-3), workers=4)
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
        workers: int = 2,
        clip_norm: float | None = None,
    ):
        if workers < 1:
            raise KerassegError(f"received workers={workers}: expected 1 or more")
        super().__init__(model, optimizer=optimizer, loss=loss, loss_weights=loss_weights, clip_norm=clip_norm)
        self.workers, self.clip_norm = workers, clip_norm
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        self._devices = [device.name for device in devices]
        # Without autograph, as the synchronous step.
        self._gradients = tf.function(self._gradients, autograph=False, reduce_retracing=True)
        self._apply = tf.function(self._apply, autograph=False)

    def train(self, feed: Feed, iterations: int, stops: Sequence[int] = ()) -> Iterator[Step]:
        """Trains until the optimizer has done so many steps, and yields each.

        `state` is always that of the step just yielded, and its batches are the first ones of the feed, each used once.

        Args:
            feed: Gives the batches; see `kerasseg.data.training_batches`. Each worker gets whole ones.
            iterations: Optimiser steps in all, those already done included.
            stops: After multiples of these no gradient is under way. A run resumed there goes on as if it had not ended; one
                resumed elsewhere, or with other stops, uses the same batches, but its first gradients are less late.
        Yields:
            One `Step` each.
        Raises:
            NonFiniteLossError: If the loss or the gradients are not finite any more.
            KerassegError: If the feed ends too early.
        """
        done = self.step
        if done >= iterations:
            return
        batches = iter(feed(done, Share()))
        # Leaving it, in whatever way, waits for the gradients under way; they are dropped.
        with ThreadPoolExecutor(self.workers, thread_name_prefix="kerasseg-worker") as executor:
            while done < iterations:
                end = min([iterations, *(done - done % stop + stop for stop in stops)])
                handed_out, under_way = done, deque()
                while done < end:
                    while handed_out < end and len(under_way) < self.workers:
                        batch = next(batches, None)
                        if batch is None:
                            raise KerassegError(f"the feed ended before step {handed_out + 1} of {iterations}: let it repeat")
                        under_way.append(self._hand_out(executor, handed_out % self.workers, batch))
                        handed_out += 1
                    done += 1
                    yield self._finish(done, feed, *under_way.popleft().result())

    def _hand_out(self, executor: ThreadPoolExecutor, worker: int, batch) -> Future:
        """Gives a worker a batch, and the weights as they are now: later changes do not reach these tensors."""
        groups = (self.model.trainable_variables, self.model.non_trainable_variables)
        weights, others = ([variable.value.read_value() for variable in group] for group in groups)
        device = self._devices[worker % len(self._devices)]
        with tf.device(device):
            # Traced here: Keras does not trace in several threads at once.
            compute = self._gradients.get_concrete_function(weights, others, *batch)
        return executor.submit(self._work, device, compute, weights, others, *batch)

    def _work(self, device: str, compute, weights, others, images, labels):
        """What a worker does: the loss as a number, its gradients, and what the pass itself moved, before and after."""
        with tf.device(device):
            loss, gradients, norm, after = compute(weights, others, images, labels)
        return float(loss), gradients, norm, {index: others[int(index)] for index in after}, after

    def _gradients(self, weights, others, images, labels):
        """Loss, gradients, their norm, and by index those of the other weights that the pass moves: nothing is written."""
        losses, factors = self._graph.losses, self._graph.loss_weights
        labels, model = label_dict(labels, self.model, losses), self.model
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        scope = keras.StatelessScope(list(zip(variables, [*weights, *others], strict=True)))
        with tf.GradientTape() as tape, scope:
            tape.watch(weights)
            logits = as_dict(model(images, training=True), losses)
            totals = {key: loss.totals(labels[key], logits[key]) for key, loss in losses.items()}
            # A batch without a valid pixel has loss 0; the weight of a summed loss is 1.
            loss = sum(factors[key] * tf.math.divide_no_nan(*total) for key, total in totals.items())
            loss += sum(model.losses)
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        values = map(scope.get_current_value, model.non_trainable_variables)
        moved = {str(index): value for index, value in enumerate(values) if value is not others[index]}
        return loss, gradients, tf.linalg.global_norm(gradients), moved

    def _finish(self, step: int, feed: Feed, loss: float, gradients, norm, before, after) -> Step:
        if not (np.isfinite(loss) and np.isfinite(float(norm))):
            rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
            raise NonFiniteLossError(step, loss, rate, self._find_non_finite(feed, step))
        return Step(step, loss, float(self._apply(gradients, norm, before, after)))

    def _apply(self, gradients, norm, before, after):
        rate = tf.cast(tf.convert_to_tensor(self.optimizer.learning_rate), tf.float32)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        self.optimizer.apply(gradients)
        for index, value in after.items():
            variable = self.model.non_trainable_variables[int(index)]
            current, old = variable.value, before[index]
            # Others may have moved it since: their part is kept. Where none has, there is nothing to round.
            variable.assign(tf.where(tf.equal(current, old), value, current + (value - old)))
        return rate
