"""Where the cells of a feature map lie in the image, and how much of it they see."""

from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.backbones.atrous import extend
from kerasseg.layers import (
    AlignedResize,
    AlignedResizeLike,
    AtrousPadding2D,
    AtrousPooling2D,
    BatchNormalization,
    BilinearUpsampling,
    CeilMaxPooling2D,
    Conv2D,
    CropLike,
    Geometry,
    coordinate_map,
    crop_offset,
    receptive_field,
)

# The initializer leaves no weight at zero, and no two paths cancel.
POSITIVE = keras.initializers.RandomUniform(0.5, 1.5, seed=0)


def conv(kernel, cls=Conv2D, **arguments):
    widths = () if cls is keras.layers.DepthwiseConv2D else (2,)
    kernels = {"DepthwiseConv2D": ("depthwise",), "SeparableConv2D": ("depthwise", "pointwise")}.get(cls.__name__, ("kernel",))
    return cls(*widths, kernel, use_bias=False, **{f"{name}_initializer": POSITIVE for name in kernels}, **arguments)


def chain(*layers):
    def apply(x):
        for layer in layers:
            x = layer(x)
        return x

    return apply


def side_by_side(*branches):
    return lambda x: keras.layers.Concatenate()([branch(x) for branch in branches])


def back_to_the_size(*layers):
    return lambda x: AlignedResizeLike()([chain(*layers)(x), x])


# Each of them makes another one of the layers' rules fail if that is wrong. Sizes are even and odd.
NETWORKS = {
    "dilated": (60, chain(conv(3, dilation_rate=2, padding="same"), conv(3, strides=2), conv(3, dilation_rate=3))),
    "same-even": (60, chain(conv(3, strides=2, padding="same"), conv(5, strides=2, padding="same"))),
    "same-odd": (61, chain(conv(3, strides=2, padding="same"), keras.layers.MaxPooling2D(3, 2, padding="same"))),
    "same-unknown": (60, chain(conv(1, strides=3, padding="same"), keras.layers.AveragePooling2D(2, 2, padding="same"))),
    "even-kernels": (60, chain(conv(4, padding="same"), conv(2, dilation_rate=3, padding="same"))),
    "average": (60, chain(keras.layers.AveragePooling2D(3, 2), keras.layers.AveragePooling2D(3, 1, padding="same"))),
    "maximum": (61, chain(CeilMaxPooling2D(3, 2, 1), CeilMaxPooling2D(2, 2), keras.layers.MaxPooling2D(3, 1, padding="same"))),
    "depthwise": (60, chain(conv(3, keras.layers.DepthwiseConv2D, dilation_rate=4), conv(5, keras.layers.SeparableConv2D))),
    "borders": (60, chain(keras.layers.ZeroPadding2D(((3, 0), (3, 1))), conv(3), keras.layers.Cropping2D(((2, 1), (2, 0))))),
    "bars": (60, chain(conv((1, 7), padding="same"), conv((7, 1), padding="same"), BatchNormalization())),
    "branches": (60, side_by_side(conv(1), conv(5, padding="same"), chain(conv(1), conv(3, padding="same")))),
    "tents": (60, chain(conv(5, strides=4), BilinearUpsampling(8, 4), conv(2))),
    # Between narrow branches, so that the field is the wide one's in whichever order they are met.
    "branches-of-tents": (
        60,
        chain(conv(5, strides=4), BilinearUpsampling(8, 4), side_by_side(conv(1), conv(7, padding="same"), conv(1))),
    ),
    "odd-tents": (60, chain(conv(5, strides=6), BilinearUpsampling(11, 6), conv(4))),
    "transposed": (60, chain(conv(3, strides=2), conv(5, keras.layers.Conv2DTranspose, strides=2))),
    "transposed-same": (60, chain(conv(2, strides=2), conv(3, keras.layers.Conv2DTranspose, strides=2, padding="same"), conv(3))),
    "nearest": (60, chain(keras.layers.AveragePooling2D(4), keras.layers.UpSampling2D(4), conv(2))),
    "bilinear": (60, chain(keras.layers.AveragePooling2D(4), keras.layers.UpSampling2D(4, interpolation="bilinear"))),
    "zoomed": (61, chain(conv(3, strides=3), AlignedResize(zoom=3), conv(2))),
    "shrunk": (61, chain(AlignedResize(shrink=4, zoom=3), conv(3))),
    "resized": (61, chain(back_to_the_size(conv(3, strides=4, padding="same")), conv(3, padding="same"))),
    "atrous-same-even": (60, chain(conv(3), AtrousPadding2D((5, 5), 2, 2), conv(5, dilation_rate=2))),
    "atrous-same-odd": (61, chain(conv(4), AtrousPadding2D((3, 3), 2, 3), conv(3, dilation_rate=3))),
    "atrous-valid": (60, chain(conv(4), AtrousPadding2D((3, 3), 2, 2, "valid", (2, 2)), conv(3, dilation_rate=2))),
    "atrous-average": (60, chain(conv(3), AtrousPooling2D((3, 3), 2, 4, kind="average"), conv(3))),
    "atrous-average-valid": (60, chain(conv(3), AtrousPooling2D((2, 2), 2, 3, "valid", (1, 1), "average"))),
    "resized-by-no-factor": (60, chain(back_to_the_size(conv(4, strides=7)))),
}
# Between two cells lies a third of one and two of the other: their pixels are not those around the place.
UNEVEN = {
    "branches-of-tents",
    "tents",
    "odd-tents",
    "transposed-same",
    "nearest",
    "bilinear",
    "zoomed",
    "shrunk",
    "resized",
    "resized-by-no-factor",
}


