"""A dense CRF behind whatever a network gave for a photograph."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kerasseg.crf import PARAMETERS, Parameters, dense_crf, parameters_of
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def crf_parameters(value) -> Parameters:
    """Finds the parameters of a CRF.

    Args:
        value: Name in `kerasseg.crf.PARAMETERS`; JSON file, as `tools/tune_crf.py` writes it, or of the fields of `Parameters`
            alone; `Parameters`; or a mapping of their fields.
    Raises:
        KerassegError: If there is neither such a name nor such a file, or the file or mapping is not one of parameters.
    """
    if not isinstance(value, (str, Path)) or str(value) in PARAMETERS:
        return parameters_of(value)
    path = Path(value)
    if not path.is_file():
        raise KerassegError(f"CRF parameters '{value}': no such file or name; {did_you_mean(str(value), PARAMETERS)}")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise KerassegError(f"{path} is not JSON ({error}): expected what tools/tune_crf.py wrote, or one of {_names()}") from error
    values = values.get("parameters", values) if isinstance(values, dict) else values
    if not isinstance(values, Mapping):
        raise KerassegError(f"{path} holds no parameters of a CRF: expected what tools/tune_crf.py wrote, or one of {_names()}")
    try:
        return parameters_of(values)
    except KerassegError as error:
        raise KerassegError(f"{path}: {error}") from error


def _names() -> str:
    return ", ".join(PARAMETERS)


def crf_logits(scores, kind: str) -> np.ndarray:
    """Makes of a network's scores what a CRF starts from: the negative of its unary energy U.

    Args:
        scores: Shape `(H, W, C)`, float32.
        kind: `"logits"` or `"scores"`: U = −score, as DeepLab has it, which differs from −log of the softmax by one number at each
            pixel, and that changes nothing; `"probabilities"`: U = −log p, as DeconvNet has it.
    Returns:
        Shape `(H, W, C)`, float32; where a probability is 0, the logarithm of the smallest normal float32, −87.3.
    """
    scores = np.asarray(scores, np.float32)
    return np.log(np.maximum(scores, np.finfo(np.float32).tiny)) if kind == "probabilities" else scores


def marginals(image, logits: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Runs the CRF on the photograph, at its own size.

    Args:
        image: Shape `(H, W, 3)` or more channels, of which the first three are the colours, RGB 0–255.
        logits: Shape `(H, W, C)`, the negative of the unary energy.
        parameters: Weights and standard deviations of the kernels.
    Returns:
        Shape `(H, W, C)`, float32, sums to 1 over the classes.
    Raises:
        KerassegError: If a score is NaN or infinite.
    """
    return dense_crf(np.asarray(image)[..., :3], logits, parameters, from_logits=True)


def described(parameters: Parameters) -> str:
    """The parameters on a line, to be read."""
    bilateral = (
        f"bilateral {parameters.bilateral_weight:g} over {parameters.theta_alpha:g} px and {parameters.theta_beta:g} of colour"
    )
    spatial = f"spatial {parameters.spatial_weight:g} over {parameters.theta_gamma:g} px"
    return f"CRF ({bilateral}, {spatial}, {parameters.iterations} iterations, normalization {parameters.normalization})"
