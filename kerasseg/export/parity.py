"""How far an exported file is from the network it was made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.export.graph import Plan, input_shape
from kerasseg.export.sizes import some_sizes

# Logits that differ by less than this part of the largest are the same everywhere.
_CONSTANT = 1e-6


class Parity(NamedTuple):
    """What a comparison found.

    Args:
        relative_error: Largest |a − b| over the largest |b|, worst batch. Of labels, a is Keras' logit of the class that the file
            chose and b Keras' largest: what the choice lost.
        rms_error: Root mean square of a − b over that of b, worst batch.
        argmax_agreement: Share of pixels with the same class, worst image.
        images: How many were compared.
        real_images: How many of them were photographs and not random.
    """

    relative_error: float
    rms_error: float
    argmax_agreement: float
    images: int
    real_images: int = 0


class Tolerance(NamedTuple):
    """What a comparison must find, at worst; `None` where nothing is asked."""

    relative_error: float | None
    rms_error: float | None
    argmax_agreement: float | None

    def complaint(self, parity: Parity) -> str | None:
        """Says in one line what of a comparison is not good enough; `None` if all of it is."""
        bad = []
        if np.isinf(parity.relative_error):
            return "its results are not finite, or have another name, shape or type than the network's"
        for name, title in (("relative_error", "relative error"), ("rms_error", "rms error")):
            found, limit = getattr(parity, name), getattr(self, name)
            # Not "found > limit": NaN is never above anything.
            if not (np.isfinite(found) and (limit is None or found <= limit)):
                bad.append(f"{title} {found:.2g} (tolerance {_shown(limit)})")
        if not parity.argmax_agreement >= (self.argmax_agreement or 0.0):
            found, limit = (100 * value for value in (parity.argmax_agreement, self.argmax_agreement))
            bad.append(f"same class in {found:.2f} % of pixels (at least {limit:g} %)")
        return ", ".join(bad) or None


def _shown(limit: float | None) -> str:
    return "finite" if limit is None else f"{limit:g}"


_INT8 = Tolerance(None, 0.25, 0.9)
TOLERANCES = {
    "none": Tolerance(1e-4, 1e-4, 0.999),
    "float16": Tolerance(None, 0.05, 0.98),
    "dynamic": Tolerance(None, 0.1, 0.95),
    "int8": _INT8,
    "int8-float-io": _INT8,
}
"""By quantization. What rounds every number is judged by the whole image; its worst pixel means little."""


def measure_parity(run: Callable[[np.ndarray], dict], made: Plan, images: Sequence[np.ndarray] = ()) -> Parity:
    """Runs a file and Keras on the same images.

    Where numbers are rounded (`Target.quantize`), and there are photographs, the figures are theirs alone: random images lie
    outside of what the file was made for. On those it still has to give numbers of the right shape.

    Args:
        run: Image batch → results by name, by the exported file.
        made: What the file was made of.
        images: Photographs `(H, W, C)`, 0–255, of the file's size. Random images are added.
    Returns:
        The worst figures; infinite errors where a result is missing, not finite, or of another shape or kind.
    Raises:
        KerassegError: If Keras' logits do not vary or are not finite: comparing those proves nothing; or an image has another size.
    """
    _check_images(images, made)
    batches = [np.asarray(image, np.float32)[np.newaxis] for image in images]
    judged = len(batches) if made.target.quantize != "none" and batches else None
    batches += random_batches(made)
    figures, limits = [], {}
    for batch in batches:
        # A score map may have a hundred megabytes: of those before, only extremes and figures are kept.
        scores = _reference(made, batch)
        _extend(limits, scores)
        figures.append(_compare_all(run(batch), scores, made))
    _check_varies(limits, made)
    count = sum(map(len, batches))
    if not np.isfinite([figure for of_batch in figures for figure in of_batch]).all():
        return Parity(float("inf"), float("inf"), 0.0, count, len(images))
    worst = np.array([figure for of_batch in figures[:judged] for figure in of_batch])
    return Parity(*map(float, (*worst[:, :2].max(0), worst[:, 2].min())), count, len(images))


def _check_images(images, made: Plan) -> None:
    shape = input_shape(made)[1:]
    for image in images:
        if np.ndim(image) != 3 or any(side not in (None, given) for side, given in zip(shape, np.shape(image), strict=True)):
            raise KerassegError(f"an image to compare on has shape {np.shape(image)}: expected {shape}, as the file takes it")


def _reference(made: Plan, batch: np.ndarray) -> dict[str, np.ndarray]:
    scores = {name: np.asarray(value, np.float32) for name, value in made.model(batch, training=False).items()}
    if not all(np.isfinite(value).all() for value in scores.values()):
        raise KerassegError(f"{made.model.name} itself gives logits that are not finite: nothing can be compared with them")
    return scores


def _extend(limits: dict[str, tuple[np.ndarray, np.ndarray]], scores: dict[str, np.ndarray]) -> None:
    """Keeps the least and the largest of every class."""
    for name, values in scores.items():
        lowest, highest = values.min((0, 1, 2)), values.max((0, 1, 2))
        low, high = limits.get(name, (lowest, highest))
        limits[name] = np.minimum(low, lowest), np.maximum(high, highest)


def _check_varies(limits: dict[str, tuple[np.ndarray, np.ndarray]], made: Plan) -> None:
    for name, (lowest, highest) in limits.items():
        if (highest - lowest).max() <= _CONSTANT * max(abs(lowest).max(), abs(highest).max()):
            which = f" of '{name}'" if len(limits) > 1 else ""
            raise KerassegError(
                f"{made.model.name}: the network's logits{which} are constant (an untrained network's are zero): train it before "
                "exporting"
            )


def random_batches(made: Plan) -> list[np.ndarray]:
    """Draws random images as a file takes them, the same ones every time: noise, and smooth ones, as photographs are.

    Args:
        made: What the file was made of.
    Returns:
        Batches of the file's own size; where it takes any number, of two, and any size, of two sizes.
    """
    batch, *size, channels = input_shape(made)
    generator, batches = np.random.default_rng(0), []
    for height, width in [tuple(size)] if size[0] else some_sizes(made.model):
        count = batch or 2
        noise = generator.uniform(0, 255, (count, height, width, channels)).astype(np.float32)
        # Noise alone excites hardly any class.
        smooth = _enlarged(generator.uniform(0, 255, (count, 4, 4, channels)).astype(np.float32), height, width)
        batches += [noise, smooth]
    return batches


def _enlarged(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    for axis, side in ((1, height), (2, width)):
        place = np.linspace(0, coarse.shape[axis] - 1, side)
        low = np.minimum(place.astype(int), coarse.shape[axis] - 2)
        weight = (place - low).reshape([-1 if each == axis else 1 for each in range(4)])
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    return coarse.astype(np.float32)


def _compare_all(results: dict, scores: dict, made: Plan) -> list[tuple[float, float, float]]:
    return [_compare(results.get(name), scores[name], name, made) for name in scores]


def _compare(result, scores: np.ndarray, name: str, made: Plan) -> tuple[float, float, float]:
    """Relative error, rms error and agreement of one batch; infinite where there is nothing to compare."""
    if (cells := made.nearest(name)) is not None:
        scores = scores[:, cells.nearest_rows][:, :, cells.nearest_columns]
    if made.target.result == "probabilities":
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        scores = powers / powers.sum(-1, keepdims=True)
    labels, classes = made.target.gives_labels, scores.shape[-1]
    shape = scores.shape[:-1] if labels else scores.shape
    if result is None or result.shape != shape or result.dtype.kind not in ("iu" if labels else "f"):
        return (np.inf, np.inf, 0.0)
    if labels and not 0 <= result.min() <= result.max() < classes:
        return (np.inf, np.inf, 0.0)
    chosen = result if labels else result.argmax(-1)
    if labels:
        difference = scores.max(-1) - np.take_along_axis(scores, chosen[..., np.newaxis].astype(int), -1)[..., 0]
    else:
        with np.errstate(over="ignore"):
            difference = np.abs(result - scores)
    agreement = (chosen == scores.argmax(-1)).mean(axis=(1, 2)).min()
    # Scores of one image may well be zero.
    largest, usual = (max(value, np.finfo(np.float32).tiny) for value in (np.abs(scores).max(), _rms(scores)))
    return difference.max() / largest, _rms(difference) / usual, agreement


def _rms(values: np.ndarray) -> float:
    # Row by row: no copy of it all in float64.
    rows = values.reshape(-1, *values.shape[2:])
    return float(np.sqrt(sum(np.square(row, dtype=np.float64).sum() for row in rows) / values.size))
