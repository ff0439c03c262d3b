"""The mean field of a dense CRF in float64 NumPy, written from the equations, to compare everything else with.

Kraehenbuehl & Koltun 2011, Eqs. (2)-(4) and Algorithm 1; weights and compatibility as full matrices: Zheng et al. 2015, section 4.
"""

import numpy as np


def position_features(size, theta):
    """Column and row of each pixel, row by row, over theta: (2, N)."""
    height, width = size
    return np.array([[x / theta, y / theta] for y in range(height) for x in range(width)], "float64").reshape(-1, 2).T


def bilateral_features(image, theta_alpha, theta_beta):
    """Column, row, red, green, blue of each pixel, over their thetas: (5, N)."""
    image = np.asarray(image, "float64")
    colours = image.reshape(-1, image.shape[-1]).T / theta_beta
    return np.concatenate([position_features(image.shape[:2], theta_alpha), colours])


def gaussian_kernel(features):
    """k(i, j) = exp(-|f_i - f_j|^2 / 2), the pixel's own contribution included."""
    features = np.asarray(features, "float64")
    differences = features[:, :, None] - features[:, None, :]
    return np.exp(-0.5 * np.einsum("dij,dij->ij", differences, differences))


def normalized_kernel(kernel, normalization):
    n = kernel.sum(axis=1)
    left, right = {"symmetric": (-0.5, -0.5), "after": (-1, 0), "before": (0, -1), "none": (0, 0)}[normalization]
    return np.diag(n**left) @ kernel @ np.diag(n**right)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def as_matrix(weight, classes):
    """A number, one a class, or a matrix, as the matrix that it stands for."""
    weight = np.asarray(weight, "float64")
    return weight if weight.ndim == 2 else np.diag(np.broadcast_to(weight, (classes,)))


def mean_field(logits, kernels, iterations, compatibility=None):
    """Logits (N, C) and (matrix (N, N), weight) pairs -> the list of all output logits, those given first.

    out = U - (sum over k of K_k Q W_k^T) compat^T; Potts, where compatibility is None: compat = -I.
    """
    logits = np.asarray(logits, "float64")
    classes = logits.shape[-1]
    compatibility = -np.eye(classes) if compatibility is None else np.asarray(compatibility, "float64")
    states = [logits]
    for _ in range(iterations):
        q = softmax(states[-1])
        message = sum(kernel @ q @ as_matrix(weight, classes).T for kernel, weight in kernels)
        states.append(logits - message @ compatibility.T)
    return states


def divergence(q, unary, kernels, compatibility=None):
    """Sum of Q log Q + Q U + Q . pairwise(Q), as pydensecrf defines its Kullback-Leibler value."""
    classes = q.shape[-1]
    compatibility = -np.eye(classes) if compatibility is None else np.asarray(compatibility, "float64")
    pairwise = sum(kernel @ q @ as_matrix(weight, classes).T for kernel, weight in kernels) @ compatibility.T
    return np.sum(q * np.log(np.maximum(q, 1e-20))) + np.sum(q * unary) + np.sum(q * pairwise)


def crf_kernels(image, parameters, **weights):
    """The two kernels of kerasseg.crf.Parameters on an image, normalised, each with its weight."""
    bilateral = gaussian_kernel(bilateral_features(image, parameters.theta_alpha, parameters.theta_beta))
    spatial = gaussian_kernel(position_features(np.shape(image)[:2], parameters.theta_gamma))
    return [
        (normalized_kernel(bilateral, parameters.normalization), weights.get("bilateral_weight", parameters.bilateral_weight)),
        (normalized_kernel(spatial, parameters.normalization), weights.get("spatial_weight", parameters.spatial_weight)),
    ]
