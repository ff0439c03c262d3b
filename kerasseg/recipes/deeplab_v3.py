"""DeepLab v3's training runs: the protocol of the paper, and where it is silent the authors' code (tensorflow/models)."""

from kerasseg.recipes.base import Recipe, Stage

_PAPER = "Chen et al. 2017, arXiv:1706.05587"
# Batch normalization's scales and offsets do not decay, nor do biases, whose gradients the code doubles.
_MULTIPLIERS = {r".*/(gamma|beta)": (1.0, 0.0), r".*/bias": (2.0, 0.0)}
_HARD_CLASSES = ("bicycle", "chair", "diningtable", "pottedplant", "sofa")
# §4.1: the official trainval images alone, the map twice as fine, batch normalization as it is.
_TRAINVAL = {
    "data": "voc",
    "split": "trainval",
    "validation_split": None,
    "validate_every": None,
    "output_stride": 8,
    "freeze_batch_norm": True,
    "multipliers": {r".*/bias": (2.0, 0.0)},
    "learning_rate": 1e-3,
    "bootstrap_classes": _HARD_CLASSES,
}


def _command(name: str, folder: str) -> str:
    return f"python train.py --recipe {name} --data-dir {folder} --run-dir runs/{name}"


def _recipe(name: str, folder: str, **values) -> Recipe:
    defaults = {
        "arch": "deeplab_v3",
        "weights": "imagenet",
        "backbone": "resnet101",
        "output_stride": 16,
        "data": "voc",
        "split": "trainaug",
        "validation_split": "val",
        "random_scale": (0.5, 2.0),
        "random_scale_step": 0.25,
        "crop_size": (513, 513),
        "flip": True,
        "learning_rate": 0.007,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "multipliers": _MULTIPLIERS,
        "schedule": "poly",
        "power": 0.9,
        "iterations": 30_000,
        "batch_size": 16,
        "checkpoint_every": 2000,
        "validate_every": 5000,
        "keep_best": False,
        "command": _command(name, folder),
    }
    return Recipe(name=name, **{**defaults, **values})


# Table 6. Tables 5 and 8 to 10 are this with options; docs/papers.md has them.
DEEPLAB_V3_VOC = _recipe(
    "deeplab_v3_voc",
    "VOC",
    paper=f"{_PAPER}, Tables 5 and 6",
    expected="mean IoU on val: 77.21; at output stride 8 78.51, with six scales 79.45, mirrored too 79.77",
)
# Table 4. Tables 1 to 3 are this with options.
DEEPLAB_V3_CASCADE_VOC = _recipe(
    "deeplab_v3_cascade_voc",
    "VOC",
    arch="deeplab_v3_cascade",
    paper=f"{_PAPER}, Tables 3 and 4",
    expected="mean IoU on val: 76.66; at output stride 8 78.05, with six scales 78.93, mirrored too 79.35",
)
# What went to the test server, but for the weights of MS-COCO.
DEEPLAB_V3_VOC_TRAINVAL = DEEPLAB_V3_VOC.override(
    name="deeplab_v3_voc_trainval",
    paper=f"{_PAPER}, §4.1 and §4.3",
    expected=None,
    command=_command("deeplab_v3_voc_trainval", "VOC"),
    stages=(Stage(name="trainaug", changes={"expected": DEEPLAB_V3_VOC.expected}), Stage(name="trainval", changes=_TRAINVAL)),
)
# About 60,000 images of MS-COCO's trainval without minival that have a region of VOC's classes above 1,000 pixels. How long they
# were trained on is not stated: as long as VOC's.
DEEPLAB_V3_COCO_VOC = DEEPLAB_V3_VOC.override(
    name="deeplab_v3_coco_voc",
    paper=f"{_PAPER}, Tables 6 and 7",
    expected="mean IoU 85.7 on test",
    command=_command("deeplab_v3_coco_voc", "DATA"),
    stages=(
        Stage(
            name="coco",
            changes={
                "data": "coco_voc",
                "data_arguments": {"minimum_region": 1000},
                "split": "trainval_minus_minival",
                "validation_split": None,
                "validate_every": None,
                "expected": None,
            },
        ),
        Stage(
            name="trainaug",
            changes={
                "learning_rate": 1e-4,
                "expected": "mean IoU 82.70 on val, at output stride 8 with six scales, mirrored too",
            },
        ),
        # The smaller rate holds for all of VOC.
        Stage(name="trainval", changes={**_TRAINVAL, "learning_rate": 1e-4}),
    ),
)
DEEPLAB_V3_CITYSCAPES = _recipe(
    "deeplab_v3_cityscapes",
    "CITYSCAPES",
    data="cityscapes",
    split="train",
    crop_size=(769, 769),
    iterations=90_000,
    paper=f"{_PAPER}, Table 12",
    expected="mean IoU on val: 77.23; at output stride 8 77.82; with three scales and mirrored 79.30",
)
# 3,475 finely and 20,000 coarsely labelled images together; evaluated with six scales at output stride 4.
DEEPLAB_V3_CITYSCAPES_COARSE = DEEPLAB_V3_CITYSCAPES.override(
    name="deeplab_v3_cityscapes_coarse",
    # `trainval_coarse` in three words, so that the counts of all are told.
    split="train+val+train_extra",
    validation_split=None,
    validate_every=None,
    paper=f"{_PAPER}, Table 13",
    expected="mean IoU 81.3 on test",
    command=_command("deeplab_v3_cityscapes_coarse", "CITYSCAPES"),
)
