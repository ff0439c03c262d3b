"""ONNX files, by onnxruntime."""

from pathlib import Path

import numpy as np

from kerasseg.errors import KerassegError, first_line
from kerasseg.runtimes.files import ExportedNetwork, Slot, damaged, image_slot

# What onnxruntime calls a type → NumPy's name.
_TYPES = {"float": "float32", "double": "float64"}
# Of onnxruntime's messages: what ends the process. Errors are raised besides; the rest is advice.
_FATAL_ONLY = 4


class OnnxNetwork(ExportedNetwork):
    """An ONNX file."""

    format = "onnx"

    def __init__(self, path, session, description):
        given = image_slot(path, [_slot(each) for each in session.get_inputs()])
        results = [_slot(each) for each in session.get_outputs()]
        super().__init__(path, given, {slot.name: slot for slot in results}, description)
        self._session = session

    def _invoke(self, images):
        try:
            found = self._session.run(list(self.output_names), {self._given.name: images})
        # Of onnxruntime's exceptions none derives from anything but Exception.
        except Exception as error:
            raise KerassegError(f"'{self.path}' failed on images of {images.shape}: {first_line(error)}") from error
        return dict(zip(self.output_names, found, strict=True))

    def _operations(self):
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise KerassegError("listing an ONNX file's operations needs onnx: run `pip install 'kerasseg[onnx]'`") from error
        return [node.op_type for node in onnx.load(self.path, load_external_data=False).graph.node]


def open_onnx(path: Path, description, threads: int) -> OnnxNetwork:
    """Opens an ONNX file.

    Raises:
        KerassegError: As `open_file`.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise KerassegError(f"running '{path}' needs onnxruntime: run `pip install 'kerasseg[onnx]'`") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, _FATAL_ONLY
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # As above.
        raise damaged(path, "ONNX", error) from error
    return OnnxNetwork(path, session, description)


def _slot(argument) -> Slot:
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_TYPES.get(kind, kind))
    except TypeError:
        # Text, sequences: whoever takes it says so.
        dtype = np.dtype(object)
    return Slot(argument.name, tuple(side if isinstance(side, int) else None for side in argument.shape or ()), dtype)
