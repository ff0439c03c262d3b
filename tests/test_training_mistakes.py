"""What a user can get wrong about the trainer: one line each."""

import keras
import pytest
import tensorflow as tf
from toy_training import examples, feed_of, make_trainer, network

from kerasseg import KerassegError
from kerasseg.training import CaffeSGD, Trainer, make_strategy

MISTAKES = {
    "clip": ({"clip_norm": 0.0}, "clip_norm=0.0: expected above 0"),
    "passes": ({"accumulation": 0}, "accumulation=0: expected 1 or more"),
    "loss": ({"loss": keras.losses.SparseCategoricalCrossentropy()}, "expected one of kerasseg.losses"),
    "factor": ({"loss_weights": {"other": 1.0}}, "loss_weights for 'other', but the model's outputs are"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(KerassegError, match=message) as caught:
        make_trainer(network(), 0.1, **arguments)
    assert "\n" not in str(caught.value)


def test_other_outputs_and_stops_are_one_line():
    model, (images, labels) = network(("a", "b")), examples(2)
    with pytest.raises(KerassegError, match="a list of 2 outputs: give it a dict"):
        make_trainer(keras.Model(model.input, list(model.output.values())), 0.1)
    with pytest.raises(KerassegError, match="stops=.0,.: expected numbers of 1 or more"):
        list(make_trainer(network(), 0.1).train(feed_of(images, labels, 2), 1, stops=(0,)))


def test_a_state_of_another_optimizer_is_refused():
    model = network()
    states = [
        Trainer(model, optimizer=optimizer, loss_scaling=scaling).state()
        for optimizer, scaling in ((keras.optimizers.SGD(momentum=0.9), False), (CaffeSGD(), True))
    ]
    trainer = make_trainer(model, 0.1)
    for state in states:
        with pytest.raises(KerassegError, match="which is not here: it is of another network or optimizer"):
            trainer.restore(state)


def test_strategies_are_checked():
    assert make_strategy("one").num_replicas_in_sync == 1
    with pytest.raises(KerassegError, match="did you mean 'mirrored'"):
        make_strategy("mirored")
    with pytest.raises(KerassegError, match="before TensorFlow starts"):
        make_strategy("mirrored", replicas=1 + len(tf.config.list_logical_devices("CPU")))


def test_tpu_without_a_tpu_says_what_was_looked_for(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(KerassegError, match="looked for a TPU attached to this machine and found none") as caught:
        make_strategy("tpu")
    assert "\n" not in str(caught.value) and "--strategy one" in str(caught.value)
    monkeypatch.setenv("TPU_NAME", "grpc://localhost:1")
    with pytest.raises(KerassegError, match="received TPU_NAME='grpc://localhost:1': run there, with TPU_NAME unset"):
        make_strategy("tpu")
