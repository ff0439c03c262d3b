"""The memory that a network's maps need: measured in a process of its own, and counted from its graph."""

import ctypes
import gc
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import tensorflow as tf

import kerasseg
from kerasseg.errors import KerassegError

_PROGRAM = "from kerasseg.evaluation.analysis.memory import _measure; _measure()"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What TensorFlow needs once, whatever it computes: code that is read in, threads, scratch.
_WARM = 32


def live_maps(model: keras.Model, batch_size: int = 1) -> int:
    """Counts the most bytes of maps that are alive at once, if each layer makes a new one and each is dropped after its last use.

    TensorFlow writes some layers' maps over their inputs, and needs scratch besides: what is measured lies on either side.

    Args:
        model: Network of images of one size, built from its configuration, such as `at_size` makes.
        batch_size: Images.
    Returns:
        Bytes; the image and the outputs count.
    Raises:
        KerassegError: If a map's size is not known.
    """
    waiting = [node for operation in model.operations for node in operation._inbound_nodes]
    uses = Counter(id(tensor) for node in waiting for tensor in node.input_tensors)
    uses.update(id(tensor) for tensor in model.outputs)
    made, alive, most = set(), 0, 0
    while waiting:
        # A layer that is used again stands where it was used first.
        node = next(node for node in waiting if all(id(tensor) in made for tensor in node.input_tensors))
        waiting.remove(node)
        made.update(id(tensor) for tensor in node.output_tensors)
        alive += sum(_bytes(tensor, batch_size) for tensor in node.output_tensors)
        most = max(most, alive)
        uses.subtract(id(tensor) for tensor in node.input_tensors)
        dropped = {id(tensor): tensor for tensor in (*node.input_tensors, *node.output_tensors) if not uses[id(tensor)]}
        alive -= sum(_bytes(tensor, batch_size) for tensor in dropped.values())
    return most


def _bytes(tensor, batch_size: int) -> int:
    cells = tensor.shape[1:]
    if None in cells:
        raise KerassegError(f"the size of {tensor.name} is not known: expected a network that is built for images of one size")
    return batch_size * math.prod(cells) * tf.as_dtype(tensor.dtype).size


def peak_memory(model: keras.Model, batch_size: int = 1) -> int | None:
    """Measures how much memory one forward pass on the CPU takes beside the weights, in a process that has done nothing before.

    Args:
        model: Network of images of one size, of layers that Keras and kerasseg know; its weights' values do not count.
        batch_size: Images.
    Returns:
        Bytes by which the resident memory rises at most; `None` where the system does not count that, as Linux does.
    Raises:
        KerassegError: If the process ends before its time: memory ran out, or the network cannot be built anew.
    """
    if not _RESET.exists():
        return None
    root = str(Path(kerasseg.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps({"model": model.to_json(), "batch_size": batch_size}),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        reason = f"it was stopped by signal {-done.returncode}, as when memory runs out" if done.returncode < 0 else last
        raise KerassegError(f"the process that measures the memory of {model.name} ended: {reason}; use a smaller image or batch")
    return int(done.stdout.split()[-1])


def _measure() -> None:
    """What that process does."""
    from kerasseg.evaluation import loading as loading

    given = json.load(sys.stdin)
    # Weights are handed over as tensors: TensorFlow keeps what it needs to make variables, and would use it in the pass.
    with keras.StatelessScope(initialize_variables=False):
        model = keras.models.model_from_json(given["model"])
        weights = [[tf.zeros(weight.shape, weight.dtype) for weight in weights] for weights in _weights(model)]
        images = [tf.zeros((given["batch_size"], *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
        images = keras.tree.pack_sequence_as(model.input, images)

        def forward(weights, images):
            return model.stateless_call(*weights, images, training=False)[0]

        run = tf.function(forward, autograph=False).get_concrete_function(*_specs((weights, images)))
    _warm_up()
    before = _resident()
    run(*tf.nest.flatten((weights, images)))
    print(_status("VmHWM") - before)


def _weights(model) -> tuple:
    return model.trainable_variables, model.non_trainable_variables


def _specs(values):
    return tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), values)


def _warm_up() -> None:
    maps, kernel = tf.zeros((1, _WARM, _WARM, 8)), tf.zeros((3, 3, 8, 8))

    @tf.function(autograph=False)
    def run(maps, kernel):
        found = tf.nn.bias_add(tf.nn.conv2d(maps, kernel, 1, "SAME"), kernel[0, 0, 0])
        return tf.nn.softmax(tf.image.resize(tf.nn.max_pool2d(tf.nn.relu(found), 2, 2, "SAME"), (_WARM, _WARM)))

    run(maps, kernel)


def _resident() -> int:
    """Bytes resident now; the peak is counted from here on."""
    gc.collect()
    # glibc's; what was freed goes back to the system.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    _RESET.write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
