"""Training steps of dilated convolutions with batch norm and ReLU, our layers against Keras' own; target: 1.2 times faster.

Two of each rate, as in the last blocks of a network at output stride 8, on four images of 257x257; also with only one of the two
layers ours. The variants take turns, and each ratio is of two steps of the same round: a busy machine slows both.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from kerasseg.layers import BatchNormalization, Conv2D

RATES = (2, 2, 4, 4, 8, 8)
BATCH, SIZE, CHANNELS = 4, 33, 128
PLAIN, OURS = "Keras' layers", "both ours"
VARIANTS = {
    PLAIN: (keras.layers.Conv2D, keras.layers.BatchNormalization),
    "only our convolution": (Conv2D, keras.layers.BatchNormalization),
    "only our batch norm": (keras.layers.Conv2D, BatchNormalization),
    OURS: (Conv2D, BatchNormalization),
}


def make_step(convolution, normalization):
    """A compiled training step on fixed images, as a function that returns when it is done."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIZE, SIZE, CHANNELS), BATCH)
    for rate in RATES:
        x = convolution(CHANNELS, 3, padding="same", dilation_rate=rate, use_bias=False)(x)
        x = keras.layers.ReLU()(normalization(momentum=0.9)(x))
    model, optimizer = keras.Model(inputs, x), keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)
    generator = np.random.default_rng(0)
    images, weights = (tf.constant(generator.normal(0, 1, inputs.shape), "float32") for _ in range(2))

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.cast(model(images, training=True), "float32") * weights)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    return lambda: step().numpy()


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(precision: str, rounds: int, warm_up: int = 3) -> None:
    keras.config.set_dtype_policy(precision)
    steps = {name: make_step(*layers) for name, layers in VARIANTS.items()}
    losses = {name: [step() for _ in range(warm_up)][-1] for name, step in steps.items()}
    apart = max(abs(loss / losses[PLAIN] - 1) for loss in losses.values())
    times = {name: [] for name in steps}
    for number in range(rounds):
        # Another goes first each time.
        names = list(steps)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(steps[name]))
    print(f"{precision}: losses after {warm_up} steps within {apart:.1g}; time of Keras' layers to that of")
    for name in list(VARIANTS)[1:]:
        ratios = [plain / ours for plain, ours in zip(times[PLAIN], times[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        target = " (target: at least 1.2)" if name == OURS else ""
        print(f"  {name}: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}{target}")


def main(rounds: int = 40) -> None:
    print(f"dilated stack: rates {RATES}, {CHANNELS} channels, {SIZE}x{SIZE}, batch {BATCH}, {rounds} rounds each")
    for precision in ("float32", "mixed_bfloat16"):
        measure(precision, rounds)


if __name__ == "__main__":
    main()
