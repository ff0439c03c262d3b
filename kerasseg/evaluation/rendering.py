"""What the pages of reports share: templates, figures as text, colours, and curves."""

import functools
import math
from collections.abc import Mapping

from kerasseg.evaluation.figures import inline_svg, reliability_figure, trimap_figure
from kerasseg.labels import voc_palette
from kerasseg.runs import atomic_path

SCORE_TITLES = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency weighted IoU",
}
DASH = "–"
"""Where nothing is known."""

_TRIMAP_SCORES = ("mean_iou", "pixel_accuracy")


def render(path, template: str, **values) -> None:
    """Fills a template and writes the page, whole or not at all.

    Args:
        path: The page.
        template: Name of the template.
        values: All that it needs.
    """
    from kerasseg import __version__

    text = _environment().get_template(template).render(version=__version__, **values)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@functools.cache
def _environment():
    import jinja2

    # What is missing in a template is a mistake in it, never an empty place in a page.
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("kerasseg.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent_text, "signed": _signed, "interval": interval_text, "place": _place}
    return made


def unknown(value) -> bool:
    """Whether there is no number."""
    return value is None or math.isnan(value)


def percent_text(value) -> str:
    """A rate of 0–1 in percent, or a dash."""
    return DASH if unknown(value) else f"{100 * value:.2f}"


def _signed(value) -> str:
    # A true minus is as wide as the plus.
    return DASH if unknown(value) else f"{100 * value:+.2f}".replace("-", "−")


def interval_text(ends) -> str:
    """The ends of an interval of a rate, in percent; nothing where one is not known."""
    return "" if not known_interval(ends) else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def known_interval(ends):
    """The interval, or `None` where there is none of one's own to draw."""
    return None if ends is None or any(map(unknown, ends)) else ends


def _place(rate) -> str:
    """How far along a bar, in percent of its length."""
    return f"{100 * min(max(rate, 0), 1):.2f}"


def palette_of(report: Mapping) -> list:
    """The colours of a report's classes; VOC's where it is from before they were kept."""
    return report.get("palette") or list(voc_palette(len(report["classes"])))


def css_color(color) -> str:
    """A colour, RGB 0–255, as style sheets name it."""
    return "rgb({}, {}, {})".format(*map(int, color))


def about_intervals(report: Mapping) -> dict:
    """What the foot of a page says of intervals; `None` where there are none."""
    intervals = report.get("intervals")
    return {"level": intervals and f"{100 * intervals['level']:g}", "replicates": intervals and intervals["replicates"]}


def inference_text(inference: Mapping | None) -> str:
    """How a network was run, as `Inference.to_json` holds it, to be read; nothing of predictions that were there already."""
    if not inference:
        return ""
    several = len(inference["scales"]) > 1
    parts = [f"scale{'s' if several else ''} {', '.join(f'{scale:g}' for scale in inference['scales'])}"]
    parts += ["mirrored too"] if inference.get("flip") else []
    rest = {name: value for name, value in inference.items() if name not in ("scales", "flip") and value}
    if rest.get("method") == {"name": "whole_image"}:
        del rest["method"]
    parts += [f"{name} {_plain(value)}" for name, value in rest.items()]
    return "; ".join(parts)


def _plain(value) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(
            f"{key.replace('_', ' ')} {_plain(one)}" for key, one in value.items() if key != "name" and one is not None
        )
        return " ".join(part for part in (str(value.get("name", "")).replace("_", " "), f"({rest})" if rest else "") if part)
    if isinstance(value, list | tuple):
        return "×".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def trimap_curves(reports: Mapping[str, Mapping]) -> list:
    """The curve of each score over the width of a band; nothing where no report has any."""
    bands = {name: report["trimap"]["bands"] if "trimap" in report else None for name, report in reports.items()}
    return [_svg(trimap_figure, bands, score, SCORE_TITLES[score]) for score in _TRIMAP_SCORES] if any(bands.values()) else []


def reliability_curve(reports: Mapping[str, Mapping]):
    """The reliability plot; `None` where no report has what it shows."""
    bins = {name: report["calibration"]["bins"] if "calibration" in report else None for name, report in reports.items()}
    return _svg(reliability_figure, bins) if any(bins.values()) else None


def _svg(draw, *arguments):
    from markupsafe import Markup

    return Markup(inline_svg(draw, *arguments))
