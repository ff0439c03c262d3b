"""The scores of semantic segmentation from confusion matrices: of all pixels, and of those near boundaries; how sure they are."""

from kerasseg.metrics.bootstrapping import Difference as Difference
from kerasseg.metrics.bootstrapping import Interval as Interval
from kerasseg.metrics.bootstrapping import bootstrap as bootstrap
from kerasseg.metrics.bootstrapping import paired_bootstrap as paired_bootstrap
from kerasseg.metrics.boundaries import TRIMAP_BOUNDARIES as TRIMAP_BOUNDARIES
from kerasseg.metrics.boundaries import boundary_region as boundary_region
from kerasseg.metrics.boundaries import check_boundary_distance as check_boundary_distance
from kerasseg.metrics.boundaries import trimap_matrices as trimap_matrices
from kerasseg.metrics.boundaries import trimap_widths as trimap_widths
from kerasseg.metrics.calibration import calibration_counts as calibration_counts
from kerasseg.metrics.calibration import calibration_error as calibration_error
from kerasseg.metrics.contours import boundary_f as boundary_f
from kerasseg.metrics.counting import confusion_matrix as confusion_matrix
from kerasseg.metrics.counting import count_pixels as count_pixels
from kerasseg.metrics.keras_metric import SegmentationMetrics as SegmentationMetrics
from kerasseg.metrics.scoring import SCORES as SCORES
from kerasseg.metrics.scoring import check_excluded as check_excluded
from kerasseg.metrics.scoring import class_counts as class_counts
from kerasseg.metrics.scoring import grouped as grouped
from kerasseg.metrics.scoring import scores as scores
from kerasseg.metrics.scoring import scores_of_counts as scores_of_counts
