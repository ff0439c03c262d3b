"""What every network's builder shares: its input, its widths, its convolutions, its first weights."""

import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import keras

from kerasseg.errors import KerassegError, first_line
from kerasseg.layers import BatchNormalization, Conv2D, CropLike, Preprocessing, crop_offset
from kerasseg.tables import import_lazily

# What Keras and TensorFlow say where a layer has nothing left.
_TOO_SMALL = re.compile("output size would be zero or negative|negative dimension", re.IGNORECASE)


def network(*, minimum_size: int = 1, divisor: int = 1, aliases: Mapping[str, str] | None = None):
    """Marks a function as the builder of a network and states, as data, what it takes and what others call its layers.

    Args:
        minimum_size: Smallest height and width in pixels.
        divisor: Height and width must be a multiple of this.
        aliases: Regular expression (whole name) → replacement, from layer names in published files to ours.
    Returns:
        A decorator that gives the function attributes of these names, and makes it refuse an `input_shape` that it cannot take.
    """

    def mark(builder):
        @functools.wraps(builder)
        def checked(*args, **arguments):
            _check_classes(builder, args[0] if args else arguments.get("num_classes", 1))
            size = tuple(arguments.get("input_shape") or ())[:2]
            for side in filter(None, size):
                if side < minimum_size or side % divisor:
                    multiple = f", and a multiple of {divisor}" if divisor > 1 else ""
                    raise KerassegError(
                        f"{checked.__name__} received input_shape={arguments['input_shape']}: expected height and width of at "
                        f"least {minimum_size}{multiple}, or None for any"
                    )
            try:
                return builder(*args, **arguments)
            except KerassegError:
                raise
            except ValueError as error:
                if not any(size) or not _TOO_SMALL.search(str(error)):
                    raise
                raise KerassegError(
                    f"{checked.__name__} cannot be built with input_shape={arguments['input_shape']}: {first_line(error)} Pass a "
                    "larger one, or None for any"
                ) from error

        checked.minimum_size, checked.divisor, checked.aliases = minimum_size, divisor, dict(aliases or {})
        return checked

    return mark


def _check_classes(builder: Callable, num_classes) -> None:
    """Refuses what is no number of classes, and several heads for a network that has one."""
    heads = isinstance(num_classes, Mapping) and inspect.signature(builder).parameters["num_classes"].annotation is not int
    if heads and num_classes and all(is_whole(count) and count > 0 for count in num_classes.values()):
        return
    if not is_whole(num_classes) or num_classes < 1:
        raise KerassegError(f"{builder.__name__} received num_classes={num_classes!r}: expected a whole number from 1, such as 21")


def whole_numbers(name: str, value, example: Sequence[int], *, count: int | None = None) -> tuple[int, ...]:
    """Checks an argument that lists rates.

    Args:
        name: Of the argument.
        value: What was passed; NumPy's integers count, `True` does not.
        example: What to pass instead.
        count: How many there must be; `None`: at least one.
    Returns:
        The same as numbers of Python.
    Raises:
        KerassegError: If it is no sequence of whole numbers from 1.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or not value or count not in (None, len(value)) or not all(is_whole(number) and number > 0 for number in value):
        raise KerassegError(f"{name}={value!r}: expected {count or 'one or more'} whole numbers from 1, e.g. {name}={example}")
    return tuple(int(number) for number in value)


def one_of(name: str, value, known: Collection[int], example: int, where: str = "") -> int:
    """Checks an argument that is one of some whole numbers.

    Args:
        name: Of the argument.
        value: What was passed.
        known: What may be.
        example: One of them, to advise.
        where: What these are the numbers of, e.g. `" for a ResNet"`.
    Returns:
        The same as a number of Python.
    Raises:
        KerassegError: If it is none of them.
    """
    if not is_whole(value) or value not in known:
        choices = ", ".join(map(str, known))
        raise KerassegError(f"{name}={value!r}: expected one of {choices}{where}, e.g. {name}={example}")
    return int(value)


def is_whole(value) -> bool:
    """Tells whether a value is a whole number; NumPy's are, `True` is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def download(classifier: Callable, **options) -> keras.Model:
    """Gives a classifier of keras.applications with its ImageNet weights, or raises a KerassegError of one line."""
    try:
        return classifier(weights="imagenet", **options)
    except Exception as error:  # Keras raises bare Exception when a download fails.
        raise KerassegError(
            f"weights='imagenet' could not be downloaded ({first_line(error)}); pass weights=None or a file's path"
        ) from error


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
    Raises:
        KerassegError: If the factor is no positive number.
    """
    check_width(multiplier)
    return max(groups, int(width * multiplier) // groups * groups)


def check_width(multiplier: float) -> None:
    """Refuses a width_multiplier that is no positive number."""
    if not isinstance(multiplier, Real) or isinstance(multiplier, bool) or not 0 < multiplier < math.inf:
        raise KerassegError(f"width_multiplier={multiplier!r}: expected a number above 0, e.g. width_multiplier=1.0")


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


def conv(
    x, filters: int, kernel_size: int | tuple[int, int], name: str, *, padding: str | int | tuple[int, int] = "same", **arguments
):
    """Applies a convolution with ReLU, initialised for ReLU.

    Args:
        x: Shape `(B, H, W, C)`.
        filters: Output channels.
        kernel_size: Side of the kernel, or its height and width.
        name: The authors' layer name; the ReLU is part of the layer, as Caffe's in-place ReLU is of the blob.
        padding: `"same"`, `"valid"`, or a number of zeros on each side, or of those above and below and of those left and right.
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


def crop_alike(x, other) -> list:
    """Crops whichever of two maps reaches beyond the other; where their cells lie follows from the graph.

    Args:
        x: Shape `(B, H, W, C)`.
        other: Shape `(B, h, w, C)`, of the same stride.
    Returns:
        The two, one of them cropped by a layer that is named as its own with a `c` behind.
    Raises:
        ValueError: If their cells do not coincide.
    """
    offset = crop_offset(other, x)
    if offset >= 0:
        return [x, CropLike(offset, name=f"{other._keras_history.operation.name}c")([other, x])]
    return [CropLike(-offset, name=f"{x._keras_history.operation.name}c")([x, other]), other]


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
            # It registers its layer with Keras, for networks that end in a CRF.
            import_lazily("kerasseg.crf.layer")
            model.set_weights(keras.models.load_model(path, compile=False).get_weights())
        else:
            with warnings.catch_warnings():
                # Keras warns, at length, of what it then raises.
                warnings.filterwarnings("ignore", "Skipping nested container")
                model.load_weights(path)
    # Of a class that it does not know, Keras says so by a TypeError.
    except (TypeError, ValueError, OSError) as error:
        raise KerassegError(
            f"weights='{weights}' do not fit {model.name}: {first_line(error)} (to keep what fits, use --init or "
            "kerasseg.transplant)"
        ) from error
    return model
