"""Reading and writing run directories. Whatever is written appears whole or not at all."""

from kerasseg.runs.checkpoints import Checkpoints as Checkpoints
from kerasseg.runs.directory import Preempted as Preempted
from kerasseg.runs.directory import Run as Run
from kerasseg.runs.directory import environment as environment
from kerasseg.runs.directory import new_run_path as new_run_path
from kerasseg.runs.directory import newest_run as newest_run
from kerasseg.runs.files import atomic_path as atomic_path
from kerasseg.runs.files import write_json as write_json
