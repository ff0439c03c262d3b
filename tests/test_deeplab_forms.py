"""The forms of every DeepLab share their weights, in one order: `set_weights` from a form to another is all it takes."""

from itertools import product

import keras
import numpy as np
import pytest
from helpers import QUICK, assert_close, give_random_weights, images

from kerasseg.models import MODELS

BOTH = (True, False)
# What may differ between training and use, and must not matter to the weights: for each network, arguments and their values.
FORMS = {
    ("deeplab_v1",): {"upsample_logits": BOTH, "input_shape": ((None, None, 3), (65, 65, 3))},
    ("deeplab_v1", "multi_scale"): {"upsample_logits": BOTH, "input_shape": ((None, None, 3), (65, 65, 3))},
    ("deeplab_v1_largefov",): {"upsample_logits": BOTH},
    ("deeplab_v1_largefov", "multi_scale"): {"upsample_logits": BOTH},
    ("deeplab_v2_vgg16",): {"upsample_logits": BOTH, "atrous_rates": ((6, 12, 18, 24), (2, 4, 8, 12))},
    ("deeplab_v2_resnet101",): {"upsample_logits": BOTH, "scales": ((), ("multi_scale",), ("multi_scale", "auxiliary_outputs"))},
    ("deeplab_v3", "resnet50"): {"upsample_logits": BOTH, "output_stride": (16, 8), "multi_grid": ("paper", None)},
    ("deeplab_v3", "mobilenet_v2"): {"upsample_logits": BOTH, "output_stride": (32, 16, 8, 4)},
    ("deeplab_v3_cascade", "resnet50"): {"upsample_logits": BOTH, "output_stride": (16, 128)},
}


def build(arch, *kind, scales=(), **arguments):
    for name in (*kind, *scales):
        arguments |= {name: True} if name in ("multi_scale", "auxiliary_outputs") else {"backbone": name}
    width = {"width_multiplier": 1 / 4} if arguments.get("backbone") == "mobilenet_v2" else QUICK
    return MODELS[arch](5, **width, **arguments)


@pytest.mark.parametrize("case", FORMS, ids="-".join)
def test_all_forms_have_their_weights_in_one_order(case):
    names, values = zip(*FORMS[case].items(), strict=True)
    models = [build(*case, **dict(zip(names, choice, strict=True))) for choice in product(*values)]
    orders = [[(weight.path, tuple(weight.shape)) for weight in model.weights] for model in models]
    assert len(orders[0]) > 20
    for order in orders[1:]:
        assert order == orders[0]


def test_the_branch_on_the_image_is_not_resampled():
    model = give_random_weights(MODELS["deeplab_v1_largefov"](5, **QUICK, multi_scale=True))
    names = [layer.name for layer in model.layers if layer.name.endswith("_interp")]
    assert sorted(names) == ["fc8_interp", *(f"pool{n}_interp" for n in (1, 2, 3, 4))]
    score = model.get_layer("data_score")
    assert type(score) is keras.layers.Activation and score.output.dtype == "float32"
    raw, cast = keras.Model(model.input, [model.get_layer("data_ms").output, score.output])(images((33, 35)), training=False)
    np.testing.assert_array_equal(raw, cast)


def test_rates_of_the_last_block_are_the_papers_or_none():
    def rates(**arguments):
        model = build("deeplab_v3", "resnet50", **arguments)
        return [model.get_layer(f"block4_unit_{unit}_bottleneck_v1_conv2").dilation_rate[0] for unit in (1, 2, 3)]

    assert (
        rates()
        == rates(multi_grid="paper")
        == rates(multi_grid=(1, 2, 4))
        == rates(multi_grid=list(np.array([1, 2, 4])))
        == [2, 4, 8]
    )
    assert rates(multi_grid=None) == rates(multi_grid=(1, 1, 1)) == [2, 2, 2]
    check = build("deeplab_v3", "resnet50", output_stride=np.int64(8)).get_layer("aspp_rate_check")
    # NumPy's numbers would not go into a file.
    assert check.rates == (12, 24, 36) and {type(number) for number in (*check.rates, check.output_stride)} == {int}
    # A backbone without units has none, by either word.
    one, other = (build("deeplab_v3", "mobilenet_v2", multi_grid=multi_grid) for multi_grid in ("paper", None))
    other.set_weights(give_random_weights(one).get_weights())
    assert_close(one(images((33, 65)), training=False), other(images((33, 65)), training=False), 1e-6)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sizes_of_maps_that_are_not_resized(output_stride):
    def cells(backbone, side):
        if backbone not in models:
            width = 1 / 16 if backbone.startswith("resnet") else 1
            arguments = {"output_stride": output_stride, "upsample_logits": False, "width_multiplier": width}
            models[backbone] = MODELS["deeplab_v3"](5, backbone=backbone, **arguments)
        return models[backbone].compute_output_shape((1, side, 400, 3))[1]

    models = {}
    for side in (1, 2, 15, 16, 17, 33, 63, 64, 65, 66, 224):
        for backbone in ("resnet50", "resnet50_beta", "resnet50_torchvision"):
            assert cells(backbone, side) == -(-side // output_stride)
        if side % output_stride == 1:
            assert cells("resnet50_caffe", side) == -(-side // output_stride)
        if side > 31 and output_stride == 32:
            assert cells("vgg16", side) == side // 32
