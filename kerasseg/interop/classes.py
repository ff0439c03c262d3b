"""How many classes a file's network scores."""

from collections.abc import Mapping

import keras
import numpy as np

from kerasseg.interop.naming import our_name, own_aliases


def fitting_classes(
    source: Mapping[str, list[np.ndarray]], fewer: keras.Model, more: keras.Model, counts: tuple[int, int]
) -> dict[str, int]:
    """Finds the layers of a file whose width depends on the number of classes, and that number.

    They are those convolutions whose widths in two networks differ by as much as the networks' numbers of classes. Any width
    multiplier will do.

    Args:
        source: Caffe layer name → its arrays in Caffe layout.
        fewer: The network for `counts[0]` classes.
        more: The same network for `counts[1]` classes.
        counts: Both numbers of classes.
    Returns:
        Caffe layer name → the number of classes for which it fits; empty if none depends on it in this way.
    """
    widths, wider = (
        {layer.name: layer.filters for layer in m.layers if isinstance(layer, keras.layers.Conv2D)} for m in (fewer, more)
    )
    found, aliases = {}, own_aliases(fewer)
    for name, blobs in source.items():
        ours = our_name(name, widths, aliases)
        if blobs and ours in widths and wider[ours] - widths[ours] == counts[1] - counts[0]:
            kernel = blobs[0]
            # Fully connected layers of old files are (1, 1, out, in).
            outputs = kernel.shape[-2] if kernel.ndim == 4 and kernel.shape[:2] == (1, 1) else kernel.shape[0]
            found[name] = outputs - (widths[ours] - counts[0])
    return found
