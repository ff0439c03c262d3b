"""Tables of names whose values are imported only when they are asked for."""

import difflib
import importlib
from collections.abc import Iterator, Mapping

from kerasseg.errors import KerassegError, UnknownNameError

_MISSING_TENSORFLOW = (
    "TensorFlow is not installed: run `pip install 'kerasseg[cpu]'` (or [gpu], [tpu]; the three wheels exclude each other)"
)


def import_lazily(module: str):
    """Imports a module, and says in one line how to install TensorFlow where that is what is missing.

    Args:
        module: Absolute dotted name.
    Returns:
        The module.
    Raises:
        KerassegError: If TensorFlow or Keras is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in ("tensorflow", "keras"):
            raise KerassegError(_MISSING_TENSORFLOW) from error
        raise


def did_you_mean(received: str, known) -> str:
    """Names the nearest known spelling, or the first known ones.

    Args:
        received: What the user wrote.
        known: The spellings that exist.
    Returns:
        `did you mean 'x'?` where one is near, else `known: a, b, c`, at most twenty.
    """
    known = list(known)
    near = difflib.get_close_matches(received, known, n=1)
    # A ResNet has hundreds of layers.
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known[:20])}{', …' if len(known) > 20 else ''}"


class LazyTable(Mapping):
    """A read-only mapping from names to objects that live in modules not yet imported.

    Listing the names imports nothing, so that `--help` need not wait for TensorFlow.

    Args:
        kind: What the names stand for, in the singular, for messages.
        locations: Name → `"module.path:attribute"`.
    Example:
        >>> from kerasseg.models import MODELS
        >>> "fcn8s" in MODELS
        True
    """

    def __init__(self, kind: str, locations: Mapping[str, str]):
        self._kind = kind
        self._locations = dict(locations)

    def __getitem__(self, name: str):
        if name not in self._locations:
            raise UnknownNameError(f"unknown {self._kind} '{name}': {did_you_mean(str(name), self._locations)}")
        module, attribute = self._locations[name].split(":")
        return getattr(import_lazily(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._locations

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)
