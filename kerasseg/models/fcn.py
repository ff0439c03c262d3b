"""Fully Convolutional Networks.

Shelhamer, Long & Darrell, "Fully Convolutional Networks for Semantic Segmentation", PAMI 2017; layer tables and names from
fcn.berkeleyvision.org. Crop offsets are derived from the graph (`kerasseg.layers.crop_offset`), not typed in.
"""

from collections.abc import Mapping
from functools import partial

import keras

from kerasseg.backbones.alexnet import caffenet
from kerasseg.backbones.building import crop_alike, image_input, network, preprocess, with_weights
from kerasseg.backbones.googlenet import googlenet
from kerasseg.backbones.vgg import PADDINGS, load_vgg16_classifier, trunk_padding, vgg16
from kerasseg.errors import KerassegError
from kerasseg.layers import BilinearInitializer, BilinearUpsampling, ChannelScale, Conv2D, CropLike, NullBackground, crop_offset

# Published files: two heads end in _sem and _geo; the 2014 releases write score-fr, score-pool4.
ALIASES = {
    r"(.+)_sem": r"\1_semantic",
    r"(.+)_geo": r"\1_geometric",
    r"score-(.+)": r"score_\1",
}
FUSIONS = {"sum": keras.layers.Add, "max": keras.layers.Maximum}
# Skips from the finest trunk level needed, coarse to fine, with the name of the upsampling before each.
_SKIPS = {32: (), 16: (("pool4", "upscore2"),), 8: (("pool4", "upscore2"), ("pool3", "upscore_pool4"))}
_LAST_UPSAMPLING = {32: "upscore", 16: "upscore16", 8: "upscore8"}
# §4.3: constants that bring the streams to like norms (net.py of voc-fcn8s-atonce).
_AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}


def _score(x, channels: int, name: str):
    """Scores classes by a 1×1 convolution; zero at first, so that a new skip does not disturb (§4.3)."""
    return Conv2D(channels, 1, kernel_initializer="zeros", name=name)(x)


def _upsample_twice(x, name: str, learn: bool):
    if not learn:
        return BilinearUpsampling(4, 2, name=name)(x)
    channels = x.shape[-1]
    return keras.layers.Conv2DTranspose(channels, 4, 2, use_bias=False, kernel_initializer=BilinearInitializer(), name=name)(x)


def _head(levels, image, channels: int, *, suffix: str, stride: int, learn_upsampling: bool, fusion: str, null_background: bool):
    """Scores each level, upsamples and fuses from coarse to fine, and upsamples to the image."""
    channels -= int(null_background)
    x = _score(levels["fc7"], channels, f"score_fr{suffix}")
    for pool, upsampling in _SKIPS[stride]:
        x = _upsample_twice(x, upsampling + suffix, learn_upsampling)
        skip = _score(levels[pool], channels, f"score_{pool}{suffix}")
        x = FUSIONS[fusion](name=f"fuse_{pool}{suffix}")(crop_alike(x, skip))
    if null_background:
        x = NullBackground(name=f"null_background{suffix}")(x)
    return _to_image(x, image, 2 * stride, stride, suffix)


def _to_image(x, image, kernel_size: int, stride: int, suffix: str = ""):
    """Upsamples scores by the fixed bilinear kernel and crops them to the image, in float32."""
    x = BilinearUpsampling(kernel_size, stride, dtype="float32", name=_LAST_UPSAMPLING[stride] + suffix)(x)
    return CropLike(crop_offset(x, image), dtype="float32", name=f"score{suffix}")([x, image])


def _heads(num_classes, head):
    """Builds one head, or one for each entry of a mapping, its key as suffix of the layer names."""
    if isinstance(num_classes, Mapping):
        return {key: head(channels=channels, suffix=f"_{key}") for key, channels in num_classes.items()}
    return head(channels=num_classes, suffix="")


def _check(padding: str, fusion: str = "sum"):
    for name, value, known in (("padding", padding, PADDINGS), ("fusion", fusion, FUSIONS)):
        if value not in known:
            raise KerassegError(f"{name}='{value}': expected one of {', '.join(map(repr, known))}")


