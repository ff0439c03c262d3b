"""CRF-RNN: Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015.

A fully connected CRF whose mean-field steps are the last layer of a network and are trained with it: behind any network by
`with_crf_rnn`, and as the authors had it, behind FCN-8s, by `crf_rnn`. Numbers and layers' names are those of torrvision/crfasrnn.
"""

import keras

from kerasseg.backbones.building import crop_alike, image_input, network, preprocess, with_weights
from kerasseg.backbones.grafting import ancestors, layer_of, sources
from kerasseg.backbones.vgg import load_vgg16_classifier, trunk_padding, vgg16
from kerasseg.crf import MeanField
from kerasseg.errors import KerassegError
from kerasseg.layers import BilinearInitializer, Conv2D, CropLike, MinimumSize, Preprocessing, crop_offset
from kerasseg.tables import did_you_mean

# The authors' files write score-fr, whose output they call score, score-pool4 and score-pool3.
ALIASES = {r"score-(.+)": r"score_\1", r"score": "score_fr"}
# The name under which the published weights of the CRF lie.
LAYER = "inference1"
# A size that every network takes, but for those with a larger smallest one: they say so.
_PROBE = (448, 480)


def with_crf_rnn(
    model: keras.Model,
    *,
    iterations: int = 10,
    training_iterations: int | None = 5,
    theta_alpha: float = 160.0,
    theta_beta: float = 3.0,
    theta_gamma: float = 3.0,
    bilateral_weight=5.0,
    spatial_weight=3.0,
    output: str | None = None,
    image: str | None = None,
) -> keras.Model:
    """Puts a CRF-RNN behind any network: a fully connected CRF that sees the image, and whose weights train with the network.

    It is the last layer, `inference1`, a `kerasseg.crf.MeanField` in the authors' form: kernel weights and compatibility are full
    matrices between classes, all of them trained; kernels are normalised per pixel after filtering. Its colours are what the
    network's own preprocessing makes of the image where that only reorders and centres (the Caffe families: the authors' layer
    sees BGR with the mean subtracted), else the image. Only differences of colours count.

    Args:
        model: A network whose logits, C channels, have the size of its image, also a built `keras.Sequential`. It stays as it is,
            and shares its layers with the new one.
        iterations: Mean-field steps outside of training.
        training_iterations: The same in training; `None`: as `iterations`. The weights do not depend on it.
        theta_alpha: Standard deviation of the bilateral kernel along the image, in pixels.
        theta_beta: Its standard deviation of each colour channel, on the scale 0–255.
        theta_gamma: Standard deviation of the spatial kernel, in pixels.
        bilateral_weight: First weights of the bilateral kernel: a number w for w on the diagonal, or an array `(C, C)`.
        spatial_weight: The same of the spatial kernel.
        output: Of a network with several outputs, the name of the one that gets the CRF; by default the first, which is the one
            that evaluation looks at. The others stay as they are.
        image: Of a network with several inputs, the name of the one that gives the colours; by default the first. If it has a
            fourth channel (depth), the first three are the colours.
    Returns:
        A `keras.Model` of the same inputs, outputs, name and layers, and `inference1`. Its logits, `(B, H, W, C)` float32, are not
        normalised: their softmax is the marginal distribution. Open a file of it with `kerasseg.load_model`, or import
        `kerasseg.crf.MeanField` before `keras.models.load_model`.
    Raises:
        KerassegError: If that is no such network, or has a CRF-RNN already.
    Reference:
        Zheng et al. 2015, arXiv:1502.03240, §4 and §5; torrvision/crfasrnn, TVG_CRFRNN_new_deploy.prototxt.
    Example:
        >>> model = kerasseg.with_crf_rnn(kerasseg.models.MODELS["dilation8"](21))
    """
    model = _as_graph(model)
    name, logits = _unaries(model, output)
    picture = _picture(model, image)
    _check_size(model, name, picture)
    layer = MeanField(
        *(iterations, theta_alpha, theta_beta, theta_gamma, bilateral_weight, spatial_weight),
        training_iterations=training_iterations,
        kernel_weights="matrix",
        compatibility="matrix",
        normalization="after",
        trainable=True,
        name=LAYER,
    )
    x = layer([logits, _colours(model, picture)])
    return keras.Model(model.input, x if name is None else {**model.output, name: x}, name=model.name)


