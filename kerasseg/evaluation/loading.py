"""Opening saved networks."""

import zipfile
from pathlib import Path

import keras

# Importing these rooms registers the classes that a .keras file names.
from kerasseg import layers as layers
from kerasseg import losses as losses
from kerasseg import metrics as metrics
from kerasseg import optimizers as optimizers
from kerasseg.errors import KerassegError
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network
from kerasseg.runs import Run


def load_model(path) -> keras.Model:
    """Opens a saved network, with every class of this library registered.

    Args:
        path: A `.keras` file, or a run directory.
    Returns:
        The model; compiled, if it was when it was saved.
    Raises:
        KerassegError: If there is nothing at the path, or it is not a network that Keras can open.
    """
    path = Path(path)
    if not path.exists():
        raise KerassegError(f"no model at '{path}': expected a .keras file or a run directory")
    if path.is_dir():
        return _open_run(Run(path))
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise KerassegError(
            f"'{path}' is not a .keras file, or a damaged one: expected what model.save('name.keras') wrote, or a run directory"
        )
    try:
        return keras.models.load_model(path)
    # Keras lets through whatever its deserialisers raise: KeyError, TypeError, OSError of h5py …
    except Exception as error:
        cause = (str(error).strip().splitlines() or [""])[0]
        raise KerassegError(
            f"cannot open '{path}': {type(error).__name__}: {cause[:200]}; it is damaged, or uses layers that are not imported"
        ) from error


def _open_run(run: Run) -> keras.Model:
    """A finished run has its model; one that still trains has checkpoints, of which the newest counts."""
    if run.model_path.is_file():
        return load_model(run.model_path)
    recipe, labels, state = Recipe.from_json(run.recipe()), run.labels(), run.checkpoints().last()
    for number, stage in reversed(list(enumerate(recipe.stages, start=1))):
        if run.stage(number, stage.name).exists:
            return _open_run(run.stage(number, stage.name))
    if labels is None or state is None:
        raise KerassegError(
            f"{run.path} holds neither model.keras nor a checkpoint yet: train it further with --run-dir {run.path}"
        )
    model = build_network(recipe, labels.num_classes, initial_weights=False)
    # The trainer names them model/<index>/<path>; the optimizer's are left aside.
    values = {name.split("/")[1]: value for name, value in state[1].items() if name.startswith("model/")}
    for index, variable in enumerate(model.variables):
        variable.assign(values[f"{index:04d}"])
    return model
