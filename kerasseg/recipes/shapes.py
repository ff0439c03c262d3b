"""The run that needs nothing: built-in data, narrow network, minutes on a laptop."""

from kerasseg.recipes.base import Recipe

SHAPES = Recipe(
    name="shapes",
    arch="fcn8s",
    width_multiplier=0.25,
    data="shapes",
    # Scaled input and Adam: from scratch, the papers' raw 0–255 input and tiny rates would need days.
    arguments={"preprocessing": "torch"},
    flip=True,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="poly",
    iterations=600,
    batch_size=8,
    checkpoint_every=150,
    validate_every=150,
    validation_images=32,
    command="python train.py --arch fcn8s",
)
