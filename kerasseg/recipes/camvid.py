"""CamVid from scratch on a CPU: no published run, ours to have a real model in minutes."""

from kerasseg.recipes.base import Recipe, Stage
from kerasseg.recipes.crf_rnn import NETWORK

# Square roots of the median-frequency weights over the training images: between none and the full ones, which were not tried.
_CLASS_WEIGHTS = (0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.4, 0.89, 2.52, 2.98)

CAMVID_SMALL = Recipe(
    name="camvid_small",
    arch="fcn8s",
    width_multiplier=0.25,
    # The form without the border of 100 pixels, and input of unit deviation: trained from scratch, on small images.
    arguments={"padding": "same", "preprocessing": "torch", "dropout_rate": 0.0},
    precision="bfloat16",
    data="camvid",
    image_scale=0.5,
    # Most of the test images are another drive in another light.
    random_scale=(0.75, 1.5),
    color_jitter=0.4,
    crop_size=(180, 240),
    flip=True,
    class_weights=_CLASS_WEIGHTS,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="poly",
    iterations=2000,
    batch_size=8,
    checkpoint_every=500,
    validate_every=500,
    # The validation images are one drive, and none of the test's: the last step, at the lowest rate, did better there.
    keep_best=False,
    command="python train.py --recipe camvid_small --data-dir CAMVID",
)
CAMVID_FCN8S = CAMVID_SMALL.override(
    name="camvid_fcn8s",
    image_scale=1.0,
    random_scale=(0.6, 1.3),
    crop_size=(270, 360),
    iterations=3000,
    checkpoint_every=1000,
    validate_every=1000,
    command="python train.py --recipe camvid_fcn8s --data-dir CAMVID",
)
# A quarter of ResNet-50 at output stride 16, for as many CPU-minutes as camvid_small. Crops are of 16k + 1 pixels: the corners of
# map and crop coincide; and as large as that allows: on 17×23 cells the rates 6 and 12 still mean something.
CAMVID_DEEPLAB_V3 = CAMVID_SMALL.override(
    name="camvid_deeplab_v3",
    arch="deeplab_v3",
    backbone="resnet50",
    output_stride=16,
    # The paper's 0.9997 would still hold what the statistics began with.
    arguments={"preprocessing": "torch", "batch_norm_momentum": 0.9},
    image_scale=0.75,
    crop_size=(257, 353),
    iterations=1800,
    validate_every=None,
    command="python train.py --recipe camvid_deeplab_v3 --data-dir CAMVID",
)
# A quarter of ResNet-50 and the global heads; crops of 8×11 cells of 32 pixels: from the middle, a kernel of 15 sees the whole map.
CAMVID_GCN = CAMVID_SMALL.override(
    name="camvid_gcn",
    arch="gcn",
    backbone="resnet50_msra",
    arguments={"preprocessing": "torch", "batch_norm_momentum": 0.9},
    image_scale=0.75,
    crop_size=(256, 352),
    iterations=1600,
    validate_every=None,
    command="python train.py --recipe camvid_gcn --data-dir CAMVID",
)
# Whole images, since a smaller crop would be mostly margin. benchmarks/camvid_ablations.py puts context modules behind it.
CAMVID_DILATION_FRONTEND = CAMVID_SMALL.override(
    name="camvid_dilation_frontend",
    arch="dilation_frontend",
    arguments={"preprocessing": "torch", "dropout_rate": 0.0},
    image_scale=1.0,
    random_scale=(0.75, 1.25),
    margin=186,
    crop_size=(732, 852),
    label_margin=186,
    training_arguments={"margin": None},
    # No batch normalization, and one image a step.
    learning_rate=3e-4,
    warmup_steps=100,
    iterations=1200,
    batch_size=1,
    validate_every=None,
    command="python train.py --recipe camvid_dilation_frontend --data-dir CAMVID",
)
CAMVID_DECONVNET = CAMVID_SMALL.override(
    name="camvid_deconvnet",
    arch="deconvnet",
    arguments={"preprocessing": "torch", "batch_norm_momentum": 0.9},
    image_scale=0.6,
    crop_size=(224, 288),
    batch_size=4,
    iterations=1200,
    validate_every=None,
    command="python train.py --recipe camvid_deconvnet --data-dir CAMVID",
)
# Behind the network that camvid_small is, for some more minutes. Images are of 180×240 pixels: θ as long for these as 160 for 500.
CAMVID_CRF_RNN = CAMVID_SMALL.with_stage(
    "camvid_crf_rnn",
    Stage(
        name="crf_rnn",
        changes={
            "crf_rnn": True,
            "crf_rnn_arguments": {"theta_alpha": 80.0},
            "freeze": (NETWORK,),
            # Weights of 3 and 5 have some way to go.
            "learning_rate": 1e-2,
            "iterations": 200,
            "batch_size": 4,
            "validate_every": None,
        },
    ),
    None,
)
