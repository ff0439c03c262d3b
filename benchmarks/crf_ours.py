"""Our side of benchmarks/crf.py: the process that runs `kerasseg.crf`."""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import crf_peer
import numpy as np


def infer(image, logits, parameters, iterations, want_marginals=False) -> dict:
    """One image by `dense_crf`; the arguments are those of `crf_peer.solve`."""
    from kerasseg.crf import dense_crf

    start = time.perf_counter()
    marginals = dense_crf(image, logits, _parameters(parameters, int(iterations)))
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "labels": marginals.argmax(-1).astype(np.int32)}
    return {**found, "marginals": marginals} if want_marginals else found


def _parameters(values, iterations: int):
    from kerasseg.crf import Parameters

    spatial_weight, gamma, bilateral_weight, alpha, beta = map(float, values)
    return Parameters(
        bilateral_weight=bilateral_weight,
        theta_alpha=alpha,
        theta_beta=beta,
        spatial_weight=spatial_weight,
        theta_gamma=gamma,
        iterations=iterations,
    )


_STEPS = {}


def train(image, logits, parameters, iterations, jit, **_) -> dict:
    """Forward and backward through the layer with all that CRF-RNN trains: two C×C kernel weights and the compatibility."""
    import tensorflow as tf

    from kerasseg.crf import MeanField

    key = (*image.shape, *logits.shape, *parameters, int(iterations), bool(jit))
    if key not in _STEPS:
        spatial_weight, gamma, bilateral_weight, alpha, beta = map(float, parameters)
        layer = MeanField(
            iterations=int(iterations),
            theta_alpha=alpha,
            theta_beta=beta,
            theta_gamma=gamma,
            bilateral_weight=bilateral_weight,
            spatial_weight=spatial_weight,
            compatibility="matrix",
            kernel_weights="matrix",
            normalization="after",
            trainable=True,
        )

        @tf.function(jit_compile=bool(jit), autograph=False)
        def step(logits, image, label):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                refined = layer([logits, image], training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, refined))
            return loss, tape.gradient(loss, [logits, *layer.trainable_variables])

        layer.build([(1, *logits.shape), (1, *image.shape)])
        _STEPS[key] = step
    given = tf.constant(logits[np.newaxis]), tf.constant(image[np.newaxis].astype(np.float32))
    label = tf.constant(np.roll(logits.argmax(-1), 3, axis=1)[np.newaxis].astype(np.int32))
    start = time.perf_counter()
    loss, gradients = _STEPS[key](*given, label)
    finite = all(np.isfinite(gradient.numpy()).all() for gradient in gradients)
    return {"seconds": time.perf_counter() - start, "loss": loss.numpy(), "finite": finite}


def serve() -> None:
    """Answers `infer` and `train`."""
    import tensorflow  # noqa: F401  (its import is no part of the first image)

    do = {"infer": infer, "train": train}
    crf_peer.answer(lambda what="infer", **request: do[str(what)](**request), crf_peer.resident())


if __name__ == "__main__":
    serve()
