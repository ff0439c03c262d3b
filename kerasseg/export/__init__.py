"""Networks as files for devices, each proved to compute what Keras computes."""

from kerasseg.export.cutting import UNCONVERTIBLE as UNCONVERTIBLE
from kerasseg.export.cutting import Cut as Cut
from kerasseg.export.cutting import cut_for as cut_for
from kerasseg.export.exporting import Exported as Exported
from kerasseg.export.exporting import check_file as check_file
from kerasseg.export.exporting import export_model as export_model
from kerasseg.export.forms import FORMATS as FORMATS
from kerasseg.export.forms import QUANTIZATIONS as QUANTIZATIONS
from kerasseg.export.forms import RESULTS as RESULTS
from kerasseg.export.forms import Target as Target
from kerasseg.export.graph import trace as trace
from kerasseg.export.parity import TOLERANCES as TOLERANCES
from kerasseg.export.parity import Parity as Parity
from kerasseg.export.parity import Tolerance as Tolerance
from kerasseg.export.saved_model import write_saved_model as write_saved_model
