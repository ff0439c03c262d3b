"""Records → decoding → transforms → batches. Only the batches need TensorFlow; it is imported when they are first used."""

from kerasseg.data.boxes import boxes_of, by_size, check_boxes, dense_windows, read_boxes, selective_search
from kerasseg.data.checking import Broken, check_example, find_broken, without_broken
from kerasseg.data.class_counts import ClassCounts, class_weights, count_classes, median_frequency_weights
from kerasseg.data.decode import decode_image, decode_label
from kerasseg.data.features import StoredFeatures
from kerasseg.data.records import DEFAULT_MEAN, DataSet, Example, FileDataSet, Record, each_label
from kerasseg.data.sampling import SAMPLINGS, Sampler, class_balance, example_index, example_rng
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
from kerasseg.data.transforms.cues import MaskCues, MaskedData, hide_cues, mask_cues
from kerasseg.data.views.bootstrap import Bootstrapped
from kerasseg.data.views.cache import Cached
from kerasseg.data.views.heads import OneHead
from kerasseg.data.views.subset import Subset
from kerasseg.data.views.union import Union
from kerasseg.tables import import_lazily as _import_lazily

_CROPS = ("ObjectCrops", "ProposalCrops")
_BATCHES = ("Share", "evaluation_batches", "training_batches", "unwrap_error")

__all__ = [
    "Bootstrapped", "ClassCounts", "ColorJitter", "Compose", "DATA_SETS", "DEFAULT_MEAN", "DataSet", "Example", "FileDataSet",
    "Flip", "Jitter", "LossSampling", "PadTo", "RandomCrop", "RandomScale", "Record", "Resize", "SAMPLINGS", "StoredFeatures",
    "class_weights", "compose", "count_classes", "decode_image", "decode_label", "each_label", "example_index", "example_rng",
    "Broken", "Cached", "MaskedData", "OneHead", "Sampler", "Subset", "Union", "check_example", "class_balance", "find_broken",
    "hide_cues", "without_broken", "MaskCues", "mask_cues", "median_frequency_weights", "open_data", "pad_to", *_BATCHES,
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
