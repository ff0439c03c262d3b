"""Caffe's files written by hand, byte for byte, without the reader's schema; and what other programs need beside them."""

import numpy as np

# V1's numbers for the types of layers, without which other readers do not take the file.
_V1_TYPES = {"Convolution": 4, "Deconvolution": 39, "InnerProduct": 14}
_V0_TYPES = {"Convolution": "conv", "InnerProduct": "innerproduct"}


def integer(value):
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, content):
    """A field of bytes, or of an integer."""
    if isinstance(content, int):
        return integer(number << 3) + integer(content)
    content = content.encode() if isinstance(content, str) else content
    return integer(number << 3 | 2) + integer(len(content)) + content


def blob(array, *, old=False, packed=True, double=False, diff=False):
    """One array: its shape in the old form (four axes) or the new one, its numbers, and gradients that nobody needs."""
    number, kind, wire = (8, "<f8", 1) if double else (5, "<f4", 5)
    values = np.asarray(array, kind)
    data = field(number, values.tobytes())
    if not packed:
        data = b"".join(integer(number << 3 | wire) + value.tobytes() for value in values.ravel())
    shape = (1,) * (4 - values.ndim) + values.shape if old else values.shape
    head = b"".join(field(axis, n) for axis, n in enumerate(shape, start=1))
    tail = b"" if old else field(7, field(1, b"".join(map(integer, shape))))
    return (head if old else b"") + data + (field(6, (values + 1).tobytes()) if diff else b"") + tail


def layer_v2(name, kind, arrays, **options):
    content = field(1, name) + field(2, kind) + field(3, "below") + field(4, "above") + field(10, 1)
    return field(100, content + b"".join(field(7, blob(array, **options)) for array in arrays))


def layer_v1(name, kind, arrays, **options):
    content = field(2, "below") + field(3, "above") + field(4, name) + field(5, _V1_TYPES.get(kind, 18))
    return field(2, content + b"".join(field(6, blob(array, **{"old": True, **options})) for array in arrays))


def layer_v0(name, kind, arrays, **options):
    content = field(1, name) + field(2, _V0_TYPES.get(kind, "relu"))
    content += b"".join(field(50, blob(array, **{"old": True, **options})) for array in arrays)
    return field(2, field(1, content) + field(2, "below") + field(3, "above"))


WRITERS = {"v0": layer_v0, "v1": layer_v1, "v2": layer_v2}


def caffemodel_bytes(layers, form="v2", **options):
    """A network of (name, type, arrays); one layer without weights before them, as data and activations are."""
    write = WRITERS[form]
    inputs = field(3, "data") + b"".join(field(4, n) for n in (1, 3, 8, 8))
    written = write("relu", "ReLU", []) + b"".join(write(*layer, **options) for layer in layers)
    # Caffe writes fields by their numbers.
    return field(1, "net") + (inputs + written if form == "v2" else written + inputs)


# The description of a network that Caffe, and what reads its files, wants beside the weights.


def prototxt(shape, layers):
    """Writes `(name, type, below, {parameters})`; a layer's output has its name."""
    dims = " ".join(f"dim: {n}" for n in shape)
    lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}']
    for name, kind, below, parameters in layers:
        bottoms = " ".join(f'bottom: "{b}"' for b in ([below] if isinstance(below, str) else below))
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{name}" {_block(parameters)} }}')
    return "\n".join(lines) + "\n"


def _block(parameters):
    parts = []
    for key, value in parameters.items():
        parts.append(f"{key} {{ {_block(value)} }}" if isinstance(value, dict) else f"{key}: {value}")
    return " ".join(parts)


def _convolution(name, below, outputs, kernel, pad=0):
    return name, "Convolution", below, {"convolution_param": {"num_output": outputs, "kernel_size": kernel, "pad": pad}}


def _upsampling(name, below, classes, kernel, stride):
    settings = {"num_output": classes, "kernel_size": kernel, "stride": stride, "bias_term": "false"}
    return name, "Deconvolution", below, {"convolution_param": settings}


def _crop(name, below, like, offset):
    return name, "Crop", [below, like], {"crop_param": {"axis": 2, "offset": offset}}


def fcn8s_layers(classes, width):
    """FCN-8s as fcn.berkeleyvision.org defines it (voc-fcn8s), every trunk width times `width`."""
    layers, x = [], "data"
    for block, (count, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for index in range(1, count + 1):
            name = f"conv{block}_{index}"
            layers += [_convolution(name, x, int(channels * width), 3, 100 if name == "conv1_1" else 1)]
            layers += [(f"relu{block}_{index}", "ReLU", name, {})]
            x = f"relu{block}_{index}"
        layers += [(f"pool{block}", "Pooling", x, {"pooling_param": {"pool": "MAX", "kernel_size": 2, "stride": 2}})]
        x = f"pool{block}"
    for name, kernel in (("fc6", 7), ("fc7", 1)):
        layers += [_convolution(name, x, int(4096 * width), kernel), (f"relu_{name}", "ReLU", name, {})]
        x = f"relu_{name}"
    layers += [_convolution("score_fr", x, classes, 1), _upsampling("upscore2", "score_fr", classes, 4, 2)]
    layers += [_convolution("score_pool4", "pool4", classes, 1), _crop("score_pool4c", "score_pool4", "upscore2", 5)]
    layers += [("fuse_pool4", "Eltwise", ["upscore2", "score_pool4c"], {"eltwise_param": {"operation": "SUM"}})]
    layers += [_upsampling("upscore_pool4", "fuse_pool4", classes, 4, 2), _convolution("score_pool3", "pool3", classes, 1)]
    layers += [_crop("score_pool3c", "score_pool3", "upscore_pool4", 9)]
    layers += [("fuse_pool3", "Eltwise", ["upscore_pool4", "score_pool3c"], {"eltwise_param": {"operation": "SUM"}})]
    return [*layers, _upsampling("upscore8", "fuse_pool3", classes, 16, 8), _crop("score", "upscore8", "data", 31)]
