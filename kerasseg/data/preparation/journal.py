"""The notes of a preparation: which examples are done, of which files, and what is written at its end."""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasseg.data.preparation.conversion import Converter, Unit
from kerasseg.data.preparation.listing import keys_of
from kerasseg.data.preparation.prepared import CONVERTED, EXAMPLES, FILES, HEADER, ORIGINAL, Prepared
from kerasseg.data.preparation.survey import Row
from kerasseg.data.records import DataSet, FileDataSet, mask_roles
from kerasseg.errors import KerassegError
from kerasseg.runs.files import atomic_path, write_json

BROKEN = "broken.txt"
"""Beside the notes: which examples cannot be used."""


def list_units(converter: Converter, split: str, data: DataSet) -> list[Unit]:
    """Lists the examples of a split.

    Args:
        converter: How they are prepared.
        split: Its name.
        data: It.
    Returns:
        The examples in their order.
    Raises:
        KerassegError: If a name cannot stand in a list.
    """
    if f"{split}.txt" in (FILES, BROKEN) or not split.isprintable() or "/" in split:
        raise KerassegError(f"split '{split}' cannot have its list in {split}.txt: rename it")
    units = []
    for index, (name, key) in enumerate(zip(data.ids, keys_of(data, split, converter.relative), strict=True)):
        parts = sum(path is not None for path in _parts(data, index))
        if any(sign in key for sign in "\r\n") or key.count("\t") != parts:
            raise KerassegError(f"example '{name}' of split '{split}' has a tab or an end of line in its name or path: rename it")
        units.append(Unit(key, _file_name(name), split, index))
    return units


def _parts(data: DataSet, index: int) -> tuple:
    """What a key names beside the example."""
    return (data.records[index].image, data.records[index].mask) if isinstance(data, FileDataSet) else (index,)


def _file_name(name: str) -> str:
    """A name as a path below a folder, never beside it."""
    return "/".join("_" if part in ("", ".", "..") else part for part in name.replace("\\", "_").split("/"))


def distinct(units: Mapping[str, Sequence[Unit]], rows: Mapping[str, Row]) -> dict[str, Unit]:
    """Names each example once, whatever splits it stands in.

    Args:
        units: Split → its examples.
        rows: Key → row of those that were prepared before, which keep the names of their files.
    Returns:
        Key → example; several of one name, which have different files, are told apart by a number.
    """
    found, taken = {}, {row["name"] for row in rows.values()}
    for unit in (unit for members in units.values() for unit in members if unit.key not in rows):
        if unit.key not in found:
            name, number = unit.name, 1
            while name in taken:
                number += 1
                name = f"{unit.name}~{number}"
            taken.add(name)
            found[unit.key] = dataclasses.replace(unit, name=name)
    for unit in (unit for members in units.values() for unit in members if unit.key in rows):
        found.setdefault(unit.key, dataclasses.replace(unit, name=rows[unit.key]["name"]))
    return found


def read_rows(folder: Path) -> dict[str, Row]:
    """Reads the notes of a folder.

    Args:
        folder: The prepared folder, or one that was begun.
    Returns:
        Key → row; the last line of an interrupted run may be torn, and is left out.
    """
    try:
        lines = (folder / EXAMPLES).read_bytes().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def rows_of(prepared: Prepared, split: str) -> list[Row]:
    """What was counted of a split.

    Args:
        prepared: The folder.
        split: One of its splits.
    Returns:
        The rows in the order of the split.
    Raises:
        KerassegError: If one is missing.
    """
    known = {_identity(prepared, row): row for row in read_rows(prepared.folder).values()}
    wanted = [(row.id, *sorted(map(str, row.files.values()))) for row in prepared.rows(split)]
    if any(key not in known for key in wanted):
        raise KerassegError(f"{prepared.folder / EXAMPLES} does not hold all of split '{split}': prepare it again")
    return [known[key] for key in wanted]


def _identity(prepared: Prepared, row: Row) -> tuple[str, ...]:
    return (row["id"], *sorted(str(prepared.file(file[0])) for file in row["files"].values()))


def still_valid(
    converter: Converter, units: Mapping[str, Unit], rows: Mapping[str, Row], verify: bool
) -> tuple[dict[str, Row], list[str]]:
    """Tells what need not be done again.

    Args:
        converter: How examples are prepared.
        units: Key → example.
        rows: Key → row of what was done before.
        verify: Whether to compare the content of all files with their checksums, not only size and time of change.
    Returns:
        Key → row of what is as it was, and the files that are not.
    Raises:
        KerassegError: If a file's content has changed, but not its size and time.
    """
    valid, changed = {}, []
    for key, unit in units.items():
        row = rows.get(key)
        if row is None:
            continue
        now = converter.stamps(converter.open(unit.split), unit.index)
        if now != row["sources"]:
            changed += [new[0] for old, new in zip(row["sources"], now, strict=False) if old != new]
        elif lost := [file[0] for file in row["files"].values() if not _is_there(converter.folder, file, verify)]:
            changed += lost
        else:
            valid[key] = row
    return valid, changed


def _is_there(folder: Path, kept: Sequence, verify: bool) -> bool:
    place, size, crc, _ = kept
    path = os.path.normpath(f"{folder}/{place}")
    try:
        if os.stat(path).st_size != size:
            return False
        if not verify or f"{zlib.crc32(Path(path).read_bytes()):08x}" == crc:
            return True
    except OSError:
        return False
    if place.startswith(CONVERTED):
        return False
    raise KerassegError(
        f"{path} has another CRC-32 than when it was prepared, though size and time are the same: the disk or a copy has damaged "
        "it; restore it from where it came from, and run this again"
    )


def finish(folder: Path, header: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], dropped: Sequence[Row]) -> None:
    """Writes what is read later, `prepared.json` last: where it is, all else is there.

    Args:
        folder: The prepared folder.
        header: What `prepared.json` shall hold.
        rows: Split → rows of its examples.
        dropped: Rows of examples that are no longer there, whose files are removed.
    """
    kept = {row["key"]: row for members in rows.values() for row in members}
    with atomic_path(folder / EXAMPLES) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept.values()), "utf-8")
    files = {file[0]: file for row in kept.values() for file in row["files"].values()}
    write_table(folder / FILES, [("path", "bytes", "crc32", "sha256"), *(files[place] for place in sorted(files))])
    for split, members in rows.items():
        usual = mask_roles(header["heads"])
        roles = ["image", *sorted({role for row in members for role in row["files"]} - {"image", *usual}), *usual]
        lines = [[row["id"], *(row["files"].get(role, [""])[0] for role in roles)] for row in members]
        write_table(folder / f"{split}.txt", [["id", *roles], *lines])
    write_json(folder / HEADER, header)
    for place in {file[0] for row in dropped for file in row["files"].values()} - set(files):
        if place.startswith((f"{CONVERTED}/", f"{ORIGINAL}/")):
            (folder / place).unlink(missing_ok=True)


def write_table(path: Path, lines: Sequence[Sequence]) -> None:
    """Writes lines of values with tabs between them.

    Args:
        path: The file; it appears whole or not at all.
        lines: The values.
    """
    with atomic_path(path) as temporary:
        temporary.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), "utf-8")
