"""Dilated convolutions stay what they are in a TFLite file of one size."""

from collections import Counter

import keras
import pytest
import tensorflow as tf
from helpers import QUICK, give_random_weights, images
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from kerasseg.export.forms import QUANTIZATIONS, Target
from kerasseg.export.graph import trace
from kerasseg.export.tflite import convert_tflite
from kerasseg.layers import BatchNormalization, Conv2D
from kerasseg.models import MODELS

REARRANGING = {"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"}


@pytest.fixture
def interpreter():
    return pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed: pip install 'kerasseg[lite]'")


def operations(interpreter, content):
    """Counts a file's operations as they stand there, before a delegate takes any over."""
    resolver = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    opened = interpreter.Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    return Counter(operation["op_name"] for operation in opened._get_ops_details())


def dilated(convolution):
    x = image = keras.Input((None, None, 3))
    for index, rate in enumerate((1, 2, 4)):
        x = convolution(4, 3, padding="same", dilation_rate=rate, use_bias=False)(x)
        x = keras.layers.ReLU()(BatchNormalization(name=f"norm{index}")(x))
    return give_random_weights(keras.Model(image, Conv2D(2, 1)(x), name="dilated"))


def convert(model, shape):
    """As `convert_tflite`, but for any shape."""
    traced = tf.function(lambda image: {"logits": model(image, training=False)}, [tf.TensorSpec(shape, name="image")])
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function())
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_a_small_network(interpreter, quantize):
    function, photographs = trace(dilated(Conv2D), Target(input_size=(33, 41))), images((33, 41), block=8)
    counted = operations(interpreter, convert_tflite(function, quantize=quantize, calibration=photographs).content)
    assert counted["CONV_2D"] == 4 and not REARRANGING & set(counted)


def test_the_counter_sees_a_rearranged_image(interpreter):
    # Of unknown size, Keras' layer rearranges the image and rearranges it back, for each of the two rates.
    counted = operations(interpreter, convert(dilated(keras.layers.Conv2D), (1, None, None, 3)))
    assert counted["CONV_2D"] == 4 and counted["SPACE_TO_BATCH_ND"] == counted["BATCH_TO_SPACE_ND"] == 2


# Convolutions of each kernel that the papers' networks are made of, and their largest rate.
NETWORKS = {
    # VGG16's 13, fc6, fc7 and fc8.
    "deeplab_v1_largefov": ({}, 16, 12),
    # ResNet-50's 49 and 4 shortcuts; the pyramid's 1×1, three dilated ones and the pooled one; projection and scores.
    "deeplab_v3": ({"backbone": "resnet50", "output_stride": 16}, 53 + 5 + 2, 18),
}


@pytest.mark.parametrize("arch", NETWORKS)
def test_the_papers_networks(arch, interpreter):
    arguments, count, rate = NETWORKS[arch]
    model = give_random_weights(MODELS[arch](5, **QUICK, **arguments))
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == count and max(layer.dilation_rate[0] for layer in convolutions) == rate
    counted = operations(interpreter, convert_tflite(trace(model, Target(input_size=(65, 97)))).content)
    assert counted["CONV_2D"] == count and not REARRANGING & set(counted), counted
