"""The curves of scores over the width of a band around the true boundaries."""

from pathlib import Path

from kerasseg.evaluation.figures import draw_bands, named_legend
from kerasseg.evaluation.measures.trimap import Trimap
from kerasseg.runs import atomic_path


def draw_trimaps(trimaps: dict[str, Trimap], path) -> None:
    """Draws mean IoU and pixel accuracy over the width of the band, as a PNG that appears whole or not at all.

    Args:
        trimaps: Name for the legend → what was found.
        path: The picture.
    """
    # Without pyplot: no figure of the process's own, no window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes, bands = figure.subplots(1, 2), {name: trimap.to_json()["bands"] for name, trimap in trimaps.items()}
    for axis, score, title in zip(axes, ("mean_iou", "pixel_accuracy"), ("mean IoU", "pixel accuracy"), strict=True):
        drawn = draw_bands(axis, bands, score, title, color="C{}".format, markersize=3)
        axis.grid(alpha=0.3)
    named_legend(axes[0], drawn)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
