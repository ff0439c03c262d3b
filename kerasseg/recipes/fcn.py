"""FCN's training runs, from the solver files of fcn.berkeleyvision.org (voc-fcn*)."""

from kerasseg.recipes.base import Recipe

_PAPER = "Shelhamer, Long & Darrell, PAMI 2017"
# Every layer of the VGG nets: bias at twice the rate, without decay.
_VGG_MULTIPLIERS = {r".*/bias": (2.0, 0.0)}


def _voc(name: str, **values) -> Recipe:
    defaults = {
        "arch": name.removesuffix("_voc"),
        "data": "voc",
        "split": "sbd_train",
        "validation_split": "seg11valid",
        "sampling": "replacement",
        "loss_normalization": "sum",
        "momentum": 0.99,
        "weight_decay": 5e-4,
        "multipliers": _VGG_MULTIPLIERS,
        "iterations": 100_000,
        "seed": 1337,
        "checkpoint_every": 4000,
        "validate_every": 4000,
        "command": f"python train.py --recipe {name} --data-dir VOC --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


FCN32S_VOC = _voc(
    "fcn32s_voc",
    weights="imagenet",
    learning_rate=1e-10,
    paper=f"{_PAPER}, Table 3",
    expected="mean IoU 63.6 on seg11valid",
)
FCN16S_VOC = _voc(
    "fcn16s_voc",
    starts_from="fcn32s_voc",
    learning_rate=1e-12,
    paper=f"{_PAPER}, Table 3",
    expected="mean IoU 65.0 on seg11valid",
    command="python train.py --recipe fcn16s_voc --data-dir VOC --run-dir runs/fcn16s_voc --init runs/fcn32s_voc",
)
FCN8S_VOC = _voc(
    "fcn8s_voc",
    starts_from="fcn16s_voc",
    learning_rate=1e-14,
    paper=f"{_PAPER}, Table 3",
    expected="mean IoU 65.5 on seg11valid",
    command="python train.py --recipe fcn8s_voc --data-dir VOC --run-dir runs/fcn8s_voc --init runs/fcn16s_voc",
)
FCN8S_ATONCE_VOC = _voc(
    "fcn8s_atonce_voc",
    weights="imagenet",
    learning_rate=1e-10,
    iterations=300_000,
    paper=f"{_PAPER}, Table 3",
    expected="mean IoU 65.4 on seg11valid",
)
# CaffeNet's own layers have no multipliers: bias at the same rate, decayed; only the score layer's bias is faster and free.
FCN_ALEXNET_VOC = _voc(
    "fcn_alexnet_voc",
    loss_normalization="valid",
    learning_rate=1e-4,
    momentum=0.9,
    accumulation=20,
    multipliers={r"score_fr.*/bias": (2.0, 0.0)},
    paper=f"{_PAPER}, Table 1 and §4.4",
    expected="mean IoU 48.0 on seg11valid",
    command="python train.py --recipe fcn_alexnet_voc --data-dir VOC --run-dir runs/fcn_alexnet_voc --weights caffenet.weights.h5",
)
