"""Layers that a file for devices cannot hold: the network is written as far as their input."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from kerasseg.backbones.grafting import layer_of, repeat, sources, split_tail
from kerasseg.crf import MeanField


class Cut(NamedTuple):
    """A network as far as a file can hold it.

    `model` is what goes into the file; `left_out` says in one line which layers do not and why, and is `None` if all do.
    """

    model: keras.Model
    left_out: str | None


_TITLES = {"tflite": "TFLite", "onnx": "ONNX"}


def _mean_field(layer: MeanField, format: str) -> str | None:
    # Dense matrices are no more than products and exponentials.
    return None if layer.method == "exact" else f"{_TITLES[format]} has no operations for a permutohedral lattice"


# Layer class → function of a layer and a format that says in one line why such a file cannot hold it; `None` where it can.
# The first thing such a layer is called on stands in for what it returns: of the same shape and meaning, as logits are.
UNCONVERTIBLE: dict[type, Callable[[keras.Layer, str], str | None]] = {MeanField: _mean_field}


def named_outputs(model: keras.Model) -> keras.KerasTensor | dict[str, keras.KerasTensor]:
    """Gives the outputs of a network by their names; the output itself of a network that has one and no name for it.

    Args:
        model: The network. A list of outputs goes by the names of the layers that they come from.
    """
    output = model.output
    if not isinstance(output, (list, tuple)):
        return output
    return dict(zip(model.output_names, output, strict=True)) if len(output) > 1 else output[0]


def cut_for(model: keras.Model, format: str) -> Cut:
    """Leaves out what stands at the end of a network and has no form in the operations of a format.

    Layers behind it that only resize (or crop) stay, as copies; the network itself is not changed, and shares its weights.

    Args:
        model: The network. One with several outputs comes back as it is.
        format: One of `kerasseg.export.FORMATS`. A SavedModel holds whatever TensorFlow computes.
    Returns:
        The network up to there, of the same name, and what is missing. A network that ends otherwise comes back as it is, also
        if such a layer stands further in: there is no network without it.
    """
    output, left_out = named_outputs(model), []
    name = next(iter(output)) if isinstance(output, dict) and len(output) == 1 else None
    output = output if name is None else output[name]
    while format in _TITLES and not isinstance(output, dict):
        result, tail = split_tail(output)
        layer = layer_of(result)
        reason = next((why(layer, format) for kind, why in UNCONVERTIBLE.items() if isinstance(layer, kind)), None)
        if reason is None:
            break
        left_out.append(f"{layer.name} ({type(layer).__name__}): {reason}")
        output = repeat(sources(result)[0], tail)
    if not left_out:
        return Cut(model, None)
    return Cut(keras.Model(model.input, output if name is None else {name: output}, name=model.name), "; ".join(left_out))
