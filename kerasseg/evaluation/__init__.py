"""Running trained networks: on one photograph, and on a data set with scores and a report."""

from kerasseg.evaluation.evaluator import Evaluation as Evaluation
from kerasseg.evaluation.evaluator import ImageScore as ImageScore
from kerasseg.evaluation.evaluator import Regions as Regions
from kerasseg.evaluation.evaluator import evaluate as evaluate
from kerasseg.evaluation.inference import TTA_FACTORS as TTA_FACTORS
from kerasseg.evaluation.inference import Inference as Inference
from kerasseg.evaluation.inference import predict as predict
from kerasseg.evaluation.inference import probabilities as probabilities
from kerasseg.evaluation.loading import load_model as load_model
from kerasseg.evaluation.methods import Method as Method
from kerasseg.evaluation.methods import View as View
from kerasseg.evaluation.methods import WholeImage as WholeImage
from kerasseg.evaluation.methods import Windows as Windows
from kerasseg.evaluation.proposals import Proposals as Proposals
from kerasseg.evaluation.proposals import progressive as progressive
from kerasseg.evaluation.report import overlay as overlay
from kerasseg.evaluation.report import side_by_side as side_by_side
from kerasseg.evaluation.report import write_report as write_report
from kerasseg.evaluation.tiles import TILE_SIZES as TILE_SIZES
from kerasseg.evaluation.tiles import Tiles as Tiles
