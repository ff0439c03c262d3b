"""VGG16's fully connected layers, thinned out for DeepLab."""

import keras
import numpy as np

from kerasseg.backbones.vgg import check_vgg16_weights_fit, copy_vgg16_convolutions, download_vgg16
from kerasseg.errors import KerassegError


def decimate_fc6(
    kernel: np.ndarray, bias: np.ndarray, *, size: int, outputs: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thins out VGG16's fc6, in space and in channels.

    In space every second or third weight is kept, corners included: rows and columns 0, 2, 4, 6 for 4×4, and 0, 3, 6 for 3×3,
    which with rate 12 on a map of stride 8 lie exactly where fc6 had them on the map of stride 32. Of the channels a random
    subset is kept, in its order. The authors say as much in the paper and published the thinned weights, but which channels
    they kept is in no file: networks started so are of the same kind as theirs, not equal to them.

    Args:
        kernel: Shape `(7, 7, 512, 4096)`, or any other square kernel.
        bias: Shape `(4096,)`.
        size: Side of the new kernel; 1 keeps the centre.
        outputs: Channels to keep.
        seed: Of the choice of channels; the same seed gives the same weights on every machine.
    Returns:
        Kernel `(size, size, 512, outputs)`, bias `(outputs,)`, and the numbers of the channels kept, which fc7 needs.
    Raises:
        KerassegError: If weights at equal distances do not give this size, or there are not so many channels.
    Reference:
        Chen et al. 2015, arXiv:1412.7062, §3.2; vgg16_128 (4×4, 4096 channels) and vgg16_20M (3×3, 1024).
    """
    side = kernel.shape[0]
    step = (side - 1) // max(1, size - 1)
    if not 1 <= size <= side or (size > 1 and step * (size - 1) != side - 1):
        whole = [n for n in range(1, side + 1) if n == 1 or (side - 1) % (n - 1) == 0]
        raise KerassegError(f"size={size}: a kernel of {side}×{side} can be thinned out to sides of {', '.join(map(str, whole))}")
    cells = np.arange(size) * step if size > 1 else np.array([side // 2])
    kept = _choose(kernel.shape[3], outputs, seed)
    return kernel[cells][:, cells][..., kept], bias[kept], kept


def decimate_fc7(
    kernel: np.ndarray, bias: np.ndarray, *, inputs: np.ndarray, outputs: int, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Thins out VGG16's fc7 to follow a thinned fc6.

    Args:
        kernel: Shape `(1, 1, 4096, 4096)`.
        bias: Shape `(4096,)`.
        inputs: The channels that `decimate_fc6` kept.
        outputs: Channels to keep.
        seed: Of the choice of those.
    Returns:
        Kernel `(1, 1, len(inputs), outputs)` and bias `(outputs,)`.
    Raises:
        KerassegError: If there are not so many channels.
    Reference:
        As `decimate_fc6`.
    """
    kept = _choose(kernel.shape[3], outputs, seed)
    return kernel[:, :, inputs][..., kept], bias[kept]


def _choose(channels: int, count: int, seed: int) -> np.ndarray:
    if not 1 <= count <= channels:
        raise KerassegError(f"outputs={count}: expected 1 to {channels}, the channels that there are")
    return np.sort(np.random.default_rng(seed).permutation(channels)[:count])


def load_decimated_vgg16(model: keras.Model, classifier: keras.Model | None = None) -> None:
    """Starts a DeepLab on VGG16 from Keras' classifier, its fully connected layers thinned out to the network's kernels.

    Every branch of fc6 and fc7 gets the same weights; they differ by their rates. Score layers and multi-scale branches keep
    theirs. Keras' weights expect BGR minus the mean, as the preset `"caffe"` gives it.

    Args:
        model: A network on `vgg16_atrous` and `fully_connected_atrous` at full width.
        classifier: `keras.applications.VGG16` with its top; `None` downloads the ImageNet one.
    Raises:
        KerassegError: If the download fails or the network has another width or preprocessing.
    """
    check_vgg16_weights_fit(model, "conv1_1", 64)
    classifier = classifier or download_vgg16()
    copy_vgg16_convolutions(model, classifier)
    (kernel6, bias6), (kernel7, bias7) = (classifier.get_layer(name).get_weights() for name in ("fc1", "fc2"))
    channels = model.get_layer("pool5").output.shape[-1]
    side = round((len(kernel6) / channels) ** 0.5)
    # Keras flattens (7, 7, 512) in this order.
    kernel6 = kernel6.reshape(side, side, channels, -1)
    for layer in model.layers:
        if layer.name.startswith("fc6"):
            kernel, bias, kept = decimate_fc6(kernel6, bias6, size=layer.kernel_size[0], outputs=layer.filters)
            layer.set_weights([kernel, bias])
            follower = model.get_layer(layer.name.replace("fc6", "fc7"))
            follower.set_weights(decimate_fc7(kernel7[None, None], bias7, inputs=kept, outputs=follower.filters))
