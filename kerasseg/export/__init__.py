"""Networks as files for devices, each proved to compute what Keras computes."""

from kerasseg.export.cutting import UNCONVERTIBLE as UNCONVERTIBLE
from kerasseg.export.cutting import Cut as Cut
from kerasseg.export.cutting import cut_for_tflite as cut_for_tflite
from kerasseg.export.parity import Parity as Parity
from kerasseg.export.parity import measure_parity as measure_parity
from kerasseg.export.tflite import export_tflite as export_tflite
