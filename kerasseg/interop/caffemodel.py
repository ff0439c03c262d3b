"""Caffe's weight files, read without Caffe."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kerasseg.errors import KerassegError

# Encodings: 0 an integer, 2 so many bytes, and these of one size.
_FIXED = {1: 8, 5: 4}
# Fields of the whole network → how they may be encoded. What is not a layer is passed over.
_NETWORK = {1: {2}, 2: {2}, 3: {2}, 4: {0, 2}, 5: {0}, 6: {2}, 7: {0}, 8: {2}, 100: {2}}
# Caffe's forks number their own fields from here; nobody is known to go as far as the end.
_FORKS = range(9, 64)
_LAYERS = {2: "V1Layer", 100: "Layer"}
# Message → field → (number, type). A `*` repeats. Numbers are declared as bytes, which is what a packed list of them is, so that
# they need not pass through Python one by one; what is not named here (diff, all settings) is left aside.
_SCHEMA = {
    "Shape": {"dim": (1, "int64*")},
    "Blob": {
        "num": (1, "int64"),
        "channels": (2, "int64"),
        "height": (3, "int64"),
        "width": (4, "int64"),
        "data": (5, "bytes*"),
        "shape": (7, "Shape"),
        "double_data": (8, "bytes*"),
    },
    "Layer": {"name": (1, "bytes"), "blobs": (7, "Blob*")},
    "V0Layer": {"name": (1, "bytes"), "blobs": (50, "Blob*")},
    "V1Layer": {"layer": (1, "V0Layer"), "name": (4, "bytes"), "blobs": (6, "Blob*")},
}
_NUMBERS = {"data": "<f4", "double_data": "<f8"}
_SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file, such as Keras' .weights.h5 or Caffe's .caffemodel.h5",
    b"PK\x03\x04": "a zip archive, such as a .keras file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
}


def read_caffemodel(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Reads the weights of a `.caffemodel`, of any generation of the format.

    The format carries no checksum. Damage to a length, a name or a shape shows here or when the weights are loaded into a
    network; a number that was changed into another finite number cannot be told from a weight. A file cut exactly between two
    layers is whole as far as it goes: `load_caffe` misses the rest.

    Args:
        path: The binary file that Caffe saved.
    Returns:
        Layer name → its arrays: float32, read-only, in Caffe's layout and order. Layers without weights are left out.
    Raises:
        KerassegError: If there is no such file, it is no caffemodel, or it is damaged.
    Reference:
        Field numbers: BVLC/caffe, src/caffe/proto/caffe.proto (NetParameter, LayerParameter, V1LayerParameter,
        V0LayerParameter, BlobProto, BlobShape).
    """
    path = Path(path)
    _check_file(path)
    found, layers = {}, 0
    with path.open("rb") as file:
        try:
            for name, arrays in _named_arrays(file, path.stat().st_size):
                layers += 1
                if arrays and not same_arrays(found.setdefault(name, arrays), arrays):
                    raise ValueError(f"two layers are called {name} and have different weights")
        except ValueError as error:
            raise KerassegError(
                f"'{path}' is no caffemodel, or a damaged one: {error}; expected the binary file that Caffe saved, NAME.caffemodel"
            ) from error
    if not found:
        raise KerassegError(
            f"'{path}' holds {layers} layers and no weights: expected the binary file that Caffe saved after training"
        )
    return found


