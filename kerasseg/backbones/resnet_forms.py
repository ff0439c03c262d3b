"""What tells the forms of ResNet apart: names, the place of the strides, the rounding of pool1, the kernels of the last blocks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import keras

from kerasseg.layers import CeilMaxPooling2D

# Units of block1 … block4.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# ResNet50-GCN (Peng et al. 2017, §4.1.2 and appendix): kernel size and width of the pairs in res4 and res5.
GCN_PAIRS = {3: (5, 85), 4: (7, 128)}


class Form(NamedTuple):
    """What tells the forms apart.

    Args:
        names: `(depth, block, unit)` → the unit's name, and for each of its convolutions `(convolution, batch norm)`.
        batch_norm: Name of a root convolution → name of its batch norm.
        pool: Makes pool1.
        strided: The convolution of a unit that carries its stride: `"conv1"` (1×1) or `"conv2"` (3×3).
        stride_last: Whether a block's last unit carries the stride to the next block, rather than the next block's first.
        pairs: Block → kernel size k and width of the k×1 and 1×k convolutions that stand in its units for the first two.
    """

    names: Callable[[int, int, int], tuple[str, dict[str, tuple[str, str]]]]
    batch_norm: Callable[[str], str]
    pool: Callable[[], keras.layers.Layer]
    strided: str
    stride_last: bool = False
    pairs: Mapping[int, tuple[int, int]] = {}

    def strides_before(self, block: int) -> bool:
        """Tells whether a block's strides lie in front of the convolutions that see more than one cell."""
        return self.strided == "conv1" and block not in self.pairs


def _caffe_names(depth: int, block: int, unit: int):
    lettered = depth == 50 or block in (1, 4)
    letter = "abcdef"[unit - 1] if lettered else "a" if unit == 1 else f"b{unit - 1}"
    where = f"{block + 1}{letter}"
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    return f"res{where}", {part: (f"res{where}_{branch}", f"bn{where}_{branch}") for part, branch in branches.items()}


def _gcn_names(depth: int, block: int, unit: int):
    """MSRA's, and names of our own for the pairs, which have none."""
    name, parts = _caffe_names(depth, block, unit)
    if block in GCN_PAIRS:
        pair = {part: (f"{name}_gcn_{part}", f"bn{name[3:]}_gcn_{part}") for part in ("a1", "a2", "b1", "b2")}
        parts = {"shortcut": parts["shortcut"], **pair, "conv3": parts["conv3"]}
    return name, parts


def _slim_names(_depth: int, block: int, unit: int):
    scope = f"block{block}_unit_{unit}_bottleneck_v1"
    return scope, {part: (f"{scope}_{part}", f"{scope}_{part}_BatchNorm") for part in ("shortcut", "conv1", "conv2", "conv3")}


def _torchvision_names(_depth: int, block: int, unit: int):
    scope = f"layer{block}_{unit - 1}"
    convolutions = {f"conv{n}": (f"{scope}_conv{n}", f"{scope}_bn{n}") for n in (1, 2, 3)}
    return scope, {"shortcut": (f"{scope}_downsample_0", f"{scope}_downsample_1"), **convolutions}


FORMS = {
    "caffe": Form(_caffe_names, "bn_{}".format, partial(CeilMaxPooling2D, 3, 2, 1), "conv1"),
    "slim": Form(_slim_names, "{}_BatchNorm".format, partial(keras.layers.MaxPooling2D, 3, 2, "same"), "conv2", True),
    "torchvision": Form(_torchvision_names, lambda _: "bn1", partial(keras.layers.MaxPooling2D, 3, 2, "valid"), "conv2"),
    "msra": Form(_caffe_names, "bn_{}".format, partial(CeilMaxPooling2D, 3, 2), "conv1"),
    "gcn": Form(_gcn_names, "bn_{}".format, partial(CeilMaxPooling2D, 3, 2), "conv1", pairs=GCN_PAIRS),
}
