"""DeepLab v1 on VGG16 (Chen, Papandreou, Kokkinos, Murphy & Yuille 2015), without its CRF.

Layer names, fillers and geometry are those of the authors' files DeepLab, DeepLab-LargeFOV, DeepLab-MSc and
DeepLab-MSc-LargeFOV. Their training and test files differ in strides, never in weights: `upsample_logits` chooses between them.
"""

import keras

from kerasseg.backbones.building import conv, image_input, network, preprocess, scaled_width, with_weights
from kerasseg.backbones.decimation import load_decimated_vgg16
from kerasseg.backbones.vgg import Fc6, fully_connected_atrous, vgg16_atrous
from kerasseg.layers import AlignedResize, Conv2D, CropLike, Dropout

# fc8 carries the name of the experiment: fc8_EXP, fc8_pascal, fc8_voc12, fc8_coco.
ALIASES = {r"fc8_.+": "fc8_voc12"}
_FC6 = {"deeplab_v1": Fc6(4, 4, 4096), "deeplab_v1_largefov": Fc6(3, 12, 1024)}
# Side branches: where they begin, their stride in the training file, which is the zoom in the test file's place of it, and the
# fillers of their three convolutions, pool3_ms having none.
_BRANCHES = {
    "data": (8, (0.001, 0.001, 0.01)),
    "pool1": (4, (0.001, 0.001, 0.01)),
    "pool2": (2, (0.001, 0.001, 0.01)),
    "pool3": (1, (0.001, 0.001, 0.0)),
    "pool4": (1, (0.001, 0.005, 0.01)),
}
_BRANCH_WIDTH = 128


def _gaussian(deviation: float):
    return keras.initializers.RandomNormal(stddev=deviation) if deviation else "zeros"


def _branch(x, name: str, num_classes: int, stride: int, width_multiplier: float, dropout_rate: float):
    """Scores a level directly, through two layers of 128 channels."""
    width = scaled_width(_BRANCH_WIDTH, width_multiplier)
    fillers = [_gaussian(deviation) for deviation in _BRANCHES[name][1]]
    geometry = {"strides": stride, "padding": 1} if stride > 1 else {}
    x = conv(x, width, 3, f"{name}_conv", kernel_initializer=fillers[0], **geometry)
    x = Dropout(dropout_rate, name=f"drop_{name}_conv")(x)
    x = conv(x, width, 1, f"{name}_fc", kernel_initializer=fillers[1])
    x = Dropout(dropout_rate, name=f"drop_{name}_fc")(x)
    return Conv2D(num_classes, 1, kernel_initializer=fillers[2], name=f"{name}_ms")(x)


def _zoom(x, image, zoom: int, name: str, offset: int = 0):
    """Zooms scores with aligned corners in float32, and cuts off what lies beyond the image."""
    resize = AlignedResize(zoom, name=f"{name}_interp", dtype="float32")
    # The branch on the image has its size already.
    x = (resize if zoom > 1 else keras.layers.Activation("linear", name=f"{name}_score", dtype="float32"))(x)
    # Even where nothing is to be cut off: Keras puts weights in the order of their distance from the end.
    return CropLike(offset, dtype="float32", name=f"{name}_crop")([x, image])


