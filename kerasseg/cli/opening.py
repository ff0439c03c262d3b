"""RUN_OR_MODEL: what evaluate, predict and export are given, opened."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kerasseg.cli.options import parse_assignment
from kerasseg.cli.running import start_tensorflow
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, LabelTable, generic_table
from kerasseg.recipes import Recipe
from kerasseg.runs import Run, newest_run
from kerasseg.runtimes import is_exported
from kerasseg.runtimes.description import Description, description_path, read
from kerasseg.tables import did_you_mean

RUN_OR_FILE = "run directory, .keras file, or exported .tflite, .onnx or SavedModel"
"""What is said of RUN_OR_MODEL where exported files will do."""


class Opened(NamedTuple):
    """A network with what its run knows about it: the recipe (of its last stage) and the classes, `None` for a bare file.

    Of a network of several heads, `labels` are the classes of the first, `heads` those of each.
    """

    model: Any
    path: Path
    recipe: Recipe | None
    labels: LabelTable | None
    heads: dict[str, LabelTable] | None = None

    def labels_of(self, output: str | None) -> LabelTable | None:
        """Gives the classes of one output; `None` stands for the first."""
        return (self.heads or {}).get(output, self.labels)


def open_run_or_model(path: str | None, output_stride: int | None = None, *, exported: bool = False) -> Opened:
    """Opens a run directory or a `.keras` file.

    Args:
        path: Either; `None` is the newest run under runs/.
        output_stride: Another output stride than the run's own.
        exported: Whether a file for devices (`.tflite`, `.onnx`, SavedModel) will do as well: where the network is only run.
    Raises:
        KerassegError: If it cannot be opened.
    """
    path = newest_run().path if path is None else Path(path)
    if is_exported(path) and path.exists():
        return _open_exported(path, output_stride, exported)
    run = Run(path) if path.is_dir() else None
    recipe = Recipe.from_json(run.recipe()).final() if run else None
    if recipe and recipe.features:
        recipe = recipe.on_features(_features_of(run) / "features")
    start_tensorflow()
    from kerasseg.evaluation import load_model

    model = load_model(path, output_stride=output_stride)
    return Opened(model, path, recipe, run.labels() if run else None, run.heads() if run else None)


def _open_exported(path: Path, output_stride: int | None, allowed: bool) -> Opened:
    """Opens an exported file; what a run knows besides, its description says."""
    if not allowed:
        raise KerassegError(f"{path} is an exported file: expected the run directory or .keras file that it was made of")
    if output_stride is not None:
        raise KerassegError(f"{path} keeps the output stride that it was exported with: omit --output-stride {output_stride}")
    start_tensorflow()
    from kerasseg.evaluation import load_model

    model, description = load_model(path), read(path)
    if description is None:
        where = f"{description_path(path).name} {'in' if path.is_dir() else 'beside'} {path}"
        print(f"note: no {where}: taken as RGB 0-255 in, logits out", file=sys.stderr)
        return Opened(model, path, None, None)
    return Opened(model, path, _described_recipe(path, description), _described_labels(description))


def _described_recipe(path: Path, description: Description) -> Recipe | None:
    try:
        return Recipe.from_json(description.recipe).final() if description.recipe else None
    except KerassegError as error:
        # Of another version, as a rule.
        raise KerassegError(f"the recipe in {description_path(path)} cannot be read ({error}): export it again") from error


def _described_labels(description: Description) -> LabelTable | None:
    """The table of a data set, where the description names one of the same classes; else names and colours as they stand there."""
    if not description.classes:
        return None
    known = LABELS.get(description.label_table)
    if known is not None and known.classes == tuple(description.classes):
        return known
    return dataclasses.replace(
        generic_table(description.classes, description.palette), name=description.label_table or description.network
    )


def root_of(path: Path) -> Path:
    """Where the reports of a run, a folder, or of a file are: inside, or beside it."""
    if is_exported(path):
        # Of the folder that one is in, "." would be no name.
        path = path if path.name.strip(".") else path.resolve()
        # Files of several formats may lie side by side; a SavedModel is deployed as it is, so that nothing shall be added to it.
        return path.with_name(path.name.replace(".", "-") + ("-results" if path.is_dir() else ""))
    return path if path.is_dir() else path.with_suffix("")


def _features_of(run: Run) -> Path:
    """Where a run that trained on stored features has them: itself, or its last stage."""
    stages = Recipe.from_json(run.recipe()).stages
    return run.stage(len(stages), stages[-1].name).path if stages else run.path


def label_table(opened: Opened, num_classes: int, name: str | None, output: str | None = None) -> LabelTable:
    """Finds names and colours for a network's classes: those asked for, else the run's, else numbers in VOC's colours.

    Args:
        opened: The network.
        num_classes: How many classes it has.
        name: Key of `kerasseg.labels.LABELS`, or `None`.
        output: Key of the output whose classes they are; `None`: the first.
    Raises:
        KerassegError: If the table is unknown or has another number of classes.
    """
    if name is not None and name not in LABELS:
        raise KerassegError(f"unknown label table '{name}': {did_you_mean(name, LABELS)}")
    table = LABELS[name] if name else opened.labels_of(output) or generic_table([f"class {i}" for i in range(num_classes)])
    if table.num_classes != num_classes:
        raise KerassegError(
            f"label table '{table.name}' has {table.num_classes} classes, the network {num_classes}: name another by --labels"
        )
    return table


def chosen_data(opened: Opened, options) -> tuple[str, str | None, bool]:
    """Finds the data set that a command is about: the one that `--data` and `--data-dir` name, else the run's.

    Args:
        opened: The network.
        options: With `data` and `data_dir`, `None` where they were not given.
    Returns:
        Name, folder, and whether it is the run's data set.
    Raises:
        KerassegError: If neither names one.
    """
    recipe = opened.recipe
    name = options.data or (recipe and recipe.data)
    if name is None:
        raise KerassegError(f"{opened.path} does not say what data it is for: pass --data and --data-dir")
    same = recipe is not None and recipe.data == name
    return name, options.data_dir or (recipe.data_dir if same else None), same


def add_data_options(made: argparse.ArgumentParser, split: str = "the run's validation split, or val") -> None:
    """Adds the options that say which data a command is about, by default those of the run."""
    made.add_argument("--data", default=None, help="data set (default: the run's)")
    made.add_argument("--data-dir", default=None, help="folder of the data set (default: the run's)")
    add_data_arguments(made, " (default: the run's)")
    made.add_argument("--split", default=None, help=f"part of the data set (default: {split})")


def add_data_arguments(made: argparse.ArgumentParser, default: str = "") -> None:
    """Adds the option for what else a data set takes."""
    made.add_argument(
        "--data-arguments",
        nargs="+",
        type=parse_assignment,
        metavar="NAME=VALUE",
        default=[],
        help=f"further arguments of the data set{default}",
    )


def chosen_arguments(opened: Opened, options) -> dict[str, Any]:
    """Finds the arguments of the data set that a command is about: the run's, where it is the run's, and those given on top."""
    recipe = opened.recipe
    same = recipe is not None and options.data in (None, recipe.data)
    return {**(recipe.data_arguments if same else {}), **dict(options.data_arguments)}


def open_chosen(opened: Opened, options, split: str, *, as_seen: bool = True):
    """Opens the data set that a command is about.

    Args:
        opened: The network.
        options: What `add_data_options` parsed.
        split: Part of the data set.
        as_seen: Whether what the run hides in its own images (`foreground`, `background`) is hidden here, too.
    Raises:
        KerassegError: If there is no such data set, or it cannot be opened.
    """
    from kerasseg.data import open_data
    from kerasseg.data.transforms.cues import hide_cues

    name, data_dir, same = chosen_data(opened, options)
    data = open_data(name, data_dir, split, **chosen_arguments(opened, options))
    return hide_cues(data, opened.recipe.foreground, opened.recipe.background) if same and as_seen else data


def check_classes(opened: Opened, data, output: str | None = None) -> None:
    """Refuses data of as many classes as the run was trained on, but other ones: every score would be of another class.

    Bare files, and tables whose classes are mere numbers, say nothing of it.

    Args:
        opened: The network.
        data: What it is to be run on, of one label map.
        output: Key of the output that is scored; `None`: the first.
    Raises:
        KerassegError: If the names differ anywhere.
    """
    table = opened.labels_of(output)
    if table is None or table.num_classes != data.labels.num_classes or _are_numbers(table) or _are_numbers(data.labels):
        return
    for place, (own, other) in enumerate(zip(table.classes, data.labels.classes, strict=True)):
        if own != other:
            told = opened.recipe.data_arguments if opened.recipe else {}
            values = " ".join(f"{name}={value}" for name, value in told.items())
            way = f"--data-arguments {values}" if told else "no --data-arguments"
            trained = f"; it was trained on {opened.recipe.data} with {way}" if opened.recipe else ""
            raise KerassegError(
                f"class {place} of {opened.path} is '{own}', of data set '{data.labels.name}' '{other}': expected the same classes "
                f"in the same order{trained}"
            )


def _are_numbers(table: LabelTable) -> bool:
    return table.classes == tuple(f"class {number}" for number in range(table.num_classes))


def output_classes(model) -> int:
    """Counts the classes of a network's first output."""
    output = model.output
    return (next(iter(output.values())) if isinstance(output, dict) else output).shape[-1]
