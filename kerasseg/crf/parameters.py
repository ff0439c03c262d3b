"""What the papers' dense CRFs are run with, by name. Needs no TensorFlow."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from kerasseg.errors import KerassegError
from kerasseg.tables import LazyTable, did_you_mean

NORMALIZATIONS = ("symmetric", "after", "before", "none")
"""How a kernel K is scaled by its row sums n = K·1: n^-½ on both sides, 1/n on the result, 1/n on what is filtered, not at all."""

SMALLEST_THETA = 1e-3
"""Least standard deviation: for it whole pixels and colours are all infinitely far apart, and quotients stay far from overflow."""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The numbers of a fully connected CRF with a bilateral (appearance) and a spatial (smoothness) kernel.

    Both kernels are Gaussians exp(−½d²) of features divided by their θ. A kernel of weight 0 is left out.

    Args:
        bilateral_weight: Weight of the kernel over positions and colours.
        theta_alpha: Its standard deviation along the image, in pixels.
        theta_beta: Its standard deviation of each colour channel, on the scale 0–255.
        spatial_weight: Weight of the kernel over positions alone.
        theta_gamma: Its standard deviation along the image, in pixels.
        iterations: Mean field steps.
        normalization: One of `NORMALIZATIONS`.
        source: Where the numbers come from, to be read.
        rows_first: Whether the row comes before the column in the features. The kernels are the same, but a permutohedral lattice
            approximates them otherwise: a few pixels change their label. False is the order of the papers' code (DenseCRF2D).
    Raises:
        KerassegError: If a weight is no finite number, a θ below 0.001, the iterations no whole number from 0, or the
            normalization unknown.
    Reference:
        Krähenbühl & Koltun 2011, arXiv:1210.5644, Eq. (3); the symbols are theirs.
    """

    bilateral_weight: float
    theta_alpha: float
    theta_beta: float
    spatial_weight: float
    theta_gamma: float
    iterations: int = 10
    normalization: str = "symmetric"
    source: str = ""
    rows_first: bool = False

    def __post_init__(self):
        for name in ("bilateral_weight", "spatial_weight"):
            object.__setattr__(self, name, _number(name, getattr(self, name), "any finite number, such as 4.0"))
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            value = _number(name, getattr(self, name), "a positive number, such as 49.0")
            if value < SMALLEST_THETA:
                raise KerassegError(f"CRF parameter {name}={value:g}: expected at least {SMALLEST_THETA:g}, such as {name}=49.0")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "iterations", checked_iterations(self.iterations))
        if self.normalization not in NORMALIZATIONS:
            raise KerassegError(
                f"CRF normalization {self.normalization!r}: expected one of {', '.join(NORMALIZATIONS)}; "
                f"{did_you_mean(str(self.normalization), NORMALIZATIONS)}"
            )

    def layer_arguments(self) -> dict[str, Any]:
        """Collects what `kerasseg.crf.MeanField` takes: `MeanField(**parameters.layer_arguments())`.

        The layer knows one order of features, the papers', so `rows_first` is not among them.
        """
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("source", "rows_first")}


