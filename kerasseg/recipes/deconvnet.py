"""DeconvNet's training, from the solver and net files of HyeonwooNoh/DeconvNet and the paper."""

from kerasseg.recipes.base import Recipe, Stage

_PAPER = "Noh, Hong & Han, ICCV 2015, arXiv:1505.04366"

# Both stages: 8 passes of 8 examples a step, snapshots every 500. The authors' lists of examples lie on no server that is in
# reach; ours are every object, and every proposal that overlaps one.
DECONVNET_VOC = Recipe(
    name="deconvnet_voc",
    arch="deconvnet",
    weights="imagenet",
    # The authors' own mean, BGR.
    arguments={"preprocessing": {"order": [2, 1, 0], "mean": [104.008, 116.669, 122.675]}},
    data="voc",
    # The released weights are named after it; there is nothing left to validate on.
    split="trainvalaug",
    validation_split=None,
    flip=True,
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    # Scales and offsets of batch normalization learn and decay as kernels do.
    multipliers={r".*/bias": (2.0, 0.0)},
    schedule="step",
    gamma=0.1,
    batch_size=8,
    accumulation=8,
    checkpoint_every=500,
    keep_best=False,
    # Of the last stage; the statistics of batch normalization are then made by tools/recompute_batch_norm.py.
    examples="proposals",
    # Straight to the size of the crop: the authors' window layer does not look at the 250 pixels that the net file names.
    resize=(224, 224),
    step_size=10_000,
    iterations=40_000,
    paper=f"{_PAPER}, §4.2, §5.1 and Table 1",
    expected="mean IoU 72.5 on test, for 50 proposals an image, multiplied by the scores of FCN-8s, and with DenseCRF",
    command="python train.py --recipe deconvnet_voc --data-dir VOC --boxes edge_boxes.json --run-dir runs/deconvnet_voc",
    stages=(
        Stage(
            name="objects",
            changes={
                "examples": "objects",
                "resize": (250, 250),
                "crop_size": (224, 224),
                "step_size": 9000,
                "iterations": 20_000,
                "expected": None,
            },
        ),
        Stage(name="proposals"),
    ),
)

# The ensemble is an option of evaluation: `evaluate.py runs/deconvnet_voc_crf --proposals edge_boxes.json --ensemble FCN8S_RUN`.
DECONVNET_VOC_CRF = DECONVNET_VOC.with_crf(
    "deconvnet", "mean IoU 72.5 on test, for 50 proposals an image, multiplied by the scores of FCN-8s; 70.5 by itself"
)