def _vgg_builder(arch: str, stride: int, at_once: bool = False):
    """Makes the builder of one network on VGG16: the four share everything but the stride of their finest skip."""

    @network(aliases=ALIASES)
    def build(
        num_classes: int | Mapping[str, int] = 21,
        *,
        input_shape=(None, None, 3),
        preprocessing="caffe",
        weights=None,
        width_multiplier: float = 1.0,
        padding: str = "authors",
        learn_upsampling: bool = True,
        fusion: str = "sum",
        null_background: bool = False,
        dropout_rate: float = 0.5,
        late_fusion: tuple[str, str] | None = None,
    ) -> keras.Model:
        _check(padding, fusion)
        trunk = partial(vgg16, width_multiplier=width_multiplier, dropout_rate=dropout_rate, **trunk_padding(padding))
        head = partial(_head, stride=stride, learn_upsampling=learn_upsampling, fusion=fusion, null_background=null_background)
        if late_fusion is not None:
            if stride != 32 or isinstance(num_classes, Mapping) or null_background or fusion != "sum":
                raise KerassegError(
                    f"late_fusion={late_fusion} is defined for fcn32s with one head, null_background=False and fusion='sum'; "
                    f"received {arch}, num_classes={num_classes}, null_background={null_background}, fusion='{fusion}'"
                )
            model = _late_fusion(num_classes, late_fusion, input_shape, preprocessing, trunk)
        else:
            image = image_input(input_shape)
            early_fusion = input_shape[-1] == 4
            spec = "nyud_rgbd" if early_fusion and preprocessing == "caffe" else preprocessing
            levels = trunk(preprocess(image, spec), first_name="conv1_1_bgrd" if early_fusion else "conv1_1")
            if at_once:
                levels |= {pool: ChannelScale(value, name=f"scale_{pool}")(levels[pool]) for pool, value in _AT_ONCE_SCALES.items()}
            model = keras.Model(image, _heads(num_classes, partial(head, levels, image)), name=arch)
        return with_weights(model, weights, load_vgg16_classifier)

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = _VGG_DOC.format(summary=_SUMMARIES[arch])
    return build


def _late_fusion(num_classes: int, streams, input_shape, preprocessing, trunk) -> keras.Model:
    """Two trunks, one for each input, whose scores are averaged (§5, NYUDv2; nyud-fcn32s-color-hha)."""
    images = {name: image_input(input_shape, name) for name in streams}
    scores = []
    for name, image in images.items():
        x = preprocess(image, _stream_preprocessing(preprocessing, name), f"preprocessing_{name}")
        scores.append(_score(trunk(x, suffix=name)["fc7"], num_classes, f"score_fr{name}"))
    fused = keras.layers.Average(name="score_fused")(scores)
    return keras.Model(images, _to_image(fused, images[streams[0]], 64, 32), name="fcn32s")


def _stream_preprocessing(preprocessing, stream: str):
    if isinstance(preprocessing, Mapping) and stream in preprocessing:
        return preprocessing[stream]
    presets = {"color": "nyud", "hha": "hha"}
    return presets.get(stream, preprocessing) if preprocessing == "caffe" else preprocessing


_SUMMARIES = {
    "fcn32s": "Builds FCN-32s: VGG16's scores at stride 32, upsampled at once.",
    "fcn16s": "Builds FCN-16s: fcn32s and a skip from pool4.",
    "fcn8s": "Builds FCN-8s: fcn16s and a skip from pool3, for training in stages.",
    "fcn8s_atonce": "Builds FCN-8s at-once: fcn8s with scaled skips, for training in one stage.",
}
_VGG_DOC = """{summary}

    Args:
        num_classes: Number of classes; or head name → number, e.g. `{{"semantic": 33, "geometric": 3}}` (SIFT Flow).
        input_shape: `(H, W, C)`, `None` where any size shall do. Four channels are RGB and the logarithm of depth (early fusion).
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"`, or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        padding: `"authors"`: 100 zeros around the image, fc6 unpadded. `"same"`: no border, fc6 padded; the same weights,
            several times cheaper on small images.
        learn_upsampling: Whether upsampling before the last is learned (the paper) or fixed (the authors' files).
        fusion: `"sum"`, or `"max"` (§4.3, found hard to learn).
        null_background: Whether class 0 scores zero everywhere instead of being learned (§6.1).
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
        late_fusion: Names of two inputs, e.g. `("color", "hha")`, each with a trunk of its own (fcn32s only).
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, any size, to float32 logits `(B, H, W, num_classes)`, or a
        dict of them by head. Score layers start at zero, and so do the logits.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Shelhamer et al. 2017, §4; Table 3; for heads and fusions §5.
    """

fcn32s = _vgg_builder("fcn32s", 32)
fcn16s = _vgg_builder("fcn16s", 16)
fcn8s = _vgg_builder("fcn8s", 8)
fcn8s_atonce = _vgg_builder("fcn8s_atonce", 8, at_once=True)


