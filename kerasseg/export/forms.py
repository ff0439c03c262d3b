"""What a network can be exported as."""

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.runtimes.files import LABEL_RESULTS
from kerasseg.tables import did_you_mean

FORMATS = ("tflite", "onnx", "saved_model")
"""Formats of files. A SavedModel is a directory."""

QUANTIZATIONS = ("none", "float16", "dynamic", "int8", "int8-float-io")
"""How the numbers of a TFLite file are stored; the other formats are float32 throughout."""

RESULTS = ("logits", "probabilities", *LABEL_RESULTS)
"""What a file gives. The last three are class numbers, uint8, and all called `labels` in the file:

- `labels`: of every pixel, the class with the largest logit.
- `coarse_labels`: the same of every cell of the scores before they are resized to the image: much smaller.
- `nearest_labels`: the coarse ones brought to the image, each pixel with the class of the nearest cell.
"""

SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "saved_model": ""}
"""How the names of files end."""


@dataclass(frozen=True)
class Target:
    """What to export a network as.

    Args:
        format: One of `FORMATS`.
        quantize: One of `QUANTIZATIONS`; of TFLite only.
        input_size: Height and width in pixels; `None` for any size, not of TFLite.
        batch_size: Images in one call; `None` for any number, not of TFLite.
        result: One of `RESULTS`.
        output: Which head of a network with several; `None` for all of them.
        select_tf_ops: Whether a TFLite file may use operations of full TensorFlow. One that then does is refused as long as no
            package for Python can run it: it could not be compared with Keras.
    Raises:
        KerassegError: If a name is unknown, a number makes no sense, or the format cannot do what is asked.
    Example:
        >>> Target(quantize="int8", input_size=(180, 240), result="labels").name
        'tflite-int8-labels-180x240'
    """

    format: str = "tflite"
    quantize: str = "none"
    input_size: tuple[int, int] | None = None
    batch_size: int | None = 1
    result: str = "logits"
    output: str | None = None
    select_tf_ops: bool = False

    def __post_init__(self):
        for kind, value, known in (("format", self.format, FORMATS), ("result", self.result, RESULTS)):
            _check_known(kind, value, known)
        _check_known("quantization", self.quantize, QUANTIZATIONS)
        _check_numbers(self.input_size, self.batch_size)
        # NumPy's integers are none of JSON's.
        if self.input_size is not None:
            object.__setattr__(self, "input_size", tuple(map(operator.index, self.input_size)))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", operator.index(self.batch_size))
        if self.result == "nearest_labels" and self.input_size is None:
            raise KerassegError("nearest_labels are those of one size of images: pass input_size, or use coarse_labels or labels")
        if self.format == "tflite":
            self._check_static()
        else:
            self._check_plain()

    def _check_static(self) -> None:
        if self.input_size is None:
            raise KerassegError(
                "a TFLite file takes images of one size: pass input_size, such as (513, 513), or use the format onnx or saved_model"
            )
        if self.batch_size is None:
            raise KerassegError(
                "a TFLite file takes one number of images a call: pass batch_size=1, or use the format onnx or saved_model"
            )

    def _check_plain(self) -> None:
        if self.quantize != "none":
            raise KerassegError(f"format {self.format} is float32 only, received quantize={self.quantize!r}: use the format tflite")
        if self.select_tf_ops:
            raise KerassegError(f"select_tf_ops is a question of TFLite: format {self.format} has none")

    @property
    def name(self) -> str:
        """A name for a folder: what sets this target apart."""
        size = "x".join(map(str, self.input_size)) if self.input_size else "any"
        parts = [self.format, self.quantize if self.quantize != "none" else "", self.result if self.result != "logits" else ""]
        batch = "" if self.batch_size == 1 else f"batch-{self.batch_size or 'any'}"
        return "-".join(part for part in (*parts, self.output or "", size, batch) if part)

    @property
    def file_name(self) -> str:
        """The usual name of the file: `model.tflite`, `model.onnx` or `saved_model`."""
        return f"model{SUFFIXES[self.format]}" if SUFFIXES[self.format] else "saved_model"

    @property
    def int8(self) -> bool:
        """Whether activations are 8-bit numbers too, so that calibration images are needed."""
        return self.quantize.startswith("int8")

    @property
    def coarse(self) -> bool:
        """Whether the scores are taken before they are resized to the image."""
        return self.result in ("nearest_labels", "coarse_labels")

    @property
    def gives_labels(self) -> bool:
        """Whether the results are class numbers."""
        return self.result in LABEL_RESULTS


def _check_known(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise KerassegError(f"unknown {kind} '{value}': {did_you_mean(str(value), known)}")


def _counts(value) -> bool:
    return not isinstance(value, (bool, np.bool_)) and isinstance(value, SupportsIndex) and operator.index(value) >= 1


def _check_numbers(input_size, batch_size) -> None:
    pair = isinstance(input_size, (tuple, list)) and len(input_size) == 2 and all(map(_counts, input_size))
    if input_size is not None and not pair:
        raise KerassegError(f"input_size is {input_size}: expected height and width in pixels, such as (513, 513)")
    if batch_size is not None and not _counts(batch_size):
        raise KerassegError(f"batch_size is {batch_size}: expected a number of images of at least 1, or None for any")
