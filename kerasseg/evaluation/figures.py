"""Curves and pictures inside report pages: nothing but the page's own text, in its own colours."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from kerasseg.labels import IGNORE, IGNORE_COLOR

RUN_COLORS = ("#2f78c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Of several runs in one figure, told apart also by the colour-blind (after Okabe & Ito)."""

PICTURE_WIDTH = 480
"""How wide pictures in a page are at most, in pixels."""

# What matplotlib writes where a page puts its own ink, so that text is legible on dark paper, too.
_INK = "#010203"
_WRONG = (225, 30, 30)
_FIGURE_SIZE = (4.6, 3.4)


class Picture(NamedTuple):
    """A picture that a page carries inside."""

    uri: str
    width: int
    height: int


def trimap_figure(bands: Mapping[str, Sequence[Mapping] | None], score: str, title: str, ink: str = "black"):
    """Draws a score over the width of a band around the true boundaries.

    Args:
        bands: Name for the legend → rows with `width` in pixels, and the score, 0–1 or `None`; `None` of a run without any, which
            keeps its colour.
        score: Which score of the rows.
        title: What to call it.
        ink: Colour of axes and text.
    Returns:
        A figure of matplotlib's.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, Fig. 5.
    """
    figure = _figure()
    drawn = draw_bands(figure.subplots(), bands, score, title)
    return _finished(figure, drawn if len(bands) > 1 else {}, ink)


def draw_bands(axis, bands: Mapping[str, Sequence[Mapping] | None], score: str, title: str, *, color=None, markersize=4) -> dict:
    """Draws what `trimap_figure` does into axes that are there.

    Args:
        axis: Axes of matplotlib's.
        bands: As for `trimap_figure`, and so the others.
        score: See above.
        title: See above.
        color: From the place of a run to its colour; `None`: `run_color`.
        markersize: Of the points.
    Returns:
        Name → line, of the runs that have one.
    """
    drawn, color = {}, color or run_color
    for place, (name, rows) in enumerate(bands.items()):
        if rows is None:
            continue
        values = [math.nan if row[score] is None else 100 * row[score] for row in rows]
        (drawn[name],) = axis.plot([row["width"] for row in rows], values, "o-", markersize=markersize, color=color(place))
    axis.set(xlabel="width of the band, pixels", ylabel=f"{title} in the band, %")
    return drawn


def reliability_figure(calibrations: Mapping[str, Sequence[Mapping] | None], ink: str = "black"):
    """Draws accuracy over confidence, bin by bin, and below it how many pixels each bin has.

    Args:
        calibrations: Name for the legend → bins with `low`, `high`, `num_pixels`, and `accuracy` and `confidence`, 0–1 or `None`;
            `None` of a run without any, which keeps its colour.
        ink: Colour of axes and text.
    Returns:
        A figure of matplotlib's.
    Reference:
        Guo et al. 2017, arXiv:1706.04599, Fig. 1.
    """
    figure = _figure(1.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], "--", color=ink, alpha=0.5, linewidth=1)
    drawn = {}
    for place, (name, bins) in enumerate(calibrations.items()):
        if bins is None:
            continue
        filled = [one for one in bins if one["num_pixels"]]
        points = [[100 * one[rate] for one in filled] for rate in ("confidence", "accuracy")]
        (drawn[name],) = above.plot(*points, "o-", markersize=4, color=run_color(place))
        total = sum(one["num_pixels"] for one in bins) or 1
        edges = [100 * one["low"] for one in bins] + [100 * bins[-1]["high"]]
        shares = [100 * one["num_pixels"] / total for one in bins]
        below.stairs(shares, edges, color=run_color(place), fill=len(calibrations) == 1)
    above.set(ylabel="pixels that are right, %", xlim=(0, 100), ylim=(0, 100))
    below.set(xlabel="confidence, %", ylabel="share, %")
    return _finished(figure, drawn if len(calibrations) > 1 else {}, ink)


def sizes_figure(sizes: Mapping[tuple[int, int], int], ink: str = "black"):
    """Draws how large images are: a point for each size, the larger, the more images have it.

    Args:
        sizes: Height and width in pixels → number of images.
        ink: Colour of axes and text.
    Returns:
        A figure of matplotlib's.
    """
    figure = _figure()
    axis = figure.subplots()
    most = max(sizes.values())
    # The frequent ones first, which so hide no other.
    ranked = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    areas = [12 + 250 * count / most for _, count in ranked]
    heights, widths = zip(*(size for size, _ in ranked), strict=True)
    axis.scatter(widths, heights, areas, run_color(0), alpha=0.5, linewidths=0)
    axis.set(xlabel="width, pixels", ylabel="height, pixels")
    axis.margins(0.12)
    return _finished(figure, {}, ink)


def run_color(place: int) -> str:
    """Gives the colour of the run at a place, from 0 on."""
    return RUN_COLORS[place % len(RUN_COLORS)]


