"""Label maps out of files that are no pictures."""

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.labels import IGNORE, LabelTable


def label_from_values(values, path, labels: LabelTable) -> np.ndarray:
    """Turns the numbers of a file into labels.

    Args:
        values: Shape `(H, W)`, whole numbers of any type, as MATLAB often keeps them as double.
        path: Where they come from, for messages.
        labels: The table to read by; numbers go through `file_to_label`.
    Returns:
        Shape `(H, W)`, int32, 0 to classes − 1, 255 = ignore.
    Raises:
        KerassegError: If the shape is another, or a number is not whole or no class.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "iuf" or not values.size:
        raise KerassegError(f"{path} holds {values.dtype} of shape {values.shape}: expected a label map, numbers of shape (H, W)")
    meaning = {**{label: label for label in range(labels.num_classes)}, IGNORE: IGNORE, **labels.file_to_label}
    first = min(meaning)
    lookup = np.full(max(meaning) - first + 1, -1, np.int32)
    lookup[np.array(list(meaning)) - first] = list(meaning.values())
    # NaN is not inside, either.
    inside = (values >= first) & (values < first + len(lookup))
    whole = np.where(inside, values, first).astype(np.int64)
    label = np.where(inside & (whole == values), lookup[whole - first], -1).astype(np.int32)
    bad = label < 0
    if bad.any():
        row, column = np.argwhere(bad)[0]
        known = list(labels.file_to_label or range(labels.num_classes))
        ignored = f", or {IGNORE} = ignore" if max(known) < IGNORE else ""
        raise KerassegError(
            f"{path} holds the value {values[row, column]} (one of {int(bad.sum())} wrong pixels, at row {row}, column {column}): "
            f"expected {min(known)} to {max(known)} of '{labels.name}'{ignored}; copy the file again"
        )
    return label
