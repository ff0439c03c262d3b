"""Dilation (Yu & Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016).

Layer names, fillers and geometry are those of fyu/dilation: the front end, and the networks Dilation7 (KITTI), Dilation8 (VOC,
CamVid) and Dilation10 (Cityscapes), which have a context module behind it. Nothing in the front end is padded. It eats 186 pixels
on each side, which are added by reflection: inside the network, or before it (`margin=None`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras

from kerasseg.backbones.building import image_input, network, preprocess, with_weights
from kerasseg.backbones.context import context_module
from kerasseg.backbones.grafting import chain_to, layer_of, repeat, split_tail
from kerasseg.backbones.vgg import load_vgg16_classifier, vgg16_valid
from kerasseg.crf import MeanField
from kerasseg.errors import KerassegError
from kerasseg.layers import BilinearUpsampling, Conv2D, CropLike, MinimumSize, NullBackground, ReflectionPadding2D, crop_offset

# Pixels that the front end eats on each side.
MARGIN = 186
# The VOC file calls the front end's scores fc-final and the context's layers ct_….
ALIASES = {r"fc-final": "final", r"ct_(.+)": r"ctx_\1"}
# Half of what ctx_upsample's kernel of 16 reaches beyond its stride of 8: Caffe's pad.
_UPSAMPLING_PAD = 4


class _Form(NamedTuple):
    """What all these networks have in common: the arguments of those names."""

    preprocessing: object
    width_multiplier: float
    margin: str | None
    upsample_logits: bool
    dropout_rate: float


def _image_size(x, image, margin: str | None, name: str):
    """Upsamples scores by 8 in float32, and cuts off what lies beyond the image.

    Cell i covers pixels 8i … 8i + 7, the eight places around its own that the authors' deconvolution gives it. Beyond the
    outermost cells' centres all scores fade alike, which changes no label.
    """
    x = BilinearUpsampling(16, 8, dtype="float32", name=name)(x)
    if margin is None:
        return keras.layers.Cropping2D(_UPSAMPLING_PAD, dtype="float32", name="logits")(x)
    return CropLike(crop_offset(x, image), dtype="float32", name="logits")([x, image])


def _scores(image, num_classes: int, form: _Form):
    """The front end: scores at stride 8."""
    if form.margin not in ("reflect", None):
        raise KerassegError(f"margin={form.margin!r}: expected 'reflect', or None for images that carry {MARGIN} pixels already")
    x = image if form.margin else MinimumSize(2 * MARGIN + 1, dtype="float32", name="minimum_size")(image)
    x = preprocess(x, form.preprocessing)
    if form.margin:
        x = ReflectionPadding2D(MARGIN, dtype="float32", name="margin")(x)
    x = vgg16_valid(x, width_multiplier=form.width_multiplier, dropout_rate=form.dropout_rate)
    return Conv2D(num_classes, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.001), name="final")(x)


def _float32(x, name: str = "logits"):
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


def _with_context(arch: str, num_classes: int, input_shape, weights, form: _Form, from_features: bool, **module):
    """Builds the whole network, or the context module alone."""
    if from_features:
        if weights == "imagenet":
            raise KerassegError(f"weights='imagenet' are the front end's: pass weights=None to {arch} with from_features=True")
        features = image_input((*input_shape[:2], num_classes), name="features")
        return with_weights(keras.Model(features, _float32(context_module(features, **module)), name=arch), weights)
    image = image_input(input_shape)
    x = context_module(_scores(image, num_classes, form), **module)
    x = _image_size(x, image, form.margin, "ctx_upsample") if form.upsample_logits else _float32(x)
    return with_weights(keras.Model(image, x, name=arch), weights, load_vgg16_classifier)


@network(aliases=ALIASES)
def dilation_frontend(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="dilation_voc",
    weights=None,
    width_multiplier: float = 1.0,
    margin: str | None = "reflect",
    upsample_logits: bool = True,
    dropout_rate: float = 0.5,
) -> keras.Model:
    """Builds the front end: VGG16 at stride 8, without pool4, pool5 and padding, and scores of all classes.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"` (VGG16), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        margin: `"reflect"`: the image is continued by 186 pixels on each side in the network. `None`: it carries them already,
            as crops of `ReflectionMargin` do. Both take the same weights.
        upsample_logits: `True`: logits at the size of the image, upsampled bilinearly as Dilation10's file does. `False`: at
            stride 8; with `margin=None`, n pixels give ⌈(n − 372) / 8⌉ cells, which meet `label[186:-186:8]`: the losses'
            `label_margin=186`. With a margin of its own, the network trains on upsampled logits.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`. At stride
        8 they are `(B, ⌈H / 8⌉, ⌈W / 8⌉, num_classes)`; with `margin=None`, images have at least 373 pixels, 372 of which do not
        count for the logits, and the size of the image is that of the cells: 8⌈(H − 372) / 8⌉.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §4.
    """
    image = image_input(input_shape)
    x = _scores(image, num_classes, _Form(preprocessing, width_multiplier, margin, upsample_logits, dropout_rate))
    x = _image_size(x, image, margin, "upsample") if upsample_logits else _float32(x)
    return with_weights(keras.Model(image, x, name="dilation_frontend"), weights, load_vgg16_classifier)


@network(aliases=ALIASES)
def dilation8(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="dilation_voc",
    weights=None,
    width_multiplier: float = 1.0,
    context: str | Sequence[int] = "basic",
    margin: str | None = "reflect",
    upsample_logits: bool = True,
    from_features: bool = False,
    dropout_rate: float = 0.5,
    noise: float = 0.01,
) -> keras.Model:
    """Builds Dilation8: the front end and a context module of eight layers, basic (CamVid) or large (VOC).

    Args:
        num_classes: Number of classes, C.
        input_shape: As in `dilation_frontend`; of features, height and width count.
        preprocessing: As in `dilation_frontend`; for CamVid `"dilation_camvid"`.
        weights: As in `dilation_frontend`.
        width_multiplier: Scales the widths of the front end but that of its scores, and none of the context module.
        context: `"basic"` (C channels everywhere), `"large"` (2C, 2C, 4C, 8C, 16C, 32C, 32C), or seven widths, in the paper
            multiples of C; `kerasseg.backbones.context` says how their borders differ.
        margin: As in `dilation_frontend`.
        upsample_logits: As in `dilation_frontend`.
        from_features: Whether to build the context module alone, for stored maps of the front end's layer `final`.
        dropout_rate: As in `dilation_frontend`.
        noise: Deviation of the noise on the identity with which the context module starts.
    Returns:
        As `dilation_frontend`; with `from_features` a `keras.Model` from `features`, `(B, h, w, num_classes)`, to float32 logits
        of the same shape.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §3 and Table 1.
    """
    form = _Form(preprocessing, width_multiplier, margin, upsample_logits, dropout_rate)
    module = {"layers": 8, "context": context, "noise": noise}
    return _with_context("dilation8", num_classes, input_shape, weights, form, from_features, **module)


def _basic_builder(arch: str, layers: int, classes: int, preset: str):
    """Makes the builder of a network with the basic context module: the two differ in its depth."""

    @network(aliases=ALIASES)
    def build(
        num_classes: int = classes,
        *,
        input_shape=(None, None, 3),
        preprocessing=preset,
        weights=None,
        width_multiplier: float = 1.0,
        margin: str | None = "reflect",
        upsample_logits: bool = True,
        from_features: bool = False,
        dropout_rate: float = 0.5,
        noise: float = 0.01,
    ) -> keras.Model:
        form = _Form(preprocessing, width_multiplier, margin, upsample_logits, dropout_rate)
        return _with_context(arch, num_classes, input_shape, weights, form, from_features, layers=layers, noise=noise)

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = _DOC.format(summary=_SUMMARIES[arch])
    return build


_SUMMARIES = {
    "dilation7": "Builds Dilation7 (KITTI): the front end and the basic context module without its layer of rate 16.",
    "dilation10": "Builds Dilation10 (Cityscapes): the front end and the basic context module with further layers of rates 32, 64.",
}
_DOC = """{summary}

    Args:
        num_classes: Number of classes.
        input_shape: As in `dilation_frontend`; of features, height and width count.
        preprocessing: As in `dilation_frontend`.
        weights: As in `dilation_frontend`.
        width_multiplier: Scales the widths of the front end but that of its scores, and none of the context module.
        margin: As in `dilation_frontend`.
        upsample_logits: As in `dilation_frontend`.
        from_features: Whether to build the context module alone, for stored maps of the front end's layer `final`.
        dropout_rate: As in `dilation_frontend`.
        noise: Deviation of the noise on the identity with which the context module starts.
    Returns:
        As `dilation_frontend`; with `from_features` a `keras.Model` from `features`, `(B, h, w, num_classes)`, to float32 logits
        of the same shape.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §3 and appendix; the prototxt files of fyu/dilation.
    """

dilation7 = _basic_builder("dilation7", 7, 11, "dilation_kitti")
dilation10 = _basic_builder("dilation10", 10, 19, "dilation_cityscapes")


def native_network(model: keras.Model) -> tuple[keras.Model, int]:
    """Gives a Dilation network in the form that its authors' test program runs: for tiles that carry their margin.

    It has the layers of `model` themselves, so that it knows what that learns later.

    Args:
        model: A network of this file, or one that `with_context` made of such, with `margin="reflect"`.
    Returns:
        `(native, zoom)`: a network from RGB images that carry the 186 pixels, `(B, h, w, 3)`, to float32 logits, and how many
        pixels lie between two of them. Dilation10, whose file upsamples, gives `(B, h - 372, w - 372, C)` and zoom 1; others
        `(B, ⌈(h - 372) / 8⌉, ⌈(w - 372) / 8⌉, C)` and zoom 8.
    Raises:
        KerassegError: If it is no such network.
    Reference:
        fyu/dilation, predict.py.
    """
    if any(isinstance(layer, MeanField) for layer in model.layers):
        raise KerassegError(f"{model.name} has a CRF-RNN, which sees whole images: the authors' tiles are of networks without")
    scores, tail = split_tail(model.outputs[0])
    chain = [layer_of(tensor) for tensor in chain_to(scores)]
    if len(model.outputs) != 1 or not any(isinstance(layer, ReflectionPadding2D) for layer in chain):
        raise KerassegError(f"{model.name} has no margin of its own: expected a Dilation network built with margin='reflect'")
    image = image_input((None, None, model.inputs[0].shape[-1]))
    x = MinimumSize(2 * MARGIN + 1, dtype="float32", name="minimum_size")(image)
    for layer in chain:
        x = x if isinstance(layer, ReflectionPadding2D) else layer(x)
    upsampling = [layer for layer in map(layer_of, tail) if isinstance(layer, BilinearUpsampling)]
    if model.name != "dilation10" or not upsampling:
        return keras.Model(image, _float32(x), name=model.name), 8
    inner = keras.layers.Cropping2D(MARGIN, dtype="float32", name="inner")(image)
    x = CropLike(_UPSAMPLING_PAD, dtype="float32", name="logits")([upsampling[0](x), inner])
    return keras.Model(image, x, name=model.name), 1


def with_context(
    model: keras.Model, context: str | Sequence[int] = "basic", *, layers: int = 8, noise: float = 0.01
) -> keras.Model:
    """Plugs a context module behind any network, on its scores at their own stride.

    The scores are what stands before the last layers that have no weights and only resize or crop; those follow behind the module
    again. A network that ends otherwise gets the module on its output.

    Args:
        model: A network with one map of scores, C channels. It stays as it is, and shares its layers with the new one.
        context: `"basic"`, `"large"` or seven widths, as in `dilation8`.
        layers: Depth of the module, 7, 8 or 10.
        noise: Deviation of the noise on the identity with which the module starts.
    Returns:
        A `keras.Model` of the same inputs, name and layers, and the module's, `ctx_conv1_1` … `ctx_final`.
    Raises:
        KerassegError: If that is no such network, has a context module already, or there is no such module.
    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, §3 ("can be plugged into existing dense prediction architectures") and §5.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise KerassegError(f"with_context received {model!r}: expected a built keras.Model, e.g. with_context(fcn8s(21))")
    if len(model.outputs) != 1:
        outputs = ", ".join(model.output) if isinstance(model.output, dict) else len(model.outputs)
        raise KerassegError(f"{model.name} has several outputs ({outputs}): with_context expects one, e.g. with_context(fcn8s(21))")
    if len(model.outputs[0].shape) != 4 or model.outputs[0].shape[-1] is None:
        raise KerassegError(f"{model.name} gives shape {model.outputs[0].shape}: with_context expects scores (B, H, W, C)")
    if any(isinstance(layer, NullBackground) for layer in model.layers):
        raise KerassegError(
            f"{model.name} scores its background 0 (null_background), which a context module would undo: build it without"
        )
    if any(isinstance(layer, MeanField) for layer in model.layers):
        raise KerassegError(f"{model.name} has a CRF: call with_context first, and then with_crf_rnn")
    if any(layer.name.startswith("ctx_") for layer in model.layers):
        raise KerassegError(f"{model.name} has a context module already: with_context expects a network without, e.g. fcn8s(21)")
    scores, tail = split_tail(model.outputs[0])
    x = context_module(scores, layers=layers, context=context, noise=noise)
    x = repeat(x, tail) if tail else _float32(x, "ctx_logits")
    return keras.Model(model.input, x, name=model.name)
