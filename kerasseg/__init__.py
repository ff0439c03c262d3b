"""Classic semantic segmentation in Keras 3, as its authors defined it.

Importing the package is cheap: TensorFlow is loaded by the first name that needs it.
"""

import os

from kerasseg.errors import KerassegError as KerassegError
from kerasseg.tables import import_lazily as _import_lazily

__version__ = "0.8.0"

# The layers use TensorFlow operations; a keras.json that names another backend must not win silently.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_ROOMS = (
    "backbones", "cli", "crf", "data", "evaluation", "export", "interop", "labels", "layers", "losses", "metrics", "models", "ops",
    "optimizers", "recipes", "runs", "runtimes", "schedules", "training",
)  # fmt: skip
_FUNCTIONS = {
    "colorize": "kerasseg.labels",
    "load_model": "kerasseg.evaluation",
    "predict": "kerasseg.evaluation",
    "transplant": "kerasseg.interop",
    "with_context": "kerasseg.models.dilation",
    "with_crf_rnn": "kerasseg.models.crf_rnn",
}

__all__ = ["KerassegError", *_ROOMS, *_FUNCTIONS]


def __getattr__(name: str):
    if name in _FUNCTIONS:
        return getattr(_import_lazily(_FUNCTIONS[name]), name)
    if name in _ROOMS:
        return _import_lazily(f"kerasseg.{name}")
    raise AttributeError(f"module 'kerasseg' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
