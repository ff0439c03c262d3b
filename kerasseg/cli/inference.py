"""The options that say how a network is run on an image, shared by the commands that run one."""

import argparse
import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

from kerasseg.cli.opening import Opened, open_run_or_model, output_classes, root_of
from kerasseg.cli.options import parse_number, parse_range, parse_size
from kerasseg.crf import PARAMETERS
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

# Option → the options that mean something only with it.
_DEPENDENT = {
    "tiles": ("zoom",),
    "windows": ("window_count", "window_overlap", "window_margin", "blending"),
    "proposals": ("max_proposals", "min_side", "ensemble"),
}
# Of --crf, beside names and files.
_NO_CRF, _SEARCH = "none", "search"
# Options that are paths → what they want.
_EXPECTED = {
    "proposals": "a file of boxes, such as boxes.json, or dense, or selective_search",
    "ensemble": "a run directory, .keras file or exported file",
}


def add_inference_options(made: argparse.ArgumentParser, *, crf: bool = True) -> None:
    """Adds the options that say how a network is run on an image; `crf`: also that of a CRF behind it."""
    made.add_argument("--tta", action="store_true", help="test-time augmentation: three scales, each also mirrored")
    made.add_argument("--scales", type=parse_range, default=None, help="factors of the image size (default: the run's, or 1)")
    made.add_argument("--flip", action="store_true", help="average with the mirrored image")
    made.add_argument(
        "--fusion", choices=("mean", "max"), default=None, help="of scales and mirrored images: mean (default) or largest score"
    )
    made.add_argument("--output", default=None, metavar="NAME", help="output of a network with several (default: the first)")
    made.add_argument("--output-stride", type=int, default=None, help="image pixels per feature pixel (default: the run's)")
    if crf:
        made.add_argument(
            "--crf",
            default=None,
            metavar="NAME",
            help=f"dense CRF behind all that: {', '.join(PARAMETERS)}; a file of tools/tune_crf.py; search, what it found for this "
            "run; or none (default: the recipe's)",
        )
    tiles = made.add_argument_group("tiles of the reflected image (Dilation)")
    tiles.add_argument(
        "--tiles",
        type=parse_size,
        default=None,
        metavar="HxW",
        help="size with the 186 px margin; the authors': VOC 900x900, CamVid 900x1100, KITTI 852x1640, Cityscapes 1396x1396",
    )
    tiles.add_argument("--zoom", default=None, help="from cells to pixels: authors (default) or bilinear")
    windows = made.add_argument_group("overlapping windows, averaged (GCN; images of any size)")
    windows.add_argument("--windows", type=parse_size, default=None, metavar="HxW", help="size; for Cityscapes 1024x1024")
    windows.add_argument("--window-count", type=int, default=None, help="windows along a longer side (default: 4)")
    windows.add_argument(
        "--window-overlap",
        type=parse_overlap,
        default=None,
        metavar="PX|SHARE",
        help="instead of a count: pixels that a window shares with the next, such as 64, or a share of it, such as 0.25",
    )
    windows.add_argument(
        "--window-margin", type=int, default=None, metavar="PX", help="pixels at a window's edges that do not count"
    )
    windows.add_argument("--blending", default=None, help="weights where windows overlap: uniform (default), linear or gaussian")
    proposals = made.add_argument_group("boxes around likely objects, the maximum of each class (DeconvNet)")
    proposals.add_argument(
        "--proposals",
        default=None,
        metavar="FILE",
        help="file of boxes, JSON or CSV by image; or dense, windows of several sizes; or selective_search",
    )
    proposals.add_argument("--max-proposals", type=int, default=None, help="how many boxes of an image count (default: 50)")
    proposals.add_argument("--min-side", type=int, default=None, help="pixels that both sides of a box must have (default: 112)")
    proposals.add_argument(
        "--ensemble",
        default=None,
        metavar="RUN_OR_MODEL",
        help="network whose scores, from 0, multiply the proposals' (EDeconvNet: FCN-8s)",
    )


