"""Mean-field inference in a fully connected CRF: the recurrence with its gradient.

The gradient stores the marginals of each step and nothing else; what was filtered is filtered again on the way back.
"""

import tensorflow as tf

from kerasseg.crf.filters import weighted_sum
from kerasseg.crf.lattice import compiled_by_xla


def mean_field(logits, filters, weights, compatibility=None, iterations: int = 10) -> tf.Tensor:
    """Runs the mean-field recurrence `logits ← U − P(softmax(logits))` from `logits = U`.

    `P = M · compatibilityᵀ`, where `M` sums the filtered marginals `K Q`, each weighted. Gradients reach the logits, the weights
    and the compatibility; not the filters.

    Args:
        logits: Shape `(N, C)`, float32: the unary scores `U`, which are negative energies.
        filters: Of each kernel `K` an object with `apply` and `transposed`, such as `filter_of` makes.
        weights: Of each kernel its weight: scalar, per class `(C,)`, or `(C, C)`, with which `K Q` is multiplied transposed.
        compatibility: Shape `(C, C)`: what it costs a pixel of class i that its neighbours are of class j. `None` is Potts'
            model, equal to −1 on the diagonal.
        iterations: Number of steps.
    Returns:
        Shape `(N, C)`, float32: the logits after the last step, not normalized; their softmax is the marginals.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, Algorithm 1; Zheng et al. 2015, arXiv:1502.03240, Algorithm 1 and §4.
    """
    kinds = len(filters)
    weights = [tf.convert_to_tensor(weight) for weight in weights]
    parameters = weights if compatibility is None else [*weights, tf.convert_to_tensor(compatibility)]

    # Where weights are numbers, what is filtered need not be known kernel by kernel.
    at_once = compatibility is None and all(weight.shape.rank == 0 for weight in weights)

    def combined(filtered, parameters):
        return tf.add_n([_weighted(each, weight) for each, weight in zip(filtered, parameters[:kinds], strict=True)])

    def message(filtered, parameters):
        total = combined(filtered, parameters)
        return total if compatibility is None else -tf.matmul(total, parameters[kinds], transpose_b=True)

    def backwards(filtered, parameters, upstream):
        """Gradients of what is sent, with regard to what was filtered and to the parameters."""
        to_parameters = []
        if compatibility is not None:
            to_parameters = [-tf.matmul(upstream, combined(filtered, parameters), transpose_a=True)]
            upstream = -tf.matmul(upstream, parameters[kinds])
        to_weights = [_to_weight(each, weight, upstream) for each, weight in zip(filtered, parameters[:kinds], strict=True)]
        to_filtered = [_weighted(upstream, weight, transposed=True) for weight in parameters[:kinds]]
        return to_filtered, [*to_weights, *to_parameters]

    @tf.custom_gradient
    def run(unary, *parameters):
        def send(marginals):
            return message([each.apply(marginals) for each in filters], parameters)

        if at_once:
            send = weighted_sum(filters, parameters)

        def step(_, scores):
            marginals = tf.nn.softmax(scores)
            return marginals, [unary + send(marginals)]

        stored, (scores,) = _repeat(iterations, step, [unary])

        def gradient(upstream):
            backward = [each.transposed() for each in filters]
            # Anew: the matrices of the way there cannot be handed over to a gradient that is saved, or taken of a loop.
            forward = [each.transposed() for each in backward]

            def step(index, upstream, *totals):
                marginals = stored[iterations - 1 - index]
                to_filtered, to_parameters = backwards([each.apply(marginals) for each in forward], parameters, upstream)
                totals = [total + each for total, each in zip(totals, (upstream, *to_parameters), strict=True)]
                arriving = tf.add_n([each.apply(part) for each, part in zip(backward, to_filtered, strict=True)])
                # Through the softmax.
                inner = tf.reduce_sum(arriving * marginals, 1, keepdims=True)
                return None, [marginals * (arriving - inner), *totals]

            zeros = [tf.zeros_like(each) for each in (unary, *parameters)]
            _, (upstream, *totals) = _repeat(iterations, step, [upstream, *zeros])
            return totals[0] + upstream, *totals[1:]

        return scores, gradient

    return run(logits, *parameters)


def _weighted(filtered, weight, transposed: bool = False):
    return tf.matmul(filtered, weight, transpose_b=not transposed) if weight.shape.rank == 2 else filtered * weight


def _to_weight(filtered, weight, upstream):
    if weight.shape.rank == 2:
        return tf.matmul(upstream, filtered, transpose_a=True)
    return tf.reduce_sum(upstream * filtered, axis=0 if weight.shape.rank else None)


def _repeat(count, step, state):
    """Applies `step(index, *state)`, which returns something to keep, or `None`, and the next state.

    XLA compiles a loop, and runs it, several times as fast as the steps one by one.

    Returns:
        What was kept, step by step, and the last state.
    """
    if not compiled_by_xla():
        kept = []
        for index in range(count):
            keep, state = step(index, *state)
            kept.append(keep)
        return kept, state

    def body(index, kept, *state):
        keep, state = step(index, *state)
        return index + 1, kept if keep is None else kept.write(index, keep), *state

    kept = tf.TensorArray(tf.float32, count, element_shape=state[0].shape)
    _, kept, *state = tf.while_loop(lambda index, *_: index < count, body, (0, kept, *state))
    return kept.stack(), state
