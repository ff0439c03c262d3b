"""DeepLab v2's training runs, from the solver files of the authors' releases (as mirrored) and the paper."""

from kerasseg.recipes.base import Recipe

_PAPER = "Chen et al., PAMI 2018, arXiv:1606.00915"


def _multipliers(scores: str) -> dict[str, tuple[float, float]]:
    """The new layers learn ten times as fast, biases twice as fast and without decay."""
    return {rf"{scores}/kernel": (10.0, 1.0), rf"{scores}/bias": (20.0, 0.0)}


def _recipe(name: str, folder: str, **values) -> Recipe:
    defaults = {
        "weights": "imagenet",
        "training_arguments": {"upsample_logits": False},
        "validation_split": "val",
        "crop_size": (321, 321),
        "flip": True,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "poly",
        "power": 0.9,
        "iterations": 20_000,
        "checkpoint_every": 2000,
        "validate_every": 4000,
        "keep_best": False,
        "command": f"python train.py --recipe {name} --data-dir {folder} --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


def _vgg16(name: str, **values) -> Recipe:
    # No random scales: the released file has none.
    return _recipe(
        name,
        "VOC",
        arch="deeplab_v2_vgg16",
        data="voc",
        split="trainaug",
        learning_rate=1e-3,
        batch_size=10,
        multipliers={**_multipliers(r"fc8_voc12_\d"), r".*/bias": (2.0, 0.0)},
        paper=f"{_PAPER}, §4.1 (ASPP)",
        **values,
    )


def _resnet101(name: str, folder: str, **values) -> Recipe:
    """Three scales, fused by their maximum, and four losses; all batch normalization fixed."""
    defaults = {
        "arch": "deeplab_v2_resnet101",
        "arguments": {"multi_scale": True},
        "training_arguments": {"upsample_logits": False, "auxiliary_outputs": True},
        "loss_weights": {"fusion": 1.0, "scale_1": 1.0, "scale_075": 1.0, "scale_05": 1.0},
        "freeze_batch_norm": True,
        "random_scale": (0.5, 1.5),
        "random_scale_step": 0.25,
        "learning_rate": 2.5e-4,
        "batch_size": 1,
        "accumulation": 10,
        "multipliers": _multipliers(r"fc1_voc12_c\d"),
    }
    return _recipe(name, folder, **{**defaults, **values})


# The field of view of ASPP-L; ASPP-S has the rates 2, 4, 8, 12.
DEEPLAB_V2_VGG16_VOC = _vgg16("deeplab_v2_vgg16_voc")
DEEPLAB_V2_VGG16_ASPP_S_VOC = _vgg16("deeplab_v2_vgg16_aspp_s_voc", arguments={"atrous_rates": [2, 4, 8, 12]})

_COCO = "the authors began with a network trained on MS-COCO, not with ImageNet's weights"

DEEPLAB_V2_RESNET101_VOC = _resnet101(
    "deeplab_v2_resnet101_voc",
    "VOC",
    data="voc",
    split="trainaug",
    paper=f"{_PAPER}, §4.1 and Table 4",
    expected=f"mean IoU 76.35 on val; 77.69 with DenseCRF; test 79.7 with DenseCRF ({_COCO})",
)
# For these three no solver file was published: they are trained as on VOC. Their scores are quoted from the literature, Cityscapes'
# from its own server; the first two were made with a DenseCRF and, again, weights of MS-COCO.
DEEPLAB_V2_RESNET101_CONTEXT = _resnet101(
    "deeplab_v2_resnet101_context",
    "CONTEXT",
    data="pascal_context",
    split="train",
    paper=f"{_PAPER}, §4.2",
    expected=f"mean IoU 45.7 on val, with DenseCRF ({_COCO})",
)
DEEPLAB_V2_RESNET101_PERSON_PART = _resnet101(
    "deeplab_v2_resnet101_person_part",
    "PERSON_PART",
    data="pascal_person_part",
    split="train",
    paper=f"{_PAPER}, §4.3",
    expected=f"mean IoU 64.94 on val, with DenseCRF ({_COCO})",
)
# One scale: three of images of 1024×2048 did not fit into the authors' memory.
DEEPLAB_V2_RESNET101_CITYSCAPES = _resnet101(
    "deeplab_v2_resnet101_cityscapes",
    "CITYSCAPES",
    data="cityscapes",
    split="train",
    arguments={},
    training_arguments={"upsample_logits": False},
    loss_weights={},
    paper=f"{_PAPER}, §4.4; Chen et al. 2017, arXiv:1706.05587, Table 13",
    expected="mean IoU 70.4 on test, with DenseCRF",
)

# The rows with a CRF, whose parameters are known for VOC; the other data sets' have those of the same network there.
DEEPLAB_V2_VGG16_VOC_CRF = DEEPLAB_V2_VGG16_VOC.with_crf("deeplab_v2_vgg16", None)
DEEPLAB_V2_VGG16_ASPP_S_VOC_CRF = DEEPLAB_V2_VGG16_ASPP_S_VOC.with_crf("deeplab_v2_vgg16", None)
DEEPLAB_V2_RESNET101_VOC_CRF = DEEPLAB_V2_RESNET101_VOC.with_crf(
    "deeplab_v2_resnet101", f"mean IoU 77.69 on val, 79.7 on test ({_COCO})"
)
DEEPLAB_V2_RESNET101_CONTEXT_CRF = DEEPLAB_V2_RESNET101_CONTEXT.with_crf("deeplab_v2_resnet101", f"mean IoU 45.7 on val ({_COCO})")
DEEPLAB_V2_RESNET101_PERSON_PART_CRF = DEEPLAB_V2_RESNET101_PERSON_PART.with_crf(
    "deeplab_v2_resnet101", f"mean IoU 64.94 on val ({_COCO})"
)
DEEPLAB_V2_RESNET101_CITYSCAPES_CRF = DEEPLAB_V2_RESNET101_CITYSCAPES.with_crf("deeplab_v2_resnet101", "mean IoU 70.4 on test")
