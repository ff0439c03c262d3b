"""ResNet-50, 101 and 152 in the forms in which segmentation networks use them.

`"caffe"`: MSRA's weights as DeepLab v2 has them, a stage's stride in the first 1×1 convolutions. `"slim"`: TensorFlow's and DeepLab
v3's, the stride in the last unit of the block before. `"torchvision"`: the stride in the first 3×3 convolution. The first two are
one function of the same weights wherever the first convolution's map has odd sizes; the third is a network of its own.
`"msra"`: as `"caffe"`, but pool1 without a border, as MSRA published it: 512 pixels are 128 cells at stride 4, not 129.
`"gcn"`: ResNet50-GCN, which is `"msra"` with large separable kernels in res4 and res5.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import keras

from kerasseg.backbones.building import batch_norm as normalize
from kerasseg.backbones.building import conv, one_of, scaled_width, whole_numbers
from kerasseg.backbones.resnet_forms import FORMS, UNITS, Form
from kerasseg.backbones.resnet_weights import load_resnet_imagenet
from kerasseg.backbones.table import Backbone
from kerasseg.errors import KerassegError

# Width of the 3×3 convolutions of block1 … block4; units give four times as many channels. block5 … block7 are as block4.
_WIDTHS = (64, 128, 256, 512)
ROOTS = ("plain", "beta")
BATCH_NORM = {"momentum": 0.9997, "epsilon": 1e-5}


def resnet(
    x,
    *,
    depth: int,
    form: str = "slim",
    output_stride: int = 32,
    width_multiplier: float = 1.0,
    multi_grid: tuple[int, int, int] | None = None,
    last_block: int = 4,
    root: str = "plain",
    batch_norm: Mapping | None = None,
) -> dict:
    """Builds a ResNet without its classifier, dense where its own stride would go beyond the output stride.

    A stride that is left out becomes the rate of every 3×3 convolution behind it, by weights that stay the same. Layer names are
    MSRA's (`res2a_branch2a`, `bn2a_branch2a`), slim's with `_` for `/` and without the scope of the network
    (`block1_unit_1_bottleneck_v1_conv1`, and `…_conv1_BatchNorm`), or torchvision's with `_` for `.` (`layer1_0_conv1`).

    Args:
        x: Preprocessed image, shape `(B, H, W, C)`.
        depth: 50, 101 or 152; form `"gcn"` is 50.
        form: `"caffe"`, `"slim"`, `"torchvision"`, `"msra"` or `"gcn"`, see the module.
        output_stride: 4, 8, 16 or 32 pixels a cell; to 256 where there are further blocks.
        width_multiplier: Scales every width.
        multi_grid: Unit rates of the three units of block4 and each block behind it, which multiply the block's rate.
        last_block: 5, 6 or 7 append copies of block4 in cascade (form `"slim"`), each of which strides by 2 but the last.
        root: `"plain"`: a 7×7 convolution. `"beta"`: three of 3×3 in its place (form `"slim"`).
        batch_norm: Further arguments of `kerasseg.layers.BatchNormalization`, beside or instead of `BATCH_NORM`.
    Returns:
        Feature maps by their stride, each the last at that stride: of the root (2), then of units, the last block's at
        `output_stride`.
    Raises:
        KerassegError: If an argument has no meaning for this form.
    Reference:
        He et al. 2016, Table 1; Chen et al. 2018 (DeepLab v2), §4.1.2; Chen et al. 2017 (DeepLab v3), §3.1, §3.2 and Figure 3;
        Peng et al. 2017 (GCN), §4.1.2 and Figure 5.
    """
    output_stride, multi_grid = _checked(depth, form, output_stride, multi_grid, last_block, root)
    kind, options = FORMS[form], {**BATCH_NORM, **(batch_norm or {})}
    x = _root(x, kind, root, width_multiplier, options)
    levels = {2: x}
    if form == "torchvision":
        # Behind a ReLU, zeros around the map change no maximum.
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    stride, x = 4, kind.pool(name="pool1")(x)
    for block, unit, step, rate in _plan(depth, kind, output_stride, multi_grid, last_block):
        own = _WIDTHS[min(block, 4) - 1]
        kernel, narrow = kind.pairs.get(block, (None, own))
        width, out = (scaled_width(n, width_multiplier) for n in (narrow, 4 * own))
        name, parts = kind.names(depth, block, unit)
        # The copies of block4 get as many channels as they give: they need no projection.
        parts = parts if unit == 1 and block <= 4 else {part: names for part, names in parts.items() if part != "shortcut"}
        strides = {kind.strided if kernel is None else "pair": step}
        x = _unit(x, width, out, name, parts, strides, rate, options, kernel)
        stride *= step
        levels[stride] = x
    return levels


def _checked(depth: int, form: str, output_stride: int, multi_grid, last_block: int, root: str) -> tuple[int, tuple[int, ...]]:
    """Gives output stride and unit rates as numbers of Python."""
    for name, value, known in (("depth", depth, UNITS), ("form", form, FORMS), ("root", root, ROOTS)):
        if value not in known:
            raise KerassegError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
    if form == "gcn" and depth != 50:
        raise KerassegError(f"depth={depth}: form 'gcn' is defined for 50 alone; pass depth=50 (the backbone resnet50_gcn)")
    last_block = one_of("last_block", last_block, (4, 5, 6, 7), 4, ", 4 being ResNet as it is")
    if form != "slim" and (last_block > 4 or root != "plain"):
        raise KerassegError(
            f"last_block={last_block}, root='{root}': a ResNet of form '{form}' has only 4 and 'plain'; "
            "pass form='slim' (the backbones resnet50, resnet101, resnet152)"
        )
    strides = [2**power for power in range(2, last_block + 2)]
    output_stride = one_of("output_stride", output_stride, strides, 16, f" for a ResNet to block{last_block}")
    return output_stride, (1, 1, 1) if multi_grid is None else whole_numbers("multi_grid", multi_grid, (1, 2, 4), count=3)


def _plan(depth: int, kind: Form, output_stride: int, multi_grid, last_block: int) -> Iterator[tuple[int, int, int, int]]:
    """Gives block, unit, stride and rate of every unit in order."""
    stride, rate = 4, 1
    counts = (*UNITS[depth], 3, 3, 3)[:last_block]
    for block, units in enumerate(counts, start=1):
        for unit in range(1, units + 1):
            strided = (unit == units and block < last_block) if kind.stride_last else (unit == 1 and block > 1)
            step = 2 if strided and stride < output_stride else 1
            left_out = 2 if strided and step == 1 else 1
            # A stride in front of the 3×3 convolution spreads that one, too; one in it, only what comes after.
            before, after = (left_out, 1) if kind.strides_before(block) else (1, left_out)
            rate *= before
            yield block, unit, step, rate * (multi_grid[unit - 1] if block >= 4 else 1)
            rate *= after
            stride *= step


def _root(x, kind: Form, root: str, width_multiplier: float, options: Mapping):
    convolutions = (("conv1", 64, 7, 2),)
    if root == "beta":
        convolutions = (("conv1_1", 64, 3, 2), ("conv1_2", 64, 3, 1), ("conv1_3", 128, 3, 1))
    for name, width, kernel, stride in convolutions:
        names = name, kind.batch_norm(name)
        x = _convolve(x, scaled_width(width, width_multiplier), kernel, names, options, stride=stride)
    return x


def _unit(x, width: int, out: int, name: str, parts: Mapping, strides: Mapping[str, int], rate: int, options: Mapping, kernel):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, added; with a kernel, the pair in place of the first two."""
    step = max(strides.values())
    shortcut = x
    if "shortcut" in parts:
        shortcut = _convolve(x, out, 1, parts["shortcut"], options, stride=step, relu=False)
    elif step > 1:
        shortcut = keras.layers.MaxPooling2D(1, step, name=f"{name}_shortcut")(x)
    if kernel is None:
        x = _convolve(x, width, 1, parts["conv1"], options, stride=strides.get("conv1", 1))
        x = _convolve(x, width, 3, parts["conv2"], options, stride=strides.get("conv2", 1), rate=rate)
    else:
        x = _pair(x, width, kernel, name, parts, step, rate, options)
    x = _convolve(x, out, 1, parts["conv3"], options, relu=False)
    x = keras.layers.Add(name=f"{name}_sum")([shortcut, x])
    # The files' blob of this name is what the ReLU, there in place, leaves.
    return keras.layers.Activation("relu", name=name)(x)


