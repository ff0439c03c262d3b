"""The fully connected CRF: as a layer that trains, and as a function of NumPy arrays.

Listing the parameters of the papers (`PARAMETERS`) loads no TensorFlow.
"""

from kerasseg.crf.parameters import PARAMETERS as PARAMETERS
from kerasseg.crf.parameters import Parameters as Parameters
from kerasseg.crf.parameters import parameters_of as parameters_of
from kerasseg.tables import import_lazily as _import_lazily

_FUNCTIONS = {
    "MeanField": "kerasseg.crf.layer",
    "dense_crf": "kerasseg.crf.inference",
    "mean_field": "kerasseg.crf.mean_field",
    "unary_from_labels": "kerasseg.crf.unary",
}

__all__ = ["PARAMETERS", "Parameters", "parameters_of", *_FUNCTIONS]


def __getattr__(name: str):
    if name in _FUNCTIONS:
        return getattr(_import_lazily(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'kerasseg.crf' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
