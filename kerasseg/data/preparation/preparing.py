"""Checks a data set once, keeps what is slow to read as PNG, and writes lists, counts and checksums: a `prepared` folder."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.preparation.conversion import Converter
from kerasseg.data.preparation.journal import BEGUN, BROKEN, distinct, finish, list_units, read_rows, still_valid, write_table
from kerasseg.data.preparation.prepared import CONVERTED, EXAMPLES, FORMAT, HEADER, ORIGINAL, find_prepared, folder_inside
from kerasseg.data.preparation.processes import convert_all
from kerasseg.data.preparation.stored import default_options, plain_json, table_to_json
from kerasseg.data.preparation.survey import Row, summarize
from kerasseg.data.records import DataSet
from kerasseg.data.table import DATA_SETS
from kerasseg.errors import KerassegError
from kerasseg.runs.files import sweep, write_json
from kerasseg.tables import did_you_mean

# What says whose files lie in the folder: others than these must not be mixed.
_IDENTITY = ("format", "data", "options", "copy", "labels", "heads", "inputs", "channels", "photographs", "mean")


@dataclass
class Outcome:
    """What `prepare` did.

    Args:
        folder: The prepared folder.
        header: What its `prepared.json` holds.
        rows: Split → rows of its examples.
        done: How many examples were prepared; 0 if everything was there and unchanged.
        changed: Files that were there before, but have changed since.
        gone: Names of examples that were there before.
        left_out: Split → why it could not be opened.
        broken: Rows of examples that are left out, with `id` and `error`.
    """

    folder: Path
    header: dict[str, Any]
    rows: dict[str, list[Row]]
    done: int = 0
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: list[Row] = field(default_factory=list)


def prepare(
    name: str,
    data_dir,
    out=None,
    *,
    splits: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    skip_broken: bool = False,
    verify: bool = False,
    jobs: int = 1,
    report: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Prepares a data set.

    What was done before, in this folder and with the same options, is not done again unless a file has changed: a run that was
    interrupted goes on. The result does not depend on `jobs`.

    Args:
        name: Of the data set.
        data_dir: Its folder.
        out: Where to write all that belongs to it; `None`: `kerasseg-<name>` in `data_dir`, which refers to the files there.
        splits: Which; `None`: all that are there.
        options: What else the data set takes.
        skip_broken: Whether to leave out what is damaged.
        verify: Whether to read every file again and compare it with its checksum.
        jobs: Number of processes.
        report: Called with the number of examples done and to do, after each.
    Returns:
        What was done.
    Raises:
        KerassegError: If the data set cannot be opened, or examples are damaged and not to be left out; `broken.txt` in the folder
            then names them all.
    """
    converter = _converter(name, data_dir, out, dict(options or {}))
    opened, left_out = _open_splits(converter, splits)
    identity = _identity(converter, next(iter(opened.values())))
    earlier = _begin(converter.folder, identity)
    opened |= _opened_before(converter, earlier, opened)
    units = {split: list_units(converter, split, data) for split, data in opened.items()}
    noted = read_rows(converter.folder)
    examples = distinct(units, noted)
    known, changed = still_valid(converter, examples, noted, verify)
    pending, broken = [unit for key, unit in examples.items() if key not in known], []
    for done, row in enumerate(convert_all(converter, pending, jobs), 1):
        if "error" in row:
            broken.append(row)
        else:
            known[row["key"]] = row
        if report is not None:
            report(done, len(pending))
    _write_broken(converter.folder, broken)
    if broken and not skip_broken:
        raise KerassegError(
            f"{len(broken)} of {len(examples)} examples of data set '{name}' are broken, all named in {converter.folder / BROKEN}; "
            f"the first: {broken[0]['error']}; mend them and run it again, or pass --skip-broken"
        )
    rows = {split: [known[unit.key] for unit in members if unit.key in known] for split, members in units.items()}
    empty = [split for split, members in rows.items() if not members]
    if empty:
        raise KerassegError(
            f"split '{empty[0]}' of data set '{name}' has no example that can be used: see {converter.folder / BROKEN}"
        )
    gone = [row for key, row in noted.items() if key not in examples]
    header = _header(identity, opened, units, rows)
    done = len(pending) - len(broken)
    if done or earlier != header:
        finish(converter.folder, header, rows, gone)
    return Outcome(converter.folder, header, rows, done, changed, [row["id"] for row in gone], left_out, broken)


