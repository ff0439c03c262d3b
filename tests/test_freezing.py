import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import QUICK, give_random_weights, images

from kerasseg import KerassegError
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.models import MODELS
from kerasseg.optimizers import AdamW, CaffeSGD
from kerasseg.training.freezing import freeze


def network():
    """Two blocks with batch normalization, the second inside a model of its own, and scores; no weight is zero or one."""
    inner = keras.Input((None, None, 4))
    block = keras.layers.Conv2D(4, 3, padding="same", name="block2_conv")(inner)
    block = keras.layers.BatchNormalization(name="block2_bn", momentum=0.5)(block)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="block1_conv")(image)
    x = keras.layers.BatchNormalization(name="block1_bn", momentum=0.5)(x)
    x = keras.layers.ReLU(name="block1_relu")(x)
    x = keras.Model(inner, block, name="block2")(x)
    model = keras.Model(image, keras.layers.Conv2D(3, 1, name="score")(x))
    return give_random_weights(model)


def examples(size=(16, 16), classes=3):
    labels = np.random.default_rng(0).integers(0, classes, (4, *size)).astype(np.int32)
    return (images(size, 4) / 255).astype("float32"), labels


def fit(model, optimizer, data, epochs=3):
    model.compile(optimizer, loss=SegmentationCrossEntropy())
    model.fit(*data, batch_size=2, epochs=epochs, verbose=0)


def changed(model, before):
    """Layers that hold a weight which is not bit for bit what it was."""
    pairs = zip(model.weights, before, strict=True)
    return {weight.path.split("/")[-2] for weight, old in pairs if not np.array_equal(np.asarray(weight), old)}


def weights(model):
    return [np.asarray(weight).copy() for weight in model.weights]


@pytest.mark.parametrize(
    ("patterns", "batch_norm", "frozen"),
    [
        ((), False, set()),
        (("block1.*",), False, {"block1_conv", "block1_bn"}),
        (("block1_conv", "score"), False, {"block1_conv", "score"}),
        ((), True, {"block1_bn", "block2_bn"}),
        (("block2",), False, {"block2_conv", "block2_bn"}),
        (("block1.*", "block2_conv"), True, {"block1_conv", "block1_bn", "block2_conv", "block2_bn"}),
    ],
)
@pytest.mark.parametrize(
    "optimizer", [lambda: CaffeSGD(0.05, 0.9, 0.1), lambda: AdamW(0.05, weight_decay=0.1)], ids=["sgd", "adamw"]
)
def test_what_is_frozen_stays_bit_for_bit(patterns, batch_norm, frozen, optimizer):
    model = network()
    names = freeze(model, patterns, batch_norm)
    # A model inside the model is named as one layer.
    assert set(names) == ({"block2"} if patterns == ("block2",) else frozen)
    before, made = weights(model), optimizer()
    fit(model, made, examples())
    # Decay would move a weight without a gradient, and training mode the moving statistics.
    assert changed(model, before) == {"block1_conv", "block1_bn", "block2_conv", "block2_bn", "score"} - frozen
    slots = 1 if isinstance(made, CaffeSGD) else 2
    assert len(made.variables) == 2 + slots * len(model.trainable_variables)
    assert not [v.path for v in made.variables if any(name in v.path for name in frozen)]


def test_a_frozen_batch_norm_uses_its_moving_statistics_in_training():
    model = network()
    layer = model.get_layer("block1_bn")
    # Biased data, so that the batch's own statistics are others.
    x = np.random.default_rng(0).normal(3, 2, (2, 16, 16, 4)).astype("float32")
    gamma, beta, mean, variance = (
        np.asarray(w, "float64") for w in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    expected = gamma * (x - mean) / np.sqrt(variance + layer.epsilon) + beta
    assert np.abs(np.asarray(layer(x, training=True)) - expected).max() > 0.1
    model = network()
    freeze(model, batch_norm=True)
    frozen = model.get_layer("block1_bn")
    np.testing.assert_allclose(np.asarray(frozen(x, training=True)), expected, rtol=1e-4, atol=1e-5)


def test_subclasses_of_batch_norm_are_frozen_too():
    class Other(keras.layers.BatchNormalization):
        pass

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(3, 1, name="score")(Other(name="odd")(image)))
    assert freeze(model, batch_norm=True) == ["odd"]
    assert [variable.path for variable in model.trainable_variables] == ["score/kernel", "score/bias"]


def test_fcn32s_fixed_trains_its_scores_alone():
    model = MODELS["fcn32s"](3, padding="same", preprocessing="torch", **QUICK)
    names = freeze(model, ["conv.*|fc.*"])
    assert len(names) == 15 and "score_fr" not in names
    assert [variable.path for variable in model.trainable_variables] == ["score_fr/kernel", "score_fr/bias"]
    before, optimizer = weights(model), CaffeSGD(0.1, 0.9, 0.01, {".*/bias": (2.0, 0.0)})
    data = images((32, 32), 2).astype("float32"), examples((32, 32))[1][:2]
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = SegmentationCrossEntropy()(data[1], model(data[0], training=True))
        optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]), model.trainable_variables)
    assert changed(model, before) == {"score_fr"}
    assert len([v for v in optimizer.variables if v.path.endswith("velocity")]) == 2


@pytest.mark.parametrize(
    ("patterns", "batch_norm", "message"),
    [
        (
            ("blok1_conv",),
            False,
            r"^freeze='blok1_conv' matches the whole name of no layer with weights: did you mean 'block1_conv'\?$",
        ),
        (("block",), False, "^freeze='block' matches the whole name of no layer"),
        (("block1_relu",), False, "^freeze='block1_relu' matches the whole name of no layer with weights"),
        (("(",), False, r"^freeze='\(' is not a regular expression: "),
        ((".*",), False, "leaves nothing of .* to train"),
        ((".*_conv", "score"), True, "leaves nothing of .* to train"),
    ],
)
def test_what_cannot_be_frozen_is_one_line_and_changes_nothing(patterns, batch_norm, message):
    model = network()
    with pytest.raises(KerassegError, match=message) as raised:
        freeze(model, patterns, batch_norm)
    assert "\n" not in str(raised.value)
    assert all(layer.trainable for layer in model._flatten_layers()) and len(model.trainable_variables) == 10
