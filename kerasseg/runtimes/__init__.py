"""Running exported files (`.tflite`, `.onnx`, SavedModel): NumPy in, NumPy out, no Keras; TensorFlow only where a file needs it."""

from kerasseg.runtimes.files import SUFFIXES as SUFFIXES
from kerasseg.runtimes.files import ExportedNetwork as ExportedNetwork
from kerasseg.runtimes.files import is_exported as is_exported
from kerasseg.runtimes.files import open_file as open_file
