"""Storing what a layer of a trained network gives for the images of a data set, and the stage of a recipe that trains on it."""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerasseg.data import DataSet, Example, each_label
from kerasseg.data.class_counts import check_one_map
from kerasseg.data.features import FeatureWriter, check_same
from kerasseg.data.transforms import Resize
from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE
from kerasseg.layers import ReflectionPadding2D
from kerasseg.losses import subsample_label
from kerasseg.tables import did_you_mean

TILE = (900, 900)
"""Input pixels, margin included, of networks with a reflection margin: 66×66 features of Dilation's front end."""


class FeatureExtractor:
    """A layer of a network, and the labels under its maps.

    A network that continues its image by reflection (`layers.ReflectionPadding2D`) gets the image as its authors give it: continued
    by the margin on all sides, then bottom and right to one size, always by reflection; cell i of the map stands for pixel
    i · stride of the image, 255 beyond it. Any other gets the image as it is, and the label is subsampled as by the losses.

    Args:
        model: The network, from `(B, H, W, 3)` RGB 0–255.
        layer: Name of the layer.
        size: `(height, width)` in pixels, margin included, that images are continued to; `None` is `TILE` for networks with a
            margin, and the image's own for others.
        scale: Size at which images are used, as a share of their own.
    Raises:
        KerassegError: If there is no such layer, its output is no map of one size for each image, the network does not take
            photographs, or the size does not give whole cells.
    Reference:
        fyu/dilation's predict.py and train.py; Yu & Koltun 2016, arXiv:1511.07122, §4.
    """

    def __init__(self, model: keras.Model, layer: str, size: tuple[int, int] | None = None, scale: float = 1.0):
        if len(model.inputs) != 1 or model.inputs[0].shape[-1] != 3:
            shapes = ", ".join(str(tensor.shape[1:]) for tensor in model.inputs)
            raise KerassegError(
                f"{model.name} takes inputs of shape {shapes}, no photographs: features are stored of networks on these"
            )
        self.network, self.layer, self.scale = model.name, layer, float(scale)
        self.fingerprint = fingerprint(model)
        padding = next((each for each in model.layers if isinstance(each, ReflectionPadding2D)), None)
        output = _output(model, layer)
        start = _node(model, padding) if padding else None
        try:
            # Two halves: between them the image is continued further than the network itself would do it.
            self._prepare = keras.Model(model.inputs[0], start.arguments.keras_tensors[0]) if padding else None
            self._rest = keras.Model(start.outputs[0] if padding else model.inputs[0], output)
        except ValueError as error:
            raise KerassegError(
                f"{model.name} computes layer '{layer}' without its reflection margin: name one behind the margin"
            ) from error
        self.margin = padding.margin if padding else 0
        self.size = tuple(size) if size else TILE if padding else None
        self.channels, self.stride = output.shape[-1], self._fixed_stride() if padding else None
        self._resize = Resize(scale) if scale != 1 else None

    def __call__(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Computes the map of one example.

        Args:
            example: With a label.
        Returns:
            Map `(h, w, C)` float32, label `(h, w)` int32.
        Raises:
            KerassegError: If the image does not fit, or the map is not finite.
        """
        image, label = (example.image, example.label) if self._resize is None else self._resize(example.image, example.label, None)
        self.check_size([label.shape], example.id)
        image = np.asarray(image, np.float32)[np.newaxis]
        if self._prepare is not None:
            image = np.asarray(self._prepare(image, training=False))
        features = np.asarray(self._rest(self._continued(image), training=False), np.float32)[0]
        if not np.isfinite(features).all():
            raise KerassegError(f"layer '{self.layer}' of {self.network} gives infinite values for '{example.id}': train it anew")
        return features, self._label(label, features.shape[:2], example.id)

    def check_size(self, sizes, name: str = "") -> None:
        """Refuses images that are larger than what they are continued to.

        Args:
            sizes: `(height, width)` in pixels of images.
            name: Which image it is, for the message.
        Raises:
            KerassegError: With the size that would hold them all.
        """
        if self.size is None:
            return
        largest = np.max(list(sizes), axis=0) + 2 * self.margin
        if (largest > self.size).any():
            steps = np.array(self.stride or (1, 1))
            needed = np.maximum(-(-(largest - 2 * self.margin) // steps) * steps + 2 * self.margin, self.size)
            height, width = largest - 2 * self.margin
            which = f"image '{name}'" if name else "the largest image"
            raise KerassegError(
                f"{which} is {height}x{width} pixels, {largest[0]}x{largest[1]} with the network's margin: larger than "
                f"{self.size[0]}x{self.size[1]}, to which images are continued; pass --pad-size {needed[0]}x{needed[1]}"
            )

    def check_steps(self, sizes) -> None:
        """Refuses images whose pixels do not lie under the cells at whole steps, of a network without margin.

        Args:
            sizes: `(height, width)` in pixels of images.
        Raises:
            KerassegError: With a size to continue them to that fits all, if there is one.
        """
        if self.stride is not None:
            return
        for size in [self.size] if self.size else sorted(set(sizes)):
            cells = self._cells(size)
            if cells is None or _whole_steps(size, cells):
                continue
            steps = [max(1, round(n / max(c, 1))) for n, c in zip(size, cells, strict=True)]
            largest = np.maximum(np.max(list(sizes), axis=0), self.size or 1)
            fitting = [-(-(int(n) - 1) // step) * step + 1 for n, step in zip(largest, steps, strict=True)]
            there = self._cells(fitting)
            fits = there is not None and _whole_steps(fitting, there)
            advice = f"pass --pad-size {'x'.join(map(str, fitting))}" if fits else "name another layer"
            raise KerassegError(
                f"images of {size[0]}x{size[1]} pixels give layer '{self.layer}' of {self.network} {cells[0]}x{cells[1]} cells, "
                f"which do not lie over their pixels at whole steps, (H - 1)/(h - 1): {advice}"
            )

    def _cells(self, size) -> tuple[int, int] | None:
        """Height and width of the map of images of some size; `None` where the network does not take them."""
        try:
            return tuple(self._rest.compute_output_shape((1, *size, 3))[1:3])
        except (KerassegError, ValueError):
            return None

    def header(self, data: DataSet) -> dict:
        """Says whose features these are, for `kerasseg.data.features`."""
        return {
            "fingerprint": self.fingerprint,
            "network": self.network,
            "layer": self.layer,
            "labels": data.labels.name,
            "classes": list(data.labels.classes),
            "palette": [list(color) for color in data.labels.palette],
            "channels": self.channels,
            "margin": self.margin,
            "size": list(self.size) if self.size else None,
            "stride": list(self.stride) if self.stride else None,
            "scale": self.scale,
            "ids": list(data.ids),
        }

    def _continued(self, image: np.ndarray) -> np.ndarray:
        around = [(0, 0), *((self.margin, self.margin),) * 2, (0, 0)]
        image = np.pad(image, around, mode="reflect")
        if self.size is None:
            return image
        beyond = [(0, 0), *((0, size - have) for size, have in zip(self.size, image.shape[1:3], strict=True)), (0, 0)]
        return np.pad(image, beyond, mode="reflect")

    def _label(self, label: np.ndarray, cells: tuple[int, int], name: str) -> np.ndarray:
        if self.size is not None:
            inner = [size - 2 * self.margin for size in self.size]
            beyond = [(0, size - have) for size, have in zip(inner, label.shape, strict=True)]
            label = np.pad(label, beyond, constant_values=IGNORE)
        if self.stride is not None:
            return label[:: self.stride[0], :: self.stride[1]]
        try:
            return np.asarray(subsample_label(keras.ops.convert_to_tensor(label[np.newaxis]), *cells))[0]
        except KerassegError as error:
            raise KerassegError(f"layer '{self.layer}' of {self.network}, image '{name}': {error}") from error

    def _fixed_stride(self) -> tuple[int, int]:
        """Image pixels per cell, from the sizes."""
        height, width = self.size
        cells = self._cells(self.size)
        if cells is None:
            raise KerassegError(f"{self.network} cannot take {height}x{width} pixels, margin included: pass a larger --pad-size")
        inner = [size - 2 * self.margin for size in self.size]
        if any(n < 1 or c < 1 or n % c for n, c in zip(inner, cells, strict=True)):
            strides = [max(1, -(-n // max(c, 1))) for n, c in zip(inner, cells, strict=True)]
            fitting = [-(-max(n, 1) // stride) * stride for n, stride in zip(inner, strides, strict=True)]
            there = self._cells([n + 2 * self.margin for n in fitting])
            fits = there is not None and all(c > 0 and n % c == 0 for n, c in zip(fitting, there, strict=True))
            size = "x".join(str(n + 2 * self.margin) for n in fitting)
            advice = f"pass --pad-size {size}" if fits else "name a later layer, which has eaten the margin"
            raise KerassegError(
                f"{height}x{width} pixels give layer '{self.layer}' of {self.network} {cells[0]}x{cells[1]} cells, no whole number "
                f"of the {inner[0]}x{inner[1]} pixels within the margin for each: {advice}"
            )
        return tuple(n // c for n, c in zip(inner, cells, strict=True))


def store_features(
    model: keras.Model,
    layer: str,
    data: DataSet,
    directory: str | Path,
    *,
    size: tuple[int, int] | None = None,
    scale: float = 1.0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Stores the maps of a layer, and the labels at their stride, for every example of a data set, or goes on with it.

    Args:
        model: The trained network.
        layer: Name of the layer; `final` for Dilation's front end, whose scores, not probabilities, are stored.
        data: Photographs with labels.
        directory: Folder of one split; opened as `open_data("features", <its parent>, <its name>)`.
        size: As in `FeatureExtractor`.
        scale: Likewise.
        report: Called with the number of examples stored and of all of them, at the beginning and after each. What it raises ends
            the storing between two examples.
    Raises:
        KerassegError: As `FeatureExtractor`; if an image is too large; or if the folder holds the features of another network.
    Example:
        >>> store_features(model, "final", open_data("camvid", folder, "train"), "features/train")  # doctest: +SKIP
    """
    FeatureStore(FeatureExtractor(model, layer, size, scale), data, directory).fill(report)


class FeatureStore:
    """The features of one data set in their folder.

    Args:
        extractor: What computes them.
        data: Photographs with labels.
        directory: Folder of one split.
        origin: Where the network lies, for whoever goes on; kept, and not compared.
    Raises:
        KerassegError: If the data have no photographs, or the folder holds the features of another network.
    """

    def __init__(self, extractor: FeatureExtractor, data: DataSet, directory: str | Path, origin: str | None = None):
        if not data.photographs:
            raise KerassegError(f"data set '{data.labels.name}' holds features already: name the data set that they come from")
        check_one_map(data)
        self._extractor, self._data, self._directory = extractor, data, Path(directory)
        self._header = {**extractor.header(data), "origin": origin}
        check_same(self._directory, self._header)

    def fill(self, report: Callable[[int, int], None]) -> None:
        """Stores what is missing; see `store_features`."""
        extractor, data = self._extractor, self._data
        if not (self._directory / "features.json").is_file():
            # Before the first is stored: the size to pass is then that of the largest.
            sizes = {_scaled(label.shape, extractor.scale) for label in each_label(data)}
            extractor.check_size(sizes)
            extractor.check_steps(sizes)
        writer = FeatureWriter(self._directory, self._header)
        left = writer.missing()
        for done, index in enumerate(left, start=len(data) - len(left)):
            report(done, len(data))
            writer.write(index, *extractor(_labelled(data, index)))
        writer.finish()
        report(len(data), len(data))


class SampleFeatures(DataSet):
    """What stored features will look like, without storing any: those of the first example stand for all.

    Args:
        extractor: What computes them.
        data: Photographs with labels.
    Attributes:
        seconds: What the first example took.
    """

    photographs = False

    def __init__(self, extractor: FeatureExtractor, data: DataSet):
        if not data.photographs:
            raise KerassegError(f"data set '{data.labels.name}' holds features already: omit --features")
        start = time.perf_counter()
        self.channels, self._sample = extractor.channels, extractor(_labelled(data, 0))
        self.seconds = time.perf_counter() - start
        super().__init__(data.labels, data.ids, (0.0,) * self.channels)

    def of(self, data: DataSet) -> "SampleFeatures":
        """Gives as many of the same sample as another data set has examples."""
        other = copy.copy(self)
        DataSet.__init__(other, data.labels, data.ids, self.mean)
        return other

    def read(self, index: int) -> Example:
        """Gives the map of the first example."""
        return Example(*self._sample, self.ids[index], None)


# What of a layer's configuration does not change what it computes when it does not train, nested layers' included.
_OF_TRAINING = (
    "name", "trainable", "dtype", "seed", "rate", "momentum", "batch_shape", "build_config", "module", "shared_object_id",
)  # fmt: skip
_FIRST_OR_PENALTY = ("_initializer", "_regularizer", "_constraint")


def fingerprint(model: keras.Model) -> str:
    """Names a network by what it computes: SHA-256 of its layers' configurations and all weights, in the network's order.

    Names of layers count where they have weights: those of others depend on what else was built in the process.
    """
    digest = hashlib.sha256()
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            config = _computing(keras.saving.serialize_keras_object(layer))
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for weight in layer.weights:
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
            digest.update(f"{layer.name} {weight.name} {value.shape} {value.dtype}\n".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


def _computing(config):
    """A configuration without what does not change the output."""
    if isinstance(config, dict):
        left = {k: v for k, v in config.items() if k not in _OF_TRAINING and not k.endswith(_FIRST_OR_PENALTY)}
        return {k: _computing(v) for k, v in left.items()}
    return [_computing(value) for value in config] if isinstance(config, list | tuple) else config


def _output(model: keras.Model, layer: str):
    """The map that a layer gives."""
    names = [each.name for each in model.layers if not isinstance(each, keras.layers.InputLayer)]
    if layer not in names:
        raise KerassegError(f"{model.name} has no layer '{layer}' to store features of: {did_you_mean(layer, names)}")
    output = _node(model, model.get_layer(layer)).outputs[0]
    shape = getattr(output, "shape", ())
    if len(shape) != 4 or shape[-1] is None:
        raise KerassegError(f"layer '{layer}' of {model.name} gives shape {tuple(shape)}: expected maps (B, h, w, C)")
    return output


def _node(model: keras.Model, layer: keras.layers.Layer):
    """Where a layer stands in a network; it may stand in others, too, of which its own attribute `output` knows nothing."""
    nodes = [node for nodes in getattr(model, "_nodes_by_depth", {}).values() for node in nodes if node.operation is layer]
    if len(nodes) != 1:
        raise KerassegError(f"layer '{layer.name}' of {model.name} is used {len(nodes)} times: name one that is used once")
    return nodes[0]


def _labelled(data: DataSet, index: int) -> Example:
    example = data[index]
    if example.label is None:
        raise KerassegError(f"example '{example.id}' has no label map: features are stored for training, of splits with masks")
    return example


def _whole_steps(size, cells) -> bool:
    """Whether cells lie over every n-th pixel, from the first to the last, as `losses.subsample_label` wants them."""
    return all(n == c or (1 < c < n and (n - 1) % (c - 1) == 0) for n, c in zip(size, cells, strict=True))


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return tuple(max(1, int(side * scale)) for side in size)
