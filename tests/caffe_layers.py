"""Caffe's layers by their definitions, in NumPy and float64: what the networks are checked against where no reference output lies.

Maps are `(N, C, H, W)`, kernels `(out, in, kh, kw)`, as in Caffe's files.
"""

import numpy as np


class Blobs:
    """A model's weights by layer name, in Caffe's layout."""

    def __init__(self, model):
        self.layers = {layer.name: [value.astype("float64") for value in layer.get_weights()] for layer in model.layers}

    def convolution(self, x, name, *, stride=1, pad=0, hole=1):
        kernel, *bias = self.layers[name]
        return convolution(x, kernel.transpose(3, 2, 0, 1), bias[0] if bias else 0.0, stride, pad, hole)

    def batch_norm(self, x, name, epsilon=1e-5):
        gamma, beta, mean, variance = (value[:, None, None] for value in self.layers[name])
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def convolution(x, kernel, bias, stride, pad, hole):
    """One window after another: floor((n + 2·pad − hole·(k − 1) − 1) / stride) + 1 of them."""
    outputs, _, height, width = kernel.shape
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((n - hole * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[2:], (height, width), strict=True))
    result = np.zeros((x.shape[0], outputs, rows, columns))
    for i, j in np.ndindex(height, width):
        tap = x[:, :, i * hole :: stride, j * hole :: stride][:, :, :rows, :columns]
        result += np.einsum("nchw,oc->nohw", tap, kernel[:, :, i, j])
    return result + np.reshape(bias, (-1, 1, 1))


def relu(x):
    return np.maximum(x, 0)


def _windows(n, size, stride, pad):
    """First and last cell of each window, before it is cut to the map."""
    count = int(np.ceil((n + 2 * pad - size) / stride)) + 1
    if pad and (count - 1) * stride >= n + pad:
        count -= 1
    return [(i * stride - pad, min(i * stride - pad + size, n + pad)) for i in range(count)]


def pooling(x, size, stride, pad, average=False):
    """Caffe's rounding up; an average divides by the window cut to the padded map."""
    rows, columns = (_windows(n, size, stride, pad) for n in x.shape[2:])
    result = np.empty((*x.shape[:2], len(rows), len(columns)))
    for (i, (top, bottom)), (j, (left, right)) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
        window = x[:, :, max(top, 0) : bottom, max(left, 0) : right]
        total = window.sum(axis=(2, 3)) / ((bottom - top) * (right - left)) if average else window.max(axis=(2, 3))
        result[:, :, i, j] = total
    return result


def _interpolation(n, size):
    """The matrix from n cells to `size` cells whose first and last coincide."""
    matrix = np.zeros((size, n))
    for i in range(size):
        position = i * (n - 1) / (size - 1) if size > 1 else 0.0
        cell = min(int(position), n - 1)
        matrix[i, cell] += 1 - (position - cell)
        matrix[i, min(cell + 1, n - 1)] += position - cell
    return matrix


def resize(x, height, width):
    return np.einsum("nchw,yh,xw->ncyx", x, _interpolation(x.shape[2], height), _interpolation(x.shape[3], width))


def interp(x, zoom=1, shrink=1):
    """The Interp layer: first the shrunk size, n' = ⌊(n − 1) / shrink⌋ + 1, then n' + (n' − 1)(zoom − 1)."""
    sizes = ((n - 1) // shrink + 1 for n in x.shape[2:])
    return resize(x, *(n + (n - 1) * (zoom - 1) for n in sizes))
