"""The dense CRF on NumPy arrays: marginals of an image, or of several of different sizes."""

import functools

import numpy as np
import tensorflow as tf

from kerasseg.crf import exact
from kerasseg.crf.filters import weighted_sum
from kerasseg.crf.kernels import METHODS, bilateral_filter, spatial_filter
from kerasseg.crf.lattice import MOST_FEATURES, TOO_MANY_CELLS, TOO_MANY_PAGES
from kerasseg.crf.parameters import Parameters, checked_iterations, parameters_of
from kerasseg.crf.unary import logits_of, unary_from_labels
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

_LARGEST_FEATURE = 1e5
_TINY = 1e-20


def dense_crf(
    image,
    logits=None,
    parameters="deeplab_v1",
    *,
    labels_unary=None,
    num_classes: int | None = None,
    gt_prob: float = 0.7,
    unknown: int | None = None,
    from_logits: bool | None = None,
    compatibility="potts",
    features=None,
    theta_features=1.0,
    method: str = "lattice",
    iterations: int | None = None,
    return_divergence: bool = False,
):
    """Refines the scores of an image by a fully connected CRF: pixels that are near and alike come to share their class.

    The energy of a labelling is the sum of U = −logits and of a cost for each pair of pixels, weighed by a kernel over positions
    and colours and one over positions alone; the mean field minimises it approximately. Lists in all places give lists.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255, integer or float; or a list of such, of any sizes. `None` with `features`: these
            alone stand beside the positions.
        logits: Shape `(H, W, C)`, or a list: logits, or probabilities, whose logarithm (of at least 1e-5) is taken. Of logits
            any constant may be added at a pixel.
        parameters: Name in `PARAMETERS`, `Parameters`, or a mapping of their fields.
        labels_unary: Instead of logits: integers `(H, W)`, or a list, as `unary_from_labels` takes them with `num_classes`,
            `gt_prob` and `unknown`.
        num_classes: C, with `labels_unary`.
        gt_prob: Probability that a label is right, with `labels_unary`.
        unknown: Label of the pixels that can be anything, with `labels_unary`; if it is 0, the classes are labelled from 1.
        from_logits: Says that `logits` are logits (True) or probabilities (False); `None`: probabilities if none is negative and
            they sum to 1 at every pixel.
        compatibility: "potts", or the cost `(C, C)` of a class (row) beside another (column); Potts is minus the identity.
        features: Shape `(H, W, K)`, or a list: further numbers of each pixel (depth, HHA, infrared) for the bilateral kernel,
            which takes up to 6 in all: two positions, three colours and one more, or four in their place.
        theta_features: Standard deviation of the further features, one number or K.
        method: "lattice": the permutohedral lattice, any size; "exact": dense matrices, up to 20,000 pixels.
        iterations: Mean field steps; `None`: the parameters'.
        return_divergence: Whether to return the Kullback–Leibler values, too.
    Returns:
        Marginals `(H, W, C)`, float32, which sum to 1 over the classes; a list of them for a list. With `return_divergence`
        a pair (of each image): the marginals, and `(iterations + 1,)` float64, the divergence of the mean field from the CRF, up to
        its partition function, before each step and after the last. It counts every pair twice, as pydensecrf's `klDivergence`.
    Raises:
        KerassegError: If shapes do not fit, values are NaN, infinite or no colours 0–255, labels no classes, or parameters
            impossible.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, Algorithm 1; 2013, for the normalisation "symmetric".
    Example:
        >>> labels = kerasseg.crf.dense_crf(photo, logits, "deeplab_v2_resnet101").argmax(-1)
    """
    chosen = parameters_of(parameters)
    iterations = chosen.iterations if iterations is None else checked_iterations(iterations)
    if method not in METHODS:
        raise KerassegError(f"CRF method {method!r}: expected one of {', '.join(METHODS)}; {did_you_mean(str(method), METHODS)}")
    if (logits is None) == (labels_unary is None):
        both = "neither" if logits is None else "both"
        raise KerassegError(f"dense_crf received {both} of logits and labels_unary: expected one, such as dense_crf(image, logits)")

    def run(image, logits, labels, features):
        made = logits_of(logits, from_logits) if labels is None else -unary_from_labels(labels, num_classes, gt_prob, unknown)
        channels = _channels(chosen, _colours(image, made), _further(features, theta_features, made))
        costs = _costs(compatibility, made.shape[-1])
        # The columns of the transposed image are the rows.
        made, channels = (each.swapaxes(0, 1) if chosen.rows_first else each for each in (made, channels))
        marginals, divergences = _mean_field(made, channels, chosen, costs, method, iterations, return_divergence)
        marginals = np.ascontiguousarray(marginals.swapaxes(0, 1)) if chosen.rows_first else marginals
        return (marginals, divergences) if return_divergence else marginals

    return _over_lists(run, image=image, logits=logits, labels_unary=labels_unary, features=features)


