"""Any network with the arithmetic of an int8 file simulated, for training: the same layers, names and weights.

What such a file rounds is every kernel and every map that it stores. A convolution, the batch normalisation behind it and the
ReLU behind that are one operation there: what lies between them is never stored.
"""

from collections import defaultdict

import keras

from kerasseg import layers as own
from kerasseg.backbones.grafting import ancestors, layer_of, sources
from kerasseg.errors import KerassegError
from kerasseg.layers.quantization import (
    FakeQuantization,
    Int8Conv2D,
    Int8Conv2DTranspose,
    Int8DepthwiseConv2D,
    Int8SeparableConv2D,
)

# By the very class: what derives from one may do something else with its kernel.
_FORMS = {
    own.Conv2D: Int8Conv2D,
    keras.layers.Conv2D: Int8Conv2D,
    keras.layers.Conv2DTranspose: Int8Conv2DTranspose,
    keras.layers.DepthwiseConv2D: Int8DepthwiseConv2D,
    keras.layers.SeparableConv2D: Int8SeparableConv2D,
}
# They move values, or leave some out, or add zeros: what was rounded before them still is.
_MOVING = (
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.MaxPooling2D,
    keras.layers.Reshape,
    keras.layers.ZeroPadding2D,
    own.AtrousPadding2D,
    own.CeilMaxPooling2D,
    own.CropLike,
    own.FitLike,
    own.MaxUnpooling2D,
    own.MinimumSize,
    own.NullBackground,
    own.PadToGrid,
    own.RateCheck,
    own.ReflectionPadding2D,
    own.Subsampling2D,
)
# Every input of these is a part of the result; of other layers the first is, and the rest give a size or colours.
_JOINING = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Concatenate,
    keras.layers.Maximum,
    keras.layers.Minimum,
    keras.layers.Multiply,
    keras.layers.Subtract,
    own.ScaledAdd,
)
_POOLING = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
_RECTIFIERS = (keras.activations.relu, keras.activations.relu6)


def with_simulated_int8(model: keras.Model) -> keras.Model:
    """Builds the form of a network that trains for an int8 file.

    Kernels are rounded with a scale for each output channel, maps by the range that they have in the batch: `fake_quantize_kernel`
    and `fake_quantize_map` say how. What such a file computes in float (`float_layers`) stays as it is. The form has no weights of
    its own: once trained, they are copied back by layer name, and the plain network is calibrated and exported as any other.

    Args:
        model: The network. It stays as it is; its weights are copied.
    Returns:
        A network of the same name, inputs, outputs, layer names, weights and precision; further layers are called
        `<layer>_int8` and have no weights.
    Raises:
        KerassegError: If a layer with a kernel is of a class whose int8 form is not known.
    Reference:
        Jacob et al. 2018, arXiv:1712.05877, §3; Krishnamoorthi 2018, arXiv:1806.08342, §4 (quantisation-aware training).
    Example:
        >>> trained = with_simulated_int8(model)
        >>> trained.compile("adam", SegmentationCrossEntropy())
        >>> trained.fit(data)
        >>> model.set_weights(trained.get_weights())  # where nothing branches; else kerasseg.transplant(trained, model)
    """
    in_float = float_layers(model)
    stored = _stored(model) - in_float
    copies, rounding, originals = {}, {}, {}

    def clone(layer):
        if not isinstance(layer, keras.Layer):
            # An operation such as +, which has neither weights nor a state.
            originals[layer] = layer
            return layer
        if layer not in copies:
            copies[layer] = _form_of(layer, layer in in_float).from_config(layer.get_config())
            originals[copies[layer]] = layer
        return copies[layer]

    def call(copy, *args, **arguments):
        result, layer = copy(*args, **arguments), originals[copy]
        if layer not in stored:
            return result
        return keras.tree.map_structure(lambda x: rounded(layer, x), result)

    def rounded(layer, x):
        if x.dtype == "bool":
            return x
        if layer not in rounding:
            rounding[layer] = FakeQuantization(dtype=x.dtype, name=f"{layer.name}_int8")
        return rounding[layer](x)

    simulated = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer, copy in copies.items():
        copy.set_weights(layer.get_weights())
    return simulated