def checked_iterations(value) -> int:
    """Makes a number of mean field steps of what should be one.

    Raises:
        KerassegError: If it is no whole number from 0.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise KerassegError(f"CRF iterations {value!r}: expected a whole number of at least 0, such as 10")
    return int(value)


def parameters_of(value) -> Parameters:
    """Makes parameters of a name, of a mapping, or of parameters.

    Args:
        value: Name in `PARAMETERS`; mapping of the fields of `Parameters`, of which `base` may name the parameters that the
            others replace; or `Parameters`, which are given back.
    Raises:
        KerassegError: If the name or a field is unknown, a field missing, or a value impossible.
    Example:
        >>> parameters_of({"base": "deeplab_v1", "iterations": 5}).iterations
        5
    """
    if isinstance(value, Parameters):
        return value
    if isinstance(value, str):
        return PARAMETERS[value]
    if not isinstance(value, Mapping):
        raise KerassegError(
            f"CRF parameters {value!r}: expected a name such as 'deeplab_v1', kerasseg.crf.Parameters(…), or a mapping of fields"
        )
    fields = [f.name for f in dataclasses.fields(Parameters)]
    for name in value:
        if name not in (*fields, "base"):
            raise KerassegError(f"unknown CRF parameter '{name}': {did_you_mean(str(name), [*fields, 'base'])}")
    given = dict(value)
    if "base" in given:
        base = parameters_of(given.pop("base"))
        # What is changed is no longer what the source says.
        changed = {"source": f"{base.source}; changed: {', '.join(given)}"} if given and "source" not in given else {}
        return dataclasses.replace(base, **{**changed, **given})
    missing = [f.name for f in dataclasses.fields(Parameters) if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise KerassegError(f"CRF parameters without {', '.join(missing)}: expected them, or 'base': 'deeplab_v1' to change")
    return Parameters(**given)


def _number(name: str, value, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise KerassegError(f"CRF parameter {name}={value!r}: expected {expected}")
    return float(value)


_V1 = Parameters(
    bilateral_weight=4.0,
    theta_alpha=49.0,
    theta_beta=5.0,
    spatial_weight=3.0,
    theta_gamma=3.0,
    normalization="after",
    source="Chen et al. 2015, arXiv:1412.7062, with the authors' run_densecrf.sh for LargeFOV: pos_w 3, pos_xy 3, bi_w 4, "
    "bi_xy 49, bi_rgb 5, 10 iterations; kernels normalised per pixel after filtering; unary = −score",
)
DEEPLAB_V1 = dataclasses.replace(_V1, source=f"{_V1.source} (no script has other numbers for the network with a 4×4 fc6)")
DEEPLAB_V1_LARGEFOV = _V1
DEEPLAB_V2_VGG16 = Parameters(
    bilateral_weight=4.0,
    theta_alpha=65.0,
    theta_beta=3.0,
    spatial_weight=2.0,
    theta_gamma=2.0,
    normalization="after",
    source="Chen et al. 2018, arXiv:1606.00915, DeepLab-ASPP-L on VGG16: pos_w 2, pos_xy 2, bi_w 4, bi_xy 65, bi_rgb 3, 10 "
    "iterations, as two independent third-party implementations have it; kernels normalised as in v1",
)
DEEPLAB_V2_RESNET101 = Parameters(
    bilateral_weight=4.0,
    theta_alpha=67.0,
    theta_beta=3.0,
    spatial_weight=3.0,
    theta_gamma=1.0,
    normalization="after",
    source="Chen et al. 2018, arXiv:1606.00915, DeepLab on ResNet-101: pos_w 3, pos_xy 1, bi_w 4, bi_xy 67, bi_rgb 3, 10 "
    "iterations, as two independent third-party implementations have it; kernels normalised as in v1",
)
DECONVNET = Parameters(
    bilateral_weight=5.0,
    theta_alpha=20.0,
    theta_beta=3.0,
    spatial_weight=3.0,
    theta_gamma=3.0,
    normalization="symmetric",
    source="Noh et al. 2015, arXiv:1505.04366, with the authors' generate_EDeconvNet_CRF_results.m: Gaussian sd 3, weight 3; "
    "bilateral sd 20 and 3, weight 5; 10 iterations; unary = −log of the softmax. The normalisation, which their script does not "
    "set, is the default of the library behind it (Krähenbühl & Koltun 2013)",
)
CRF_RNN = Parameters(
    bilateral_weight=5.0,
    theta_alpha=160.0,
    theta_beta=3.0,
    spatial_weight=3.0,
    theta_gamma=3.0,
    normalization="after",
    source="Zheng et al. 2015, arXiv:1502.03240, as CRF-RNN starts to learn (torrvision/crfasrnn: spatial.par 3, bilateral.par 5, "
    "theta_alpha 160, theta_beta 3, theta_gamma 3, 10 iterations in the published files; the paper trains with 5)",
)
PYDENSECRF = Parameters(
    bilateral_weight=10.0,
    theta_alpha=80.0,
    theta_beta=13.0,
    spatial_weight=3.0,
    theta_gamma=3.0,
    iterations=5,
    normalization="symmetric",
    source="lucasb-eyer/pydensecrf, examples/inference.py with the general DenseCRF: Gaussian sdims 3, compat 3; bilateral sdims "
    "80, schan 13, compat 10; 5 iterations; labels that are right with gt_prob=0.7",
    rows_first=True,
)

PARAMETERS = LazyTable(
    "CRF parameters",
    {
        "deeplab_v1": "kerasseg.crf.parameters:DEEPLAB_V1",
        "deeplab_v1_largefov": "kerasseg.crf.parameters:DEEPLAB_V1_LARGEFOV",
        "deeplab_v2_vgg16": "kerasseg.crf.parameters:DEEPLAB_V2_VGG16",
        "deeplab_v2_resnet101": "kerasseg.crf.parameters:DEEPLAB_V2_RESNET101",
        "deconvnet": "kerasseg.crf.parameters:DECONVNET",
        "crf_rnn": "kerasseg.crf.parameters:CRF_RNN",
        "pydensecrf": "kerasseg.crf.parameters:PYDENSECRF",
    },
)
"""Name → `Parameters`: what the papers used, and where that is written."""
