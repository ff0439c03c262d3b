"""Where the replicas of a model live."""

import os

import tensorflow as tf

from kerasseg.errors import KerassegError, first_line
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
    name = os.environ.get("TPU_NAME", "local")
    if name != "local":
        # Only there can tf.data call back into Python, which reads and augments the images.
        raise KerassegError(
            f"strategy 'tpu' trains on the machine that the TPU is attached to, received TPU_NAME='{name}': run there, with "
            "TPU_NAME unset"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # Without a TPU each release of TensorFlow raises another type.
        raise KerassegError(
            f"strategy 'tpu' looked for a TPU attached to this machine and found none ({first_line(error)}): on a TPU VM install "
            "kerasseg[tpu]; elsewhere pass --strategy one or mirrored"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


# Asynchronous workers are threads of this process: see `AsynchronousTrainer`.
STRATEGIES = {"one": _one, "mirrored": _mirrored, "multiworker": _multiworker, "tpu": _tpu, "parameter_server": _one}


def make_strategy(name: str = "one", *, replicas: int | None = None, join_timeout: int = 300) -> tf.distribute.Strategy:
    """Makes a distribution strategy by its `--strategy` name.

    Args:
        name: `"one"` device; `"mirrored"`: a replica on every GPU, or on every logical CPU device; `"multiworker"`: the same on
            every worker of the cluster that the variable TF_CONFIG describes, one process each; `"tpu"`: every core of the
            TPU attached to this machine; `"parameter_server"`: asynchronous workers in this process, which need no strategy
            of TensorFlow's.
        replicas: On a machine without GPU, how many logical devices to split the CPU into; before TensorFlow's first operation.
        join_timeout: Seconds that `"multiworker"` waits for the other workers.
    Raises:
        KerassegError: If the name is unknown, `replicas` has no meaning, TensorFlow has started with another number of devices,
            TF_CONFIG is malformed, a worker does not join, or there is no TPU.
    """
    if name not in STRATEGIES:
        raise KerassegError(f"unknown strategy '{name}': {did_you_mean(name, STRATEGIES)}")
    if replicas is not None and (replicas < 1 or name == "one"):
        raise KerassegError(f"received replicas={replicas} for strategy '{name}': expected 1 or more, for --strategy mirrored")
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
