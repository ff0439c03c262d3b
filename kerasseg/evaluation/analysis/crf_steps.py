"""A dense CRF at work: scores and beliefs of a class after so many of its iterations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from kerasseg.crf import MeanField
from kerasseg.evaluation.analysis.pictures import heat, picture_grid, picture_of
from kerasseg.evaluation.crf import crf_parameters


class CrfStep(NamedTuple):
    """What a CRF has after some iterations.

    Args:
        iterations: How many.
        scores: Shape `(H, W, C)`, float32: what the softmax is taken of; of 0 iterations the network's own.
        beliefs: Shape `(H, W, C)`, float32: the softmax.
    """

    iterations: int
    scores: np.ndarray
    beliefs: np.ndarray


def crf_steps(image, logits, parameters, iterations: Sequence[int]) -> list[CrfStep]:
    """Runs a dense CRF for several numbers of iterations.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        logits: Shape `(H, W, C)`, the negative of the unary energy.
        parameters: As `kerasseg.evaluation.crf_parameters` takes them; their own number of iterations does not count.
        iterations: The numbers, from 0.
    Returns:
        What it has after each; the beliefs are the marginals of `kerasseg.crf.dense_crf` with so many iterations.
    Raises:
        KerassegError: If there are no such parameters.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, Figure 2; Chen et al. 2017, arXiv:1606.00915, Figure 5.
    """
    chosen = crf_parameters(parameters)
    image, logits = np.asarray(image, np.float32)[..., :3], np.asarray(logits, np.float32)
    if chosen.rows_first:
        image, logits = image.swapaxes(0, 1), logits.swapaxes(0, 1)
    options = chosen.layer_arguments()
    found = []
    for count in iterations:
        layer = MeanField(**{**options, "iterations": count})
        scores = layer([logits[np.newaxis], image[np.newaxis]])[0] if count else tf.constant(logits)
        maps = scores.numpy(), tf.nn.softmax(scores).numpy()
        found.append(CrfStep(count, *(each.swapaxes(0, 1) if chosen.rows_first else each for each in maps)))
    return found


def crf_picture(image, steps: Sequence[CrfStep], channel: int, path=None, *, labelled=None) -> PIL.Image.Image:
    """Draws the scores of a class above its beliefs, a column for each number of iterations.

    All scores have one range of colours; so have the beliefs, from 0 to 1.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        steps: What `crf_steps` found.
        channel: The class.
        path: Where to write the picture as PNG as well; `None`: nowhere.
        labelled: What to show below the photograph, `(H, W, 3)`; `None`: the photograph again.
    Returns:
        The picture, RGB.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, Figure 2.
    """
    scores = [step.scores[..., channel] for step in steps]
    low, high = min(each.min() for each in scores), max(each.max() for each in scores)
    above, below = [("photograph", picture_of(image))], [("", picture_of(image if labelled is None else labelled))]
    for step, score in zip(steps, scores, strict=True):
        belief = step.beliefs[..., channel]
        name = f"{step.iterations} iteration{'' if step.iterations == 1 else 's'}" if step.iterations else "network"
        above.append((f"{name}: score {score.min():.3g} to {score.max():.3g}", picture_of(heat(score, low, high))))
        below.append((f"belief {belief.min():.2g} to {belief.max():.2g}", picture_of(heat(belief, 0, 1))))
    return picture_grid([above, below], path)
