"""DeepLab v1's training runs, from the solver files of the authors' releases (as mirrored) and the paper."""

from kerasseg.recipes.base import Recipe, Stage

_PAPER = "Chen et al., ICLR 2015, arXiv:1412.7062"
# The first pattern that matches counts. Biases learn twice as fast and do not decay; the new layer ten times as fast.
_MULTIPLIERS = {r"fc8_voc12/kernel": (10.0, 1.0), r"fc8_voc12/bias": (20.0, 0.0), r".*/bias": (2.0, 0.0)}
# With several scales the net below is fixed, and its side branches learn at the common rate.
_BRANCH_MULTIPLIERS = {r".*/bias": (2.0, 0.0)}


def _voc(name: str, **values) -> Recipe:
    defaults = {
        "weights": "imagenet",
        # The label is shrunk by 8 and the scores are left as they are; evaluation zooms the scores.
        "training_arguments": {"upsample_logits": False},
        "data": "voc",
        "split": "trainaug",
        "validation_split": "val",
        "crop_size": (321, 321),
        "flip": True,
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "multipliers": _MULTIPLIERS,
        "schedule": "step",
        "step_size": 2000,
        "gamma": 0.1,
        # A second solver file trains 8,000 on trainvalaug for the test server.
        "iterations": 6000,
        "batch_size": 30,
        "checkpoint_every": 1000,
        "validate_every": 2000,
        "keep_best": False,
        "command": f"python train.py --recipe {name} --data-dir VOC --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


def _multi_scale(base: Recipe, name: str, frozen: tuple[str, ...], multipliers, **values) -> Recipe:
    """Trains a net, then its side branches with the net fixed."""
    first = ("arguments", "crop_size", "batch_size", "label_offset", "freeze", "multipliers", "paper", "expected")
    return _voc(
        name,
        arch=base.arch,
        arguments={"multi_scale": True},
        freeze=frozen,
        multipliers=multipliers,
        stages=(
            Stage(name="single_scale", changes={field: getattr(base, field) for field in first}),
            Stage(name="multi_scale"),
        ),
        **values,
    )


# fc6 of 4×4. Its train file leaves pool4 unpadded, so that the scores lie one cell further in: label[1::8].
DEEPLAB_V1_VOC = _voc(
    "deeplab_v1_voc", arch="deeplab_v1", crop_size=(306, 306), batch_size=20, label_offset=1, paper=f"{_PAPER}, §3.1 and Table 1"
)
DEEPLAB_V1_LARGEFOV_VOC = _voc(
    "deeplab_v1_largefov_voc",
    arch="deeplab_v1_largefov",
    paper=f"{_PAPER}, Tables 1 and 2",
    expected="mean IoU 62.25 on val; 67.64 with DenseCRF; test 70.3 with DenseCRF",
)
# The mirrored files fix fc8 with the net in the LargeFOV version only.
DEEPLAB_V1_MSC_VOC = _multi_scale(
    DEEPLAB_V1_VOC,
    "deeplab_v1_msc_voc",
    (r"conv\d_\d", "fc6", "fc7"),
    _MULTIPLIERS,
    paper=f"{_PAPER}, §4.3 and Table 1",
)
DEEPLAB_V1_MSC_LARGEFOV_VOC = _multi_scale(
    DEEPLAB_V1_LARGEFOV_VOC,
    "deeplab_v1_msc_largefov_voc",
    (r"conv\d_\d", "fc6", "fc7", "fc8_voc12"),
    _BRANCH_MULTIPLIERS,
    paper=f"{_PAPER}, §4.3 and Tables 1 and 2",
    expected="mean IoU 64.21 on val; 68.70 with DenseCRF; test 71.6 with DenseCRF",
)
# The rows with a CRF. Its parameters were searched for on 100 images of val; the authors' script has those of LargeFOV.
DEEPLAB_V1_VOC_CRF = DEEPLAB_V1_VOC.with_crf(
    "deeplab_v1", "mean IoU 66.4 on test, as quoted by Yu & Koltun 2016, arXiv:1511.07122, §4"
)
DEEPLAB_V1_LARGEFOV_VOC_CRF = DEEPLAB_V1_LARGEFOV_VOC.with_crf("deeplab_v1_largefov", "mean IoU 67.64 on val, 70.3 on test")
DEEPLAB_V1_MSC_VOC_CRF = DEEPLAB_V1_MSC_VOC.with_crf("deeplab_v1", None)
DEEPLAB_V1_MSC_LARGEFOV_VOC_CRF = DEEPLAB_V1_MSC_LARGEFOV_VOC.with_crf("deeplab_v1_largefov", "mean IoU 68.70 on val, 71.6 on test")
