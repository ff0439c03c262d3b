"""Training: the step loop, its optimizers and strategies, and whole runs by recipe."""

from kerasseg.optimizers import Adam as Adam
from kerasseg.optimizers import AdamW as AdamW
from kerasseg.optimizers import CaffeSGD as CaffeSGD
from kerasseg.training.diagnosis import find_non_finite as find_non_finite
from kerasseg.training.dry_run import DryRun as DryRun
from kerasseg.training.dry_run import dry_run as dry_run
from kerasseg.training.freezing import freeze as freeze
from kerasseg.training.parameter_server import AsynchronousTrainer as AsynchronousTrainer
from kerasseg.training.parts import check_recipe as check_recipe
from kerasseg.training.stages import train_recipe as train_recipe
from kerasseg.training.strategies import STRATEGIES as STRATEGIES
from kerasseg.training.strategies import make_strategy as make_strategy
from kerasseg.training.trainer import NonFiniteLossError as NonFiniteLossError
from kerasseg.training.trainer import Step as Step
from kerasseg.training.trainer import Trainer as Trainer