def _over_lists(run, **given):
    """Calls `run` on each image of lists of equal length, or once where there are none."""
    present = {name: value for name, value in given.items() if value is not None}
    lists = {name: value for name, value in present.items() if isinstance(value, (list, tuple))}
    if not lists:
        return run(*given.values())
    lengths = {name: len(value) for name, value in lists.items()}
    if len(lists) < len(present) or len(set(lengths.values())) > 1:
        received = ", ".join(f"{name}: {lengths.get(name, 'no list')}" for name in present)
        raise KerassegError(
            f"dense_crf received lists that do not fit ({received}): expected lists of one length everywhere, or none"
        )
    count = next(iter(lengths.values()))
    return [run(*(None if value is None else value[index] for value in given.values())) for index in range(count)]


def _colours(image, logits):
    """The image as (H, W, 3) float32, checked; None stays None."""
    if image is None:
        return None
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or not (np.issubdtype(image.dtype, np.number) or image.dtype == bool):
        hint = "; pass several as a list" if image.ndim == 4 else ", such as np.stack([grey] * 3, -1)" if image.ndim == 2 else ""
        raise KerassegError(f"image of shape {image.shape} and type {image.dtype}: expected (H, W, 3), RGB 0-255{hint}")
    _check_size("image", image, logits)
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 255:
        raise KerassegError(f"image with values from {image.min()} to {image.max()}: expected RGB 0-255")
    colours = image.astype(np.float32)
    if np.issubdtype(image.dtype, np.floating) and image.max() <= 1 and (colours != np.round(colours)).any():
        raise KerassegError(f"image with values from {image.min():g} to {image.max():g}: expected RGB 0-255, such as image * 255")
    return colours


def _further(features, theta, logits):
    """The further features as (H, W, K) float32, divided by their θ; None stays None."""
    if features is None:
        return None
    features = np.asarray(features)
    if features.ndim != 3 or features.shape[-1] == 0 or not np.issubdtype(features.dtype, np.number):
        raise KerassegError(f"features of shape {features.shape}: expected (H, W, K), such as depth[..., None]")
    _check_size("features", features, logits)
    if not np.isfinite(features).all():
        raise KerassegError("features hold NaN or infinite values: expected finite numbers, such as np.nan_to_num(features)")
    thetas = np.atleast_1d(np.asarray(theta))
    valid = thetas.ndim == 1 and np.issubdtype(thetas.dtype, np.number) and np.isfinite(thetas).all() and (thetas > 0).all()
    if not valid or thetas.size not in (1, features.shape[-1]):
        count = features.shape[-1]
        raise KerassegError(f"theta_features {theta!r}: expected a positive number, or {count} of them, one for each feature")
    scaled = features / thetas
    if np.abs(scaled).max() > _LARGEST_FEATURE:
        raise KerassegError(
            f"features reach {np.abs(scaled).max():.2g} times theta_features: expected at most {_LARGEST_FEATURE:g} times, so that "
            "float32 tells neighbours apart; subtract an offset, such as features - features.mean((0, 1))"
        )
    return scaled.astype(np.float32)


def _check_size(what: str, array, logits) -> None:
    if array.shape[:2] != logits.shape[:2]:
        (height, width), (rows, columns) = array.shape[:2], logits.shape[:2]
        raise KerassegError(f"{what} of {height}x{width} with logits or labels of {rows}x{columns}: expected the same size")


def _costs(compatibility, classes: int):
    """The compatibility as a (C, C) tensor; None for Potts."""
    if isinstance(compatibility, str):
        if compatibility != "potts":
            raise KerassegError(f"compatibility {compatibility!r}: expected 'potts', or an array of {classes}x{classes} costs")
        return None
    costs = np.asarray(compatibility)
    if costs.shape != (classes, classes) or not np.issubdtype(costs.dtype, np.number) or not np.isfinite(costs).all():
        raise KerassegError(
            f"compatibility of shape {costs.shape}: expected 'potts', or {classes}x{classes} finite costs, a row and column a class"
        )
    return tf.constant(costs, tf.float32)


