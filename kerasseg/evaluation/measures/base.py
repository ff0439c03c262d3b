"""What everything that is measured over the images of an evaluation has in common."""

import math
from typing import ClassVar

import numpy as np


class Result:
    """What was measured over all images.

    A class of its own for each measure; `key` is its place in `scores.json`.
    """

    key: ClassVar[str]
    # Heading of the column that `per_class` fills in the table of classes; None: no such column.
    column: ClassVar[str | None] = None

    def to_json(self) -> dict:
        """All of it as JSON can hold it: rates 0–1, `None` for NaN."""
        raise NotImplementedError

    def table(self) -> list[str]:
        """Lines to be read, rates in percent."""
        raise NotImplementedError

    def per_class(self) -> np.ndarray:
        """A rate for each class, `(C,)`, 0–1, NaN where there is none; asked for only if there is a `column`."""
        raise NotImplementedError


class Measure:
    """Adds up over the images of one evaluation. A new object for each evaluation.

    A further measure is a file with a subclass, and its line in `kerasseg.evaluation.measures.requested`; or, outside the
    library, an object given to `evaluate(…, measures=[…])`.
    """

    # Whether `add` must be told how sure the network was, which takes a softmax for each image.
    needs_confidence: ClassVar[bool] = False

    def add(self, label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray | None) -> None:
        """Counts one image; images come in the order of the data.

        Args:
            label: Shape `(H, W)`, integer, 0 to C − 1, 255 = ignore. Labels and predictions were checked for their range.
            prediction: Shape `(H, W)`, int32, 0 to C − 1.
            confidence: Shape `(H, W)`, float32, the predicted class's probability; `None` unless some measure needs it.
        """
        raise NotImplementedError

    def result(self) -> Result:
        """What was found over all images added."""
        raise NotImplementedError


def percent(value: float) -> str:
    """A rate of 0–1 in percent; `-` for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def finite(value):
    """A number as JSON can hold it, `None` for NaN; a string as it is; lists and arrays element by element."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(each) for each in value]
    return None if math.isnan(value) else float(value)
