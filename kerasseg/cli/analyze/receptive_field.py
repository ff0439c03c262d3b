"""`tools/analyze.py receptive_field`: the part of a photograph that a score really depends on."""

from pathlib import Path

from kerasseg.cli.analyze.common import add_kind, add_network_and_image, check_files, class_number, scale_of
from kerasseg.cli.networks import seen_pixels
from kerasseg.cli.opening import label_table, open_run_or_model, output_classes
from kerasseg.cli.progress import Progress
from kerasseg.errors import KerassegError

NAME = "receptive_field"
_CENTRE = "centre"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "what a score depends on in fact: the valid receptive field (GCN, Figure 3)")
    add_network_and_image(made, NAME, several=True)
    made.add_argument("--at", default=_CENTRE, metavar="ROW,COLUMN", help="pixel of the photographs whose score it is")
    made.add_argument("--layer", default=None, help="another layer than the network's scores")
    made.add_argument("--class", dest="class_name", default=None, metavar="NAME", help="whose score (default: the largest there)")
    made.add_argument(
        "--method", default="occlusion", choices=("occlusion", "gradient"), help="patches of noise, or the derivative"
    )
    made.add_argument("--patch", type=int, default=11, help="side of the patches of noise in pixels")
    made.add_argument("--stride", type=int, default=3, help="pixels from one patch to the next")
    made.add_argument("--threshold", type=float, default=None, help="share of the largest influence that counts")
    made.add_argument("--batch-size", type=int, default=8, help="occluded photographs at once")
    made.add_argument("--seed", type=int, default=0, help="of the noise")
    made.add_argument("--labels", default=None, help="names of the classes (default: the run's)")


def run(options) -> None:
    """Measures, prints the sizes and draws the fields.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    at = _place(options.at)
    for name in ("patch", "stride", "batch_size"):
        if getattr(options, name) < 1:
            raise KerassegError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1")
    if options.threshold is not None and not 0 <= options.threshold < 1:
        raise KerassegError(f"--threshold {options.threshold:g}: expected a share from 0 to below 1, such as 0.05")
    check_files(options)
    opened = open_run_or_model(options.model)
    from kerasseg.data import decode_image
    from kerasseg.evaluation.analysis import field_picture, mean_influence, scaled_image

    names, scale = _class_names(opened, options), scale_of(opened)
    channel = None if options.class_name is None else class_number(options.class_name, names)
    photographs = [decode_image(path) for path in options.images]
    places = [_scaled_place(at, path, image.shape[:2], scale) for path, image in zip(options.images, photographs, strict=True)]
    images = [scaled_image(image, scale) for image in photographs]
    found = [
        _measured(opened, path, image, place, channel, options)
        for path, image, place in zip(options.images, images, places, strict=True)
    ]
    stems = [Path(path).stem for path in options.images]
    both = [_described(stem, each, names, options, scale) for stem, each in zip(stems, found, strict=True)]
    if len(found) > 1:
        both.append(_described(f"mean of {len(found)}", mean_influence(found), names, options, scale))
    path = Path(options.out) / f"{NAME}.png"
    field_picture(images, found, [title for title, _ in both], path, threshold=options.threshold)
    print("\n".join(line for _, line in both))
    print(f"picture: {path}")


def _place(text: str) -> tuple[int, int] | None:
    if text.strip().lower() in (_CENTRE, "center"):
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise KerassegError(f"--at {text}: expected row,column in pixels, such as 120,200, or centre")
    return tuple(map(int, parts))


def _class_names(opened, options) -> tuple[str, ...] | None:
    """Names of the classes, of layers that have as many channels; `None` of others."""
    from kerasseg.evaluation.analysis.stages import layer_map

    classes = output_classes(opened.model)
    if options.layer is not None and layer_map(opened.model, options.layer).shape[-1] != classes:
        if options.class_name is not None:
            raise KerassegError(f"--class {options.class_name}: layer {options.layer} has no classes; leave --class or --layer out")
        return None
    return label_table(opened, classes, options.labels).classes


def _scaled_place(at, path: str, size: tuple[int, int], scale: float) -> list[int] | None:
    """Where a pixel of a photograph is in what the network sees of it."""
    if at is None:
        return None
    if not (at[0] < size[0] and at[1] < size[1]):
        raise KerassegError(f"--at {at[0]},{at[1]}: {path} has {size[0]}x{size[1]} pixels")
    from kerasseg.evaluation.methods import scaled_size

    # Half-pixel centres, as the image is scaled.
    sides = zip(at, scaled_size(size, scale), size, strict=True)
    return [min(int((place + 0.5) * side / full), side - 1) for place, side, full in sides]


def _measured(opened, path, image, at, channel, options):
    from kerasseg.evaluation.analysis import influence

    height, width = image.shape[:2]
    named = ("layer", "method", "patch", "stride", "seed", "batch_size")
    total = len(range(0, height, options.stride)) * len(range(0, width, options.stride))
    with Progress(f"occluding {Path(path).name}", total, unit="patches") as progress:
        return influence(
            opened.model,
            image,
            at,
            channel=channel,
            progress=lambda done, _: progress.update(done),
            **{name: getattr(options, name) for name in named},
        )


def _described(name: str, found, names, options, scale: float) -> tuple[str, str]:
    """A title for the picture, and a line to print."""
    from kerasseg.evaluation.analysis import valid_field

    field = valid_field(found, options.threshold)
    of = f"channel {found.channel} of {found.layer}" if names is None else names[found.channel]
    size, theory = f"{field.size[0]}x{field.size[1]}", f"theory {seen_pixels(found.theoretical)}"
    seen = "x".join(map(str, found.values.shape))
    line = (
        f"{name}: {of}, score {found.score:.4g} at {found.at[0]},{found.at[1]} of {seen}: valid field as large as a square of "
        f"{field.side:.0f} pixels, within {size}; {theory}"
    ) + ("" if scale == 1 else f" (all of the photograph scaled by {scale:g})")
    return f"{name}, {of}: a square of {field.side:.0f} pixels, {theory}", line