def _channels(parameters: Parameters, colours, further) -> np.ndarray:
    """What stands beside the positions in the bilateral kernel, each in units of its standard deviation: (H, W, K)."""
    if colours is None and further is None:
        raise KerassegError("dense_crf received neither image nor features: expected one, such as dense_crf(image, logits)")
    given = [
        each for each in (None if colours is None else colours / np.float32(parameters.theta_beta), further) if each is not None
    ]
    count = sum(each.shape[-1] for each in given)
    if 2 + count > MOST_FEATURES:
        kinds = f"2 positions, {0 if colours is None else 3} colours and {0 if further is None else further.shape[-1]} more"
        raise KerassegError(
            f"{kinds} are {2 + count} features: expected at most {MOST_FEATURES}; image=None leaves the colours out"
        )
    return np.concatenate(given, axis=-1)


def _mean_field(logits, channels, parameters, costs, method, iterations: int, return_divergence: bool):
    """Marginals (H, W, C), and the divergences if they are asked for."""
    weights = {"bilateral": parameters.bilateral_weight, "spatial": parameters.spatial_weight}
    kernels = tuple(name for name, weight in weights.items() if weight)
    if method == "exact" and kernels and logits.shape[0] * logits.shape[1] > exact.MAXIMUM_PIXELS:
        raise KerassegError(exact.too_large(logits.shape[0] * logits.shape[1]))
    program = _program(channels.shape[-1], kernels, parameters.normalization, method, costs is not None, return_divergence)
    thetas = {"bilateral": parameters.theta_alpha, "spatial": parameters.theta_gamma}
    try:
        marginals, divergences = program(
            tf.constant(logits),
            tf.constant(channels),
            tf.constant([weights[name] for name in kernels], tf.float32),
            tf.constant([thetas[name] for name in kernels], tf.float32),
            tf.zeros([0, 0]) if costs is None else costs,
            tf.constant(iterations),
        )
    except tf.errors.InvalidArgumentError as error:
        # What the lattice says only once it is built.
        for message in (TOO_MANY_CELLS, TOO_MANY_PAGES):
            if message in str(error):
                raise KerassegError(message) from None
        raise
    return marginals.numpy(), divergences.numpy()


@functools.cache
def _program(channels: int, kernels: tuple, normalization: str, method: str, compatible: bool, return_divergence: bool):
    """One graph for images of every size, any number of classes, and all weights and standard deviations."""
    signature = [[None] * 3, [None, None, channels], [None], [None], [None, None]]

    @tf.function(autograph=False, input_signature=[*(tf.TensorSpec(shape) for shape in signature), tf.TensorSpec([], tf.int32)])
    def run(logits, channels, weights, thetas, costs, iterations):
        scores, images = tf.reshape(logits, [-1, tf.shape(logits)[-1]]), channels[tf.newaxis]
        weights, thetas = tf.unstack(weights, len(kernels)), tf.unstack(thetas, len(kernels))
        filters = [_filter(name, images, theta, normalization, method) for name, theta in zip(kernels, thetas, strict=True)]
        send = weighted_sum(filters, weights) if kernels else tf.zeros_like

        def energies(q):
            return tf.matmul(send(q), costs, transpose_b=True) if compatible else -send(q)

        def step(index, q, divergences):
            energy = energies(q)
            if return_divergence:
                divergences = divergences.write(index, _divergence(q, scores, energy))
            return index + 1, tf.nn.softmax(scores - energy), divergences

        divergences = tf.TensorArray(tf.float64, iterations + 1)
        state = (0, tf.nn.softmax(scores), divergences)
        _, q, divergences = tf.while_loop(lambda index, *_: index < iterations, step, state)
        if return_divergence:
            divergences = divergences.write(iterations, _divergence(q, scores, energies(q)))
        return tf.reshape(q, tf.shape(logits)), divergences.stack() if return_divergence else tf.zeros([0], tf.float64)

    return run


def _filter(name, images, theta, normalization, method):
    if name == "spatial":
        return spatial_filter(images, theta, normalization, method)
    # What stands beside the positions is divided already.
    return bilateral_filter(images, theta, 1.0, normalization, method)


def _divergence(q, scores, pairwise):
    """Negative entropy plus expected energies, in float64: terms of opposite sign, each a million times the difference."""
    q, scores, pairwise = (tf.cast(each, tf.float64) for each in (q, scores, pairwise))
    return tf.reduce_sum(q * (tf.math.log(tf.maximum(q, _TINY)) - scores + pairwise))
