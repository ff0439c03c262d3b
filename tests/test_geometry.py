"""Where the cells of a feature map lie in the image."""

import keras
import pytest

from kerasseg.layers import CeilMaxPooling2D, Conv2D, CropLike, coordinate_map, crop_offset


def test_maps_that_are_not_aligned_do_not_meet():
    image = keras.Input((None, None, 3))
    once, padded = Conv2D(2, 3, name="once")(image), Conv2D(2, 3, padding="same")(image)
    assert coordinate_map(once) == (1, 1) and coordinate_map(padded) == (1, 0)
    assert crop_offset(padded, once) == 1 and crop_offset(once, padded) == -1
    mixed = keras.layers.Add(name="mixed")([CropLike(0)([padded, once]), once])
    with pytest.raises(ValueError, match="mixed: its inputs lie at different places"):
        coordinate_map(mixed)
    aligned = keras.layers.Add()([CropLike(1)([padded, once]), once])
    assert coordinate_map(aligned) == (1, 1)
    pooled = CeilMaxPooling2D(2, 2)(image)
    for tensor in (once, CeilMaxPooling2D(3, 2)(pooled)):
        with pytest.raises(ValueError, match="do not coincide cell on cell"):
            crop_offset(tensor, pooled)


def test_the_map_of_a_deep_residual_network_is_found():
    # Over every path, 2⁶⁰ of them, it would never be.
    x = Conv2D(2, 3)(keras.Input((None, None, 3)))
    for _ in range(60):
        x = keras.layers.Add()([x, Conv2D(2, 3, padding="same")(x)])
    assert coordinate_map(x) == (1, 1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            keras.layers.GlobalAveragePooling2D(keepdims=True, name="odd"),
            "odd: the geometry of GlobalAveragePooling2D is not known",
        ),
        (keras.layers.Conv2D(2, (3, 1), name="odd"), "odd: different geometry in height and width"),
        (keras.layers.Conv2D(2, 3, strides=2, padding="same", name="odd"), "odd: padding='same' with stride 2 shifts"),
    ],
)
def test_unknown_geometry_is_an_error(layer, message):
    with pytest.raises(ValueError, match=message):
        coordinate_map(layer(keras.Input((None, None, 3))))
