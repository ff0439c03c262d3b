"""The numbered states of a run, each of which shows whether it is whole."""

import hashlib
import json
import logging
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.errors import KerassegError
from kerasseg.runs.files import atomic_path, sweep, write_json

_STATE = re.compile(r"step-(\d+)\.npz")
# A state ends in its step and score, their CRC-32, and the SHA-256 of the whole file with zeros in its place: to ZIP, a comment.
_ABOUT, _CHECK, _DIGEST = 56, 8, 64
_log = logging.getLogger(__name__)


class Checkpoints:
    """The numbered states of a run: the last few and the best. Each can be checked alone; index.json only tells what is missing.

    Args:
        directory: Where they lie; made at the first write.
        keep: How many of the last to keep; the best stays in any case.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory, self.keep = Path(directory), keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], score: float | None = None) -> Path:
        """Writes one state, then forgets those that are neither among the last nor the best.

        Args:
            step: Optimiser steps done.
            arrays: Name → value.
            score: Validation score, larger is better; `None` if there was none.
        Returns:
            The file; `np.load` reads it, too.
        Raises:
            OSError: If the disk does not take it; the earlier states are then as they were.
        """
        score = None if score is None or not math.isfinite(score) else float(score)
        # Before writing: a killed process may have left as much as the disk now lacks.
        sweep(self.directory)
        path = self.directory / f"step-{step:08d}.npz"
        with atomic_path(path) as temporary:
            _write_state(temporary, arrays, {"step": step, "score": score})
        earlier = [file for file in self._files() if _step_of(file) < step and _about(file) is not None]
        kept = [path, *earlier[: self.keep - 1]]
        kept += [best for best in self._by_score([path, *earlier])[:1] if best not in kept]
        write_json(self.directory / "index.json", sorted(file.name for file in kept))
        for file in set(self._files()) - set(kept):
            file.unlink(missing_ok=True)
        return path

    def last_step(self) -> int:
        """Tells how many optimiser steps the newest state has done, by its end alone; 0 if there is none."""
        return next((_step_of(file) for file in self._files() if _about(file) is not None), 0)

    def last(self, report: Callable[[str], None] = _log.warning) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the newest state that is whole; a damaged or missing one is passed over.

        Args:
            report: Called with one line where a state was passed over; by default a warning is logged.
        Returns:
            `(step, arrays)`, or `None` if there is none.
        Raises:
            KerassegError: If there are states but all of them are damaged.
        """
        return self._first_whole(sorted({*self._files(), *self._indexed()}, key=_step_of, reverse=True), report)

    def best(self, report: Callable[[str], None] = _log.warning) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads the state with the highest score, or the newest where none has a score; otherwise like `last`."""
        files = self._files()
        # Those whose score cannot be read may have been the best.
        damaged = [file for file in files if _about(file) is None]
        return self._first_whole(dict.fromkeys([*damaged, *self._by_score(files), *files]), report)

    def _files(self) -> list[Path]:
        """Every state, newest first."""
        files = [file for file in self.directory.glob("step-*.npz") if _STATE.fullmatch(file.name)]
        return sorted(files, key=_step_of, reverse=True)

    def _indexed(self) -> list[Path]:
        """The states that there should be, as far as the index can be read."""
        try:
            text = (self.directory / "index.json").read_text()
            return [self.directory / name for name in json.loads(text) if _STATE.fullmatch(name)]
        except (FileNotFoundError, ValueError, TypeError):
            return []

    @staticmethod
    def _by_score(files: Iterable[Path]) -> list[Path]:
        """Those that have a score, the highest first; of equal ones the older."""
        scores = {file: (_about(file) or {}).get("score") for file in files}
        return sorted((f for f in scores if scores[f] is not None), key=lambda f: (-scores[f], _step_of(f)))

    def _first_whole(self, files: Iterable[Path], report) -> tuple[int, dict[str, np.ndarray]] | None:
        damaged = []
        for file in files:
            if _is_whole(file):
                if damaged:
                    report(f"{self.directory}: {', '.join(damaged)}; taking {file.name}")
                with np.load(file) as arrays:
                    return _step_of(file), dict(arrays)
            damaged.append(f"{file.name} is {'damaged' if file.exists() else 'missing'}")
        if damaged:
            raise KerassegError(f"{self.directory}: all {len(damaged)} checkpoints are damaged; train again in another --run-dir")
        return None


class _HashingFile:
    """A file to write to, forwards only, that hashes what passes: a gigabyte need not be read again for that."""

    def __init__(self, file):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write_state(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        hashing = _HashingFile(file)
        with zipfile.ZipFile(hashing, "w") as archive:
            for name, value in arrays.items():
                value = np.asarray(value, order="C")
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(value))
                    # In one piece: np.save would copy it block by block.
                    member.write(value.reshape(-1).view(np.uint8))
            text = json.dumps(about).encode().ljust(_ABOUT)
            archive.comment = text + _crc(text) + b"0" * _DIGEST
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(hashing.digest.hexdigest().encode())


def _step_of(path: Path) -> int:
    return int(_STATE.fullmatch(path.name)[1])


def _crc(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _about(path: Path) -> dict | None:
    """What a state's end says of it; `None` if the end is damaged."""
    try:
        with open(path, "rb") as file:
            file.seek(-_ABOUT - _CHECK - _DIGEST, os.SEEK_END)
            text, check = file.read(_ABOUT), file.read(_CHECK)
    except OSError:
        return None
    return json.loads(text) if check == _crc(text) else None


def _is_whole(path: Path) -> bool:
    if _about(path) is None:
        return False
    digest, left = hashlib.sha256(), path.stat().st_size - _DIGEST
    with open(path, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        digest.update(b"0" * _DIGEST)
        return file.read() == digest.hexdigest().encode()