def parse_overlap(text: str) -> int | float:
    """Reads pixels, a whole number, or a share, with a point."""
    return int(text) if text.strip().isdecimal() else parse_number(text)


def check_inference_options(options) -> None:
    """Refuses options that contradict each other, before anything is opened.

    Raises:
        KerassegError: If there are such.
    """
    chosen = [name for name in _DEPENDENT if getattr(options, name) is not None]
    for name, expected in _EXPECTED.items():
        if getattr(options, name) is not None and not getattr(options, name).strip():
            raise KerassegError(f"{_flag(name)} '': expected {expected}")
    if len(chosen) > 1:
        raise KerassegError(
            f"{' and '.join(map(_flag, chosen))}: expected one way to run the network, such as {_flag(chosen[0])} alone"
        )
    _check_crf(getattr(options, "crf", None))
    for name, others in _DEPENDENT.items():
        for other in others:
            if name not in chosen and getattr(options, other) is not None:
                raise KerassegError(f"{_flag(other)} {getattr(options, other)}: means something only with {_flag(name)}")


def _check_crf(text: str | None) -> None:
    """Refuses an unknown name of a CRF; TensorFlow is not imported for it."""
    if text is None or text in (_NO_CRF, _SEARCH) or text in PARAMETERS or Path(text).is_file():
        return
    known = [*PARAMETERS, _SEARCH, _NO_CRF]
    raise KerassegError(f"--crf '{text}': no such file or name; {did_you_mean(text, known)}")


def chosen_inference(opened: Opened, options, search: Callable[[], Path] | None = None):
    """Makes the inference that the options describe, on top of the scale that the run trained at, and the CRF of its recipe.

    Args:
        opened: The network.
        options: What `add_inference_options` parsed.
        search: Searches the parameters of the CRF, and says in which file they are, for `--crf search` where that was not done.
    Raises:
        KerassegError: If they cannot be followed, or what `--crf search` finds was searched with other weights.
    """
    from kerasseg.evaluation import Inference
    from kerasseg.evaluation.exported import check_has_scores

    scales = options.scales or ((opened.recipe.image_scale,) if opened.recipe else (1.0,))
    crf = _chosen_crf(opened, options, search)
    others = _given(fusion=options.fusion, output=options.output)
    inference = Inference(scales=scales, flip=options.flip, method=chosen_method(opened, options), crf=crf, **others)
    inference = inference.with_tta() if options.tta else inference
    check_has_scores(opened.model, inference)
    return inference


def _chosen_crf(opened: Opened, options, search):
    """Name or file of the CRF's parameters; `None` for no CRF."""
    text = getattr(options, "crf", None)
    if text is None:
        return opened.recipe.crf if opened.recipe else None
    if text == _NO_CRF:
        return None
    if text != _SEARCH:
        return text
    found = search_folder(opened, options) / "best.json"
    if not found.is_file():
        if search is None:
            raise KerassegError(f"--crf search: {found} is not there yet; python tools/tune_crf.py {opened.path} writes it")
        found = search()
    else:
        from kerasseg.evaluation.crf_store import check_weights

        # The run may have been trained on, or the file be another one by now.
        check_weights(found.parent, opened.model)
    print(f"CRF parameters: {found}")
    return found


def search_folder(opened: Opened, options, split: str | None = None) -> Path:
    """Gives the folder of the search for a CRF's parameters: one for each split and way of running, so that none disturbs another.

    Args:
        opened: The network.
        options: What `add_inference_options` parsed, and perhaps `data`.
        split: What it was searched on; `None`: the run's validation split, or val.
    """
    recipe, data = opened.recipe, getattr(options, "data", None)
    foreign = f"{data}-" if data and not (recipe and recipe.data == data) else ""
    split = split or search_split(opened, options)
    return root_of(opened.path) / "crf" / f"{foreign}{split}{inference_name(options, crf=False)}"


