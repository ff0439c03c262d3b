"""The CRF as a Keras layer, behind any network."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.crf.kernels import METHODS, bilateral_filter, spatial_filter
from kerasseg.crf.mean_field import mean_field
from kerasseg.crf.parameters import Parameters, checked_iterations
from kerasseg.errors import KerassegError

KERNEL_WEIGHTS = ("scalar", "class", "matrix")
"""What a kernel's weight is: a number, one for each class, or a matrix from class to class."""


@keras.saving.register_keras_serializable("kerasseg")
class MeanField(keras.layers.Layer):
    """Mean-field inference in a fully connected CRF with a bilateral and a spatial Gaussian kernel.

    Called on `[logits, image]`, or on `[logits, image, mask]`, whose pixels where the mask is false take no part. Each step adds
    to the unary logits what the kernels gather of the marginals, weighted, times the negative compatibility. The result are
    logits again, not normalized, so that losses, metrics and exports treat the layer as a network's last one. Of the unrolled steps
    as CRF-RNN the weights train, and gradients reach the logits; the standard deviations are fixed, and the image gets none.

    All arithmetic is float32, whatever the policy. Any size and batch works in one graph. XLA, in a `tf.function` with
    `jit_compile` or on a TPU, wants them static, and colours of a batch no more than 255 apart: else the result is NaN. Keras' own
    `compile` takes the layer for one that XLA cannot compile, since it would compile anew for each size.

    Keras knows the class once it is imported: open a file that holds it with `kerasseg.load_model`, or import
    `kerasseg.crf.MeanField` (`from kerasseg.crf import MeanField`) before `keras.models.load_model`.

    Args:
        iterations: Number of steps.
        theta_alpha: Standard deviation of the bilateral kernel along the image, in pixels.
        theta_beta: Its standard deviation of each colour, on the scale of 0–255.
        theta_gamma: Standard deviation of the spatial kernel, in pixels.
        bilateral_weight: Weight of the bilateral kernel: a number, or an array of the shape that `kernel_weights` says. A number
            becomes the diagonal of a matrix. A 0 that is not trained leaves the kernel out.
        spatial_weight: Weight of the spatial kernel, likewise.
        compatibility: `"potts"`; `"matrix"`, a matrix of C × C that starts as −I, which is the same, and can be trained; or such
            an array: what it costs a pixel of class i (rows) that its neighbours are of class j.
        normalization: How kernels are normalized: `"symmetric"` (Krähenbühl & Koltun 2013), `"after"` filtering (DeepLab, CRF-RNN),
            `"before"`, or `"none"`.
        method: `"lattice"`, or `"exact"`, by dense matrices, for small images.
        trainable: Whether weights and compatibility are trained.
        training_iterations: Number of steps in training; `None`: as many.
        kernel_weights: `"scalar"`, `"class"` or `"matrix"`.
    Input shape:
        `(B, H, W, C)`, logits; `(B, H, W, K)`, the image, 0–255, in any order of colours and less any mean; optionally `(B, H, W)`,
        true where there is an image.
    Output shape:
        `(B, H, W, C)`, float32.
    Raises:
        KerassegError: If an argument is impossible, or the inputs' sizes differ; standard deviations that are too small for
            the image, too, but as `tf.errors.InvalidArgumentError` where only a graph that runs can know.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, Algorithm 1 and §4; Zheng et al. 2015, arXiv:1502.03240, §4 and §5.
    """

    def __init__(
        self,
        iterations: int = 10,
        theta_alpha: float = 49.0,
        theta_beta: float = 5.0,
        theta_gamma: float = 3.0,
        bilateral_weight=4.0,
        spatial_weight=3.0,
        compatibility="potts",
        normalization: str = "symmetric",
        method: str = "lattice",
        trainable: bool = False,
        training_iterations: int | None = None,
        kernel_weights: str = "scalar",
        **kwargs,
    ):
        # Sums over a hundred thousand pixels, and differences of colours, are nothing for half precision.
        super().__init__(trainable=trainable, **{**kwargs, "dtype": "float32"})
        # Says what is wrong with the numbers.
        Parameters(1.0, theta_alpha, theta_beta, 1.0, theta_gamma, iterations, normalization)
        self.iterations = checked_iterations(iterations)
        self.training_iterations = None if training_iterations is None else checked_iterations(training_iterations)
        self.theta_alpha, self.theta_beta, self.theta_gamma = float(theta_alpha), float(theta_beta), float(theta_gamma)
        self.normalization = normalization
        for name, value, choices in (("method", method, METHODS), ("kernel_weights", kernel_weights, KERNEL_WEIGHTS)):
            if value not in choices:
                raise KerassegError(f"{name} {value!r}: expected one of {', '.join(choices)}")
        self.method, self.kernel_weights = method, kernel_weights
        self.initial_weights = {
            "spatial": _checked_weight("spatial_weight", spatial_weight, kernel_weights),
            "bilateral": _checked_weight("bilateral_weight", bilateral_weight, kernel_weights),
        }
        self.compatibility_start = _checked_compatibility(compatibility)
        # Keras would compile a model of its own accord, and anew for each size of image.
        self.supports_jit = False

    def build(self, input_shape):
        classes = input_shape[0][-1]
        self._kernels = {}
        for name, value in self.initial_weights.items():
            if not np.any(value) and not self.trainable:
                continue
            self._kernels[name] = self._weight(f"{name}_weight", _initial(value, self.kernel_weights, classes, f"{name}_weight"))
        self.compatibility = None
        if self.compatibility_start != "potts":
            start = -np.eye(classes) if isinstance(self.compatibility_start, str) else self.compatibility_start
            self.compatibility = self._weight("compatibility", _initial(start, "matrix", classes, "compatibility"))
        self.built = True

    def _weight(self, name, value):
        return self.add_weight(name=name, shape=value.shape, initializer=lambda shape, dtype: tf.constant(value, dtype))

    def call(self, inputs, training=None):
        logits, image, *mask = inputs
        _check_sizes(logits, image, *mask)
        logits, image = tf.cast(logits, tf.float32), tf.cast(image, tf.float32)
        if mask:
            # Whatever stands there, it is not to be multiplied by 0.
            mask = [tf.cast(mask[0], tf.bool)]
            given, logits = logits, tf.where(mask[0][..., tf.newaxis], logits, 0.0)
        options = {"normalization": self.normalization, "method": self.method, "mask": mask[0] if mask else None}
        filters = {
            "spatial": lambda: spatial_filter(image, self.theta_gamma, **options),
            "bilateral": lambda: bilateral_filter(image, self.theta_alpha, self.theta_beta, **options),
        }
        steps = self.iterations if not training or self.training_iterations is None else self.training_iterations
        if not self._kernels or not steps:
            return given if mask else logits
        flat = tf.reshape(logits, [-1, logits.shape[-1]])
        weights = [tf.convert_to_tensor(weight) for weight in self._kernels.values()]
        compatibility = None if self.compatibility is None else tf.convert_to_tensor(self.compatibility)
        flat = mean_field(flat, [filters[name]() for name in self._kernels], weights, compatibility, steps)
        refined = tf.reshape(flat, tf.shape(logits))
        return tf.where(mask[0][..., tf.newaxis], refined, given) if mask else refined

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def coordinate_map(self):
        """Cell for cell, though every pixel is connected with all others, as `sees_everything` says."""
        return 1, 0

    # The image only steers.
    aligned_inputs = 1
    sees_everything = True

    def get_config(self):
        names = ("iterations", "theta_alpha", "theta_beta", "theta_gamma", "normalization", "method", "training_iterations")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "bilateral_weight": self.initial_weights["bilateral"],
            "spatial_weight": self.initial_weights["spatial"],
            "compatibility": self.compatibility_start,
            "kernel_weights": self.kernel_weights,
        }


