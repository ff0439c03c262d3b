"""kerasseg.crf.dense_crf: oracles, pydensecrf's examples, invariants, and what it refuses; the layer says the same."""

import crf_reference as reference
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from helpers import assert_close, images
from test_crf_exact import oracle

from kerasseg import KerassegError
from kerasseg.crf import MeanField, dense_crf, unary_from_labels
from kerasseg.crf.kernels import METHODS
from kerasseg.crf.parameters import NORMALIZATIONS, PARAMETERS, Parameters, parameters_of
from kerasseg.crf.unary import logits_of

# Thetas for which the colours of a small image of blocks matter.
SMALL = Parameters(3.0, 6.0, 40.0, 2.0, 1.5, iterations=4, normalization="symmetric")


def some_logits(size=(6, 7), classes=3, seed=0):
    return np.random.default_rng(seed).normal(0, 1.5, (*size, classes)).astype("float32")


def some_image(size=(6, 7), seed=0):
    return images(size, batch=1, seed=seed, block=3)[0]


def expected_states(image, logits, parameters, compatibility=None, **weights):
    kernels = reference.crf_kernels(image, parameters, **weights)
    flat = logits.reshape(-1, logits.shape[-1])
    return reference.mean_field(flat, kernels, parameters.iterations, compatibility), kernels


@pytest.mark.parity
@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("name", ["deeplabv1-largefov", "crfrnn-train"])
def test_marginals_are_those_of_the_lattice_oracles(oracle_dir, name, normalization):
    image, score, parameters, expected = oracle(oracle_dir, name)
    settings = {"base": parameters, "normalization": normalization}
    received = dense_crf(image, score, settings)
    difference = np.abs(received - expected[f"Q_{normalization}"]).max()
    # Shown by `pytest -rP`.
    print(f"{name} Q_{normalization}: {difference:.1e}")
    assert difference <= 1e-4
    assert (received.argmax(-1) == expected[f"Q_{normalization}"].argmax(-1)).all()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["deeplabv1-largefov", "crfrnn-train"])
def test_the_layer_has_the_oracles_marginals(oracle_dir, name):
    image, score, parameters, expected = oracle(oracle_dir, name)
    for key, settings, bound in (
        ("Q_after", {}, 1e-4),
        ("Q_symmetric", {"normalization": "symmetric"}, 1e-4),
        ("Q_exact", {"method": "exact"}, 1e-5),
    ):
        layer = MeanField(**{**parameters.layer_arguments(), **settings})
        received = tf.nn.softmax(layer([score[None], image[None].astype("float32")]))[0].numpy()
        difference = np.abs(received - expected[key]).max()
        print(f"{name} {key} by the layer: {difference:.1e}")
        assert difference <= bound


@pytest.mark.parametrize("method", METHODS)
def test_one_function_of_the_layer_takes_every_batch_and_size(method):
    layer = MeanField(**SMALL.layer_arguments(), method=method)
    signature = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 3))]
    run = tf.function(lambda logits, photos: tf.nn.softmax(layer([logits, photos])), input_signature=signature)
    for size in ((6, 7), (11, 4)):
        photos = images(size, batch=3, block=3).astype("float32")
        logits = np.stack([some_logits(size, seed=seed) for seed in range(3)])
        together = run(logits, photos).numpy()
        for index in range(3):
            alone = run(logits[index : index + 1], photos[index : index + 1])[0].numpy()
            assert_close(together[index], alone, 1e-5)
            assert_close(alone, dense_crf(photos[index], logits[index], SMALL, method=method), 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "photo"), [("out1", "im1"), ("out1-b", "im1"), ("out2", "im2"), ("out3", "im3")])
