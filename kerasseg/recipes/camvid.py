"""CamVid from scratch on a CPU: no published run, ours to have a real model in minutes."""

from kerasseg.recipes.base import Recipe

CAMVID_SMALL = Recipe(
    name="camvid_small",
    arch="fcn8s",
    width_multiplier=0.25,
    # The form without the border of 100 pixels, and input of unit deviation: trained from scratch, on small images.
    arguments={"padding": "same", "preprocessing": "torch", "dropout_rate": 0.0},
    precision="bfloat16",
    data="camvid",
    image_scale=0.5,
    flip=True,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="poly",
    iterations=1500,
    batch_size=8,
    checkpoint_every=500,
    validate_every=500,
    command="python train.py --recipe camvid_small --data-dir CAMVID",
)
