"""Dilation's training runs: the paper's numbers, and where it gives none the authors' code (fyu/dilation)."""

from kerasseg.recipes.base import Recipe, Stage
from kerasseg.recipes.crf_rnn import END_TO_END, MULTIPLIERS

_PAPER = "Yu & Koltun 2016, arXiv:1511.07122"
_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train "
    "tvmonitor"
)
# The front end trains on crops of images that carry its margin, and at its own stride: 500 pixels give 16 cells.
_CROPS = {
    "margin": 186,
    "crop_size": (500, 500),
    "flip": True,
    "label_margin": 186,
    "training_arguments": {"margin": None, "upsample_logits": False},
}
# Stored scores go in whole; the labels were subsampled when they were stored.
_MAPS = {"margin": 0, "crop_size": None, "flip": False, "label_margin": 0, "training_arguments": {}}


def _scores(where: str, mean: float, by_class: str) -> str:
    """What a table publishes: the mean over 21 classes, and 20 of them."""
    classes = ", ".join(f"{name} {value}" for name, value in zip(_CLASSES.split(), by_class.split(), strict=True))
    return f"mean IoU {mean} on {where} ({classes})"


def _recipe(name: str, folder: str, **values) -> Recipe:
    defaults = {
        "arch": "dilation_frontend",
        "weights": "imagenet",
        "data": "voc",
        "split": "trainaug",
        "validation_split": "val",
        **_CROPS,
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "multipliers": {r".*/bias": (2.0, 0.0)},
        "schedule": "step",
        "step_size": 100_000,
        "gamma": 0.1,
        # The solver's end. What the authors kept is in no file, except where a recipe has another number.
        "iterations": 400_000,
        "batch_size": 14,
        "checkpoint_every": 2000,
        "validate_every": 10_000,
        "keep_best": False,
        "command": f"python train.py --recipe {name} --data-dir {folder} --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


def _in_stages(name: str, folder: str, front_ends: dict[str, dict], tile: tuple[int, int], **values) -> Recipe:
    """Front ends, the context module alone on the last one's stored scores of images continued to `tile`, and both together."""
    arguments = values.get("arguments", {})
    # The front end has the preprocessing, and no context module.
    alone = {key: value for key, value in arguments.items() if key == "preprocessing"}
    context = {key: value for key, value in arguments.items() if key != "preprocessing"}
    frontal = {"arch": "dilation_frontend", "arguments": alone, "expected": None}
    stages = (
        *(Stage(name=each, changes={**frontal, **changes}) for each, changes in front_ends.items()),
        Stage(
            name="context",
            changes={
                **_MAPS,
                "features": "final",
                "pad_size": tile,
                "arguments": {**context, "from_features": True},
                "learning_rate": 1e-3,
                "batch_size": 60,
                "expected": None,
            },
        ),
        Stage(name="joint", starts_from={list(front_ends)[-1]: "", "context": ""}),
    )
    return _recipe(name, folder, **{"learning_rate": 1e-5, "stages": stages, **values})


DILATION_FRONTEND_VOC = _recipe(
    "dilation_frontend_voc",
    "VOC",
    iterations=60_000,
    paper=f"{_PAPER}, §4 and Table 2",
    expected=_scores(
        "test", 67.6, "82.2 37.4 72.7 57.1 62.7 82.8 77.8 78.9 28 70 51.6 73.1 72.8 81.5 79.1 56.6 77.1 49.9 75.3 60.9"
    ),
)
_WITH_COCO = {
    "data": "coco_voc+voc",
    "split": "trainval+trainaug",
    "validation_split": None,
    "validate_every": None,
    "expected": None,
}
# §5: what the experiments with context modules begin with.
DILATION_FRONTEND_COCO_VOC = DILATION_FRONTEND_VOC.override(
    name="dilation_frontend_coco_voc",
    paper=f"{_PAPER}, §5, Tables 3 and 4",
    expected=_scores("val", 69.8, "86.3 38.2 76.8 66.8 63.2 87.3 78.7 82 33.7 76.7 53.5 73.7 76 76.6 83 51.9 77.8 44 79.9 66.3")
    + "; 71.3 on test",
    command="python train.py --recipe dilation_frontend_coco_voc --data-dir DATA --run-dir runs/dilation_frontend_coco_voc",
    stages=(
        Stage(name="coco", changes={**_WITH_COCO, "iterations": 100_000}),
        Stage(name="coco_slow", changes={**_WITH_COCO, "iterations": 40_000, "learning_rate": 1e-4}),
        Stage(name="voc", changes={"iterations": 50_000, "learning_rate": 1e-5}),
    ),
)
_VOC_FRONT_END, _VOC_TILE = {"frontend": {"learning_rate": 1e-3, "iterations": 60_000}}, (900, 900)
# Without COCO; Table 3 has them behind the front end that was tuned on it.
DILATION8_VOC = _in_stages(
    "dilation8_voc",
    "VOC",
    _VOC_FRONT_END,
    _VOC_TILE,
    arch="dilation8",
    arguments={"context": "basic"},
    paper=f"{_PAPER}, §3 and §4",
)
DILATION8_VOC_LARGE = _in_stages(
    "dilation8_voc_large",
    "VOC",
    _VOC_FRONT_END,
    _VOC_TILE,
    arch="dilation8",
    arguments={"context": "large"},
    paper=f"{_PAPER}, §3 and §4",
)
# §5's front end: 100K steps at 1e-3 and 40K at 1e-4, as the step schedule has them, then 50K on VOC alone.
_COCO_FRONT_ENDS = {
    "coco_voc": {**_WITH_COCO, "learning_rate": 1e-3, "iterations": 140_000},
    "voc": {"learning_rate": 1e-5, "iterations": 50_000},
}
DILATION8_COCO_VOC = _in_stages(
    "dilation8_coco_voc",
    "DATA",
    _COCO_FRONT_ENDS,
    _VOC_TILE,
    arch="dilation8",
    arguments={"context": "basic"},
    paper=f"{_PAPER}, Table 3",
    expected=_scores(
        "val", 71.3, "86.4 37.6 78.5 66.3 64.1 89.9 79.9 84.9 36.1 79.4 55.8 77.6 81.6 79 83.1 51.2 81.3 43.7 82.3 65.7"
    ),
)
DILATION8_COCO_VOC_LARGE = _in_stages(
    "dilation8_coco_voc_large",
    "DATA",
    _COCO_FRONT_ENDS,
    _VOC_TILE,
    arch="dilation8",
    arguments={"context": "large"},
    paper=f"{_PAPER}, Tables 3 and 4",
    expected=_scores(
        "val", 72.1, "87.3 39.2 80.3 65.6 66.4 90.2 82.6 85.8 34.8 81.9 51.7 79 84.1 80.9 83.2 51.2 83.2 44.7 83.4 65.6"
    )
    + "; 73.5 on test",
)
# Table 3's rows with structured prediction. The CRF is that of DeepLab v1; its parameters, of which the paper has none, are that
# network's here: `tools/tune_crf.py` searches for others.
DILATION_FRONTEND_COCO_VOC_CRF = DILATION_FRONTEND_COCO_VOC.with_crf(
    "deeplab_v1",
    _scores("val", 71.6, "89.2 38.8 80 69.8 63.2 88.8 80 85.2 33.8 80.6 55.5 77.1 80.8 77.3 84.3 53.1 80.4 45 80.7 67.9"),
)
DILATION8_COCO_VOC_CRF = DILATION8_COCO_VOC.with_crf(
    "deeplab_v1",
    _scores("val", 72.7, "89.1 38.7 81.4 67.4 65 91 81 86.7 37.5 81 57 79.6 83.6 79.9 84.6 52.7 83.3 44.3 82.6 67.2"),
)
DILATION8_COCO_VOC_LARGE_CRF = DILATION8_COCO_VOC_LARGE.with_crf(
    "deeplab_v1",
    _scores("val", 73.3, "89.6 39.9 82.7 66.7 67.5 91.1 83.3 87.4 36 83.3 52.5 80.7 85.7 81.8 84.4 52.6 84.4 45.3 83.7 66.7")
    + "; 74.7 on test",
)
# The CRF-RNN trains as its authors' does, behind the network that is trained: on whole images with logits of their size.
_CRF_RNN = Stage(
    name="crf_rnn",
    changes={
        **END_TO_END,
        "multipliers": {**MULTIPLIERS, r".*/bias": (2.0, 0.0)},
        "crf_rnn": True,
        "margin": 0,
        "label_margin": 0,
        "crop_size": None,
        "flip": False,
        "training_arguments": {},
    },
)
DILATION_FRONTEND_COCO_VOC_CRF_RNN = DILATION_FRONTEND_COCO_VOC.with_stage(
    "dilation_frontend_coco_voc_crf_rnn",
    _CRF_RNN,
    _scores("val", 72.5, "88.8 38.1 80.8 69.1 65.6 89.9 79.6 85.7 36.3 83.6 57.3 77.9 83.2 77 84.6 54.7 82.1 46.9 80.9 66.7"),
)
DILATION8_COCO_VOC_CRF_RNN = DILATION8_COCO_VOC.with_stage(
    "dilation8_coco_voc_crf_rnn",
    _CRF_RNN,
    _scores("val", 73.1, "89 38.4 82.3 67.9 65.2 91.5 80.4 87.2 38.4 82.1 57.7 79.9 85 79.6 84.5 53.5 84 45 82.8 66.2"),
)
DILATION8_COCO_VOC_LARGE_CRF_RNN = DILATION8_COCO_VOC_LARGE.with_stage(
    "dilation8_coco_voc_large_crf_rnn",
    _CRF_RNN,
    _scores("val", 73.9, "89.3 39.2 83.6 67.2 69 92.1 83.1 88 38.4 84.8 55.3 81.2 86.7 81.3 84.3 53.6 84.4 45.8 83.8 67")
    + "; 75.3 on test",
)
_STREETS = {"frontend": {"learning_rate": 1e-4}}
# The released networks of streets; their results are not among the tables of the paper's main part. Tiles are the authors', but for
# KITTI 4 pixels wider, which makes them whole cells, and for Cityscapes whole images.
DILATION8_CAMVID = _in_stages(
    "dilation8_camvid",
    "CAMVID",
    _STREETS,
    (900, 1100),
    arch="dilation8",
    arguments={"preprocessing": "dilation_camvid"},
    data="camvid",
    data_arguments={"class_order": "dilation"},
    split="train",
    paper=f"{_PAPER}; fyu/dilation, dilation8_camvid",
)
DILATION7_KITTI = _in_stages(
    "dilation7_kitti",
    "KITTI",
    _STREETS,
    (852, 1644),
    arch="dilation7",
    arguments={"preprocessing": "dilation_kitti"},
    data="kitti",
    split="train",
    validation_split=None,
    validate_every=None,
    paper=f"{_PAPER}; fyu/dilation, dilation7_kitti",
)
DILATION10_CITYSCAPES = _in_stages(
    "dilation10_cityscapes",
    "CITYSCAPES",
    _STREETS,
    (1396, 2420),
    arch="dilation10",
    arguments={"preprocessing": "dilation_cityscapes"},
    data="cityscapes",
    split="train",
    paper=f"{_PAPER}; fyu/dilation, dilation10_cityscapes",
)