def same_arrays(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Tells whether two lists hold the same numbers in the same shapes."""
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def _check_file(path: Path) -> None:
    """Says what is there instead of a caffemodel, where that can be told at once."""
    if not path.exists():
        raise KerassegError(f"no file at '{path}': expected a .caffemodel")
    if path.is_dir():
        raise KerassegError(f"'{path}' is a folder: expected a .caffemodel file")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise KerassegError(f"'{path}' is empty: expected a .caffemodel; download it again")
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            raise KerassegError(f"'{path}' is {kind}: expected a .caffemodel")
    # A text may be cut inside a character of several bytes here.
    text = start.decode("utf-8", errors="ignore")
    if len(text) > 0.9 * len(start) and all(c.isprintable() or c in "\t\r\n" for c in text):
        raise KerassegError(
            f"'{path}' is text ({text[:40].strip()!r} …), such as a .prototxt or a web page: expected a .caffemodel"
        )


def _named_arrays(file: BinaryIO, size: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Reads layer by layer, so that what is parsed of a file of hundreds of megabytes is never the whole."""
    from google.protobuf.message import DecodeError

    messages = _messages()
    while (start := file.tell()) < size:
        number = _next_field(file, size)
        if number is None:
            continue
        try:
            layer = messages[_LAYERS[number]].FromString(file.read(_length(file, size, start)))
        except DecodeError as error:
            raise ValueError(f"the layer at byte {start} cannot be parsed") from error
        if number == 2 and layer.HasField("layer"):
            layer = layer.layer
        name = _name(layer, start)
        try:
            yield name, [_array(blob) for blob in layer.blobs]
        except ValueError as error:
            raise ValueError(f"layer {name} {error}") from error


def _next_field(file: BinaryIO, size: int) -> int | None:
    """Reads the next field's number if it is a layer, else passes over the field."""
    start = file.tell()
    number, kind = divmod(_varint(file), 8)
    if kind not in _NETWORK.get(number, {0, 1, 2, 5} if number in _FORKS else ()):
        raise ValueError(f"at byte {start} stands what is no part of a network")
    if number in _LAYERS:
        return number
    if kind == 0:
        _varint(file)
    else:
        skipped = _FIXED.get(kind) or _length(file, size, start)
        if file.seek(skipped, 1) > size:
            raise ValueError(f"it ends within the field at byte {start}: it is truncated")
    return None


def _length(file: BinaryIO, size: int, start: int) -> int:
    length, left = _varint(file), size - file.tell()
    if length > left:
        raise ValueError(f"what begins at byte {start} is {length} bytes long and {left} are left: it is truncated")
    return length


def _varint(file: BinaryIO) -> int:
    """Reads an integer of seven bits a byte, lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number: it is truncated")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError(f"at byte {file.tell()} a number does not end")


def _name(layer, start: int) -> str:
    try:
        name = layer.name.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if (layer.blobs or layer.name) and not (name and name.isprintable()):
        raise ValueError(f"the layer at byte {start} has no readable name")
    return name


def _array(blob) -> np.ndarray:
    """Gives one array, or raises a ValueError that goes on after the layer's name."""
    old = [getattr(blob, name) for name in ("num", "channels", "height", "width") if blob.HasField(name)]
    shape = (blob.num, blob.channels, blob.height, blob.width) if old else tuple(blob.shape.dim)
    values = _values(blob)
    if any(n < 1 for n in shape) or math.prod(shape) != values.size or not (old or blob.HasField("shape")):
        raise ValueError(f"has an array of shape {shape} with {values.size} numbers")
    # The extremes are not finite if any number is not, and need no memory.
    if not np.isfinite([values.min(), values.max()]).all():
        raise ValueError("has weights that are not finite")
    return values.reshape(shape)


def _values(blob) -> np.ndarray:
    for name, kind in _NUMBERS.items():
        size = np.dtype(kind).itemsize
        packed = b"".join(getattr(blob, name)) or _unpacked(blob, _SCHEMA["Blob"][name][0], size)
        if packed:
            break
    if len(packed) % size:
        raise ValueError(f"has {len(packed)} bytes of numbers of {size} bytes each")
    with np.errstate(over="ignore"):
        return np.frombuffer(packed, kind).astype("float32", copy=False)


def _unpacked(blob, number: int, size: int) -> bytes:
    """Collects numbers that a writer stored one by one: to the schema, which expects bytes, they are unknown."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    kinds = [kind for kind, bytes_each in _FIXED.items() if bytes_each == size]
    fields = (f for f in UnknownFieldSet(blob) if f.field_number == number and f.wire_type in kinds)
    return b"".join(field.data.to_bytes(size, "little") for field in fields)


@functools.cache
def _messages() -> dict:
    """Makes the classes of the schema, in a pool of their own: other packages may bring a `caffe.proto`, too."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="kerasseg/caffe.proto", package="kerasseg.caffe", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": field_type.TYPE_INT64, "bytes": field_type.TYPE_BYTES}
    for message, fields in _SCHEMA.items():
        made = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            label = field_type.LABEL_REPEATED if kind.endswith("*") else field_type.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            field = made.field.add(name=name, number=number, label=label, type=scalars.get(kind, field_type.TYPE_MESSAGE))
            if kind not in scalars:
                field.type_name = f".kerasseg.caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kerasseg.caffe.{name}")) for name in _SCHEMA}