def inline_svg(draw, *arguments) -> str:
    """Draws a figure as an element of a page, in the font and the colour of the page's text.

    Args:
        draw: `trimap_figure` or `reliability_figure`.
        arguments: What it is given.
    Returns:
        An `<svg>` element that refers to nothing outside itself.
    """
    import matplotlib

    file = io.StringIO()
    # Text stays text, which is smaller than its outlines.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kerasseg", "axes.unicode_minus": False}):
        draw(*arguments, ink=_INK).savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A name space is no address to load from, but looks like one, and HTML needs none.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # Two figures in one page have axes of one name: only what is referred to keeps its name, which depends on what it is.
    kept = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in kept else "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    return text.replace(_INK, "currentColor")


def error_picture(image, label, prediction) -> np.ndarray:
    """Shows where a prediction is wrong.

    Args:
        image: Shape `(H, W, 3)`, RGB 0–255.
        label: Shape `(H, W)`, the true classes, 255 = ignore.
        prediction: Shape `(H, W)`, classes.
    Returns:
        Shape `(H, W, 3)`, uint8: right pixels are the photograph in dim grey, wrong ones red, ignored ones pale.
    """
    label = np.asarray(label)
    grey = (np.asarray(image, np.float64) @ (0.299, 0.587, 0.114))[..., np.newaxis]
    wrong = label != np.asarray(prediction)
    # Of the photograph a trace is left, by which one finds one's way.
    mixed = np.where(wrong[..., np.newaxis], 0.15 * grey + 0.85 * np.array(_WRONG), 40 + 0.45 * grey)
    mixed = np.where((label == IGNORE)[..., np.newaxis], 195 + 0.2 * grey, mixed)
    return np.rint(mixed).astype(np.uint8)


def photograph_picture(image) -> Picture:
    """Packs a photograph, RGB 0–255, as JPEG; wide ones smaller."""
    picture = PIL.Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    return _packed(_shrunk(picture, PIL.Image.Resampling.LANCZOS), "jpeg", quality=82, subsampling=0)


def label_picture(label, palette: Sequence[Sequence[int]]) -> Picture:
    """Packs a label map as PNG with the palette of its classes, 255 as ignored; wide ones smaller, to the nearest pixel."""
    picture = PIL.Image.fromarray(np.asarray(label, np.uint8))
    colors = [*palette[:IGNORE], *[IGNORE_COLOR] * (IGNORE + 1 - len(palette[:IGNORE]))]
    picture = _shrunk(picture, PIL.Image.Resampling.NEAREST)
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    return _packed(picture, "png", optimize=True)


def matrix_picture(rates: np.ndarray, cell: int = 4) -> Picture:
    """Packs a square of rates, 0–1, as PNG: white for 0, dark blue for 1.

    Args:
        rates: Shape `(C, C)`.
        cell: How many pixels wide and high each is.
    """
    # The square root, else all but the diagonal would be white.
    levels = np.rint(255 * np.sqrt(np.clip(rates, 0, 1))).astype(np.uint8)
    picture = PIL.Image.fromarray(levels.repeat(cell, 0).repeat(cell, 1))
    ramp = np.linspace((255, 255, 255), (8, 48, 107), 256)
    picture.putpalette(np.rint(ramp).astype(np.uint8).tobytes())
    return _packed(picture, "png", optimize=True)


def _shrunk(picture, filter_):
    if picture.width <= PICTURE_WIDTH:
        return picture
    return picture.resize((PICTURE_WIDTH, max(1, round(picture.height * PICTURE_WIDTH / picture.width))), filter_)


def _packed(picture, kind: str, **options) -> Picture:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return Picture(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", picture.width, picture.height)


def _figure(height: float = 1.0):
    # Without pyplot: no figure of the process's own, no window.
    from matplotlib.figure import Figure

    return Figure(figsize=(_FIGURE_SIZE[0], height * _FIGURE_SIZE[1]), layout="constrained")


def _finished(figure, drawn: Mapping, ink: str):
    for axis in figure.axes:
        axis.grid(alpha=0.35)
        axis.tick_params(colors=ink)
        for part in (axis.xaxis.label, axis.yaxis.label):
            part.set_color(ink)
        for side, spine in axis.spines.items():
            spine.set(color=ink, visible=side in ("left", "bottom"))
    # Of one run there is nothing to tell apart.
    if drawn:
        named_legend(figure.axes[0], drawn, labelcolor=ink, framealpha=0)
    return figure


def named_legend(axis, drawn: Mapping, **options) -> None:
    """Adds a legend whose names appear as they are.

    Args:
        axis: The axes.
        drawn: Name → its line.
        options: Of matplotlib's legend.
    """
    # As labels, names that begin with "_" would be left out, and dollar signs be read as formulas.
    legend = axis.legend(list(drawn.values()), [f"line {place}" for place in range(len(drawn))], **options)
    for text, name in zip(legend.get_texts(), drawn, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
