"""Recomputes an evaluation's scores with scikit-learn from the masks that tools/predict.py wrote.

python tools/predict.py RUN CAMVID/images/test --out masks --kinds index
python evaluate.py RUN --split test
python benchmarks/check_scores.py RUN/report/test/scores.json masks/index CAMVID/masks/test --ignore 11
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import confusion_matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="scores.json of the evaluation")
    parser.add_argument("predictions", type=Path, help="folder of predicted index masks")
    parser.add_argument("truth", type=Path, help="folder of true index masks of the same names")
    parser.add_argument("--ignore", type=int, default=255, help="value in the true masks that does not count")
    options = parser.parse_args()
    claimed = json.loads(options.scores.read_text())
    count = len(claimed["classes"])
    matrix = np.zeros((count, count), np.int64)
    for path in sorted(options.truth.rglob("*.png")):
        truth = np.asarray(Image.open(path)).ravel()
        predicted = np.asarray(Image.open(options.predictions / path.relative_to(options.truth))).ravel()
        valid = truth != options.ignore
        matrix += confusion_matrix(truth[valid], predicted[valid], labels=range(count))
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    mean_iou = np.mean(np.diag(matrix)[union > 0] / union[union > 0])
    same = matrix.tolist() == claimed["confusion_matrix"]
    print(
        f"scikit-learn: mean IoU {mean_iou:.12f}; evaluate.py: {claimed['mean_iou']:.12f}; matrices {'equal' if same else 'DIFFER'}"
    )


if __name__ == "__main__":
    main()
