import keras
import numpy as np
import pytest
from inference_helpers import Data, make_model, photograph, resized, shrunk, softmax

from kerasseg import KerassegError, predict
from kerasseg.evaluation import Fitted, Inference, WholeImage, evaluate, fit_image, probabilities
from kerasseg.evaluation.fitted import fixed_size, usual_method


def slowly(image, size, scale=1.0):
    """The picture that a network of one size gets, pixel by pixel, and how much of it is the image."""
    scaled = [round(side * scale) for side in image.shape[:2]]
    picture = shrunk(image, *scaled)
    factor = min(1, *(whole / side for whole, side in zip(size, scaled, strict=True)))
    inner = [round(side * factor) for side in scaled]
    picture = shrunk(picture, *inner)
    result = np.zeros((*size, image.shape[2]))
    for row in range(size[0]):
        for column in range(size[1]):
            result[row, column] = picture[bounced(row, inner[0]), bounced(column, inner[1])]
    return result, inner


def bounced(place, length):
    """Walks to and fro between the first and the last pixel."""
    position, step = 0, 1
    for _ in range(place):
        if length > 1 and not 0 <= position + step < length:
            step = -step
        position += step if length > 1 else 0
    return position


@pytest.mark.parametrize(
    ("given", "size", "scale"),
    [
        ((30, 41), (16, 16), 1.0),
        ((9, 5), (16, 16), 1.0),
        ((12, 40), (16, 20), 1.0),
        ((40, 12), (10, 16), 0.5),
        ((1, 1), (3, 4), 1.0),
    ],
)
def test_pictures_are_shrunk_and_continued(given, size, scale):
    image = np.random.default_rng(0).integers(0, 256, (*given, 3), np.uint8)
    expected, _ = slowly(image, size, scale)
    found = fit_image(image, size, scale)
    assert found.shape == (*size, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_fits_is_not_touched():
    image = photograph(8, 8)
    np.testing.assert_array_equal(fit_image(image, (8, 8)), image)
    # Never enlarged: the picture stands in the corner.
    np.testing.assert_array_equal(fit_image(image, (20, 11))[:8, :8], image)


def test_scores_are_cropped_and_resized_back():
    image = keras.Input((8, 12, 3))
    # A network that hands on what it sees: its scores are known.
    network = keras.Model(image, keras.layers.Identity()(image), name="mirror")
    small, large = photograph(6, 9), photograph(33, 20)
    shown = probabilities(network, small, method=Fitted())
    np.testing.assert_allclose(shown, softmax(small.astype("float64")), rtol=1e-5, atol=1e-6)
    fitted, inner = slowly(large, (8, 12))
    assert inner == [8, 5]
    expected = softmax(resized(fitted[:8, :5], 33, 20))
    np.testing.assert_allclose(probabilities(network, large, method=Fitted()), expected, atol=2e-3)


def test_coarse_scores_are_resized_to_the_input_first():
    image = keras.Input((8, 12, 3))
    network = keras.Model(image, keras.layers.AveragePooling2D(4)(image), name="coarse")
    small = photograph(6, 9)
    fitted, _ = slowly(small, (8, 12))
    pooled = fitted.reshape(2, 4, 3, 4, 3).mean((1, 3))
    expected = softmax(resized(pooled, 8, 12)[:6, :9])
    np.testing.assert_allclose(probabilities(network, small, method=Fitted()), expected, atol=1e-4)


def test_of_the_own_size_it_is_the_whole_image():
    fixed, image = make_model(size=(8, 12)), photograph(8, 12)
    for upsampled in (fixed, keras.Model(fixed.input, keras.layers.AveragePooling2D(2)(fixed.output))):
        # At half the scale, coarse scores go to the photograph's size at one step.
        for picture, scales in ((image, (1.0,)), (photograph(16, 24), (0.5,))):
            whole, fitted = (probabilities(upsampled, picture, scales=scales, method=m) for m in (WholeImage(), Fitted()))
            np.testing.assert_array_equal(fitted, whole)
    one, other = (probabilities(fixed, image, method=m, flip=True, scales=(1.0,)) for m in (WholeImage(), Fitted()))
    np.testing.assert_array_equal(other, one)


def test_networks_of_one_size_are_fitted_unasked():
    fixed, free = make_model(size=(8, 12)), make_model()
    assert fixed_size(fixed) == (8, 12) and fixed_size(free) is None
    assert usual_method(fixed) == Fitted() != WholeImage() and usual_method(free) == WholeImage()
    image = photograph(11, 14)
    np.testing.assert_array_equal(predict(fixed, image), predict(fixed, image, method=Fitted()))
    assert predict(fixed, image).shape == (11, 14)
    # Several images of one size go through together.
    assert Fitted.takes_batches and str(Inference(method=Fitted())) == "scales 1; fitted"
    with pytest.raises(KerassegError, match=r"takes images of any size: expected WholeImage\(\)"):
        predict(free, image, method=Fitted())


def test_the_evaluator_fits_unasked():
    fixed, data = make_model(size=(8, 12)), Data()
    for example in data.examples:
        example.label = predict(fixed, example.image, method=Fitted())
    found = evaluate(fixed, data, batch_size=2)
    assert found.scores["pixel_accuracy"] == 1 and found.inference.method == Fitted()


def test_mistakes_are_one_line():
    with pytest.raises(KerassegError, match="expected two whole numbers"):
        fit_image(photograph(), 8)
    with pytest.raises(KerassegError, match=r"image has shape \(8, 8\)"):
        fit_image(np.zeros((8, 8)), (4, 4))
    with pytest.raises(KerassegError, match="leaves 0x0 pixels"):
        fit_image(photograph(), (4, 4), scale=0.01)
    with pytest.raises(KerassegError, match="takes input of shape"):
        predict(make_model(size=(8, 8)), np.zeros((9, 9, 4), np.uint8))
