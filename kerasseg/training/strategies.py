"""Where the replicas of a model live."""

import os
import socket

import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean
from kerasseg.training.cluster import read_cluster, wait_for_workers


def _one(join_timeout: int) -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _mirrored(join_timeout: int) -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multiworker(join_timeout: int) -> tf.distribute.Strategy:
    cluster = read_cluster(os.environ.get("TF_CONFIG"))
    wait_for_workers(cluster, join_timeout)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu(join_timeout: int) -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "")
    try:
        if name.startswith("grpc://"):
            # TensorFlow would try for ever.
            host, _, port = name.removeprefix("grpc://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=join_timeout).close()
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # Without a TPU each release of TensorFlow raises another type.
        looked = f"the TPU named by TPU_NAME='{name}'" if name else "a TPU of this machine (TPU_NAME is not set)"
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise KerassegError(
            f"strategy 'tpu' looked for {looked} and found none ({reason}): on a TPU machine install kerasseg[tpu]; "
            "elsewhere pass --strategy one or mirrored"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


STRATEGIES = {"one": _one, "mirrored": _mirrored, "multiworker": _multiworker, "tpu": _tpu}


def make_strategy(name: str = "one", *, replicas: int | None = None, join_timeout: int = 300) -> tf.distribute.Strategy:
    """Makes a distribution strategy by its `--strategy` name.

    Args:
        name: `"one"` device; `"mirrored"`: a replica on every GPU, or on every logical CPU device; `"multiworker"`: the same on
            every worker of the cluster that the variable TF_CONFIG describes, one process each; `"tpu"`: every core of a TPU.
        replicas: On a machine without GPU, how many logical devices to split the CPU into; before TensorFlow's first operation.
        join_timeout: Seconds that `"multiworker"` waits for the other workers.
    Raises:
        KerassegError: If the name is unknown, TensorFlow has started with another number of devices, TF_CONFIG is malformed, a
            worker does not join, or there is no TPU.
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
    return STRATEGIES[name](join_timeout)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process is the one that writes: always, but for the other workers of a cluster."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.task_type or resolver.task_type == "chief":
        return True
    return not resolver.task_id and "chief" not in resolver.cluster_spec().jobs
