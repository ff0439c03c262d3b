"""Weights in Caffe's layout into our layers."""

import re
from collections.abc import Mapping

import keras
import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.layers import BilinearUpsampling, ChannelScale
from kerasseg.models import MODELS
from kerasseg.ops import bilinear_kernel


def load_caffe(
    model: keras.Model,
    source: Mapping[str, list[np.ndarray]],
    *,
    skip_mismatch: bool = False,
    aliases: Mapping[str, str] | None = None,
) -> list[str]:
    """Copies Caffe's blobs into the layers of the same names.

    Nothing is copied unless everything fits, or `skip_mismatch` allows the rest to stay as it is.

    Args:
        model: A network of `MODELS`.
        source: Caffe layer name → its arrays in Caffe layout: convolution `(out, in / group, kh, kw)`, transposed convolution
            `(in, out / group, kh, kw)`, fully connected `(out, in)`, bias `(out,)`, scale `(C,)`.
        skip_mismatch: Load what fits and return the rest instead of raising.
        aliases: Regular expression → replacement for layer names; the network's own by default.
    Returns:
        What did not fit, one line each; empty unless `skip_mismatch`.
    Raises:
        KerassegError: If layers are unknown, missing or of another shape: all of them in one message. A file's kernel for an
            upsampling that is fixed here must be the bilinear one.
    """
    if not isinstance(source, Mapping):
        raise KerassegError(f"received {source!r}, expected a mapping of layer name → arrays; .caffemodel files are not read yet")
    aliases = _own_aliases(model) if aliases is None else aliases
    layers = {layer.name: layer for layer in model.layers}
    weights, problems, seen = {}, [], set()
    for caffe_name, blobs in source.items():
        layer = layers.get(_our_name(caffe_name, layers, aliases))
        if layer is None:
            problems.append(f"unknown layer {caffe_name}")
            continue
        if layer.name in seen:
            problems.append(f"{caffe_name} is a second source for layer {layer.name}")
            continue
        seen.add(layer.name)
        try:
            weights[layer.name] = _convert(layer, [np.asarray(blob) for blob in blobs])
        except ValueError as error:
            problems.append(f"{caffe_name}: {error}")
    problems += [f"missing layer {layer.name}" for layer in model.layers if layer.weights and layer.name not in seen]
    if problems and not skip_mismatch:
        raise KerassegError(
            f"the weights do not fit {model.name}: {'; '.join(problems)} (skip_mismatch=True loads what fits and leaves the rest)"
        )
    for name, values in weights.items():
        layers[name].set_weights(values)
    return problems


def _own_aliases(model) -> Mapping[str, str]:
    return MODELS[model.name].aliases if model.name in MODELS else {}


def _our_name(caffe_name: str, layers, aliases) -> str:
    """Tries the name as it is, then each alias on what the ones before it made of it (Keras forbids `/` in names)."""
    name = caffe_name.replace("/", "_")
    for pattern, replacement in aliases.items():
        if name in layers:
            break
        name = re.sub(f"^(?:{pattern})$", replacement, name)
    return name


def _convert(layer, blobs: list[np.ndarray]) -> list[np.ndarray]:
    """Brings one layer's blobs into Keras' layout, or raises a ValueError that says what differs."""
    if isinstance(layer, BilinearUpsampling):
        _check_bilinear(layer, blobs)
        return []
    if not blobs:
        raise ValueError("received no arrays")
    if isinstance(layer, keras.layers.Conv2DTranspose):
        arrays = [_transposed_kernel(blobs[0], layer), *blobs[1:]]
    elif isinstance(layer, keras.layers.Conv2D):
        arrays = [_kernel(blobs[0], layer), *blobs[1:]]
    elif isinstance(layer, ChannelScale):
        arrays = blobs
    else:
        raise ValueError(f"{type(layer).__name__} takes no Caffe weights")
    expected = [tuple(weight.shape) for weight in layer.weights]
    if len(arrays) == len(expected):
        # Old files keep a bias as (1, 1, 1, n).
        arrays = [
            a.reshape(shape) if len(shape) == 1 and a.size == shape[0] else a for a, shape in zip(arrays, expected, strict=True)
        ]
    received = [a.shape for a in arrays]
    if received != expected:
        raise ValueError(f"received shapes {received}, expected {expected} (Keras layout)")
    return arrays


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
