"""`--data-arguments` of a recipe: paths that hold everywhere, and to each stage what its data set takes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kerasseg.data.signatures import options_of
from kerasseg.data.table import DATA_SETS, JOINT
from kerasseg.errors import KerassegError
from kerasseg.recipes import Recipe
from kerasseg.tables import did_you_mean


def with_absolute_places(recipe: Recipe, given: Mapping[str, Any], absolute: Callable[[str], str]) -> dict[str, Any]:
    """Makes absolute what says where files lie, such as `sbd_dir`.

    Args:
        recipe: The recipe.
        given: Fields of the recipe that the command line changes, `data_arguments` among them.
        absolute: Makes a path absolute.
    Returns:
        The arguments.
    """
    opened = [given["data"]] if "data" in given else [recipe.data, *(recipe.stage(stage.name).data for stage in recipe.stages)]
    places = {place for data in opened for name in _known(data) for place in DATA_SETS[name].places}
    arguments = given["data_arguments"].items()
    return {name: absolute(value) if name in places and isinstance(value, str) else value for name, value in arguments}


def fitted_to_data(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """Leaves out, of the data set's arguments that a command line gives to all stages, those that a stage's data set lacks.

    Args:
        recipe: The recipe with them.
        given: The arguments.
    Returns:
        The recipe.
    Raises:
        KerassegError: If no stage's data set takes one of them.
    """
    runs = {stage.name: recipe.stage(stage.name) for stage in recipe.stages}
    takes = {name: [option for data in _known(run.data) for option in options_of(DATA_SETS[data])] for name, run in runs.items()}
    known = list(dict.fromkeys(option for own in takes.values() for option in own))
    for option in given:
        if option not in known:
            names = ", ".join(dict.fromkeys(run.data for run in runs.values()))
            answer = did_you_mean(option, known) if known else "they take only data_dir and split"
            raise KerassegError(f"no data set of recipe {recipe.name} ({names}) has an option '{option}': {answer}")
    stages = []
    for stage in recipe.stages:
        own = runs[stage.name].data_arguments
        fitting = {option: value for option, value in own.items() if option not in given or option in takes[stage.name]}
        changes = stage.changes if fitting == own else {**stage.changes, "data_arguments": fitting}
        stages.append(dataclasses.replace(stage, changes=changes))
    return recipe.override(stages=tuple(stages))


def _known(data: str) -> list[str]:
    """The data sets of a name; of one that is none, opening tells."""
    return [name for name in data.split(JOINT) if name in DATA_SETS]
