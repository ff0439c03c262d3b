"""Opening saved networks."""

import zipfile
from pathlib import Path

import keras

# Importing these rooms registers the classes that a .keras file names.
from kerasseg import layers as layers
from kerasseg import losses as losses
from kerasseg import metrics as metrics
from kerasseg import optimizers as optimizers
from kerasseg.errors import KerassegError, first_line
from kerasseg.evaluation.exported import open_exported
from kerasseg.interop import transplant
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network, training_network
from kerasseg.runs import Run
from kerasseg.runtimes import is_exported


def load_model(path, *, output_stride: int | None = None) -> keras.Model:
    """Opens a saved network, with every class of this library registered, or an exported file.

    Args:
        path: A `.keras` file, or a run directory; or a `.tflite` or `.onnx` file or the folder of a SavedModel, which becomes a
            model of one layer that runs the file (`kerasseg.evaluation.exported`).
        output_stride: Another output stride than the network was trained at, with the same weights; of run directories only.
    Returns:
        The model; compiled, if it was when it was saved. Of an exported file it can be run, not trained.
    Raises:
        KerassegError: If there is nothing at the path, it is not a network that Keras can open, or it cannot be had at that stride.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §4.1: trained at stride 16, evaluated at 8.
    """
    path = Path(path)
    if not path.exists():
        raise KerassegError(f"no model at '{path}': expected a .keras file, a run directory or an exported file")
    if is_exported(path) and output_stride is None:
        return open_exported(path)
    if path.is_dir() and not is_exported(path):
        model = _open_run(Run(path))
        return model if output_stride is None else _at_stride(model, Run(path), output_stride)
    if output_stride is not None:
        raise KerassegError(
            f"'{path}' keeps the output stride it was saved at, received {output_stride}: pass the run directory, or build the "
            f"network with output_stride={output_stride} and weights='{path}'"
        )
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise KerassegError(
            f"'{path}' is not a .keras file, or a damaged one: expected what model.save('name.keras') wrote, a run directory, or "
            "an exported file (.tflite, .onnx, SavedModel)"
        )
    try:
        return keras.models.load_model(path)
    # Keras lets through whatever its deserialisers raise: KeyError, TypeError, OSError of h5py …
    except Exception as error:
        raise KerassegError(
            f"cannot open '{path}': {type(error).__name__}: {first_line(error)}; it is damaged or uses layers not imported"
        ) from error


def _open_run(run: Run) -> keras.Model:
    """A finished run has its model; one that still trains has checkpoints, of which the newest counts."""
    if run.model_path.is_file():
        return load_model(run.model_path)
    recipe, classes, state = Recipe.from_json(run.recipe()), run.num_classes(), run.checkpoints().last()
    for number, stage in reversed(list(enumerate(recipe.stages, start=1))):
        if run.stage(number, stage.name).exists:
            return _open_run(run.stage(number, stage.name))
    if classes is None or state is None:
        raise KerassegError(
            f"{run.path} holds neither model.keras nor a checkpoint yet: train it further with --run-dir {run.path}"
        )
    model = training_network(recipe, classes, initial_weights=False)
    # The trainer names them model/<index>/<path>; the optimizer's are left aside.
    values = {name.split("/")[1]: value for name, value in state[1].items() if name.startswith("model/")}
    for index, variable in enumerate(model.variables):
        variable.assign(values[f"{index:04d}"])
    return evaluation_network(recipe, model, classes) if recipe.trains_another_form else model


def _at_stride(model: keras.Model, run: Run, output_stride: int) -> keras.Model:
    recipe = Recipe.from_json(run.recipe()).final().override(output_stride=output_stride)
    return evaluation_network(recipe, model, run.num_classes())


def evaluation_network(recipe: Recipe, trained: keras.Model, num_classes) -> keras.Model:
    """Builds the network that a recipe evaluates and keeps: a plain one, in float32, without its `training_arguments`.

    Args:
        recipe: The recipe, without stages.
        trained: The network in the form that trains; its weights are copied, layer by layer name.
        num_classes: Number of its classes, or head name → number.
    Raises:
        KerassegError: If the two forms do not have the same weights.
    """
    network = build_network(recipe, num_classes, initial_weights=False)
    copy_weights(trained, network)
    return network


def copy_weights(trained: keras.Model, network: keras.Model) -> None:
    """Copies all weights of one form of a network into another form of it.

    Raises:
        KerassegError: If the two do not have the same weights; none is copied then.
    """
    check_forms(trained, network)
    transplant(trained, network)


def check_forms(trained: keras.Model, network: keras.Model) -> None:
    """Refuses two networks that are not two forms of one: with the same weights in layers of the same names.

    Raises:
        KerassegError: If that is so.
    """
    one, other = ({layer.name: [w.shape for w in layer.weights] for layer in m.layers if layer.weights} for m in (trained, network))
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    if differing:
        names = ", ".join(differing[:5]) + (", …" if len(differing) > 5 else "")
        raise KerassegError(
            f"{trained.name} has other weights while it trains than in evaluation ({names}): training_arguments may change its "
            "outputs, as upsample_logits=false does, but no layer with weights"
        )