def spans(model, position):
    """First and last row and column of the image that the cell at (position, position) depends on, by its gradient."""
    size, touched = model.input_shape[1], 0
    gradient = tf.function(lambda x: tf.gradients(tf.reduce_sum(model(x, training=False)[0, position, position]), x)[0])
    # Of a maximum, each image moves one pixel alone.
    for seed in range(24 if any("Max" in type(layer).__name__ for layer in model.layers) else 1):
        x = tf.constant(np.random.default_rng(seed).uniform(0.5, 1, (1, *model.input_shape[1:])).astype("float32"))
        touched += np.abs(gradient(x)[0]).sum(axis=-1)
    reached = [np.flatnonzero(touched.any(axis=axis)) for axis in (1, 0)]
    assert all(span[0] > 0 and span[-1] < size - 1 for span in reached), "the field must lie inside the image"
    return [(span[0], span[-1]) for span in reached]


@pytest.mark.parametrize("name", NETWORKS)
def test_fields_and_places_are_those_of_the_gradient(name):
    size, build = NETWORKS[name]
    image = keras.Input((size, size, 2))
    output = build(image)
    model = keras.Model(image, output)
    scale, shift = coordinate_map(output)
    middle = round((size / 2 - shift) / scale)
    largest = [0, 0]
    # A period of every network above; a cell of a coarse map at a time where all are alike.
    for position in range(middle - 3, middle + 4) if scale < 2 else [middle, middle + 1]:
        found = spans(model, position)
        largest = [max(most, last - first + 1) for most, (first, last) in zip(largest, found, strict=True)]
        if name not in UNEVEN:
            assert [(first + last) / 2 for first, last in found] == [scale * position + shift] * 2
    assert receptive_field(output) == tuple(largest)


def test_the_field_of_a_classifier_made_dense():
    image = keras.Input((544, 544, 3))
    trunk = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(None, None, 3))
    for layer in trunk.layers:
        if hasattr(layer, "kernel_size"):
            # Less than averages of what comes in: nothing reaches the six of a ReLU6.
            shape = layer.kernel.shape
            fan_in = np.prod(shape[:2] if isinstance(layer, keras.layers.DepthwiseConv2D) else shape[:3])
            layer.kernel.assign(np.random.default_rng(0).uniform(0.4, 1, shape) / fan_in)
    output = extend(trunk, image, 8)[8]
    # The first convolution; then 2 cells, of the stride before it, for each of the seventeen depthwise ones.
    field = 3 + 2 * (2 * 2 + 4 * 2 + 8 * 3 + 16 * 7 + 32 * 3)
    assert receptive_field(output) == (field, field) == (491, 491)
    scale, shift = coordinate_map(output)
    position = round((272 - shift) / scale)
    middle = scale * position + shift
    assert scale == 8 and spans(keras.Model(image, output), position) == [(middle - 245, middle + 245)] * 2


def test_a_border_of_a_size_that_is_not_known():
    image = keras.Input((None, None, 3))
    assert coordinate_map(AtrousPadding2D((3, 3), 1, 2)(image)) == (1, -2)
    assert coordinate_map(AtrousPadding2D((3, 3), 2, 2, "valid", (2, 2))(image)) == (1, 0)
    for layer in (AtrousPadding2D((3, 3), 2, 2, name="odd"), AtrousPooling2D((3, 3), 2, 2, name="odd")):
        with pytest.raises(ValueError, match="odd: its border depends on sizes that are not known; give the input a fixed size"):
            receptive_field(layer(image))


