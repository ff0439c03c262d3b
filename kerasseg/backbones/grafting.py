"""Taking a built network's graph apart and putting it together otherwise."""

from collections.abc import Iterable

import keras

from kerasseg.layers import AlignedResize, AlignedResizeLike, BilinearUpsampling, CropLike, FitLike

# Layers without weights that bring scores to the size of the image, and change nothing else.
_RESIZING = (
    AlignedResize,
    AlignedResizeLike,
    BilinearUpsampling,
    CropLike,
    FitLike,
    keras.layers.Cropping2D,
    keras.layers.Identity,
    keras.layers.Resizing,
    keras.layers.UpSampling2D,
)


def sources(tensor) -> list:
    """The tensors that the layer which made a tensor was called on; none for an input."""
    layer, node_index, _ = tensor._keras_history
    return [] if isinstance(layer, keras.layers.InputLayer) else list(layer._inbound_nodes[node_index].input_tensors)


def layer_of(tensor) -> keras.Layer:
    """The layer that made a symbolic tensor."""
    return tensor._keras_history.operation


def split_tail(output) -> tuple:
    """Walks back from a network's output over what only resizes.

    Args:
        output: Symbolic output of a network.
    Returns:
        `(scores, tail)`: the tensor before, and the tensors after it as far as `output`, in the order of the network.
    """
    tail = []
    while _only_resizes(layer_of(output)):
        tail.insert(0, output)
        output = sources(output)[0]
    return output, tail


def _only_resizes(layer) -> bool:
    linear = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    return linear or isinstance(layer, _RESIZING)


def chain_to(output) -> list:
    """The tensors from behind the input to `output`, where each is made of the one before (and the sizes of others)."""
    chain = []
    while not isinstance(layer_of(output), keras.layers.InputLayer):
        chain.insert(0, output)
        output = sources(output)[0]
    return chain


def ancestors(outputs: Iterable) -> list:
    """All tensors that some tensors are made of, these among them, each once."""
    found, stack = {}, list(outputs)
    while stack:
        tensor = stack.pop()
        if id(tensor) not in found:
            found[id(tensor)] = tensor
            stack += sources(tensor)
    return list(found.values())


def repeat(x, tensors: Iterable):
    """Applies copies of layers without weights, one after the other.

    Copies, because a layer that is called twice answers for its first output alone when it is asked for its output.

    Args:
        x: Symbolic, takes the place of what the first of the layers was called on.
        tensors: Symbolic outputs of the layers, each made of the one before (and of others, which stay).
    Returns:
        The last output of the copies.
    """
    for tensor in tensors:
        layer, (_, *others) = layer_of(tensor), sources(tensor)
        copy = layer.__class__.from_config(layer.get_config())
        x = copy([x, *others] if others else x)
    return x
