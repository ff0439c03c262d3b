"""Global Convolutional Networks: large separable kernels on every level of a ResNet, refined at the boundaries.

Peng, Zhang, Yu, Luo & Sun, "Large Kernel Matters: Improve Semantic Segmentation by Global Convolutional Network", CVPR 2017,
arXiv:1703.02719. The authors published no code; names are ours. A number in a name is the level's: n has cells of 2ⁿ pixels, so
that `gcn5` works on ResNet's res5 and `up0` gives pixels.
"""

from collections.abc import Mapping

import keras

from kerasseg.backbones import BACKBONES
from kerasseg.backbones.building import image_input, is_whole, network, preprocess, scaled_width, with_weights
from kerasseg.backbones.table import Backbone
from kerasseg.errors import KerassegError
from kerasseg.layers import BilinearInitializer, Conv2D, FitLike, MinimumSize, PadToGrid

# res5 to res2 (Figure 2 A).
LEVELS = (5, 4, 3, 2)
_STRIDE = 32


@network()
def gcn(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="backbone",
    weights=None,
    width_multiplier: float = 1.0,
    backbone: str = "resnet152_msra",
    head: str = "gcn",
    kernel_size: int = 15,
    stack_width: int | None = None,
    boundary_refinement: bool = True,
    batch_norm_momentum: float = 0.999,
    batch_norm_epsilon: float = 1e-5,
) -> keras.Model:
    """Builds GCN: class scores by large kernels on four levels of a backbone, upsampled, added and refined from coarse to fine.

    Images off the grid are padded at the bottom and right to a multiple of 32 pixels, with zeros behind the preprocessing, and the
    logits cropped. The paper does not state the kernel of its deconvolutions: here 4×4 with stride 2, which begins as bilinear
    interpolation. Nor does it state first weights: the second convolution of every boundary refinement begins at zero, the
    refinement therefore as the identity.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, C)`, `None` where any size shall do.
        preprocessing: `"backbone"` for what the backbone's ImageNet weights expect, a preset of `kerasseg.layers.PREPROCESSING`,
            a mapping, or `None` for input already as the backbone expects it.
        weights: `None`, `"imagenet"` (the backbone's), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but those of `num_classes`.
        backbone: A key of `kerasseg.backbones.BACKBONES`.
        head: What scores each level (Figure 4): `"gcn"`, k×1 and 1×k beside 1×k and k×1, added; `"none"`, a 1×1 convolution;
            `"conv"`, a k×k one; `"stack"`, (k − 1) / 2 of 3×3. None has a nonlinearity.
        kernel_size: k, odd; the paper has 15 for res5's 16 cells of 512 pixels, and 25 for the 25 of 800.
        stack_width: Channels between the convolutions of `"stack"` (m of Table 4), but no more than the level has; `None`: as
            many as the level has.
        boundary_refinement: Whether scores are refined behind each head, each sum and the last two upsamplings.
        batch_norm_momentum: Share of the backbone's moving statistics that a step keeps; Caffe's default.
        batch_norm_epsilon: Added to the variance; backbones of keras.applications keep theirs, which their weights expect.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, any size, to float32 logits `(B, H, W, num_classes)`.
    Raises:
        KerassegError: If the kernel is even, an argument unknown or without meaning for this backbone, or the weights do not fit.
    Reference:
        Peng et al. 2017, §3, Figures 2 and 4, Tables 1 to 5.
    """
    trunk = BACKBONES[backbone]
    _check(head, kernel_size, stack_width)
    options = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    image = image_input(input_shape)
    levels = _levels(image, backbone, trunk, preprocessing, width_multiplier, options)
    if stack_width is not None:
        stack_width = scaled_width(stack_width, width_multiplier)
    arguments = {"head": head, "kernel_size": kernel_size, "stack_width": stack_width}
    x = decoder(levels, num_classes, boundary_refinement=boundary_refinement, **arguments)
    logits = FitLike(dtype="float32", name="logits")([x, image])
    return with_weights(keras.Model(image, logits, name="gcn"), weights, trunk.load_imagenet)


def decoder(
    levels: Mapping, num_classes: int, *, head: str, kernel_size: int, stack_width: int | None = None, boundary_refinement: bool
):
    """Scores four feature maps and brings the scores to the image's size.

    Args:
        levels: Maps of level 5, 4, 3 and 2, each about twice as large as the one before, `(B, h, w, C)`.
        num_classes: Number of classes.
        head: As in `gcn`.
        kernel_size: As in `gcn`.
        stack_width: As in `gcn`, but the width itself.
        boundary_refinement: As in `gcn`.
    Returns:
        float32 logits of four times level 2's height and width.
    Reference:
        Peng et al. 2017, Figure 2.
    """
    refine = _refined if boundary_refinement else lambda x, *_, **__: x
    fused = None
    for level in LEVELS:
        x = refine(_head(levels[level], num_classes, level, head, kernel_size, stack_width), f"level{level}_br")
        if fused is None:
            fused = x
            continue
        fused = FitLike(name=f"up{level}_fit")([_upsampled(fused, level), x])
        fused = refine(keras.layers.Add(name=f"sum{level}")([fused, x]), f"sum{level}_br")
    fused = refine(_upsampled(fused, 1), "up1_br")
    # The last step in float32 whatever the precision policy: its result is what the loss sees.
    return refine(_upsampled(fused, 0, dtype="float32"), "up0_br", dtype="float32")