def float_layers(model: keras.Model) -> set[keras.Layer]:
    """Finds the layers that an int8 file computes in float, because 8 bits would cost much there and time is little.

    These are the last layers with a kernel before each output, and what stands between them and it: one of the 256 values of a
    score is all that tells two classes apart. Likewise what makes the maps whose largest cells unpooling remembers. And what works
    on the mean of a whole map (image pooling, the squeeze of a squeeze-and-excitation), as far as the layer that spreads it again.

    Args:
        model: A network.
    Returns:
        Layers of the network.
    """
    switches = [layer for layer in model.operations if isinstance(layer, own.MaxPoolingWithMask2D)]
    compared = [x for layer in switches for node in layer._inbound_nodes for x in node.input_tensors]
    return _last_kernels([*model.outputs, *compared]) | _behind_pooling(model)


def _last_kernels(tensors: list) -> set[keras.Layer]:
    """The last layers with a kernel that some tensors were made by, and those between."""
    found, waiting = set(), list(tensors)
    while waiting:
        layer, inputs = layer_of(waiting[0]), sources(waiting.pop(0))
        if inputs and layer not in found:
            found.add(layer)
            if not _has_kernel(layer):
                waiting += _values(layer, inputs)
    return found


def _behind_pooling(model: keras.Model) -> set[keras.Layer]:
    """The layers that make maps of a single cell, from global pooling on, and what resizes these."""
    found, cells = set(), set()
    for layer in model.operations:
        for node in layer._inbound_nodes:
            inputs = _values(layer, node.input_tensors)
            pooled = inputs and all(id(x) in cells for x in inputs)
            if isinstance(layer, _POOLING) or pooled:
                found.add(layer)
                cells.update(id(x) for x in node.outputs if len(x.shape) == 2 or tuple(x.shape[1:3]) == (1, 1))
    return found


def _values(layer, inputs: list) -> list:
    """Those of a layer's inputs whose values are a part of its result; an operation such as + is no layer."""
    return inputs if isinstance(layer, _JOINING) or not isinstance(layer, keras.Layer) else inputs[:1]


def _stored(model: keras.Model) -> set[keras.Layer]:
    """The layers whose results are maps of their own in an int8 file: not what only moves, nor what the next one takes in."""
    consumers = defaultdict(set)
    tensors = ancestors(model.outputs)
    for tensor in tensors:
        for source in sources(tensor):
            consumers[layer_of(source)].add(layer_of(tensor))
    ends = {layer_of(tensor) for tensor in model.outputs}
    makers = {layer_of(tensor) for tensor in tensors if sources(tensor)}
    return {layer for layer in makers if not _moves(layer) and (layer in ends or not _is_taken_in(layer, consumers[layer]))}


def _moves(layer) -> bool:
    linear = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    pooling = isinstance(layer, own.AtrousPooling2D) and layer.kind == "max"
    return linear or pooling or isinstance(layer, _MOVING)


def _is_taken_in(layer, consumers: set) -> bool:
    """Whether the only layer behind is one operation with it: batch normalisation behind a convolution, ReLU behind anything."""
    if len(consumers) != 1:
        return False
    (behind,) = consumers
    if isinstance(behind, keras.layers.BatchNormalization):
        return _has_kernel(layer) and layer.activation is keras.activations.linear
    if isinstance(behind, keras.layers.ReLU):
        return not behind.negative_slope and not behind.threshold and behind.max_value in (None, 6)
    return isinstance(behind, keras.layers.Activation) and behind.activation in _RECTIFIERS


def _has_kernel(layer) -> bool:
    return type(layer) in _FORMS


def _form_of(layer, in_float: bool) -> type:
    if in_float:
        return type(layer)
    if not _has_kernel(layer) and any(len(weight.shape) > 1 for weight in layer.weights):
        raise KerassegError(
            f"layer '{layer.name}' ({type(layer).__name__}) has a kernel whose int8 form is not known: expected convolutions "
            f"({', '.join(sorted({kind.__name__ for kind in _FORMS}))}); omit --quantization-aware"
        )
    return _FORMS.get(type(layer), type(layer))