def search_split(opened: Opened, options) -> str:
    """Says on which split the parameters of a CRF are searched: the run's validation split, or val."""
    recipe, data = opened.recipe, getattr(options, "data", None)
    return (recipe.validation_split if recipe and data in (None, recipe.data) else None) or "val"


def chosen_method(opened: Opened, options):
    """Makes the method that the options describe; without any, the whole image, fitted into a network of one size.

    Raises:
        KerassegError: If they cannot be followed.
    """
    from kerasseg.evaluation import Proposals, Tiles, Windows
    from kerasseg.evaluation.fitted import usual_method

    check_inference_options(options)
    if options.tiles is not None:
        return Tiles(options.tiles, **_given(zoom=options.zoom))
    if options.windows is not None:
        given = {"count": options.window_count, "overlap": options.window_overlap, "margin": options.window_margin}
        return Windows(options.windows, **_given(blending=options.blending, **given))
    if options.proposals is not None:
        made = Proposals(options.proposals, **_given(maximum=options.max_proposals, minimum_side=options.min_side))
        return made if options.ensemble is None else _with_ensemble(made, opened, options.ensemble)
    return usual_method(opened.model)


def _with_ensemble(method, opened: Opened, path: str):
    """Adds the second network, seen at the scale that its own run trained at."""
    second = open_run_or_model(path, exported=True)
    counts, tables = [output_classes(each.model) for each in (opened, second)], [each.labels for each in (opened, second)]
    if counts[0] != counts[1]:
        raise KerassegError(f"--ensemble {path} has {counts[1]} classes, {opened.path} {counts[0]}: expected the same classes")
    if None not in tables and tables[0].classes != tables[1].classes:
        one, other = next(pair for pair in zip(tables[0].classes, tables[1].classes, strict=True) if pair[0] != pair[1])
        raise KerassegError(
            f"--ensemble {path} is of data set '{tables[1].name}', with class '{other}' where {opened.path} has '{one}': expected "
            "the same classes in the same order"
        )
    own, others = (each.recipe.image_scale if each.recipe else 1.0 for each in (opened, second))
    return dataclasses.replace(method, ensemble=second.model, ensemble_scale=others / own, ensemble_path=path)


def inference_name(options, *, crf: bool = True) -> str:
    """Names the way of running, for the folder of its report, without the CRF or with; empty where nothing was asked for."""
    name = ("-tta" if options.tta else "") + ("-flip" if options.flip else "")
    name += f"-scales-{'-'.join(f'{scale:g}' for scale in options.scales)}" if options.scales else ""
    name += f"-fusion-{options.fusion}" if options.fusion else ""
    name += f"-output-{as_name(options.output)}" if options.output else ""
    name += f"-stride-{options.output_stride}" if options.output_stride else ""
    for option, others in _DEPENDENT.items():
        for part in (option, *others):
            value = getattr(options, part)
            if value is not None:
                name += f"-{part.replace('_', '-')}-{(_path_name if part in _EXPECTED else as_name)(value)}"
    if crf and getattr(options, "crf", None):
        named = options.crf in PARAMETERS or options.crf in (_NO_CRF, _SEARCH)
        name += f"-crf-{(as_name if named else _path_name)(options.crf)}"
    return name


def as_name(value) -> str:
    """Gives a value as a part of a folder's name, without what such a name should not hold."""
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


def _path_name(text: str) -> str:
    """The last part of a path, and what tells it from others of that name; of proposals that are generated, how."""
    from kerasseg.evaluation.proposals import GENERATORS

    if text in GENERATORS:
        return as_name(text)
    path = Path(text).resolve()
    # As a run has it, whose folder is what has a name.
    last = path.parent.name if path.name == "model.keras" else path.name
    return f"{as_name(last)}-{zlib.crc32(str(path).encode()):08x}"


def check_out(path: str) -> None:
    """Refuses, before any work, an --out that can be no folder.

    Raises:
        KerassegError: If it, or what it shall lie in, is a file.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise KerassegError(f"--out {path}: {place} is a file, expected a folder or a new name")


def _given(**options) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
