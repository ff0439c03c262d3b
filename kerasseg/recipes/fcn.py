"""FCN's training runs, from the paper and the solver files of fcn.berkeleyvision.org.

What both say is followed; where they differ, or one is silent, a comment says which is taken. The published networks all have their
upsampling fixed; ours learn it, as the paper says, unless `--arguments learn_upsampling=false`.
"""

from kerasseg.recipes.base import Recipe, Stage

_PAPER = "Shelhamer, Long & Darrell, PAMI 2017"
# Every layer of the VGG nets: bias at twice the rate, without decay.
_VGG_MULTIPLIERS = {r".*/bias": (2.0, 0.0)}


def _scores(pixel: float, mean: float, iou: float, weighted: float, where: str) -> str:
    return f"pixel accuracy {pixel}, mean accuracy {mean}, mean IoU {iou}, frequency weighted IoU {weighted} on {where}"


def _recipe(name: str, folder: str, **values) -> Recipe:
    """What all runs share: whole images one at a time, drawn with replacement, and the unnormalised loss."""
    defaults = {
        "weights": "imagenet",
        "sampling": "replacement",
        "loss_normalization": "sum",
        "learning_rate": 1e-10,
        "momentum": 0.99,
        "weight_decay": 5e-4,
        "multipliers": _VGG_MULTIPLIERS,
        "iterations": 100_000,
        "seed": 1337,
        "command": f"python train.py --recipe {name} --data-dir {folder} --run-dir runs/{name}",
    }
    return Recipe(name=name, **{**defaults, **values})


def _staged(recipe: Recipe, expected: dict[str, str | None], rates: dict[str, float]) -> Recipe:
    """Makes a recipe of several strides: only the first stage has ImageNet's weights, each later one those of the one before."""
    changes = [{"arch": arch, "learning_rate": rate, "expected": expected.get(arch)} for arch, rate in rates.items()]
    return recipe.override(**changes[-1], stages=tuple(Stage(name=each["arch"], changes=each) for each in changes))


# PASCAL VOC 2011: trained on SBD's 8,498 images, validated on the 736 of segval that SBD does not train on.

_VOC_32S = _scores(90.5, 76.5, 63.6, 83.5, "seg11valid (Table 8, mean IoU without background: 84.8)")
_VOC_SCORES = {
    "fcn32s": _VOC_32S,
    "fcn16s": _scores(91.0, 78.1, 65.0, 84.3, "seg11valid"),
    "fcn8s": _scores(91.2, 77.6, 65.5, 84.5, "seg11valid"),
}
_VOC_RATES = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-14}


def _voc(name: str, **values) -> Recipe:
    defaults = {
        "arch": name.removesuffix("_voc"),
        "data": "voc",
        "split": "sbd_train",
        "validation_split": "seg11valid",
        "checkpoint_every": 4000,
        "validate_every": 4000,
        "paper": f"{_PAPER}, Table 3",
    }
    return _recipe(name, "VOC", **{**defaults, **values})


