"""The context module of the Dilation networks: what a map of class scores learns from ever farther around each cell."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np

from kerasseg.backbones.building import conv, whole_numbers
from kerasseg.errors import KerassegError
from kerasseg.layers import Conv2D, IdentityInitializer

# Table 1: 2C 2C 4C 8C 16C 32C 32C, and C again in the last layer, which is not named here.
_LARGE = (2, 2, 4, 8, 16, 32, 32)
# Layers, the last one included: KITTI, VOC and CamVid, Cityscapes.
DEPTHS = (7, 8, 10)


def context_module(x, *, layers: int = 8, context: str | Sequence[int] = "basic", noise: float = 0.01):
    """Builds the context module: 3×3 convolutions whose rates double, each with ReLU, and a 1×1 convolution.

    Eight layers see 3, 5, 9, 17, 33, 65, 67 and 67 cells. The basic module keeps C channels and the size of the map by zeros in
    every layer. With other widths there are zeros only once, 33 on each side of the scores, and no layer pads again: the layers
    see beyond the border what they make of zeros there, not zeros (the layout of the authors' VOC file).

    Args:
        x: Scores, shape `(B, h, w, C)`.
        layers: 7 (largest rate 8), 8 (16) or 10 (64).
        context: `"basic"`, `"large"` (2C, 2C, 4C, 8C, 16C, 32C, 32C; eight layers) or seven widths, in the paper multiples
            of C.
        noise: Deviation of the noise in the first weights.
    Returns:
        Scores, shape `(B, h, w, C)`.
    Raises:
        KerassegError: If there is no such module.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §3 and Table 1; the prototxt files of fyu/dilation.
    """
    classes = x.shape[-1]
    if isinstance(noise, bool) or not isinstance(noise, Real) or not 0 <= noise < math.inf:
        raise KerassegError(f"noise={noise!r}: expected a number that is not negative, e.g. noise=0.01")
    widths = context_widths(context, layers, classes)
    names = ["ctx_conv1_1", *(f"ctx_conv{index}_1" for index in range(2, layers - 2)), "ctx_fc1"]
    names.insert(1, "ctx_conv1_2")
    rates = (1, *(2**index for index in range(layers - 3)), 1)
    # Half of what convolutions without padding take off the map.
    margin = sum(rates)
    for name, rate, width in zip(names, rates, widths or [classes] * len(rates), strict=True):
        padding = "same" if widths is None else margin if name == names[0] else "valid"
        first = IdentityInitializer(classes, noise)
        x = conv(x, width, 3, name, padding=padding, dilation_rate=rate, kernel_initializer=first)
    return Conv2D(classes, 1, kernel_initializer=IdentityInitializer(classes, noise), name="ctx_final")(x)


def context_widths(context: str | Sequence[int], layers: int, classes: int) -> tuple[int, ...] | None:
    """Reads the `context` argument.

    Args:
        context: As `context_module` takes it.
        layers: Likewise.
        classes: C.
    Returns:
        The width of every layer but the last; `None` for the basic module.
    Raises:
        KerassegError: If there is no such module.
    """
    if layers not in DEPTHS:
        raise KerassegError(f"layers={layers!r}: expected one of {', '.join(map(str, DEPTHS))}, e.g. layers=8")
    if isinstance(context, str) and context == "basic":
        return None
    if layers != 8:
        raise KerassegError(f"context={context!r} with {layers} layers: the paper has it for 8; pass context='basic' or layers=8")
    if isinstance(context, str) and context == "large":
        return tuple(multiple * classes for multiple in _LARGE)
    try:
        return whole_numbers("context", np.asarray(context).tolist(), _LARGE, count=len(_LARGE))
    except KerassegError as error:
        raise KerassegError(
            f"context={context!r}: expected 'basic', 'large' or seven widths, whole numbers from 1, e.g. context='large'"
        ) from error
