"""Training: the step loop, its optimizers and strategies, and whole runs by recipe."""

from kerasseg.optimizers import CaffeSGD as CaffeSGD
from kerasseg.training.session import check_recipe as check_recipe
from kerasseg.training.session import train_recipe as train_recipe
from kerasseg.training.strategies import STRATEGIES as STRATEGIES
from kerasseg.training.strategies import make_strategy as make_strategy
from kerasseg.training.trainer import Trainer as Trainer
