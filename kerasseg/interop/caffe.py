"""Caffe's weights into our networks, by the names of the layers."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from kerasseg.crf import MeanField
from kerasseg.errors import KerassegError
from kerasseg.interop.caffe_layout import convert, second_sources
from kerasseg.interop.caffemodel import read_caffemodel, same_arrays
from kerasseg.interop.naming import our_name, own_aliases


def load_caffe(
    model: keras.Model,
    source: str | Path | Mapping[str, list[np.ndarray]],
    *,
    skip_mismatch: bool = False,
    aliases: Mapping[str, str] | None = None,
) -> list[str]:
    """Copies Caffe's weights into the layers of the same names.

    Nothing is copied unless everything fits, or `skip_mismatch` allows the rest to stay as it is. Layers that share their
    weights stand in a file once for each use: several may fill one of ours if they hold the same numbers. Caffe's BatchNorm and
    the Scale behind it fill one batch normalisation, mean and variance divided by the stored factor; gamma and beta alone, with
    the statistics folded into them (DeconvNet), fill one, too. The weights of a CRF (CRF-RNN's `inference1`) may be missing and
    then stay as they are.

    Args:
        model: A network of `MODELS`.
        source: Path of a `.caffemodel`, or Caffe layer name → its arrays in Caffe layout: convolution
            `(out, in / group, kh, kw)`, transposed convolution `(in, out / group, kh, kw)`, fully connected `(out, in)`, bias
            `(out,)`, scale `(C,)`, batch normalisation `(C,)`, `(C,)` and `(1,)`; mean field the weights of the spatial and of the
            bilateral kernel and the compatibility, `(C, C)` each.
        skip_mismatch: Load what fits and return the rest instead of raising.
        aliases: Regular expression → replacement for layer names; the network's own by default.
    Returns:
        What did not fit, one line each; empty unless `skip_mismatch`.
    Raises:
        KerassegError: If the file cannot be read, the mapping holds something else than lists of finite numbers, or layers are
            unknown, missing or of another shape: all of them in one message. A file's kernel for an upsampling that is fixed here
            must be the bilinear one. With `skip_mismatch`, if nothing fits.
    """
    if isinstance(source, (str, os.PathLike)):
        source = read_caffemodel(source)
    elif not isinstance(source, Mapping):
        raise KerassegError(f"received {source!r}, expected the path of a .caffemodel or a mapping of layer name → arrays")
    source = {name: _arrays(name, blobs) for name, blobs in source.items()}
    layers = {layer.name: layer for layer in model.layers}
    sources, problems = _by_our_names(source, layers, own_aliases(model) if aliases is None else aliases)
    weights = {}
    for name, group in sources.items():
        others = second_sources(layers[name], group)
        problems += [f"{other} is a second source for layer {name}, other than {_first(group, other)}" for other in others]
        if not others:
            try:
                weights[name] = convert(layers[name], group)
            except ValueError as error:
                problems.append(f"{' + '.join(group)}: {error}")
    problems += [f"missing layer {layer.name}" for layer in model.layers if _needed(layer) and layer.name not in sources]
    if problems and not (skip_mismatch and weights):
        way_out = "nothing of them fits" if skip_mismatch else "skip_mismatch=True loads what fits and leaves the rest"
        raise KerassegError(f"the weights do not fit {model.name}: {'; '.join(problems)} ({way_out})")
    for name, values in weights.items():
        layers[name].set_weights(values)
    return problems


def _needed(layer) -> bool:
    """A CRF's first weights are those that its authors began with: a file of the network alone leaves them."""
    return bool(layer.weights) and not isinstance(layer, MeanField)


def _arrays(name: str, blobs: Iterable) -> list[np.ndarray]:
    """Refuses what a file could not hold; arrays that came from one stay the same."""
    if not isinstance(name, str):
        raise KerassegError(f"received {name!r} as a layer's name, expected text, such as 'conv1_1': [kernel, bias]")
    if not isinstance(blobs, Iterable) or isinstance(blobs, (str, bytes, Mapping, np.ndarray)):
        raise KerassegError(f"layer {name}: received {type(blobs).__name__}, expected a list of arrays, such as [kernel, bias]")
    try:
        with np.errstate(over="ignore"):
            arrays = [np.asarray(blob, "float32") for blob in blobs]
    except (TypeError, ValueError) as error:
        raise KerassegError(f"layer {name}: received what is no array of numbers ({error}), expected [kernel, bias]") from error
    if not all(np.isfinite([array.min(initial=0), array.max(initial=0)]).all() for array in arrays):
        raise KerassegError(f"layer {name} has weights that are not finite")
    return arrays


def _by_our_names(source, layers, aliases):
    """Sorts a file's layers by the layer of ours that they fill, copies left out; and names those that fill none."""
    sources, problems = {}, []
    for caffe_name, blobs in source.items():
        name = our_name(caffe_name, layers, aliases)
        if name not in layers:
            problems.append(f"unknown layer {caffe_name}")
            continue
        group = sources.setdefault(name, {})
        if not any(same_arrays(blobs, others) for others in group.values()):
            group[caffe_name] = blobs
    return sources, problems


def _first(group: Mapping[str, list[np.ndarray]], other: str) -> str:
    """The first of those of a group that hold as many arrays."""
    return next((name for name in group if name != other and len(group[name]) == len(group[other])), next(iter(group)))
