"""`tools/analyze.py cues`: whether a network goes by objects, by their surroundings or by their shape."""

from pathlib import Path

from kerasseg.cli.analyze.common import add_kind
from kerasseg.cli.inference import add_inference_options, check_inference_options, check_out, chosen_inference
from kerasseg.cli.opening import add_data_options, check_classes, chosen_data, open_chosen, open_run_or_model
from kerasseg.cli.progress import Progress
from kerasseg.errors import KerassegError

NAME = "cues"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "scores with foreground, background or both hidden (FCN, Table 8 and Figure 7)")
    made.add_argument("model", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    add_data_options(made)
    made.add_argument("--background", default=None, metavar="CLASS,…", help="classes that are background (default: the first)")
    made.add_argument("--limit", type=int, default=None, help="only the first so many images")
    made.add_argument("--out", default=None, help=f"folder for {NAME}-ID.png (default: no pictures)")
    made.add_argument("--pictures", type=int, default=3, help="images to draw")
    add_inference_options(made)


def run(options) -> None:
    """Prints one row for each way of hiding, and draws a few images.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    check_inference_options(options)
    names = _names(options.background)
    if options.out:
        check_out(options.out)
    opened = open_run_or_model(options.model, options.output_stride)
    from kerasseg.evaluation.analysis.cues import CONDITIONS, background_names, cue_scores
    from kerasseg.evaluation.evaluator import scored_head

    _, _, same = chosen_data(opened, options)
    split = options.split or (opened.recipe.validation_split if same else None) or "val"
    # As they are, whatever the run itself was trained on: each way of hiding is one of the rows.
    data = scored_head(open_chosen(opened, options, split, as_seen=False), opened.model, options.output)
    check_classes(opened, data, options.output)
    names = background_names(data, names)
    inference = chosen_inference(opened, options)
    total = min(len(data), options.limit or len(data))
    with Progress(f"scoring {split}", len(CONDITIONS) * total, unit="images") as progress:
        found = cue_scores(
            opened.model,
            data,
            inference,
            background=names,
            progress=lambda done, _: progress.update(done),
            limit=options.limit,
        )
    print(f"{'foreground':<10}  {'background':<10}  {'mean IoU %':>10}  {'accuracy %':>10}")
    for each in found:
        rates = f"{100 * each.mean_iou:>10.2f}  {100 * each.pixel_accuracy:>10.2f}"
        print(f"{each.foreground:<10}  {each.background:<10}  {rates}")
    print(f"mean IoU without background ({', '.join(names)}), of {total} images; {inference}")
    if options.out:
        _draw(opened, data, names, inference, total, options)


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise KerassegError(f"--background '{text}': expected names of classes, such as background")
    return names


def _draw(opened, data, names, inference, total: int, options) -> None:
    """Draws images spread over the data set, one file each."""
    from kerasseg.evaluation import predict_with_classes
    from kerasseg.evaluation.analysis.cues import cue_picture, cues_of

    count = max(0, min(options.pictures, total))
    for place in range(count):
        example = data[place * total // count]

        def predict(image, example=example):
            return predict_with_classes(opened.model, image, inference, example.id).classes

        path = Path(options.out) / f"{NAME}-{example.id.replace('/', '-')}.png"
        cue_picture(example, predict, data.labels, cues_of(data, names), path)
        print(f"picture: {path}")
