"""Peak memory of a training step by the number of its forward passes; flat is what it should be.

FCN-8s at quarter width on 256x256, four images a pass. Each count of passes is a process of its own, since a process never gives
back its peak.
"""

import os
import resource
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PASSES = (1, 2, 5, 10, 20)


def peak(passes: int) -> float:
    """Mebibytes that three steps need above what the process had before the first."""
    import tensorflow as tf

    from kerasseg.models import MODELS
    from kerasseg.training import CaffeSGD, Trainer

    def drawn(number):
        """Other images in every pass: a pipeline that keeps them would show."""
        image = tf.random.stateless_uniform((4, 256, 256, 3), tf.stack([number, 0]), 0, 255)
        return image, tf.random.stateless_uniform((4, 256, 256), tf.stack([number, 1]), 0, 21, tf.int32)

    model = MODELS["fcn8s"](21, width_multiplier=0.25, padding="same", preprocessing="torch")
    trainer = Trainer(model, optimizer=CaffeSGD(1e-3), accumulation=passes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in trainer.train(lambda start, share: tf.data.Dataset.counter(start).map(drawn), 3):
        pass
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
        return
    peaks = {}
    for passes in PASSES:
        done = subprocess.run([sys.executable, __file__, str(passes)], stdout=subprocess.PIPE, text=True, check=True)
        peaks[passes] = float(done.stdout.splitlines()[-1])
        print(
            f"{passes:2} passes a step: {peaks[passes]:.0f} MiB above the start, {peaks[passes] / peaks[PASSES[0]]:.2f} of one pass"
        )


if __name__ == "__main__":
    main()
