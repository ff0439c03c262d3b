"""Trains a CRF-RNN on one device, or as a script on two, and prints losses and weights. Run by test_crf_recipes.py, alone in its
process: the CPU can be split only before TensorFlow starts.

    python crf_replicas.py
"""

import json

import keras
import numpy as np
from replicas import PASSES, feed, network

from kerasseg import with_crf_rnn
from kerasseg.losses import SegmentationCrossEntropy
from kerasseg.recipes.crf_rnn import MULTIPLIERS
from kerasseg.training import CaffeSGD, Trainer, make_strategy

STEPS = 4


def train(strategy) -> dict:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        # Images of 0 to 1.
        model = with_crf_rnn(network(), theta_alpha=6.0, theta_beta=0.3, theta_gamma=2.0, training_iterations=2)
        optimizer = CaffeSGD(1e-5, 0.9, 1e-3, {**MULTIPLIERS, ".*/bias": (2.0, 0.0)})
    trainer = Trainer(model, optimizer=optimizer, loss=SegmentationCrossEntropy(), strategy=strategy, accumulation=PASSES)
    losses = [step.loss for step in trainer.train(feed, STEPS)]
    weights = [np.asarray(weight).tolist() for weight in model.get_weights()]
    return {"replicas": strategy.num_replicas_in_sync, "losses": losses, "weights": weights}


if __name__ == "__main__":
    print(json.dumps(train(make_strategy("mirrored", replicas=2))))
