"""Weights by name from one network to another."""

import keras


def transplant(source: keras.Model, target: keras.Model, suffix: str = "") -> list[str]:
    """Copies the weights of every layer that has the same name and shapes in both networks.

    FCN-32s → 16s → 8s is trained so: each finer network takes what the coarser one learned, and its new score layers stay zero
    and its new upsampling bilinear. A network that holds others side by side takes each by its suffix: the layer `conv1_1` of
    the network on colour becomes `conv1_1color`.

    Args:
        source: The trained network.
        target: The network to start; changed in place.
        suffix: What follows the source's layer names in the target.
    Returns:
        Names of the target's layers with weights that kept their own.
    Reference:
        Shelhamer et al. 2017, §4.3 (staged training); the authors' surgery.transplant.
    """
    sources = {layer.name + suffix: layer for layer in source.layers}
    kept = []
    for layer in target.layers:
        if not layer.weights:
            continue
        other = sources.get(layer.name)
        if other is not None and [w.shape for w in other.weights] == [w.shape for w in layer.weights]:
            layer.set_weights(other.get_weights())
        else:
            kept.append(layer.name)
    return kept
