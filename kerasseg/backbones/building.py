"""What every network's builder shares: its input, its widths, its convolutions, its first weights."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import keras

from kerasseg.errors import KerassegError
from kerasseg.layers import BatchNormalization, Conv2D, Preprocessing


def network(*, minimum_size: int = 1, divisor: int = 1, aliases: Mapping[str, str] | None = None):
    """Marks a function as the builder of a network and states, as data, what it takes and what others call its layers.

    Args:
        minimum_size: Smallest height and width in pixels.
        divisor: Height and width must be a multiple of this.
        aliases: Regular expression (whole name) → replacement, from layer names in published files to ours.
    Returns:
        A decorator that leaves the function as it is but for the attributes of these names.
    """

    def mark(builder):
        builder.minimum_size, builder.divisor, builder.aliases = minimum_size, divisor, dict(aliases or {})
        return builder

    return mark


def accepts(builder: Callable, argument: str) -> bool:
    """Tells whether a builder takes an argument, so that a recipe can set it only where it is offered."""
    parameter = inspect.signature(builder).parameters.get(argument)
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY


def scaled_width(width: int, multiplier: float, groups: int = 1) -> int:
    """Scales a layer's channel count.

    Args:
        width: The authors' channel count.
        multiplier: Factor.
        groups: The result is a multiple of this.
    Returns:
        ⌊width · multiplier⌋ rounded down to a multiple of `groups`, at least `groups`.
    """
    return max(groups, int(width * multiplier) // groups * groups)


def image_input(input_shape, name: str = "image"):
    """Makes a network's input: RGB, 0–255, float32 whatever the precision policy."""
    return keras.Input(shape=input_shape, name=name, dtype="float32")


def preprocess(x, spec, name: str = "preprocessing"):
    """Applies the named preprocessing layer, or nothing for `None`.

    Args:
        x: Symbolic image, shape `(B, H, W, C)`.
        spec: As `Preprocessing.of` takes it, or `None`.
        name: Name of the layer.
    Raises:
        KerassegError: If the channel counts differ.
    """
    if spec is None:
        return x
    layer = Preprocessing.of(spec, name=name)
    if len(layer.order) != x.shape[-1]:
        raise KerassegError(
            f"preprocessing for {len(layer.order)} channels, but input_shape has {x.shape[-1]}; pass a mapping or None"
        )
    return layer(x)


def conv(x, filters: int, kernel_size: int, name: str, *, padding: str | int = "same", **arguments):
    """Applies a convolution with ReLU, initialised for ReLU.

    Args:
        x: Shape `(B, H, W, C)`.
        filters: Output channels.
        kernel_size: Side of the kernel.
        name: The authors' layer name; the ReLU is part of the layer, as Caffe's in-place ReLU is of the blob.
        padding: `"same"`, `"valid"`, or a number of zeros on each side.
        **arguments: Further arguments of `kerasseg.layers.Conv2D`.
    """
    if not isinstance(padding, str):
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
        padding = "valid"
    arguments = {"activation": "relu", "kernel_initializer": "he_normal", **arguments}
    return Conv2D(filters, kernel_size, padding=padding, name=name, **arguments)(x)


def batch_norm(x, name: str, **arguments):
    """Applies batch normalisation, by the statistics of all replicas' examples together.

    Let its ReLU follow directly: TensorFlow then computes the two as one.

    Args:
        x: Shape `(B, H, W, C)`.
        name: The authors' layer name.
        **arguments: Further arguments of `kerasseg.layers.BatchNormalization`.
    """
    return BatchNormalization(name=name, **{"synchronized": True, **arguments})(x)


def with_weights(model: keras.Model, weights: str | Path | None, pretrained: Callable | None = None) -> keras.Model:
    """Loads a network's first weights.

    Args:
        model: The built network.
        weights: `None`, `"imagenet"`, or the path of a `.keras` or `.weights.h5` file of the same network.
        pretrained: Function of the model that loads ImageNet weights.
    Returns:
        The same model.
    Raises:
        KerassegError: If there are no ImageNet weights, they cannot be had, or the file is missing or does not fit.
    """
    if weights is None:
        return model
    if weights == "imagenet":
        if pretrained is None:
            raise KerassegError(f"weights='imagenet': Keras publishes none for {model.name}; pass None or the path of a file")
        pretrained(model)
        return model
    path = Path(weights)
    if not path.is_file() or not path.name.endswith((".keras", ".weights.h5")):
        raise KerassegError(f"weights='{weights}': expected None, 'imagenet', or an existing .keras or .weights.h5 file")
    try:
        if path.suffix == ".keras":
            model.set_weights(keras.models.load_model(path, compile=False).get_weights())
        else:
            with warnings.catch_warnings():
                # Keras warns, at length, of what it then raises.
                warnings.filterwarnings("ignore", "Skipping nested container")
                model.load_weights(path)
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KerassegError(
            f"weights='{weights}' do not fit {model.name}: {reason} (to keep what fits, use --init or kerasseg.transplant)"
        ) from error
    return model
