"""Speed and size of a network: what it holds, computes, and takes of memory and time."""

import statistics
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError
from kerasseg.evaluation.analysis.layer_table import at_size, layer_table, table_totals, without_weights
from kerasseg.evaluation.analysis.memory import live_maps, peak_memory

# The first traces the graph; the second finds everything in its place.
_WARM_UP = 2


class Cost(NamedTuple):
    """What a network costs.

    Args:
        network: Its name.
        inputs: Shape of each of its images.
        batch_size: Images of a forward pass.
        parameters: Numbers in its weights.
        trainable_parameters: Those of them that training changes.
        weight_bytes: Bytes of the weights.
        multiply_adds: For one image, of convolutions and dense layers.
        output_stride: Image pixels per cell of the coarsest map, as `table_totals` says it.
        receptive_field: Height and width of what a cell there sees, likewise.
        live_map_bytes: `live_maps` of a batch.
        peak_bytes: `peak_memory` of a batch; `None` if it was not measured.
        seconds: Of each forward pass of a batch.
    """

    network: str
    inputs: list[list[int]]
    batch_size: int
    parameters: int
    trainable_parameters: int
    weight_bytes: int
    multiply_adds: int
    output_stride: int | str | None
    receptive_field: tuple[int | None, int | None] | None
    live_map_bytes: int
    peak_bytes: int | None
    seconds: list[float]

    @property
    def latency(self) -> float:
        """Median seconds of a forward pass of a batch."""
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """How many images the median pass makes in a second."""
        return self.batch_size / self.latency

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {**self._asdict(), "latency": self.latency, "images_per_second": self.images_per_second}


def network_cost(model: keras.Model, size: tuple[int, int], *, batch_size: int = 1, runs: int = 10, memory: bool = True) -> Cost:
    """Counts and measures what a network costs on images of one size.

    Args:
        model: Network of one image or of several of one size.
        size: Their height and width.
        batch_size: Images of a forward pass.
        runs: Forward passes that are timed, after others that are not, in one graph of TensorFlow, on the device that it chooses.
        memory: Whether to measure the peak memory, too, which starts a process.
    Returns:
        All of it.
    Raises:
        KerassegError: If it takes no images of that size, or memory does not suffice.
    """
    if batch_size < 1 or runs < 1:
        raise KerassegError(f"batch size {batch_size}, {runs} runs: expected at least 1 of each")
    _check_size(model, size)
    with without_weights():
        table = at_size(model, size)
        totals, maps = table_totals(layer_table(table)), live_maps(table, batch_size)
        shapes = [list(tensor.shape[1:]) for tensor in table.inputs]
        peak = peak_memory(table, batch_size) if memory else None
    return Cost(
        network=model.name,
        inputs=shapes,
        batch_size=batch_size,
        parameters=totals["parameters"],
        trainable_parameters=sum(_numbers(weight) for weight in model.trainable_weights),
        weight_bytes=sum(_numbers(weight) * tf.as_dtype(weight.dtype).size for weight in model.weights),
        multiply_adds=totals["multiply_adds"],
        output_stride=totals["output_stride"],
        receptive_field=totals["receptive_field"],
        live_map_bytes=maps,
        peak_bytes=peak,
        seconds=_timed(model, shapes, batch_size, runs),
    )


def _numbers(weight) -> int:
    return int(np.prod(weight.shape, dtype=np.int64))


def _check_size(model, size) -> None:
    for tensor in model.inputs:
        if len(tensor.shape) != 4 or any(own not in (None, side) for own, side in zip(tensor.shape[1:3], size, strict=True)):
            taken = "x".join("any" if side is None else str(side) for side in tensor.shape[1:])
            raise KerassegError(f"{model.name} takes input of {taken}, received images of {size[0]}x{size[1]}: pass its own size")


def _timed(model, shapes, batch_size: int, runs: int) -> list[float]:
    """Seconds of each run, on noise; the weights' values and the image's do not change the work."""
    noise = np.random.default_rng(0)
    images = [
        tf.cast(noise.integers(0, 256, (batch_size, *shape)), tensor.dtype)
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]

    @tf.function(autograph=False)
    def forward(images):
        return model(keras.tree.pack_sequence_as(model.input, images), training=False)

    seconds = []
    try:
        for index in range(_WARM_UP + runs):
            start = time.perf_counter()
            forward(images)
            # Of an accelerator, the call alone starts the work.
            tf.test.experimental.sync_devices()
            if index >= _WARM_UP:
                seconds.append(time.perf_counter() - start)
    except tf.errors.ResourceExhaustedError as error:
        raise KerassegError(
            f"{model.name}: memory does not suffice for {batch_size} images: use a smaller batch or image"
        ) from error
    return seconds
