"""The options of `evaluate.py` that say what is measured."""

import argparse

from kerasseg.cli.inference import as_name
from kerasseg.cli.values import parse_values
from kerasseg.errors import KerassegError

# kerasseg.metrics.TRIMAP_BOUNDARIES, for which TensorFlow need not be imported.
_BOUNDARIES = ("labels", "classes", "void")
_BINS = 15
_FULL = {"boundary": 7.0, "trimap": "1,2,4,8,16,32", "boundary_f": True, "calibration": _BINS}
# Of --exclude, for data that leave classes out unless told otherwise.
_NOTHING = "none"


def add_scoring_options(made: argparse.ArgumentParser) -> None:
    """Adds the options that say what is measured."""
    scoring = made.add_argument_group("what is measured")
    scoring.add_argument(
        "--exclude",
        default=None,
        metavar="CLASS,…",
        help="classes that the means over classes leave out, such as background; none: no class (default: those that the data "
        "set's test images lack)",
    )
    scoring.add_argument(
        "--boundary",
        type=float,
        default=None,
        metavar="PIXELS",
        help="score pixels so close to a boundary, and the others, apart; GCN: 7",
    )
    scoring.add_argument(
        "--trimap",
        default=None,
        metavar="WIDTHS",
        help="score the pixels in bands around the true boundaries, of these widths in pixels: 1,2,4,8 or, as DeepLab, 1:40",
    )
    scoring.add_argument(
        "--trimap-boundary",
        default=None,
        help="labels (beside another label, ignored ones too; default), classes (ignored ones are none), or void (around "
        "ignored pixels, by squares: DeepLab's script for VOC)",
    )
    scoring.add_argument(
        "--boundary-f",
        nargs="?",
        type=float,
        const=True,
        default=None,
        metavar="PIXELS",
        help="how well the contours of each class agree, within so many pixels (without a number: 0.75 %% of the diagonal)",
    )
    scoring.add_argument(
        "--calibration",
        nargs="?",
        type=int,
        const=_BINS,
        default=None,
        metavar="BINS",
        help=f"whether the network is right as often as it is sure: calibration error and reliability plot (without a "
        f"number: {_BINS} bins)",
    )
    scoring.add_argument(
        "--full-report",
        action="store_true",
        help="as --boundary 7 --trimap 1,2,4,8,16,32 --boundary-f --calibration, where these are not given",
    )


def chosen_scoring(options) -> dict:
    """Gives the arguments of `kerasseg.evaluation.evaluate` that the options stand for; nothing need be opened for it.

    Args:
        options: What `add_scoring_options` parsed.
    Raises:
        KerassegError: If they cannot be followed.
    """
    bins = _asked(options, "calibration")
    if bins is not None and bins < 1:
        raise KerassegError(f"--calibration {bins}: expected a number of bins, such as {_BINS}")
    tolerance = _asked(options, "boundary_f")
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise KerassegError(f"--boundary-f {tolerance:g}: expected pixels above 0, such as 3, or no number")
    return {
        "boundary": _asked(options, "boundary"),
        "boundary_f": tolerance,
        "calibration": bins,
        "exclude": _excluded(options.exclude),
        **_trimap(options),
    }


def _asked(options, name: str):
    value = getattr(options, name)
    return _FULL[name] if value is None and options.full_report else value


def _excluded(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [] if text == _NOTHING else [name.strip() for name in text.split(",")]
    if not all(names):
        raise KerassegError(f"--exclude '{text}': expected names of classes, such as background,person, or {_NOTHING}")
    return names


def _trimap(options) -> dict:
    """What `evaluate` needs of the bands."""
    text = _asked(options, "trimap")
    if text is None:
        if options.trimap_boundary is not None:
            raise KerassegError(f"--trimap-boundary {options.trimap_boundary}: means something only with --trimap, such as 1:40")
        return {}
    widths = parse_values(text, "--trimap", "1,2,4,8 or 1:40")
    if widths[0] < 1:
        raise KerassegError(f"--trimap {text}: expected widths of at least 1 pixel, such as 1,2,4,8 or 1:40")
    boundary = options.trimap_boundary or "labels"
    if boundary not in _BOUNDARIES:
        raise KerassegError(f"--trimap-boundary {boundary}: expected one of {', '.join(_BOUNDARIES)}")
    return {"trimap": widths, "trimap_boundary": boundary}


def scoring_name(options) -> str:
    """Names what is measured, for the folder of its report; empty where nothing was asked for."""
    name = "-full" if options.full_report else ""
    name += f"-excluding-{as_name(options.exclude)}" if options.exclude is not None else ""
    name += f"-boundary-{options.boundary:g}" if options.boundary is not None else ""
    # 1,4 are two widths, 1:4 are four.
    name += f"-trimap-{as_name(options.trimap.replace(':', 'to'))}" if options.trimap is not None else ""
    name += f"-{options.trimap_boundary}" if options.trimap_boundary else ""
    if options.boundary_f is not None:
        name += "-boundary-f" + ("" if options.boundary_f is True else f"-{options.boundary_f:g}")
    return name + (f"-calibration-{options.calibration}" if options.calibration is not None else "")