def test_hand_worked_fields():
    image = keras.Input((None, None, 3))
    # 3 + 2·2 = 7 behind the second, stride 2; four cells on either side of it are 7 + 8·2 = 23.
    x = Conv2D(2, 3, dilation_rate=4)(Conv2D(2, 3)(Conv2D(2, 3, strides=2)(image)))
    assert receptive_field(x) == (23, 23) and coordinate_map(x) == (2, 11)
    # Up to two cells of stride 2, and of these the farther: 23 + 2.
    assert receptive_field(BilinearUpsampling(4, 2)(x)) == (25, 25)
    assert receptive_field(image) == (1, 1)
    bars = Conv2D(2, (1, 7), padding="same")(image)
    assert receptive_field(bars) == (1, 7) and coordinate_map(bars) == (1, 0)


def test_upsampling_by_any_factor_is_exact():
    x = Conv2D(2, 7, strides=7)(keras.Input((None, None, 3)))
    for layer in (AlignedResize(zoom=7), AlignedResize(zoom=14, shrink=2), BilinearUpsampling(13, 7)):
        assert coordinate_map(layer(x))[0] == 1
    assert coordinate_map(AlignedResize(zoom=5, shrink=3)(x))[0] == Fraction(21, 5)
    # 60 pixels are 59 // 4 · 3 + 1 = 43 cells, the last of them on the last pixel.
    assert coordinate_map(AlignedResize(zoom=3, shrink=4)(keras.Input((60, 60, 3)))) == (Fraction(59, 42), 0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [3, 4])
def test_a_mean_spread_out_again_lies_where_it_was(interpolation, size):
    pooled = keras.layers.AveragePooling2D(size)(keras.Input((None, None, 3)))
    spread = keras.layers.UpSampling2D(size, interpolation=interpolation)(pooled)
    assert coordinate_map(spread) == (1, 0)
    # One mean; or that and the next, towards which the pixel lies.
    assert receptive_field(spread) == ((size,) * 2 if interpolation == "nearest" else (2 * size,) * 2)


def test_a_global_pooling_sees_the_whole_image_and_lies_nowhere():
    image = keras.Input((None, None, 3))
    x = Conv2D(2, 3, strides=2)(image)
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pooled")(x)
    for tensor in (pooled, Conv2D(2, 1, name="pooled_conv")(pooled), keras.layers.Reshape((1, 1, 2), name="pooled_again")(pooled)):
        assert receptive_field(tensor) == (None, None)
        with pytest.raises(ValueError, match="pooled.*: each of its cells is made of the whole image"):
            coordinate_map(tensor)
    # Where it meets a map, the result lies where that does: an image pooling, a squeeze and excitation.
    for met in (keras.layers.Concatenate()([AlignedResizeLike()([pooled, x]), x]), keras.layers.Multiply()([x, pooled])):
        assert coordinate_map(met) == (2, 1) and receptive_field(met) == (None, None)
        assert coordinate_map(Conv2D(2, 3)(met)) == (2, 3)


def test_one_cell_spread_out_lies_nowhere_but_sees_what_it_did():
    image = keras.Input((9, 9, 3))
    x = Conv2D(2, 7, padding="same")(image)
    spread = AlignedResizeLike(name="spread")([keras.layers.AveragePooling2D(9)(x), x])
    assert receptive_field(spread) == (15, 15)
    with pytest.raises(ValueError, match="spread: each of its cells is made of the same cell"):
        coordinate_map(spread)
    assert coordinate_map(keras.layers.Add()([x, spread])) == (1, 0)


def test_maps_that_are_not_aligned_do_not_meet():
    image = keras.Input((None, None, 3))
    once, padded = Conv2D(2, 3, name="once")(image), Conv2D(2, 3, padding="same")(image)
    assert coordinate_map(once) == (1, 1) and coordinate_map(padded) == (1, 0)
    assert crop_offset(padded, once) == 1 and crop_offset(once, padded) == -1
    for layer in (keras.layers.Add(name="mixed"), keras.layers.Concatenate(name="mixed")):
        mixed = layer([CropLike(0)([padded, once]), once])
        for tensor in (mixed, Conv2D(2, 1)(mixed), keras.layers.Add()([mixed, mixed])):
            with pytest.raises(ValueError, match="mixed: its inputs lie at different places"):
                coordinate_map(tensor)
            with pytest.raises(ValueError, match="mixed: its inputs lie at different places"):
                crop_offset(tensor, once)
        # -1 to 1 and 0 to 2.
        assert receptive_field(mixed) == (4, 4) and Geometry().strides(mixed) == (1, 1)
    aligned = keras.layers.Add()([CropLike(1)([padded, once]), once])
    assert coordinate_map(aligned) == (1, 1)
    pooled = CeilMaxPooling2D(2, 2)(image)
    for tensor in (once, CeilMaxPooling2D(3, 2)(pooled)):
        with pytest.raises(ValueError, match="do not coincide cell on cell"):
            crop_offset(tensor, pooled)