# Also the "heavy" learning of Table 2.
FCN32S_VOC = _voc("fcn32s_voc", paper=f"{_PAPER}, Table 2 (FCN-heavy) and Table 3", expected=_VOC_32S)
FCN16S_VOC = _staged(_voc("fcn16s_voc"), _VOC_SCORES, {arch: _VOC_RATES[arch] for arch in ("fcn32s", "fcn16s")})
FCN8S_VOC = _staged(_voc("fcn8s_voc"), _VOC_SCORES, _VOC_RATES)
FCN8S_ATONCE_VOC = _voc("fcn8s_atonce_voc", iterations=300_000, expected=_scores(91.1, 78.5, 65.4, 84.4, "seg11valid"))
# CaffeNet's own layers have no multipliers: bias at the same rate, decayed; only the score layer's bias is faster and free. The
# rate is the solver file's, whose loss is normalised; the paper says 1e-3.
FCN_ALEXNET_VOC = _voc(
    "fcn_alexnet_voc",
    weights=None,
    loss_normalization="valid",
    learning_rate=1e-4,
    momentum=0.9,
    accumulation=20,
    multipliers={r"score_fr.*/bias": (2.0, 0.0)},
    paper=f"{_PAPER}, Table 1 and §4.4",
    expected="mean IoU 48.0 on seg11valid (Table 1, with the 1,112 images of VOC 2011 alone: 39.8)",
    command="python train.py --recipe fcn_alexnet_voc --data-dir VOC --run-dir runs/fcn_alexnet_voc --weights caffenet.weights.h5",
)
# Never released: no file of it exists. §4.1 states rate, momentum and accumulation, doubles the rate of biases, and says "at least
# 175 epochs", here of VOC 2011's own 1,112 images, on which Table 1 is: 9,730 steps. Of its two decays, "5e-4 or 2e-4", the second
# is the one that GoogLeNet's public solver has; that biases do not decay is from the public definition, too. The normalised loss
# is AlexNet's, the one for which rates of this size have a meaning. Footnote 3: they had trained GoogLeNet itself anew.
FCN_GOOGLENET_VOC = _voc(
    "fcn_googlenet_voc",
    weights=None,
    split="seg11train",
    loss_normalization="valid",
    learning_rate=5e-5,
    momentum=0.9,
    weight_decay=2e-4,
    accumulation=20,
    iterations=9730,
    checkpoint_every=200,
    validate_every=200,
    paper=f"{_PAPER}, Table 1 and §4.1",
    expected="mean IoU 42.5 on the validation set of VOC 2011",
    command="python train.py --recipe fcn_googlenet_voc --data-dir VOC --run-dir runs/fcn_googlenet_voc "
    "--weights googlenet.weights.h5",
)
# Table 2 gives all three the same sequence of 100,000 images, and the best score of the run. It does not state the rates: these two
# have that of the third, the only one known for the summed loss.
FCN32S_VOC_ACCUM = _voc(
    "fcn32s_voc_accum",
    arch="fcn32s",
    momentum=0.9,
    accumulation=20,
    iterations=5000,
    checkpoint_every=200,
    validate_every=200,
    paper=f"{_PAPER}, Table 2",
    expected=_scores(86.0, 66.5, 51.9, 76.5, "seg11valid"),
)
FCN32S_VOC_ONLINE = _voc(
    "fcn32s_voc_online",
    arch="fcn32s",
    momentum=0.9,
    paper=f"{_PAPER}, Table 2",
    expected=_scores(89.3, 76.2, 60.7, 81.8, "seg11valid"),
)
# All features fixed: only the score layer learns. No file of this one was published, nor of the truncated nets; their rates and
# lengths are those of the others of Table 3, which the paper says share batch size and momentum.
FCN32S_VOC_FIXED = _voc(
    "fcn32s_voc_fixed",
    arch="fcn32s",
    freeze=("conv.*", "fc.*"),
    expected=_scores(82.9, 64.6, 46.6, 72.3, "seg11valid"),
)
FCN_POOL5_VOC = _voc("fcn_pool5_voc", expected=_scores(87.4, 60.5, 50.0, 78.5, "seg11valid"))
FCN_POOL4_VOC = _voc("fcn_pool4_voc", expected=_scores(78.7, 31.7, 22.4, 67.0, "seg11valid"))
FCN_POOL3_VOC = _voc("fcn_pool3_voc", expected=_scores(70.9, 13.7, 9.2, 57.6, "seg11valid"))


# Table 8: FCN-32s, trained and tested on images of which only objects, only their surroundings, or only shapes are seen. Its
# reference is fcn32s_voc itself, whose 84.8 is on images as they are.
def _cues(name: str, expected: float, **masked: str) -> Recipe:
    return _voc(
        name,
        arch="fcn32s",
        **masked,
        paper=f"{_PAPER}, §6.1 and Table 8",
        expected=f"mean IoU {expected} without background, on seg11valid, its images masked alike",
    )


FCN32S_VOC_FG_ONLY = _cues("fcn32s_voc_fg_only", 76.1, background="mask")
FCN32S_VOC_BG_ONLY = _cues("fcn32s_voc_bg_only", 37.8, foreground="mask")
FCN32S_VOC_SHAPE = _cues("fcn32s_voc_shape", 29.1, foreground="mask", background="mask")

# PASCAL-Context: VOC 2010's train and val, 59 classes and background, which is trained and evaluated like them. The solver files
# say 300,000 iterations, solve.py steps 50 times 8000; stepping does not look at the former.

_CONTEXT_SCORES = {
    "fcn32s": _scores(65.5, 49.1, 36.7, 50.9, "val"),
    "fcn16s": _scores(66.9, 51.3, 38.4, 52.3, "val"),
    "fcn8s": _scores(67.5, 52.3, 39.1, 53.0, "val"),
}


