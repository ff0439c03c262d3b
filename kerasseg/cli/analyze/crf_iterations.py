"""`tools/analyze.py crf_iterations`: what a dense CRF makes of a class, iteration by iteration."""

from pathlib import Path

from kerasseg.cli.analyze.common import add_kind, add_network_and_image, check_files, class_number, parse_counts, scale_of
from kerasseg.cli.opening import label_table, open_run_or_model, output_classes
from kerasseg.crf import PARAMETERS
from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean

NAME = "crf_iterations"
_BACKGROUND = "background"


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "scores and beliefs of a class after so many CRF iterations (DeepLab v1, Figure 2)")
    add_network_and_image(made, NAME)
    made.add_argument("--crf", required=True, metavar="NAME", help=f"{', '.join(PARAMETERS)}; or a file of tools/tune_crf.py")
    made.add_argument("--iterations", default="0,1,2,10", help="after how many to look; 0 is the network's own")
    made.add_argument("--class", dest="class_name", default=None, metavar="NAME", help="default: the largest, no background")
    made.add_argument("--labels", default=None, help="names and colours of the classes (default: the run's)")


def run(options) -> None:
    """Runs the CRF, prints a line for each number of iterations, and draws.

    Raises:
        KerassegError: If the options cannot be followed.
    """
    counts = parse_counts("--iterations", options.iterations, smallest=0, example="0,1,2,10")
    if options.crf not in PARAMETERS and not Path(options.crf).is_file():
        raise KerassegError(f"--crf '{options.crf}': no such file or name; {did_you_mean(options.crf, PARAMETERS)}")
    check_files(options)
    opened = open_run_or_model(options.model)
    from kerasseg.data import decode_image
    from kerasseg.evaluation import Inference, crf_parameters, overlay
    from kerasseg.evaluation.analysis import crf_picture, crf_steps
    from kerasseg.evaluation.inference import logits_for_crf

    labels, parameters = label_table(opened, output_classes(opened.model), options.labels), crf_parameters(options.crf)
    channel = None if options.class_name is None else class_number(options.class_name, labels.classes)
    image, path = decode_image(options.image), Path(options.out) / f"{NAME}.png"
    logits = logits_for_crf(opened.model, image, Inference(scales=(scale_of(opened),)))
    channel = _most_frequent(logits.argmax(-1), labels.classes) if channel is None else channel
    steps = crf_steps(image, logits, parameters, counts)
    last = steps[-1].beliefs.argmax(-1)
    crf_picture(image, steps, channel, path, labelled=overlay(image, last, labels))
    print("\n".join(_line(step, logits, channel, labels.classes[channel]) for step in steps))
    print(f"picture: {path}")


def _most_frequent(label, names) -> int:
    """The class of most pixels beside background; background where there is no other."""
    import numpy as np

    counts = np.bincount(label.ravel(), minlength=len(names))
    if names[0] == _BACKGROUND and counts[1:].any():
        counts[0] = 0
    return int(counts.argmax())


def _line(step, logits, channel: int, name: str) -> str:
    scores, beliefs, label = step.scores[..., channel], step.beliefs[..., channel], step.beliefs.argmax(-1)
    share, changed = 100 * (label == channel).mean(), 100 * (label != logits.argmax(-1)).mean()
    times = f"{step.iterations} iteration{'' if step.iterations == 1 else 's'}"
    return (
        f"{times}: {name}: score {scores.min():.4g} to {scores.max():.4g}, belief {beliefs.mean():.4f} on average, most likely at "
        f"{share:.2f} % of pixels; {changed:.2f} % differ from the network's"
    )
