"""Records → decoding → transforms → batches. Only the batches need TensorFlow; it is imported when they are first used."""

from kerasseg.data.bootstrap import Bootstrapped
from kerasseg.data.boxes import boxes_of, by_size, check_boxes, dense_windows, read_boxes, selective_search
from kerasseg.data.class_counts import ClassCounts, class_weights, count_classes, median_frequency_weights
from kerasseg.data.cues import MaskCues, mask_cues
from kerasseg.data.decode import decode_image, decode_label
from kerasseg.data.features import StoredFeatures
from kerasseg.data.records import DEFAULT_MEAN, DataSet, Example, FileDataSet, Record, each_label
from kerasseg.data.sampling import SAMPLINGS, example_index, example_rng
from kerasseg.data.table import DATA_SETS, open_data
from kerasseg.data.transforms import (
    ColorJitter,
    Compose,
    Flip,
    Jitter,
    LossSampling,
    PadTo,
    RandomCrop,
    RandomScale,
    Resize,
    compose,
    pad_to,
)
from kerasseg.tables import import_lazily as _import_lazily

_CROPS = ("ObjectCrops", "ProposalCrops")
_BATCHES = ("Share", "evaluation_batches", "training_batches", "unwrap_error")

__all__ = [
    "Bootstrapped", "ClassCounts", "ColorJitter", "Compose", "DATA_SETS", "DEFAULT_MEAN", "DataSet", "Example", "FileDataSet",
    "Flip", "Jitter", "LossSampling", "PadTo", "RandomCrop", "RandomScale", "Record", "Resize", "SAMPLINGS", "StoredFeatures",
    "class_weights", "compose", "count_classes", "decode_image", "decode_label", "each_label", "example_index", "example_rng",
    "MaskCues", "mask_cues", "median_frequency_weights", "open_data", "pad_to", *_BATCHES,
    "boxes_of", "by_size", "check_boxes", "dense_windows", "read_boxes", "selective_search", *_CROPS,
]  # fmt: skip


def __getattr__(name: str):
    if name in _BATCHES:
        return getattr(_import_lazily("kerasseg.data.batches"), name)
    if name in _CROPS:
        # scipy is loaded with them.
        return getattr(_import_lazily("kerasseg.data.object_crops"), name)
    raise AttributeError(f"module 'kerasseg.data' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
