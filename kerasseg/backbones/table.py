"""What a network with a choice of trunks needs to know of each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras


class Backbone(NamedTuple):
    """A classification network as the trunk of another.

    Args:
        build: `(x, *, output_stride, width_multiplier, multi_grid, batch_norm, **options) -> {stride: map}`: from the symbolic
            preprocessed image to feature maps by their stride, the last at `output_stride`; it extends the graph of `x`, never
            nests it. `multi_grid=None` is none, `batch_norm` holds `momentum` and `epsilon`, of which classifiers with published
            weights take the momentum alone. What a trunk does not have (`multi_grid` of a MobileNet) is a KerassegError.
        preprocessing: What its ImageNet weights expect, as `kerasseg.layers.Preprocessing.of` takes it; `None` where the network
            itself begins with it (EfficientNet).
        load_imagenet: Loads Keras' ImageNet weights into the layers of a model that was built on the trunk; `None` where Keras
            publishes none.
        supports_multi_grid: Whether `build` takes the unit rates of the last block.
        minimum_size: Smallest height and width of an image in pixels.
    """

    build: Callable[..., dict[int, Any]]
    preprocessing: str | Mapping | None
    load_imagenet: Callable[[keras.Model], None] | None = None
    supports_multi_grid: bool = False
    minimum_size: int = 1
