"""`tools/analyze.py momentum`: which momentum suits another batch size."""

from pathlib import Path

from kerasseg.cli.analyze.common import add_kind
from kerasseg.cli.inference import check_out
from kerasseg.cli.running import start_tensorflow

NAME = "momentum"
_ROWS = 12


def add(kinds) -> None:
    """Adds the parser of this kind."""
    made = add_kind(kinds, NAME, "the momentum with which another batch size trains about alike (FCN, section 6.2)")
    made.add_argument("--momentum", type=float, default=0.9, help="momentum that is known to suit --batch")
    made.add_argument("--batch", type=int, default=20, help="images in a batch")
    made.add_argument("--to-batch", type=int, default=1, help="the other batch size")
    made.add_argument("--out", default=None, help=f"folder for {NAME}.png (default: no picture)")


def run(options) -> None:
    """Prints the momentum, the coefficients and the learning rate.

    Raises:
        KerassegError: If a number is out of range.
    """
    if options.out:
        check_out(options.out)
    start_tensorflow()
    from kerasseg.evaluation.analysis.momentum import Regime, equivalent, momentum_picture, rate_factor, shown_examples

    first = Regime(options.momentum, options.batch)
    second = equivalent(first, options.to_batch)
    count = shown_examples(first)
    columns = (first.coefficients(count), first.smooth_coefficients(count), second.coefficients(count))
    heads = ("p^floor(j/k)", "p^(j/k)", "p'^floor(j/k')")
    print("  ".join([f"{'example j':>9}", *(f"{head:>14}" for head in heads)]))
    for index in range(0, count, max(1, count // _ROWS)):
        print("  ".join([f"{index:>9}", *(f"{column[index]:>14.4f}" for column in columns)]))
    totals = (first.total(), first.smooth_total(), second.total())
    print("  ".join([f"{'sum':>9}", *(f"{total:>14.2f}" for total in totals)]))
    print(f"momentum {first.momentum:g} at batch size {first.batch} is about momentum {second.momentum:.4f} at {second.batch}")
    factors = [rate_factor(first, second, averaged=averaged) for averaged in (False, True)]
    print(f"learning rate times {factors[0]:.4g} for the same total step (loss averaged over the batch: times {factors[1]:.4g})")
    if options.out:
        path = Path(options.out) / f"{NAME}.png"
        momentum_picture(first, second, path, count)
        print(f"picture: {path}")