def test_pydensecrfs_examples_label_for_label(data_dir, name, photo):
    folder = data_dir / "densecrf_examples"
    image = np.asarray(PIL.Image.open(folder / "pydensecrf" / f"{photo}.png").convert("RGB"))
    with np.load(folder / "reference_q.npz") as stored:
        labels, unary, q, divergences = (stored[f"{name}_{part}"] for part in ("labels", "unary", "Q", "kl"))
    if name == "out1-b":
        # This one was made of an image read as BGR.
        image = image[..., ::-1]
    classes = len(q)
    given = {"num_classes": classes, "gt_prob": 0.7, "unknown": 0 if labels.max() == classes else None}
    np.testing.assert_array_equal(unary_from_labels(labels, **given).transpose(2, 0, 1), unary)
    received, values = dense_crf(image, parameters="pydensecrf", labels_unary=labels, **given, return_divergence=True)
    assert (received.argmax(-1) == q.argmax(0)).all()
    assert np.abs(received.transpose(2, 0, 1) - q).max() <= 1e-4
    assert values.shape == (6,) and values.dtype == np.float64
    np.testing.assert_allclose(values[:5], divergences, rtol=1e-3)
    # What pydensecrf does not return: the value after the last step.
    assert divergences[-2] > divergences[-1] > values[5]


