"""TFLite files, by ai-edge-litert."""

from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError, first_line
from kerasseg.runtimes.files import ExportedNetwork, Slot, damaged, image_slot
from kerasseg.runtimes.notices import without_notices

# What the converter calls operations that TensorFlow itself must run.
_FLEX = "Flex"
# Step between two of 256 values; a map padded with the lowest float32 has 1.3e36.
_IMPOSSIBLE = 1e30


class LiteRTNetwork(ExportedNetwork):
    """A TFLite file."""

    format = "tflite"

    def __init__(self, path, interpreter, description):
        # Delegates, which come with the allocation, would count as operations.
        self._names = [operation["op_name"] for operation in interpreter._get_ops_details()]
        given = image_slot(path, [_slot(each) for each in interpreter.get_input_details()])
        details = _outputs(interpreter, description)
        super().__init__(path, given, {name: _slot(each) for name, each in details.items()}, description)
        self._interpreter, self._shape = interpreter, None
        self._index = interpreter.get_input_details()[0]["index"]
        self._places = {name: each["index"] for name, each in details.items()}
        if None not in self.input_shape:
            self._allocate(self.input_shape)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        """Lets the file take images of a shape; each new one costs about as much as opening it."""
        if shape == self._shape:
            return
        self._shape = None
        try:
            if shape != self.input_shape:
                self._interpreter.resize_tensor_input(self._index, shape, strict=True)
            # It tells of the delegate that it makes.
            with without_notices():
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            size = "x".join(map(str, shape))
            raise KerassegError(f"'{self.path}' cannot be run on input of {size}: {first_line(error)}; export it again") from error
        self._shape = shape

    def _invoke(self, images):
        self._allocate(images.shape)
        self._interpreter.set_tensor(self._index, images)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise KerassegError(f"'{self.path}' failed on images of {images.shape}: {first_line(error)}") from error
        # A copy: the interpreter's own memory changes with the next image.
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in self._places.items()}

    def _operations(self):
        return self._names


def open_litert(path: Path, description, threads: int) -> LiteRTNetwork:
    """Opens a TFLite file.

    Raises:
        KerassegError: As `open_file`.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise KerassegError(f"running '{path}' needs ai-edge-litert: run `pip install 'kerasseg[lite]'`") from error
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
    except (ValueError, RuntimeError) as error:
        raise damaged(path, "TFLite", error) from error
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    if foreign := sorted(name.removeprefix(_FLEX) for name in names if name.startswith(_FLEX)):
        raise KerassegError(
            f"'{path}' holds operations of TensorFlow itself ({', '.join(foreign)}), which no package for Python runs in it "
            "(LiteRT issue 6458): expected a file exported without --select-tf-ops"
        )
    _check_ranges(path, interpreter)
    return LiteRTNetwork(path, interpreter, description)


def _check_ranges(path: Path, interpreter) -> None:
    """Refuses what would end the whole process: LiteRT aborts at scales that no map has, such as one padded with −∞."""
    for tensor in interpreter.get_tensor_details():
        scales = tensor["quantization_parameters"]["scales"]
        if len(scales) and not 0 <= scales.min() <= scales.max() < _IMPOSSIBLE:
            name = tensor["name"].split(";")[0]
            raise KerassegError(
                f"'{path}' is quantised with a scale of {scales.max():g} at '{name}', which cannot be run: its range was no map's; "
                "export it again with tools/export.py"
            )


def _slot(detail: dict) -> Slot:
    # A file made for any size says 1 in `shape` and -1 in the signature, which is empty in old files.
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    scale, zero = detail["quantization"]
    sizes = tuple(int(side) if side > 0 else None for side in shape)
    return Slot(_plain(detail["name"]), sizes, np.dtype(detail["dtype"]), float(scale), int(zero))


def _outputs(interpreter, description) -> dict[str, dict]:
    """Output name → what the interpreter knows of it: by the file's signature, the description, or else the tensors' own names."""
    details = interpreter.get_output_details()
    signatures = interpreter._get_full_signature_list()
    if len(signatures) == 1:
        places = {detail["index"]: detail for detail in details}
        (signature,) = signatures.values()
        if set(signature["outputs"].values()) == set(places):
            return {name: places[index] for name, index in signature["outputs"].items()}
    named = {_plain(detail["name"]): detail for detail in details}
    if description is not None and named.keys() != description.outputs.keys() and len(details) == len(description.outputs):
        # TensorFlow hands out a dict in the order of its keys.
        return dict(zip(sorted(description.outputs), details, strict=True))
    return named


def _plain(name: str) -> str:
    """The name of a tensor without what TensorFlow puts around it."""
    return name.removeprefix("serving_default_").removesuffix(":0")
