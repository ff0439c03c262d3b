"""Which of our layers a layer of somebody else's file is."""

import re
from collections.abc import Collection, Mapping

import keras

from kerasseg.models import MODELS


def own_aliases(model: keras.Model) -> Mapping[str, str]:
    """Gives the aliases that a network of `MODELS` states; none for any other."""
    return MODELS[model.name].aliases if model.name in MODELS else {}


def our_name(foreign: str, layers: Collection[str], aliases: Mapping[str, str]) -> str:
    """Translates a layer's name: as it is, then each alias on what the ones before it made of it.

    Args:
        foreign: The name in the file; Keras forbids `/` in names.
        layers: Names of our layers.
        aliases: Regular expression (whole name) → replacement.
    Returns:
        The first that is one of `layers`; else whatever the last alias made of it.
    """
    name = foreign.replace("/", "_")
    for pattern, replacement in aliases.items():
        if name in layers:
            break
        name = re.sub(f"^(?:{pattern})$", replacement, name)
    return name