def test_shifted_maps_that_meet_see_what_both_see():
    image = keras.Input((60, 60, 2))
    moved = keras.layers.ZeroPadding2D(((0, 3), (0, 1)))(keras.layers.Cropping2D(((5, 0), (3, 0)))(image))
    meeting = chain(side_by_side(conv(3), lambda _: moved), conv(3, strides=2))(image)
    # 0 to 2 and 5, or 3; then two cells more.
    assert receptive_field(meeting) == (6 + 2, 4 + 2) and Geometry().strides(meeting) == (2, 2)
    assert spans(keras.Model(image, meeting), 10) == [(20, 27), (20, 25)]


def test_maps_of_different_strides_do_not_meet():
    image = keras.Input((8, 8, 3))
    mixed = keras.layers.Add(name="mixed")([Conv2D(2, 1, strides=2)(image), Conv2D(2, 5)(image)])
    for follow in (coordinate_map, receptive_field, Geometry().strides):
        with pytest.raises(ValueError, match="mixed: its inputs lie at different places"):
            follow(mixed)


def test_what_is_written_as_a_sum_is_one():
    image = keras.Input((None, None, 3))
    x = Conv2D(2, 3)(image)
    assert coordinate_map(x + 3.0) == coordinate_map((x + x) * x) == (1, 1)
    mixed = x + CropLike(0)([Conv2D(2, 3, padding="same")(image), x])
    with pytest.raises(ValueError, match="its inputs lie at different places"):
        coordinate_map(mixed)
    with pytest.raises(ValueError, match="the geometry of Roll is not known"):
        coordinate_map(keras.ops.roll(x, 1, axis=1))


def test_the_map_of_a_deep_residual_network_is_found():
    # Over every path, 2⁶⁰⁰ of them, it would never be; nor by a call within a call for each layer.
    x = Conv2D(2, 3)(keras.Input((None, None, 3)))
    for _ in range(600):
        x = keras.layers.Add()([x, x])
    assert coordinate_map(x) == (1, 1) and receptive_field(x) == (3, 3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.Flatten(name="odd"), "odd: the geometry of Flatten is not known; give it a coordinate_map"),
        (keras.layers.Concatenate(axis=1, name="odd"), "odd: the geometry of Concatenate along axis 1 is not known"),
        (keras.layers.UpSampling2D(2, interpolation="nearest", name="even"), None),
        (keras.layers.UpSampling2D(2, interpolation="bicubic", name="odd"), "odd: the geometry of bicubic interpolation is not"),
        (keras.layers.Conv2D(2, (3, 1), name="odd"), "odd: different geometry in height and width"),
        (keras.layers.Conv2D(2, 3, strides=2, padding="same", name="odd"), "odd: padding='same' with stride 2 shifts"),
        (keras.layers.MaxPooling2D(3, 2, padding="same", name="odd"), "odd: padding='same' with stride 2 shifts"),
    ],
)
def test_unknown_geometry_is_an_error(layer, message):
    image = keras.Input((None, None, 3))
    x = layer([image, image]) if isinstance(layer, keras.layers.Concatenate) else layer(image)
    if message is None:
        assert coordinate_map(x)[0] == Fraction(1, 2)
        return
    for tensor in (x, keras.layers.ReLU()(x)):
        with pytest.raises(ValueError, match=message.replace("odd:", r"\w+:" if "different" in message else "odd:")):
            coordinate_map(tensor)
    # What comes behind a global pooling sees the whole image all the same.
    if len(x.shape) == 4:
        assert receptive_field(keras.layers.GlobalAveragePooling2D()(x)) == (None, None)


def test_sizes_that_are_not_known_are_an_error():
    image = keras.Input((None, None, 3))
    x = AlignedResizeLike(name="odd")([Conv2D(2, 3, strides=2)(image), image])
    with pytest.raises(ValueError, match="odd: its scale depends on sizes that are not known; give the input a fixed size"):
        receptive_field(x)