def _pair(x, width: int, k: int, name: str, parts: Mapping, stride: int, rate: int, options: Mapping):
    """k×1 and 1×k convolutions beside 1×k and k×1, added, each with batch normalisation and ReLU.

    Each strides and dilates along its own axis. A 1×k convolution, batch normalisation and ReLU work on every row by itself: that
    the k×1 one before them left out every second row changes nothing in the others. So both orders give every second cell of
    every second row of what they give without strides, as one k×k convolution of that stride would.
    """
    down = {"kernel": (k, 1), "stride": (stride, 1), "rate": (rate, 1)}
    across = {key: value[::-1] for key, value in down.items()}
    branches = []
    for branch, steps in (("a", (down, across)), ("b", (across, down))):
        y = x
        for index, step in enumerate(steps, start=1):
            y = _convolve(y, width, names=parts[f"{branch}{index}"], options=options, **step)
        branches.append(y)
    return keras.layers.Add(name=f"{name}_gcn")(branches)


def _convolve(x, width: int, kernel, names: tuple[str, str], options: Mapping, *, stride=1, rate=1, relu=True):
    """Applies a convolution without bias, padded alike on opposite sides, batch normalisation and ReLU.

    Kernel, stride and rate are one number for both axes, or two.
    """
    name, norm = names
    kernel, stride, rate = ((value, value) if isinstance(value, int) else value for value in (kernel, stride, rate))
    plain = {"activation": None, "use_bias": False}
    if max(stride) > 1 and max(rate) > 1:
        # TensorFlow has no convolution with both.
        x = conv(x, width, kernel, name, dilation_rate=rate, **plain)
        x = keras.layers.MaxPooling2D(1, stride, name=f"{name}_subsample")(x)
    elif max(stride) > 1 and max(kernel) > 1:
        x = conv(x, width, kernel, name, strides=stride, padding=(kernel[0] // 2, kernel[1] // 2), **plain)
    else:
        padding = "valid" if max(kernel) == 1 else "same"
        x = conv(x, width, kernel, name, strides=stride, dilation_rate=rate, padding=padding, **plain)
    x = normalize(x, norm, **options)
    return keras.layers.Activation("relu", name=f"{name}_relu")(x) if relu else x


# The authors' released plain ResNets expect RGB minus these means, the beta ones −1 … 1.
_PLAIN_MEAN = {"mean": (123.15, 115.90, 103.06)}


def _entry(depth: int, form: str, preprocessing, *, root: str = "plain", published: bool = False) -> Backbone:
    build = partial(resnet, depth=depth, form=form, root=root)
    return Backbone(build, preprocessing, load_resnet_imagenet if published else None, supports_multi_grid=True)


RESNET50 = _entry(50, "slim", _PLAIN_MEAN, published=True)
RESNET101 = _entry(101, "slim", _PLAIN_MEAN, published=True)
RESNET152 = _entry(152, "slim", _PLAIN_MEAN, published=True)
RESNET50_BETA = _entry(50, "slim", "tf", root="beta")
RESNET101_BETA = _entry(101, "slim", "tf", root="beta")
RESNET152_BETA = _entry(152, "slim", "tf", root="beta")
RESNET50_CAFFE = _entry(50, "caffe", "caffe", published=True)
RESNET101_CAFFE = _entry(101, "caffe", "caffe", published=True)
RESNET152_CAFFE = _entry(152, "caffe", "caffe", published=True)
RESNET50_TORCHVISION = _entry(50, "torchvision", "torch")
RESNET101_TORCHVISION = _entry(101, "torchvision", "torch")
RESNET152_TORCHVISION = _entry(152, "torchvision", "torch")
RESNET50_MSRA = _entry(50, "msra", "caffe", published=True)
RESNET101_MSRA = _entry(101, "msra", "caffe", published=True)
RESNET152_MSRA = _entry(152, "msra", "caffe", published=True)
RESNET50_GCN = _entry(50, "gcn", "caffe")