def _converter(name: str, data_dir, out, options: dict[str, Any]) -> Converter:
    data_set = DATA_SETS[name]
    if data_set.family not in (None, name):
        return _converter(data_set.family, data_dir, out, options)
    known = default_options(data_set)
    for option in options:
        if option not in known:
            raise KerassegError(f"data set '{name}' has no option '{option}': {did_you_mean(option, known)}")
    if out is None and data_dir is None:
        raise KerassegError(f"data set '{name}' has no folder to keep the result in: pass --out")
    if any(is_remote(place) for place in (data_dir, out) if place is not None):
        raise KerassegError(f"'{data_dir}' or '{out}' is not on a disk: prepare it on one with --out DIR, then copy DIR there")
    source = None if data_dir is None else data_path(data_dir)
    if source is not None and find_prepared(source, name) == source:
        raise KerassegError(f"{source} is already prepared: pass the folder that it was prepared from")
    if out is None:
        if not source.exists():
            # Opening says what was expected.
            data_set(data_dir, data_set.splits[0], **options)
        return Converter(Path(os.path.abspath(folder_inside(source, name))), name, data_dir, options, copy=False)
    return Converter(Path(os.path.abspath(data_path(out))), name, data_dir, options, copy=True)


def _open_splits(converter: Converter, splits: Sequence[str] | None) -> tuple[dict[str, DataSet], dict[str, str]]:
    names = splits or DATA_SETS[converter.data].splits_of(converter.data_dir, **converter.options)
    opened, errors = {}, {}
    for split in dict.fromkeys(names):
        try:
            opened[split] = converter.open(split)
        except KerassegError as error:
            if splits:
                raise
            errors[split] = error
    if not opened:
        raise next(iter(errors.values()))
    return opened, {split: " ".join(str(error).split()) for split, error in errors.items()}


def _identity(converter: Converter, data: DataSet) -> dict[str, Any]:
    defaults = default_options(DATA_SETS[converter.data])
    return {
        "format": FORMAT,
        "data": converter.data,
        "options": plain_json(defaults | dict(converter.options)),
        "copy": converter.copy,
        "labels": table_to_json(data.labels),
        "heads": data.heads and {head: table_to_json(table) for head, table in data.heads.items()},
        "inputs": data.inputs and dict(data.inputs),
        "channels": data.channels,
        "photographs": data.photographs,
        "mean": list(data.mean),
    }


def _begin(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Makes the folder ready, and gives the header that is there from before, if it is of the same data."""
    before = _read_json(folder / HEADER)
    begun = before or _read_json(folder / BEGUN)
    if begun is None and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise KerassegError(f"{folder} is not empty, and not what was prepared before: name another folder by --out, or empty it")
    if begun is not None and {name: begun.get(name) for name in _IDENTITY} != {name: identity[name] for name in _IDENTITY}:
        # Nobody shall read a mixture of both.
        for name in (HEADER, EXAMPLES):
            (folder / name).unlink(missing_ok=True)
        for name in (CONVERTED, ORIGINAL):
            shutil.rmtree(folder / name, ignore_errors=True)
        before = begun = None
    folder.mkdir(parents=True, exist_ok=True)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sweep(place)
    if begun is None:
        write_json(folder / BEGUN, identity)
    return before


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _opened_before(converter: Converter, earlier: Mapping[str, Any] | None, opened: Mapping[str, DataSet]) -> dict[str, DataSet]:
    """Splits that were prepared before and are still there: naming others does not drop them."""
    found = {}
    for split in (earlier or {}).get("splits", ()):
        if split not in opened:
            try:
                found[split] = converter.open(split)
            except KerassegError:
                continue
    return found


def _header(identity: Mapping[str, Any], opened, units, rows) -> dict[str, Any]:
    from kerasseg import __version__

    data = next(iter(opened.values()))
    heads = data.heads or {"mask": data.labels}
    splits = {}
    for split, members in rows.items():
        used = {row["key"] for row in members}
        skipped = [opened[split].ids[unit.index] for unit in units[split] if unit.key not in used]
        splits[split] = summarize(members, heads) | {"skipped": skipped}
    return {**identity, "kerasseg": __version__, "splits": splits}


def _write_broken(folder: Path, broken: Sequence[Row]) -> None:
    if broken:
        write_table(folder / BROKEN, [(row["id"], row["error"]) for row in broken])
    else:
        (folder / BROKEN).unlink(missing_ok=True)
