"""GCN's training runs: the protocol of the paper, and what it leaves open from FCN, whose batch, momentum and decay it has.

The paper states neither loss normalization nor learning rate nor length. One image a step with momentum 0.99 is FCN's "heavy"
learning; there it goes with the summed loss at 1e-10, never lowered, for 100,000 steps, and so it does here in every stage. With
ten times the images, a stage has the 300,000 of FCN-8s trained at once, the longest that was published with this momentum.
"""

from kerasseg.recipes.base import Recipe, Stage

_PAPER = "Peng et al. 2017, arXiv:1703.02719"
_STEPS, _MORE_STEPS = 100_000, 300_000


def _recipe(name: str, folder: str, **values) -> Recipe:
    defaults = {
        "arch": "gcn",
        "weights": "imagenet",
        "backbone": "resnet152_msra",
        "data": "voc",
        "split": "trainaug",
        "validation_split": "val",
        "pad_size": (512, 512),
        "flip": True,
        # Not stated. A batch of one image has no statistics worth keeping, and MSRA's Caffe files hold fixed ones.
        "freeze_batch_norm": True,
        "loss_normalization": "sum",
        "learning_rate": 1e-10,
        "momentum": 0.99,
        "weight_decay": 5e-4,
        "iterations": _STEPS,
        "batch_size": 1,
        "checkpoint_every": 4000,
        "validate_every": 20_000,
        "keep_best": False,
        "command": f"python train.py --recipe {name} --data-dir {folder} --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


# The GCN of Tables 1 to 5; their other rows are this with options: docs/papers.md has them.
GCN_VOC_ABLATION = _recipe(
    "gcn_voc_ablation",
    "VOC",
    arguments={"head": "gcn", "kernel_size": 15, "boundary_refinement": False},
    paper=f"{_PAPER}, Tables 1 to 5",
    expected="mean IoU on val: 74.5, with boundary refinement 74.7; 1×1 baseline 69.0; k = 3 70.1, 5 71.1, 7 72.8, 9 73.4, "
    "11 73.7, 13 74.0; k×k convolution, k = 3 69.8, 5 70.4, 7 69.6, 9 68.8; stack, k = 3 69.8, 5 71.8, 7 71.3, 9 69.5, 11 67.5; "
    "stack of k = 7 with m = 1024 70.4, 210 68.8",
)


def _expected(stage: float, plain: float, baseline: float, more: str = "") -> str:
    return f"mean IoU on val: {stage}{more}; without boundary refinement {plain}, 1×1 baseline {baseline}"


_VOC_FINAL = _expected(80.3, 78.7, 74.0, ", with several scales 80.4, and DenseCRF 81.0; on test 82.2")
# 109,892 images: SBD's and VOC's 10,582 and those of MS-COCO that hold one of VOC's classes.
GCN_VOC = _recipe(
    "gcn_voc",
    "DATA",
    paper=f"{_PAPER}, §4.2, Tables 7 and 8",
    expected=_VOC_FINAL,
    stages=(
        Stage(
            name="coco-sbd-voc",
            changes={
                "data": "coco_voc+voc",
                "split": "trainval+trainaug",
                "pad_size": (640, 640),
                "iterations": _MORE_STEPS,
                "expected": _expected(75.0, 74.1, 69.6),
            },
        ),
        Stage(name="sbd-voc", changes={"expected": _expected(78.6, 77.6, 72.4)}),
        Stage(name="voc", changes={"split": "train", "expected": _VOC_FINAL}),
    ),
)
GCN_RESNET50_VOC = _recipe(
    "gcn_resnet50_voc",
    "VOC",
    backbone="resnet50_msra",
    paper=f"{_PAPER}, Table 6",
    expected="mean IoU on val: 72.3; 1×1 baseline without boundary refinement 65.7",
)
# Nobody published its ImageNet weights: kerasseg.backbones.resnet_gcn.resnet50_gcn is the classifier to train them with.
GCN_RESNET50_GCN_VOC = _recipe(
    "gcn_resnet50_gcn_voc",
    "VOC",
    backbone="resnet50_gcn",
    weights=None,
    paper=f"{_PAPER}, §4.1.2, Table 6",
    expected="mean IoU on val: 72.5; 1×1 baseline without boundary refinement 71.2 (ImageNet top-5 error of the trunk: 7.9)",
    command="python train.py --recipe gcn_resnet50_gcn_voc --data-dir VOC --run-dir runs/gcn_resnet50_gcn_voc "
    "--init resnet50_gcn.keras",
)
# 22,973 images: 2,975 finely and 19,998 coarsely labelled ones. No mirroring beside the crop is stated for this data set alone, but
# §4 states it for all.
_CITYSCAPES_FINAL = "mean IoU on val, four crops of 1024×1024: 76.9, with several scales 77.2, and DenseCRF 77.4; on test 76.9"
GCN_CITYSCAPES = _recipe(
    "gcn_cityscapes",
    "CITYSCAPES",
    arguments={"kernel_size": 25},
    data="cityscapes",
    split="train",
    pad_size=None,
    crop_size=(800, 800),
    paper=f"{_PAPER}, §4.3, Tables 9 and 10",
    expected=_CITYSCAPES_FINAL,
    stages=(
        Stage(
            name="coarse",
            changes={
                # `train_coarse` in two words, so that the counts of both are told.
                "split": "train+train_extra",
                "iterations": _MORE_STEPS,
                "expected": "mean IoU on val, four crops of 1024×1024: 73.0",
            },
        ),
        Stage(name="fine", changes={"expected": _CITYSCAPES_FINAL}),
    ),
)

# Rows on top of several scales (`evaluate.py --tta`). The parameters of its CRF were not published: these are the ones that are
# known for a residual network on VOC.
GCN_VOC_CRF = GCN_VOC.with_crf("deeplab_v2_resnet101", "mean IoU 81.0 on val, with several scales; on test 82.2")
GCN_CITYSCAPES_CRF = GCN_CITYSCAPES.with_crf(
    "deeplab_v2_resnet101", "mean IoU 77.4 on val, four crops of 1024×1024, with several scales; on test 76.9"
)
