"""Fixtures of all tests: where the data and the reference outputs lie, if they are here; and that memory is given back."""

import gc
import os
from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set {variable}")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return _folder("KERASSEG_DATA", _SHARED / "data")


@pytest.fixture(scope="session")
def oracle_dir() -> Path:
    return _folder("KERASSEG_ORACLES", _SHARED / "oracles")


@pytest.fixture(autouse=True, scope="module")
def collected(request):
    """Frees what a file of tests left: networks are cycles of references, and Python looks for those ever more seldom.

    What is left then stays for good, such as the functions that TensorFlow has traced: nobody need look through it again.
    """
    yield
    for value in vars(request.module).values():
        if getattr(value, "__module__", None) == request.module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()
    gc.freeze()
