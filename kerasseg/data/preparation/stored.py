"""Options and label tables, to and from the JSON of a prepared folder."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from kerasseg.labels import LabelTable


def default_options(data_set) -> dict[str, Any]:
    """The options of a data set with their defaults, without folder and split."""
    parameters = inspect.signature(data_set).parameters.values()
    return {each.name: each.default for each in parameters if each.name not in ("data_dir", "split")}


def plain_json(value):
    """A value as JSON gives it back: tuples become lists, paths text."""
    return json.loads(json.dumps(value, default=str))


def table_to_json(table: LabelTable) -> dict[str, Any]:
    """A label table as JSON can hold it."""
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    return plain_json({**values, "file_to_label": {str(value): label for value, label in table.file_to_label.items()}})


def table_from_json(values: Mapping[str, Any]) -> LabelTable:
    """The label table that `table_to_json` wrote."""
    return LabelTable(
        values["name"],
        tuple(values["classes"]),
        tuple(map(tuple, values["palette"])),
        tuple(map(tuple, values["ignore_colors"])),
        {int(value): label for value, label in values["file_to_label"].items()},
        tuple((title, tuple(members)) for title, members in values["groups"]),
        tuple(values["absent"]),
    )