def _as_graph(model):
    """The network as Keras's functional models are, which know their input and output."""
    try:
        outputs = model.outputs if isinstance(model, keras.Model) else None
    except (AttributeError, ValueError):
        # What a keras.Sequential says before it is built.
        outputs = None
    if not outputs:
        raise KerassegError(f"with_crf_rnn received {model!r}: expected a built keras.Model, e.g. with_crf_rnn(fcn8s(21))")
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], outputs[0], name=model.name)
    return model


def _unaries(model, output: str | None):
    """The name of the output that gets the CRF, `None` where there is but one without a name, and the output."""
    if any(isinstance(layer, MeanField) for layer in model.layers):
        raise KerassegError(f"{model.name} has a CRF already: with_crf_rnn expects a network without, e.g. fcn8s(21)")
    if isinstance(model.output, dict):
        name = next(iter(model.output)) if output is None else output
        if name not in model.output:
            raise KerassegError(f"output='{name}': {model.name} has no such output: {did_you_mean(str(name), model.output)}")
        logits = model.output[name]
    elif output is not None or len(model.outputs) != 1:
        count = len(model.outputs)
        advice = "omit output" if count == 1 else "give them names: keras.Model(inputs, {'first': …})"
        raise KerassegError(f"output={output!r}: {model.name} has {count} output{'s' * (count > 1)} without names: {advice}")
    else:
        name, logits = None, model.outputs[0]
    if len(logits.shape) != 4 or logits.shape[-1] is None:
        raise KerassegError(f"{model.name} gives shape {logits.shape}: with_crf_rnn expects logits (B, H, W, C)")
    return name, logits


def _picture(model, image: str | None):
    """The input that the colours are taken from."""
    inputs = {tensor.name: tensor for tensor in model.inputs}
    name = next(iter(inputs)) if image is None else image
    if name not in inputs:
        raise KerassegError(f"image='{name}': {model.name} has no such input: {did_you_mean(str(name), inputs)}")
    shape = inputs[name].shape
    if len(shape) != 4 or shape[-1] not in (3, 4):
        raise KerassegError(
            f"the input '{name}' of {model.name} has shape {tuple(shape)}: with_crf_rnn expects an image (B, H, W, 3), or with "
            "depth as a fourth channel"
        )
    return inputs[name]


def _check_size(model, name: str | None, picture) -> None:
    """Refuses logits at a stride of their own: how to bring them to the image is the network's business."""
    size = tuple(picture.shape[1:3])
    if None in size:
        for layer in model.layers:
            if isinstance(layer, MinimumSize):
                size = tuple(layer.fitting(given or side) for given, side in zip(size, _PROBE, strict=True))
        size = tuple(given or side for given, side in zip(size, _PROBE, strict=True))
    shapes = keras.tree.map_structure(lambda tensor: (1, *size, tensor.shape[-1]), model.input)
    try:
        shapes = model.compute_output_shape(shapes)
    except ValueError:
        # Too small an image for somebody's own network: the CRF compares the sizes when it runs.
        return
    height, width = (shapes if name is None else shapes[name])[1:3]
    if any(side not in (None, given) for side, given in zip((height, width), size, strict=True)):
        raise KerassegError(
            f"{model.name} gives logits of {height}x{width} for an image of {size[0]}x{size[1]}: with_crf_rnn expects them at its "
            "size; build the network with upsample_logits=True, and where it has a margin with margin='reflect'"
        )