def _fuse(scores, levels, image, num_classes: int, upsample_logits: bool, **branch):
    """Sums the scores of the five branches and of fc8: at the size of the image, or at stride 8."""
    maps = {}
    for name, (stride, _) in _BRANCHES.items():
        x = _branch(levels[name], name, num_classes, 1 if upsample_logits else stride, **branch)
        # Zoomed, the maps at 1/1, 1/2, 1/4, 1/8 and 1/8 meet at the image; strided by as much as is missing to 8, at 1/8.
        maps[name] = _zoom(x, image, 8 // stride, name) if upsample_logits else x
    maps["fc8"] = _zoom(scores, image, 8, "fc8") if upsample_logits else scores
    if not upsample_logits:
        # For sizes that are not 8k + 1 the pooled maps have one cell more, beyond the image.
        first = maps["data"]
        maps = {name: x if x is first else CropLike(0, name=f"{name}_crop")([x, first]) for name, x in maps.items()}
    return keras.layers.Add(dtype="float32", name="fc_fusion")(list(maps.values()))


def _builder(arch: str):
    """Makes the builder of one network: the two differ in the window of their pools and in fc6."""

    @network(aliases=ALIASES)
    def build(
        num_classes: int = 21,
        *,
        input_shape=(None, None, 3),
        preprocessing="caffe",
        weights=None,
        width_multiplier: float = 1.0,
        multi_scale: bool = False,
        upsample_logits: bool = True,
        dropout_rate: float = 0.5,
    ) -> keras.Model:
        scaling = {"width_multiplier": width_multiplier, "dropout_rate": dropout_rate}
        # The multi-scale nets all pool by windows of 3, so that their maps can be summed cell on cell.
        shifted = arch == "deeplab_v1" and not multi_scale
        pools = "3x3" if not shifted else "2x2" if upsample_logits else "2x2_train"
        image = image_input(input_shape)
        data = preprocess(image, preprocessing)
        levels = {"data": data, **vgg16_atrous(data, pools=pools, width_multiplier=width_multiplier)}
        x = levels["pool5"]
        if arch == "deeplab_v1_largefov":
            x = keras.layers.ZeroPadding2D(1, name="pool5a_pad")(x)
            # Caffe counts the border: always by nine.
            x = keras.layers.AveragePooling2D(3, 1, name="pool5a")(x)
        x = fully_connected_atrous(x, _FC6[arch], **scaling)
        x = Conv2D(num_classes, 1, kernel_initializer=_gaussian(0.01), name="fc8_voc12")(x)
        if multi_scale:
            x = _fuse(x, levels, image, num_classes, upsample_logits, **scaling)
        elif upsample_logits:
            # With windows of 2, cell i lies at 8i − 7.5; the authors cut off 7.
            x = _zoom(x, image, 8, "fc8", offset=7 if shifted else 0)
        else:
            x = keras.layers.Activation("linear", dtype="float32", name="score")(x)
        return with_weights(keras.Model(image, x, name=arch), weights, load_decimated_vgg16)

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = _DOC.format(**_TEXTS[arch])
    return build


_TEXTS = {
    "deeplab_v1": {
        "summary": "Builds DeepLab v1 with its first kernel for fc6: 4×4, 4096 channels (the files DeepLab and vgg128).",
        "multi_scale": "pools have windows of 3 instead of 2 then (DeepLab-MSc)",
        "stride": (
            "`False`: at stride 8 as in the training file, whose pool4 has no border: 306 pixels give 39 cells, which meet "
            "`label[1::8]`;\n            from 2×2 pixels"
        ),
        "section": "§3.1, §4.3 for `multi_scale`",
    },
    "deeplab_v1_largefov": {
        "summary": "Builds DeepLab-LargeFOV: fc6 3×3 with rate 12, 1024 channels (20 million parameters).",
        "multi_scale": "DeepLab-MSc-LargeFOV",
        "stride": "`False`: at stride 8, as the training file has them: 321 pixels give 41 cells, which meet `label[::8]`",
        "section": "§3.2 and Table 2; §4.3 for `multi_scale`",
    },
}
_DOC = """{summary}

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"` (VGG16, its fully connected layers thinned out: `kerasseg.backbones.decimation`), or the
            path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        multi_scale: Whether branches on the image and on pool1 … pool4 add their scores; {multi_scale}.
        upsample_logits: `True`: logits at the size of the image, scores zoomed by 8 as in the test file.
            {stride}. Both take the same weights.
        dropout_rate: Share of the outputs of fc6, fc7 and the branches' layers dropped in training.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or of
        stride 8.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, {section}.
    """

deeplab_v1 = _builder("deeplab_v1")
deeplab_v1_largefov = _builder("deeplab_v1_largefov")