def _check(head: str, kernel_size: int, stack_width: int | None) -> None:
    if head not in _HEADS:
        raise KerassegError(f"head={head!r}: expected one of {', '.join(map(repr, _HEADS))}")
    smallest = 3 if head == "stack" else 1
    if not is_whole(kernel_size) or kernel_size < smallest or kernel_size % 2 == 0:
        raise KerassegError(
            f"kernel_size={kernel_size!r}: expected an odd number from {smallest} for head='{head}', so that a kernel has a "
            "middle, e.g. kernel_size=15"
        )
    if stack_width is not None and head != "stack":
        raise KerassegError(f"stack_width={stack_width!r} has no meaning for head='{head}': pass head='stack', or stack_width=None")
    if stack_width is not None and (not is_whole(stack_width) or stack_width < 1):
        raise KerassegError(f"stack_width={stack_width!r}: expected a number of channels from 1, or None for the level's own")


def _levels(image, backbone: str, trunk: Backbone, preprocessing, width_multiplier: float, options: Mapping) -> dict:
    """The backbone's maps by their level."""
    if isinstance(preprocessing, str) and preprocessing == "backbone":
        preprocessing = trunk.preprocessing
    x = preprocess(image, preprocessing)
    x = PadToGrid(_STRIDE, remainder=0, dtype="float32", name="padding")(x)
    if trunk.minimum_size > 1:
        # float32 as the image, whatever the precision policy.
        x = MinimumSize(trunk.minimum_size, dtype="float32", name="minimum_size")(x)
    maps = trunk.build(x, output_stride=_STRIDE, width_multiplier=width_multiplier, multi_grid=None, batch_norm=options)
    missing = [2**level for level in LEVELS if 2**level not in maps]
    if missing:
        raise KerassegError(f"backbone='{backbone}' has no map of stride {missing[0]}: pass another, e.g. backbone='resnet50_msra'")
    return {level: maps[2**level] for level in LEVELS}


def _convolve(x, filters: int, kernel: int | tuple[int, int], name: str, **arguments):
    """A convolution with bias, as Caffe's are, that keeps the size; without a nonlinearity, Glorot's weights keep the variance."""
    return Conv2D(filters, kernel, padding="same", name=name, **arguments)(x)


def _separable(x, num_classes: int, level: int, k: int, _):
    first = _convolve(x, num_classes, (k, 1), f"gcn{level}_a1")
    first = _convolve(first, num_classes, (1, k), f"gcn{level}_a2")
    second = _convolve(x, num_classes, (1, k), f"gcn{level}_b1")
    second = _convolve(second, num_classes, (k, 1), f"gcn{level}_b2")
    return keras.layers.Add(name=f"gcn{level}")([first, second])


def _stack(x, num_classes: int, level: int, k: int, width: int | None):
    width = min(width or x.shape[-1], x.shape[-1])
    count = (k - 1) // 2
    for index in range(1, count + 1):
        x = _convolve(x, width if index < count else num_classes, 3, f"stack{level}_{index}")
    return x


_HEADS = {
    "gcn": _separable,
    "none": lambda x, num_classes, level, *_: _convolve(x, num_classes, 1, f"score{level}"),
    "conv": lambda x, num_classes, level, k, _: _convolve(x, num_classes, k, f"large{level}"),
    "stack": _stack,
}


def _head(x, num_classes: int, level: int, head: str, kernel_size: int, stack_width: int | None):
    return _HEADS[head](x, num_classes, level, kernel_size, stack_width)


def _refined(x, name: str, **arguments):
    """Boundary refinement: adds a residual of two 3×3 convolutions."""
    channels = x.shape[-1]
    residual = _convolve(x, channels, 3, f"{name}1", activation="relu", kernel_initializer="he_normal", **arguments)
    residual = _convolve(residual, channels, 3, f"{name}2", kernel_initializer="zeros", **arguments)
    return keras.layers.Add(name=name, **arguments)([x, residual])


def _upsampled(x, level: int, **arguments):
    """Doubles a map's size by a learned deconvolution; "same" is one cell of padding on each side."""
    options = {"use_bias": False, "kernel_initializer": BilinearInitializer(), "padding": "same", "name": f"up{level}"}
    return keras.layers.Conv2DTranspose(x.shape[-1], 4, 2, **options, **arguments)(x)
