"""Where the replicas of a model live."""

import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def _one() -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _mirrored() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


STRATEGIES = {"one": _one, "mirrored": _mirrored}


def make_strategy(name: str = "one", *, replicas: int | None = None) -> tf.distribute.Strategy:
    """Makes a distribution strategy by its `--strategy` name.

    Args:
        name: `"one"` device, or `"mirrored"`: a replica on every GPU, or on every logical CPU device.
        replicas: On a machine without GPU, how many logical devices to split the CPU into; before TensorFlow's first operation.
    Raises:
        KerassegError: If the name is unknown, or TensorFlow has started with another number of devices.
    """
    if name not in STRATEGIES:
        raise KerassegError(f"unknown strategy '{name}': {did_you_mean(name, STRATEGIES)}")
    if replicas and not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError as error:
            if len(tf.config.list_logical_devices("CPU")) != replicas:
                raise KerassegError(
                    f"replicas={replicas} must be set before TensorFlow starts; set it first, or omit it"
                ) from error
    return STRATEGIES[name]()