def _context(name: str) -> Recipe:
    return _recipe(
        name,
        "CONTEXT",
        arch=name.removesuffix("_context"),
        data="pascal_context",
        iterations=400_000,
        checkpoint_every=8000,
        validate_every=8000,
        paper=f"{_PAPER}, Table 7",
        expected=_CONTEXT_SCORES["fcn32s"],
    )


FCN32S_CONTEXT = _context("fcn32s_context")
FCN16S_CONTEXT = _staged(_context("fcn16s_context"), _CONTEXT_SCORES, {arch: _VOC_RATES[arch] for arch in ("fcn32s", "fcn16s")})
FCN8S_CONTEXT = _staged(_context("fcn8s_context"), _CONTEXT_SCORES, _VOC_RATES)

# SIFT Flow: a head for 33 semantic and one for 3 geometric classes, whose losses count alike. Of 300,000 iterations in the solver
# files, solve.py makes 50 times 2000; and the rate of the last stage is not lowered again. Table 6 has the last stage alone.

_SIFT_FLOW_SCORES = {"fcn8s": _scores(85.9, 53.9, 41.2, 77.2, "test, geometric pixel accuracy 94.6")}
_SIFT_FLOW_RATES = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-12}


def _sift_flow(name: str) -> Recipe:
    return _recipe(
        name,
        "SIFT_FLOW",
        arch=name.removesuffix("_siftflow"),
        # RGB to BGR, minus the data set's own mean.
        arguments={"preprocessing": {"order": [2, 1, 0], "mean": [114.578, 115.294, 108.353]}},
        data="sift_flow",
        split="trainval",
        validation_split="test",
        loss_weights={"semantic": 1.0, "geometric": 1.0},
        checkpoint_every=2000,
        validate_every=2000,
        paper=f"{_PAPER}, Table 6",
    )


FCN32S_SIFTFLOW = _sift_flow("fcn32s_siftflow")
FCN16S_SIFTFLOW = _staged(
    _sift_flow("fcn16s_siftflow"), _SIFT_FLOW_SCORES, {arch: _SIFT_FLOW_RATES[arch] for arch in ("fcn32s", "fcn16s")}
)
FCN8S_SIFTFLOW = _staged(_sift_flow("fcn8s_siftflow"), _SIFT_FLOW_SCORES, _SIFT_FLOW_RATES)

# NYUDv2: 795 training and 654 test images, 40 classes. Of 300,000 iterations in the solver files, solve.py makes 50 times 2000.

_NYUD_COLOR = {"data": "nyud", "arguments": {"preprocessing": "nyud"}}
_NYUD_HHA = {"data": "nyud_hha", "arguments": {"preprocessing": "hha"}}


def _nyud(name: str, **values) -> Recipe:
    defaults = {
        "arch": "fcn32s",
        "split": "trainval",
        "validation_split": "test",
        "checkpoint_every": 2000,
        "validate_every": 2000,
        "paper": f"{_PAPER}, Table 5",
    }
    return _recipe(name, "NYUD", **{**defaults, **values})


FCN32S_NYUD_COLOR = _nyud("fcn32s_nyud_color", **_NYUD_COLOR, expected=_scores(61.8, 44.7, 31.6, 46.0, "test"))
FCN32S_NYUD_COLOR_D = _nyud(
    "fcn32s_nyud_color_d",
    data="nyud_color_d",
    # RGB and the logarithm of depth; the network's preprocessing follows from the four channels.
    arguments={"input_shape": [None, None, 4]},
    expected=_scores(62.1, 44.8, 31.7, 46.3, "test"),
)
FCN32S_NYUD_HHA = _nyud("fcn32s_nyud_hha", **_NYUD_HHA, expected=_scores(58.3, 35.7, 25.2, 41.7, "test"))
# Late fusion began with the colour net of 28,000 steps and the HHA net of 60,000.
FCN32S_NYUD_COLOR_HHA = _nyud(
    "fcn32s_nyud_color_hha",
    data="nyud_color_hha",
    arguments={"late_fusion": ["color", "hha"]},
    learning_rate=1e-12,
    expected=_scores(65.3, 44.0, 33.3, 48.6, "test"),
    stages=(
        Stage(name="color", changes={**_NYUD_COLOR, "learning_rate": 1e-10, "iterations": 28_000, "expected": None}),
        Stage(name="hha", changes={**_NYUD_HHA, "learning_rate": 1e-10, "iterations": 60_000, "expected": None}, starts_from={}),
        Stage(name="fusion", starts_from={"color": "color", "hha": "hha"}),
    ),
)
