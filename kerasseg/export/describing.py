"""What stands in the JSON beside an exported network."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasseg.export.graph import Plan, input_shape
from kerasseg.export.parity import Parity, Tolerance
from kerasseg.export.sizes import all_layers
from kerasseg.labels import LabelTable
from kerasseg.layers import Preprocessing
from kerasseg.runtimes import ExportedNetwork, description
from kerasseg.runtimes.description import Description


def describe(
    made: Plan,
    exported: ExportedNetwork,
    name: str,
    parity: Parity,
    tolerance: Tolerance,
    *,
    labels: LabelTable | None = None,
    recipe=None,
    calibration: Mapping[str, Any] | None = None,
    kept_float: Sequence[str] = (),
    left_out: str | None = None,
    latency: Mapping[str, Any] | None = None,
) -> Description:
    """Describes a file that passed.

    Args:
        made: What it was made of.
        exported: The file, wherever it still is.
        name: What it will be called.
        parity: What the comparison found.
        tolerance: What it had to find.
        labels: Names and colours.
        recipe: A `Recipe`, or its `to_json()`.
        calibration: `data`, `images`, `seed` of int8.
        kept_float: What int8 left in float.
        left_out: What is not in the file and the network knows nothing of.
        latency: See `measure_latency`.
    """
    target = made.target
    return Description(
        version=_version(),
        network=made.model.name,
        file=name,
        bytes=sum(part.stat().st_size for part in description.parts(exported.path)),
        sha256=description.digest(exported.path),
        format=target.format,
        quantization=target.quantize,
        input=_input(made, exported),
        outputs=_outputs(made),
        parity=parity._asdict(),
        tolerance=tolerance._asdict(),
        operations=exported.operations(),
        left_out="; ".join(filter(None, (made.left_out, left_out))) or None,
        recipe=_recipe(recipe),
        calibration=dict(calibration) if calibration and target.int8 else None,
        kept_float=list(kept_float),
        latency=latency,
        **_classes(labels),
    )


def _version() -> str:
    import kerasseg

    return kerasseg.__version__


def _input(made: Plan, exported: ExportedNetwork) -> dict[str, Any]:
    shape = input_shape(made)
    inside = any(isinstance(layer, (Preprocessing, keras.layers.Rescaling)) for layer in all_layers(made.model))
    return {
        "name": "image",
        "shape": list(shape),
        "type": str(np.dtype(exported.input_dtype)),
        "range": [0, 255],
        "channels": "RGB" if shape[-1] == 3 else None,
        "preprocessing": "inside" if inside else "none",
    }


def _outputs(made: Plan) -> dict[str, dict]:
    found, target = {}, made.target
    shapes = made.model.compute_output_shape(input_shape(made))
    for name, scores in made.model.output.items():
        shape = [made.target.batch_size, *(shapes[name][1:3] if target.input_size else (None, None)), scores.shape[-1]]
        if (cells := made.nearest(name)) is not None:
            shape[1:3] = [len(cells.nearest_rows), len(cells.nearest_columns)]
        kind = "uint8" if target.gives_labels else "int8" if target.quantize == "int8" else "float32"
        found[name] = {"shape": shape[:3] if target.gives_labels else shape, "type": kind, "meaning": made.meaning(name)}
        if target.result != made.meaning(name):
            # Nothing enlarges these scores.
            found[name]["asked"] = target.result
        if target.output:
            found[name]["head"] = target.output
        if target.result == "coarse_labels" and made.cells.get(name):
            found[name]["cells"] = made.cells[name].to_json()
    return found


def _classes(labels: LabelTable | None) -> dict[str, Any]:
    if labels is None:
        return {}
    return {"classes": list(labels.classes), "palette": [list(color) for color in labels.palette], "label_table": labels.name}


def _recipe(recipe) -> dict[str, Any] | None:
    if recipe is None:
        return None
    values = recipe if isinstance(recipe, Mapping) else recipe.to_json()
    # Where the data lay is of this machine.
    return {name: value for name, value in values.items() if name != "data_dir"}