def _finite(value) -> np.ndarray | None:
    """An array of what are finite numbers also in float32; `None` of what are none."""
    try:
        array = None if isinstance(value, (str, bytes)) else np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if array is None or not (np.abs(array) <= np.finfo(np.float32).max).all() else array


def _checked_weight(name, value, form):
    """A number or nested lists, as a configuration can hold them."""
    array, shape = _finite(value), {"scalar": (), "class": ("C",), "matrix": ("C", "C")}[form]
    if array is None:
        lists = f", or an array of the shape ({', '.join(shape)})" if shape else ""
        raise KerassegError(f"{name} {_shown(value)}: expected a finite number{lists}, such as {name}=3.0")
    if array.ndim not in (0, len(shape)):
        of_form = f" ({', '.join(shape)}) or" if shape else ""
        raise KerassegError(f"{name} has shape {array.shape}: expected{of_form} one number, of kernel_weights='{form}'")
    return array.tolist()


def _checked_compatibility(value):
    """A name or nested lists, as a configuration can hold them."""
    if isinstance(value, str) and value in ("potts", "matrix"):
        return value
    array = _finite(value)
    if array is None:
        raise KerassegError(f"compatibility {_shown(value)}: expected potts, matrix, or an array of classes x classes")
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise KerassegError(f"compatibility has shape {array.shape}: expected classes x classes, such as -np.eye(21)")
    return array.tolist()


def _shown(value) -> str:
    """What was received, on one line that is not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _initial(value, form, classes, name):
    """A weight's first value in the form that it has."""
    value, shape = np.asarray(value, np.float32), {"scalar": (), "class": (classes,), "matrix": (classes, classes)}[form]
    if value.shape == () and form == "matrix":
        return value * np.eye(classes, dtype=np.float32)
    if value.shape == ():
        return np.broadcast_to(value, shape)
    if value.shape != shape:
        raise KerassegError(
            f"{name} has shape {value.shape}: expected {shape} of kernel_weights='{form}' and {classes} classes, or one number"
        )
    return value


def _check_sizes(logits, image, *mask):
    sizes = [tuple(each.shape[:3]) for each in (logits, image, *mask)]
    for axis in range(3):
        if len({size[axis] for size in sizes} - {None}) > 1:
            logits_size, image_size = ("x".join(map(str, size)) for size in sizes[:2])
            raise KerassegError(
                f"logits and image of batch x height x width {logits_size} and {image_size}: expected the same, such as the "
                "logits of a network with upsample_logits=True"
            )
