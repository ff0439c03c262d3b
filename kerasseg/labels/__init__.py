"""Class names, colours and ignore rules of the data sets: one aligned table each. Needs NumPy only."""

from kerasseg.labels.data_sets import LABELS
from kerasseg.labels.table import IGNORE, IGNORE_COLOR, LabelTable, colorize, generic_table, overlay, voc_palette

__all__ = ["IGNORE", "IGNORE_COLOR", "LABELS", "LabelTable", "colorize", "generic_table", "overlay", "voc_palette"]
