"""ResNet50-GCN as a classifier, to be trained on images with one label each and then moved into a segmentation network."""

import keras

from kerasseg.backbones.building import image_input, network, preprocess, with_weights
from kerasseg.backbones.resnet import resnet

_STRIDE = 32


@network()
def resnet50_gcn(
    num_classes: int = 1000,
    *,
    input_shape=(None, None, 3),
    preprocessing="caffe",
    weights=None,
    width_multiplier: float = 1.0,
    include_top: bool = True,
    batch_norm_momentum: float = 0.99,
    batch_norm_epsilon: float = 1e-5,
) -> keras.Model:
    """Builds ResNet50-GCN: ResNet-50 with pairs of k×1 and 1×k convolutions in place of the 1×1 and 3×3 ones of res4 and res5.

    Of it no weights are published. Its trunk is the backbone `resnet50_gcn`, with the same layer names:
    `kerasseg.transplant(classifier, MODELS["gcn"](backbone="resnet50_gcn"))` takes along what it learned.

    Args:
        num_classes: Number of classes.
        input_shape: `(H, W, C)`, `None` where any size shall do; the paper trains at 224×224, where k = 7 spans res5's map.
        preprocessing: A preset of `kerasseg.layers.PREPROCESSING`, a mapping, or `None` for input already as conv1 expects it.
        weights: `None`, or the path of a `.keras` or `.weights.h5` file.
        width_multiplier: Scales every width but that of the classes.
        include_top: Whether global average pooling and the classifier follow the last map.
        batch_norm_momentum: Share of the moving statistics that a step keeps; Keras' default.
        batch_norm_epsilon: Added to the variance.
    Returns:
        A `keras.Model` from RGB images of 0–255, `(B, H, W, C)`, to float32 logits `(B, num_classes)`, for
        `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`; without the top, to res5's map `(B, h, w, 2048)`.
    Raises:
        KerassegError: If an argument has no meaning here, or the weights do not fit.
    Reference:
        Peng et al. 2017, §4.1.2, Figure 5 and Table 6; res4 has k = 5 and 85 channels, res5 k = 7 and 128 (appendix).
    """
    image = image_input(input_shape)
    options = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    x = preprocess(image, preprocessing)
    x = resnet(x, depth=50, form="gcn", width_multiplier=width_multiplier, batch_norm=options)[_STRIDE]
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="pool5")(x)
        # MSRA's name where there are a thousand; float32 whatever the precision policy, as all logits here.
        x = keras.layers.Dense(num_classes, dtype="float32", name=f"fc{num_classes}")(x)
    return with_weights(keras.Model(image, x, name="resnet50_gcn"), weights)
