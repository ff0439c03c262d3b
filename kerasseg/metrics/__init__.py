"""The scores of semantic segmentation from confusion matrices: of all pixels, and of those near boundaries."""

from kerasseg.metrics.boundaries import TRIMAP_BOUNDARIES as TRIMAP_BOUNDARIES
from kerasseg.metrics.boundaries import boundary_region as boundary_region
from kerasseg.metrics.boundaries import check_boundary_distance as check_boundary_distance
from kerasseg.metrics.boundaries import trimap_matrices as trimap_matrices
from kerasseg.metrics.boundaries import trimap_widths as trimap_widths
from kerasseg.metrics.counting import SCORES as SCORES
from kerasseg.metrics.counting import confusion_matrix as confusion_matrix
from kerasseg.metrics.counting import count_pixels as count_pixels
from kerasseg.metrics.counting import scores as scores
from kerasseg.metrics.keras_metric import SegmentationMetrics as SegmentationMetrics