def _truncated_builder(pool: str, stride: int):
    """Makes the builder of one network that scores a pool of the trunk and nothing behind it."""

    @network(aliases=ALIASES)
    def build(
        num_classes: int | Mapping[str, int] = 21,
        *,
        input_shape=(None, None, 3),
        preprocessing="caffe",
        weights=None,
        width_multiplier: float = 1.0,
        padding: str = "authors",
    ) -> keras.Model:
        _check(padding)
        image = image_input(input_shape)
        # The classifier has weights for the layers behind the pool, too, which are no part of the model.
        last = "fc7" if weights == "imagenet" else pool
        x = preprocess(image, preprocessing)
        levels = vgg16(x, width_multiplier=width_multiplier, last=last, **trunk_padding(padding))

        def head(channels, suffix):
            return _to_image(_score(levels[pool], channels, f"score_{pool}{suffix}"), image, 2 * stride, stride, suffix)

        model = keras.Model(image, _heads(num_classes, head), name=f"fcn_{pool}")
        return with_weights(model, weights, lambda _: load_vgg16_classifier(keras.Model(image, levels["fc7"], name=model.name)))

    build.__name__ = build.__qualname__ = f"fcn_{pool}"
    build.__doc__ = _TRUNCATED_DOC.format(pool=pool, stride=stride)
    return build


_TRUNCATED_DOC = """Builds FCN-{pool}: VGG16 cut behind {pool}, its scores at stride {stride} upsampled at once.

    It shows what the skip from {pool} knows by itself. Weights move by name from the other networks on VGG16.

    Args:
        num_classes: Number of classes; or head name → number.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"`, or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        padding: `"authors"`: 100 zeros around the image. `"same"`: no border; the same weights.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or a
        dict of them by head. Score layers start at zero, and so do the logits.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Shelhamer et al. 2017, §4.3 and Table 3.
    """

fcn_pool5 = _truncated_builder("pool5", 32)
fcn_pool4 = _truncated_builder("pool4", 16)
fcn_pool3 = _truncated_builder("pool3", 8)


def _without_skips(image, features, num_classes, name: str) -> keras.Model:
    """Scores a trunk whose maps have a cell on a pixel, and upsamples at once, by the odd kernel that keeps it there."""

    def head(channels, suffix):
        return _to_image(_score(features, channels, f"score_fr{suffix}"), image, 63, 32, suffix)

    return keras.Model(image, _heads(num_classes, head), name=name)


@network(aliases=ALIASES)
def fcn_alexnet(
    num_classes: int | Mapping[str, int] = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    padding: str = "authors",
    dropout_rate: float = 0.5,
) -> keras.Model:
    """Builds FCN-AlexNet: CaffeNet's scores at stride 32, upsampled at once.

    Args:
        num_classes: Number of classes; or head name → number.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1 expects it.
        weights: `None` or the path of a `.keras` or `.weights.h5` file; Keras publishes no AlexNet.
        width_multiplier: Scales every width but that of the scores.
        padding: `"authors"`: 100 zeros around the image. `"same"`: every layer padded to keep its map centred; the same weights.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or a
        dict of them by head.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Shelhamer et al. 2017, §4.1 and Table 1; voc-fcn-alexnet (upsampling kernel 63).
    """
    _check(padding)
    authors = padding == "authors"
    image = image_input(input_shape)
    levels = caffenet(
        preprocess(image, preprocessing),
        width_multiplier=width_multiplier,
        first_padding=100 if authors else 5,
        pool_padding=0 if authors else 1,
        fc6_padding="valid" if authors else "same",
        dropout_rate=dropout_rate,
    )
    return with_weights(_without_skips(image, levels["fc7"], num_classes, "fcn_alexnet"), weights)


@network(aliases=ALIASES)
def fcn_googlenet(
    num_classes: int | Mapping[str, int] = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    padding: str = "authors",
    dropout_rate: float = 0.4,
) -> keras.Model:
    """Builds FCN-GoogLeNet: the scores of Inception v1 at stride 32, upsampled at once.

    The authors never released it. Its upsampling follows their AlexNet's: every map of this trunk, too, has a cell on a pixel,
    which an odd kernel keeps there.

    Args:
        num_classes: Number of classes; or head name → number.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1 expects it.
        weights: `None` or the path of a `.keras` or `.weights.h5` file; Keras publishes no Inception v1.
        width_multiplier: Scales every width but that of the scores.
        padding: `"authors"`: 100 zeros around the image, as in their other nets. `"same"`: the classifier's own 3; the same
            weights, several times cheaper on small images, and the outermost scores fade towards the first rows and columns.
        dropout_rate: Share of the last module's outputs dropped in training.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or a
        dict of them by head. Score layers start at zero, and so do the logits.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Shelhamer et al. 2017, §4.1 and Table 1; Szegedy et al. 2015, Table 1.
    """
    _check(padding)
    image = image_input(input_shape)
    levels = googlenet(
        preprocess(image, preprocessing),
        width_multiplier=width_multiplier,
        first_padding=100 if padding == "authors" else 3,
        dropout_rate=dropout_rate,
    )
    return with_weights(_without_skips(image, levels["pool5"], num_classes, "fcn_googlenet"), weights)
