"""DeepLab v2 (Chen, Papandreou, Kokkinos, Murphy & Yuille 2018), without its CRF.

Layer names, fillers and geometry are those of the authors' files deeplab_v2_vgg16 and deeplab_v2_resnet101.
"""

from collections.abc import Sequence

import keras

from kerasseg.backbones.building import image_input, network, preprocess, whole_numbers, with_weights
from kerasseg.backbones.decimation import load_decimated_vgg16
from kerasseg.backbones.resnet import resnet
from kerasseg.backbones.resnet_weights import load_resnet_imagenet
from kerasseg.backbones.vgg import Fc6, fully_connected_atrous, vgg16_atrous
from kerasseg.errors import KerassegError
from kerasseg.layers import AlignedResize, AlignedResizeLike, Conv2D, CropLike, PadToGrid

ATROUS_RATES = (6, 12, 18, 24)
# Scores carry the name of the experiment: fc8_EXP_1, fc8_voc12_1.
VGG_ALIASES = {r"fc8_.+_(\d+)": r"fc8_voc12_\1"}
# The files repeat every layer for the scales 0.5 and 0.75, and keep the factor and shift of a batch norm in a layer of its own.
RESNET_ALIASES = {
    r"(.+)_res0(?:5|75)": r"\1",
    r"scale(.+)": r"bn\1",
    r"fc1_.+_c(\d+)": r"fc1_voc12_c\1",
}


def _score(x, num_classes: int, kernel_size: int, rate: int, name: str):
    filler = keras.initializers.RandomNormal(stddev=0.01)
    arguments = {"dilation_rate": rate, "padding": "same", "kernel_initializer": filler}
    return Conv2D(num_classes, kernel_size, name=name, **arguments)(x)


def _sum(scores: list, name: str):
    return keras.layers.Add(name=name)(scores) if len(scores) > 1 else scores[0]


def _to_image(x, image, name: str, suffix: str = ""):
    """Zooms scores by 8 with aligned corners in float32, and cuts off what lies beyond the image."""
    x = AlignedResize(8, dtype="float32", name=f"{name}_interp{suffix}")(x)
    return CropLike(0, dtype="float32", name=f"score{suffix}")([x, image])


def _float32(x, name: str):
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


@network(aliases=VGG_ALIASES)
def deeplab_v2_vgg16(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    atrous_rates: Sequence[int] = ATROUS_RATES,
    upsample_logits: bool = True,
    dropout_rate: float = 0.5,
) -> keras.Model:
    """Builds DeepLab v2 on VGG16: scores of branches with other rates, summed (atrous spatial pyramid pooling).

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"` (VGG16, its fully connected layers thinned out: `kerasseg.backbones.decimation`), or the
            path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        atrous_rates: Rate of fc6 in each branch, in cells of 8 pixels: (6, 12, 18, 24) is ASPP-L, (2, 4, 8, 12) ASPP-S.
        upsample_logits: `True`: logits at the size of the image. `False`: at stride 8, as the training file has them: 321 pixels
            give 41 cells, which meet `label[::8]`. Both take the same weights.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or of
        stride 8.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Chen et al. 2018, arXiv:1606.00915, §3.2 and §4.1.1; Table 3.
    """
    rates = whole_numbers("atrous_rates", atrous_rates, ATROUS_RATES)
    scaling = {"width_multiplier": width_multiplier, "dropout_rate": dropout_rate}
    image = image_input(input_shape)
    pool5 = vgg16_atrous(preprocess(image, preprocessing), width_multiplier=width_multiplier)["pool5"]
    scores = []
    for index, rate in enumerate(rates, start=1):
        x = fully_connected_atrous(pool5, Fc6(3, rate, 1024), suffix=f"_{index}", **scaling)
        scores.append(_score(x, num_classes, 1, 1, f"fc8_voc12_{index}"))
    x = _sum(scores, "fc8_voc12")
    x = _to_image(x, image, "fc8") if upsample_logits else _float32(x, "score")
    return with_weights(keras.Model(image, x, name="deeplab_v2_vgg16"), weights, load_decimated_vgg16)