def test_two_pixels_worked_by_hand():
    # Neighbours, at a theta for which the kernel between them is one half; scores with odds of 3 and of 1.
    theta = 1 / np.sqrt(2 * np.log(2))
    logits = np.array([[[np.log(3), 0.0], [0.0, 0.0]]])
    # Q0 = (3/4, 1/4), (1/2, 1/2); with K = (1, 1/2; 1/2, 1) the messages are (1, 1/2), (7/8, 5/8).
    differences = {"none": (1 / 2, 1 / 4), "after": (1 / 3, 1 / 6), "before": (1 / 3, 1 / 6), "symmetric": (1 / 3, 1 / 6)}
    for normalization, (first, second) in differences.items():
        parameters = Parameters(0.0, 9.0, 9.0, 1.0, theta, iterations=1, normalization=normalization)
        received = dense_crf(np.zeros((1, 2, 3)), logits, parameters, method="exact")
        odds = np.exp([np.log(3) + first, second])
        assert_close(received[0, :, 0], odds / (1 + odds), 1e-6)
        assert_close(received.sum(-1), np.ones((1, 2)), 1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_exact_method_is_the_equations(normalization):
    image, logits, costs = some_image(), some_logits(), np.random.default_rng(1).normal(size=(3, 3))
    for compatibility in (None, costs):
        parameters = parameters_of({"base": SMALL, "normalization": normalization})
        states, kernels = expected_states(image, logits, parameters, compatibility)
        received, values = dense_crf(
            image,
            logits,
            parameters,
            compatibility="potts" if compatibility is None else compatibility,
            method="exact",
            return_divergence=True,
        )
        marginals = [reference.softmax(state) for state in states]
        assert_close(received.reshape(-1, 3), marginals[-1], 1e-5)
        divergences = [reference.divergence(q, -states[0], kernels, compatibility) for q in marginals]
        np.testing.assert_allclose(values, divergences, rtol=1e-5)


def test_lattice_is_near_the_exact_method():
    image, logits = some_image((24, 20)), some_logits((24, 20))
    lattice, exact = (dense_crf(image, logits, SMALL, method=method) for method in METHODS)
    assert 1e-6 < np.abs(lattice - exact).mean() < 0.03


def test_no_iterations_and_no_kernels_leave_the_softmax():
    image, logits = some_image(), some_logits()
    expected = reference.softmax(logits)
    assert_close(dense_crf(image, logits, SMALL, iterations=0), expected, 1e-6)
    without = {"base": SMALL, "bilateral_weight": 0, "spatial_weight": 0}
    assert_close(dense_crf(image, logits, without), expected, 1e-6)
    assert np.abs(dense_crf(image, logits, SMALL) - expected).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_labels_permutes_the_marginals(method):
    image, logits, order = some_image(), some_logits(classes=5), [3, 0, 4, 1, 2]
    costs = np.random.default_rng(1).normal(size=(5, 5))
    for compatibility, permuted in (("potts", "potts"), (costs, costs[order][:, order])):
        expected = dense_crf(image, logits, SMALL, method=method, compatibility=compatibility)[..., order]
        received = dense_crf(image, logits[..., order], SMALL, method=method, compatibility=permuted)
        np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_on_a_constant_image_both_kernels_are_spatial(normalization):
    image, logits = np.full((9, 8, 3), 93, np.uint8), some_logits((9, 8))
    parameters = parameters_of({"base": SMALL, "normalization": normalization})
    kernels = [
        (reference.normalized_kernel(reference.gaussian_kernel(reference.position_features((9, 8), theta)), normalization), weight)
        for theta, weight in ((SMALL.theta_alpha, SMALL.bilateral_weight), (SMALL.theta_gamma, SMALL.spatial_weight))
    ]
    expected = reference.softmax(reference.mean_field(logits.reshape(-1, 3), kernels, SMALL.iterations)[-1]).reshape(logits.shape)
    assert_close(dense_crf(image, logits, parameters, method="exact"), expected, 1e-5)
    # In the lattice of five features their plane is cut into other simplices than in that of two.
    if normalization != "none":
        assert np.abs(dense_crf(image, logits, parameters) - expected).mean() < 0.01


def test_lists_are_their_images_one_by_one():
    sizes, seeds = [(6, 7), (11, 4), (6, 7)], range(3)
    photos = [some_image(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    scores = [some_logits(size, seed=seed) for size, seed in zip(sizes, seeds, strict=True)]
    depths = [some_logits(size, 1, seed) for size, seed in zip(sizes, seeds, strict=True)]
    labels = [score.argmax(-1) for score in scores]
    together = dense_crf(photos, scores, SMALL, features=depths)
    assert isinstance(together, list) and [each.shape for each in together] == [(*size, 3) for size in sizes]
    for photo, score, depth, received in zip(photos, scores, depths, together, strict=True):
        np.testing.assert_array_equal(received, dense_crf(photo, score, SMALL, features=depth))
    pairs = dense_crf(photos, parameters=SMALL, labels_unary=labels, num_classes=3, return_divergence=True)
    for photo, label, (received, values) in zip(photos, labels, pairs, strict=True):
        alone = dense_crf(photo, parameters=SMALL, labels_unary=label, num_classes=3, return_divergence=True)
        np.testing.assert_array_equal(received, alone[0])
        np.testing.assert_array_equal(values, alone[1])


def test_further_features_stand_beside_colour_or_in_its_place():
    image, logits, depth = some_image(), some_logits(), np.random.default_rng(3).uniform(0, 5, (6, 7, 1))
    positions = reference.position_features((6, 7), SMALL.theta_alpha)
    colours = image.reshape(-1, 3).T / SMALL.theta_beta
    smooth = reference.crf_kernels(image, SMALL)[1]
    four = np.concatenate([depth, 2 * depth, depth**2, -depth], axis=-1)
    thetas = [0.5, 2.0, 4.0, 8.0]
    for given, rows in (
        ({"image": image, "features": depth, "theta_features": 0.5}, [positions, colours, depth.reshape(1, -1) / 0.5]),
        ({"image": None, "features": depth}, [positions, depth.reshape(1, -1)]),
        ({"image": None, "features": four, "theta_features": thetas}, [positions, four.reshape(-1, 4).T / np.array([thetas]).T]),
    ):
        kernel = reference.normalized_kernel(reference.gaussian_kernel(np.concatenate(rows)), SMALL.normalization)
        kernels = [(kernel, SMALL.bilateral_weight), smooth]
        expected = reference.softmax(reference.mean_field(logits.reshape(-1, 3), kernels, SMALL.iterations)[-1])
        assert_close(dense_crf(logits=logits, parameters=SMALL, method="exact", **given).reshape(-1, 3), expected, 1e-5)
        lattice = dense_crf(logits=logits, parameters=SMALL, **given)
        assert 1e-6 < np.abs(lattice.reshape(-1, 3) - expected).mean() < 0.05


def test_probabilities_are_known_by_their_sums():
    image, logits = some_image(), some_logits()
    probabilities = reference.softmax(logits)
    expected = dense_crf(image, logits, SMALL)
    assert_close(dense_crf(image, probabilities, SMALL), expected, 1e-4)
    assert_close(dense_crf(image, probabilities.astype("float16"), SMALL), expected, 5e-3)
    as_logits = dense_crf(image, probabilities, SMALL, from_logits=True)
    assert np.abs(as_logits - expected).max() > 0.05
    # A probability of 0 is one of 1e-5.
    np.testing.assert_allclose(logits_of(np.array([[[1.0, 0.0]]])), [[[0.0, np.log(1e-5)]]], atol=1e-7)
    np.testing.assert_array_equal(logits_of(np.array([[[2.0, 0.0]]])), [[[2.0, 0.0]]])
    with pytest.raises(KerassegError, match="from_logits=False with values that are no probabilities"):
        dense_crf(image, logits, SMALL, from_logits=False)


def test_labels_have_the_energies_of_their_confidence():
    right, wrong, even = -np.log(0.7), -np.log(0.15), np.log(3)
    expected = np.array([[[right, wrong, wrong], [wrong, wrong, right], [even, even, even]]], "float32")
    # With 0 for the unknown, classes count from 1, as in pydensecrf.
    for labels, unknown in (([[0, 2, 255]], 255), ([[0, 2, -1]], -1), ([[1, 3, 0]], 0)):
        np.testing.assert_allclose(unary_from_labels(np.array(labels), 3, 0.7, unknown), expected, rtol=1e-6)
    np.testing.assert_allclose(unary_from_labels(np.array([[0, 2]]), 3), expected[:, :2], rtol=1e-6)
    np.testing.assert_allclose(unary_from_labels(np.array([[0, 1]]), 1, 0.7, 1), [[[right], [0]]], rtol=1e-6)
    image = some_image((1, 3))
    received = dense_crf(image, parameters=SMALL, labels_unary=np.array([[0, 2, 255]]), num_classes=3, unknown=255)
    np.testing.assert_array_equal(received, dense_crf(image, -expected, SMALL))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "classes"), [((1, 1), 3), ((1, 9), 2), ((6, 7), 1), ((5, 5), 256)])
def test_smallest_and_largest(size, classes, method):
    image, logits = some_image(size), some_logits(size, classes)
    received = dense_crf(image, logits, SMALL, method=method)
    assert received.shape == logits.shape and received.dtype == np.float32
    assert_close(received.sum(-1), np.ones(size), 1e-5)
    if size == (1, 1) and method == "exact":
        # Alone, a pixel hears itself only.
        states, _ = expected_states(image, logits, SMALL)
        assert_close(received.reshape(1, 3), reference.softmax(states[-1]), 1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_black_white_and_noise(normalization):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (20, 16, 3), np.uint8)
    logits = some_logits((20, 16))
    # Noise: hardly two pixels share a vertex, so that a pixel is left with itself and the spatial kernel.
    parameters = {"base": "deeplab_v1", "normalization": normalization}
    for image in (np.zeros_like(noise), np.full_like(noise, 255), noise):
        received = dense_crf(image, logits, parameters)
        assert np.isfinite(received).all()
        assert_close(received.sum(-1), np.ones((20, 16)), 1e-5)
    black, white = (dense_crf(np.full_like(noise, value), logits, parameters, method="exact") for value in (0, 255))
    np.testing.assert_array_equal(black, white)


def test_tiny_thetas_are_right_or_one_line():
    image, logits = some_image((8, 8)), some_logits((8, 8))
    tiny = {"base": SMALL, "theta_alpha": 1e-3, "theta_beta": 1e-3, "theta_gamma": 1e-3}
    # Each pixel with itself alone: a kernel that is the identity.
    states = reference.mean_field(logits.reshape(-1, 3), [(np.eye(64), 5.0)], SMALL.iterations)
    assert_close(dense_crf(image, logits, tiny, method="exact").reshape(-1, 3), reference.softmax(states[-1]), 1e-5)
    # 255,000 cells along each of three axes and more are too many for the lattice's numbers.
    for theta in (1e-1, 1e-2, 1e-3):
        with pytest.raises(KerassegError, match=r"lattice .* theta_beta=3.0$") as caught:
            dense_crf(image, logits, {"base": SMALL, "theta_beta": theta})
        assert "\n" not in str(caught.value)
    for theta in (1e-4, 1e-12, 1e-40):
        with pytest.raises(KerassegError, match=f"theta_gamma={theta:g}: expected at least 0.001"):
            dense_crf(image, logits, {"base": SMALL, "theta_gamma": theta})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logits": None}, "neither of logits and labels_unary"),
        ({"labels_unary": np.zeros((6, 7), int)}, "both of logits and labels_unary"),
        ({"logits": np.full((6, 7, 3), np.nan)}, "126 values that are NaN or infinite"),
        ({"logits": np.full((6, 7, 3), np.inf)}, "126 values that are NaN or infinite"),
        ({"logits": np.zeros((6, 7))}, r"shape \(6, 7\): expected numbers \(H, W, C\)"),
        ({"logits": np.zeros((6, 7, 0))}, "at least one class"),
        ({"logits": np.zeros((5, 7, 2))}, "image of 6x7 with logits or labels of 5x7"),
        ({"image": np.zeros((6, 7))}, r"shape \(6, 7\).*np.stack"),
        ({"image": np.zeros((1, 6, 7, 3))}, "pass several as a list"),
        ({"image": np.full((6, 7, 3), 256)}, "values from 256 to 256: expected RGB 0-255"),
        ({"image": np.full((6, 7, 3), -1.0)}, "expected RGB 0-255"),
        ({"image": np.full((6, 7, 3), np.nan)}, "expected RGB 0-255"),
        ({"image": np.full((6, 7, 3), 0.5)}, r"from 0.5 to 0.5: expected RGB 0-255, such as image \* 255"),
        ({"image": None}, "neither image nor features"),
        ({"features": np.zeros((6, 7, 2))}, "2 positions, 3 colours and 2 more are 7 features: expected at most 6"),
        ({"features": np.zeros((6, 7))}, r"features of shape \(6, 7\): expected \(H, W, K\)"),
        ({"features": np.full((6, 7, 1), np.nan)}, "features hold NaN"),
        ({"features": np.zeros((6, 7, 1)), "theta_features": [1, 2]}, "expected a positive number, or 1 of them"),
        ({"features": np.zeros((6, 7, 1)), "theta_features": 0}, "expected a positive number, or 1 of them"),
        ({"features": np.zeros((5, 7, 1))}, "features of 5x7"),
        ({"features": np.full((6, 7, 1), 3e5), "theta_features": 2}, r"reach 1.5e\+05 times theta_features.*subtract an offset"),
        ({"compatibility": "pots"}, "compatibility 'pots': expected 'potts', or an array of 3x3"),
        ({"compatibility": np.eye(2)}, r"compatibility of shape \(2, 2\)"),
        ({"method": "latice"}, "did you mean 'lattice'?"),
        ({"iterations": -1}, "iterations -1: expected a whole number of at least 0"),
        ({"parameters": "deeplab_v1_largefof"}, "did you mean 'deeplab_v1_largefov'?"),
        ({"image": [np.zeros((6, 7, 3))]}, "lists that do not fit"),
        ({"image": [np.zeros((6, 7, 3))], "logits": [some_logits()] * 2}, r"\(image: 1, logits: 2\)"),
    ],
)
def test_mistakes_are_one_line(given, message):
    arguments = {"image": some_image(), "logits": some_logits(), "parameters": SMALL, **given}
    with pytest.raises(KerassegError, match=message) as caught:
        dense_crf(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([[0, 3]], {}, r"labels hold 3 at 1 pixels: expected 0 to 2 \(num_classes=3\)"),
        ([[-1, 0]], {}, "labels hold -1 at 1 pixels"),
        ([[0, 4]], {"unknown": 0}, "labels hold 4 at 1 pixels: expected 1 to 3"),
        ([[0, 1]], {"unknown": 2}, "unknown=2 is one of 3 classes"),
        ([[0, 1]], {"gt_prob": 1.0}, "gt_prob 1.0: expected a probability between 0 and 1"),
        ([[0, 1]], {"num_classes": None}, "num_classes None"),
        ([[0.5, 1.0]], {}, "labels of type float64: expected integers"),
        ([0, 1], {}, r"labels of shape \(2,\): expected \(H, W\)"),
    ],
)
def test_wrong_labels_are_one_line(labels, given, message):
    with pytest.raises(KerassegError, match=message) as caught:
        unary_from_labels(np.array(labels), **{"num_classes": 3, **given})
    assert "\n" not in str(caught.value)


