"""Checks a data set once, keeps what is slow to read as PNG, and writes lists, counts and checksums: a `prepared` folder."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kerasseg.data.paths import data_path, is_remote
from kerasseg.data.preparation.claim import BEGUN, check_is_ours, claim, locked, mark, others, unmark
from kerasseg.data.preparation.conversion import Converter
from kerasseg.data.preparation.journal import BROKEN, distinct, finish, list_units, read_rows, rows_of, still_valid, write_table
from kerasseg.data.preparation.listing import sum_of
from kerasseg.data.preparation.prepared import FORMAT, Prepared, find_prepared, folder_inside
from kerasseg.data.preparation.processes import convert_all
from kerasseg.data.preparation.stored import default_options, plain_json, table_to_json
from kerasseg.data.preparation.survey import Row, summarize
from kerasseg.data.records import DataSet
from kerasseg.data.table import DATA_SETS, check_options
from kerasseg.errors import KerassegError


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
        kept: Split that was prepared before and is left as it was → why it cannot be opened now.
        broken: Rows of examples that are left out, with `id` and `error`.
    """

    folder: Path
    header: dict[str, Any]
    rows: dict[str, list[Row]]
    done: int = 0
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
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
        KerassegError: If the data set cannot be opened, the folder holds something else or is being written by another process, or
            examples are damaged and not to be left out; `broken.txt` in the folder then names them all.
    """
    converter = _converter(name, data_dir, out, dict(options or {}))
    opened, left_out = _open_splits(converter, splits)
    identity = _identity(converter, next(iter(opened.values())))
    check_is_ours(converter.folder)
    with locked(converter.folder):
        earlier = claim(converter.folder, identity, inside=not converter.copy)
        before, kept = _opened_before(converter, earlier, opened)
        outcome = Outcome(converter.folder, {}, {}, kept=kept)
        outcome.left_out = {split: reason for split, reason in left_out.items() if split not in kept}
        _complete(converter, opened | before, identity, earlier, outcome, skip_broken, verify, jobs, report)
        return outcome


def _complete(converter: Converter, opened, identity, earlier, outcome: Outcome, skip_broken, verify, jobs, report) -> None:
    """Prepares what is not, and writes what is read later; the folder is ours."""
    units = {split: list_units(converter, split, data) for split, data in opened.items()}
    noted = read_rows(converter.folder)
    examples = distinct(units, noted)
    kept = {split: rows_of(Prepared(converter.folder), split) for split in outcome.kept}
    there = {*examples, *(row["key"] for members in kept.values() for row in members)}
    if converter.copy and noted and not there & noted.keys():
        raise others(converter.folder, identity)
    known, outcome.changed = still_valid(converter, examples, noted, verify)
    pending = [unit for key, unit in examples.items() if key not in known]
    if pending:
        mark(converter.folder, identity)
    for done, row in enumerate(convert_all(converter, pending, jobs), 1):
        if "error" in row:
            outcome.broken.append(row)
        else:
            known[row["key"]] = row
        if report is not None:
            report(done, len(pending))
    _write_broken(converter.folder, outcome.broken)
    if outcome.broken and not skip_broken:
        raise KerassegError(
            f"{len(outcome.broken)} of {len(examples)} examples of data set '{converter.data}' are broken, all named in "
            f"{converter.folder / BROKEN}; the first: {outcome.broken[0]['error']}; mend them and run it again, or pass "
            "--skip-broken"
        )
    rows = {split: [known[unit.key] for unit in members if unit.key in known] for split, members in units.items()}
    # An example of theirs may stand in another split, and have changed.
    rows |= {split: [known.get(row["key"], row) for row in members] for split, members in kept.items()}
    empty = [split for split, members in rows.items() if not members]
    if empty:
        raise KerassegError(
            f"split '{empty[0]}' of data set '{converter.data}' has no example that can be used: see {converter.folder / BROKEN}"
        )
    gone = [row for key, row in noted.items() if key not in there]
    header = _header(identity, opened, units, rows, (earlier or {}).get("splits", {}))
    outcome.header, outcome.rows, outcome.done = header, rows, len(pending) - len(outcome.broken)
    outcome.gone = [row["id"] for row in gone]
    if outcome.done or earlier != header:
        mark(converter.folder, identity)
        finish(converter.folder, header, rows, gone)
    if (converter.folder / BEGUN).is_file():
        unmark(converter.folder, header, (earlier or {}).get("splits", ()))


def _converter(name: str, data_dir, out, options: dict[str, Any]) -> Converter:
    data_set = DATA_SETS[name]
    if data_set.family not in (None, name):
        return _converter(data_set.family, data_dir, out, options)
    check_options([name], options)
    # Opened with another choice it is the same folder.
    options = {option: value for option, value in options.items() if option not in data_set.choices}
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
    out = Path(os.path.abspath(data_path(out)))
    if source is not None and _is_below(out, source) and out != Path(os.path.abspath(folder_inside(source, name))):
        raise KerassegError(f"--out {out} lies inside {source}, which would hold itself: name a folder elsewhere, or leave it out")
    return Converter(out, name, data_dir, options, copy=True)


def _is_below(place: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(place)).parents


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
    data_set = DATA_SETS[converter.data]
    options, left = default_options(data_set) | dict(converter.options), (*data_set.places, *data_set.choices)
    return {
        "format": FORMAT,
        "data": converter.data,
        "options": plain_json({option: value for option, value in options.items() if option not in left}),
        "copy": converter.copy,
        "labels": table_to_json(data.labels),
        "heads": data.heads and {head: table_to_json(table) for head, table in data.heads.items()},
        "inputs": data.inputs and dict(data.inputs),
        "channels": data.channels,
        "photographs": data.photographs,
        "mean": list(data.mean),
    }


def _opened_before(
    converter: Converter, earlier: Mapping[str, Any] | None, opened: Mapping[str, DataSet]
) -> tuple[dict[str, DataSet], dict[str, str]]:
    """Splits that were prepared before: naming others does not drop them, nor that they cannot be opened today (and why)."""
    found, kept = {}, {}
    for split in (earlier or {}).get("splits", ()):
        if split not in opened:
            try:
                found[split] = converter.open(split)
            except KerassegError as error:
                # A list that was taken away is no split any more.
                if split in DATA_SETS[converter.data].splits_of(converter.data_dir, **converter.options):
                    kept[split] = " ".join(str(error).split())
    return found, kept


def _header(identity: Mapping[str, Any], opened, units, rows, earlier) -> dict[str, Any]:
    from kerasseg import __version__

    data = next(iter(opened.values()))
    heads = data.heads or {"mask": data.labels}
    splits = {}
    for split, members in rows.items():
        if split not in units:
            splits[split] = earlier[split]
            continue
        used = {row["key"] for row in members}
        skipped = [opened[split].ids[unit.index] for unit in units[split] if unit.key not in used]
        splits[split] = summarize(members, heads) | {"skipped": skipped, "listed": sum_of(unit.key for unit in units[split])}
    return {**identity, "kerasseg": __version__, "splits": splits}


def _write_broken(folder: Path, broken: Sequence[Row]) -> None:
    if broken:
        write_table(folder / BROKEN, [(row["id"], row["error"]) for row in broken])
    else:
        (folder / BROKEN).unlink(missing_ok=True)