@network(aliases=RESNET_ALIASES)
def deeplab_v2_resnet101(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    multi_scale: bool = False,
    auxiliary_outputs: bool = False,
    atrous_rates: Sequence[int] = ATROUS_RATES,
    upsample_logits: bool = True,
) -> keras.Model:
    """Builds DeepLab v2 on ResNet-101: four 3×3 score layers with other rates, summed, at one scale or three.

    The authors freeze every batch norm and learn from four losses of equal weight; both are a recipe's matter.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1 expects it.
        weights: `None`, `"imagenet"`, or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        multi_scale: Whether the same layers also score the image at 0.75 and 0.5 of its size, and the largest score counts.
        auxiliary_outputs: Whether to return the scores that the four losses see (with `multi_scale`).
        atrous_rates: Rate of each score layer, in cells of 8 pixels.
        upsample_logits: `True`: logits at the size of the image. `False`: at stride 8 of the image, where 321 pixels give 41
            cells, which meet `label[::8]`; but `scale_05` at stride 8 of its own, half as large, image: 21 cells, which meet
            `label[::16]`. Both take the same weights.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, or of
        stride 8; with `auxiliary_outputs` to a dict of them: `fusion`, `scale_1`, `scale_075`, `scale_05`.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Chen et al. 2018, arXiv:1606.00915, §3.2, §4.1.2 and Table 4; the authors' train.prototxt.
    """
    if auxiliary_outputs and not multi_scale:
        raise KerassegError("auxiliary_outputs=True are the scores of three scales: pass multi_scale=True, too")
    rates = whole_numbers("atrous_rates", atrous_rates, ATROUS_RATES)
    image = image_input(input_shape)
    # Strides in 1×1 convolutions round down: without it, 66 pixels would get 9 cells, as 65 do. Two pixels pool1 makes up for.
    data = PadToGrid(8, slack=2, name="data")(preprocess(image, preprocessing))
    features = resnet(data, depth=101, form="caffe", output_stride=8, width_multiplier=width_multiplier)[8]
    scores = [_score(features, num_classes, 3, rate, f"fc1_voc12_c{index}") for index, rate in enumerate(rates)]
    outputs = {"fusion": _sum(scores, "fc1_voc12")}
    if multi_scale:
        outputs = _three_scales(data, outputs["fusion"], upsample_logits)
    outputs = outputs if auxiliary_outputs else {"fusion": outputs["fusion"]}
    if upsample_logits:
        outputs = {key: _to_image(x, image, "fc1", "" if key == "fusion" else f"_{key}") for key, x in outputs.items()}
    else:
        outputs = {key: _float32(x, "score" if key == "fusion" else f"score_{key}") for key, x in outputs.items()}
    outputs = outputs if auxiliary_outputs else outputs["fusion"]
    return with_weights(keras.Model(image, outputs, name="deeplab_v2_resnet101"), weights, load_resnet_imagenet)


class _OfAnySize(keras.Function):
    """The layers between two tensors, to be walked again from a tensor of another size."""

    def _assert_input_compatibility(self, inputs):
        # Keras demands the size of the first tensor where that is known, although the layers themselves take any.
        pass


def _three_scales(data, scores, upsample_logits: bool) -> dict:
    """Runs the layers between the image and its scores again on two smaller images, and takes the largest scores."""
    single = _OfAnySize(data, scores)
    smaller = {
        "res05": AlignedResize(shrink=2, dtype="float32", name="data_res05")(data),
        "res075": AlignedResize(zoom=3, shrink=4, dtype="float32", name="data_res075")(data),
    }
    # `call` walks the layers, which stay the network's own; calling it would nest them.
    small = {name: single.call(x) for name, x in smaller.items()}
    resized = {name: AlignedResizeLike(dtype="float32", name=f"fc1_voc12_{name}_interp")([x, scores]) for name, x in small.items()}
    fusion = keras.layers.Maximum(dtype="float32", name="fc_fusion")([scores, *resized.values()])
    half = resized["res05"] if upsample_logits else small["res05"]
    return {"fusion": fusion, "scale_1": scores, "scale_075": resized["res075"], "scale_05": half}
