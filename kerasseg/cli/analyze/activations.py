"""`tools/analyze.py activations`: the strongest activation of each stage of a network."""

from pathlib import Path

from kerasseg.cli.analyze.common import add_kind, add_network_and_image, check_files, scale_of
from kerasseg.cli.opening import open_run_or_model

NAME = "activations"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "the strongest activation of each stage (DeconvNet, Figure 4)")
    add_network_and_image(made, NAME)
    made.add_argument("--layers", nargs="+", default=None, help="names of layers (default: one of each resolution)")


def run(options) -> None:
    """Draws the activations.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    check_files(options)
    opened = open_run_or_model(options.model)
    from kerasseg.data import decode_image
    from kerasseg.evaluation.analysis import activation_picture, activations, scaled_image

    path = Path(options.out) / f"{NAME}.png"
    image = scaled_image(decode_image(options.image), scale_of(opened))
    found = activations(opened.model, image, options.layers)
    activation_picture(image, found, path)
    for layer, channel, values in found:
        print(f"{layer}: channel {channel}, {values.shape[0]}x{values.shape[1]}, {values.min():.4g} to {values.max():.4g}")
    print(f"picture: {path}")
