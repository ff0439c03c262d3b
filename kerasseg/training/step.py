"""One optimiser step as a graph, the same under every strategy.

What a replica computes is in the methods named `_replica_…`; everything else runs once, above the replicas. Reductions stand at
the top of a replica's function, never in a loop or branch of its own: there TensorFlow cannot join the replicas.
"""

from functools import partial

import tensorflow as tf

from kerasseg.errors import KerassegError

# Dynamic loss scaling, as Micikevicius et al. 2018, §3.2, and the defaults of Keras.
_FIRST_SCALE, _GROWTH_STEPS = 2.0**15, 2000


class StepGraph:
    """The step of a `Trainer`.

    Args:
        model: The network.
        optimizer: Built on the network's trainable variables.
        losses: Output → loss.
        loss_weights: Output → factor.
        strategy: Where the replicas are.
        accumulation: Forward passes per step.
        clip_norm: Largest norm of all gradients together, or `None`.
        loss_scaling: Whether gradients are computed times a factor that keeps them in float16's range.
        jit_compile: Whether XLA compiles what a replica computes.
    """

    def __init__(self, model, optimizer, losses, loss_weights, strategy, *, accumulation, clip_norm, loss_scaling, jit_compile):
        self.model, self.optimizer, self.losses, self.loss_weights = model, optimizer, losses, loss_weights
        self.strategy, self.accumulation, self.clip_norm = strategy, accumulation, clip_norm
        self._sums, self._scale, self._finite_steps = [], None, None
        # One normaliser divides the sum over the passes in the end. Several, or a regulariser that is not to be divided, must be
        # known before the first pass; so must float16's, whose range a sum over pixels would leave.
        self._looks_ahead = accumulation > 1 and (len(losses) > 1 or bool(model.losses) or loss_scaling)
        self._unsized = ()
        with strategy.scope():
            if accumulation > 1:
                # Loss, weight and gradients, each replica's own; not part of the state, because they are zero between steps.
                own = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.SUM}
                shapes = [(), (), *(variable.shape for variable in model.trainable_variables)]
                self._sums = [tf.Variable(tf.zeros(shape), trainable=False, **own) for shape in shapes]
            if loss_scaling:
                self._scale = tf.Variable(_FIRST_SCALE, trainable=False, name="loss_scale")
                self._finite_steps = tf.Variable(0, trainable=False, name="finite_steps")
        # Without autograph, which would bury the one line of an error in a traceback of another type.
        compiled = partial(tf.function, autograph=False, jit_compile=True) if jit_compile else lambda function: function
        self._replica_step, self._replica_pass = compiled(self._replica_step), compiled(self._replica_pass)
        self._replica_apply = compiled(self._replica_apply)

    @property
    def variables(self) -> list[tf.Variable]:
        """What, beside the model's and the optimizer's variables, decides the next steps."""
        return [] if self._scale is None else [self._scale, self._finite_steps]

    def reset(self) -> None:
        """Forgets the passes of a step that was broken off."""
        with self.strategy.scope():
            for total in self._sums:
                total.assign(tf.zeros_like(total))

    def several(self, iterator, count):
        """Does up to `count` steps, and stops at one that went wrong.

        Args:
            iterator: Iterator of the batches.
            count: Scalar integer tensor.
        Returns:
            Number of steps, that one included; losses and rates, each of shape `(count,)`; whether the last step went well.
        """
        arrays = [tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(2)]

        def body(done, losses, rates, _):
            loss, rate, well = self.one(iterator)
            return done + 1, losses.write(done, loss), rates.write(done, rate), well

        def go_on(done, losses, rates, well):
            return tf.logical_and(done < count, well)

        done, losses, rates, well = tf.while_loop(go_on, body, (0, *arrays, True), parallel_iterations=1)
        return done, losses.stack(), rates.stack(), well

    def one(self, iterator):
        """Does one step; nothing changes where its loss or its gradients are not finite.

        Args:
            iterator: Iterator of the batches.
        Returns:
            The loss of the whole step and the learning rate it was applied with, float32 scalars; and whether it went well. One
            that was passed over because its gradients left float16's range did.
        """
        rate = tf.cast(tf.convert_to_tensor(self.optimizer.learning_rate), tf.float32)
        # What the passes themselves move: moving statistics, dropout's random state.
        moved = [tf.identity(variable.value) for variable in self.model.non_trainable_variables]
        if self.accumulation == 1:
            gradients, loss, finite = self.strategy.run(self._replica_step, (iterator.get_next(),))
        else:

            def body(number):
                self.strategy.run(self._replica_pass, (iterator.get_next(),))
                return (number + 1,)

            passes = tf.while_loop(lambda number: number < self.accumulation, body, (0,), parallel_iterations=1)
            with tf.control_dependencies(passes):
                gradients, loss, finite = self.strategy.run(self._replica_collect)
        loss, finite = (self.strategy.experimental_local_results(value)[0] for value in (loss, finite))
        if self._scale is None:
            tf.cond(finite, lambda: self._apply(gradients), lambda: self._undo(moved))
            return loss, rate, finite
        well = tf.math.is_finite(loss)
        tf.cond(finite, lambda: self._apply(gradients), lambda: tf.cond(well, self._skip, lambda: self._undo(moved)))
        return loss, rate, well

    def _apply(self, gradients):
        self.strategy.run(self._replica_apply, (gradients,))
        if self._scale is not None:
            grown = tf.equal(self._finite_steps % _GROWTH_STEPS, _GROWTH_STEPS - 1)
            self._scale.assign(tf.where(grown, 2 * self._scale, self._scale))
            self._finite_steps.assign_add(1)
        return tf.constant(0)

    def _undo(self, moved):
        """Leaves the network as it was before a step that went wrong."""
        for variable, before in zip(self.model.non_trainable_variables, moved, strict=True):
            variable.assign(before)
        return tf.constant(0)

    def _skip(self):
        """Passes over a step whose gradients left float16's range: it counts for data and rate, but trains no weight."""
        self._scale.assign(tf.maximum(self._scale / 2, 1.0))
        self._finite_steps.assign(0)
        self.optimizer.iterations.value.assign_add(1)
        return tf.constant(0)

    def _replica_step(self, batch):
        images, labels = batch
        gradients, loss, _ = self._gradients(images, labels)
        return self._reduced(gradients, loss)

    def _replica_pass(self, batch):
        if self._looks_ahead:
            images, labels, weights = batch
            gradients, loss, _ = self._gradients(images, labels, _all_reduce(weights))
            weight = tf.zeros(())
        else:
            images, labels = batch
            gradients, loss, weight = self._gradients(images, labels, dict.fromkeys(self.losses, tf.ones(())))
        for total, value in zip(self._sums, [loss, weight, *gradients], strict=True):
            total.assign_add(value)

    def _replica_collect(self):
        sums = [total.read_value() for total in self._sums]
        with tf.control_dependencies(sums):
            for total in self._sums:
                total.assign(tf.zeros_like(total))
        loss, weight, *gradients = sums
        if self._looks_ahead:
            return self._reduced(gradients, loss)
        divisor = self._divisor(next(iter(self.losses)), _all_reduce(weight))
        return self._reduced([gradient / divisor for gradient in gradients], loss / divisor)

    def _gradients(self, images, labels, weights=None):
        """This replica's share of the gradients and of the loss: the shares of all replicas and passes add up to the whole.

        Without `weights`, this pass is the whole step, and the normalisers come from its own logits and labels. The third of
        what it gives is the weight of its own labels.
        """
        labels = label_dict(labels, self.model, self.losses)
        with tf.GradientTape() as tape:
            logits = as_dict(self.model(images, training=True), self.losses)
            self._check_sizes(labels, logits)
            totals = {key: loss.totals(labels[key], logits[key]) for key, loss in self.losses.items()}
            weights = weights or _all_reduce({key: weight for key, (_, weight) in totals.items()})
            loss = sum(self.loss_weights[key] * total / self._divisor(key, weights[key]) for key, (total, _) in totals.items())
            if self.model.losses:
                loss += tf.add_n(self.model.losses) / (self.strategy.num_replicas_in_sync * self.accumulation)
            scaled = loss if self._scale is None else loss * self._scale
        # A weight that the loss does not depend on has gradient zero, as in Caffe, and still decays.
        variables = [variable.value for variable in self.model.trainable_variables]
        gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, loss, tf.add_n([weight for _, weight in totals.values()])

    def _reduced(self, gradients, loss):
        """Adds up the shares of all replicas; clips what they give together, not each one's own."""
        loss, *gradients = _all_reduce([loss, *gradients])
        if self._scale is not None:
            gradients = [gradient / self._scale for gradient in gradients]
        # Also where the loss is finite, the gradients may not be: a ReLU can hide NaN from the loss.
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        return gradients, loss, tf.math.is_finite(loss) & tf.math.is_finite(norm)

    def _replica_apply(self, gradients):
        self.optimizer.apply(gradients)

    def _divisor(self, key, weight):
        # A batch without a valid pixel has loss 0, not 0 / 0.
        return tf.where(weight > 0, weight, 1.0) if self.losses[key].normalized else 1.0

    def prepared(self, data: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
        """Gives each batch the normalisers of the step that it is a part of, where they must be known before its first pass.

        The images of a step then lie in memory together; what the passes compute from them does not.

        Args:
            data: Images and labels, one element for each replica and pass.
            replicas: Replicas that the data set is dealt to.
        Returns:
            Images and labels, and where needed, by output, the weight of the step's labels in this pipeline over `replicas`.
        """
        if not self._looks_ahead:
            return data
        sizes = self._logit_sizes(data.element_spec[0])
        self._unsized = tuple(key for key, size in sizes.items() if size is None)

        def weigh(images, labels):
            named = label_dict(labels, self.model, self.losses)
            return images, labels, {key: loss.weight(named[key], sizes[key]) for key, loss in self.losses.items()}

        def share(images, labels, weights):
            totals = {key: weight.reduce(0.0, tf.add) / replicas for key, weight in weights.items()}
            return tf.data.Dataset.zip(images, labels, tf.data.Dataset.from_tensors(totals).repeat())

        grouped = data.map(weigh).window(self.accumulation * replicas, drop_remainder=True).flat_map(share)
        return grouped.prefetch(tf.data.AUTOTUNE)

    def _logit_sizes(self, images) -> dict:
        """Height and width of each output where the images' are known; else `None`, and the label's own size is demanded."""
        shapes = tf.nest.map_structure(lambda spec: tuple(spec.shape), images)
        if any(None in tuple(spec.shape)[1:3] for spec in tf.nest.flatten(images)):
            return dict.fromkeys(self.losses)
        outputs = self.model.compute_output_shape(shapes)
        return {key: tuple(size)[1:3] for key, size in as_dict(outputs, self.losses).items()}

    def _check_sizes(self, labels, logits):
        for key in self._unsized:
            sizes = [tf.shape(x)[1:3] for x in (labels[key], logits[key])]
            tf.debugging.assert_equal(
                *sizes, "accumulation over logits smaller than the label needs images of one size: pass crop_size"
            )


def as_dict(values, keys) -> dict:
    """Names a single value as the single output."""
    return values if isinstance(values, dict) else dict.fromkeys(keys, values)


def label_dict(labels, model, keys) -> dict:
    """Gives each output its label: a single label map is that of all outputs.

    Raises:
        KerassegError: If it cannot be, because the outputs have different classes.
    """
    if not isinstance(labels, dict) and len(keys) > 1:
        classes = {key: model.output[key].shape[-1] for key in keys}
        if len(set(classes.values())) > 1:
            listed = ", ".join(f"{key} ({count})" for key, count in classes.items())
            raise KerassegError(f"received one label map for outputs of different classes, {listed}: give a dict with one for each")
    return as_dict(labels, keys)


def _all_reduce(value):
    # A tensor straight from the input pipeline has no device, which a reduction over workers needs.
    value = tf.nest.map_structure(tf.identity, value)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def keep_reduced(optimizer) -> None:
    """Tells a Keras optimizer that the gradients it gets are summed over the replicas already; it would add them up again.

    Raises:
        KerassegError: If this release of Keras has another way of reducing.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise KerassegError(
            f"{type(optimizer).__name__} of this Keras reduces gradients in an unknown way: install keras >=3.15,<3.16"
        )
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
