"""`tools/check_xla.py`: which networks XLA compiles, and with them a TPU, as far as that can be told without one."""

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kerasseg.cli.options import parse_size
from kerasseg.cli.running import make_parser, run_command, start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.models import MODELS
from kerasseg.tables import did_you_mean

_NUM_CLASSES = 21


class Result(NamedTuple):
    """How one step of one network went: the seconds that tracing, compiling and doing it once took, or why it failed."""

    arch: str
    step: str
    seconds: float
    reason: str | None


def parser():
    """Makes the parser of `tools/check_xla.py`."""
    made = make_parser(
        "check_xla.py",
        "Compile the training and the prediction step of networks by XLA, at static shapes, on this machine; do each once; name "
        "those that fail. Exit code 1 if one does.",
    )
    made.add_argument("--arch", nargs="+", default=list(MODELS), metavar="ARCH", help="networks, by name (default: all)")
    # Widths change neither the operations nor the shapes that XLA may refuse.
    made.add_argument("--width-multiplier", type=float, default=1 / 16, help="factor for every width of the networks")
    made.add_argument("--size", type=parse_size, default=(224, 224), help="HEIGHTxWIDTH; made larger where a network needs it")
    made.add_argument("--batch-size", type=int, default=1, help="images per step")
    made.add_argument("--precision", default="float32", help="float32, bfloat16 or float16")
    return made


def run(arguments: Sequence[str]) -> list[Result]:
    """Checks as the arguments say, and prints a line for each step of each network.

    Returns:
        Those that failed.
    Raises:
        KerassegError: If the arguments cannot be followed.
    """
    options = parser().parse_args(arguments)
    for arch in options.arch:
        if arch not in MODELS:
            MODELS[arch]
    if options.batch_size < 1 or not 0 < options.width_multiplier < math.inf:
        raise KerassegError(
            f"--batch-size {options.batch_size} --width-multiplier {options.width_multiplier:g}: expected both above 0"
        )
    start_tensorflow()
    from kerasseg.training.parts import PRECISIONS

    if options.precision not in PRECISIONS:
        raise KerassegError(f"--precision {options.precision}: {did_you_mean(options.precision, PRECISIONS)}")
    failed, count = [], 0
    for result in _results(options, PRECISIONS[options.precision]):
        outcome = f"failed: {result.reason}" if result.reason else f"ok {result.seconds:.1f} s"
        print(f"{result.arch:{max(map(len, options.arch))}} {result.step:7} {outcome}", flush=True)
        failed += [result] if result.reason else []
        count += 1
    names = ", ".join(f"{result.arch} {result.step}" for result in failed)
    print(f"{count - len(failed)} of {count} steps compile" + (f"; not: {names}" if failed else ""))
    return failed


def _results(options, policy: str) -> Iterator[Result]:
    import keras

    before, logger = keras.config.dtype_policy(), logging.getLogger("tensorflow")
    level = logger.level
    # It warns of functions that are traced again and again; here that is the purpose.
    logger.setLevel(logging.ERROR)
    try:
        for arch in options.arch:
            for step, do in (("train", _train), ("predict", _predict)):
                # Which forgets the policy, too.
                keras.backend.clear_session()
                keras.config.set_dtype_policy(policy)
                yield _attempt(arch, step, do, options)
    finally:
        keras.config.set_dtype_policy(before)
        logger.setLevel(level)


def _attempt(arch: str, step: str, do: Callable, options) -> Result:
    """Does one step of one network, each from the beginning: what the one leaves behind must not help the other."""
    start = time.perf_counter()
    try:
        builder = MODELS[arch]
        model = builder(_NUM_CLASSES, width_multiplier=options.width_multiplier)
        size = [_allowed(side, builder.minimum_size, builder.divisor) for side in options.size]
        start = time.perf_counter()
        do(model, (options.batch_size, *size), options)
    except Exception as error:  # Whatever it is, the other networks are still to be checked.
        if options.debug:
            raise
        return Result(arch, step, time.perf_counter() - start, _in_one_line(error))
    return Result(arch, step, time.perf_counter() - start, None)


def _allowed(side: int, minimum: int, divisor: int) -> int:
    """The smallest side from this on that a network takes."""
    return -(-max(side, minimum) // divisor) * divisor


def _train(model, shape, options) -> None:
    """One real step: forward, loss, gradients, update."""
    import numpy as np
    import tensorflow as tf

    from kerasseg.optimizers import CaffeSGD
    from kerasseg.training import Trainer

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (*shape, 3)).astype(np.float32)
    labels = generator.integers(0, _NUM_CLASSES, shape).astype(np.int32)
    labels[:, 0] = 255
    if isinstance(model.output, dict):
        labels = dict.fromkeys(model.output, labels)
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    optimizer = CaffeSGD(1e-6, 0.9, 5e-4)
    trainer = Trainer(model, optimizer=optimizer, loss_scaling=options.precision == "float16", jit_compile=True)
    for _ in trainer.train(lambda start, share: data, 1):
        pass


def _predict(model, shape, options) -> None:
    """The class of every pixel."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def classes(images):
        logits = model(images, training=False)
        if isinstance(logits, dict):
            logits = logits[next(iter(logits))]
        return tf.argmax(logits, axis=-1, output_type=tf.int32)

    classes(tf.zeros((*shape, 3)))


def _in_one_line(error: Exception) -> str:
    """What XLA could not do, and in which layer; of other errors the first line."""
    message = str(error).strip()
    unknown = re.findall(r"(\w+) \(No registered", message)
    if unknown:
        nodes = re.findall(r"\{\{node ([^}]+)\}\}", message)
        return f"XLA has no {', '.join(dict.fromkeys(unknown))} (at {nodes[-1]})"
    return f"{type(error).__name__}: {message.splitlines()[0][:200]}" if message else type(error).__name__


def main() -> int:
    """Runs `tools/check_xla.py` and returns its exit code: 1 if a step does not compile."""
    failed = []
    return run_command(lambda arguments: failed.extend(run(arguments))) or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
