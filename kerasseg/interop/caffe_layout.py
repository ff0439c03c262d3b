"""Arrays in Caffe's layout and order into those of one layer of ours."""

from collections.abc import Mapping

import keras
import numpy as np

from kerasseg.crf import MeanField
from kerasseg.layers import BilinearUpsampling, ChannelScale
from kerasseg.ops import bilinear_kernel

# Numbers of arrays of Caffe's BatchNorm: mean, variance, and what both are to be divided by; and of the BN of some forks (PSPNet's
# among them): gamma, beta, mean, variance. A Scale has gamma, or gamma and beta.
_STATISTICS, _COMPLETE = 3, 4


def convert(layer, sources: Mapping[str, list[np.ndarray]]) -> list[np.ndarray]:
    """Brings what a file holds for one layer into Keras' layout.

    Args:
        layer: The layer.
        sources: Caffe layer name → its arrays; several for batch normalisation only, whose statistics and whose scale and shift
            are two layers in Caffe.
    Returns:
        Arrays as `layer.set_weights` takes them.
    Raises:
        ValueError: If they do not fit; its message says what differs.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        arrays = _normalization(layer, sources)
    else:
        (blobs,) = sources.values()
        arrays = _arrays(layer, blobs)
    expected = [] if isinstance(layer, BilinearUpsampling) else [tuple(weight.shape) for weight in layer.weights]
    if len(arrays) == len(expected):
        # Old files keep a bias as (1, 1, 1, n).
        arrays = [
            a.reshape(shape) if len(shape) == 1 and a.size == shape[0] else a for a, shape in zip(arrays, expected, strict=True)
        ]
    received = [a.shape for a in arrays]
    if received != expected:
        raise ValueError(f"received shapes {received}, expected {expected} (Keras layout)")
    return arrays


def second_sources(layer, sources: Mapping[str, list[np.ndarray]]) -> list[str]:
    """Names those file layers that are one too many for a layer of ours."""
    names = list(sources)
    if not isinstance(layer, keras.layers.BatchNormalization):
        return names[1:]
    statistics = [name for name in names if len(sources[name]) == _STATISTICS]
    return statistics[1:] + [name for name in names if name not in statistics][1:]


def _arrays(layer, blobs: list[np.ndarray]) -> list[np.ndarray]:
    if isinstance(layer, BilinearUpsampling):
        _check_bilinear(layer, blobs)
        return []
    if not blobs:
        raise ValueError("received no arrays")
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return [_transposed_kernel(blobs[0], layer), *blobs[1:]]
    if isinstance(layer, keras.layers.Conv2D):
        return [_kernel(blobs[0], layer), *blobs[1:]]
    if isinstance(layer, ChannelScale):
        return blobs
    if isinstance(layer, MeanField):
        return _mean_field(layer, blobs)
    raise ValueError(f"{type(layer).__name__} takes no Caffe weights")


def _normalization(layer, sources: Mapping[str, list[np.ndarray]]) -> list[np.ndarray]:
    """Makes one layer of Caffe's BatchNorm and the Scale behind it, of a fork's BN, or of one whose statistics are folded."""
    statistics = next((blobs for blobs in sources.values() if len(blobs) == _STATISTICS), None)
    name, affine = next(((name, blobs) for name, blobs in sources.items() if len(blobs) != _STATISTICS), (None, None))
    if statistics is not None:
        if affine is None and (layer.scale or layer.center):
            raise ValueError("is a BatchNorm without the Scale that gives gamma and beta")
        return [*(affine or ()), *_divided(*statistics)]
    if len(affine) == _COMPLETE:
        return affine
    if "scale" in name.lower():
        raise ValueError("is a Scale without the BatchNorm that gives mean and variance")
    # The inference form of DeconvNet: y = gamma · x + beta, to which epsilon must add nothing.
    channels = layer.moving_mean.shape
    return [*affine, np.zeros(channels, "float32"), np.full(channels, 1 - layer.epsilon, "float32")]


def _divided(mean: np.ndarray, variance: np.ndarray, factor: np.ndarray) -> list[np.ndarray]:
    """Mean and variance as Caffe uses them."""
    if factor.size != 1:
        raise ValueError(f"received a factor of shape {factor.shape}, expected one number")
    # A factor of 0, of a layer that never saw an example, stands for statistics of 0.
    scale = 1 / factor.item() if factor.item() else 0.0
    divided = [(array * scale).astype("float32") for array in (mean, variance)]
    if divided[1].min(initial=0) < 0:
        raise ValueError(f"received a variance of {divided[1].min():.3g}, expected none below 0")
    return divided


def _kernel(blob: np.ndarray, layer) -> np.ndarray:
    height, width, inputs, outputs = layer.kernel.shape
    if blob.ndim == 2 or (blob.ndim == 4 and blob.shape[:2] == (1, 1) and (height, width, inputs) != (1, 1, 1)):
        # Fully connected, (out, in · kh · kw): the flat copy of the authors' surgery.
        if blob.shape[-2:] != (outputs, inputs * height * width):
            raise ValueError(f"received shape {blob.shape}, expected ({outputs}, {inputs * height * width})")
        blob = blob.reshape(outputs, inputs, height, width)
    return blob.transpose(2, 3, 1, 0)


def _transposed_kernel(blob: np.ndarray, layer) -> np.ndarray:
    channels = layer.kernel.shape[2]
    if blob.ndim == 4 and blob.shape[1] == 1 and channels > 1 and blob.shape[0] == channels:
        # Grouped, one kernel a channel: the same thing on the diagonal of a dense one.
        blob = blob * np.eye(channels, dtype=blob.dtype)[:, :, None, None]
    return blob.transpose(2, 3, 1, 0)


def _mean_field(layer, blobs: list[np.ndarray]) -> list[np.ndarray]:
    """CRF-RNN's three matrices, rows for the class that is scored, in the order of our variables."""
    names = ("spatial_weight", "bilateral_weight", "compatibility")
    if len(blobs) != len(names):
        raise ValueError(f"received {len(blobs)} arrays, expected {', '.join(names)}")
    # Caffe's blobs had four axes.
    matrices = {name: np.reshape(blob, np.shape(blob)[-2:]) for name, blob in zip(names, blobs, strict=True)}
    return [matrices[weight.name] for weight in layer.weights]


def _check_bilinear(layer, blobs: list[np.ndarray]) -> None:
    (blob,) = blobs if len(blobs) == 1 else (np.zeros(()),)
    size, channels = layer.kernel_size, layer.output.shape[-1]
    if blob.shape in ((channels, 1, size, size), (channels, channels, size, size)):
        diagonal = np.eye(channels, dtype=blob.dtype)[:, :, None, None] if blob.shape[1] > 1 else 1
        if np.allclose(blob, bilinear_kernel(size) * diagonal, atol=1e-5):
            return
    raise ValueError(
        f"received kernel {blob.shape}, expected the bilinear one of size {size} for {channels} channels: "
        "it is fixed in this network"
    )
