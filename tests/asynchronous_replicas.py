"""Trains by two workers, each on a logical device of its own, and prints the losses and the devices. Run by
test_parameter_server.py, alone in its process: the CPU can be split only before TensorFlow starts.

    python asynchronous_replicas.py
"""

import json

import tensorflow as tf
from test_parameter_server import STEPS, Seen, feed, make_trainer


def main():
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    trainer = make_trainer(Seen, workers=2)
    losses = [step.loss for step in trainer.train(feed, STEPS)]
    print(json.dumps({"losses": losses, "devices": sorted(trainer.devices)}))
    # Left open, with gradients under way: the process ends all the same.
    unfinished = trainer.train(feed, 2 * STEPS)
    next(unfinished)
    return unfinished


if __name__ == "__main__":
    kept_to_the_end = main()
