"""Whether a network goes by objects, by what surrounds them, or by their shape: scores on images with parts hidden."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kerasseg.data.transforms.cues import MaskCues, MaskedData
from kerasseg.errors import KerassegError
from kerasseg.evaluation.analysis.pictures import picture_grid, picture_of
from kerasseg.evaluation.evaluator import Evaluation, evaluate, excluded_classes
from kerasseg.evaluation.inference import Inference
from kerasseg.labels import colorize

CONDITIONS = (("keep", "keep"), ("keep", "mask"), ("mask", "keep"), ("mask", "mask"))
"""Foreground and background, in the order of the paper's table."""

_TITLES = {
    ("keep", "keep"): "image",
    ("keep", "mask"): "foreground alone",
    ("mask", "keep"): "background alone",
    ("mask", "mask"): "shape",
}


class CueScore(NamedTuple):
    """What a network scored with parts of the images hidden.

    Args:
        foreground: `"keep"` or `"mask"`.
        background: Likewise.
        evaluation: The scores; means over classes are without background.
    """

    foreground: str
    background: str
    evaluation: Evaluation

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that are not background, 0–1."""
        return self.evaluation.scores["mean_iou"]

    @property
    def pixel_accuracy(self) -> float:
        """Share of right pixels, those of background included, 0–1."""
        return self.evaluation.scores["pixel_accuracy"]


def cue_scores(
    model,
    data,
    inference: Inference | None = None,
    *,
    background: Sequence[str] | None = None,
    conditions: Sequence[tuple[str, str]] = CONDITIONS,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
) -> list[CueScore]:
    """Scores a network on images as they are, without their background, without their foreground, and on shapes alone.

    Args:
        model: As for `kerasseg.evaluation.evaluate`.
        data: Data set with labels, one map an image.
        inference: How to run the network; `None`: as it is.
        background: Names of the classes that are background; `None`: the first one.
        conditions: Pairs of what is done to foreground and background, `"keep"` or `"mask"`.
        progress: Called with (images done, images in all), over all conditions.
        limit: Only so many images, the first ones.
    Returns:
        One score a condition, in their order.
    Raises:
        KerassegError: If a class is unknown, no class is foreground, no pixel is, or as `evaluate` says.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, §6.1, Table 8: its column of test masking, for one network.
    """
    names = background_names(data, background)
    cues, found = cues_of(data, names), []
    for foreground, behind in conditions:
        masked = MaskedData(data, dataclasses.replace(cues, foreground=foreground, background=behind))
        before, all_ = len(found), len(conditions)

        def report(done: int, total: int, before=before, all_=all_) -> None:
            if progress is not None:
                progress(before * total + done, all_ * total)

        evaluation = evaluate(model, masked, inference, progress=report, limit=limit, exclude=names)
        rest = [number for number in range(data.labels.num_classes) if number not in cues.background_classes]
        if not evaluation.matrix[rest].any():
            raise KerassegError(
                f"no pixel of data set '{data.labels.name}' is foreground (all but {', '.join(names)}): expected objects; name the "
                "classes that are background by --background"
            )
        found.append(CueScore(foreground, behind, evaluation))
    return found


def background_names(data, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Says which classes are background.

    Args:
        data: A data set with one label map an image.
        names: Their names; `None`: the first class.
    Returns:
        The names, in the order of the label table.
    Raises:
        KerassegError: If one is unknown, or all classes are background, or there are several label maps.
    """
    several = getattr(data, "heads", None) or ({} if hasattr(data.labels, "classes") else data.labels)
    if several:
        raise KerassegError(f"the data have several label maps ({', '.join(several)}): expected one")
    return excluded_classes(data.labels, data.labels.classes[:1] if names is None else names)


def cues_of(data, names: Sequence[str]) -> MaskCues:
    """Makes the masking that suits a data set: filled by its mean.

    Args:
        data: The data set.
        names: Names of the classes that are background.
    """
    numbers = tuple(data.labels.classes.index(name) for name in names)
    mean = getattr(data, "mean", None)
    return MaskCues(background_classes=numbers) if mean is None else MaskCues(background_classes=numbers, fill=tuple(mean))


def cue_picture(example, predict: Callable, labels, cues: MaskCues, path=None):
    """Draws an image as the network gets it, whole and with parts hidden, and below what the network makes of each.

    Args:
        example: Example with its label.
        predict: Function of an image, giving labels `(H, W)`.
        labels: Label table, for colours.
        cues: What is background, and what fills.
        path: Where to write the picture as PNG as well; `None`: nowhere.
    Returns:
        The picture, RGB.
    Reference:
        Shelhamer et al. 2017, arXiv:1605.06211, Fig. 7.
    """
    seen, drawn = [], []
    for foreground, background in CONDITIONS:
        masking = dataclasses.replace(cues, foreground=foreground, background=background)
        image = masking(example.image, example.label, None)[0]
        seen.append((_TITLES[foreground, background], picture_of(image)))
        drawn.append(("prediction", picture_of(colorize(predict(image), labels))))
    truth = ("truth", picture_of(colorize(example.label, labels)))
    return picture_grid([seen, drawn, [truth]], path)