def _colours(model, picture):
    """What the CRF compares: the image, or what the network sees of it where the channels keep their unit."""
    for tensor in ancestors(model.outputs):
        layer = layer_of(tensor)
        if isinstance(layer, Preprocessing) and set(layer.scale) == {1.0}:
            (source,) = sources(tensor)
            if isinstance(layer_of(source), MinimumSize):
                (source,) = sources(source)
            if source is picture:
                picture = tensor
                break
    if picture.shape[-1] == 3:
        return picture
    return Preprocessing((0, 1, 2), (0.0,) * 3, (1.0,) * 3, name="crf_colours")(picture)


def _score(x, channels: int, name: str):
    """Scores classes by a 1×1 convolution; zero at first, as FCN's are: the authors' come from a trained FCN-8s."""
    return Conv2D(channels, 1, kernel_initializer="zeros", name=name)(x)


def _upsample(x, kernel_size: int, strides: int, name: str, **arguments):
    """Upsamples by a dense kernel that begins bilinear; Caffe's filler of that name, in the authors' file, mixes the classes."""
    arguments = {"use_bias": False, "kernel_initializer": BilinearInitializer(), **arguments}
    return keras.layers.Conv2DTranspose(x.shape[-1], kernel_size, strides, name=name, **arguments)(x)


@network(aliases=ALIASES)
def crf_rnn(
    num_classes: int = 21,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    padding: str = "authors",
    dropout_rate: float = 0.5,
    iterations: int = 10,
    training_iterations: int | None = 5,
) -> keras.Model:
    """Builds CRF-RNN: FCN-8s as it was first released, and an unrolled CRF behind it.

    The unary logits are the layer `coarse`. Unlike `fcn8s`, all three upsampling kernels are dense, the first has a bias, and the
    last does not train; the layers' names are those of the authors' file.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, 3)`, `None` where any size shall do.
        preprocessing: Preset of `kerasseg.layers.PREPROCESSING`, mapping, or `None` for input already as conv1_1 expects it.
        weights: `None`, `"imagenet"` (VGG16), or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the scores.
        padding: `"authors"`: 100 zeros around the image, fc6 unpadded. `"same"`: no border, fc6 padded; the same weights,
            several times cheaper on small images.
        dropout_rate: Share of fc6's and fc7's outputs dropped in training.
        iterations: Mean-field steps outside of training.
        training_iterations: The same in training; `None`: as `iterations`.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, 3)`, any size, to float32 logits `(B, H, W, num_classes)`, whose
        softmax is the marginal distribution. Score layers start at zero, and so does the layer `coarse`.
    Raises:
        KerassegError: If an argument has no meaning for this network, or the weights do not fit.
    Reference:
        Zheng et al. 2015, arXiv:1502.03240, §5 and §6; torrvision/crfasrnn, TVG_CRFRNN_COCO_VOC.prototxt and, for the layers,
        TVG_CRFRNN_new_deploy.prototxt.
    """
    image = image_input(input_shape)
    levels = vgg16(
        preprocess(image, preprocessing), width_multiplier=width_multiplier, dropout_rate=dropout_rate, **trunk_padding(padding)
    )
    x = _upsample(_score(levels["fc7"], num_classes, "score_fr"), 4, 2, "score2", use_bias=True)
    x = keras.layers.Add(name="score_fused")(crop_alike(x, _score(levels["pool4"], num_classes, "score_pool4")))
    x = _upsample(x, 4, 2, "score4")
    x = keras.layers.Add(name="score_final")(crop_alike(x, _score(levels["pool3"], num_classes, "score_pool3")))
    x = _upsample(x, 16, 8, "upsample", dtype="float32", trainable=False)
    x = CropLike(crop_offset(x, image), dtype="float32", name="coarse")([x, image])
    model = with_crf_rnn(keras.Model(image, x, name="crf_rnn"), iterations=iterations, training_iterations=training_iterations)
    return with_weights(model, weights, load_vgg16_classifier)