def test_parameters_are_the_papers():
    # In the order of the fields: bilateral weight, theta_alpha, theta_beta, spatial weight, theta_gamma, iterations, normalization.
    published = {
        "deeplab_v1": (4, 49, 5, 3, 3, 10, "after"),
        "deeplab_v1_largefov": (4, 49, 5, 3, 3, 10, "after"),
        "deeplab_v2_vgg16": (4, 65, 3, 2, 2, 10, "after"),
        "deeplab_v2_resnet101": (4, 67, 3, 3, 1, 10, "after"),
        "deconvnet": (5, 20, 3, 3, 3, 10, "symmetric"),
        "crf_rnn": (5, 160, 3, 3, 3, 10, "after"),
        "pydensecrf": (10, 80, 13, 3, 3, 5, "symmetric"),
    }
    assert set(PARAMETERS) == set(published)
    for name, values in published.items():
        made = PARAMETERS[name]
        assert tuple(made.layer_arguments().values()) == values
        assert made.source and made.rows_first == (name == "pydensecrf")


def test_parameters_of_names_mappings_and_themselves():
    assert parameters_of("crf_rnn") is PARAMETERS["crf_rnn"] and parameters_of(SMALL) is SMALL
    changed = parameters_of({"base": "deeplab_v1", "theta_alpha": 30, "iterations": 5})
    assert (changed.theta_alpha, changed.iterations, changed.bilateral_weight) == (30.0, 5, 4.0)
    assert changed.source.endswith("; changed: theta_alpha, iterations")
    fields = {"bilateral_weight": 1, "theta_alpha": 2, "theta_beta": 3, "spatial_weight": 4, "theta_gamma": 5}
    assert parameters_of(fields) == Parameters(1.0, 2.0, 3.0, 4.0, 5.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("deeplab_v11", "unknown CRF parameters 'deeplab_v11': did you mean 'deeplab_v1'?"),
        ({"base": "deeplab_v1", "theta_alfa": 3}, "unknown CRF parameter 'theta_alfa': did you mean 'theta_alpha'?"),
        ({"theta_alpha": 3}, "without bilateral_weight, theta_beta, spatial_weight, theta_gamma"),
        ({"base": "deeplab_v1", "theta_beta": 0}, "theta_beta=0: expected at least 0.001"),
        ({"base": "deeplab_v1", "theta_beta": "5"}, "theta_beta='5': expected a positive number"),
        ({"base": "deeplab_v1", "bilateral_weight": float("nan")}, "bilateral_weight=nan: expected any finite number"),
        ({"base": "deeplab_v1", "iterations": 2.5}, "iterations 2.5: expected a whole number"),
        ({"base": "deeplab_v1", "normalization": "symetric"}, "did you mean 'symmetric'?"),
        (7, "CRF parameters 7: expected a name such as 'deeplab_v1'"),
    ],
)
def test_wrong_parameters_are_one_line(value, message):
    with pytest.raises(KerassegError, match=message) as caught:
        parameters_of(value)
    assert "\n" not in str(caught.value)
